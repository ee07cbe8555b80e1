"""Laplace's approximation, validated against closed forms and Newton's method in NumPy."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pplgen.models import PPCA, VAE, LinearGaussianSSM, SwitchingLDS

import pplgen
from pplgen.cli.main import main
from pplgen.errors import InputError
from pplgen.inference.laplace import _mode, point_pair
from pplgen.story.pair import Pair

X = torch.randn(60, 2, generator=torch.Generator().manual_seed(0)) @ torch.tensor([[1.0, 0.9], [0.0, 0.5]])
Y = X @ torch.tensor([1.0, -1.0])
ROWS = torch.randn(40, 2, generator=torch.Generator().manual_seed(1)) + 8.0 * (torch.arange(40) % 2)[:, None]
OPTIONS = {"method": "laplace", "progress": False}


def regression(x, y):
    beta = pyro.sample("beta", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ beta, 1.0), obs=y)


def logistic(x, y):
    beta = pyro.sample("beta", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=x @ beta), obs=y)


def normal_at_mode(fit):
    """Mean and covariance of the guide on the unconstrained scale."""
    guide = fit.pair.guide
    return guide.start.double().numpy(), (guide.unit.double() @ guide.unit.double().mT).numpy()


def test_a_linear_regression_is_exact():
    fit = pplgen.fit(regression, (X, Y), **OPTIONS)
    x, y = X.double().numpy(), Y.double().numpy()
    covariance = np.linalg.inv(x.T @ x + np.eye(2) / 9)
    mean, found = normal_at_mode(fit)
    # the parameters are stored in float32
    np.testing.assert_allclose(mean, covariance @ x.T @ y, rtol=1e-4)
    np.testing.assert_allclose(found, covariance, rtol=1e-4)
    marginal = np.eye(60) + 9 * x @ x.T
    evidence = -0.5 * (60 * math.log(2 * math.pi) + np.linalg.slogdet(marginal)[1] + y @ np.linalg.solve(marginal, y))
    assert fit.best.mode.log_evidence == pytest.approx(evidence, abs=1e-4)  # float32 data
    # for the exact posterior each draw's bound is the evidence, summed in float32
    assert fit.elbo == pytest.approx(evidence, abs=1e-3)
    assert fit.path == "the traced graph, then L-BFGS to a mode"
    assert "Laplace approximation at a mode of the joint density: gradient norm" in fit.how
    assert fit.best.mode.gradient_norm < 1e-5
    # moments of 4,096 quasi-random draws
    np.testing.assert_allclose(fit.covariance("guide"), covariance, rtol=0.03)
    with pytest.raises(InputError, match="linear-response covariances are of fits by SVI"):
        fit.covariance()


def test_a_logistic_regression_is_newton_s():
    y = (X.double() @ torch.tensor([1.0, -1.0]).double() + 0.3 > 0).float()
    fit = pplgen.fit(logistic, (X, y), **OPTIONS)
    x, beta = X.double().numpy(), np.zeros(2)
    for _ in range(30):
        p = 1 / (1 + np.exp(-x @ beta))
        hessian = (x * (p * (1 - p))[:, None]).T @ x + np.eye(2) / 4
        beta = beta + np.linalg.solve(hessian, x.T @ (y.double().numpy() - p) - beta / 4)
    mean, covariance = normal_at_mode(fit)
    np.testing.assert_allclose(mean, beta, rtol=1e-4)  # stored in float32
    np.testing.assert_allclose(covariance, np.linalg.inv(hessian), rtol=1e-4)


def test_a_scale_is_approximated_on_the_log_scale():
    """tau ~ Gamma(a, b): with u = log tau the mode is log a / b and the precision a, for any units."""

    def rate(y):
        tau = pyro.sample("tau", dist.Gamma(3.0, 3e6))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Poisson(tau * 1e6), obs=y)

    y = torch.tensor([4.0, 6.0, 2.0])
    mean, variance = normal_at_mode(pplgen.fit(rate, y, **OPTIONS))
    shape, scale = 3 + 12, 3e6 + 3e6
    assert mean == pytest.approx(math.log(shape / scale), rel=1e-4)
    assert variance == pytest.approx(1 / shape, rel=1e-4)


def test_the_restart_with_the_largest_evidence_is_returned():
    def two_modes(y):
        x = pyro.sample("x", dist.Normal(0.0, 100.0))
        parts = dist.Normal(torch.tensor([-1.5, 1.5]), torch.tensor([0.15, 0.5])).log_prob(x)
        pyro.factor("posterior", (torch.tensor([0.3, 0.7]).log() + parts).logsumexp(0) + y)

    fit = pplgen.fit(two_modes, torch.tensor(0.0), restarts=5, **OPTIONS)
    # the narrow mode is twice as high; its mass is three tenths; all but an eighth of sets of five starts find both
    mean, variance = normal_at_mode(fit)
    assert mean == pytest.approx(1.5, abs=1e-3)
    assert variance == pytest.approx(0.25, rel=1e-3)
    evidence = math.log(0.7) - math.log(100 * math.sqrt(2 * math.pi)) - 1.5**2 / 2e4
    assert fit.best.mode.log_evidence == pytest.approx(
        evidence, abs=1e-3
    )  # the other mode's tail, and the prior's slope
    assert all(run.mode.log_evidence <= fit.best.mode.log_evidence for run in fit.runs)


def test_a_story_is_fitted_saved_and_loaded(tmp_path):
    story, rows = LinearGaussianSSM.local_level(), X[None, :20, :1].cumsum(1)
    fit = pplgen.fit(story, rows, **OPTIONS)
    # the bound is below the evidence, which is approximate itself, by less than a nat for such posteriors
    assert fit.elbo == pytest.approx(fit.best.mode.log_evidence, abs=1.0)
    fit.save(tmp_path / "run")
    again = pplgen.load(tmp_path / "run", rows)
    assert (again.how, again.path, again.best.mode) == (fit.how, fit.path, fit.best.mode)
    trees = [each.to_datatree(5)["posterior"] for each in (fit, again)]
    for name in trees[0].data_vars:
        np.testing.assert_array_equal(*(tree[name] for tree in trees))
    assert np.isfinite(fit.forecast(horizon=2, draws=10)["y_mean"]).all()


def test_a_bare_fit_is_loaded(tmp_path):
    fit = pplgen.fit(regression, (X, Y), **OPTIONS)
    fit.save(tmp_path / "run")
    again = pplgen.load(tmp_path / "run", (X, Y), model=regression)
    for one, other in zip(normal_at_mode(fit), normal_at_mode(again), strict=True):
        np.testing.assert_array_equal(one, other)
    assert again.how == fit.how


def test_the_command_line_takes_it(tmp_path, monkeypatch, capsys):
    np.save(tmp_path / "rows.npy", ROWS.numpy())
    command = ["pplgen", "fit", "gaussian-mixture", str(tmp_path / "rows.npy"), "--method", "laplace"]
    monkeypatch.setattr("sys.argv", [*command, "--draws", "5", "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0, capsys.readouterr().err
    best = pplgen.load(tmp_path / "run").best
    assert best.elbo == pytest.approx(best.mode.log_evidence, abs=1.0)  # as in the test of a story
    assert "Laplace approximation at a mode" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("story", "rows", "reason"),
    [
        (VAE(2, 1, hidden=(4,)), ROWS.sigmoid(), "the model has parameters to be learned"),
        (PPCA(2, 1), ROWS, "the model has parameters to be learned"),
        (SwitchingLDS(num_features=2), ROWS[None], "SwitchingLDS draws 'x' of each row"),
    ],
    ids=["network", "maximum-likelihood", "paths"],
)
def test_other_stories_are_refused(story, rows, reason):
    with pytest.raises(InputError, match=f"method='laplace'.*{reason}"):
        pplgen.fit(story, rows, **OPTIONS)


@pytest.mark.parametrize(
    "options",
    [{"batch_size": 10}, {"guide": "full-rank"}, {"compile": "off"}, {"optimiser": "adam"}, {"elbo": "analytic"}],
)
def test_options_that_do_not_apply_are_refused(options):
    with pytest.raises(InputError, match="not supported by method='laplace'"):
        pplgen.fit(regression, (X, Y), **OPTIONS, **options)


def test_what_has_no_mode_is_refused():
    def unidentified(y):
        a, b = (pyro.sample(name, dist.Normal(0.0, 1e4)) for name in "ab")
        pyro.sample("y", dist.Normal(a + b, 0.01), obs=y)

    with pytest.raises(InputError, match=r"method='laplace': (no mode|the Hessian|Newton steps)"):
        pplgen.fit(unidentified, torch.tensor(0.5, dtype=torch.float64), **OPTIONS)
    with pytest.raises(InputError, match="no mode of the joint density was found in 10 steps"):
        pplgen.fit(regression, (X, Y), steps=10, **OPTIONS)

    def two_wells(y):
        x = pyro.sample("x", dist.Normal(0.0, 10.0))
        pyro.factor("wells", -5 * (x.square() - 1).square() + y)

    pair = point_pair(Pair(two_wells, None, (torch.tensor(0.0),)))
    with pair.isolated():
        pair.restore({name: torch.zeros_like(value) for name, value in pair.snapshot().items()})
        with pytest.raises(InputError, match=r"not positive definite.*a saddle point"):
            _mode(pair, 0)
