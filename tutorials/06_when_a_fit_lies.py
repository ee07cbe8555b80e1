# %% [markdown]
# # When a fit lies
#
# A variational fit always ends with numbers: means, intervals, an ELBO. They can be wrong without looking wrong. This
# page breaks fits in the three ways that happen most, on real data, each beside an answer computed another way:
#
# 1. a guide of the **wrong shape** (eight schools, centred and not; NUTS as second opinion);
# 2. a **missed mode** (a mixture with two readings; quadrature as the truth);
# 3. a guide that is **too narrow** (a regression; the posterior in closed form, and calibration).
#
# For each we ask which check tells, and which does not.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoMultivariateNormal

import pplgen
from pplgen.palette import COLOURS
from pplgen.second_opinion import side_by_side

SMOKE = os.environ.get("PPLGEN_SMOKE") == "1"
options = {"steps": 1600, "compile": "graph"} if SMOKE else {}
chains = {"steps": 150, "restarts": 2, "compile": "graph"} if SMOKE else {}


def verdict_of(checks, name):
    """Return value and verdict of the check of that name."""
    return checks[name].value, str(checks[name].verdict)


# %% [markdown]
# ## 1. The wrong shape: eight schools
#
# Eight schools coached pupils for a test; for each we have the estimated effect and its standard error (Rubin 1981).
# The story says that the schools' true effects $\theta_j$ are alike, and how much is to be learned:
#
# $$ \mu \sim \mathcal N(0, 5), \quad \tau \sim \mathrm{HalfCauchy}(5), \quad \theta_j \sim \mathcal N(\mu, \tau), \quad
# y_j \sim \mathcal N(\theta_j, \sigma_j). $$
#
# These are plain Pyro functions, and with no guide given `pplgen.fit` takes independent normals (`AutoNormal`).

# %%
effects = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
errors = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def centred(effects, errors):
    """Effects drawn around mu."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, errors), obs=effects)


def not_centred(effects, errors):
    """The same story, its effects as standard normals that are stretched and moved."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * offset)
        pyro.sample("y", dist.Normal(theta, errors), obs=effects)


schools = (effects, errors)
fits = {
    name: pplgen.fit(model, schools, **options) for name, model in (("centred", centred), ("not centred", not_centred))
}
exact = pplgen.fit(not_centred, schools, method="nuts", **chains)
exact.summary()

# %% [markdown]
# Two fits of one and the same story, and NUTS, which samples from the posterior and is slow and exact. Do they agree?

# %%
trees = {name: fit.to_datatree(draws=2000) for name, fit in fits.items()} | {"NUTS": exact.to_datatree()}


def of(name, site):
    """Draws of one site, flat over chains."""
    values = trees[name]["posterior"][site].values
    return values.reshape(-1, *values.shape[2:])


print(f"{'':14}{'E mu':>7}{'E tau':>7}{'sd tau':>8}{'P(tau < 1)':>12}{'ELBO':>9}")
for name in trees:
    tau = of(name, "tau")
    elbo = f"{fits[name].elbo:9.2f}" if name in fits else f"{'-':>9}"
    print(f"{name:14}{of(name, 'mu').mean():7.2f}{tau.mean():7.2f}{tau.std():8.2f}{(tau < 1).mean():12.3f}{elbo}")

# %%
figure, panels = plt.subplots(1, 3, figsize=(11, 3.8), sharex=True, sharey=True, layout="constrained")
for axes, name, colour in zip(panels, trees, (COLOURS[1], COLOURS[0], "0.35"), strict=True):
    axes.scatter(of(name, "theta")[:2000, 0], np.log(of(name, "tau")[:2000]), s=4, color=colour, alpha=0.4, lw=0)
    axes.set(xlabel="effect of the first school", xlim=(-20, 45), ylim=(-5, 4.5), title=name)
panels[0].set_ylabel("log τ")
figure.suptitle("The same posterior, three times: a funnel, of which a centred guide sees the mouth")
plt.show()

# %% [markdown]
# Where $\tau$ is small, all effects must lie close together: the posterior is a **funnel**. A guide of independent
# normals over $(\mu, \log\tau, \theta)$ cannot be wide at the top and narrow at the bottom, so it stays out of the
# neck, and claims that schools differ for certain. Without centring the funnel is in the *story*, and what is left for
# the guide is nearly round. The ELBO of the second is higher, but one number without a scale convinces nobody. k-hat
# has a scale.

# %%
checks = {name: fit.diagnose() for name, fit in fits.items()}
k_hat = {name: verdict_of(found, "k-hat of all latents") for name, found in checks.items()}
print("k-hat:", {name: (round(value, 2), verdict) for name, (value, verdict) in k_hat.items()})

# %% [markdown]
# `side_by_side` compares with the second opinion scalar by scalar: `shift` in standard deviations of the reference, and
# the ratio of the deviations.

# %%
opinion = {name: side_by_side(fit, exact) for name, fit in fits.items()}
for name, table in opinion.items():
    print(f"\n{name}\n{table.loc[['mu', 'tau'], ['mean', 'reference_mean', 'shift', 'sd_ratio']].round(2)}")

# %% [markdown]
# Not centring helps here because eight noisy schools say little about each effect. With much data per school it is the
# other way round. The check decides, not a rule.
#
# ## 2. A missed mode
#
# Somebody has timed twelve eruptions of Old Faithful, and has read that about 40 % of them are short. The story: each
# eruption is of a kind, the second kind having probability 0.6; each kind has a mean of its own. Durations are told in
# minutes above three, so that zero is in the middle.

# %%
durations = pplgen.load_data("faithful").values[:12, 0] - 3
shares = torch.tensor([0.4, 0.6])
print("twelve eruptions (minutes above three):", np.round(durations.tolist(), 1).tolist())


def two_kinds(durations):
    """Draw the means of the kind with 40 % and of that with 60 %, then rows of a kind that is summed out."""
    fewer = pyro.sample("fewer", dist.Normal(0.0, 1.5))
    more = pyro.sample("more", dist.Normal(0.0, 1.5))
    mean = torch.stack([fewer, more])
    with pyro.plate("eruptions", len(durations)):
        kind = pyro.sample("kind", dist.Categorical(shares), infer={"enumerate": "parallel"})
        pyro.sample("duration", dist.Normal(mean[kind], 0.4), obs=durations)


alone = pplgen.fit(two_kinds, durations, **options)
alone_checks = alone.diagnose()

# %% [markdown]
# k-hat passes. With two parameters we can afford quadrature, which gives the posterior itself.

# %%
axis = torch.linspace(-2.5, 3, 221)
first, second = torch.meshgrid(axis, axis, indexing="ij")
kinds = torch.stack([dist.Normal(m[..., None], 0.4).log_prob(durations) for m in (first, second)])
log_density = (kinds + shares.log()[:, None, None, None]).logsumexp(0).sum(-1)
log_density += dist.Normal(0.0, 1.5).log_prob(first) + dist.Normal(0.0, 1.5).log_prob(second)
mass = (log_density - log_density.logsumexp((0, 1))).exp()
posterior = alone.to_datatree(draws=2000)["posterior"]
draws = np.stack([posterior["fewer"].values[0], posterior["more"].values[0]], 1)
here = (first < second) if (draws[:, 0] < draws[:, 1]).mean() > 0.5 else (first > second)
missed = 1 - float(mass[here].sum())

figure, axes = plt.subplots(figsize=(5.6, 5), layout="constrained")
axes.contour(axis, axis, mass.T / mass.max(), levels=[0.01, 0.1, 0.5, 0.9], colors="0.15", linewidths=0.9)
axes.scatter(*draws.T, s=4, color=COLOURS[1], alpha=0.35, lw=0, label="draws of one fit")
axes.plot([], [], color="0.15", lw=0.9, label="posterior, by quadrature")
axes.set(xlabel="mean of the kind with 40 % (minutes above three)", ylabel="mean of the kind with 60 %")
axes.set_title(f"{100 * missed:.0f} % of the posterior is where the fit is not")
axes.legend(frameon=False, fontsize="small", loc="upper right")
plt.show()

# %% [markdown]
# Twelve eruptions cannot rule out that the *long* ones are the 40 %. The posterior has two modes, neither of them
# negligible. The guide matches the one that it found, so its weights are alike. **k-hat only knows where the guide
# goes.** Nothing that is computed from this one fit can tell. What tells are restarts, if they end in different places:
# the check of missed modes then puts a weight on each of them.

# %%
several = pplgen.fit(two_kinds, durations, restarts=8, **options)
several_checks = several.diagnose()
alone_k, alone_verdict = verdict_of(alone_checks, "k-hat of all latents")
elsewhere, elsewhere_verdict = verdict_of(several_checks, "posterior at modes that are missed (share)")
print(f"one fit: k-hat {alone_k:.2f}, {alone_verdict}")
print(f"eight restarts: {100 * elsewhere:.0f} % of the posterior missed by the best of them, {elsewhere_verdict}")

# %% [markdown]
# So give restarts to whatever may have several modes. They are one program, and cheap. They are no proof either: starts
# that all lie on one side of the data may all end in the same mode. (Modes that differ in the names of components alone
# are another matter: nothing is lost by having one of them, and the stories of `pplgen.models` are relabelled before
# anything is compared. Here the kinds have different shares, and the modes mean different things.)
#
# ## 3. Too narrow: a regression
#
# The wait as a line of the duration, from thirty eruptions, noise of six minutes. The intercept is the wait after an
# eruption of one minute, above 45 minutes, and the slope what each further minute adds, in units of ten minutes.

# %%
eruptions, waiting = pplgen.load_data("faithful").values[:30].T
further, wait = eruptions - 1, (waiting - 45) / 10
prior_mean, prior_sd, noise = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.5]), 0.6


def line(further, wait):
    """Draw intercept and slope, then the waits."""
    beta = pyro.sample("beta", dist.Normal(prior_mean, prior_sd).to_event(1))
    with pyro.plate("rows", len(further)):
        pyro.sample("wait", dist.Normal(beta[0] + beta[1] * further, noise), obs=wait)


narrow = pplgen.fit(line, (further, wait), learning_rate=0.05, **options)
shaped = pplgen.fit(line, (further, wait), AutoMultivariateNormal(line), learning_rate=0.05, **options)
narrow_k = verdict_of(narrow.diagnose(), "k-hat of all latents")
shaped_k = verdict_of(shaped.diagnose(), "k-hat of all latents")

# %% [markdown]
# With the noise known, the posterior is normal, and a textbook has its mean and covariance.

# %%
features = torch.stack([torch.ones_like(further), further], 1)
covariance = (features.T @ features / noise**2 + torch.diag(prior_sd**-2)).inverse()
mean = covariance @ (features.T @ wait / noise**2 + prior_mean / prior_sd**2)
true_sd = covariance.diagonal().sqrt()
correlation = float(covariance[0, 1] / true_sd.prod())
lines = {
    name: fit.to_datatree(draws=2000)["posterior"]["beta"].values[0]
    for name, fit in (("independent normals", narrow), ("one joint normal", shaped))
}
ratio = {name: values.std(0) / true_sd.numpy() for name, values in lines.items()}
shift = {name: (values.mean(0) - mean.numpy()) / true_sd.numpy() for name, values in lines.items()}
print(f"correlation of intercept and slope: {correlation:.2f}")
for name in lines:
    print(f"{name}: sd {ratio[name].round(2)} and mean {shift[name].round(2)}, in units of the posterior's sd")
print(f"k-hat: {narrow_k[0]:.2f}, {narrow_k[1]}, and {shaped_k[0]:.2f}, {shaped_k[1]}")

# %%
angle = torch.linspace(0, 2 * torch.pi, 200)
ring = 4.605**0.5 * torch.linalg.cholesky(covariance) @ torch.stack([angle.cos(), angle.sin()]) + mean[:, None]
figure, panels = plt.subplots(1, 2, figsize=(9.5, 4), sharex=True, sharey=True, layout="constrained")
for axes, (name, values), colour in zip(panels, lines.items(), (COLOURS[1], COLOURS[0]), strict=True):
    axes.scatter(*values.T, s=4, color=colour, alpha=0.4, lw=0, label="draws of the guide")
    axes.plot(*ring, color="0.15", lw=1.2, label="90 % of the posterior, in closed form")
    axes.set(xlabel="wait after one minute, above 45 (ten minutes)", title=name)
panels[0].set_ylabel("slope (ten minutes per minute)")
panels[0].legend(frameon=False, fontsize="small")
plt.show()

# %% [markdown]
# A line through points far from zero can be tilted if one moves its intercept along: the two are correlated, by some
# $\rho$. The best independent normals fit into the ring at its narrowest. Their means are right, and their deviations
# too small by the factor $\sqrt{1 - \rho^2}$. The weights have a tail whose shape one can work out: here k-hat is
# $|\rho|$, above 0.7. (`diagnose` warns rather than fails where the replicates of k-hat lie on both sides of 0.7.)
# There are two remedies: a guide with the posterior's shape, or a story without the correlation (subtract the mean
# duration, and not a minute).
#
# What does "too narrow" mean for someone who uses the intervals? **Calibration** answers: draw parameters from the
# prior, data from the parameters, fit each data set, and count how often the truth lies where the fit says. All the
# fits are one program.

# %%
calibration = {"num_datasets": 50 if SMOKE else 200, "steps": 1000}
found = {
    "independent normals": pplgen.calibrate(line, (further, wait), **calibration),
    "mean subtracted": pplgen.calibrate(line, (eruptions - eruptions.mean(), wait), **calibration),
}
for each in found.values():
    each.summary()
coverage = {name: float(each.coverage.loc["beta[0]", 0.9]) for name, each in found.items()}
print("how often a 90 % interval holds the truth:", coverage)

# %%
figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
places = np.linspace(0, 1, 21)
for (name, each), colour in zip(found.items(), (COLOURS[1], COLOURS[0]), strict=True):
    ranks = (each.ranks[:, each.quantities.index("beta[0]")] + 0.5) / (each.num_draws + 1)
    axes.hist(ranks, places, density=True, histtype="step", lw=1.6, color=colour, label=name)
axes.axhline(1, color="0.4", lw=0.8, ls="--", label="calibrated")
axes.set(
    xlabel="where the true intercept lies among the draws",
    ylabel="density",
    title="Ranks pile up at both ends: too narrow",
)
axes.legend(frameon=False, fontsize="small")
plt.show()

# %% [markdown]
# ## What sees what
#
# | lie | ELBO | k-hat | restarts | calibration | NUTS |
# |---|---|---|---|---|---|
# | wrong shape | no scale | fails | - | - | disagrees |
# | missed mode | - | **passes** | tell | - | - |
# | too narrow | no scale | above 0.7 | - | ranks pile up at the ends | disagrees |
#
# A dash is not a no: it was not tried above. No single check is enough, and that is why `fit.diagnose()` prints some
# twenty of them. And none of these says that the *story* is right. That is a question to the data, as in [Old
# Faithful](01_old_faithful.py).
#
# ## What we claimed

# %%
assert k_hat["centred"][1] in ("fail", "warn")  # some .85, each of four replicates with an error of .11 around it
assert k_hat["not centred"][1] in ("pass", "warn")
assert k_hat["not centred"][0] < k_hat["centred"][0]
assert fits["not centred"].elbo > fits["centred"].elbo
# published: E mu 4.41, E tau 3.60; Monte Carlo errors of some hundred effective draws
assert abs(of("NUTS", "mu").mean() - 4.41) < (1.0 if SMOKE else 0.4)
assert abs(of("NUTS", "tau").mean() - 3.60) < (1.0 if SMOKE else 0.4)
assert (of("centred", "tau") < 1).mean() < 0.5 * (of("NUTS", "tau") < 1).mean()  # it stays out of the neck
assert abs(opinion["not centred"].loc["mu", "shift"]) < 0.25
assert alone_verdict == "pass"
assert 0.2 < missed < 0.8
assert abs(float(mass[first < second].sum()) - 0.70) < 0.01
assert abs(elsewhere - 0.30) < 0.1 or abs(elsewhere - 0.70) < 0.1  # whichever mode the best fit is at
assert elsewhere_verdict == "fail"
assert narrow_k[0] > 0.7
assert narrow_k[1] in ("fail", "warn")
assert shaped_k[1] == "pass"
assert np.allclose(ratio["independent normals"], (1 - correlation**2) ** 0.5, rtol=0.15)  # the theory of such guides
assert np.allclose(ratio["one joint normal"], 1, rtol=0.15)
assert max(np.abs(each).max() for each in shift.values()) < 0.25
# four standard errors of a shape k that 300 of 10,000 weights give in each of four replicates, (1 + k) / sqrt(4 * 300)
assert abs(narrow_k[0] - abs(correlation)) < 4 * (1 + abs(correlation)) / 1200**0.5
assert coverage["independent normals"] < 0.65
assert coverage["mean subtracted"] > 0.8
assert not found["independent normals"].passed
assert found["mean subtracted"].passed
