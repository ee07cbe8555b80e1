"""Bounds by name against closed forms and one another, and what is done to them while a fit goes on."""

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pplgen.models import VAE, GaussianMixture, MixtureVAE
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.nn import PyroParam

import pplgen
from pplgen import InputError
from pplgen.cli import main as cli
from pplgen.compiler.graph import trace
from pplgen.inference.kl_warm_up import weigh_kl
from pplgen.inference.minibatches import batching
from pplgen.inference.objectives import BOUNDS, make_bound
from pplgen.inference.training_result import StopReason
from pplgen.story.conditioning import RowScale
from pplgen.story.isolation import seeded
from pplgen.story.marginalisation import WeightedEnum_ELBO
from pplgen.story.pair import Pair

_SPEC = importlib.util.spec_from_file_location("latent_toys", Path(__file__).parents[1] / "latent_toys.py")
latent_toys = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(latent_toys)


def pair_of(story, x, weights=None):
    with seeded(0):
        return Pair.of_story(story, x, weights=weights)


@pytest.fixture
def linear():
    """A linear Gaussian autoencoder that guesses codes from the prior, ten rows, and their exact log densities."""
    torch.manual_seed(1)
    x = torch.randn(10, 5, dtype=torch.float64) @ torch.randn(5, 5, dtype=torch.float64)
    pair = pair_of(VAE(5, 2, hidden=(), likelihood="normal"), x)
    with torch.no_grad():
        for parameter in pair.story.encoder.parameters():
            parameter.zero_()
        pair.story.encoder.body[0].bias[2:] = 1.0
        origin = pair.story.decode(torch.zeros(1, 2, dtype=x.dtype)).mean[0]
        W = (pair.story.decode(torch.eye(2, dtype=x.dtype)).mean - origin).T
        noise = pair.story.seen.sigma.square().diag()
        exact = torch.distributions.MultivariateNormal(origin, W @ W.T + noise).log_prob(x)
    return pair, x, exact


@pytest.fixture
def pixels():
    """An autoencoder of forty binary rows as it starts, in doubles."""
    torch.manual_seed(2)
    x = torch.rand(40, 8, dtype=torch.float64).round()
    return pair_of(VAE(8, 3, hidden=(6,)), x), x


def losses(pair, bound, x, number, seed=0, scale=None):
    with pair.isolated(), seeded(seed), pyro.validation_enabled(False), torch.no_grad(), scale or torch.no_grad():
        return np.array([float(bound.loss(pair.model, pair.guide, *x)) for _ in range(number)])


def many_losses(pair, bound, number, batches=None, scale=None):
    """Losses at draws of their own, of all rows or of a batch each, by the graph, which is compared with Pyro's own."""
    batches = pair.data[0].expand(number, *pair.data[0].shape) if batches is None else batches
    with pair.isolated(), seeded(0):
        graph = trace(pair, bound, (batches[0],), scale)
        vector = graph.pack(pair.snapshot())
        each = torch.func.vmap(
            lambda x: graph.loss_and_gradient(vector, *graph.buffers, x)[0], randomness="different", chunk_size=50
        )
        return each(batches).numpy()


def mean_and_error(values):
    return values.mean(), values.std(ddof=1) / math.sqrt(len(values))


def gradients(pair, bound, number):
    """Gradients at the pair's parameters, shape ``(number, num_parameters)``, with the names of their entries."""
    with pair.isolated(), seeded(0):
        graph = trace(pair, bound, pair.data)
        vector, inputs = graph.pack(pair.snapshot()), (*graph.buffers, *pair.data)
        each = torch.func.vmap(lambda v: graph.loss_and_gradient(v, *inputs)[1], randomness="different")
        found = each(vector.expand(number, -1))
    names = [name for name, shape in zip(graph.names, graph.shapes, strict=True) for _ in range(shape.numel())]
    return found, np.array(names)


@pytest.mark.parametrize("weights", [None, torch.arange(40.0, dtype=torch.float64) / 20])
@pytest.mark.parametrize("kl_weight", [1.0, 0.3])
def test_importance_bound_of_one_draw_is_the_sampled_one(pixels, weights, kl_weight):
    pair, x = pixels
    pair = pair_of(pair.story, x, weights)
    weigh_kl(pair, 1)
    pair.kl_weight.fill_(kl_weight)
    found = []
    for bound in (make_bound(pair, "importance"), Trace_ELBO()):
        with pair.isolated(), seeded(5):
            pair.story.zero_grad()
            loss = bound.loss_and_grads(pair.model, pair.guide, *pair.data)
            found.append([loss, *(p.grad.clone() for p in pair.story.encoder.parameters() if p.grad is not None)])
    for ours, theirs in zip(*found, strict=True):
        # the rounding of sums over forty rows
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_importance_bound_rises_to_the_exact_density(linear):
    """Its gap is ``sum_i var(w_i) / 2K`` for weights of mean one and large K, by a Taylor series of the logarithm."""
    pair, x, exact = linear
    with torch.no_grad(), seeded(0):
        q = pair.story.encode(x)
        z = q.sample((20_000,))
        logs = pair.story.prior().log_prob(z) + pair.story.decode(z).log_prob(x) - q.log_prob(z) - exact
    variance, variance_error = mean_and_error(logs.exp().unflatten(0, (20, 1000)).var(1).sum(-1).numpy())
    before = -math.inf
    for number in (1, 4, 100):
        mean, error = mean_and_error(-many_losses(pair, make_bound(pair, "importance", number), 150))
        assert before < mean - 4 * error
        assert mean < exact.sum().item() + 4 * error
        before = mean + 4 * error
    # the next terms of the series are a few hundredths of this one
    assert exact.sum().item() - mean == pytest.approx(
        variance / 200, rel=0.1, abs=4 * math.hypot(error, variance_error / 200)
    )


@pytest.mark.parametrize("number", [1, 4])
def test_analytic_and_sampled_bounds_agree_on_average(pixels, number):
    pair, _ = pixels
    found = [mean_and_error(many_losses(pair, make_bound(pair, name, number), 400)) for name in BOUNDS[:3]]
    mean, error = found[0]
    for other, other_error in found[1:]:
        assert abs(other - mean) < 4 * math.hypot(error, other_error)


@pytest.mark.parametrize("name", BOUNDS)
def test_minibatches_stand_for_all_rows(pixels, name):
    pair, _ = pixels
    bound = make_bound(pair, name, 3, batch_size=8)
    whole, whole_error = mean_and_error(many_losses(pair, bound, 150))
    with pair.isolated():
        batches, scale = batching(pair, 8, seed=0)
    # five batches make one pass, so that which rows are in which adds no error
    drawn = torch.stack([next(batches)[0] for _ in range(40 * 5)])
    parts, parts_error = mean_and_error(many_losses(pair, bound, 200, drawn, scale).reshape(40, 5).mean(1))
    assert abs(parts - whole) < 4 * math.hypot(whole_error, parts_error)


def test_gradients_agree_and_their_variances_are_ordered(pixels):
    """Analytic and without the score term below sampled, and all far below the score function's."""
    pair, _ = pixels
    found, variances = {}, {}
    for name in BOUNDS[:4]:
        values, names = gradients(pair, make_bound(pair, name), 600)
        found[name] = values
        encoder = values[:, [each.startswith("encoder") for each in names]]
        squares = (encoder - encoder.mean(0)).square().sum(1)
        variances[name] = mean_and_error(squares.numpy())
    mean, error = found["analytic"].mean(0), found["analytic"].std(0) / math.sqrt(600)
    for name in BOUNDS[:4]:
        errors = found[name].std(0) / math.sqrt(600)
        # of 250 entries the largest is rarely beyond four and a half deviations
        assert ((found[name].mean(0) - mean).abs() <= 4.5 * torch.hypot(error, errors) + 1e-9).all(), name
    (sampled, s), (analytic, a), (without, w), (score, c) = (variances[name] for name in BOUNDS[:4])
    assert max(analytic + 4 * math.hypot(a, s), without + 4 * math.hypot(w, s)) < sampled
    assert 10 * (sampled + 4 * s) < score - 4 * c


def test_several_draws_divide_the_variance(pixels):
    pair, _ = pixels
    found = (gradients(pair, make_bound(pair, "sampled", number), 1600)[0] for number in (1, 10))
    squares = ((values - values.mean(0)).square().sum(1).numpy() for values in found)
    (one, error), (ten, other) = (mean_and_error(each) for each in squares)
    relative = math.hypot(error / one, other / ten)
    assert relative < 0.12
    assert one / ten == pytest.approx(10, rel=4 * relative)


@pytest.mark.parametrize(("number", "factor"), [(1, 1.0), (3, 2.5)])
def test_free_bits_by_hand(pixels, number, factor):
    pair, x = pixels
    weigh_kl(pair, 1)
    pair.kl_weight.fill_(0.7)
    with torch.no_grad():
        q = pair.story.encode(x).base_dist
        divergence = 0.5 * (q.loc.square() + q.scale.square() - 1) - q.scale.log()
    means = divergence.mean(0)
    floor = float(means.sort().values[:2].mean())  # one entry is below, two above
    free, full = (
        losses(pair, make_bound(pair, "analytic", number, bits), (x,), 5, 0, RowScale("data", factor))
        for bits in (floor, None)
    )
    expected = 0.7 * factor * len(x) * (means.clamp_min(floor) - means).sum().item()
    # the rounding of sums
    np.testing.assert_allclose(free - full, expected, rtol=1e-9)


class Known(latent_toys.EncodedRows):
    """Codes that are where they are: the bound is a constant and one more, weighed."""

    def __init__(self):
        super().__init__(1, 1)
        self.where = PyroParam(torch.tensor(1.5))

    def prior(self):
        return dist.Normal(torch.zeros(1), 1.0).to_event(1)

    def decode(self, z):
        return dist.Normal(0 * z, 1.0).to_event(1)

    def encode(self, x):
        return dist.Delta(0 * x + self.where).to_event(1)


@pytest.mark.parametrize("options", [{"compile": "off"}, {"compile": "graph"}, {"compile": "graph", "restarts": 2}])
def test_warm_up_weighs_the_terms_of_the_codes(options):
    x = torch.linspace(-1, 1, 10)[:, None]
    fit = pplgen.fit(
        Known(), x, warm_up=250, steps=4000, learning_rate=1e-9, optimiser="adam", progress=False, **options
    )
    assert (fit.path == "the traced graph") == (options["compile"] == "graph")
    normal = torch.distributions.Normal(0.0, 1.0)
    seen, weighed = normal.log_prob(x).sum().item(), 10 * normal.log_prob(torch.tensor(1.5)).item()
    schedule = np.minimum(1, np.arange(1, len(fit.best.history) + 1) / 250)
    # single precision
    np.testing.assert_allclose(fit.best.history, seen + schedule * weighed, rtol=1e-5)
    assert fit.elbo == pytest.approx(seen + weighed, rel=1e-5)
    assert fit.pair.kl_weight == 1
    # three plateaus of four windows each, after the last window that began before the weight was whole
    assert fit.stop is StopReason.CONVERGED
    assert len(fit.best.history) == 300 + 3 * 400


@pytest.mark.parametrize("name", BOUNDS)
def test_every_bound_trains_on_the_graph(name):
    torch.manual_seed(0)
    x = torch.rand(60, 8)
    options = {"elbo": name, "num_particles": 3, "batch_size": 20, "warm_up": 50, "augment": "bernoulli"}
    if name == "analytic":
        options["free_bits"] = 0.1
    story = VAE(8, 3, hidden=(6,))
    fit = pplgen.fit(story, x, restarts=2, steps=100, compile="graph", progress=False, **options)
    assert fit.path == "the traced graph"
    assert fit.pair.kl_weight == 1


def mean_model(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


BRIEFLY = {"steps": 300, "learning_rate": 0.2, "decay": 0.98, "progress": False}
"""Steps whose lengths add up to ten, the last of .0005."""


@pytest.mark.parametrize("options", [{"compile": "off"}, {}, {"batch_size": 50}])
def test_rows_are_changed_at_every_step(options):
    y = torch.linspace(-1.0, 1.0, 100)
    fit = pplgen.fit(mean_model, y, augment=lambda rows: rows + 5, **BRIEFLY, **options)
    mu = fit.to_datatree(400, groups=["posterior"])["posterior"]["mu"].mean().item()
    # posterior standard deviation .1, over the root of 400 draws; Adam's last learning rates move a tenth of it
    assert mu == pytest.approx(5, abs=0.05)


@pytest.mark.parametrize("batch_size", [None, 8])
def test_changed_rows_depend_on_seed_and_step_alone(pixels, batch_size):
    pair, _ = pixels
    before = torch.get_rng_state()
    with pair.isolated():
        found = [
            [next(batches)[0] for _ in range(7 - skip)]
            for skip in (0, 3)
            for batches, _ in [
                batching(pair, batch_size, seed=4, skip=skip, augment=lambda x: torch.bernoulli(0.5 + 0 * x))
            ]
        ]
    assert torch.equal(torch.get_rng_state(), before)
    for ours, theirs in zip(found[0][3:], found[1], strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.equal(found[0][0], found[0][1])


def test_a_killed_fit_goes_on_under_its_options_alone(tmp_path):
    torch.manual_seed(0)
    x, story = torch.rand(40, 6), VAE(6, 2, hidden=())
    options = {"augment": "bernoulli", "warm_up": 100, "elbo": "importance", "num_particles": 2}
    options |= {"compile": "graph", "progress": False}
    whole = pplgen.fit(story, x, steps=200, **options)
    pplgen.fit(story, x, steps=100, checkpoint=tmp_path, **options)
    rest = pplgen.fit(story, x, steps=200, checkpoint=tmp_path, **options)
    np.testing.assert_array_equal(rest.best.history, whole.best.history)
    for changed in ({"warm_up": 50}, {"augment": None}):
        with pytest.raises(InputError, match="another fit"):
            pplgen.fit(story, x, steps=200, checkpoint=tmp_path, **options | changed)


def flipping(x):
    p = pyro.param("p", torch.tensor(0.4))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Bernoulli(p.expand(len(x))))


def flipped(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize(
    ("story", "options", "said"),
    [
        (VAE(8), {"elbo": "best"}, "expected one of sampled"),
        (VAE(8), {"elbo": "analytic", "num_particles": 0}, "num_particles=0"),
        (
            VAE(8),
            {"elbo": Trace_ELBO(), "num_particles": 2},
            "expected in the constructor, Trace_ELBO(num_particles=...)",
        ),
        (
            VAE(8),
            {"elbo": Trace_ELBO(max_plate_nesting=0)},
            "elbo: max_plate_nesting=0; expected at least 1",
        ),
        (VAE(8), {"free_bits": 0.1}, "elbo='analytic'"),
        (VAE(8), {"elbo": "analytic", "free_bits": -1.0}, "free_bits=-1.0"),
        (VAE(8, guide="full"), {"elbo": "analytic", "free_bits": 0.1}, "'z'"),
        (VAE(8, prior="mixture"), {"elbo": "analytic", "free_bits": 0.1}, "no closed form"),
        (GaussianMixture(2, 8), {"elbo": "analytic"}, "'z', is summed out"),
        (GaussianMixture(2, 8), {"elbo": "importance"}, "no per-row latents"),
        (GaussianMixture(2, 8), {"num_particles": 4}, "several draws at once"),
        (GaussianMixture(2, 8), {"warm_up": 4}, "LatentStory"),
        (VAE(8), {"warm_up": 41}, "at most the 40 steps"),
        (VAE(8), {"warm_up": 1.5}, "warm_up=1.5"),
        (VAE(8), {"augment": "flip"}, "expected one of bernoulli"),
        (VAE(8), {"augment": lambda x: x[:1]}, "expected (40, 8)"),
        (VAE(8), {"augment": lambda x: x.numpy()}, "it returned a ndarray; expected"),
        (VAE(8), {"augment": lambda x: 3 * x}, "augment: row 1"),
        (VAE(8), {"augment": lambda x: x / 0}, "augment: row 1"),
        (VAE(8), {"augment": lambda x: torch.nan * x}, "NaN for observed entries"),
        (Known(), {"elbo": "score-function"}, "Delta of"),
    ],
)
def test_one_sentence_for_what_cannot_be(story, options, said):
    x = torch.linspace(0.4, 0.6, 40)[:, None].expand(-1, story.config["num_features"]).clone()
    with pytest.raises(InputError) as caught:
        pplgen.fit(story, x, steps=40, progress=False, **options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_several_draws_and_weights_where_an_index_is_summed_out(pixels):
    """At weights of one it is Pyro's bound at the same draws; other weights are what rows count."""
    story = MixtureVAE(8, 2, num_components=3, hidden=(5,))
    ones = pair_of(story, pixels[1], torch.ones(40, dtype=torch.float64))
    plain = Pair.of_story(ones.story, pixels[1], initialise=False)
    for num_particles in (1, 3):
        assert isinstance(ones.elbo(num_particles), WeightedEnum_ELBO)
        ours, theirs = (losses(pair, pair.elbo(num_particles), pair.data, 1) for pair in (ones, plain))
        assert ours == pytest.approx(theirs, rel=1e-12)
    half = Pair.of_story(ones.story, pixels[1], weights=torch.full((40,), 0.5).double(), initialise=False)
    assert losses(half, half.elbo(3), half.data, 1) == pytest.approx(theirs / 2, rel=1e-12)
    fit = pplgen.fit(story, pixels[1], weights=torch.ones(40), num_particles=3, steps=100, progress=False)
    assert fit.best.history[-1] > fit.best.history[0]


def test_only_rows_that_come_first_are_changed():
    def model(scale, y):
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(pyro.param("loc", torch.zeros(())), scale), obs=y)

    with pytest.raises(InputError, match="first argument is a float; expected its rows"):
        pplgen.fit(model, (1.0, torch.zeros(5)), lambda *_: None, augment=torch.negative, steps=2, progress=False)


def exact_guide(y):
    """The posterior of ``mean_model``."""
    precision = 0.01 + len(y)
    loc = pyro.param("loc", y.sum() / precision)
    scale = pyro.param(
        "scale", torch.tensor(precision, dtype=y.dtype) ** -0.5, torch.distributions.constraints.positive
    )
    pyro.sample("mu", dist.Normal(loc, scale))


@pytest.mark.parametrize("name", ["sampled", "sticking-the-landing"])
def test_gradients_without_score_vanish_at_the_posterior(name):
    y = torch.tensor([9.0, 10.5, 11.0], dtype=torch.float64)
    pair = Pair(mean_model, exact_guide, (y,))
    with pair.isolated(), seeded(0):
        graph = trace(pair, make_bound(pair, name), (y,))
        gradients = torch.stack([graph.loss_and_gradient(graph.pack(pair.snapshot()), y)[1] for _ in range(10)])
    size = gradients.abs().max(0).values
    assert (size < 1e-12).all() if name == "sticking-the-landing" else (size > 1e-2).all()


def chained(y):
    """A guide with a draw given another one."""
    first = pyro.sample("first", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))
    pyro.sample("second", dist.Normal(first, 1.0))


def chain(y):
    second = pyro.sample("second", dist.Normal(pyro.sample("first", dist.Normal(0.0, 1.0)), 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(second, 1.0), obs=y)


@pytest.mark.parametrize(
    ("guide", "batch_size", "default"),
    [
        (None, 3, "sticking-the-landing"),
        ("full-rank", 3, "sticking-the-landing"),
        (None, None, "sampled"),
        (chained, 3, "sampled"),
        ("flow", 3, "sampled"),
    ],
)
def test_score_is_left_out_by_default_in_minibatches(guide, batch_size, default):
    y = torch.arange(6.0)
    options = {"batch_size": batch_size, "steps": 4, "progress": False}
    chosen, expected, sampled = (
        pplgen.fit(chain, y, guide, elbo=elbo, **options).best.final for elbo in (None, default, "sampled")
    )
    assert np.array_equal(chosen, expected)
    assert np.array_equal(chosen, sampled) == (default == "sampled")
    if default == "sampled" and batch_size:
        with pytest.raises(InputError, match=r"depends on its draw of .first.|drawn by a flow"):
            pplgen.fit(chain, y, guide, elbo="sticking-the-landing", **options)


def test_bounds_that_need_reparameterised_draws_say_which_are_not():
    for name in ("analytic", "importance"):
        with pytest.raises(InputError, match="Bernoulli of 'z' is not reparameterised"):
            pplgen.fit(flipped, torch.zeros(5), flipping, elbo=name, steps=2, progress=False)
    shared = poutine.block(mean_model, hide=["y"])
    with pytest.raises(InputError, match="no per-row latents"):
        pplgen.fit(mean_model, torch.zeros(5), lambda y: shared(y), elbo="importance", steps=2, progress=False)


def test_the_command_line_passes_them_on(tmp_path, monkeypatch, capsys):
    given = {}

    def fit(story, rows, **options):
        given.update(options)
        raise InputError("seen")

    (tmp_path / "own.csv").write_text("a,b\n" + "\n".join(f"{i % 7},{i % 5}" for i in range(30)))
    options = "--elbo importance --particles 5 --warm-up 30 --free-bits 0.5 --augment bernoulli"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pplgen, "fit", fit)
    monkeypatch.setattr(sys, "argv", ["pplgen", "fit", "gaussian-mixture", "own.csv", *options.split()])
    with pytest.raises(SystemExit):
        cli.main()
    assert "seen" in capsys.readouterr().err
    expected = {"elbo": "importance", "num_particles": 5, "warm_up": 30, "free_bits": 0.5, "augment": "bernoulli"}
    assert {name: given[name] for name in expected} == expected


def two_latents(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, tau), obs=y)


@pytest.mark.parametrize("path", ["graph", "off"])
def test_latents_of_any_pair_are_warmed_up_by_name(path):
    """At a tiny learning rate the ELBO of step t is a - t / 400 times the KL term, whose mean is known by itself."""
    y = torch.linspace(-1.0, 2.0, 20)
    options = {"learning_rate": 1e-9, "optimiser": "adam", "compile": path, "progress": False}
    fit = pplgen.fit(two_latents, y, "mean-field", steps=400, warm_up={"mu": 400}, **options)
    assert fit.path == ("the traced graph" if path == "graph" else "plain Pyro: compile='off'")
    with fit.pair.isolated(), torch.no_grad():
        terms = [_kl_of_mu(fit.pair) for _ in range(200)]
    slope, error = _slope(np.arange(1, 401) / 400, np.array(fit.best.history))
    assert slope == pytest.approx(-np.mean(terms), abs=4 * np.hypot(error, np.std(terms) / 200**0.5))
    assert abs(slope) > 4 * error


def _kl_of_mu(pair):
    guide = poutine.trace(pair.guide).get_trace(*pair.data)
    model = poutine.trace(poutine.replay(pair.model, guide)).get_trace(*pair.data)
    for each in (guide, model):
        each.compute_log_prob()
    own = sum(float(guide.nodes[name]["log_prob_sum"]) for name in ("mu", "mu_unconstrained"))
    return own - float(model.nodes["mu"]["log_prob_sum"])


def _slope(x, y):
    """Least-squares slope and its standard error."""
    x, y = x - x.mean(), y - y.mean()
    slope = x @ y / (x @ x)
    return slope, np.std(y - slope * x) / (x @ x) ** 0.5


def test_latents_that_cannot_be_warmed_up():
    y = torch.linspace(-1.0, 2.0, 20)
    for guide, warm_up, message in (
        (None, {"nu": 5}, "warm_up: 'nu' is not a latent; expected among"),
        (None, {"mu": 5, "tau": 6}, "expected the same number of steps for all sites"),
        (None, {}, "expected the same number of steps for all sites"),
        (None, ["mu"], "expected a whole number"),
        (None, 5, "does not say which KL terms to warm up"),
        ("full-rank", {"mu": 5}, "the guide draws 'mu' together with other latents"),
    ):
        with pytest.raises(InputError, match=message):
            pplgen.fit(two_latents, y, guide, steps=10, warm_up=warm_up, progress=False)
    fit = pplgen.fit(two_latents, y, "full-rank", steps=200, warm_up={"mu": 100, "tau": 100}, progress=False)
    assert np.isfinite(fit.elbo)
