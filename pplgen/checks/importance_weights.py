"""Checks of log importance weights ``log p(x, theta) - log q(theta)`` of guide draws, discrete latents summed out."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pplgen.checks.check import Check, ParetoShapes, Verdict, not_applicable
from pplgen.checks.inputs import SAMPLED, CheckInputs
from pplgen.errors import InputError
from pplgen.posterior.psis import CONSTANT, GOOD_K, k_limit, smoothed_weights

__all__ = ["ROW_KHAT", "elbo_gap", "guide_advice", "khat", "khat_of_rows", "khat_of_shared", "resampled_means"]

ROW_KHAT = f"rows with k-hat above {GOOD_K} (fraction)"
"""Name of the check whose rows are plotted in reports of latent-variable stories."""
GAP = 1.0
"""Largest accepted gap between importance-weighted bound and ELBO, in nats: a factor of e in the density."""
SHIFT, SHIFT_FAILS = 0.25, 0.5
"""Shift of a mean under importance weighting, in posterior standard deviations, above which the check warns, and above
which it fails."""
MAX_HIGH_ROWS = 0.05
"""Largest accepted fraction of rows with heavy-tailed weights."""

PSIS = "Yao et al. 2018; Vehtari et al. 2024"
COMPARE_NUTS = "compare with NUTS, fit(..., method='nuts'), and until then trust means rather than tails"
RICHER_GUIDE = (
    "use a guide with correlations (AutoMultivariateNormal, AutoNormalizingFlow), reparameterise the latents to reduce "
    "correlations (centred or non-centred), or sample by NUTS"
)


def khat(inputs: CheckInputs) -> Check:
    """Pareto k-hat of the joint importance weights of all latents, averaged over replicates.

    Below .7, or less with few draws, importance weighting can correct the guide; above, the guide is too far from the
    posterior. It detects neither missed modes nor a misspecified model.
    """
    name = "k-hat of all latents"
    if inputs.why_not_joint:
        return not_applicable(name, PSIS, inputs.why_not_joint)
    return _check_khat(name, inputs.log_ratios, guide_advice(inputs))


def khat_of_shared(inputs: CheckInputs) -> Check:
    """Pareto k-hat of the importance weights of shared latents, row latents integrated out."""
    name = "k-hat of shared latents"
    if inputs.sampled:
        return not_applicable(name, PSIS, SAMPLED)
    if not inputs.structure.row_latent:
        return not_applicable(name, PSIS, "the model has no row latents, so this is k-hat of all latents")
    if inputs.why_no_shared:
        return not_applicable(name, PSIS, inputs.why_no_shared)
    found = _check_khat(
        name, inputs.shared_log_ratios, f"if k-hat of rows is high too, fix that first; {guide_advice(inputs)}"
    )
    if found.verdict is Verdict.FAIL and (reason := _why_not_integrated(inputs)):
        return replace(found, verdict=Verdict.WARN, remedy=f"{reason}; {guide_advice(inputs)}")
    return found


def _why_not_integrated(inputs: CheckInputs) -> str | None:
    """Why latents of rows cannot be integrated out at one draw of shared latents; ``None`` if they can."""
    try:
        k = smoothed_weights(inputs.row_log_ratios)[1]
    except InputError as error:
        return str(error)
    high = int((k > k_limit(len(inputs.row_log_ratios))).sum())
    if high <= MAX_HIGH_ROWS * len(k):
        return None
    finding = f"Pareto k of {high} of {len(k)} is {float(k.max()):.2g} at most"
    return f"unknown, as the latents of rows cannot be integrated out by importance weights, whose {finding}"


def _check_khat(name: str, log_ratios: Tensor, remedy: str) -> Check:
    """Check k-hat of replicates of log weights, shape ``(num_replicates, num_draws)``."""
    limit = k_limit(log_ratios.shape[1])
    if bool((log_ratios.amax() - log_ratios.amin()) < CONSTANT):
        return Check(name, -math.inf, limit, PSIS, Verdict.PASS, "the weights are constant: the guide is exact")
    if not log_ratios.isfinite().all():
        return Check(name, math.inf, limit, PSIS, Verdict.FAIL, "some weights are not finite; see non-finite draws")
    shapes = smoothed_weights(log_ratios.T)[1]
    value, low, high = shapes.mean().item(), shapes.min().item(), shapes.max().item()
    if high == -math.inf:
        return Check(name, high, limit, PSIS, Verdict.PASS, "no weight is twice their mean: the guide is near exact")
    finding = f"{low:.2f} to {high:.2f} in {len(shapes)} replicates of {log_ratios.shape[1]:,} draws"
    if value <= limit:
        return Check(name, value, limit, PSIS, Verdict.PASS)
    if low <= limit:
        return Check(name, value, limit, PSIS, Verdict.WARN, f"borderline, {finding}; {remedy}")
    return Check(name, value, limit, PSIS, Verdict.FAIL, f"the guide is far from the posterior, {finding}; {remedy}")


def khat_of_rows(inputs: CheckInputs) -> Check:
    """Fraction of rows whose latents have Pareto k-hat above .7, at one draw of the shared latents."""
    name, source = ROW_KHAT, f"{PSIS}; fraction ours"
    if reason := SAMPLED if inputs.sampled else _why_no_row_weights(inputs):
        return not_applicable(name, source, reason)
    try:
        ratios = inputs.row_log_ratios
    except InputError as reason:
        return not_applicable(name, source, str(reason))
    if not ratios.isfinite().all():
        return not_applicable(name, source, "the guide's density of row latents is zero or infinite")
    k = smoothed_weights(ratios)[1].cpu().numpy()
    shapes = ParetoShapes(1 + math.ceil(inputs.num_rows / len(k)) * np.arange(len(k)), k, GOOD_K)
    value = float(shapes.high.mean())
    if value <= MAX_HIGH_ROWS:
        return Check(name, value, MAX_HIGH_ROWS, source, Verdict.PASS, shapes=shapes)
    remedy = f"{shapes}: the guide is far from the posterior of their latents; use a richer guide (guide='full' or "
    remedy += "'flow', if the story supports them), or train longer"
    return Check(name, value, MAX_HIGH_ROWS, source, Verdict.WARN if value <= 0.5 else Verdict.FAIL, remedy, shapes)


def elbo_gap(inputs: CheckInputs) -> Check:
    """Importance-weighted bound minus ELBO, of shared latents if possible: a lower bound of KL(q, p), in nats."""
    name, source = "ELBO gap (nats)", "Burda et al. 2016; threshold ours"
    if inputs.structure.row_latent and not inputs.sampled and not inputs.why_no_shared:
        ratios = inputs.shared_log_ratios
    elif inputs.why_not_joint:
        return not_applicable(name, source, inputs.why_not_joint)
    else:
        ratios = inputs.log_ratios
    ratios = ratios.flatten()
    if not ratios.isfinite().all():
        return Check(name, math.inf, GAP, source, Verdict.FAIL, "some weights are not finite; see non-finite draws")
    value = float(ratios.logsumexp(0) - math.log(len(ratios)) - ratios.mean())
    if value <= GAP:
        return Check(name, value, GAP, source, Verdict.PASS)
    remedy = f"the ELBO is at least this far below the log evidence: do not select models by it; {guide_advice(inputs)}"
    return Check(name, value, GAP, source, Verdict.WARN, remedy)


def resampled_means(inputs: CheckInputs) -> Check:
    """Largest shift of a mean, in standard deviations, when guide draws are importance-weighted."""
    name, source = "mean shift under importance weighting (sd)", "Yao et al. 2018; threshold ours"
    if reason := SAMPLED if inputs.sampled else inputs.why_no_shared:
        return not_applicable(name, source, reason)
    log_ratios, scalars = inputs.most_draws
    weights, shape = smoothed_weights(log_ratios)
    if shape > k_limit(len(weights)):
        return not_applicable(name, source, f"the importance weights are unreliable: Pareto k {shape:.2f}")
    names, values = list(scalars), torch.stack(list(scalars.values()), dim=1)
    difference = (weights[:, None] * values).sum(0) - values.mean(0)
    shifts = (difference / values.std(0)).abs().cpu().numpy()
    worst, error = int(np.argmax(shifts)), float(weights.square().sum().sqrt())
    value = float(shifts[worst])
    threshold = max(SHIFT, 4 * error)  # several standard errors, as it is the largest of many shifts
    if value <= threshold:
        return Check(name, value, threshold, source, Verdict.PASS)
    remedy = (
        f"{names[worst]}: the guide is biased; weight its draws by sample_stats lp - log_q, or {guide_advice(inputs)}"
    )
    fails = max(SHIFT_FAILS, threshold)
    verdict, threshold = (Verdict.FAIL, fails) if value > fails else (Verdict.WARN, threshold)
    return Check(name, value, threshold, source, verdict, remedy)


def guide_advice(inputs: CheckInputs) -> str:
    """Recommend how to approximate the posterior better; the guide of a story is fixed."""
    return COMPARE_NUTS if inputs.story is not None else RICHER_GUIDE


def _why_no_row_weights(inputs: CheckInputs) -> str | None:
    """Why row latents cannot be importance-weighted separately; ``None`` if they can."""
    if not inputs.structure.row_latent:
        return "the model has no row latents"
    if inputs.point_latent:
        return f"the guide is a point mass at {inputs.point_latent!r}, which has no density"
    if not inputs.num_rows:
        return inputs.why_no_training_rows
    if inputs.num_rows < 2:
        return "it needs several rows, and there is one"
    if not inputs.is_training and not inputs.has_rows and inputs.structure.shared_latent:
        return inputs.why_no_training_rows
    return inputs.structure.why_no_row_densities()
