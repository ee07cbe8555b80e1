"""Checks of the guide's standard deviations: k-hat and means may be right where they are too small or too large."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pplgen.checks.check import Check, Verdict, not_applicable
from pplgen.checks.importance_weights import guide_advice
from pplgen.checks.inputs import SAMPLED, CheckInputs
from pplgen.errors import InputError
from pplgen.posterior.linear_response import MAX_CHEAP_ENTRIES, posterior_covariance
from pplgen.posterior.parameter_names import entry_names
from pplgen.posterior.psis import k_limit, smoothed_weights

__all__ = ["linear_response_sds", "weighted_sds"]

WARNS, FAILS = 1.1, 1.25
"""Ratios of two standard deviations, the larger to the smaller, above which the check warns, and above which it fails.
"""
NUM_ERRORS = 4.0
"""Standard errors that a ratio must differ from one: it is the largest of many."""


def weighted_sds(inputs: CheckInputs) -> Check:
    """Largest ratio of a standard deviation under importance weighting to the guide's, or its inverse."""
    name, source = "sd under importance weighting (ratio)", "Yao et al. 2018; thresholds ours"
    if reason := SAMPLED if inputs.sampled else inputs.why_no_shared:
        return not_applicable(name, source, reason)
    log_ratios, scalars = inputs.most_draws
    weights, shape = smoothed_weights(log_ratios)
    if shape > k_limit(len(weights)):
        return not_applicable(name, source, f"the importance weights are unreliable: Pareto k {shape:.2f}")
    if not scalars:
        return not_applicable(name, source, "all latents are constant")
    ratios, errors = _log_ratios(weights, torch.stack(list(scalars.values()), dim=1))
    sizes = ratios.abs()
    worst = int((sizes - NUM_ERRORS * errors).argmax())
    value, error = math.exp(sizes[worst]), float(errors[worst])
    threshold = max(WARNS, math.exp(NUM_ERRORS * error))
    if value <= threshold:
        return Check(name, value, threshold, source, Verdict.PASS)
    fails = max(FAILS, threshold)
    remedy = f"{_finding(list(scalars)[worst], 'importance-weighted', float(ratios[worst]))}; weight its draws "
    remedy += f"by sample_stats lp - log_q, or {guide_advice(inputs)}"
    verdict, threshold = (Verdict.FAIL, fails) if value > fails else (Verdict.WARN, threshold)
    return Check(name, value, threshold, source, verdict, remedy)


def linear_response_sds(inputs: CheckInputs) -> Check:
    """Largest ratio of a linear-response standard deviation to the guide's, or its inverse.

    A mean-field guide of correlated latents is narrower than the posterior (Turner and Sahani 2011).
    """
    name, source = "linear-response sd (ratio)", "Giordano, Broderick and Jordan 2018; threshold ours"
    if inputs.sampled:
        return not_applicable(name, source, SAMPLED)
    try:
        found = posterior_covariance(inputs.pair, inputs.optimum, 0, MAX_CHEAP_ENTRIES)
    except InputError as reason:
        return not_applicable(name, source, str(reason))
    response, guide = (covariance.diagonal().clamp_min(0).sqrt() for covariance in (found.linear_response, found.guide))
    varies = guide > 1e-6 * (1e-30 + found.mean.abs())
    if not varies.any():
        return not_applicable(name, source, "all latents are constant")
    ratios = torch.where(varies, (response / guide).log(), 0.0)
    worst = int(ratios.abs().argmax())
    value = math.exp(abs(float(ratios[worst])))
    if value <= WARNS:
        return Check(name, value, WARNS, source, Verdict.PASS)
    entries = entry_names(found.shapes, inputs.story, inputs.columns)
    which = [entry for site in entries.values() for entry in site][worst]
    finding = _finding(which, "linear-response", float(ratios[worst]))
    remedy = f"{finding}; take standard deviations and correlations from fit.covariance(), or {guide_advice(inputs)}"
    return Check(name, value, WARNS, source, Verdict.WARN, remedy)


def _log_ratios(weights: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return logarithms of weighted standard deviations over unweighted ones, and their Monte Carlo standard errors.

    Both are of the same draws, with weights of shape ``(num_draws,)`` and values of shape ``(num_draws, n)``, so that
    much of the noise cancels in the ratio. Its error is by the delta method.
    """
    number = len(weights)
    mean = values.mean(0)
    variance = (values - mean).square().mean(0)
    relative = number * weights[:, None]
    weighted_mean = (relative * values).mean(0)
    weighted_variance = (relative * (values - weighted_mean).square()).mean(0)
    influence = relative * ((values - weighted_mean).square() / weighted_variance - 1)
    influence = (influence - (values - mean).square() / variance + 1) / 2
    return (weighted_variance / variance).log() / 2, influence.std(0) / math.sqrt(number)


def _finding(which: str, kind: str, log_ratio: float) -> str:
    """Say how wide the guide is."""
    width = "narrow" if log_ratio > 0 else "wide"
    return f"{which}: the {kind} sd is {math.exp(log_ratio):.2f} times the guide's, which is too {width}"
