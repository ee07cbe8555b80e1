"""Checks of the numbers themselves: whether all are finite, and whether every row counts once."""

from __future__ import annotations

from typing import Any

import torch

from pplgen.checks.check import Check, Verdict, beside
from pplgen.checks.inputs import CheckInputs
from pplgen.posterior.draws import draw_posterior
from pplgen.story.structure import number_of_rows

__all__ = ["counted_rows", "non_finite"]

FEW = 10
"""Draws, where each is of the latents of many rows."""
OURS = "this package"


def non_finite(inputs: CheckInputs) -> Check:
    """Share of draws of the guide with a latent, or a density, that is infinite or NaN."""
    name = "draws that are not finite (share)"
    if reason := inputs.why_no_training_rows:
        return beside(name, OURS, reason)
    if not inputs.structure.latent:
        return beside(name, OURS, "the guide draws nothing")
    if inputs.why_not_joint:  # the densities of latents of many rows are dear, and one that is not finite shows soon
        drawn = draw_posterior(inputs.pair, FEW, exclude=set(inputs.structure.latent))
        ratios = drawn.lp - drawn.log_q
    else:
        ratios = inputs.log_ratios
    value = 1 - float(ratios.isfinite().double().mean())
    if value == 0:
        return Check(name, value, 0.0, OURS, Verdict.PASS)
    remedy = "the guide reaches where the model has no density: check supports and scales, or take double precision"
    return Check(name, value, 0.0, OURS, Verdict.FAIL, remedy)


def counted_rows(inputs: CheckInputs) -> Check:
    """How often the model's likelihood counts each row: the scale of its terms, times their number, over the rows.

    A plate whose size is not that of the data, or a scale by hand where minibatches are scaled already, makes the
    posterior too narrow or too wide, and no draw of the guide can tell.
    """
    name = "times that each row counts"
    if reason := inputs.why_no_training_rows:
        return beside(name, OURS, reason)
    if inputs.pair.weights is not None:
        return beside(name, OURS, "rows count by their weights")
    num_rows = number_of_rows(inputs.pair.data)
    nodes = inputs.traces[1].nodes
    counts = [_counted(nodes[name], num_rows) for name in inputs.structure.observed if num_rows]
    known = [count for count in counts if count is not None]
    if not known or not num_rows:
        return beside(name, OURS, "no plate is as long as the data or draws some of them")
    value = max(known, key=lambda count: abs(count / num_rows - 1)) / num_rows
    if abs(value - 1) < 1e-4:
        return Check(name, value, 1.0, OURS, Verdict.PASS)
    remedy = "the scale or size of the row plate is wrong: give pyro.plate the number of all rows, and leave "
    remedy += "scaling of minibatches to it or to fit(batch_size=)"
    return Check(name, value, 1.0, OURS, Verdict.FAIL, remedy)


def _counted(node: Any, num_rows: int | None) -> float | None:
    """Sum of the scales of a site's rows; ``None`` where its plates are not of rows."""
    frames = [frame for frame in node["cond_indep_stack"] if frame.vectorized]
    for frame in frames:
        drawn = frame.full_size is not None and frame.full_size != frame.size
        if drawn or frame.size == num_rows:
            scale = torch.as_tensor(node["scale"])
            return float(scale.double().mean()) * frame.size
    return None
