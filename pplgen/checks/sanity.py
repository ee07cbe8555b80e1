"""Checks for non-finite densities, and for scales of the row plate and of latents."""

from __future__ import annotations

from typing import Any

import torch

from pplgen.checks.check import Check, Verdict, not_applicable
from pplgen.checks.inputs import CheckInputs
from pplgen.posterior.draws import draw_posterior

__all__ = ["counted_rows", "latent_scales", "non_finite"]

FEW_DRAWS = 10
"""Draws when every row has latents of its own, which makes each draw expensive."""
OURS = "this package"


def non_finite(inputs: CheckInputs) -> Check:
    """Fraction of guide draws with an infinite or NaN latent or density."""
    name = "non-finite draws (fraction)"
    if reason := inputs.why_no_training_rows:
        return not_applicable(name, OURS, reason)
    if not inputs.structure.latent:
        return not_applicable(name, OURS, "the guide has no latent variables")
    if inputs.why_not_joint:  # densities of many rows' latents are expensive, and few draws suffice
        drawn = draw_posterior(inputs.pair, FEW_DRAWS, exclude=set(inputs.structure.latent))
        ratios = drawn.lp - drawn.log_q
    else:
        ratios = inputs.log_ratios
    value = 1 - float(ratios.isfinite().double().mean())
    if value == 0:
        return Check(name, value, 0.0, OURS, Verdict.PASS)
    remedy = "the guide draws values outside the model's support: check supports and scales, or use float64"
    return Check(name, value, 0.0, OURS, Verdict.FAIL, remedy)


def counted_rows(inputs: CheckInputs) -> Check:
    """Plate scaling factor: scale of the likelihood terms times their number, divided by the number of rows.

    A plate whose size differs from the data's, or minibatches that are scaled twice, makes the posterior too narrow or
    too wide, which no draw of the guide reveals.
    """
    name = "plate scaling factor"
    if reason := inputs.why_no_training_rows:
        return not_applicable(name, OURS, reason)
    if inputs.pair.weights is not None:
        return not_applicable(name, OURS, "rows are weighted")
    num_rows = inputs.structure.row_axes.count(inputs.pair.data)
    nodes = inputs.traces[1].nodes
    totals = [_total_scale(nodes[name], num_rows) for name in inputs.structure.observed if num_rows]
    defined = [total for total in totals if total is not None]
    if not defined or not num_rows:
        return not_applicable(name, OURS, "no plate has the length of the data or subsamples it")
    value = max(defined, key=lambda total: abs(total / num_rows - 1)) / num_rows
    if abs(value - 1) < 1e-4:
        return Check(name, value, 1.0, OURS, Verdict.PASS)
    remedy = "the scale or size of the row plate is wrong: pass pyro.plate the total number of rows, and leave "
    remedy += "scaling of minibatches to it or to fit(batch_size=)"
    return Check(name, value, 1.0, OURS, Verdict.FAIL, remedy)


def latent_scales(inputs: CheckInputs) -> Check:
    """Scale of the latents' log densities: the one that differs most from 1, those of rows relative to all rows.

    A weight on the KL terms that never rises to one, or a prior that is masked or scaled, makes the optimum of the ELBO
    another distribution than the posterior; neither draws of the guide nor importance weights reveal it, because they
    are of the same scaled densities.
    """
    name = "scale of the latents' log densities"
    if inputs.pair.weights is not None:
        return not_applicable(name, OURS, "rows are weighted")
    latents = (*inputs.structure.latent, *inputs.structure.enumerated)
    if not latents:
        return not_applicable(name, OURS, "the model has no latent variables")
    nodes, num_rows = inputs.traces[1].nodes, inputs.structure.row_axes.count(inputs.pair.data)
    scales = {latent: _latent_scale(nodes[latent], num_rows) for latent in latents}
    worst = max(scales, key=lambda latent: abs(scales[latent] - 1))
    if abs(scales[worst] - 1) < 1e-4:
        return Check(name, scales[worst], 1.0, OURS, Verdict.PASS)
    remedy = (
        f"{worst}: the log density under the model is multiplied by {scales[worst]:.3g}, so that the fit is not to "
    )
    remedy += "the posterior: let a weight of KL terms rise to 1, fit(warm_up=), and do not mask or scale priors"
    return Check(name, scales[worst], 1.0, OURS, Verdict.FAIL, remedy)


def _latent_scale(node: Any, num_rows: int | None) -> float:
    """Scale of a latent's log density, of those of rows relative to their number; 0 if it is masked altogether."""
    if node["mask"] is not None and not torch.as_tensor(node["mask"]).any():
        return 0.0
    total = _total_scale(node, num_rows)
    if total is not None and num_rows:
        return total / num_rows
    return float(torch.as_tensor(node["scale"]).double().mean())


def _total_scale(node: Any, num_rows: int | None) -> float | None:
    """Sum of a site's scales over rows; ``None`` if none of its plates is over rows."""
    frames = [frame for frame in node["cond_indep_stack"] if frame.vectorized]
    for frame in frames:
        subsampled = frame.full_size is not None and frame.full_size != frame.size
        if subsampled or frame.size == num_rows:
            scale = torch.as_tensor(node["scale"])
            return float(scale.double().mean()) * frame.size
    return None
