"""Autoencoders of scikit-learn's digits, 64-64-8: held-out likelihood and time, compared with a hand-written step.

Both take the same number of minibatches of 128 binarised images with Adam at one rate, from three seeds. Every fifth
image is held out; its likelihood is estimated with 500 importance samples. Times exclude compiling.
"""

from __future__ import annotations

import math
import time
from statistics import median

import torch
from harness import report
from pplgen.models import VAE
from torch import Tensor
from vae_step import VAE as ByHand
from vae_step import hand_written

import pplgen

SIZES, BATCH, STEPS, RATE, SEEDS, SAMPLES = [64, 64, 8], 128, 5_000, 1e-3, 3, 500
UNTIMED = 1_000
"""Steps before timing starts, during which everything is compiled."""


def images() -> tuple[Tensor, Tensor]:
    """Return binarised digits for training, and those held out."""
    x = (pplgen.load_data("digits").values > 7.5).float()
    held_out = torch.arange(len(x)) % 5 == 0
    return x[~held_out], x[held_out]


def by_hand(x: Tensor, held_out: Tensor, seed: int) -> tuple[float, float]:
    """Train the network of ``vae_step`` and return nats per held-out image, and milliseconds per step."""
    torch.manual_seed(seed)
    vae = ByHand(SIZES)
    step, state = hand_written(vae, x[:BATCH], in_batches=True)
    step = torch.compile(step)
    taken = 0
    while taken < STEPS:
        for batch in x[torch.randperm(len(x))].split(BATCH)[: len(x) // BATCH]:
            if taken == UNTIMED:
                started = time.perf_counter()
            if taken < STEPS:
                state = step(*state, batch)
                taken += 1
    elapsed = (time.perf_counter() - started) / (STEPS - UNTIMED)
    with torch.no_grad():
        for parameter, value in zip(vae.parameters(), state[0], strict=True):
            parameter.copy_(value)
        loc, log_scale = vae.encoder(held_out).chunk(2, -1)
        q = torch.distributions.Normal(loc, log_scale.exp())
        z = q.sample((SAMPLES,))
        prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
        likelihood = torch.distributions.Bernoulli(logits=vae.decoder(z)).log_prob(held_out).sum(-1)
        log_weights = prior + likelihood - q.log_prob(z).sum(-1)
    return float((log_weights.logsumexp(0) - math.log(SAMPLES)).mean()), 1e3 * elapsed


def ours(x: Tensor, held_out: Tensor, seed: int) -> tuple[float, float]:
    """Fit the story and return the same two figures."""
    times = {}
    fit = pplgen.fit(
        VAE(SIZES[0], SIZES[-1], hidden=SIZES[1:-1]),
        x,
        seed=seed,
        steps=STEPS,
        learning_rate=RATE,
        patience=STEPS,
        batch_size=BATCH,
        elbo="analytic",
        compile="inductor",
        progress=lambda at: times.update({at.step: time.perf_counter()}),
    )
    elapsed = (times[STEPS] - times[UNTIMED]) / (STEPS - UNTIMED)
    return float(fit.log_likelihood(held_out, draws=SAMPLES).mean()), 1e3 * elapsed


def main() -> None:
    """Run both from every seed, in turns."""
    x, held_out = images()
    results: dict[str, list[tuple[float, float]]] = {}
    for seed in range(SEEDS):
        for name, train in (("pplgen, compiled", ours), ("hand-written torch, compiled", by_hand)):
            results.setdefault(name, []).append(train(x, held_out, seed))
    best = min(median(milliseconds for _, milliseconds in each) for each in results.values())
    rows = {}
    for name, each in results.items():
        nats, milliseconds = zip(*each, strict=True)
        rows[name] = (
            f"{sum(nats) / SEEDS:.2f}",
            f"{min(nats):.2f} to {max(nats):.2f}",
            f"{median(milliseconds):.3g}",
            f"{median(milliseconds) / best:.2f}",
        )
    headings = ("held-out nats per image", "by seed", "ms per step", "ratio to the best")
    report(
        f"Autoencoder of digits, {'-'.join(map(str, SIZES))}, batch {BATCH}, {STEPS:,} steps", headings, rows, results
    )


if __name__ == "__main__":
    main()
