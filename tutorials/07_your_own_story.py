# %% [markdown]
# # Write your own story
#
# In 1882 Simon Newcomb measured how long light takes to a distant mirror and back, 66 times over. Sixty-four of his
# figures lie close together. Two do not, and one of these is absurd. What is the time that he measured, and which
# figures are gross errors?
#
# The collection has no story for this, so we write one. We go from equations on paper to a Pyro pair, hold it against
# an answer computed another way, make it a `Story`, calibrate it, break it to see that we would notice, and end with
# what it takes to give it a place in the collection. The whole file is one that you can copy and change.
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
from pyro.infer.autoguide import AutoNormal, init_to_value
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
print(f"{len(x)} figures: mean {x.mean():.1f}, standard deviation {x.std():.1f}, median {x.median():.0f}")

# %% [markdown]
# ## On paper
#
# A figure is either sound or a gross error, and we do not know which. Sound ones scatter around $\mu$ with deviation
# $\sigma$; gross ones around the same $\mu$, ten times as widely. This is the model of Box and Tiao (1968):
#
# $$
# \begin{aligned}
# \mu &\sim \mathcal N(25, 25^2), \quad \sigma \sim \mathrm{LogNormal}(\log 5, 1), \quad
# \varepsilon \sim \mathrm{Beta}(1, 9), \\
# g_i &\sim \mathrm{Bernoulli}(\varepsilon), \quad x_i \mid g_i &\sim \mathcal N\big(\mu, (10^{g_i} \sigma)^2\big).
# \end{aligned}
# $$
#
# What is unknown of all figures is $\mu$, $\sigma$ and $\varepsilon$; what is unknown of each is $g_i$. The $g_i$ are
# discrete, so they are summed out: the density of a figure is $(1 - \varepsilon)\,\mathcal N(\mu, \sigma^2) +
# \varepsilon\,\mathcal N(\mu, 100\,\sigma^2)$.
#
# ## A bare Pyro pair
#
# As Pyro, that is the equations line by line. Rows live in a plate; the discrete latent asks to be enumerated.


# %%
def model(x):
    """Score figures of shape ``(num_rows, 1)``."""
    mu = pyro.sample("mu", dist.Normal(25.0, 25.0))
    sigma = pyro.sample("sigma", dist.LogNormal(math.log(5.0), 1.0))
    eps = pyro.sample("eps", dist.Beta(1.0, 9.0))
    with pyro.plate("data", len(x)):
        gross = pyro.sample("gross", dist.Bernoulli(eps), infer={"enumerate": "parallel"})
        scale = sigma * 10.0**gross
        pyro.sample("x", dist.Normal(mu, scale.unsqueeze(-1)).to_event(1), obs=x)


lost = pplgen.fit(model, x, steps=500, progress=False)
lost.summary()

# %% [markdown]
# Without a guide of our own, `fit` takes a normal for each latent, on its unconstrained scale (Pyro's `AutoNormal`),
# and that starts near zero, knowing nothing of the data. It has not arrived: the last line of the summary says so,
# and on its way it calls most figures gross. So we start it where the data are. That is one line of Pyro; the guide
# leaves out `gross`, which is summed out.

# %%
start = {"mu": x.median(), "sigma": torch.tensor(5.0), "eps": torch.tensor(0.1)}
normals = AutoNormal(pyro.poutine.block(model, hide=["gross"]), init_loc_fn=init_to_value(values=start))
OPTIONS = {"steps": 2000 if SMOKE else 5000, "progress": False, "compile": "graph" if SMOKE else "auto"}
bare = pplgen.fit(model, x, normals, **OPTIONS)
bare.summary()

# %% [markdown]
# That was the whole of it: any Pyro model gets a fit, a summary, draws for ArviZ, checks and a report. But is it
# *right*?
#
# ## The answer, computed another way
#
# Three numbers are few enough for a grid. We lay one over $(\mu, \log\sigma, \mathrm{logit}\,\varepsilon)$, evaluate
# the joint density of parameters and data at each point, and sum. No sampling, no guide, no gradient, and not a line
# in common with the model above: the densities are written out by hand, in double precision. (In $\log\sigma$ the
# prior is a normal; in $\mathrm{logit}\,\varepsilon$ a change of variables multiplies the beta density by
# $\varepsilon(1 - \varepsilon)$.)


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
    joint, shares = prior, []
    for row in rows:
        sound, gross = np.log1p(-e) + normal(row, m, s), np.log(e) + normal(row, m, 10 * s)
        both = np.logaddexp(sound, gross)
        joint = joint + both
        shares.append(gross - both)
    cell = (mu[1] - mu[0]) * (log_sigma[1] - log_sigma[0]) * (logit[1] - logit[0])
    mass = np.exp(joint - joint.max())
    evidence = joint.max() + np.log(mass.sum() * cell)
    mass = mass / mass.sum()
    return float(evidence), {"mu": m, "sigma": s, "eps": e}, mass, np.array([(mass * np.exp(p)).sum() for p in shares])


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


found = moments(bare)
for name, (mean, sd) in exact.items():
    print(f"{name:6s} exact {mean:7.3f} +- {sd:.3f}   fitted {found[name][0]:7.3f} +- {found[name][1]:.3f}")
print(f"bound {bare.elbo:.2f}, which cannot exceed {evidence:.2f}; what lies between is the divergence of the guide")

# %% [markdown]
# The means agree to a fraction of a deviation, the deviations to some per cent, and the bound is a fraction of a nat
# below the evidence. So the independent normals are good enough here: $\mu$, $\log\sigma$ and
# $\mathrm{logit}\,\varepsilon$ hardly depend on one another given the data. Had they not been, `bare.diagnose()`
# would have said so by its k-hat, and `AutoMultivariateNormal(model)` as the guide would be the next thing to try.
#
# ## As a story
#
# A bare model can score rows, and that is all. A **`Story`** can also make them up, which is what prior predictive
# checks, calibration and new rows need, and it brings a guide that starts where the data are. It is a class with a
# `model` and a `guide` in plain Pyro, and the rules are few: `None` in place of the data simulates; sizes and priors
# are keyword arguments that are checked and handed to `super().__init__`; `dims` names the axes. It takes rows of any
# width: a gross error then spoils the whole row.


# %%
class GrossErrors(Story):
    """Measurements, of which some rows are gross errors (Box and Tiao 1968).

    Parameters
    ----------
    num_features
        Quantities that each row measures.
    prior_mean, prior_scale
        Of the normal prior on mu.
    noise
        Prior median of the deviation sigma of sound measurements.
    inflation
        How many times as far gross errors scatter.
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
        """Draw what all rows share; whether a row is gross is summed out."""
        pyro.sample("mu", dist.Normal(self.q_mu, self.q_mu_sd).to_event(1))
        pyro.sample("sigma", dist.LogNormal(self.q_log_sigma, self.q_log_sigma_sd).to_event(1))
        pyro.sample("eps", dist.Beta(self.q_eps[0], self.q_eps[1]))

    @torch.no_grad()
    def initialise(self, x, labels=None, weights=None):
        """Start at the median and the median deviation, which gross errors hardly move."""
        centre = x.median(0).values
        spread = 1.4826 * (x - centre).abs().median(0).values.clamp_min(1e-3 * self.noise)
        self.q_mu, self.q_mu_sd = centre, spread / math.sqrt(len(x))
        self.q_log_sigma, self.q_log_sigma_sd = spread.log(), torch.full_like(spread, (2 * len(x)) ** -0.5)
        self.q_eps = x.new_tensor([1.0, 9.0 + len(x)])

    def check_data(self, x):
        """Refuse rows of another width."""
        D = self.config["num_features"]
        if x.ndim != 2 or x.shape[1] != D:
            raise InputError(f"data of shape {tuple(x.shape)}: this GrossErrors expects (num_rows, {D})")


# %% [markdown]
# ## Before the data
#
# Simulation comes first, for it catches the most at the least cost. Here are data sets that the prior makes up. If
# none of them looked like Newcomb's, or all of them did, we would not need to fit anything.

# %%
story = GrossErrors(prior_mean=25, prior_scale=25, noise=5)
torch.manual_seed(0)
made_up = [story.simulate(66).ravel().numpy() for _ in range(8)]

figure, axes = plt.subplots(figsize=(8, 3.8), layout="constrained")
for line, rows in enumerate([*made_up, x.ravel().numpy()]):
    colour = COLOURS[0] if line < 8 else COLOURS[1]
    axes.plot(rows, np.full(66, line) + np.linspace(-0.25, 0.25, 66), ".", color=colour, ms=4, alpha=0.7)
axes.set_yticks(range(9), [*(f"made up {n + 1}" for n in range(8)), "Newcomb"])
axes.set(xlim=(-150, 200), xlabel="deviation from 24,800 ns", title="Data sets from the prior, and the data")
plt.show()

# %% [markdown]
# ## The fit, and which figures are gross
#
# The same verbs work as for any story of the collection. `fit.latents` says of each figure how probable it is that it
# is gross; the grid has computed the same number in its own way.

# %%
fit = pplgen.fit(story, x, **OPTIONS)
fit.summary()
found = moments(fit)
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
left.axvline(float(x.mean()), color="0.4", lw=1, ls=":", label="mean of all figures")
left.set_xlim(24.5, 31)
middle.set(xlim=(0, 0.2), xticks=[0, 0.05, 0.1, 0.15, 0.2])
right.scatter(x.ravel(), gross, s=14, color=COLOURS[0], label="the fit")
right.scatter(x.ravel(), gross_exact, s=50, facecolors="none", edgecolors=COLOURS[1], lw=0.8, label="the grid")
right.set(xlabel="figure (ns)", ylabel="probability of a gross error", title="Which figures are gross")
for axes in (left, middle, right):
    axes.legend(frameon=False, fontsize="small")
plt.show()

# %% [markdown]
# Two figures are gross, the other 64 are not, and the time of flight is what those 64 say: the mean of *all* figures
# is dragged more than a nanosecond down. And the truth? With today's speed of light the figure should have been 33.0.
# That is outside of every interval above, and no arithmetic on these 66 numbers mends it: Newcomb's apparatus was off
# by a little, for all figures alike. A posterior says what the story makes of the data. It does not say that the
# story is true.
#
# ## Does it work on data other than these?
#
# One data set is one case. Calibration takes a hundred: parameters from the prior, data from the parameters, a fit to
# each, and the rank of what was true among the fit's draws. If inference is right, every rank is as likely as every
# other. All fits run as one batched program.

# %%
sets = 60 if SMOKE else 200
plan = {"num_datasets": sets, "num_rows": 66, "steps": 800 if SMOKE else 2000, "progress": False}
calibration = pplgen.calibrate(story, **plan)
calibration.summary()
calibration.plot()

# %% [markdown]
# A check that has never failed has shown nothing yet. So we break something on purpose: the data now come from a
# story whose gross errors are no wider than sound ones, and are fitted by ours. Somebody who typed `inflation`
# wrongly in one place would have made this mistake.

# %%
broken = pplgen.calibrate(story, simulator=GrossErrors(**{**story.config, "inflation": 1.0}), **plan)
for check in broken.checks():
    print(f"{check.name}: p = {check.value:.2g}, {check.verdict}")

# %% [markdown]
# ## A test that stays
#
# What we looked at once, a test looks at for ever. It holds the story against the grid. Beside each tolerance stands
# where it comes from.


# %%
def test_posterior_is_that_of_quadrature():
    """Means and deviations of the guide, and the probability of each row to be gross, against a grid."""
    found = moments(fit)
    for name, (mean, sd) in exact.items():
        # the guide is independent normals and a beta, which cost so much of a deviation here; draws cost .007 of one
        assert abs(found[name][0] - mean) < 0.15 * sd, name
        assert abs(found[name][1] / sd - 1) < 0.15, name
    # the bound is below the evidence but for four Monte Carlo errors, and near it
    assert evidence - 0.25 < fit.elbo < evidence + 4 * fit.best.elbo_error
    assert abs(fit.latents(draws=2000)["gross"].values[:, 1] - gross_exact).max() < 0.02


test_posterior_is_that_of_quadrature()

# %% [markdown]
# ## A place in the collection
#
# A story in your own file, as here, has all verbs. It is fitted in Python, `pplgen.fit(GrossErrors(...), "data.csv")`,
# and kept by `fit.save("runs/newcomb")`; `pplgen fit` knows the collection alone. To read a run back you give the class
# again, `pplgen.load(run, x, story=GrossErrors)`, and on the command line `--story FILE.py:GrossErrors`, as in
# `pplgen predict runs/newcomb new.csv --story FILE.py:GrossErrors`. To move in, it takes two files:
#
# - **`models/gross_errors.py`**: the class above. Its module's docstring holds the equations and the reference; it
#   imports torch, Pyro, `pplgen.story.base` and pieces that stories share, and stays under 200 lines.
# - **`tests/models/test_gross_errors.py`**: `quadrature` and the test above. A reference that others may use goes
#   into `pplgen/exact` instead.
#
# And a few lines elsewhere: when to take it and when not (`models/cards.toml`), a row of README's table, and a
# number that `pplgen verify` measures again. The rest finds the story by itself: `pplgen list` shows the first line
# of its docstring, `pplgen fit gross-errors newcomb.csv --inflation 5` takes its arguments as options with help
# from the docstring, and the contract's tests run over it. `CONTRIBUTING.md` has the rules, one page of them.
#
# ## What we claimed
#
# The claims that carry the argument are asserted here.

# %%
assert abs(evidence - finer) < 1e-3  # the grid is fine enough
bare_found = moments(bare)
assert all(abs(bare_found[name][0] - mean) < (0.3 if SMOKE else 0.2) * sd for name, (mean, sd) in exact.items())
assert all(abs(bare_found[name][1] / sd - 1) < (0.3 if SMOKE else 0.2) for name, (_, sd) in exact.items())
assert lost.elbo < evidence - 50  # nats
assert evidence - 0.3 < bare.elbo < evidence + 4 * bare.best.elbo_error
assert set(x.ravel()[gross > 0.5].tolist()) == {-44.0, -2.0}
assert found["mu"][0] - float(x.mean()) > 1  # nanoseconds
assert found["mu"][0] + 4 * found["mu"][1] < 33.0
assert calibration.passed
assert not broken.passed
