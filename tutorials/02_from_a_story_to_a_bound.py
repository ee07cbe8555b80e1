# %% [markdown]
# # From a story to a bound
#
# A latent-variable story is a generative model: a latent vector $z \sim p(z)$, then a row $x \sim p(x \mid z)$. To fit
# it, or to score a row, one needs the marginal likelihood of the row,
#
# $$ p(x) = \int p(x \mid z)\, p(z)\, dz. $$
#
# For most stories this integral is intractable. This page is a runnable lecture on how to avoid it: naive Monte Carlo,
# importance sampling, Jensen's inequality, the ELBO, why the posterior makes it tight, how EM maximises it, and what to
# do if the gap is unknown. We choose a story whose integral is known in closed form, so that every estimate can be
# validated.

# %%
import math
import os

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

import pplgen
from pplgen.exact.em import GaussianMixtureParameters, e_step, em, m_step
from pplgen.exact.ppca import ppca
from pplgen.plots.palette import COLOURS
from pplgen.posterior.psis import smoothed_weights

SMOKE = os.environ.get("PPLGEN_SMOKE") == "1"
torch.set_default_dtype(torch.float64)
torch.manual_seed(0)

# %% [markdown]
# ## The story
#
# Handwritten digits, 64 pixels each. A latent vector of ten dimensions is drawn, mapped linearly to an image, and noise
# is added:
#
# $$ z \sim \mathcal N(0, I_{10}), \qquad x \mid z \sim \mathcal N(W z + \mu, \sigma^2 I_{64}). $$
#
# This is probabilistic PCA. Its likelihood has a maximum in closed form (`pplgen.exact.ppca`), so we have good $W$,
# $\mu$ and $\sigma$ without the methods of this page. (The density is invariant to rotations of the latent space, and
# we rotate it at random, since in general the posterior's axes are not aligned.)

# %%
digits = pplgen.load_data("digits-unit", dtype=torch.float64)  # needs 'pip install pplgen[data]'
(W, mu, variance), _ = ppca(digits.values, 10)
rotation, _ = torch.linalg.qr(torch.randn(10, 10))
W, sigma = W @ rotation, variance[0].sqrt()
x = digits.values[3]

prior = Independent(Normal(torch.zeros(10), torch.ones(10)), 1)
truth = MultivariateNormal(mu, W @ W.T + sigma**2 * torch.eye(64)).log_prob(x).item()
print(f"log p(x) = {truth:.4f} nats, in closed form")


def log_joint(z):
    """Log p(x, z) for latent vectors, shape ``(..., 10)``."""
    return prior.log_prob(z) + Independent(Normal(z @ W.T + mu, sigma), 1).log_prob(x)


def log_mean(log_weights):
    """Log of the mean weight, given log weights, along the first axis."""
    return log_weights.logsumexp(0) - math.log(len(log_weights))


# %% [markdown]
# ## Naive Monte Carlo
#
# An integral against $p(z)$ is a mean over draws from $p(z)$. So draw latent vectors, and average the likelihood of the
# row: $\hat p(x) = \frac1S \sum_s p(x \mid z_s)$. It is unbiased. It is also useless here.

# %%
MOST = 20_000 if SMOKE else 200_000
sizes = [10, 100, 1000, 10_000, MOST]
naive = {
    S: torch.stack([log_mean(log_joint(z) - prior.log_prob(z)) for z in prior.sample((20, S))]) for S in sizes[:-1]
}
z = prior.sample((MOST,))
log_weights = log_joint(z) - prior.log_prob(z)
naive[MOST] = log_mean(log_weights)[None]
largest_weight = log_weights.softmax(0).max().item()
print(f"with {MOST:,} draws: {naive[MOST].item():.2f}; the best draw alone is {100 * largest_weight:.0f} % of the sum")

# %% [markdown]
# A latent vector drawn from the prior gives some other digit. Hardly any draw comes near the digit at hand, the sum is
# dominated by a single draw, and the typical estimate lies far below the mean. On the log scale: by **Jensen's
# inequality** $\mathbb E[\log \hat p] \le \log \mathbb E[\hat p] = \log p(x)$. An unbiased estimate of $p(x)$ is a
# *biased* estimate of $\log p(x)$, too low on average, the more so the noisier it is. This inequality is the basis of
# the ELBO.
#
# ## Importance sampling
#
# Draw from some $q(z)$ close to the posterior, and correct by weights: $p(x) = \mathbb E_q\big[ p(x, z) / q(z) \big]$.
# The best $q$ is the posterior $p(z \mid x)$. For this story it is Gaussian and known. Then $p(x, z) /
# p(z \mid x) = p(x)$ for *every* $z$: one draw gives the answer, without noise.

# %%
precision = torch.eye(10) + W.T @ W / sigma**2
posterior = MultivariateNormal(torch.linalg.solve(precision, W.T @ (x - mu) / sigma**2), precision_matrix=precision)
one_draw = posterior.sample((5,))
by_one_draw = log_joint(one_draw) - posterior.log_prob(one_draw)
print("log weight of five draws from the posterior:", by_one_draw.numpy().round(6).tolist())

# %% [markdown]
# In practice one has an approximation. We take the posterior's mean with *independent* entries and a standard deviation
# of our choice: `width` 1 is the independent Gaussian that maximises the ELBO (below); others are too narrow or too
# wide.

# %%


def guide(width):
    """Independent normals around the posterior's mean, ``width`` times as wide as the best of them."""
    return Independent(Normal(posterior.mean, width * precision.diagonal().rsqrt()), 1)


def ratios(q, num_draws):
    """Log p(x, z) - log q(z) of draws from q."""
    z = q.sample((num_draws,))
    return log_joint(z) - q.log_prob(z)


weighted = {S: torch.stack([log_mean(ratios(guide(1.0), S)) for _ in range(20)]) for S in sizes[:-1]}

figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
for estimates, colour, name in (
    (naive, COLOURS[1], "draws from the prior"),
    (weighted, COLOURS[0], "draws from a guide"),
):
    middle = [values.median().item() for values in estimates.values()]
    axes.plot(list(estimates), middle, color=colour, label=f"{name}: median of 20 runs")
    for S, values in estimates.items():
        axes.plot([S] * len(values), values, ".", color=colour, ms=4, alpha=0.5)
axes.axhline(truth, color="0.15", lw=1, ls="--", label="log p(x), exact")
axes.set(xscale="log", ylim=(truth - 60, truth + 5), xlabel="draws", ylabel="estimate of log p(x) (nats)")
axes.set_title("Prior draws stay below; guide draws converge at once")
axes.legend(frameon=False, fontsize="small", loc="lower right")
plt.show()

# %% [markdown]
# ## Jensen's inequality and the ELBO
#
# Now take Jensen's inequality with a *single* draw from $q$, and average it:
#
# $$ \mathrm{ELBO}(q) = \mathbb E_q\big[ \log p(x, z) - \log q(z) \big] \;\le\; \log p(x). $$
#
# That is the evidence lower bound. It needs no integral, only draws from $q$ and two log densities. The gap is
# known exactly. As $p(x, z) = p(z \mid x)\, p(x)$,
#
# $$ \log p(x) = \mathrm{ELBO}(q) + \mathrm{KL}\big(q(z) \,\|\, p(z \mid x)\big). $$
#
# The gap is a KL divergence, so it is zero if and only if $q$ is the posterior. Maximising the ELBO over $q$ therefore
# approximates the posterior, and its value measures how well, if $\log p(x)$ is known. Here it is.

# %%


def elbo(q):
    """Return E_q[log p(x, z) - log q(z)] in nats, in closed form for a Gaussian q and this story."""
    second = q.covariance_matrix if isinstance(q, MultivariateNormal) else q.variance.diag_embed()
    residual = x - W @ q.mean - mu
    likelihood = -32 * torch.log(2 * math.pi * sigma**2) - (residual @ residual + (W @ second @ W.T).trace()) / (
        2 * sigma**2
    )
    log_prior = -5 * math.log(2 * math.pi) - (q.mean @ q.mean + second.trace()) / 2
    return (likelihood + log_prior + q.entropy()).item()


def gap(q):
    """Return KL(q || posterior) in nats."""
    as_dense = q if isinstance(q, MultivariateNormal) else MultivariateNormal(q.mean, q.variance.diag_embed())
    return kl_divergence(as_dense, posterior).item()


widths = [0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0]
table = {width: (elbo(guide(width)), gap(guide(width)), ratios(guide(width), 20_000)) for width in widths}
print("width    ELBO   + KL     = log p(x)     ELBO by 20,000 draws")
for width, (bound, divergence, drawn) in table.items():
    error = drawn.std().item() / len(drawn) ** 0.5
    print(f"{width:5.2f} {bound:8.3f} {divergence:7.3f} {bound + divergence:12.6f} {drawn.mean():14.3f} ± {error:.3f}")

# %%
fine = torch.linspace(0.2, 2.1, 80).tolist()
figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
axes.plot(fine, [elbo(guide(width)) for width in fine], color=COLOURS[0], label="ELBO, exact")
axes.errorbar(
    widths,
    [drawn.mean() for *_, drawn in table.values()],
    [2 * drawn.std() / len(drawn) ** 0.5 for *_, drawn in table.values()],
    fmt="o",
    color=COLOURS[0],
    ms=4,
    label="by 20,000 draws, 2 s.e.",
)
axes.axhline(truth, color="0.15", lw=1, ls="--", label="log p(x), the ELBO of the posterior")
axes.annotate("", (1.0, truth), (1.0, elbo(guide(1.0))), arrowprops={"arrowstyle": "<->", "color": COLOURS[1]})
axes.text(1.03, (truth + elbo(guide(1.0))) / 2, f"KL = {gap(guide(1.0)):.1f} nats", color=COLOURS[1], va="center")
axes.set(xlabel="width of the guide", ylabel="nats", title="The ELBO, and the gap of independence")
axes.legend(frameon=False, fontsize="small", loc="lower right")
plt.show()

# %% [markdown]
# No independent guide closes the gap, since the posterior's entries are correlated. The gap at width 1 is that of the
# best independent guide.
#
# ## In between: the importance-weighted bound
#
# Average $K$ weights inside the logarithm. $K = 1$ is the ELBO, and as $K$ grows the variance of the average vanishes
# and with it Jensen's gap: the bound increases towards $\log p(x)$ (Burda et al. 2016; `elbo="importance"` in
# `pplgen.fit`).

# %%
ladder = {}
for K in (1, 2, 5, 20, 100):
    runs = log_mean(ratios(guide(1.0), 100_000 if not SMOKE else 20_000).reshape(K, -1))
    ladder[K] = (runs.mean().item(), (runs.std() / len(runs) ** 0.5).item())
    print(f"K = {K:3d}: {ladder[K][0]:.3f} ± {ladder[K][1]:.3f}, {truth - ladder[K][0]:.3f} below log p(x)")

# %% [markdown]
# ## What Pyro does
#
# `pyro.infer.SVI` maximises the ELBO by stochastic gradients: a draw from $q$, the gradient of the integrand, a step.
# `pplgen.fit` does the same for any Pyro pair (as a graph of tensor operations, if that is faster). Without a guide it
# uses independent normals and learns their means and scales. So it must converge to the maximum of the curve above,
# with a gap that has a closed form too, $\tfrac12 \big(\sum_j \log \Lambda_{jj} - \log\det\Lambda\big)$ for the
# posterior's precision $\Lambda$.

# %%


def model(x):
    """Draw a latent vector, then the image."""
    z = pyro.sample("z", dist.Normal(torch.zeros(10), 1.0).to_event(1))
    pyro.sample("x", dist.Normal(W @ z + mu, sigma).to_event(1), obs=x)


fit = pplgen.fit(model, x, **({"steps": 3000, "compile": "graph"} if SMOKE else {}))
independence_gap = 0.5 * (precision.diagonal().log().sum() - precision.logdet()).item()
print(fit)
print(f"log p(x) minus the gap of independence: {truth:.2f} - {independence_gap:.2f} = {truth - independence_gap:.2f}")

# %% [markdown]
# ## If log p(x) is unknown
#
# In practice there is no dashed line. The ELBO alone does not tell whether it is low because of the story or because of
# the guide. The importance weights do. If $q$ were the posterior they would all be equal; if $q$ has lighter tails than
# the posterior, a few draws get very large weights. **k-hat** is the shape parameter of a generalised Pareto
# distribution fitted to the largest weights. Above 0.7, importance weighting cannot correct the guide with a feasible
# number of draws (Vehtari et al. 2024).

# %%
k_hats = {width: smoothed_weights(drawn)[1].item() for width, (*_, drawn) in table.items()}
k_prior = smoothed_weights(log_weights)[1].item()
k_exact = smoothed_weights(ratios(posterior, 20_000))[1].item()

figure, panels = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
for width, colour in ((0.5, COLOURS[1]), (1.0, COLOURS[0]), (1.5, COLOURS[2])):
    largest = (table[width][2] - truth).sort(descending=True).values[:2000]
    label = f"width {width:g}: k-hat {k_hats[width]:.2f}"
    panels[0].plot(torch.arange(1, 2001), largest, color=colour, label=label)
panels[0].axhline(0, color="0.15", lw=1, ls="--", label="posterior: all equal")
panels[0].set(xscale="log", xlabel="rank of the draw", ylabel="log weight minus log p(x) (nats)")
panels[0].set_title("The largest of 20,000 weights")
panels[0].legend(frameon=False, fontsize="small")
panels[1].plot(widths, [table[width][1] for width in widths], "o-", color=COLOURS[0])
panels[1].set(
    xlabel="width of the guide", ylabel="KL(q || posterior) (nats)", ylim=(0, None), title="What the ELBO measures"
)
panels[2].plot(widths, list(k_hats.values()), "s-", color=COLOURS[1])
panels[2].axhline(0.7, color="0.4", lw=0.8, ls="--", label="0.7")
panels[2].set(xlabel="width of the guide", ylabel="k-hat", title="What the weights measure")
panels[2].legend(frameon=False, fontsize="small")
plt.show()
print({f"width {width:g}": round(k, 2) for width, k in k_hats.items()})
print(f"the prior as guide: {k_prior:.2f}; the posterior itself: {k_exact}")

# %% [markdown]
# The two measure different things. By the ELBO a guide of width 0.75 is about as good as one of width 1.25. By the
# weights the first fails and the second is fine. The gap $\mathrm{KL}(q \,\|\, p)$ is an average
# over draws *from $q$*, and a guide that is too narrow has no draws where it is wrong. k-hat measures the tail. That
# is why `fit.diagnose()` reports both, and why a good ELBO is no certificate.
#
# ## EM maximises the same bound
#
# So far the story's parameters $\theta$ were fixed. The bound depends on both, $F(q, \theta) = \mathbb E_q[\log p(x, z
# \mid \theta)] + H(q)$, and expectation-maximisation is coordinate ascent:
#
# - **E-step**: $\theta$ fixed, the best $q$ is the posterior, and $F$ rises to touch $\log p(x \mid \theta)$;
# - **M-step**: $q$ fixed, the best $\theta$; $F$ rises, and $\log p$ rises at least as much, so a gap opens again.
#
# Here is Old Faithful as a mixture of two Gaussians with the E-step and M-step of `pplgen.exact.em`, from a poor start,
# and $F$ evaluated after each.

# %%
rows = pplgen.load_data("faithful", dtype=torch.float64).values


def bound(responsibilities, theta):
    """F(q, theta) in nats, written out."""
    components = MultivariateNormal(theta.mu, theta.Sigma)
    log_p = theta.weights.log() + components.log_prob(rows[:, None])
    return (responsibilities * (log_p - responsibilities.clamp_min(1e-300).log())).sum().item()


theta = GaussianMixtureParameters(
    torch.tensor([0.5, 0.5]), torch.tensor([[3.0, 65.0], [4.0, 75.0]]), rows.T.cov(correction=0).expand(2, 2, 2)
)
q = torch.full((len(rows), 2), 0.5)
heights, evidence = [bound(q, theta)], [e_step(rows, theta)[1].item()]
for _ in range(16):
    q, log_likelihood = e_step(rows, theta)
    heights.append(bound(q, theta))
    evidence.append(log_likelihood.item())
    theta = m_step(rows, q)
    heights.append(bound(q, theta))
    evidence.append(e_step(rows, theta)[1].item())
heights, evidence = torch.tensor(heights), torch.tensor(evidence)
optimum = em(rows, 2).log_likelihoods[-1].item()

# %%
half_steps = torch.arange(len(heights)) / 2
figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
axes.fill_between(half_steps, heights, evidence, color=COLOURS[1], alpha=0.25, lw=0, label="gap: KL(q || posterior)")
axes.plot(half_steps, evidence, color="0.15", lw=1, label="log p(x | θ)")
axes.plot(half_steps, heights, color=COLOURS[0], marker=".", lw=1.2, label="F(q, θ) after each half step")
axes.axhline(optimum, color="0.4", lw=0.8, ls="--", label=f"best maximum: {optimum:.2f}")
axes.set(xlabel="iteration (an E-step, then an M-step)", ylabel="nats", title="EM: two coordinates of one bound")
axes.set_ylim(bottom=float(heights[1]) - 10)
axes.legend(frameon=False, fontsize="small", loc="lower right")
plt.show()

# %% [markdown]
# Variational inference generalises this in two ways. $q$ need not be the exact posterior, so $F$ no longer touches
# $\log p$; and both coordinates change at once, by stochastic gradients. In return the story may be any program, and
# the gap has to be checked. [When a fit lies](06_when_a_fit_lies.py) is about that.
#
# ## What we claimed

# %%
assert truth - naive[1000].median().item() > 5  # prior draws fail
assert largest_weight > 0.05
assert naive[1000].mean() > naive[100].mean() > naive[10].mean()  # Jensen's bias shrinks with the noise
assert (by_one_draw - truth).abs().max() < 1e-8  # rounding of float64
assert (weighted[10_000] - truth).abs().max() < 0.5
for width, (value, divergence, drawn) in table.items():
    assert abs(value + divergence - truth) < 1e-8, width
    assert value < truth
    assert abs(drawn.mean() - value) < 4 * drawn.std() / len(drawn) ** 0.5  # Monte Carlo error
assert max(table, key=lambda width: table[width][0]) == 1.0
assert abs(elbo(posterior) - truth) < 1e-8
assert abs(gap(guide(1.0)) - independence_gap) < 1e-8
values, errors = zip(*ladder.values(), strict=True)
assert list(values) == sorted(values)
assert all(value < truth + 4 * error for value, error in ladder.values())
assert abs(fit.elbo - (truth - independence_gap)) < 4 * fit.best.elbo_error + 0.1  # 0.1 nats of optimisation noise
assert min(k_hats[0.25], k_hats[0.5], k_hats[0.75]) > 0.65 > 0.6 > max(k_hats[1.25], k_hats[1.5])
assert abs(table[0.75][1] - table[1.25][1]) < 0.2  # nats of gap: the ELBO cannot tell them apart
assert k_prior > 1
assert k_exact == -math.inf
assert (heights.diff() > -1e-9).all()  # F never decreases
assert (heights[1::2] - evidence[1::2]).abs().max() < 1e-8  # an E-step touches the evidence
assert (evidence - heights > -1e-8).all()  # a bound
assert abs(optimum - -1130.26396) < 1e-3  # the maximum, to five decimals
assert abs(evidence[-1].item() - optimum) < 0.01
