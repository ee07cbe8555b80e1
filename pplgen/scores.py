"""How likely series and rows are, with the estimator and its error; what a series says of its own future."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from pplgen.codes import is_plain, log_weights, row_blocks
from pplgen.described import at, describe, first_model, series_story, transitions
from pplgen.draws import draw_shared, row_densities, shared_densities
from pplgen.dynamics import SwitchingLinearGaussian
from pplgen.errors import InputError
from pplgen.exact.particles import rao_blackwellised_filter
from pplgen.latent import LatentStory
from pplgen.mixtures import GOOD_K, smoothed_weights
from pplgen.pair import Pair, rows_of
from pplgen.paths import smoothed_states
from pplgen.state_space import StateSpaceStory, lengths
from pplgen.states import filter_densities
from pplgen.stored import StoredDraws
from pplgen.story import check_count

__all__ = ["LeaveFutureOut", "LogLikelihood", "latent_densities", "leave_future_out", "row_log_likelihood"]

ESTIMATORS = {
    "exact": "exact",
    "gaussian-sum": "Gaussian sum smoother (importance-weighted)",
    "importance": "importance-weighted",
    "kim": "Kim's filter",
    "particle": "particle filter",
}
"""Names of estimators as arguments, and in words."""
BLOCK_NUMBERS = 2**24
"""Numbers that are kept of a block of rows with codes: 64 MiB."""
PATHS = 2
"""Paths of regimes and states at each draw of the parameters; the estimate is unbiased whatever their number."""
PARTICLES, RUNS = 200, 2
"""Particles of each run, and runs at each draw of the parameters; the estimate is unbiased whatever their number."""


class LogLikelihood(Tensor):
    """Log density of each row in nats, shape ``(num_rows,)``, that knows how it was computed.

    What is computed from it is a plain tensor.

    Attributes
    ----------
    estimator : str
        ``exact``, where all but the parameters is summed or integrated out; ``importance-weighted``, latents of single
        rows being drawn from the guide; ``Gaussian sum smoother``, importance-weighted, regimes and states being drawn
        from sums of Gaussians; ``Kim's filter``, an approximation; ``particle filter``.
    standard_error : Tensor
        Of each row, in nats, from the spread of the draws by the delta method, shape ``(num_rows,)``.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    estimator: str
    standard_error: Tensor

    @classmethod
    def of_draws(cls, log_densities: Tensor, estimator: str) -> LogLikelihood:
        """Average densities over draws, shape ``(num_draws, num_rows)``."""
        top = log_densities.amax(dim=0)
        top = torch.where(top.isfinite(), top, 0.0)  # impossible at every draw
        relative = (log_densities - top).exp()
        mean = relative.mean(dim=0)
        error = torch.zeros_like(mean)
        if len(relative) > 1:
            error = relative.std(dim=0) / (mean.clamp_min(torch.finfo(mean.dtype).tiny) * math.sqrt(len(relative)))
        elif estimator != "exact":
            error = torch.full_like(mean, math.nan)
        return cls.told(top + mean.log(), error, estimator)

    @classmethod
    def told(cls, values: Tensor, standard_error: Tensor, estimator: str) -> LogLikelihood:
        """Attach what is known of log densities."""
        told = values.detach().as_subclass(cls)
        told.standard_error, told.estimator = standard_error, estimator
        return told

    @classmethod
    def joined(cls, parts: Sequence[LogLikelihood]) -> LogLikelihood:
        """Put the rows of several after one another."""
        errors = torch.cat([part.standard_error for part in parts])
        return cls.told(torch.cat([part.as_subclass(Tensor) for part in parts]), errors, parts[0].estimator)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        error = self.standard_error.max().item() if len(self) else 0.0
        return f"LogLikelihood({self.as_subclass(Tensor)!r}, {self.estimator}, standard errors up to {error:.2g} nats)"


def row_log_likelihood(pair: Pair, data: tuple[Any, ...], draws: int, estimator: str | None = None) -> LogLikelihood:
    """Posterior predictive log density of each row of ``data`` in nats, ``log mean_s p(x_i | theta_s)``.

    Call it inside ``pair.isolated``.

    Parameters
    ----------
    pair, data
        A pair, and arguments of its model.
    draws
        Draws of the guide.
    estimator
        ``gaussian-sum``, ``importance``, ``kim`` or ``particle``, for a switching linear Gaussian story, by default the
        first. Other pairs have one of their own.
    """
    latents = draw_shared(pair, draws)
    offered = ["importance" if pair.structure.row_latent else "exact"]
    if isinstance(pair.story, StateSpaceStory):
        model = first_model(pair, data[0], latents)
        if isinstance(model, SwitchingLinearGaussian):
            offered = ["gaussian-sum", "importance", "kim", "particle"]
    chosen = estimator or offered[0]
    if chosen not in offered:
        name = type(pair.story).__name__ if pair.story else "this pair"
        raise InputError(f"estimator={estimator!r}: {name} has {' or '.join(map(repr, offered))}")
    if chosen == "kim":
        densities = filter_densities(pair, data[0], latents, draws)[0].sum(dim=-1)
    elif chosen == "gaussian-sum":
        densities = _by_sums(pair, data[0], latents, draws)
    elif chosen == "particle":
        densities = _by_particles(pair, data[0], latents, draws)
    else:
        if data is not pair.data:
            pair.check_amortised()
        if isinstance(pair.story, LatentStory):
            blocks = latent_densities(pair, data, draws, latents)
            return LogLikelihood.joined([LogLikelihood.of_draws(block, ESTIMATORS[chosen]) for block in blocks])
        densities = row_densities(pair, latents, draws, data).log_likelihood
    return LogLikelihood.of_draws(densities, ESTIMATORS[chosen])


def latent_densities(
    pair: Pair, data: tuple[Any, ...], draws: int, latents: dict[str, Tensor] | None = None
) -> Iterator[Tensor]:
    """Weigh codes of a latent-variable story's rows, block by block; call it inside ``pair.isolated``.

    Yields
    ------
    Tensor
        ``log p(x_i, z_is) - log q(z_is | x_i)`` in nats, discrete latents summed out, shape ``(draws, block)``.
    """
    story, x = pair.story, data[0]
    assert isinstance(story, LatentStory), "only they have codes"
    if is_plain(story):
        with torch.no_grad(), pyro.validation_enabled(False):
            yield from log_weights(story, x, draws)
        return
    for block in row_blocks(len(x), BLOCK_NUMBERS // (draws * (1 + story.num_latents))):
        rows = tuple(rows_of(value, block, len(x)) for value in data)
        yield row_densities(pair, latents or {}, draws, rows).log_likelihood


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
    longest = int(lengths(y).max())
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


def _by_sums(pair: Pair, y: Tensor, latents: Any, num_draws: int) -> Tensor:
    """Estimate the log density of each series at each draw, shape ``(num_draws, num_series)``."""
    if not latents:  # every path is a draw
        return smoothed_states(pair, y, latents, 1, num_draws)[1].squeeze(0)
    return smoothed_states(pair, y, latents, num_draws, PATHS)[1].logsumexp(dim=1) - math.log(PATHS)


def _by_particles(pair: Pair, y: Tensor, latents: Any, num_draws: int) -> Tensor:
    """Estimate the log density of each series at each draw, shape ``(num_draws, num_series)``."""
    rows = []
    for s in range(num_draws):
        own = at(latents, slice(s, s + 1))
        model = describe(pair, y, own, 1)
        assert isinstance(model, SwitchingLinearGaussian), "a story is of one kind at all draws"
        if transitions(pair, own, model) is not None:
            raise InputError("estimator='particle': the regimes depend on the state; expected another one")
        alone = SwitchingLinearGaussian(*(part[0, 0] for part in model))
        seeds = torch.randint(2**31, (len(y),)).tolist()
        runs = [
            rao_blackwellised_filter(
                series[:length].double(), alone, num_particles=PARTICLES, num_runs=RUNS, seed=seed
            ).estimate
            for series, length, seed in zip(y, lengths(y).clamp_min(1).tolist(), seeds, strict=True)
        ]
        rows.append(torch.stack(runs))
    return torch.stack(rows)
