# %% [markdown]
# # An autoencoder, then a variational one
#
# Eight by eight grey pixels are 64 numbers, but a handwritten digit is not 64 decisions. Somebody chose a numeral, a
# slant, a pen, and the pixels follow. This tutorial looks for such a short description, a *code*, three times: by a
# line (probabilistic PCA), by a network (an autoencoder), and by a network that says how sure it is (a variational
# autoencoder). Then it uses what was found: it maps digits, completes them, and says which of them are strange. Each
# step is held against something that we know from elsewhere, and where the method disappoints, we say so.
#
# It takes about three minutes on two cores. With `PPLGEN_SMOKE=1` in the environment it takes fewer steps, and half a
# minute.

# %%
import os
import warnings

import matplotlib.pyplot as plt
import numpy as np
import torch
from pplgen.models import PPCA, VAE, Autoencoder
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from scipy.linalg import subspace_angles
from scipy.stats import norm
from sklearn.neighbors import KNeighborsClassifier

import pplgen
from pplgen.estimators import ScoreFunction_ELBO
from pplgen.exact.ppca import ppca
from pplgen.latent_plots import plot_anomalies, plot_inpainting, plot_latent_map, plot_reconstructions
from pplgen.palette import COLOURS

SMOKE = os.environ.get("PPLGEN_SMOKE") == "1"
TRAINING = {
    "batch_size": 128,
    "steps": 400 if SMOKE else 3000,
    "learning_rate": 0.01 if SMOKE else 0.004,
    "progress": False,
    "compile": "graph" if SMOKE else "auto",
}

# %% [markdown]
# ## The pictures
#
# scikit-learn's digits: 1,797 pictures of 8 x 8 pixels, here on a scale from 0 (paper) to 1 (ink). We learn from
# 1,400 and keep 397 aside. What numeral a picture shows is in `digits.target`; no fit below sees it, we only colour
# and score with it. A few pixels at the border are blank in every picture. `fit` warns of such columns, rightly; here
# they may stay, because a picture should keep its shape.

# %%
warnings.filterwarnings("ignore", message="column 'x0' is constant")

digits = pplgen.load_data("digits-unit")
order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
x, x_new = digits.values[order[:1400]], digits.values[order[1400:]]
numeral, numeral_new = digits.target[order[:1400]], digits.target[order[1400:]]
print(f"{len(x)} pictures to learn from, {len(x_new)} kept aside; {x.shape[1]} pixels each")

# %% [markdown]
# ## A line: probabilistic PCA
#
# The oldest story of this kind says that a picture is linear in a code of a few normal numbers, plus noise:
#
# $$
# z_i \sim \mathcal N(0, I_k), \qquad x_i \mid z_i \sim \mathcal N(W z_i + \mu,\ \sigma^2 I).
# $$
#
# Everything about it is known. The code can be integrated out, $x_i \sim \mathcal N(\mu, W W^\top + \sigma^2 I)$; the
# likelihood has its maximum where $W$ spans the first $k$ principal axes (Tipping and Bishop 1999); and the posterior
# of a code is normal, so that our guide can *be* the posterior. The bound is then the log-likelihood itself. So
# before we trust gradient ascent with anything harder, we look whether it gets here what linear algebra gets.

# %%
line = pplgen.fit(PPCA(64, 2), x, learning_rate=0.1, steps=300 if SMOKE else 2000, progress=False)
closed, maximum = ppca(x.double(), 2)

W = line.to_datatree(draws=2, groups=["constant_data"])["constant_data"]["W"].values
angle = np.rad2deg(subspace_angles(W, closed.W.numpy()).max())
print(f"log-likelihood per picture: {line.elbo / len(x):.4f} fitted, {float(maximum) / len(x):.4f} in closed form")
print(f"largest angle between the fitted axes and the principal ones: {angle:.2f} degrees")

# %% [markdown]
# ## A network: the autoencoder
#
# A digit is not linear in anything. An autoencoder puts a network in place of the line, and another in place of the
# posterior: `encoder` turns a picture into a code, `decoder` turns the code into a picture, and both are trained to
# bring back what was put in. Here they have one hidden layer of a hundred units. There is no prior and no posterior:
# a code is a point, wherever it likes to be.

# %%
points = pplgen.fit(Autoencoder(64, 2, hidden=(100,)), x, **TRAINING)


def squared_error(fit):
    """Return the mean squared error per pixel of pictures that were kept aside."""
    return float((fit.reconstruct(x_new) - x_new).square().mean())


print(
    f"squared error of new pictures: {squared_error(line):.4f} by the line, {squared_error(points):.4f} by the network"
)

# %% [markdown]
# The same two numbers now describe a picture much better. But what the network has learned is not a distribution of
# pictures. It never paid for where codes lie, so a code drawn at random may decode to nothing at all, and there is no
# density to compare with another model's.
#
# ## A network that says how sure it is: the variational autoencoder
#
# Take the story of probabilistic PCA and change one thing, the decoder:
#
# $$
# z_i \sim \mathcal N(0, I_k), \qquad x_i \mid z_i \sim \mathcal N(\mathrm{decoder}(z_i),\ \sigma^2 I).
# $$
#
# Now the integral over $z_i$ has no closed form, and neither has the posterior. So the guide has an encoder that puts
# out a mean and a deviation, $q(z_i \mid x_i) = \mathcal N(m(x_i), \mathrm{diag}\, s^2(x_i))$, and what is maximised
# is the bound (Kingma and Welling 2014)
#
# $$
# \log p(x_i) \;\ge\; \mathbb E_q \log p(x_i \mid z_i) \;-\; \mathrm{KL}\big(q(z_i \mid x_i) \,\|\, p(z_i)\big).
# $$
#
# The first term is what an autoencoder does. The second is the price of a code, in nats: how far the guide has to
# move away from the prior in order to say which picture this is.
#
# Is this really the old story with one thing changed? Then with *linear* networks it must come back to PCA. It does,
# and a network with a hidden layer goes further.

# %%
linear = VAE(64, 2, hidden=(), likelihood="normal", noise="shared")
linear = pplgen.fit(linear, x, elbo="analytic", learning_rate=0.05, steps=300 if SMOKE else 2000, progress=False)
curved = pplgen.fit(VAE(64, 2, hidden=(100,), likelihood="normal", noise="shared"), x, elbo="analytic", **TRAINING)

print(f"bound per picture: linear networks {linear.elbo / len(x):.3f}, the exact maximum {float(maximum) / len(x):.3f}")
held_out = {name: fit.log_likelihood(x_new, draws=500) for name, fit in {"pPCA": line, "VAE": curved}.items()}
for name, found in held_out.items():
    print(f"{name}: {found.mean():.2f} nats per new picture ({found.estimator})")

# %% [markdown]
# `log_likelihood` integrates the codes out by importance sampling from the guide, so that both numbers are densities
# of the same pixels and may be compared. (The autoencoder has no such number: it has no density.) Of all that can be
# said for the network, this is the most honest: it gives new pictures a higher density than the best line does.
#
# ## The map of codes
#
# With two numbers to a code, the codes are a map. None of the three has seen a numeral; the colours are ours. Beneath
# each is how often a new picture shows what most of its ten nearest neighbours on the map show.

# %%
fits = {"a line": line, "points": points, "a VAE": curved}
nearest = {}
figure, panels = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
for axes, (name, fit) in zip(panels, fits.items(), strict=True):
    codes, codes_new = fit.encode(x), fit.encode(x_new)
    neighbours = KNeighborsClassifier(10).fit(codes["z"].values, numeral)
    nearest[name] = neighbours.score(codes_new["z"].values, numeral_new)
    plot_latent_map(axes, codes, numeral)
    axes.set_title(f"{name}: neighbours tell {100 * nearest[name]:.0f} % of new pictures")
    if axes is not panels[-1]:
        axes.get_legend().remove()
plt.show()

# %% [markdown]
# What a variational autoencoder adds to the points is a prior that was there during training: codes lie around zero,
# about one wide, and the decoder was trained on codes that jitter. Here are codes at the normal distribution's
# quantiles, from 2 % to 98 % in both directions, and what they decode to. Beside them, codes are drawn for both: the
# autoencoder's from a normal distribution that was laid over its codes afterwards. Neither draws digits alone.
# Between two numerals there is a blend of them, on any plane.


# %%
def mosaic(pictures):
    """Lay pictures out, shape ``(lines, columns, 64)``, with a blank pixel around each."""
    framed = torch.nn.functional.pad(pictures.unflatten(-1, (8, 8)), (1, 1, 1, 1))
    lines, columns = framed.shape[:2]
    return framed.permute(0, 2, 1, 3).reshape(10 * lines, 10 * columns)


def drawn_pictures(fit):
    """Decode codes that are drawn from the story's prior, without the noise of single pixels."""
    with fit.pair.isolated(), torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        z = fit.story.prior().sample((12, 6))
    return fit.decode(z)


steps = torch.tensor(norm.ppf(np.linspace(0.02, 0.98, 12)))
plane = torch.stack(torch.meshgrid(steps, -steps, indexing="xy"), dim=-1)
figure, panels = plt.subplots(1, 3, figsize=(12, 6.6), width_ratios=(2, 1, 1), layout="constrained")
shown = {
    "the VAE's plane, decoded": curved.decode(plane),
    "drawn: autoencoder": drawn_pictures(points),
    "drawn: VAE": drawn_pictures(curved),
}
for axes, (title, pictures) in zip(panels, shown.items(), strict=True):
    axes.imshow(mosaic(pictures).numpy(), cmap="gray_r", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[], title=title)
panels[0].set(xlabel="z[0], from 2 % to 98 %", ylabel="z[1], from 2 % to 98 %")
plt.show()

# %% [markdown]
# ## Three estimators of one gradient
#
# The bound is an expectation over codes, and its gradient is estimated from draws. There are three ways, all
# unbiased:
#
# - **analytic**: differentiate through the draw, with the divergence in closed form (`TraceMeanField_ELBO`);
# - **sampled**: differentiate through the draw, all terms sampled (`Trace_ELBO`);
# - **score function**: $\mathbb E_q\, f(z)\, \nabla \log q(z)$, which does not differentiate through the draw at all,
#   and so needs no decoder that can be differentiated (Williams 1992).
#
# They agree on average. They do not agree in how long one has to average. We take the encoder's gradient at a batch
# of 128 pictures two hundred times with each, before training and after it. These are plain Pyro bounds;
# `fit.pair.isolated()` only hands Pyro the fit's parameters.

# %%
ESTIMATORS = {"analytic": TraceMeanField_ELBO(), "sampled": Trace_ELBO(), "score-function": ScoreFunction_ELBO()}


def encoder_gradients(fit, bound, num_draws):
    """Draw the gradient of the encoder's weights, shape ``(num_draws, num_weights)``."""
    drawn = []
    with fit.pair.isolated(), torch.random.fork_rng():
        torch.manual_seed(0)
        weights = list(fit.story.encoder.body.parameters())
        for _ in range(num_draws):
            loss = bound.differentiable_loss(fit.story.model, fit.story.guide, x[:128])
            drawn.append(torch.cat([part.flatten() for part in torch.autograd.grad(loss, weights)]))
    return torch.stack(drawn).double()


story = VAE(64, 8, hidden=(100,), likelihood="normal", noise="shared")
start = pplgen.fit(story, x, steps=1, progress=False)
trained = pplgen.fit(story, x, elbo="analytic", **TRAINING)
gradients = {
    (when, name): encoder_gradients(fit, bound, 30 if SMOKE else 200)
    for when, fit in {"before training": start, "after training": trained}.items()
    for name, bound in ESTIMATORS.items()
}
variance = {key: float(found.var(0).sum()) for key, found in gradients.items()}
for (when, name), value in variance.items():
    print(f"{when}, {name}: {value / variance[when, 'analytic']:10.1f} times the variance of the analytic one")

# %% [markdown]
# And what is it worth in training? The same story and steps, three times.

# %%
plan = {**TRAINING, "steps": 250 if SMOKE else 1500, "learning_rate": 0.004}
courses = {name: pplgen.fit(story, x, elbo=name, **plan) for name in ESTIMATORS}

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
for offset, when in enumerate(("before training", "after training")):
    heights = [variance[when, name] for name in ESTIMATORS]
    left.bar(np.arange(3) + 0.4 * offset, heights, 0.38, color=COLOURS[offset], label=when)
left.set_xticks(np.arange(3) + 0.2, list(ESTIMATORS))
left.set(yscale="log", ylabel="variance, summed over the encoder's weights", title="The gradient's variance")
left.legend(frameon=False, fontsize="small")
for colour, (name, fit) in zip(COLOURS[2:], courses.items(), strict=False):
    smooth = np.convolve(fit.best.history / len(x), np.ones(50) / 50, mode="valid")
    right.plot(np.arange(len(smooth)) + 50, smooth, color=colour, label=name)
right.set(xlabel="step", ylabel="bound (nats per picture), mean of 50", title="What it does to training")
right.set_ylim(bottom=-40)
right.legend(frameon=False, fontsize="small")
plt.show()

# %% [markdown]
# The score function is the estimator that always works and the last one to take. The other two train alike here: the
# analytic divergence saves much variance at the start, where the guide is wide, and little once codes are sharp;
# there the noise comes from the reconstruction, which both sample. A story of ours takes `"sampled"` unless told
# otherwise, because that one asks nothing of the guide's family.
#
# ## How many entries, and collapse
#
# How long should a code be? Twenty entries are more than these pictures need, and the price term notices: an entry
# whose information is worth less than it costs is left at the prior, $q(z_j \mid x) = p(z_j)$, and its price falls to
# nothing. That is called posterior collapse. An entry counts as active where its mean varies over pictures by more
# than a hundredth of the prior's variance (Burda et al. 2016); `fit.diagnose()` has a check of that name.
#
# There are remedies. `warm_up` brings the price in slowly, over half of the steps; `free_bits=0.5` makes the first
# half nat of each entry free. We use them on the grey pictures, and on the same pictures in black and white, with a
# Bernoulli likelihood. Do they help?

# %%
black_white = pplgen.binarise(digits, threshold=0.5).values
ink, ink_new = black_white[order[:1400]], black_white[order[1400:]]
remedies = {"none": {}, "warm-up": {"warm_up": TRAINING["steps"] // 2}, "free bits": {"free_bits": 0.5}}
if SMOKE:
    del remedies["warm-up"]


def price(fit, rows):
    """Return the mean divergence of each entry of the codes from the prior, in nats, the largest first."""
    codes = fit.encode(rows)
    m, s = codes["z"].values, codes["z_sd"].values
    return np.sort((0.5 * (m**2 + s**2 - 1) - np.log(s)).mean(0))[::-1]


long_codes, active, density = {}, {}, {}
figure, panels = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
kinds = (("grey", x, x_new, "normal"), ("black and white", ink, ink_new, "bernoulli"))
for axes, (kind, rows, rows_new, likelihood) in zip(panels, kinds, strict=True):
    for place, (remedy, options) in enumerate(remedies.items()):
        story = VAE(64, 20, hidden=(100,), likelihood=likelihood, noise="shared")
        key = kind, remedy
        long_codes[key] = pplgen.fit(story, rows, elbo="analytic", **TRAINING, **options)
        active[key] = int((long_codes[key].encode(rows)["z"].values.var(0) > 0.01).sum())
        density[key] = float(long_codes[key].log_likelihood(rows_new, draws=200).mean())
        label = f"{remedy}: {active[key]} active, {density[key]:.1f} nats"
        axes.bar(
            np.arange(20) + 0.28 * place, price(long_codes[key], rows_new), 0.26, color=COLOURS[place], label=label
        )
    axes.set(xlabel="entry of the code, the dearest first", ylabel="nats per picture", title=kind, xticks=[])
    axes.legend(frameon=False, fontsize="small", title="remedy: entries, density of new pictures")
plt.show()

# %% [markdown]
# On grey pictures free bits pay: with every entry in use, new pictures get a higher density. On black and white ones
# the same remedy brings all twenty entries to "active" and makes the model *worse*: the entries that had collapsed
# were not needed, and now each is bought for the half nat that it may cost. Collapse is a fault only where codes say
# less than they should. Judge it by the density of new pictures, not by the count of active entries.
#
# ## Inpainting
#
# A generative story can be asked for any part of a picture given the rest. Missing entries are NaN; `impute` draws
# them by weighing codes from the guide by how well they explain what is left. The encoder must have seen pictures
# with gaps for its guesses to be of use, so we train on each picture twice, once whole and once with either its upper
# or its lower half removed. Probabilistic PCA with as many entries is the rival to beat: its answer is exact, the
# conditional normal.

# %%
upper = pplgen.mask_top(x_new, 0.5).values
lower = torch.where(pplgen.mask_top(x, 0.5).values.isnan(), x, torch.nan)
either = torch.where((torch.arange(len(x)) % 2 == 0)[:, None], pplgen.mask_top(x, 0.5).values, lower)
both = torch.cat([x, either])

completer = VAE(64, 12, hidden=(100,), likelihood="normal", noise="shared")
completer = pplgen.fit(completer, both, elbo="analytic", **{**TRAINING, "steps": 2 * TRAINING["steps"]})
rival = pplgen.fit(PPCA(64, 12), x, learning_rate=0.1, steps=300 if SMOKE else 2000, progress=False)

gone = upper.isnan()
completed = {"the mean picture": x.mean(0).expand(len(upper), -1)}
completed["pPCA"] = rival.impute(upper, draws=50).mean(0)
drawn = completer.impute(upper, draws=50)
completed["VAE"] = drawn.mean(0)
missed = {name: float((filled - x_new)[gone].square().mean()) for name, filled in completed.items()}
for name, value in missed.items():
    print(f"squared error of a missing pixel, {name}: {value:.4f}")

figure, axes = plt.subplots(figsize=(8, 7.8), layout="constrained")
first = [int((numeral_new == k).nonzero()[0, 0]) for k in range(10)]
plot_inpainting(axes, x_new[first], upper[first], drawn[:, first], num=10)
plt.show()

# %% [markdown]
# Draws differ where the lower half leaves the numeral open, and agree where it does not: that is what one wants of
# them. A single "best" completion would be the blur of all of these. (Each draw has the noise of its pixels too; that
# is the speckle.)
#
# ## Strange pictures
#
# The density of a picture should tell whether it is like those that were learned. We hide one numeral from the fit
# and ask for it afterwards. `anomaly` scores by minus the log density, and sets its threshold by normal pictures that
# the fit has not seen, so that a normal picture is flagged with at most the probability that we ask for, here 5 %.
# That guarantee holds whatever the model is worth. What is *caught* is up to the model.

# %%
caught, false_alarms = {}, {}
figure, panels = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
for axes, hidden in zip(panels, (4, 1), strict=True):
    story = VAE(64, 8, hidden=(100,), likelihood="normal", noise="shared")
    watcher = pplgen.fit(story, x[numeral != hidden], elbo="analytic", **TRAINING)
    normal = x_new[numeral_new != hidden]
    threshold_by, others = normal[: len(normal) // 2], normal[len(normal) // 2 :]
    strange = digits.values[digits.target == hidden]
    found = watcher.anomaly(strange, held_out=threshold_by, rate=0.05)
    caught[hidden] = float(found["flagged"].mean())
    false_alarms[hidden] = float(watcher.anomaly(others, held_out=threshold_by, rate=0.05)["flagged"].mean())
    plot_anomalies(axes, found)
    axes.set(title=f"{hidden} was never seen: {100 * caught[hidden]:.0f} % of them caught", xlim=(-70, 150))
    print(f"{hidden}: {100 * caught[hidden]:.0f} % caught; {100 * false_alarms[hidden]:.1f} % of normal ones flagged")
plt.show()

# %% [markdown]
# Fours are caught; ones mostly pass. A one is a plain stroke, and the model that knows the others knows strokes. And
# there is worse. What does the model think of the *mean* of all pictures, a grey smear that nobody would call a
# digit?

# %%
smear = watcher.anomaly(x.mean(0, keepdim=True), held_out=threshold_by, rate=0.05)
above = float((found["normal_score"] > float(smear["score"][0])).mean())
print(f"the smear is more 'normal' than {100 * above:.0f} % of real pictures")

figure, axes = plt.subplots(figsize=(7, 2.4), layout="constrained")
shown = torch.cat([x.mean(0, keepdim=True), threshold_by[:7]])
plot_reconstructions(axes, shown, watcher.reconstruct(shown), num=8)
axes.set_title("The smear, seven real digits, and what the model makes of them")
plt.show()

# %% [markdown]
# It passes for a normal picture, and for one that is likelier than a good part of the real ones. A density is high
# where pictures are *simple*, not where they are typical (Nalisnick et al. 2019). No tuning of the threshold mends
# that. Use `anomaly` for the guarantee on false alarms, and look at examples of what you hope to catch before you
# rely on catching it.
#
# ## What we claimed
#
# The claims that carry the argument are asserted here. Where the short mode gets less far, its tolerance is wider.

# %%
assert abs(line.elbo - float(maximum)) / len(x) < (0.01 if SMOKE else 0.001)  # nats per picture
assert angle < (2 if SMOKE else 0.5)  # degrees
assert squared_error(points) < 0.8 * squared_error(line)
assert abs(linear.elbo - float(maximum)) / len(x) < (0.5 if SMOKE else 0.1)
assert held_out["VAE"].mean() > held_out["pPCA"].mean() + 5
assert min(nearest["points"], nearest["a VAE"]) > nearest["a line"] + 0.05

for when in ("before training", "after training"):
    assert variance[when, "analytic"] < variance[when, "sampled"] < variance[when, "score-function"] / 30
    means = {name: gradients[when, name].mean(0) for name in ("analytic", "sampled")}
    apart = float((means["analytic"] - means["sampled"]).square().sum())
    # of equal expectations, means of S draws are apart by a random sum whose expectation is this
    expected = (variance[when, "analytic"] + variance[when, "sampled"]) / len(gradients[when, "analytic"])
    assert apart < 3 * expected
assert variance["before training", "sampled"] > 2 * variance["before training", "analytic"]
assert variance["after training", "sampled"] < 2 * variance["after training", "analytic"]
assert courses["score-function"].elbo < courses["sampled"].elbo - 5 * len(x)
assert abs(courses["analytic"].elbo - courses["sampled"].elbo) < 2 * len(x)

assert active["grey", "free bits"] == active["black and white", "free bits"] == 20
if not SMOKE:  # the short run is too short to tell which entries collapse, and what that costs
    assert active["grey", "none"] < 20
    assert active["black and white", "none"] < 16
    assert density["grey", "free bits"] > density["grey", "none"] + 1
assert density["black and white", "free bits"] < density["black and white", "none"] - 0.2

assert missed["VAE"] < missed["pPCA"] < missed["the mean picture"]
assert max(false_alarms.values()) < 0.05 + 4 * (0.05 / 170 + 0.05 / 180) ** 0.5  # four errors, of both halves
assert caught[4] > 0.8 > 0.6 > caught[1]
assert not smear["flagged"].any()
assert above > 0.25
