"""Leave-future-out cross-validation: one-step-ahead predictive densities of series."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pplgen.errors import InputError
from pplgen.inference.empirical_guide import StoredDraws
from pplgen.posterior.draws import shared_densities
from pplgen.posterior.psis import GOOD_K, smoothed_weights
from pplgen.story.base import check_count
from pplgen.story.pair import Pair
from pplgen.story.state_space import series_lengths
from pplgen.timeseries.parameter_draws import series_story
from pplgen.timeseries.smoothing import filter_densities

__all__ = ["LeaveFutureOut", "leave_future_out"]


@dataclass(frozen=True)
class LeaveFutureOut:
    """Expected log predictive density of each step given the steps before it; not leave-one-out cross-validation.

    Attributes
    ----------
    elpd : float
        Sum of ``pointwise`` in nats.
    se : float
        Standard error of ``elpd``, with its terms regarded as independent.
    pointwise : numpy.ndarray
        ``log p(y_t | y_1:t-1)`` of each series and step from ``start`` on, NaN where nothing is observed,
        shape ``(num_series, T - start)``.
    pareto_k : numpy.ndarray
        Pareto k of the importance weights at each step, shape ``(T - start,)``.
    start : int
        First predicted step, counted from 0.
    estimator : str
        Estimator of the density at each draw.
    """

    elpd: float
    se: float
    pointwise: np.ndarray
    pareto_k: np.ndarray
    start: int
    estimator: str

    def __repr__(self) -> str:
        unreliable = int((self.pareto_k > GOOD_K).sum())
        caution = f"; Pareto k above {GOOD_K} at {unreliable} steps, whose terms are unreliable" if unreliable else ""
        return (
            f"<Leave-future-out (one step ahead, from step {self.start} on; not LOO): elpd {self.elpd:.2f} +- "
            f"{self.se:.2f} nats over {int(np.isfinite(self.pointwise).sum())} steps, {self.estimator}; "
            f"largest Pareto k {self.pareto_k.max():.2f}{caution}>"
        )


def leave_future_out(pair: Pair, data: tuple[Any, ...], start: int | None, num_draws: int) -> LeaveFutureOut:
    """Estimate one-step-ahead predictive densities without refitting; call it inside ``pair.isolated``.

    Draws from the guide, which was fitted to all steps, are importance-weighted towards the posterior given the steps
    before t, by ``p(theta) p(y_1:t-1 | theta) / q(theta)`` over all series, Pareto-smoothed.

    Parameters
    ----------
    pair
        Pair of a state space story.
    data
        Arguments of model and guide, the series first: the training series, which may be continued.
    start
        First step to predict, counted from 0; default: half of the longest series.
    num_draws
        Number of draws of the parameters.

    References
    ----------
    Bürkner, Gabry and Vehtari (2020), Approximate leave-future-out cross-validation for Bayesian time series models.
    """
    story = series_story(pair, "leave_future_out")
    y = data[0]
    if pair.weights is not None:
        raise InputError(f"leave_future_out: {type(story).__name__} was fitted to weighted series; expected no weights")
    _require_training_series(pair, y)
    longest = int(series_lengths(y).max())
    start = longest // 2 if start is None else check_count("start", start)
    if not 1 <= start < longest:
        raise InputError(f"start={start}: expected a step from 1 to {longest - 1}, after at least one step")
    latents, log_p, log_q = shared_densities(pair, num_draws)
    densities, estimator = filter_densities(pair, y, latents, num_draws)
    past = densities.sum(dim=1).cumsum(dim=-1)[:, start - 1 : longest - 1]
    # a sampler's draws are of the posterior given all steps: divide by the whole likelihood
    base = -densities.sum(dim=(1, 2)) if isinstance(pair.guide, StoredDraws) else log_p.double() - log_q.double()
    ratios = past + base[:, None].to(past)
    weights, pareto_k = smoothed_weights(ratios)
    terms = (weights.log()[:, None] + densities[:, :, start:longest]).logsumexp(dim=0)
    pointwise = torch.where(y.isnan().all(dim=-1)[:, start:longest], torch.nan, terms).cpu().numpy()
    finite = pointwise[np.isfinite(pointwise)]
    se = float(np.sqrt(len(finite) * finite.var(ddof=1))) if len(finite) > 1 else math.nan
    return LeaveFutureOut(float(finite.sum()), se, pointwise, pareto_k.cpu().numpy(), start, estimator)


def _require_training_series(pair: Pair, y: Tensor) -> None:
    """Raise ``InputError`` unless the series are the training series, possibly continued."""
    training = pair.data[0]
    same_shape = len(y) == len(training) and y.shape[1] >= training.shape[1]
    if not same_shape or not torch.equal(y[:, : training.shape[1]].nan_to_num(), training.nan_to_num()):
        raise InputError(
            f"leave_future_out: series of shape {tuple(y.shape)} are not the training series; expected those, "
            "possibly continued; filter(x)['log_density'] scores other series"
        )
