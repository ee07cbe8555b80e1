"""Claims that a default fit finds posteriors that are known."""

from __future__ import annotations

import functools
from functools import partial

import torch

from pplgen.fitting.fit import fit
from pplgen.posterior.linear_response import posterior_covariance
from pplgen.verification import known_hierarchies, known_parameters, known_regressions
from pplgen.verification.claim import Claim
from pplgen.verification.data_sources import Sources
from pplgen.verification.known_posterior import KnownPosterior

__all__ = ["CLAIMS", "KNOWN", "errors"]

KNOWN = {**known_parameters.KNOWN, **known_regressions.KNOWN, **known_hierarchies.KNOWN}
NO_FOLDER = Sources()

SEEDS = (0, 1, 2)
"""Seeds of the fits of a claim."""
MEAN_ERROR, SD_ERROR = 0.05, 0.04
"""Allowed errors of means, in posterior sd, and of sds, relative, where the guide's family contains the posterior."""
APPROXIMATE_MEAN_ERROR, RESPONSE_ERROR = 0.15, 0.1
"""Allowed errors elsewhere, of means and of linear-response sds."""


@functools.cache
def errors(name: str, seed: int, sources: Sources = NO_FOLDER) -> tuple[float, float]:
    """Return the largest error of a default fit's means, in posterior sd, and of its standard deviations, relative."""
    known = KNOWN[name]
    data = known.data(sources)
    found = fit(known.model, data, known.guide, seed=seed, progress=False)
    with found.pair.isolated():
        computed = posterior_covariance(found.pair, found.best.optimum, seed)
    covariance = computed.guide if known.exact else computed.linear_response
    moments = known.moments(*data)
    mean, sd = (torch.cat([moments[name][part].reshape(-1).double() for name in computed.shapes]) for part in (0, 1))
    mean_error, sd_error = (computed.mean - mean) / sd, covariance.diag().sqrt() / sd - 1
    return float(mean_error.abs().max()), float(sd_error.abs().max())


def _largest(name: str, which: int, sources: Sources) -> float:
    return max(errors(name, seed, sources)[which] for seed in SEEDS)


def _claims(name: str, known: KnownPosterior) -> tuple[Claim, ...]:
    if known.exact:
        allowed, basis = (MEAN_ERROR, SD_ERROR), ("Monte Carlo error of the optimum",) * 2
    else:
        allowed = known.allowed or (APPROXIMATE_MEAN_ERROR, RESPONSE_ERROR)
        basis = ("a normal guide on the unconstrained scale", "first order in the guide's error")
    kind = "the guide's" if known.exact else "linear-response"
    parts = ("mean", "error of the means (posterior sd)"), ("sd", f"relative error of {kind} sds")
    return tuple(
        Claim(
            f"known-{part}-{name}",
            "fit",
            f"{known.what}: {what}, largest of {len(SEEDS)} seeds",
            0.0,
            allowed[which],
            basis[which],
            known.source,
            partial(_largest, name, which),
            slow=True,
        )
        for which, (part, what) in enumerate(parts)
    )


CLAIMS = tuple(claim for name, known in KNOWN.items() for claim in _claims(name, known))
