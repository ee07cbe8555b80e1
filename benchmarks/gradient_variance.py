"""Variance of the encoder's gradient by estimator: scikit-learn's digits, 64-64-8, before and after a fit.

The estimators are those of Kingma and Welling (2014): analytic KL divergence, all terms sampled, score function.
"""

from __future__ import annotations

import torch
from harness import report
from pplgen.models import VAE

import pplgen
from pplgen.compiler.graph import trace
from pplgen.inference.objectives import make_bound
from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair

BATCH, DRAWS, STEPS = 128, 500, 1000
ESTIMATORS = (("analytic", 1), ("sampled", 1), ("sampled", 10), ("score-function", 1), ("score-function", 10))


def variances(pair: Pair, x: torch.Tensor) -> dict[str, tuple[float, float]]:
    """Return the encoder's gradient variance, summed over its parameters, and its standard error."""
    results = {}
    for name, number in ESTIMATORS:
        with pair.isolated(), seeded(0):
            graph = trace(pair, make_bound(pair, name, number), (x,))
            vector, inputs = graph.pack(pair.snapshot()), (*graph.buffers, x)
            draws = torch.stack([graph.loss_and_gradient(vector, *inputs)[1] for _ in range(DRAWS)]).double()
        is_encoder = torch.cat(
            [
                torch.full((shape.numel(),), each.startswith("encoder"))
                for each, shape in zip(graph.names, graph.shapes, strict=True)
            ]
        )
        squares = (draws - draws.mean(0))[:, is_encoder].square().sum(1) * DRAWS / (DRAWS - 1)
        results[f"{name}, L = {number}"] = (squares.mean().item(), squares.std().item() / DRAWS**0.5)
    return results


def main() -> None:
    """Measure at initialisation and after a fit."""
    x = pplgen.load_data("digits").values.float() / 16
    torch.manual_seed(0)
    story = VAE(64, 8, hidden=(64,))
    with seeded(0):
        start = Pair.of_story(story, x)
    options = {"elbo": "analytic", "batch_size": BATCH, "learning_rate": 1e-3, "steps": STEPS}
    fitted = pplgen.fit(story, x, progress=False, **options).pair
    batch = x[torch.randperm(len(x))[:BATCH]]
    before, after = variances(start, batch), variances(fitted, batch)
    rows = {name: tuple(text for results in (before, after) for text in _formatted(results, name)) for name in before}
    columns = ("at initialisation", "relative to analytic", f"after {STEPS} steps", "relative to analytic")
    note = f"variance of the encoder's gradient, summed over its parameters, at a batch of {BATCH}, from {DRAWS} draws"
    report("Gradient variance on digits, 64-64-8", columns, rows, {"before": before, "after": after}, note=note)


def _formatted(results: dict[str, tuple[float, float]], name: str) -> tuple[str, str]:
    """Return a variance with its standard error, and its ratio to that of the analytic estimator."""
    value, error = results[name]
    return f"{value:.3g} +- {error:.1g}", f"{value / results['analytic, L = 1'][0]:.3g}"


if __name__ == "__main__":
    main()
