"""Leave-future-out validation: how well each step of series is predicted from those before it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pplgen.errors import InputError
from pplgen.inference.stored_draws import StoredDraws
from pplgen.posterior.draws import shared_densities
from pplgen.posterior.weighted import GOOD_K, smoothed_weights
from pplgen.story.base import check_count
from pplgen.story.pair import Pair
from pplgen.story.state_space import series_lengths
from pplgen.timeseries.parameters import series_story
from pplgen.timeseries.smoothing import filter_densities

__all__ = ["LeaveFutureOut", "leave_future_out"]


@dataclass(frozen=True)
class LeaveFutureOut:
    """How well each step is predicted from those before it; not leave-one-out cross-validation.

    Attributes
    ----------
    elpd : float
        Sum of ``pointwise`` in nats.
    se : float
        Standard error of ``elpd`` from the spread of its terms, which it takes for independent.
    pointwise : numpy.ndarray
        ``log p(y_t | y_1:t-1)`` of each series and step from ``start`` on, NaN where nothing is seen, shape
        ``(num_series, T - start)``.
    pareto_k : numpy.ndarray
        Of the weights of the parameters' draws at each step, shape ``(T - start,)``.
    start : int
        First step that is predicted, counted from 0.
    estimator : str
        Of the density at each draw.
    """

    elpd: float
    se: float
    pointwise: np.ndarray
    pareto_k: np.ndarray
    start: int
    estimator: str

    def __repr__(self) -> str:
        doubtful = int((self.pareto_k > GOOD_K).sum())
        caution = (
            f"; Pareto k above {GOOD_K} at {doubtful} steps, whose terms are not to be trusted" if doubtful else ""
        )
        return (
            f"<Leave-future-out (one step ahead, from step {self.start} on; not LOO): elpd {self.elpd:.2f} +- "
            f"{self.se:.2f} nats over {int(np.isfinite(self.pointwise).sum())} steps, {self.estimator}; "
            f"largest Pareto k {self.pareto_k.max():.2f}{caution}>"
        )


def leave_future_out(pair: Pair, data: tuple[Any, ...], start: int | None, num_draws: int) -> LeaveFutureOut:
    """Predict each step from those before it, without a fit to each; call it inside ``pair.isolated``.

    Draws of the guide, which has learned from all steps, are weighted towards the posterior given the steps before t
    alone, by ``p(theta) p(y_1:t-1 | theta) / q(theta)`` of all series together, Pareto-smoothed.

    Parameters
    ----------
    pair
        Of a state space story.
    data
        Arguments of model and guide, the series first: those of the fit, which may go on after its end.
    start
        First step to predict, counted from 0; half of the longest series where not given.
    num_draws
        Draws of the parameters.

    References
    ----------
    Bürkner, Gabry and Vehtari (2020), Approximate leave-future-out cross-validation for Bayesian time series models.
    """
    story = series_story(pair, "leave_future_out")
    y = data[0]
    if pair.weights is not None:
        raise InputError(
            f"leave_future_out: {type(story).__name__} was fitted to weighted series, which it cannot heed"
        )
    _require_training_series(pair, y)
    longest = int(series_lengths(y).max())
    start = longest // 2 if start is None else check_count("start", start)
    if not 1 <= start < longest:
        raise InputError(f"start={start}: expected a step from 1 to {longest - 1}, with some before it to learn from")
    latents, log_p, log_q = shared_densities(pair, num_draws)
    densities, estimator = filter_densities(pair, y, latents, num_draws)
    past = densities.sum(dim=1).cumsum(dim=-1)[:, start - 1 : longest - 1]
    # a sampler's draws know the whole already, which its likelihood takes back
    known = -densities.sum(dim=(1, 2)) if isinstance(pair.guide, StoredDraws) else log_p.double() - log_q.double()
    ratios = past + known[:, None].to(past)
    weights, pareto_k = smoothed_weights(ratios)
    terms = (weights.log()[:, None] + densities[:, :, start:longest]).logsumexp(dim=0)
    pointwise = torch.where(y.isnan().all(dim=-1)[:, start:longest], torch.nan, terms).cpu().numpy()
    seen = pointwise[np.isfinite(pointwise)]
    se = float(np.sqrt(len(seen) * seen.var(ddof=1))) if len(seen) > 1 else math.nan
    return LeaveFutureOut(float(seen.sum()), se, pointwise, pareto_k.cpu().numpy(), start, estimator)


def _require_training_series(pair: Pair, y: Tensor) -> None:
    """Refuse series that the guide has not learned from, whose past would take the place of the training series."""
    known = pair.data[0]
    going_on = len(y) == len(known) and y.shape[1] >= known.shape[1]
    if not going_on or not torch.equal(y[:, : known.shape[1]].nan_to_num(), known.nan_to_num()):
        raise InputError(
            f"leave_future_out: series of shape {tuple(y.shape)} are not those of the fit; expected these, which may "
            "go on after its end; filter(x)['log_density'] scores others"
        )
