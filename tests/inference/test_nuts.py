"""NUTS: its potential against Pyro's, its draws against published ones, and what a sampled fit can and cannot tell."""

import json
import math

import arviz_stats
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.figure import Figure
from pplgen.models import VAE, GaussianMixture
from pyro.infer.mcmc.util import initialize_model

import pplgen
from pplgen.checks import sampler
from pplgen.errors import InputError
from pplgen.fitting import nuts_fit
from pplgen.fitting.posterior_comparison import against, side_by_side
from pplgen.inference.potential import Potential
from pplgen.inference.training_result import StopReason
from pplgen.plots import fit as plots
from pplgen.posterior.relabelling import component_axes, relabel_dataset
from pplgen.story.pair import Pair


def eight_schools(sigma, y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * eta)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def mixture(y):
    weights = pyro.sample("weights", dist.Dirichlet(5 * torch.ones(2)))
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    s = pyro.sample("s", dist.HalfNormal(2 * torch.ones(2)).to_event(1))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(mu[z], s[z]), obs=y)


def conjugate(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


Y = torch.linspace(-1.0, 2.0, 25)
SCHOOLS = (torch.tensor([15.0, 10.0, 16.0]), torch.tensor([28.0, 8.0, -3.0]))


def scored(tree, name):
    """Mean of a variable over chains and draws, with its Monte Carlo standard error."""
    table = arviz_stats.summary(tree, var_names=[name], round_to="none").astype(float)
    return table["mean"].to_numpy(), table["mcse_mean"].to_numpy()


@pytest.mark.parametrize(("model", "data"), [(eight_schools, SCHOOLS), (mixture, (Y,))])
def test_potential_is_pyros(model, data):
    pair = Pair(model, None, data)
    _, pyros, _, _ = initialize_model(model, data, max_plate_nesting=1)
    with pair.isolated():
        potential = Potential(pair)
        traced = Potential(pair)
        size = sum(shape.numel() for shape in potential._shapes.values())
        traced.trace(torch.zeros(size))
        assert traced.path == "the traced graph"
        for u in torch.randn(5, size):
            parts = u.split([shape.numel() for shape in potential._shapes.values()])
            z = {n: p.reshape(s) for (n, s), p in zip(potential._shapes.items(), parts, strict=True)}
            leaves = [value.requires_grad_() for value in z.values()]
            expected = pyros(z)
            gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(expected, leaves)])
            for each in (potential, traced):
                value, own = each.call(u)
                # rounding of sums in single precision
                torch.testing.assert_close(value, expected.detach(), rtol=1e-5, atol=1e-4)
                torch.testing.assert_close(own, gradient, rtol=1e-4, atol=1e-3)


def test_eight_schools_agree_with_published_draws(reference_data):
    facts = json.loads((reference_data / "posteriordb" / "eight_schools.json").read_text())
    data = (torch.tensor(facts["sigma"]).float(), torch.tensor(facts["y"]).float())
    fit = pplgen.fit(eight_schools, data, method="nuts", steps=150, warm_up=80, restarts=2, progress=False)
    tree = fit.to_datatree()
    assert dict(tree["posterior"]["theta"].sizes) == {"chain": 2, "draw": 150, "theta_dim_0": 8}
    for name, published in (("mu", 4.4105), ("tau", 3.6021)):
        mean, error = scored(tree, name)
        # the published means have errors of their own, those of 10,000 draws with standard deviations near 3.3
        assert abs(mean[0] - published) < 4 * np.hypot(error[0], 0.033)


def test_mixture_agrees_with_published_draws(reference_data):
    facts = json.loads((reference_data / "posteriordb" / "low_dim_gauss_mix.json").read_text())
    options = {"steps": 120, "warm_up": 100, "restarts": 2, "compile": "graph"}
    fit = pplgen.fit(mixture, torch.tensor(facts["y"]), method="nuts", progress=False, **options)
    assert fit.path == "the traced graph"
    draws = fit.to_datatree()["posterior"].to_dataset()
    # the published draws have mu1 < mu2; Beta(5, 5) is the first of two weights of Dirichlet(5, 5)
    order = np.argsort(draws["mu"].values, axis=-1)
    ordered = {name: np.take_along_axis(draws[name].values, order, -1) for name in ("mu", "s", "weights")}
    published = {
        "mu": ((-2.73351, 0.0420), (2.86983, 0.0546)),
        "s": ((1.02807, 0.0314), (1.02382, 0.0405)),
        "weights": ((0.62155, 0.0155),),
    }
    for name, components in published.items():
        for k, (mean, sd) in enumerate(components):
            own = ordered[name][..., k]
            error = np.hypot(arviz_stats.base.array_stats.mcse(own, method="mean"), sd / 100)
            assert abs(own.mean() - mean) < 4 * error, (name, k)


def test_a_model_that_counts_its_calls_is_not_traced():
    calls = [0]

    def counting(y):
        calls[0] += 1
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0 if calls[0] < 40 else 0.1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    fit = pplgen.fit(counting, Y, method="nuts", steps=10, restarts=1, progress=False)
    assert fit.path.startswith("plain Pyro: evaluating the pair changes")


@pytest.fixture(scope="module")
def sampled():
    return pplgen.fit(conjugate, Y, method="nuts", steps=600, warm_up=200, restarts=2, progress=False)


def test_a_sampled_fit_has_chains_and_no_elbo(sampled, capsys):
    tree = sampled.to_datatree()
    assert dict(tree["posterior"].sizes) == {"chain": 2, "draw": 600}
    assert set(tree["sample_stats"].data_vars) == {"lp"}
    precision = len(Y) + 0.01
    mean, error = scored(tree, "mu")
    assert abs(mean[0] - Y.sum().item() / precision) < 4 * error[0]
    # lp is the joint density at the draws that stand beside it
    mu = torch.as_tensor(tree["posterior"]["mu"].values)
    expected = dist.Normal(0.0, 10.0).log_prob(mu) + dist.Normal(mu[..., None], 1.0).log_prob(Y).sum(-1)
    np.testing.assert_allclose(tree["sample_stats"]["lp"], expected, rtol=1e-5)
    np.testing.assert_allclose(
        tree["log_likelihood"]["y"].sum("row"), expected - dist.Normal(0.0, 10.0).log_prob(mu), rtol=1e-4
    )
    assert dict(sampled.to_datatree(100, groups=["posterior"])["posterior"].sizes) == {"chain": 2, "draw": 50}
    sampled.summary()
    printed = capsys.readouterr().out
    assert "2 chains of 600 draws after 200 of warm-up" in printed
    assert "R-hat" in printed
    assert math.isnan(sampled.elbo)  # what code over any fits asks for
    assert math.isnan(sampled.spread)
    assert sampled.stop is StopReason.SAMPLED
    assert sampled.num_agreeing == 0
    assert sampled.log_likelihood().shape == (25,)


def test_draws_of_a_sampler_are_checked_as_the_posteriors_own(sampled):
    """Leave-one-out densities of the normal model are in closed form; nothing is asked of a guide's density."""
    checks = {check.name: check for check in sampled.diagnose()}
    for name in ("divergent transitions (fraction)", "posterior predictive p-value (smallest, Holm)"):
        assert checks[name].verdict == "pass", checks[name]
    # of four halves with 250 effective draws in all, or more, R-hat^2 - 1 is 4 (c / 3 - 1) / 250, where c has three
    # degrees of freedom: above 1.01 for one seed in twenty, above 1.05 for one in 16,000, as often as four standard
    # errors
    rhat = checks["R-hat of the chains"]
    assert rhat.value < 1.05
    assert rhat.verdict == ("pass" if rhat.value <= rhat.threshold else "warn")
    for name in ("k-hat of all latents", "ELBO gap (nats)", "restarts that reach the best ELBO"):
        assert checks[name].verdict == "not applicable"
        assert "MCMC draws" in checks[name].remedy
    precision = len(Y) - 1 + 0.01
    others = (Y.sum() - Y) / precision
    exact = dist.Normal(others, (1 + 1 / precision) ** 0.5).log_prob(Y).sum().item()
    # to first order in the draws' error the sum follows their variance v alone, by -(n + sum (y - mean)^2) / 2 nats for
    # each unit of v; a relative error of the deviation is twice as large in v
    draws = sampled.to_datatree()["posterior"]["mu"].values
    relative = float(arviz_stats.base.array_stats.mcse(draws, method="sd") / draws.std())
    slope = (len(Y) + (Y - Y.mean()).square().sum().item()) / 2 / (len(Y) + 0.01)
    assert relative < 0.05, "sharp enough to tell it from the density with all rows, .76 nats above"
    assert float(sampled.loo(draws=2000).elpd) == pytest.approx(exact, abs=4 * slope * 2 * relative)


def test_checks_of_chains_see_what_is_wrong():
    mixing = pd.DataFrame({"r_hat": [1.0, 1.3], "ess_bulk": [900.0, 12.0], "ess_tail": [800.0, 30.0]}, index=["a", "b"])
    found = sampler.split_rhat(mixing), sampler.effective_size(mixing, 2), sampler.divergences(30, 1000)
    assert [str(check.verdict) for check in found] == ["fail", "fail", "fail"]
    assert [check.value for check in found] == [1.3, 12.0, 0.03]
    assert "b most" in found[0].remedy
    well = mixing.head(1)
    found = sampler.split_rhat(well), sampler.effective_size(well, 2), sampler.divergences(0, 1000)
    assert [str(check.verdict) for check in found] == ["pass"] * 3
    constant = mixing.assign(r_hat=np.nan, ess_bulk=np.nan, ess_tail=np.nan)
    assert not sampler.split_rhat(constant).applies
    assert not sampler.effective_size(constant, 2).applies
    assert sampler.divergences(1, 1000).verdict == "warn"


def test_the_same_seed_gives_the_same_draws():
    first, again = (pplgen.fit(conjugate, Y, method="nuts", steps=20, restarts=1, progress=False) for _ in range(2))
    torch.testing.assert_close(first.draws.draws["mu"], again.draws.draws["mu"], rtol=0, atol=0)


def test_a_story_is_sampled_saved_and_drawn(faithful_fit, tmp_path):
    story = GaussianMixture(1, 2, covariance="spherical")
    fit = pplgen.fit(story, "faithful", method="nuts", steps=60, restarts=2, compile="graph", progress=False)
    fit.save(tmp_path / "run")
    again = pplgen.load(tmp_path / "run", "faithful")
    assert repr(again) == repr(fit)
    own, theirs = fit.to_datatree(), again.to_datatree()
    for name in own["posterior"].data_vars:
        np.testing.assert_array_equal(own["posterior"][name], theirs["posterior"][name])
    assert torch.equal(fit.sample(5), again.sample(5))
    assert fit.latents()["z"].shape == (272, 1)
    assert isinstance(plots.plot_fit(fit, own), Figure)
    page = again.report(tmp_path / "run", tree=theirs).read_text(encoding="utf-8")
    assert "by NUTS: 2 chains of 60 draws" in page
    assert "Log density of each chain&#39;s draws" in page
    assert "<dt>ELBO</dt>" not in page
    with pytest.raises(InputError, match="different data"):
        side_by_side(fit, pplgen.fit(story, faithful_fit.table.values[:200], steps=20, progress=False))


def test_what_cannot_be_sampled_is_refused():
    with pytest.raises(InputError, match="parameters to be learned"):
        pplgen.fit(VAE(4, 1), torch.rand(20, 4), method="nuts", steps=5, progress=False)
    with pytest.raises(InputError, match="batch_size: not supported by method='nuts'"):
        pplgen.fit(conjugate, Y, method="nuts", batch_size=5)
    with pytest.raises(InputError, match="expected one of svi, laplace, nuts"):
        pplgen.fit(conjugate, Y, method="hmc")

    def counts(y):
        rate = pyro.sample("rate", dist.Poisson(3.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(rate, 1.0), obs=y)

    def guide(y):
        pyro.sample("rate", dist.Poisson(3.0))

    with pytest.raises(InputError, match="'rate' is discrete"):
        pplgen.fit(counts, Y, guide, method="nuts", steps=5, progress=False)


def test_a_second_opinion_tells_a_narrow_guide_from_a_good_one(sampled):
    def guide_of(width):
        def guide(y):
            loc = pyro.param("loc", torch.tensor(0.5))
            pyro.sample("mu", dist.Normal(loc, width))

        return guide

    exact = (len(Y) + 0.01) ** -0.5
    good, narrow = (pplgen.fit(conjugate, Y, guide_of(w), steps=500, progress=False) for w in (exact, 0.4 * exact))
    verdicts = [str(check.verdict) for check in against(good, sampled)]
    # R-hat and effective size of 250 effective draws may be doubtful; mean and deviation, whose errors are .06 and .05,
    # are within the thresholds of .25 by four errors
    assert "fail" not in verdicts
    assert verdicts[2:] == ["pass"] * 3
    mean, width = against(narrow, sampled)[3:]
    assert mean.verdict == "pass"
    assert width.verdict == "fail"
    assert "too narrow" in width.remedy
    # four standard errors, of some 5 % mostly the sampler's
    error = side_by_side(narrow, sampled).loc["mu", "mcse_ratio"]
    assert error < 0.04
    assert width.value == pytest.approx(0.4, abs=4 * error)
    table = side_by_side(good, sampled)
    # four standard errors, and a twentieth of a deviation for Adam's last steps
    shift = table.loc["mu", "shift"]
    assert abs(shift) < 4 * shift / table.loc["mu", "mcse_shift"] + 0.05


def test_components_are_matched_before_fits_are_compared(faithful_fit):
    posterior = faithful_fit.to_datatree(500, groups=["posterior"])["posterior"].to_dataset()[
        ["mu", "weights", "Sigma"]
    ]
    swapped = posterior.isel(component=[1, 0])
    assert abs(posterior["mu"].values - swapped["mu"].values).mean() > 1
    own = {str(name): torch.as_tensor(values.values[0]) for name, values in posterior.items()}
    back = relabel_dataset(swapped, own, component_axes(faithful_fit.pair))
    for name in posterior:
        np.testing.assert_array_equal(back[name], posterior[name])
    other = pplgen.fit(GaussianMixture(2, 2), "faithful", seed=3, progress=False)
    assert abs(side_by_side(faithful_fit, other)["shift"]).max() < 0.25
    three = pplgen.fit(GaussianMixture(3, 2), "faithful", steps=20, progress=False)
    with pytest.raises(InputError, match=r"has shape \(2,.* in one fit and \(3,"):
        side_by_side(faithful_fit, three)


@pytest.mark.parametrize(
    ("model", "names"),
    [(mixture, ("weights", "mu", "s")), (GaussianMixture(2, 1), ("weights", "mu", "scale_tril"))],
    ids=["a bare pair", "a story"],
)
def test_draws_of_all_chains_name_the_components_alike(model, names, capsys):
    """Two groups far apart; draws of the second chain, and every other one of the first, are named the other way."""
    y = torch.cat([torch.linspace(-1, 1, 15) - 3, torch.linspace(-1, 1, 15) + 3])
    data = y if model is mixture else y[:, None]
    fit = pplgen.fit(model, data, method="nuts", steps=40, warm_up=60, restarts=2, seed=1, progress=False)
    stored = fit.pair.guide.draws
    assert set(stored) == set(names)
    before = {name: value.clone() for name, value in stored.items()}
    for value in stored.values():
        value[40:] = value[40:].flip(1)
        value[:40:2] = value[:40:2].flip(1)
    mixed = fit.to_datatree(groups=["posterior"])["posterior"]["mu"].values
    assert mixed.std(1).max() > 2
    nuts_fit._relabel(fit.pair)
    turned = not torch.equal(stored["mu"][0], before["mu"][0])  # all draws, or none
    for name, value in stored.items():
        torch.testing.assert_close(value.flip(1) if turned else value, before[name], rtol=0, atol=0)
    latents = fit.latents(draws=80)["z"].values
    assert latents.max(1).min() > 0.9
    # the rows of each component lie around its location, in the tree as in the summary
    means = latents.T @ y.numpy() / latents.sum(0)
    tree = fit.to_datatree(groups=["posterior"])
    located = tree["posterior"]["mu"].mean(["chain", "draw"]).values.flatten()
    np.testing.assert_allclose(located, means, atol=0.8)  # four posterior sds
    fit.summary()
    printed = [line.split() for line in capsys.readouterr().out.splitlines() if " mu[" in line]
    shown = [
        float(next(word for word in line[2:] if word.lstrip("-")[:1].isdigit() and "]" not in word)) for line in printed
    ]
    np.testing.assert_allclose(shown, located, rtol=1e-3)


def test_components_with_priors_of_their_own_keep_their_names():
    def unequal(y):
        mu = pyro.sample("mu", dist.Normal(torch.tensor([-3.0, 3.0]), 1.0).to_event(1))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.5])), infer={"enumerate": "parallel"})
            pyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)

    y = torch.cat([torch.linspace(-1, 1, 5) - 3, torch.linspace(-1, 1, 5) + 3])
    fit = pplgen.fit(unequal, y, method="nuts", steps=10, warm_up=10, restarts=1, progress=False)
    mu = fit.pair.guide.draws["mu"]
    mu[5:] = mu[5:].flip(1)
    switched = mu.clone()
    nuts_fit._relabel(fit.pair)
    assert torch.equal(mu, switched)
