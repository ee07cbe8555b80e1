"""Autoencoders of the fixed binarisation of MNIST, 784-400-40 ReLU: test likelihood with 200 importance samples.

The published result with a standard normal prior is 89.9 nats; a learned mixture and a VampPrior are compared with it.
Training uses the 50,000 training and 10,000 validation images; no hyperparameter is selected on them::

    python benchmarks/mnist_vae.py --prior normal --guide flow --particles 5 --threads 1
    python benchmarks/mnist_vae.py --prior mixture --guide flow --particles 5 --threads 1 --steps 85000

With several particles the objective is the importance-weighted bound (Burda et al. 2016). A guide with two
autoregressive transforms is 6 % slower per step than the normal one, and some five nats better after 600 steps.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from binarised_mnist import load_binarised, why_absent
from harness import report
from pplgen.models import VAE
from pplgen.models._guides.latent_families import PRIORS, REAL

import pplgen
from pplgen.data.table import Table
from pplgen.inference.training_result import Progress

WARM_UP, SAMPLES = 10_000, 200
LAST_RATE = 0.03
"""Learning rate of the last step, relative to that of the first."""
COMPONENTS = 500
"""Number of components of a mixture or VampPrior."""

ROWS, PROGRESS_EVERY = 60_000, 5_000
"""Number of training images, and steps between two progress lines."""


def joined(*splits: str) -> Table:
    """Return the images of several splits as one table."""
    tables = [load_binarised(split) for split in splits]
    values = torch.cat([table.values for table in tables])
    return Table(values, tables[0].columns, f"binarised-mnist-{'-'.join(splits)}")


def print_progress(at: Progress) -> None:
    """Print the ELBO and the speed of a fit."""
    if at.step % PROGRESS_EVERY == 0:
        print(f"step {at.step:,}: {at.elbo / ROWS:.2f} nats per row, {at.steps_per_second:.0f} steps/s", flush=True)


def main() -> None:
    """Fit with each prior."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prior", choices=PRIORS, nargs="+", default=PRIORS)
    parser.add_argument("--guide", choices=REAL, default="normal")
    parser.add_argument("--hidden", type=int, nargs="+", default=[400])
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--particles", type=int, default=1)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    if reason := why_absent():
        print(f"skipped: {reason}")
        return
    torch.set_num_threads(options.threads)
    train, test = joined("train", "valid"), load_binarised("test")
    rows, figures = {}, {}
    for prior in options.prior:
        if options.particles > 1:
            bound: dict[str, Any] = {"elbo": "importance", "num_particles": options.particles}
        else:
            bound = {"elbo": "analytic" if prior == "normal" else "sampled", "warm_up": WARM_UP}
        started, spent = time.perf_counter(), time.process_time()
        fit = pplgen.fit(
            VAE(784, 40, hidden=options.hidden, guide=options.guide, prior=prior, num_components=COMPONENTS),
            train,
            steps=options.steps,
            learning_rate=options.rate,
            decay=LAST_RATE ** (1 / options.steps),
            patience=options.steps,
            batch_size=options.batch,
            compile="inductor",
            progress=print_progress,
            **bound,
        )
        minutes, cpu = (time.perf_counter() - started) / 60, (time.process_time() - spent) / 60
        nats = fit.log_likelihood(test, draws=SAMPLES)
        num_steps = len(fit.best.history)
        figures[prior] = {"nll": -float(nats.mean()), "bound": fit.elbo / len(train), "minutes": minutes, "cpu": cpu}
        rows[prior] = (
            f"{-float(nats.mean()):.2f}",
            f"{float(nats.std()) / len(test) ** 0.5:.2f}",
            f"{fit.elbo / len(train):.2f}",
            f"{num_steps:,}",
            f"{minutes:.0f}",
            f"{cpu:.0f}",
        )
    headings = ("test NLL, 200 samples", "standard error", "ELBO per training row")
    headings = (*headings, "steps", "minutes of training", "CPU minutes")
    sizes = "-".join(map(str, (784, *options.hidden, 40)))
    how = f"{options.guide} guide, {options.particles} particle{'s' * (options.particles > 1)}"
    report(f"Fixed binarisation of MNIST, {sizes}, {how}, {' and '.join(options.prior)}", headings, rows, figures)


if __name__ == "__main__":
    main()
