"""Claims about stories with neural decoders: with one latent dimension, integrals are computed on a grid."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor

from pplgen.fitting.fit import fit
from pplgen.fitting.result import Fit
from pplgen.inference.objectives import make_bound
from pplgen.models import VAE, MixtureVAE, SemiSupervisedVAE
from pplgen.story.latent import LatentStory
from pplgen.verification.claim import Claim, Estimate
from pplgen.verification.data_sources import Sources

__all__ = ["CLAIMS"]

DRAWS = 2000
"""Importance samples per row."""


def _trained(story: LatentStory) -> tuple[Fit, Tensor]:
    """Fit a story with one latent dimension to simulated rows, one with a missing entry, in float64."""
    x = story.double().simulate(20)
    x[0, 1] = math.nan
    story.observe_missing(x)
    return fit(story, x, steps=200, progress=False), x


def _grid(x: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return a grid of the latent dimension and the class, for every row, and the log of its spacing."""
    z = torch.linspace(-12, 12, 4001, dtype=x.dtype)[:, None]
    classes = torch.eye(max(num_classes, 1), dtype=x.dtype)[:, :num_classes]
    latents = torch.cat([z.repeat(len(classes), 1), classes.repeat_interleave(len(z), 0)], 1)
    return latents[:, None, :].expand(-1, len(x), -1), (z[1, 0] - z[0, 0]).log()


def _log_density_error(story: Callable[[], LatentStory], num_classes: int, sources: Sources) -> Estimate:
    """Importance-weighted log density of all rows minus its integral over the latent dimension."""
    found, x = _trained(story())
    latents, log_step = _grid(x, num_classes)
    with found.pair.isolated(), torch.no_grad():
        own: Any = found.story
        exact = (own.prior().log_prob(latents) + own.decode(latents).log_prob(x)).logsumexp(0) + log_step
    scored = found.log_likelihood(x, draws=DRAWS)
    return Estimate(float((scored - exact).sum()), float(scored.standard_error.square().sum().sqrt()))


def _elbo_error(story: Callable[[], LatentStory], num_classes: int, bound: str, sources: Sources) -> Estimate:
    """Mean of 500 ELBO draws of the trained guide minus its integral over the latent dimension."""
    found, x = _trained(story())
    latents, log_step = _grid(x, num_classes)
    estimator = make_bound(found.pair, bound)
    with found.pair.isolated(), torch.no_grad(), pyro.validation_enabled(False):
        own: Any = found.story
        log_q = own.encode(x).log_prob(latents)
        log_ratio = own.prior().log_prob(latents) + own.decode(latents).log_prob(x) - log_q
        exact = (log_q.exp() * log_ratio).sum() * log_step.exp()
        pair = found.pair
        draws = torch.tensor([-float(estimator.loss(pair.model, pair.guide, *pair.data)) for _ in range(500)])
    return Estimate(float(draws.mean() - exact), float(draws.std()) / len(draws) ** 0.5)


TRAPEZOID = "trapezoidal rule on a grid of 4,001 points"
STORIES: dict[str, tuple[str, str, Callable[[], LatentStory], int]] = {
    **{
        f"vae-{likelihood}": (
            "vae",
            f"{likelihood} columns",
            partial(VAE, 4, 1, hidden=(5,), likelihood=likelihood),
            0,
        )
        for likelihood in ("bernoulli", "continuous-bernoulli", "normal", "categorical")
    },
    "mixture-vae": ("mixture-vae", "three clusters", partial(MixtureVAE, 4, 1, num_components=3, hidden=(5,)), 0),
    "semi-supervised-vae": (
        "semi-supervised-vae",
        "three classes",
        partial(SemiSupervisedVAE, 4, 1, num_classes=3, hidden=(5,)),
        3,
    ),
}
"""Story, description, constructor, and number of classes among its latents."""

CLAIMS = (
    *(
        Claim(
            f"density-{name}",
            story,
            f"importance-weighted log density of twenty rows, {words}, minus its integral over the latent (nats)",
            0.0,
            1e-6,
            f"Monte Carlo error of {DRAWS:,} draws",
            TRAPEZOID,
            partial(_log_density_error, build, classes),
        )
        for name, (story, words, build, classes) in STORIES.items()
    ),
    *(
        Claim(
            f"bound-{name}-{bound}",
            story,
            f"{bound} ELBO of twenty rows, {words}, minus its integral over the latent (nats)",
            0.0,
            1e-6,
            "Monte Carlo error of 500 draws",
            TRAPEZOID,
            partial(_elbo_error, build, classes, bound),
        )
        for name, (story, words, build, classes) in STORIES.items()
        if name in ("vae-bernoulli", "mixture-vae", "semi-supervised-vae")
        for bound in (("sampled", "analytic") if name == "vae-bernoulli" else ("sampled",))
    ),
)
