"""A whole fit compared with scikit-learn's EM: N = 100,000 rows, D = 16, K = 10, separated and overlapping.

Medians of three turns with different seeds: wall time of the whole fit, including tracing, and held-out log density
per row in nats. Both libraries fit Old Faithful before, so that loading is not timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from harness import report
from pplgen.models import GaussianMixture
from sklearn import mixture

import pplgen

N, D, K = 100_000, 16, 10
TURNS = 3


def rows(distance: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw training and held-out rows of K components, their centres ``distance`` standard deviations apart."""
    generator = torch.Generator().manual_seed(0)
    centres = distance * torch.randn(K, D, generator=generator) / 2**0.5
    factors = torch.randn(K, D, D, generator=generator) / D**0.5 + 0.5 * torch.eye(D)
    z = torch.randint(K, (2 * N,), generator=generator)
    noise = torch.randn(2 * N, D, 1, generator=generator)
    x = centres[z] + (factors[z] @ noise).squeeze(-1)
    return x[:N], x[N:]


def scikit_learn(x: torch.Tensor, seed: int) -> Callable[[torch.Tensor], float]:
    """Fit by EM; return a function that scores rows."""
    fit = mixture.GaussianMixture(K, n_init=10, random_state=seed).fit(x.numpy())
    return lambda held_out: float(fit.score(held_out.numpy()))


def ours(x: torch.Tensor, seed: int) -> Callable[[torch.Tensor], float]:
    """Fit by SVI; return a function that scores rows."""
    fit = pplgen.fit(GaussianMixture(K, D), x, seed=seed, batch_size=500, steps=200, learning_rate=0.01, progress=False)
    return lambda held_out: fit.log_likelihood(held_out, draws=40).mean().item()


def main() -> None:
    """Run both data sets."""
    faithful = pplgen.load_data("faithful").values
    pplgen.fit(GaussianMixture(2, 2), faithful, steps=200, progress=False)
    mixture.GaussianMixture(2).fit(faithful.numpy())
    contenders = {"scikit-learn, 10 initialisations": scikit_learn, "pplgen, 200 minibatches of 500": ours}
    for name, distance in (("well separated", 4.0), ("overlapping", 0.8)):
        x, held_out = rows(distance)
        seconds: dict[str, list[float]] = {contender: [] for contender in contenders}
        nats: dict[str, list[float]] = {contender: [] for contender in contenders}
        for seed in range(TURNS):
            for contender, fit in contenders.items():
                started = time.perf_counter()
                score = fit(x, seed)
                seconds[contender].append(time.perf_counter() - started)
                nats[contender].append(score(held_out))
        report(
            f"Fit of a mixture, {name}, N = 100,000, D = 16, K = 10",
            ("seconds", "held-out nats per row", "worst"),
            {
                contender: (f"{median(seconds[contender]):.1f}", f"{median(own):.4f}", f"{min(own):.4f}")
                for contender, own in nats.items()
            },
            {"seconds": seconds, "nats": nats},
            note=f"medians of {TURNS}",
        )


if __name__ == "__main__":
    main()
