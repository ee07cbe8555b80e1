"""Checks of the weights ``log p(x, theta) - log q(theta)`` of draws from the guide, discrete latents summed out."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from pplgen.checks.check import Check, RowShapes, Verdict, beside, despite
from pplgen.checks.inputs import ROWS, SAMPLED, CheckInputs
from pplgen.errors import InputError
from pplgen.posterior.psis import CONSTANT, GOOD_K, k_limit, smoothed_weights

__all__ = ["OF_ROWS", "bound_gap", "khat", "khat_of_rows", "khat_of_shared", "resampled_means", "wider"]

OF_ROWS = f"rows with k-hat above {GOOD_K} (share)"
"""Name of the check whose rows a report of codes draws."""
GAP = 1.0
"""Nats by which the bound may fall short of the importance-weighted one: the density is then off by a factor of e."""
SHIFT = 0.25
"""Posterior standard deviations by which weighing may move a mean."""
SHARE = 0.05
"""Share of the rows whose weights may be heavy-tailed."""

PSIS = "Yao et al. 2018; Vehtari et al. 2024"
SECOND = "lay it beside NUTS, fit(..., method='nuts'), and until then read means rather than tails"
WIDER = (
    "give a guide that can follow correlations (AutoMultivariateNormal, AutoNormalizingFlow), transform the latents so "
    "that they are less correlated (centred against non-centred), or sample by NUTS"
)


def khat(inputs: CheckInputs) -> Check:
    """Judge the Pareto shape of the tail of the weights of all latents together, the mean of replicates.

    Below .7, or less with few draws, importance weighting can mend what the guide gets wrong; above, the guide is too
    far from the posterior.
    It sees neither a mode that the guide misses nor a wrong model.
    """
    name = "k-hat of all latents"
    if inputs.why_not_joint:
        return beside(name, PSIS, inputs.why_not_joint)
    return _khat(name, inputs.log_ratios, wider(inputs))


def khat_of_shared(inputs: CheckInputs) -> Check:
    """Judge likewise the weights of what all rows share, latents of single rows being integrated out."""
    name = "k-hat of shared latents"
    if inputs.sampled:
        return beside(name, PSIS, SAMPLED)
    if not inputs.structure.row_latent:
        return beside(name, PSIS, "no row has latents of its own, so that this is k-hat of all latents")
    if inputs.why_no_shared:
        return beside(name, PSIS, inputs.why_no_shared)
    return _khat(name, inputs.shared_ratios, f"where k-hat of rows is high too, mend that first; {wider(inputs)}")


def _khat(name: str, log_ratios: Tensor, remedy: str) -> Check:
    """Judge replicates of weights, shape ``(replicates, draws)``."""
    limit = k_limit(log_ratios.shape[1])
    if bool((log_ratios.amax() - log_ratios.amin()) < CONSTANT):
        return Check(name, -math.inf, limit, PSIS, Verdict.PASS, "the weights are constant: the guide is exact")
    if not log_ratios.isfinite().all():
        return Check(name, math.inf, limit, PSIS, Verdict.FAIL, "some weights are not finite; see non-finite values")
    shapes = smoothed_weights(log_ratios.T)[1]
    value, low, high = shapes.mean().item(), shapes.min().item(), shapes.max().item()
    found = f"{low:.2f} to {high:.2f} in {len(shapes)} replicates of {log_ratios.shape[1]:,} draws"
    if high <= limit:
        return Check(name, value, limit, PSIS, Verdict.PASS)
    if low <= limit:
        return Check(name, value, limit, PSIS, Verdict.WARN, f"borderline, {found}; {remedy}")
    return Check(name, value, limit, PSIS, Verdict.FAIL, f"the guide is far from the posterior, {found}; {remedy}")


def khat_of_rows(inputs: CheckInputs) -> Check:
    """Share of rows whose latents have weights with a Pareto shape above .7, at one draw of what all rows share."""
    name, source = OF_ROWS, f"{PSIS}; share ours"
    if reason := SAMPLED if inputs.sampled else _why_no_rows(inputs):
        return beside(name, source, reason)
    try:
        ratios = inputs.row_ratios
    except InputError as reason:
        return beside(name, source, str(reason))
    if not ratios.isfinite().all():
        return beside(name, source, "the guide gives latents of single rows no density, or an infinite one")
    k = smoothed_weights(ratios)[1].cpu().numpy()
    shapes = RowShapes(1 + math.ceil(inputs.num_rows / len(k)) * np.arange(len(k)), k, GOOD_K)
    value = float(shapes.high.mean())
    if value <= SHARE:
        return Check(name, value, SHARE, source, Verdict.PASS, shapes=shapes)
    remedy = f"{shapes}: the guide misses the posterior of these rows' latents; a richer guide (guide='full' or "
    remedy += "'flow', where the story has them) or longer training comes closer"
    return Check(name, value, SHARE, source, Verdict.WARN if value <= 0.5 else Verdict.FAIL, remedy, shapes)


def bound_gap(inputs: CheckInputs) -> Check:
    """Importance-weighted bound of all draws of what is shared minus the ELBO: a lower bound of KL(q, p) in nats."""
    name, source = "bound gap (nats)", "Burda et al. 2016; threshold ours"
    if inputs.structure.row_latent and not inputs.sampled and not inputs.why_no_shared:
        ratios = inputs.shared_ratios
    elif inputs.why_not_joint:
        return beside(name, source, inputs.why_not_joint)
    else:
        ratios = inputs.log_ratios
    ratios = ratios.flatten()
    if not ratios.isfinite().all():
        return Check(name, math.inf, GAP, source, Verdict.FAIL, "some weights are not finite; see non-finite values")
    value = float(ratios.logsumexp(0) - math.log(len(ratios)) - ratios.mean())
    if value <= GAP:
        return Check(name, value, GAP, source, Verdict.PASS)
    remedy = (
        f"the ELBO is at least so much below the log evidence, so it must not choose between models; {wider(inputs)}"
    )
    return Check(name, value, GAP, source, Verdict.WARN, remedy)


def resampled_means(inputs: CheckInputs) -> Check:
    """Largest move of a posterior mean, in standard deviations, when draws are weighed towards the posterior."""
    name, source = "mean moved by importance weights (sd)", "Yao et al. 2018; threshold ours"
    if reason := SAMPLED if inputs.sampled else inputs.why_no_shared:
        return beside(name, source, reason)
    weights, shape = smoothed_weights(inputs.weighted.log_ratio)
    if shape > k_limit(len(weights)):
        return beside(name, source, f"the weights are no better than the guide: Pareto k {shape:.2f}")
    names, values = list(inputs.scalars), torch.stack(list(inputs.scalars.values()), dim=1)
    moved = (weights[:, None] * values).sum(0) - values.mean(0)
    moves = (moved / values.std(0)).abs().cpu().numpy()
    worst, error = int(np.argmax(moves)), float(weights.square().sum().sqrt())
    value = float(moves[worst])
    # several errors, for it is the largest of many moves
    if value <= max(SHIFT, 4 * error):
        noise = f"it is within four errors of the weights, {error:.1g} each"
        note = "" if value <= SHIFT else despite(Verdict.PASS, value, SHIFT, noise)
        return Check(name, value, SHIFT, source, Verdict.PASS, note)
    remedy = f"{names[worst]}: the guide is biased; weigh its draws by sample_stats lp - log_q, or {wider(inputs)}"
    return Check(name, value, SHIFT, source, Verdict.WARN, remedy)


def wider(inputs: CheckInputs) -> str:
    """Say what comes closer to the posterior: a story has the guide that it has."""
    return SECOND if inputs.story is not None else WIDER


def _why_no_rows(inputs: CheckInputs) -> str | None:
    """Say why latents of single rows cannot be weighed apart; ``None`` where they can."""
    if not inputs.structure.row_latent:
        return "no row has latents of its own"
    if inputs.point:
        return f"the guide puts {inputs.point!r} at a point, which has no density to weigh"
    if not inputs.num_rows:
        return inputs.why_no_training_rows
    if inputs.num_rows < 2:
        return f"it takes several rows to have a share of {ROWS}, and there is one"
    if not inputs.is_training and not inputs.has_rows and inputs.structure.shared_latent:
        return inputs.why_no_training_rows
    return inputs.structure.why_no_row_densities()
