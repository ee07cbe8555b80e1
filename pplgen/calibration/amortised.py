"""Rows simulated from a trained model, and codes that its guide, trained already, draws for them."""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from torch import Tensor

from pplgen.calibration.trials import LOG_LIKELIHOOD, Trials
from pplgen.compiler.vectorised import map_draws
from pplgen.errors import InputError
from pplgen.inference.estimators import unwrap_independent
from pplgen.inference.training import StopReason
from pplgen.posterior.parameter_names import entry_names
from pplgen.story.pair import Pair

__all__ = ["row_trials"]


@torch.no_grad()
def row_trials(pair: Pair, num_rows: int, num_draws: int) -> Trials:
    """Simulate rows and draw their latents from the guide; call it inside ``pair.isolated``.

    Each row is a data set of its own, for which the guide needs no fitting.

    Parameters
    ----------
    pair
        Of a trained story whose latents all belong to single rows.
    num_rows
        How many.
    num_draws
        Draws of each row's latents.

    Raises
    ------
    InputError
        Where rows share latents, or the guide is of the training rows alone.
    """
    structure, story = pair.structure, pair.story
    if story is None or structure.shared_latent or not structure.row_latent or structure.row_plate is None:
        raise InputError(
            "a fit is calibrated without refitting where it is a story's whose latents are all of single rows"
        )
    names = [name for name in structure.row_latent if name not in structure.guide_enumerated]
    guide = poutine.trace(pair.guide).get_trace(*pair.data)
    if points := [name for name in names if isinstance(unwrap_independent(guide.nodes[name]["fn"]), Delta)]:
        raise InputError(f"the guide puts {points[0]!r} at a point, among which nothing can be ranked")
    with pyro.validation_enabled(False):
        simulated = poutine.trace(story.model).get_trace(None, num_rows=num_rows)
        data = (simulated.nodes["_RETURN"]["value"],)
        if any(frame.size != num_rows for frame in _frames(poutine.trace(story.guide).get_trace(*data), names[0])):
            raise InputError("the guide knows the training rows alone, and none that are simulated")

        def draw(_: Mapping[str, Tensor]) -> dict[str, Tensor]:
            drawn = poutine.trace(story.guide).get_trace(*data)
            scored = poutine.trace(poutine.replay(story.model, drawn)).get_trace(*data)
            return {**{name: drawn.nodes[name]["value"] for name in names}, LOG_LIKELIHOOD: _of_rows(scored, pair)}

        draws = map_draws(draw, num_draws)
        conditioned = poutine.trace(poutine.condition(story.model, _drawn(simulated, pair))).get_trace(*data)
    truths = {**{name: simulated.nodes[name]["value"] for name in names}, LOG_LIKELIHOOD: _of_rows(conditioned, pair)}
    own = {name: value.movedim(0, 1) for name, value in draws.items()}
    entries = entry_names({name: value.shape[1:] for name, value in truths.items()})
    return Trials(truths, own, entries, (StopReason.CONVERGED,) * num_rows, 0, "the guide as it was trained")


def _drawn(trace: poutine.Trace, pair: Pair) -> dict[str, Tensor]:
    """Values of everything that was drawn for rows."""
    names = (*pair.structure.row_latent, *pair.structure.enumerated)
    return {name: trace.nodes[name]["value"] for name in names}


def _frames(trace: poutine.Trace, name: str) -> list:
    """Plates around a site."""
    return [frame for frame in trace.nodes[name]["cond_indep_stack"] if frame.vectorized]


def _of_rows(trace: poutine.Trace, pair: Pair) -> Tensor:
    """Log density of each row given its latents, shape ``(num_rows,)``."""
    trace.compute_log_prob(lambda name, _: name in pair.structure.observed)
    return sum((trace.nodes[name]["log_prob"] for name in pair.structure.observed), torch.zeros(()))
