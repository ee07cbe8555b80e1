"""Autoencoders of the fixed binarisation of MNIST, 784-400-40 ReLU: test likelihood with 200 importance samples.

Under a standard normal prior the published figure is 89.9 nats; a learned mixture and a VampPrior come beside it::

    python benchmarks/mnist_vae.py --prior normal vamp
"""

from __future__ import annotations

import argparse
import time

from binarised_mnist import load_binarised, why_absent
from harness import report
from pplgen.models import VAE
from pplgen.models._codes import PRIORS

import pplgen

BATCH, WARM_UP, CODES = 128, 10_000, 200
LAST_RATE = 0.03
"""Learning rate of the last step, relative to that of the first."""
COMPONENTS = 500
"""Of a mixture or VampPrior."""


def main() -> None:
    """Fit with each prior."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prior", choices=PRIORS, nargs="+", default=PRIORS)
    parser.add_argument("--hidden", type=int, nargs="+", default=[400])
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--rate", type=float, default=2e-3)
    options = parser.parse_args()
    if reason := why_absent():
        print(f"skipped: {reason}")
        return
    train, test = load_binarised("train"), load_binarised("test")
    rows, figures = {}, {}
    for prior in options.prior:
        started = time.perf_counter()
        fit = pplgen.fit(
            VAE(784, 40, hidden=options.hidden, prior=prior, num_components=COMPONENTS),
            train,
            steps=options.steps,
            learning_rate=options.rate,
            decay=LAST_RATE ** (1 / options.steps),
            patience=options.steps,
            batch_size=BATCH,
            warm_up=WARM_UP,
            elbo="analytic" if prior == "normal" else "sampled",
            compile="inductor",
        )
        minutes = (time.perf_counter() - started) / 60
        nats = fit.log_likelihood(test, draws=CODES)
        taken = len(fit.best.history)
        figures[prior] = {"nll": -float(nats.mean()), "elbo": fit.elbo / len(train), "steps": taken, "minutes": minutes}
        rows[prior] = (
            f"{-float(nats.mean()):.2f}",
            f"{float(nats.std()) / len(test) ** 0.5:.2f}",
            f"{fit.elbo / len(train):.2f}",
            f"{taken:,}",
            f"{minutes:.0f}",
        )
    headings = ("test NLL, 200 samples", "standard error", "ELBO a training row", "steps", "minutes of training")
    sizes = "-".join(map(str, (784, *options.hidden, 40)))
    report(f"Fixed binarisation of MNIST, {sizes}, by prior", headings, rows, figures)


if __name__ == "__main__":
    main()
