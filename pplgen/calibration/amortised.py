"""Calibration of an amortised guide without refitting: rows simulated from the trained model, and draws of latents."""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from torch import Tensor

from pplgen.calibration.quantities import LOG_LIKELIHOOD
from pplgen.calibration.trials import Trials
from pplgen.compiler.vectorisation import map_draws
from pplgen.errors import InputError
from pplgen.inference.training_result import StopReason
from pplgen.posterior.parameter_names import entry_names
from pplgen.story.pair import Pair
from pplgen.story.structure import unwrap

__all__ = ["amortised_trials"]


@torch.no_grad()
def amortised_trials(pair: Pair, num_rows: int, num_draws: int) -> Trials:
    """Simulate rows and draw their latents from the guide; call inside ``pair.isolated``.

    Each row is a separate data set, to which an amortised guide applies without fitting.

    Parameters
    ----------
    pair
        Pair of a trained story that has row latents only.
    num_rows
        Number of rows.
    num_draws
        Number of draws of each row's latents.

    Raises
    ------
    InputError
        If there are shared latents, or the guide is not amortised.
    """
    structure, story = pair.structure, pair.story
    if story is None or structure.shared_latent or not structure.row_latent or structure.row_plate is None:
        raise InputError("a fit can be calibrated without refitting only if it is of a story that has row latents only")
    names = [name for name in structure.row_latent if name not in structure.guide_enumerated]
    guide = poutine.trace(pair.guide).get_trace(*pair.data)
    if points := [name for name in names if isinstance(unwrap(guide.nodes[name]["fn"]), Delta)]:
        raise InputError(f"the guide is a point mass at {points[0]!r}, so there are no draws to rank among")
    with pyro.validation_enabled(False):
        simulated = poutine.trace(story.model).get_trace(None, num_rows=num_rows)
        data = (simulated.nodes["_RETURN"]["value"],)
        if any(frame.size != num_rows for frame in _frames(poutine.trace(story.guide).get_trace(*data), names[0])):
            raise InputError("the guide is not amortised: it has no latents for simulated rows")

        def draw(_: Mapping[str, Tensor]) -> dict[str, Tensor]:
            drawn = poutine.trace(story.guide).get_trace(*data)
            scored = poutine.trace(poutine.replay(story.model, drawn)).get_trace(*data)
            return {
                **{name: drawn.nodes[name]["value"] for name in names},
                LOG_LIKELIHOOD: _row_scores(scored, pair),
            }

        draws = map_draws(draw, num_draws)
        conditioned = poutine.trace(poutine.condition(story.model, _row_values(simulated, pair))).get_trace(*data)
    truths = {
        **{name: simulated.nodes[name]["value"] for name in names},
        LOG_LIKELIHOOD: _row_scores(conditioned, pair),
    }
    by_row = {name: value.movedim(0, 1) for name, value in draws.items()}
    entries = entry_names({name: value.shape[1:] for name, value in truths.items()})
    return Trials(truths, by_row, entries, (StopReason.CONVERGED,) * num_rows, 0, "the amortised guide")


def _row_values(trace: poutine.Trace, pair: Pair) -> dict[str, Tensor]:
    """Return the values of all row latents, enumerated ones included."""
    names = (*pair.structure.row_latent, *pair.structure.enumerated)
    return {name: trace.nodes[name]["value"] for name in names}


def _frames(trace: poutine.Trace, name: str) -> list:
    """Return the vectorised plates of a site."""
    return [frame for frame in trace.nodes[name]["cond_indep_stack"] if frame.vectorized]


def _row_scores(trace: poutine.Trace, pair: Pair) -> Tensor:
    """Log-likelihood of each row given its latents, shape ``(num_rows,)``."""
    trace.compute_log_prob(lambda name, _: name in pair.structure.observed)
    return sum((trace.nodes[name]["log_prob"] for name in pair.structure.observed), torch.zeros(()))
