"""A whole fit beside scikit-learn's EM with ten starts: N = 100,000 rows, D = 16, K = 10, separated and overlapping.

Wall time of everything, tracing and compiling included, and held-out log density per row in nats.
"""

from __future__ import annotations

import time

import torch
from harness import report
from pplgen.models import GaussianMixture
from sklearn import mixture

import pplgen

N, D, K = 100_000, 16, 10


def rows(distance: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw training and held-out rows of K components, their centres ``distance`` deviations apart."""
    generator = torch.Generator().manual_seed(0)
    centres = distance * torch.randn(K, D, generator=generator) / 2**0.5
    factors = torch.randn(K, D, D, generator=generator) / D**0.5 + 0.5 * torch.eye(D)
    z = torch.randint(K, (2 * N,), generator=generator)
    noise = torch.randn(2 * N, D, 1, generator=generator)
    x = centres[z] + (factors[z] @ noise).squeeze(-1)
    return x[:N], x[N:]


def main() -> None:
    """Run both data sets."""
    for name, distance in (("well separated", 4.0), ("overlapping", 0.8)):
        x, held_out = rows(distance)
        results = {}
        started = time.perf_counter()
        theirs = mixture.GaussianMixture(K, n_init=10, random_state=0).fit(x.numpy())
        elapsed = time.perf_counter() - started
        results["scikit-learn, ten starts"] = (elapsed, float(theirs.score(held_out.numpy())))
        started = time.perf_counter()
        fit = pplgen.fit(GaussianMixture(K, D), x, batch_size=1000, restarts=4, steps=3000, progress=False)
        elapsed = time.perf_counter() - started
        results["pplgen, minibatches of 1,000, four restarts"] = (
            elapsed,
            fit.log_likelihood(held_out, draws=20).mean().item(),
        )
        report(
            f"Fit of a mixture, {name}, N = 100,000, D = 16, K = 10",
            ("seconds", "held-out nats per row"),
            {contender: (f"{seconds:.1f}", f"{nats:.4f}") for contender, (seconds, nats) in results.items()},
            results,
        )


if __name__ == "__main__":
    main()
