"""Claims about switching linear Gaussian state space models."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Normal

from pplgen.exact.enumeration import enumerate_regimes
from pplgen.exact.gaussian_sums import gaussian_sum_filter
from pplgen.exact.particles import rao_blackwellised_filter
from pplgen.exact.switching import kim_filter
from pplgen.exact.switching_simulation import SwitchingPaths, draw_switching_paths
from pplgen.fitting.fit import fit
from pplgen.models import SwitchingLDS
from pplgen.posterior.draws import row_densities
from pplgen.posterior.row_likelihood import LogLikelihood
from pplgen.story.dynamics import MarkovChain, SwitchingLinearGaussian
from pplgen.verification.claim import Claim, Estimate
from pplgen.verification.data_sources import Sources
from pplgen.verification.densities import over_all_paths

__all__ = ["CLAIMS", "GROWTH"]

GROWTH: dict[str, Any] = {
    "pi": [2 / 7, 5 / 7],
    "P": [[0.75, 0.25], [0.1, 0.9]],
    "m0": [0.0],
    "s0": [1.0],
    "A": [[[0.3]], [[0.8]]],
    "b": [[-0.4], [0.3]],
    "q": [[math.sqrt(0.5)], [math.sqrt(0.2)]],
    "C": [[1.0]],
    "d": [0.0],
    "r": [0.5],
}
"""Parameters of a switching autoregression of growth with observation noise."""


def _switching(y: Tensor) -> SwitchingLinearGaussian:
    """Return the growth model of the story."""
    return SwitchingLDS(2, 1, 1, known=GROWTH).double().state_space(y[None])


def _enumerated(sources: Sources) -> float:
    y = sources.first_growth()
    return float(enumerate_regimes(y, _switching(y))[0])


def _kim(sources: Sources) -> float:
    y = sources.growth()
    return float(kim_filter(y, _switching(y)).log_likelihood)


def _particles(sources: Sources) -> Estimate:
    y = sources.growth()
    found = rao_blackwellised_filter(y, _switching(y), num_particles=500, num_runs=20)
    return Estimate(float(found.estimate), float(found.standard_error))


def _sums(sources: Sources) -> Estimate:
    y = sources.growth()
    found = LogLikelihood.from_draws(_paths(y, 2000).log_ratios.unsqueeze(-1), "importance-weighted")
    return Estimate(float(found), float(found.standard_error))


def _smoothed(sources: Sources) -> float:
    """Largest difference of smoothed probabilities of the first regime from those by enumeration."""
    y = sources.first_growth()
    paths = _paths(y, 20_000)
    found = paths.log_ratios.softmax(dim=0) @ (paths.regimes == 0).double()
    return float((found - enumerate_regimes(y, _switching(y))[1].probabilities[:, 0]).abs().max())


def _paths(y: Tensor, num_paths: int) -> SwitchingPaths:
    model = _switching(y)
    return draw_switching_paths(y, gaussian_sum_filter(y, model), model, num_paths)


def _path_density(sources: Sources) -> float:
    """Joint log density of a state path and twelve quarters, the story's minus the sum over all regime paths."""
    y, x = sources.first_growth(), torch.randn(12, dtype=torch.float64)
    story, p = SwitchingLDS(2, 1, 1, known=GROWTH).double(), _switching(y)
    with torch.no_grad():
        trace = poutine.trace(poutine.condition(story.model, data={"x": x[None, :, None]})).get_trace(y[None])
    trace.compute_log_prob()
    transitions = Normal(p.A[:, 0, 0] * x[:-1, None] + p.b[:, 0], p.Q[:, 0, 0].sqrt()).log_prob(x[1:, None])
    initial = Normal(0.0, 1.0).log_prob(x[:1, None]).expand(1, 2)
    regimes = over_all_paths(torch.cat([initial, transitions]), MarkovChain(p.pi.log(), p.P.log()))
    exact = regimes + Normal(x, 0.5).log_prob(y[:, 0]).sum()
    return float(trace.nodes["x"]["log_prob"].sum() + trace.nodes["y"]["log_prob"].sum() - exact)


def _importance(sources: Sources) -> Estimate:
    """Importance-weighted bound with 1,000 draws of the trained guide on the log marginal of twelve quarters."""
    y = sources.first_growth()[None].float()
    found = fit(SwitchingLDS(2, 1, 1, known=GROWTH), y, steps=6000, learning_rate=0.01, compile="graph", progress=False)
    with found.pair.isolated(), torch.no_grad():
        weights = row_densities(found.pair, {}, 20_000, found.pair.data).log_likelihood[:, 0]
    bounds = weights.view(-1, 1000).logsumexp(1) - math.log(1000)
    return Estimate(float(bounds.mean()), float(bounds.std()) / len(bounds) ** 0.5)


CLAIMS = (
    Claim(
        "growth-enumerated",
        "exact.enumeration",
        "log marginal of twelve quarters of US growth over 4,096 regime paths (nats)",
        -19.794290757,
        1e-7,
        "published to nine decimals",
        "a reference value, by enumeration",
        _enumerated,
    ),
    Claim(
        "growth-kim",
        "exact.switching",
        "log marginal of 135 quarters of US growth by Kim's filter (nats)",
        -209.13861,
        1e-4,
        "published to five decimals",
        "a reference value, by the filter of Kim (1994)",
        _kim,
    ),
    Claim(
        "growth-particles",
        "exact.particles",
        "log marginal of 135 quarters of US growth by a Rao-Blackwellised particle filter (nats)",
        -209.141,
        0.02,
        "four standard errors, .005 each, of the reference value",
        "a reference value, by a particle filter",
        _particles,
    ),
    Claim(
        "growth-sums",
        "exact.gaussian_sums",
        "log marginal of 135 quarters of US growth from 2,000 regime paths drawn by a Gaussian sum filter (nats)",
        -209.141,
        0.02,
        "four standard errors, .005 each, of the reference value",
        "a reference value, by a particle filter",
        _sums,
    ),
    Claim(
        "growth-smoothed",
        "exact.switching_simulation",
        "largest difference of smoothed probabilities of twelve quarters, from 20,000 weighted paths",
        0.0,
        0.015,
        "four standard errors of a fraction of 20,000",
        "enumeration of 4,096 paths",
        _smoothed,
    ),
    Claim(
        "growth-path",
        "switching-lds",
        "log density of a state path and twelve quarters, minus the sum over 4,096 regime paths (nats)",
        0.0,
        1e-9,
        "float64 rounding of sums over all paths",
        "the sum over all paths, by definition",
        _path_density,
    ),
    Claim(
        "growth-importance",
        "switching-lds",
        "importance-weighted bound of 1,000 draws on the log marginal of twelve quarters (nats)",
        -19.794290757,
        0.01,
        "gap of the bound: half the variance of a weight, divided by 1,000",
        "enumeration of 4,096 paths",
        _importance,
        slow=True,
    ),
)
