"""Claims about stories that decode rows by networks: with codes of one entry, integrals on the line."""

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
from pplgen.verification.sources import Sources

__all__ = ["CLAIMS"]

DRAWS = 2000
"""Of each row's code, where densities of rows are importance-weighted."""


def _trained(story: LatentStory) -> tuple[Fit, Tensor]:
    """Fit a story with codes of one entry to rows of its own, one of which has a gap; in doubles."""
    x = story.double().simulate(20)
    x[0, 1] = math.nan
    story.observe_missing(x)
    return fit(story, x, steps=200, progress=False), x


def _line(x: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return codes of one entry and a class on a grid, for every row, and the logarithm of its step."""
    z = torch.linspace(-12, 12, 4001, dtype=x.dtype)[:, None]
    classes = torch.eye(max(num_classes, 1), dtype=x.dtype)[:, :num_classes]
    code = torch.cat([z.repeat(len(classes), 1), classes.repeat_interleave(len(z), 0)], 1)
    return code[:, None, :].expand(-1, len(x), -1), (z[1, 0] - z[0, 0]).log()


def _density_on_the_line(story: Callable[[], LatentStory], num_classes: int, sources: Sources) -> Estimate:
    """Log density of all rows, weighed by the trained guide, less the integral over the code of each."""
    found, x = _trained(story())
    code, step = _line(x, num_classes)
    with found.pair.isolated(), torch.no_grad():
        own: Any = found.story
        exact = (own.prior().log_prob(code) + own.decode(code).log_prob(x)).logsumexp(0) + step
    scored = found.log_likelihood(x, draws=DRAWS)
    return Estimate(float((scored - exact).sum()), float(scored.standard_error.square().sum().sqrt()))


def _bound_on_the_line(story: Callable[[], LatentStory], num_classes: int, bound: str, sources: Sources) -> Estimate:
    """Mean of the bound of the trained guide over its draws, less the integral that it is an average for."""
    found, x = _trained(story())
    code, step = _line(x, num_classes)
    estimator = make_bound(found.pair, bound)
    with found.pair.isolated(), torch.no_grad(), pyro.validation_enabled(False):
        own: Any = found.story
        log_q = own.encode(x).log_prob(code)
        exact = (log_q.exp() * (own.prior().log_prob(code) + own.decode(code).log_prob(x) - log_q)).sum() * step.exp()
        pair = found.pair
        draws = torch.tensor([-float(estimator.loss(pair.model, pair.guide, *pair.data)) for _ in range(500)])
    return Estimate(float(draws.mean() - exact), float(draws.std()) / len(draws) ** 0.5)


TRAPEZOID = "trapezoidal rule over 4,001 codes"
ON_THE_LINE: dict[str, tuple[str, str, Callable[[], LatentStory], int]] = {
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
"""Story, what is particular, how it is built, and the number of classes that are part of its codes."""

CLAIMS = (
    *(
        Claim(
            f"density-{name}",
            story,
            f"importance-weighted log density of twenty rows, {words}, less its integral over the code (nats)",
            0.0,
            1e-6,
            f"the error of {DRAWS:,} draws",
            TRAPEZOID,
            partial(_density_on_the_line, build, classes),
        )
        for name, (story, words, build, classes) in ON_THE_LINE.items()
    ),
    *(
        Claim(
            f"bound-{name}-{bound}",
            story,
            f"{bound} bound of twenty rows, {words}, less its integral over the code (nats)",
            0.0,
            1e-6,
            "the error of 500 draws",
            TRAPEZOID,
            partial(_bound_on_the_line, build, classes, bound),
        )
        for name, (story, words, build, classes) in ON_THE_LINE.items()
        if name in ("vae-bernoulli", "mixture-vae", "semi-supervised-vae")
        for bound in (("sampled", "analytic") if name == "vae-bernoulli" else ("sampled",))
    ),
)
