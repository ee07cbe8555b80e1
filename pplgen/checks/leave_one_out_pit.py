"""LOO-PIT: the probability of less than each entry of the data, given the other rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from pplgen.checks.inputs import CheckInputs
from pplgen.posterior.psis import k_limit, smoothed_weights
from pplgen.posterior.residuals import quantile_residuals

__all__ = ["MAX_HIGH_ROWS", "LeaveOneOutPit", "leave_one_out_pit", "why_not_replicated"]

MAX_HIGH_ROWS = 0.05
"""Largest fraction of rows whose leave-one-out weights may be heavy-tailed."""


@dataclass(frozen=True)
class LeaveOneOutPit:
    """LOO-PIT values of evenly spaced rows."""

    values: np.ndarray
    """``P(x_rep_ij <= x_ij | the other rows)``, randomised for discrete columns, NaN where the entry is missing, shape
    ``(num_rows, num_columns)``."""
    columns: list[str]
    """Names of the columns."""
    spacing: int
    """Spacing of the rows among those that the fit is checked on."""

    @property
    def residuals(self) -> np.ndarray:
        """Their standard normal quantiles, shape ``(num_rows, num_columns)``."""
        return quantile_residuals(torch.from_numpy(self.values)).numpy()

    @property
    def seen(self) -> list[np.ndarray]:
        """Values of each column without missing entries."""
        return [column[~np.isnan(column)] for column in self.values.T]


def leave_one_out_pit(inputs: CheckInputs) -> LeaveOneOutPit | str:
    """Return LOO-PIT values (Gabry et al. 2019), or why there are none; without shared latents, nothing is left out."""
    if reason := why_not_replicated(inputs):
        return reason
    reason = inputs.why_no_shared
    if inputs.structure.shared_latent and (reason or not inputs.is_training):
        return reason or "the rows are not the training rows, so none can be left out"
    replicates = inputs.replicates
    if not replicates.values.numel():
        return "series, and sites of different lengths, have no rows to leave out"
    if inputs.structure.shared_latent:
        every = replicates.step * inputs.replicated_step // inputs.scored_rows.step
        densities = inputs.weighted.log_likelihood[:, ::every]
        if densities.shape[1] != len(replicates.values):
            return "the observed site does not have one entry per row"
        ratios = inputs.weighted.log_ratio
        weights, k = smoothed_weights(torch.cat([ratios[:, None], ratios[:, None] - densities], dim=1))
        limit = k_limit(len(ratios))
        if not inputs.sampled and float(k[0]) > limit:
            return f"the guide's importance weights are unreliable: Pareto k {k[0]:.2f}"
        if float((k[1:] > limit).double().mean()) > MAX_HIGH_ROWS:
            return f"the weights of {int((k[1:] > limit).sum()):,} rows are unreliable"
        weights = weights[:, 1:, None]
    else:
        weights = torch.full((len(replicates.drawn), 1, 1), 1 / len(replicates.drawn), dtype=torch.float64)
    below = (weights * (replicates.drawn < replicates.values)).sum(0)
    equal = (weights * (replicates.drawn == replicates.values)).sum(0)
    own = 1 / len(replicates.drawn)  # the entry is ranked among the draws and itself, so that its rank is uniform
    pit = (below + torch.rand_like(below) * (equal + own)) / (1 + own)
    seen = pit.where(~replicates.values.isnan(), torch.nan)
    return LeaveOneOutPit(seen.cpu().numpy(), replicates.columns, replicates.step * inputs.replicated_step)


def why_not_replicated(inputs: CheckInputs) -> str | None:
    """Why data cannot be replicated; ``None`` if they can."""
    if not inputs.structure.observed:
        return "the model has no observed site"
    if inputs.pair.weights is not None and inputs.is_training:
        return "weighted rows cannot be replicated"
    if not inputs.num_rows or (inputs.rows is inputs.pair.data and not inputs.has_rows):
        return inputs.why_no_training_rows or "there are no rows"
    return None
