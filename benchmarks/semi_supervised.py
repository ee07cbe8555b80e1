"""Digits of MNIST from few labels: test error of the semi-supervised autoencoder, over splits.

A split keeps the labels of an equal number of rows of each class among the first 50,000 training images. ``m2`` is
``SemiSupervisedVAE`` on pixels; ``m1+m2`` the same on the active latent dimensions of a ``VAE`` fitted to all images.
Kingma et al. (2014) report 11.97 % and 3.33 % at 100 labels. Logistic regression on the labels alone, with the same
features, is the baseline::

    python benchmarks/semi_supervised.py --model m1+m2 --labels 100 1000
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from harness import report
from pplgen.models import VAE, SemiSupervisedVAE
from sklearn.linear_model import LogisticRegression
from torch import Tensor

import pplgen

MNIST = Path(__file__).parents[2] / "shared" / "data" / "mnist"
BLOCK = 10_000
"""Number of rows classified at once."""
ACTIVE = 0.05
"""Minimum variance over rows of the mean of an active latent dimension."""


def images(name: str, folder: Path) -> tuple[Tensor, Tensor]:
    """Read images as rows of pixels from 0 to 1, and their digits, from the folder of the four files."""
    table = pplgen.load_data(name, cache=folder.parent, dtype=torch.float32)
    return table.values, table.target


def split(y: Tensor, num_labels: int, seed: int) -> Tensor:
    """Keep the labels of an equal number of rows of each class; -1 for the others."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.full_like(y, -1)
    for k in range(10):
        rows = (y == k).nonzero()[:, 0]
        labels[rows[torch.randperm(len(rows), generator=generator)[: num_labels // 10]]] = k
    return labels


def error(fit: pplgen.Fit, x: Tensor, y: Tensor) -> float:
    """Percentage of misclassified rows."""
    predicted = [fit.latents(block, draws=2)["y"].values.argmax(-1) for block in x.split(BLOCK)]
    return 100 * float((np.concatenate(predicted) != y.numpy()).mean())


def features(x: Tensor, test: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Fit a VAE to the rows (M1), and return the means of its active latent dimensions."""
    story = VAE(784, 50, hidden=(500,))
    fit = pplgen.fit(story, x, steps=steps, batch_size=100, learning_rate=1e-3, progress=False)
    train_means, test_means = (torch.from_numpy(fit.encode(rows)["z"].values) for rows in (x, test))
    active = train_means.var(0) > ACTIVE
    print(
        f"M1: {fit.elbo / len(x):.2f} nats per row, {int(active.sum())} active dimensions; {fit.stop.value}",
        flush=True,
    )
    return train_means[:, active], test_means[:, active]


def main() -> None:
    """Fit every split."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=("m2", "m1+m2"), default="m1+m2")
    parser.add_argument("--labels", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--steps", type=int, default=10_000, help="steps per split")
    parser.add_argument("--first-steps", type=int, default=20_000, help="steps of M1")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--data", type=Path, default=MNIST)
    options = parser.parse_args()
    if not options.data.is_dir():
        print(f"skipped: MNIST is not in {options.data}")
        return
    (x, y), (test, digits) = (images(name, options.data) for name in ("mnist", "mnist-test"))
    x, y = x[: options.rows], y[: options.rows]
    started = time.perf_counter()
    if options.model == "m2":
        story = SemiSupervisedVAE(784, 50, hidden=(500,), classification=1.0)
    else:
        x, test = features(x, test, options.first_steps)
        story = SemiSupervisedVAE(
            x.shape[1], 10, hidden=(300,), likelihood="normal", noise="shared", classification=1.0
        )
    first = time.perf_counter() - started
    rows, figures = {}, {}
    for num_labels in options.labels:
        errors, alone, seconds = [], [], []
        for seed in range(options.splits):
            started = time.perf_counter()
            labels = split(y, num_labels, seed)
            known = labels >= 0
            regression = LogisticRegression(max_iter=2000, C=0.1).fit(x[known], labels[known])
            alone.append(100 * float((regression.predict(test) != digits.numpy()).mean()))
            plan = {"steps": options.steps, "batch_size": 100, "learning_rate": options.rate}
            fit = pplgen.fit(story, x, labels=labels, seed=seed, progress=False, **plan)
            errors.append(error(fit, test, digits))
            seconds.append(time.perf_counter() - started)
            print(f"{num_labels} labels, split {seed}: {errors[-1]:.2f} % ({fit.path}; {fit.stop.value})", flush=True)
        each = ", ".join(f"{value:.2f}" for value in errors)
        name = f"{options.model}, {num_labels} labels"
        rows[name] = f"{fmean(errors):.2f}", each, f"{fmean(alone):.2f}", f"{fmean(seconds):.0f}"
        figures[name] = {"errors": errors, "regression": alone, "seconds": seconds}
    columns = "mean error, %", "splits", "logistic regression on the labels alone, %", "seconds per split"
    note = f"{len(x)} rows, {options.steps} steps; M1, fitted once for all splits, took {first:.0f} s"
    title = f"MNIST from few labels, {options.model}"
    report(title, columns, rows, figures, note=note if options.model == "m1+m2" else note.partition(";")[0])


if __name__ == "__main__":
    main()
