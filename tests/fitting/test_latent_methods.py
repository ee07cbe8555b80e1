"""What can be asked of a fit with codes: against quadrature, other implementations, and nominal rates."""

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from pplgen.models import VAE, GaussianMixture, SemiSupervisedVAE

import pplgen
from pplgen.checks.inputs import CheckInputs
from pplgen.checks.latents import active_units
from pplgen.checks.registry import Verdict
from pplgen.cli.main import main
from pplgen.distributions.missing import MarginalIndependent
from pplgen.errors import InputError
from pplgen.posterior import imputation, latent_variables
from pplgen.posterior import row_likelihood as likelihood
from pplgen.posterior.draws import row_densities
from pplgen.posterior.imputation import impute_rows
from pplgen.posterior.row_likelihood import LogLikelihood
from pplgen.story.latent import LatentStory

_SPEC = importlib.util.spec_from_file_location("latent_toys", Path(__file__).parents[1] / "latent_toys.py")
latent_toys = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(latent_toys)

pytestmark = pytest.mark.filterwarnings("ignore:column .* is constant")


@pytest.fixture(scope="module")
def digits():
    torch.manual_seed(0)
    x = pplgen.load_data("digits").values / 16
    return x[torch.randperm(len(x))]


@pytest.fixture(scope="module")
def fit(digits):
    torch.manual_seed(0)
    story = VAE(64, 2, hidden=(32,))
    return pplgen.fit(story, digits[:600], steps=300, batch_size=128, compile="graph", progress=False)


class Lines(latent_toys.EncodedRows):
    """Rows around a line, whose code and noise are known; everything has a closed form."""

    def __init__(self, num_features=3, num_latents=1, spread=1.0):
        super().__init__(num_features, num_latents, spread=spread)
        self.spread, self.w = spread, torch.tensor([1.0, -2.0, 0.5])
        self.nothing = torch.nn.Parameter(torch.zeros(()))

    def prior(self):
        return dist.Normal(torch.zeros(1), torch.ones(1)).to_event(1)

    def decode(self, z):
        mean = z * self.w + 0 * self.nothing
        return MarginalIndependent(dist.Normal(mean, torch.full_like(mean, 0.5)))

    def encode(self, x):
        seen = (~x.isnan()).to(x.dtype) * self.w
        precision = 1 + (seen * self.w).sum(-1, keepdim=True) / 0.25
        mean = (seen * x.nan_to_num()).sum(-1, keepdim=True) / 0.25 / precision
        return dist.Normal(mean, self.spread / precision.sqrt()).to_event(1)


@pytest.fixture
def lines():
    """A story whose guide is half as wide again as the posterior, so that weights vary."""
    torch.manual_seed(1)
    story = Lines(spread=1.5)
    x = story.simulate(300)
    x[:100, 0] = torch.nan
    return pplgen.fit(story, x, steps=1, progress=False, compile="off"), x


def test_codes_are_the_guides_own_moments(fit, digits):
    with fit.pair.isolated(), torch.no_grad():
        q = fit.story.encode(digits[:5])
    found = fit.encode(digits[:5])
    assert found["z"].dims == ("row", "latent")
    np.testing.assert_allclose(found["z"], q.mean, rtol=1e-5)
    np.testing.assert_allclose(found["z_sd"], q.variance.sqrt(), rtol=1e-5)
    # the mean of n draws is off by one sd / sqrt(n); four of those
    drawn = fit.latents(digits[:5])
    np.testing.assert_allclose(drawn["z"], found["z"])
    assert fit.encode().sizes["row"] == 600


def test_moments_without_closed_form_come_from_draws(digits):
    story = VAE(64, 2, hidden=(8,), guide="flow")
    flow = pplgen.fit(story, digits[:50], steps=3, progress=False)
    found = flow.encode(digits[:4])
    with flow.pair.isolated(), torch.no_grad():
        z = flow.story.encode(digits[:4]).sample(torch.Size([4000]))
    # four standard errors of means of 1,000 and 4,000 draws
    error = 4 * z.std(0) * math.sqrt(1 / latent_variables.MOMENT_DRAWS + 1 / 4000)
    assert (torch.from_numpy(found["z"].values) - z.mean(0)).abs().le(error).all()


def test_decoding_and_reconstructing(fit, digits):
    x = digits[:7]
    found = fit.encode(x)
    again = fit.reconstruct(x)
    assert again.shape == (7, 64)
    torch.testing.assert_close(fit.decode(found), again)
    torch.testing.assert_close(fit.decode(found["z"].values), again)
    with fit.pair.isolated(), torch.no_grad():
        logits = fit.story.decoder(torch.from_numpy(found["z"].values))
    torch.testing.assert_close(again, torch.sigmoid(logits))
    assert fit.decode(torch.zeros(3, 4, 2)).shape == (3, 4, 64)
    holes = x.clone()
    holes[:, :32] = torch.nan
    assert fit.reconstruct(holes).isfinite().all()


def test_walks_between_rows_start_and_end_at_their_reconstructions(fit, digits):
    walked = fit.interpolate(digits[0], digits[1], num=5)
    torch.testing.assert_close(walked[[0, -1]], fit.reconstruct(digits[:2]))
    middle = fit.encode(digits[:2])["z"].mean("row")
    torch.testing.assert_close(walked[2], fit.decode(middle.values))
    several = fit.interpolate(digits[:3], digits[3:6], num=4)
    assert several.shape == (4, 3, 64)
    torch.testing.assert_close(several[-1], fit.reconstruct(digits[3:6]))


def test_traversals_move_one_entry_over_quantiles(fit, digits):
    found = fit.traverse(num=3)
    assert dict(found.sizes) == {"latent": 2, "quantile": 3, "feature": 64}
    # normal quantiles; of 10,000 draws they are off by sqrt(p (1 - p) / n) / density, at .05 by .021; four of those
    np.testing.assert_allclose(found["z"], [[-1.645, 0, 1.645]] * 2, atol=0.085)
    base = fit.encode(digits[:1])["z"].values[0]
    rested = fit.traverse(digits[0], num=3, over="posterior")
    moved = np.stack([[base[0], z] for z in rested["z"].values[1]])
    np.testing.assert_allclose(rested["x"][1], fit.decode(moved), rtol=1e-4)
    assert (np.diff(rested["z"]) > 0).all()


def test_codes_that_are_shares_stay_shares(digits):
    fit = pplgen.fit(VAE(64, 3, hidden=(8,), guide="dirichlet"), digits[:50], steps=3, progress=False)
    asked = []
    fit.story.decode = lambda z, decode=fit.story.decode: (asked.append(z), decode(z))[1]
    fit.traverse(num=4)
    torch.testing.assert_close(asked[0].sum(-1), torch.ones_like(asked[0][..., 0]))


def test_densities_in_blocks_are_the_closed_form(lines, monkeypatch):
    """Rows are normal with covariance w w' + .25 I; draws and rows go in pieces that leave remainders."""
    monkeypatch.setattr(latent_variables, "ENTRIES", 3 * 7 * 16)
    fit, x = lines
    found = fit.log_likelihood(x, draws=501)
    w = fit.story.w
    whole = torch.distributions.MultivariateNormal(torch.zeros(3), torch.outer(w, w) + 0.25 * torch.eye(3))
    part = torch.distributions.MultivariateNormal(torch.zeros(2), torch.outer(w[1:], w[1:]) + 0.25 * torch.eye(2))
    exact = torch.cat([part.log_prob(x[:100, 1:]), whole.log_prob(x[100:])])
    assert found.estimator == "importance-weighted"
    errors = (found.as_subclass(torch.Tensor) - exact) / found.standard_error
    # 300 errors that are standard normal: their mean within four of 1 / sqrt(300), none beyond 4.5
    assert abs(errors.mean().item()) < 4 / math.sqrt(300)
    assert errors.abs().max().item() < 4.5


def test_densities_agree_with_the_trace_of_the_pair(fit, digits):
    found = fit.log_likelihood(digits[600:650], draws=2000)
    with fit.pair.isolated():
        traced = row_densities(fit.pair, {}, 2000, (digits[600:650],)).log_likelihood
    other = LogLikelihood.from_draws(traced, "importance-weighted")
    error = (found.standard_error**2 + other.standard_error**2).sqrt()
    # fifty rows: none beyond 4.5 of its errors
    assert ((found.as_subclass(torch.Tensor) - other.as_subclass(torch.Tensor)).abs() < 4.5 * error).all()


def test_stories_with_models_of_their_own_go_in_blocks_too(lines, monkeypatch):
    fit, x = lines
    plain = fit.log_likelihood(x, draws=400)
    monkeypatch.setattr(likelihood, "is_encoded", lambda pair: False)
    monkeypatch.setattr(likelihood, "BLOCK_NUMBERS", 400 * 2 * 130)
    traced = fit.log_likelihood(x, draws=400)
    error = (plain.standard_error**2 + traced.standard_error**2).sqrt()
    assert ((plain - traced).abs() < 4.5 * error + 1e-5).all()


def test_memory_grows_with_neither_rows_nor_draws(fit, digits, monkeypatch):
    """The largest tensor that is decoded, whatever is asked."""
    decoded = []

    def decode(z, decode=fit.story.decode):
        decoded.append(z.shape[:-1].numel() * 64)
        return decode(z)

    monkeypatch.setattr(latent_variables, "ENTRIES", 2**14)
    monkeypatch.setattr(latent_variables, "BLOCK_NUMBERS", 2**16)
    fit.story.decode = decode
    try:
        fit.log_likelihood(digits, draws=50)
        fit.log_likelihood(digits[:20], draws=3000)
        holes = digits[:200].clone()
        holes[:, :32] = torch.nan
        fit.impute(holes, draws=3)
    finally:
        del fit.story.decode
    assert max(decoded) <= 2**16


@pytest.mark.parametrize("pooled", [True, False])
def test_completions_have_the_conditional_distribution(lines, monkeypatch, pooled):
    """x_0 given the others is normal, by the rules of the multivariate normal; both ways of drawing it."""
    if not pooled:
        monkeypatch.setattr(Lines, "complete", lambda self, x: LatentStory.complete(self, x))
        monkeypatch.setattr(imputation, "BLOCK_ENTRIES", 200 * 3 * 33)
    fit, x = lines
    drawn = fit.impute(x[:110], draws=400)
    assert drawn.shape == (400, 110, 3)
    seen = ~x[:110].isnan()
    assert (drawn[:, seen] == x[:110][seen]).all()
    w = fit.story.w
    gain = w[0] * torch.linalg.solve(torch.outer(w[1:], w[1:]) + 0.25 * torch.eye(2), w[1:])
    mean, variance = x[:100, 1:] @ gain, w[0] ** 2 + 0.25 - w[0] * gain @ w[1:]
    error = (drawn[:, :100, 0].mean(0) - mean) / (variance / 400).sqrt()
    # a hundred standard normal errors, wider by the share of proposals that draws have in common (a tenth or so)
    assert abs(error.mean().item()) < 4.4 / math.sqrt(100)
    # variance of a hundred times 400 draws: relative error sqrt(2 / 40,000); four of those, and as much for the pool
    assert abs((drawn[:, :100, 0].var(0).mean() / variance).item() - 1) < 0.05


def test_rows_are_imputed_in_blocks_whatever_the_story(monkeypatch):
    x = pplgen.load_data("faithful").values.clone()
    x[::3, 0] = torch.nan
    mixture = pplgen.fit(GaussianMixture(2, 2), x, steps=100, optimiser="adam", progress=False)
    whole = mixture.impute(x, draws=30)
    monkeypatch.setattr(imputation, "BLOCK_ENTRIES", 200)
    with mixture.pair.isolated():
        pieces = impute_rows(mixture.story, mixture.pair, (x,), 30)
    assert pieces.shape == whole.shape
    spread = whole.std(0).clamp_min(1e-6)
    # means of thirty draws each of 91 entries: five standard errors of their difference
    assert ((whole.mean(0) - pieces.mean(0)).abs() <= 5 * spread * math.sqrt(2 / 30) + 1e-6).all()


def test_inpainting_leaves_what_is_seen(fit, digits):
    x = digits[600:650]
    masked = x.clone()
    masked[:, :32] = torch.nan
    drawn = fit.impute(masked, draws=10)
    assert (drawn[:, :, 32:] == x[:, 32:]).all()
    assert drawn.isfinite().all()
    pixels = digits[:600].mean(0)[:32]
    error = (drawn.mean(0)[:, :32] - x[:, :32]).square().mean()
    noise = (drawn.var(0)[:, :32] / 10).mean()
    assert error - noise < (pixels - x[:, :32]).square().mean(), "better than each pixel's mean"


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_false_alarms_come_at_the_nominal_rate(fit, digits, rate):
    held_out, new = digits[600:1200], digits[1200:]
    found = fit.anomaly(new, held_out=held_out, rate=rate, draws=50)
    # n held-out rows and m new ones: variance of the share is about rate (1 - rate) (1 / m + 1 / n); four deviations
    error = 4 * math.sqrt(rate * (1 - rate) * (1 / len(new) + 1 / len(held_out)))
    assert abs(found["flagged"].mean().item() - rate) < error
    np.testing.assert_array_equal(found["flagged"], found["p_value"] <= rate + 1e-12)
    assert found.attrs["calibrated_by"] == "held-out rows"
    negatives = fit.anomaly(1 - new, held_out=held_out, rate=rate, draws=50)
    assert negatives["flagged"].all()


def test_p_values_count_normal_rows(fit, digits):
    found = fit.anomaly(digits[1200:1220], rate=0.1, draws=20)
    assert found.attrs["calibrated_by"] == "training rows"
    normal = found["normal_score"].values
    counted = [(1 + (normal >= score).sum()) / (len(normal) + 1) for score in found["score"].values]
    np.testing.assert_allclose(found["p_value"], counted)
    assert (normal <= float(found["threshold"])).sum() == math.ceil(0.9 * (len(normal) + 1))


def named(checks, name):
    return next(check for check in checks if check.name == name)


def test_active_units_and_collapse(fit, digits):
    found = {check.name: check for check in fit.diagnose()}
    units, gap = found["active units"], found["ELBO gap (nats per row)"]
    assert (units.value, units.threshold, units.verdict) == (2, 2, Verdict.PASS)
    # the gap is KL(q, p(z | x)) but for the importance-weighted bound's own, and so positive
    assert 0 < gap.value < 1
    assert units.source == "Burda et al. 2016"
    with fit.pair.isolated(), torch.no_grad():
        last = fit.story.encoder.body[-1]
        kept = last.weight.clone(), last.bias.clone()
        for rows, verdict, remedy in ((1, Verdict.WARN, "num_latents=1"), (2, Verdict.FAIL, "have collapsed")):
            last.weight[:rows] = 0
            check = active_units(CheckInputs(fit.pair, (digits[:200],)))
            assert (check.value, check.verdict) == (2 - rows, verdict)
            assert remedy in check.remedy
        last.weight.copy_(kept[0])


def test_the_gap_of_a_known_guide(lines):
    """KL(N(m, 1.5 s), N(m, s)) = (1.5^2 - 1) / 2 - log 1.5 = .2195 nats of every row."""
    fit, _ = lines
    gap = named(fit.diagnose(), "ELBO gap (nats per row)")
    # per row the ELBO of 200 draws has variance Var[.625 (e^2 - 1)] / 200 = .0039, over 300 rows an error of .0036
    assert gap.value == pytest.approx(0.2195, abs=4 * 0.0036 + 0.003)


def test_checks_that_do_not_apply(faithful_fit, capsys):
    checks = faithful_fit.diagnose()
    assert not capsys.readouterr().out  # print(checks) prints them
    assert named(checks, "active units").verdict is Verdict.NOT_APPLICABLE
    assert "active units: not applicable" in str(checks)


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        (
            lambda fit, x: fit.decode([1.0, 2.0, 3.0]),
            r"latent variables of shape \(3,\); expected finite values of shape \(..., 2\)",
        ),
        (lambda fit, x: fit.decode("codes"), "decode: str is no array of latent variables"),
        (lambda fit, x: fit.encode(x[:, :10]), r"data of shape \(1797, 10\)"),
        (lambda fit, x: fit.interpolate(x[:2], x[:3]), "2 rows and 3; expected as many"),
        (lambda fit, x: fit.interpolate(x[0], x[1], num=1), "num=1"),
        (lambda fit, x: fit.traverse(over="rows"), "over='rows': expected one of prior, posterior"),
        (lambda fit, x: fit.anomaly(x[:3], rate=2), "rate=2: expected a fraction"),
        (lambda fit, x: fit.anomaly(x[:3], held_out=x[:5], rate=0.1), "rate=0.1: 5 normal rows .* at least 9"),
    ],
)
def test_mistakes_are_one_sentence(fit, digits, ask, sentence):
    with pytest.raises(InputError, match=sentence):
        ask(fit, digits)


@pytest.mark.parametrize("verb", ["encode", "reconstruct", "traverse"])
def test_other_stories_have_no_codes(faithful_fit, verb):
    with pytest.raises(InputError, match=f"{verb}: GaussianMixture has no per-row latent variables"):
        getattr(faithful_fit, verb)()


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory):
    """A short fit of digits through the command line, with files to ask about."""
    folder = tmp_path_factory.mktemp("digits")
    frame = pd.DataFrame(digits.numpy(), columns=[f"p{j}" for j in range(64)])
    frame[:200].to_csv(folder / "train.csv", index=False)
    frame[200:300].to_csv(folder / "held.csv", index=False)
    frame[300:310].to_csv(folder / "new.csv", index=False)
    gaps = frame[300:310].copy()
    gaps.loc[:, "p0":"p31"] = math.nan
    gaps.to_csv(folder / "gaps.csv", index=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        options = "--latents 2 --hidden 8 --steps 20 --draws 5"
        assert call(patch, f"fit vae train.csv --out run {options}") == 0
    return folder


def call(patch, text):
    patch.setattr(sys, "argv", ["pplgen", *text.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


@pytest.mark.parametrize(
    ("command", "columns", "rows"),
    [
        ("encode run new.csv", ["row", "z_0", "z_1", "z_sd_0", "z_sd_1"], 10),
        ("predict run new.csv", ["row", "log_density", "z_0", "z_1", "z_sd_0", "z_sd_1"], 10),
        ("reconstruct run gaps.csv", [f"p{j}" for j in range(64)], 10),
        ("impute run gaps.csv", [f"p{j}" for j in range(64)], 10),
        ("impute run gaps.csv -n 3", ["draw", *(f"p{j}" for j in range(64))], 30),
        ("anomaly run new.csv --held-out held.csv --rate .1", ["row", "score", "p_value", "flagged", "threshold"], 10),
        ("interpolate run new.csv --from 2 --to 5 -n 4", ["share", *(f"p{j}" for j in range(64))], 4),
        ("traverse run -n 3", ["latent", "quantile", "z", *(f"p{j}" for j in range(64))], 6),
    ],
)
def test_commands_write_tables(run, monkeypatch, tmp_path, command, columns, rows):
    monkeypatch.chdir(run)
    out = tmp_path / "out.csv"
    assert call(monkeypatch, f"{command} --out {out}") == 0
    table = pd.read_csv(out)
    assert list(table.columns) == columns
    assert len(table) == rows
    assert table.notna().all(axis=None)
    if command.startswith("impute"):
        seen = pd.read_csv("new.csv").loc[:, "p32":].to_numpy()
        np.testing.assert_array_equal(table.loc[:9, "p32":"p63"], seen)


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("interpolate run new.csv --to 11", "--to 11: new has 10 rows"),
        ("anomaly run new.csv", "Missing option '--held-out'"),
        ("anomaly run new.csv --held-out held.csv --rate .001", "rate=0.001: 100 normal rows cannot tell"),
        ("fit vae train.csv --hidden wide", "--hidden wide: expected whole numbers separated by commas"),
    ],
)
def test_mistakes_on_the_command_line(run, monkeypatch, capsys, command, sentence):
    monkeypatch.chdir(run)
    assert call(monkeypatch, command) == 2
    assert sentence in capsys.readouterr().err


class Sided(Lines):
    """A line whose code has a class beside it: one number of the code, and two that say which way the line goes."""

    def prior(self):
        return Beside(super().prior(), torch.tensor([0.5, 0.5]))

    def decode(self, z):
        return super().decode(z[..., :1] * (z[..., 1:2] - z[..., 2:3]))

    def encode(self, x):
        mean = torch.zeros(len(x), 1)
        return Beside(dist.Normal(mean, torch.ones_like(mean)).to_event(1), torch.tensor([0.5, 0.5]).expand(len(x), 2))


class Beside(dist.TorchDistribution):
    """A code and a class, whose variance is not told."""

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, code, shares):
        self.code, self.shares = code, shares
        super().__init__(code.batch_shape, torch.Size([3]), validate_args=False)

    @property
    def mean(self):
        return torch.cat([self.code.mean, self.shares], -1)

    def sample(self, sample_shape=()):
        kind = dist.OneHotCategorical(self.shares).sample(sample_shape)
        return torch.cat([self.code.sample(sample_shape), kind], -1)

    def log_prob(self, value):
        return self.code.log_prob(value[..., :1]) + dist.OneHotCategorical(self.shares).log_prob(value[..., 1:])


def test_codes_with_a_class_beside_them():
    torch.manual_seed(0)
    story = Sided()
    x = torch.randn(40, 3)
    fit = pplgen.fit(story, x, steps=1, compile="off", progress=False)
    found = fit.encode(x)
    assert {name: values.dims for name, values in found.items()} == {
        "z": ("row", "latent"),
        "z_sd": ("row", "latent"),
        "y": ("row", "class"),
    }
    np.testing.assert_allclose(found["z"], np.zeros((40, 1)))
    np.testing.assert_allclose(found["y"], np.full((40, 2), 0.5))
    assert fit.decode(found).shape == (40, 3)
    assert fit.traverse(num=3).sizes["latent"] == 1
    assert named(fit.diagnose(), "active units").verdict is Verdict.FAIL
    assert fit.log_likelihood(x, draws=50).isfinite().all()


def test_labels_are_no_part_of_how_unlike_others_a_row_is():
    torch.manual_seed(0)
    x, labels = torch.randn(120, 4), torch.arange(120).remainder(3) - 1
    story = SemiSupervisedVAE(4, 2, num_classes=2, hidden=(5,), likelihood="normal")
    fit = pplgen.fit(story, x, labels=labels, steps=50, progress=False)
    known, unknown = fit.anomaly(seed=1), fit.anomaly(x, held_out=x, seed=1)
    np.testing.assert_array_equal(known["normal_score"], unknown["normal_score"])
