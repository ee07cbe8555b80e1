"""Claims about the log evidence of one-component mixtures, which are conjugate models."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from pplgen.exact.conjugate import (
    dirichlet_evidence,
    gamma_poisson_evidence,
    shared_variance_evidence,
    wishart_evidence,
)
from pplgen.models import GaussianMixture, MixedMixture
from pplgen.story.base import Story
from pplgen.story.pair import Pair
from pplgen.verification.claim import Claim
from pplgen.verification.data_sources import Sources

__all__ = ["CLAIMS"]

ROUNDING = "float64 rounding of sums"
KAPPA = 0.01
"""Prior sample size of the stories' prior on locations."""


def _elbo_minus_evidence(story: Story, x: Tensor, evidence: float) -> float:
    """Largest absolute difference of five ELBO draws from the log evidence; the guide starts at the posterior."""
    story = story.double()
    story.initialise(x)
    pair = Pair(story.model, story.guide, (x,))
    with pair.isolated():
        elbos = [-float(pair.elbo().loss(pair.model, pair.guide, x)) for _ in range(5)]
    return max(abs(elbo - evidence) for elbo in elbos)


def _gaussian_evidence(covariance: str, sources: Sources) -> float:
    x = sources.faithful()
    m, variance = x.mean(0), (0.15 * x.std(0, correction=0)).square()
    if covariance in ("full", "tied"):
        evidence = wishart_evidence(x, m=m, kappa=KAPPA, nu=4, Psi=variance.diag())
    elif covariance == "spherical":
        evidence = shared_variance_evidence(x, m=m, kappa=KAPPA, nu=4, psi=variance.mean())
    else:
        columns = zip(x.split(1, 1), m.split(1), variance, strict=True)
        each = [shared_variance_evidence(x, m=m, kappa=KAPPA, nu=3, psi=psi) for x, m, psi in columns]
        evidence = torch.stack(each).sum()
    return _elbo_minus_evidence(GaussianMixture(1, 2, covariance=covariance), x, float(evidence))


def _column_evidence(kind: str, column: Tensor) -> Tensor:
    """Log evidence of the observed entries of a column, under the story's data-dependent prior."""
    observed = column[~column.isnan()]
    if kind == "normal":
        scale = observed.var(correction=0)
        return shared_variance_evidence(observed[:, None], m=observed.mean()[None], kappa=KAPPA, nu=3, psi=scale)
    if kind == "poisson":
        return gamma_poisson_evidence(observed, shape=1.0, rate=1 / observed.mean())
    categories = torch.arange(2 if kind == "binary" else 3)
    return dirichlet_evidence((observed[:, None] == categories).double().sum(0))


def _mixed_evidence(kind: str, sources: Sources) -> float:
    shape = (120, 2)
    x = {
        "normal": 3 * torch.randn(shape).double() + 5,
        "poisson": torch.poisson(torch.full(shape, 4.0)).double(),
        "binary": torch.bernoulli(torch.full(shape, 0.3)).double(),
        "categorical3": torch.randint(3, shape).double(),
    }[kind]
    x[torch.rand(shape) < 0.2] = torch.nan
    evidence = sum(float(_column_evidence(kind, column)) for column in x.T)
    return _elbo_minus_evidence(MixedMixture(1, 2, columns=kind), x, evidence)


CLAIMS = (
    *(
        Claim(
            f"evidence-{covariance}",
            "gaussian-mixture",
            f"ELBO minus log evidence, one component, {covariance}, largest of five draws (nats)",
            0.0,
            1e-6,
            ROUNDING,
            "closed form (Murphy 2007)",
            partial(_gaussian_evidence, covariance),
        )
        for covariance in ("full", "tied", "diag", "spherical")
    ),
    *(
        Claim(
            f"evidence-{kind}",
            "mixed-mixture",
            f"ELBO minus log evidence, one component, two {kind} columns with missing entries, largest of five (nats)",
            0.0,
            1e-6,
            ROUNDING,
            "closed form (Murphy 2007; Gelman et al. 2013)",
            partial(_mixed_evidence, kind),
        )
        for kind in ("normal", "poisson", "binary", "categorical3")
    ),
)
