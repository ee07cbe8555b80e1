# %% [markdown]
# # A handful of labels
#
# Images are cheap, labels are not. Suppose that of 1,400 handwritten digits thirty are labelled, three of each numeral.
# A classifier can be trained on thirty images. But the other 1,370 also carry information about the variation of each
# numeral. The *semi-supervised* variational autoencoder (M2 of Kingma et al. 2014) learns from both. This tutorial
# compares it with classifiers trained on the labelled images only, with few labels and with many, and ends with a task
# for which it is unsuitable.
#
# It takes about four minutes on two cores. With `PPLGEN_SMOKE=1` in the environment it takes fewer steps, and half a
# minute.

# %%
import os
import warnings

import matplotlib.pyplot as plt
import numpy as np
import torch
from pplgen.models import SemiSupervisedVAE
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

import pplgen
from pplgen.plots.palette import COLOURS

SMOKE = os.environ.get("PPLGEN_SMOKE") == "1"
PER_CLASS = (3, 100) if SMOKE else (1, 3, 5, 10, 30, 100)
SPLITS = 1 if SMOKE else 2
TRAINING = {
    "batch_size": 64,
    "steps": 400 if SMOKE else 1200,
    "learning_rate": 0.01 if SMOKE else 0.005,
    "progress": False,
    "compile": "graph" if SMOKE else "auto",
}

warnings.filterwarnings("ignore", message="column 'x0' is constant")  # blank pixels at the border may stay

# %% [markdown]
# ## The story
#
# An image has a class $y$, the numeral, and latent variables $z$ for everything else: slant, width, pen. The class is
# observed for some images and latent for the others:
#
# $$
# y_i \sim \mathrm{Categorical}(1/10), \qquad z_i \sim \mathcal N(0, I), \qquad
# x_i \mid y_i, z_i \sim \mathrm{Bernoulli}\big(\mathrm{decoder}(z_i, y_i)\big).
# $$
#
# The guide is a classifier and an encoder, $q(y \mid x)\, q(z \mid x, y)$. The ELBO of a labelled image is
# $\mathcal L(x, y)$. For an unlabelled image the class is summed out exactly:
#
# $$
# \mathcal U(x) = \sum_y q(y \mid x)\big(\mathcal L(x, y) - \log q(y \mid x)\big).
# $$
#
# This bound does not train the classifier on labelled images. So the story adds $\alpha \log q(y \mid x)$ for these,
# weighted by `classification`. All of it is in `pplgen.models.SemiSupervisedVAE`, a Pyro pair of two dozen
# lines.
#
# ## Three labels per class
#
# `labels` holds a number for each row, -1 if unknown. Four hundred images are held out for scoring.

# %%
digits = pplgen.load_data("digits-unit")
order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
x, x_new = digits.values[order[:1400]], digits.values[order[1400:]]
y, y_new = digits.target[order[:1400]], digits.target[order[1400:]]


def keep_labels(y, per_class, seed):
    """Keep the labels of ``per_class`` random rows of each class, -1 for the others."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.full_like(y, -1)
    for k in y.unique():
        rows = (y == k).nonzero()[:, 0]
        chosen = rows[torch.randperm(len(rows), generator=generator)[:per_class]]
        labels[chosen] = k
    return labels


def fit_with(labels, num_classes=10, seed=0):
    """Fit the story to all images, some of them labelled."""
    story = SemiSupervisedVAE(64, 8, num_classes=num_classes, hidden=(64,), classification=1.0)
    return pplgen.fit(story, x, labels=labels, seed=seed, **TRAINING)


def probabilities(fit, rows):
    """Return the probability of each class, shape ``(num_rows, num_classes)``."""
    return fit.latents(rows, draws=2)["y"].values


def accuracies(fit, labels, y_new):
    """Return held-out accuracies of the fit, and of two classifiers trained on the labelled images only."""
    known = labels >= 0
    alone = {"logistic regression": LogisticRegression(max_iter=2000), "support vectors": SVC(C=10)}
    scores = {name: each.fit(x[known], labels[known]).score(x_new, y_new) for name, each in alone.items()}
    return {**scores, "M2": float((probabilities(fit, x_new).argmax(-1) == y_new.numpy()).mean())}


labels = keep_labels(y, 3, seed=0)
few = fit_with(labels)
by_three = accuracies(few, labels, y_new)
print(f"{int((labels >= 0).sum())} labels of {len(labels)} images; accuracy on {len(x_new)} new ones:")
for name, score in by_three.items():
    print(f"  {name}: {100 * score:.1f} %")

figure, axes = plt.subplots(3, 10, figsize=(8, 2.7), layout="constrained")
for k, column in enumerate(axes.T):
    for cell, picture in zip(column, x[labels == k], strict=True):
        cell.imshow(picture.reshape(8, 8).numpy(), cmap="gray_r", vmin=0, vmax=1)
        cell.set(xticks=[], yticks=[])
figure.suptitle("All labelled images")
plt.show()

# %% [markdown]
# The classifiers and the story had the same thirty labels. The story also had the unlabelled images, and an assumption:
# that images which differ only by slant and pen come from one class.
#
# ## Class and latent variables
#
# That assumption can be checked. Encode an image, keep its latent variables, and decode them with each class in turn:
# if class and style are disentangled, the result is ten numerals in the same style.

# %%
shown = torch.tensor([int((y_new == k).nonzero()[i, 0]) for k, i in ((0, 1), (4, 2), (7, 5), (3, 9), (6, 3))])
codes = torch.from_numpy(few.encode(x_new[shown])["z"].values)
written = few.decode(torch.cat([codes[:, None].expand(-1, 10, -1), torch.eye(10).expand(len(shown), -1, -1)], -1))

figure, axes = plt.subplots(len(shown), 11, figsize=(8, 3.8), layout="constrained")
for line, picture, decoded in zip(axes, x_new[shown], written, strict=True):
    for cell, content in zip(line, (picture, *decoded), strict=True):
        cell.imshow(np.asarray(content).reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
        cell.set(xticks=[], yticks=[])
for cell, title in zip(axes[0], ("image", *map(str, range(10))), strict=True):
    cell.set_title(title, fontsize="small")
figure.suptitle("Latent variables of the left image, decoded with each class")
plt.show()

classes = torch.eye(10)[probabilities(few, x_new).argmax(-1)]
without = few.decode(torch.cat([torch.zeros(len(x_new), 8), classes], -1))
error_without, error_with = (float((decoded - x_new).square().mean()) for decoded in (without, few.reconstruct(x_new)))
print(f"squared error of a pixel: {error_without:.4f} by the class alone, {error_with:.4f} by class and latents")

# %% [markdown]
# The class determines most of an image. The latent variables add slant, width and ink.

# %% [markdown]
# ## Is it calibrated?
#
# The class is a latent variable with a posterior, so each prediction has a probability. If it is calibrated, 90 % of
# the predictions with probability 0.9 are correct.

# %%
certainty = probabilities(few, x_new).max(-1)
right = probabilities(few, x_new).argmax(-1) == y_new.numpy()
known_rows = probabilities(few, None)[(labels >= 0).numpy()]
print(f"mean confidence {certainty.mean():.3f}, accuracy {right.mean():.3f}")
print(
    f"accuracy of the more confident half: {right[certainty >= np.median(certainty)].mean():.3f}; the other: ", end=""
)
print(f"{right[certainty < np.median(certainty)].mean():.3f}")

edges = {"under 70 %": 0.7, "to 90 %": 0.9, "to 97 %": 0.97, "to 99 %": 0.99, "to 99.9 %": 0.999, "above": 1.01}
place = np.digitize(certainty, list(edges.values()))
figure, axes = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
for b in np.unique(place):
    accuracy, count = right[place == b].mean(), (place == b).sum()
    error = 2 * np.sqrt(accuracy * (1 - accuracy) / count)
    axes.errorbar(b, accuracy, error, fmt="o", color=COLOURS[0], label="accuracy, 2 s.e." if b == 5 else None)
    axes.plot(
        b,
        certainty[place == b].mean(),
        "_",
        color=COLOURS[1],
        ms=18,
        mew=2,
        label="mean confidence" if b == 5 else None,
    )
axes.set_xticks(range(6), [f"{name}\n{(place == b).sum()} images" for b, name in enumerate(edges)], fontsize="x-small")
axes.set(xlabel="confidence", ylabel="accuracy", title="Calibration of the classifier")
axes.legend(frameon=False, fontsize="small", loc="lower right")
plt.show()

# %% [markdown]
# It is overconfident. So is any network classifier trained on thirty labels, and summing out the class does not correct
# that. The *ranking* is good, though: the more confident half has a fraction of the other half's errors. So use the
# probabilities for active learning, and not as calibrated probabilities.
#
# ## When it helps, and when it does not
#
# Now with more labels, for several random subsets.

# %%
curve = {}
for per_class in PER_CLASS:
    scores = []
    for seed in range(SPLITS):
        chosen = keep_labels(y, per_class, seed)
        refit = few if (per_class, seed) == (3, 0) else fit_with(chosen, seed=seed)
        scores.append(accuracies(refit, chosen, y_new))
    curve[per_class] = {name: np.mean([each[name] for each in scores]) for name in scores[0]}
    print(f"{per_class:3d} per class: " + ", ".join(f"{name} {100 * v:.1f} %" for name, v in curve[per_class].items()))

figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
for colour, name in zip((COLOURS[1], COLOURS[2], COLOURS[0]), by_three, strict=True):
    axes.plot(PER_CLASS, [100 * (1 - curve[n][name]) for n in PER_CLASS], "o-", color=colour, label=name)
axes.set(xscale="log", xlabel="labels per class", ylabel="error rate on new images (%)", ylim=(0, None))
axes.set_xticks(PER_CLASS, [str(n) for n in PER_CLASS], minor=False)
axes.minorticks_off()
axes.set_title("The value of unlabelled images")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# With one or three labels per class, unlabelled images avoid up to half of the errors. With five the gain is small.
# From ten on there is no gain, and a support vector machine, a purely discriminative model, is as good and then better:
# a generative story uses its capacity for the distribution of images. (The short run shows only three and a hundred.)
#
# ## An unsuitable task
#
# The story assumes that images cluster by class. Predict instead whether the numeral is **even or odd**, with fifteen
# labels of each. There are two classes, and still 1,370 unlabelled images. But even numerals do not form a cluster: a
# zero and an eight are no more similar than a zero and a nine.

# %%
parity, parity_new = y % 2, y_new % 2
parity_labels = keep_labels(parity, 15, seed=0)
odd = fit_with(parity_labels, num_classes=2)
by_parity = accuracies(odd, parity_labels, parity_new)
through_numerals = float(((probabilities(few, x_new).argmax(-1) % 2) == parity_new.numpy()).mean())
for name, score in by_parity.items():
    print(f"{name}: {100 * score:.1f} %")
print(f"the fit to numerals above, parity of its prediction: {100 * through_numerals:.1f} %")

# %% [markdown]
# There is no gain. The unlabelled images favour the split that decodes best, which is not parity. A larger network does
# not help, since the assumption is wrong and not the fit. Classes that do form clusters help: thirty labels of
# *numerals* predict parity far better than thirty labels of parity do.
#
# So before you rely on unlabelled rows, hold out some labelled rows, and check that a classifier trained on the labels
# alone is worse.
#
# ## What we claimed
#
# The main claims are asserted here.

# %%
rivals = ("logistic regression", "support vectors")
assert by_three["M2"] > max(by_three[name] for name in rivals) + 0.03  # a standard error is 1.6 % of 397
for per_class in () if SMOKE else (10, 30):
    assert curve[per_class]["M2"] < curve[per_class]["support vectors"] + 0.02
assert SMOKE or curve[1]["M2"] > max(curve[1][name] for name in rivals) + 0.03
assert curve[100]["M2"] < curve[100]["support vectors"] + 0.01
assert (known_rows.max(-1) == 1).all()  # labelled rows have probability one
assert error_with < 0.95 * error_without
assert certainty.mean() > right.mean() + 0.02
assert right[certainty >= np.median(certainty)].mean() > right[certainty < np.median(certainty)].mean() + 0.05
assert by_parity["M2"] < max(by_parity[name] for name in rivals) + 0.03
assert through_numerals > max(by_parity.values()) + 0.05
