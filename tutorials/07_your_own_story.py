# %% [markdown]
# # Write your own story
#
# In 1882 Simon Newcomb measured how long light takes to a distant mirror and back, 66 times over. Sixty-four of his
# measurements lie close together. Two are outliers. What is the time that he measured, and which measurements are gross
# errors?
#
# The collection has no story for this, so we write one. We go from equations to a Pyro pair, validate it against an
# independent computation, make it a `Story`, calibrate it, break it to check that calibration detects the error, and
# end with the steps to add it to the collection. You can copy this file and change it.
#
# It takes about two minutes. With `PPLGEN_SMOKE=1` in the environment it simulates fewer data sets, and takes half a
# minute.

# %%
import math
import os

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroParam
from torch.distributions import constraints

import pplgen
from pplgen.plots.palette import COLOURS
from pplgen.story.base import InputError, Story, check_count, check_positive, pyro_method

SMOKE = os.environ.get("PPLGEN_SMOKE") == "1"

# Deviations from 24,800 ns of the time that light took to travel 7.44 km (Stigler 1977)
NEWCOMB = """28 26 33 24 34 -44 27 16 40 -2 29 22 24 21 25 30 23 29 31 19 24 20 36 32 36 28 25 21 28 29 37 25
28 26 30 32 36 26 30 22 36 23 27 27 28 27 31 27 26 33 26 32 32 24 39 28 24 25 32 25 29 27 28 29 16 23"""
x = torch.tensor([float(number) for number in NEWCOMB.split()])[:, None]
print(f"{len(x)} measurements: mean {x.mean():.1f}, standard deviation {x.std():.1f}, median {x.median():.0f}")

# %% [markdown]
# ## Equations
#
# A measurement is either sound or a gross error, and we do not know which. Sound ones scatter around $\mu$ with
# standard deviation $\sigma$; gross ones around the same $\mu$, ten times as widely. This is the model of Box and Tiao
# (1968):
#
# $$
# \begin{aligned}
# \mu &\sim \mathcal N(25, 25^2), \quad \sigma \sim \mathrm{LogNormal}(\log 5, 1), \quad
# \varepsilon \sim \mathrm{Beta}(1, 9), \\
# g_i &\sim \mathrm{Bernoulli}(\varepsilon), \quad x_i \mid g_i &\sim \mathcal N\big(\mu, (10^{g_i} \sigma)^2\big).
# \end{aligned}
# $$
#
# The global parameters are $\mu$, $\sigma$ and $\varepsilon$; each row has a latent $g_i$. The $g_i$ are discrete, so
# they are summed out: the density of a measurement is $(1 - \varepsilon)\,\mathcal N(\mu, \sigma^2) +
# \varepsilon\,\mathcal N(\mu, 100\,\sigma^2)$.
#
# ## A bare Pyro pair
#
# In Pyro, the model follows the equations line by line. Rows are in a plate; the discrete latent is enumerated.


# %%
def model(x):
    """Score measurements of shape ``(num_rows, 1)``."""
    mu = pyro.sample("mu", dist.Normal(25.0, 25.0))
    sigma = pyro.sample("sigma", dist.LogNormal(math.log(5.0), 1.0))
    eps = pyro.sample("eps", dist.Beta(1.0, 9.0))
    with pyro.plate("data", len(x)):
        gross = pyro.sample("gross", dist.Bernoulli(eps), infer={"enumerate": "parallel"})
        scale = sigma * 10.0**gross
        pyro.sample("x", dist.Normal(mu, scale.unsqueeze(-1)).to_event(1), obs=x)


OPTIONS = {"steps": 2000 if SMOKE else 5000, "progress": False, "compile": "graph" if SMOKE else "auto"}
bare = pplgen.fit(model, x, **OPTIONS)
bare.summary()

# %% [markdown]
# Without a guide, `fit` uses an independent normal for each latent on its unconstrained scale (Pyro's `AutoNormal`),
# from the best of eight random points; `gross` is summed out. The last line of the summary says how the fit ended.
#
# That is all: any Pyro model gets a fit, a summary, draws for ArviZ, checks and a report. But is it *right*?
#
# ## An independent computation: quadrature
#
# Three parameters are few enough for a grid. We use one over $(\mu, \log\sigma, \mathrm{logit}\,\varepsilon)$, evaluate
# the joint density of parameters and data at each point, and sum. No sampling, no guide, no gradient, and no code
# shared with the model above: the densities are written out by hand, in double precision. (In $\log\sigma$ the prior is
# a normal; in $\mathrm{logit}\,\varepsilon$ a change of variables multiplies the beta density by $\varepsilon(1 -
# \varepsilon)$.)


# %%
def normal(value, mean, scale):
    """Log density of a normal, written out."""
    return -0.5 * ((value - mean) / scale) ** 2 - np.log(scale) - 0.5 * math.log(2 * math.pi)


def quadrature(rows, size=61):
    """Return the log evidence, the grid's axes with the posterior mass at each point, and P(gross) of each row."""
    rows = rows.numpy().astype(float).ravel()
    centre, width = np.median(rows), 1.4826 * np.median(abs(rows - np.median(rows)))
    mu = centre + width * np.linspace(-1.2, 1.2, size)
    log_sigma = np.log(width) + np.linspace(-0.8, 0.8, size)
    logit = np.linspace(-9, 1, size)
    m, s, e = np.meshgrid(mu, np.exp(log_sigma), 1 / (1 + np.exp(-logit)), indexing="ij")
    prior = normal(m, 25, 25) + normal(np.log(s), math.log(5), 1) + np.log(9) + 9 * np.log1p(-e) + np.log(e)
    joint, log_gross = prior, []
    for row in rows:
        sound, gross = np.log1p(-e) + normal(row, m, s), np.log(e) + normal(row, m, 10 * s)
        both = np.logaddexp(sound, gross)
        joint = joint + both
        log_gross.append(gross - both)
    cell = (mu[1] - mu[0]) * (log_sigma[1] - log_sigma[0]) * (logit[1] - logit[0])
    mass = np.exp(joint - joint.max())
    evidence = joint.max() + np.log(mass.sum() * cell)
    mass = mass / mass.sum()
    return (
        float(evidence),
        {"mu": m, "sigma": s, "eps": e},
        mass,
        np.array([(mass * np.exp(p)).sum() for p in log_gross]),
    )


evidence, grid, mass, gross_exact = quadrature(x)
exact = {
    name: (float((mass * g).sum()), float(np.sqrt((mass * g**2).sum() - (mass * g).sum() ** 2)))
    for name, g in grid.items()
}
finer = quadrature(x, size=81)[0]
print(f"log evidence {evidence:.4f} nats; on a finer grid {finer:.4f}")


def moments(fit):
    """Return mean and standard deviation of each parameter under the guide, from 20,000 draws."""
    draws = fit.to_datatree(draws=20_000, groups=["posterior"])["posterior"]
    return {name: (float(draws[name].mean()), float(draws[name].std())) for name in exact}


bare_moments = moments(bare)
for name, (mean, sd) in exact.items():
    print(
        f"{name:6s} exact {mean:7.3f} +- {sd:.3f}   fitted {bare_moments[name][0]:7.3f} +- {bare_moments[name][1]:.3f}"
    )
print(f"ELBO {bare.elbo:.2f}, at most the log evidence {evidence:.2f}; the gap is the KL divergence of the guide")

# %% [markdown]
# The means agree to a fraction of a standard deviation, the standard deviations to some per cent, and the ELBO is a
# fraction of a nat below the log evidence. So the independent normals are good enough here: $\mu$, $\log\sigma$ and
# $\mathrm{logit}\,\varepsilon$ are nearly independent given the data. Otherwise `bare.diagnose()` would report a large
# k-hat, and the guide to try next would be `AutoMultivariateNormal(model)`.
#
# ## As a story
#
# A bare model can only score rows. A **`Story`** can also simulate them, as prior predictive checks, calibration and
# predictions require, and it has a guide initialised from the data. It is a class with a `model` and a `guide` in plain
# Pyro, and few rules: `None` in place of the data simulates; sizes and priors are keyword arguments that are checked
# and passed to `super().__init__`; `dims` names the axes. It takes rows of any width: a gross error then affects the
# whole row.


# %%
class GrossErrors(Story):
    """Measurements, of which some rows are gross errors (Box and Tiao 1968).

    Parameters
    ----------
    num_features
        Number of columns.
    prior_mean, prior_scale
        Mean and standard deviation of the normal prior on mu.
    noise
        Prior median of the standard deviation sigma of sound measurements.
    inflation
        Ratio of the standard deviation of gross errors to sigma.
    """

    def __init__(
        self,
        num_features: int = 1,
        *,
        prior_mean: float = 0.0,
        prior_scale: float = 10.0,
        noise: float = 1.0,
        inflation: float = 10.0,
    ) -> None:
        super().__init__(
            num_features=check_count("num_features", num_features),
            prior_mean=float(prior_mean),
            prior_scale=check_positive("prior_scale", prior_scale),
            noise=check_positive("noise", noise),
            inflation=check_positive("inflation", inflation),
        )
        self.dims = {"mu": ("feature",), "sigma": ("feature",), "gross": ("row", "kind"), "x": ("row", "feature")}
        every = torch.ones(num_features)
        for name in ("prior_mean", "prior_scale", "noise", "inflation"):
            self.register_buffer(name, self.config[name] * every)
        self.q_mu = PyroParam(prior_mean * every)
        self.q_mu_sd = PyroParam(noise * every, constraints.positive)
        self.q_log_sigma = PyroParam(math.log(noise) * every)
        self.q_log_sigma_sd = PyroParam(0.1 * every, constraints.positive)
        self.q_eps = PyroParam(torch.tensor([1.0, 9.0]), constraints.positive)

    @pyro_method
    def model(self, x=None, num_rows=1):
        """Generate ``num_rows`` rows, or score ``x`` of shape ``(num_rows, num_features)``."""
        mu = pyro.sample("mu", dist.Normal(self.prior_mean, self.prior_scale).to_event(1))
        sigma = pyro.sample("sigma", dist.LogNormal(self.noise.log(), 1.0).to_event(1))
        eps = pyro.sample("eps", dist.Beta(1.0, 9.0))
        with pyro.plate("data", num_rows if x is None else len(x)):
            gross = pyro.sample("gross", dist.Bernoulli(eps), infer={"enumerate": "parallel"})
            scale = sigma * self.inflation ** gross.unsqueeze(-1)
            return pyro.sample("x", dist.Normal(mu, scale).to_event(1), obs=x)

    @pyro_method
    def guide(self, x=None, num_rows=1):
        """Draw the global parameters; ``gross`` is summed out."""
        pyro.sample("mu", dist.Normal(self.q_mu, self.q_mu_sd).to_event(1))
        pyro.sample("sigma", dist.LogNormal(self.q_log_sigma, self.q_log_sigma_sd).to_event(1))
        pyro.sample("eps", dist.Beta(self.q_eps[0], self.q_eps[1]))

    @torch.no_grad()
    def initialise(self, x, labels=None, weights=None):
        """Start at the median and the median absolute deviation, which are robust to gross errors."""
        centre = x.median(0).values
        scale = 1.4826 * (x - centre).abs().median(0).values.clamp_min(1e-3 * self.noise)
        self.q_mu, self.q_mu_sd = centre, scale / math.sqrt(len(x))
        self.q_log_sigma, self.q_log_sigma_sd = scale.log(), torch.full_like(scale, (2 * len(x)) ** -0.5)
        self.q_eps = x.new_tensor([1.0, 9.0 + len(x)])

    def check_data(self, x):
        """Raise ``InputError`` for rows of another width."""
        D = self.config["num_features"]
        if x.ndim != 2 or x.shape[1] != D:
            raise InputError(f"data of shape {tuple(x.shape)}: this GrossErrors expects (num_rows, {D})")


# %% [markdown]
# ## Prior predictive check
#
# Simulation comes first, since it detects the most errors at the least cost. Here are data sets simulated from the
# prior. If none resembled Newcomb's, or all of them did, the prior would be wrong.

# %%
story = GrossErrors(prior_mean=25, prior_scale=25, noise=5)
torch.manual_seed(0)
simulated = [story.simulate(66).ravel().numpy() for _ in range(8)]

figure, axes = plt.subplots(figsize=(8, 3.8), layout="constrained")
for line, rows in enumerate([*simulated, x.ravel().numpy()]):
    colour = COLOURS[0] if line < 8 else COLOURS[1]
    axes.plot(rows, np.full(66, line) + np.linspace(-0.25, 0.25, 66), ".", color=colour, ms=4, alpha=0.7)
axes.set_yticks(range(9), [*(f"simulated {n + 1}" for n in range(8)), "Newcomb"])
axes.set(xlim=(-150, 200), xlabel="deviation from 24,800 ns", title="Data sets from the prior, and the data")
plt.show()

# %% [markdown]
# ## The fit, and the gross errors
#
# The same methods work as for any story of the collection. `fit.latents` returns the probability of each measurement to
# be gross; the grid has computed the same number independently.

# %%
fit = pplgen.fit(story, x, **OPTIONS)
fit.summary()
fitted = moments(fit)
gross = fit.latents(draws=2000)["gross"].values[:, 1]
for row in np.argsort(-gross)[:4]:
    print(f"{float(x[row, 0]):5.0f} ns: gross with probability {gross[row]:.4f}; on the grid {gross_exact[row]:.4f}")

figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
draws = fit.to_datatree(draws=4000, groups=["posterior"])["posterior"]
for axes, name, label in ((left, "mu", "μ (ns)"), (middle, "eps", "ε")):
    points = np.unique(grid[name])
    density = np.array([mass[grid[name] == point].sum() for point in points]) / np.gradient(points)
    axes.hist(draws[name].values.ravel(), bins=50, density=True, color=COLOURS[5], alpha=0.6, label="the guide")
    axes.plot(points, density, color=COLOURS[1], label="the grid")
    axes.set(xlabel=label, yticks=[], title=f"Posterior of {label.split(' ')[0]}")
left.axvline(float(x.mean()), color="0.4", lw=1, ls=":", label="mean of all measurements")
left.set_xlim(24.5, 31)
middle.set(xlim=(0, 0.2), xticks=[0, 0.05, 0.1, 0.15, 0.2])
right.scatter(x.ravel(), gross, s=14, color=COLOURS[0], label="the fit")
right.scatter(x.ravel(), gross_exact, s=50, facecolors="none", edgecolors=COLOURS[1], lw=0.8, label="the grid")
right.set(xlabel="measurement (ns)", ylabel="probability of a gross error", title="Gross errors")
for axes in (left, middle, right):
    axes.legend(frameon=False, fontsize="small")
plt.show()

# %% [markdown]
# Two measurements are gross, the other 64 are not, and these determine the time of flight: the mean of *all*
# measurements is more than a nanosecond lower. And the truth? With today's speed of light the result should have been
# 33.0. That is outside every interval above, and no analysis of these 66 numbers corrects it: Newcomb's apparatus had a
# systematic error. A posterior is conditional on the story. It does not tell whether the story is true.
#
# ## Simulation-based calibration
#
# One data set is one case. Calibration uses hundreds: parameters from the prior, data from the parameters, a fit to
# each, and the rank of the true value among the fit's draws. If inference is right, ranks are uniform. All fits run as
# one batched program.

# %%
sets = 40 if SMOKE else 200
plan = {"num_datasets": sets, "num_rows": 66, "steps": 500 if SMOKE else 2000, "progress": False}
calibration = pplgen.calibrate(story, **plan)
calibration.summary()
calibration.plot()

# %% [markdown]
# A check must also fail on a broken case. So we break something on purpose: the data now come from a story whose gross
# errors are no wider than sound measurements, and are fitted by ours, as after a typing error in `inflation`.

# %%
broken = pplgen.calibrate(story, simulator=GrossErrors(**{**story.config, "inflation": 1.0}), **plan)
for check in broken.checks():
    print(f"{check.name}: p = {check.value:.2g}, {check.verdict}")

# %% [markdown]
# ## A regression test
#
# The comparison with the grid becomes a test. Next to each tolerance is its source.


# %%
def test_posterior_is_that_of_quadrature():
    """Compare means and sds of the guide, and the probability of each row to be gross, with a grid."""
    fitted = moments(fit)
    for name, (mean, sd) in exact.items():
        # the error of independent normals and a beta, in sds; the Monte Carlo error is .007 of an sd
        assert abs(fitted[name][0] - mean) < 0.15 * sd, name
        assert abs(fitted[name][1] / sd - 1) < 0.15, name
    # the ELBO is below the log evidence, up to four Monte Carlo errors, and near it
    assert evidence - 0.25 < fit.elbo < evidence + 4 * fit.best.elbo_error
    assert abs(fit.latents(draws=2000)["gross"].values[:, 1] - gross_exact).max() < 0.02


test_posterior_is_that_of_quadrature()

# %% [markdown]
# ## Adding it to the collection
#
# A story in your own file, as here, has all methods. It is fitted in Python,
# `pplgen.fit(GrossErrors(...), "data.csv")`, and saved by `fit.save("runs/newcomb")`; the command `pplgen fit` supports
# only the collection. To load a run, pass the class again, `pplgen.load(run, x, story=GrossErrors)`, and on the command
# line `--story FILE.py:GrossErrors`, as in `pplgen predict runs/newcomb new.csv --story FILE.py:GrossErrors`. A story
# of the collection has two files:
#
# - **`models/gross_errors.py`**: the class above. Its module's docstring holds the equations and the reference; it
#   imports only torch, Pyro, `pplgen.story.base` and code shared by stories, and has fewer than 200 lines.
# - **`tests/models/test_gross_errors.py`**: `quadrature` and the test above. References useful to others go
#   into `pplgen/exact` instead.
#
# It also needs an entry in `models/cards.toml` (when to use it and when not), a row of README's table, and a claim that
# `pplgen verify` measures. The rest is automatic: `pplgen list` shows the first line of its docstring,
# `pplgen fit gross-errors newcomb.csv --inflation 5` takes its arguments as options with help from the docstring, and
# the tests of the contract include it. `CONTRIBUTING.md` has the rules.
#
# ## What we claimed
#
# The main claims are asserted here.

# %%
assert abs(evidence - finer) < 1e-3  # the grid is fine enough
assert all(abs(bare_moments[name][0] - mean) < (0.3 if SMOKE else 0.2) * sd for name, (mean, sd) in exact.items())
assert all(abs(bare_moments[name][1] / sd - 1) < (0.3 if SMOKE else 0.2) for name, (_, sd) in exact.items())
assert evidence - 0.3 < bare.elbo < evidence + 4 * bare.best.elbo_error
assert set(x.ravel()[gross > 0.5].tolist()) == {-44.0, -2.0}
assert fitted["mu"][0] - float(x.mean()) > 1  # nanoseconds
assert fitted["mu"][0] + 4 * fitted["mu"][1] < 33.0
assert calibration.passed
assert not broken.passed
