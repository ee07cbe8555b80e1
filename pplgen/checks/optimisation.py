"""Checks of the optimisation: whether it has settled, and whether restarts agree."""

from __future__ import annotations

import math

import numpy as np
import torch
from arviz_stats.base import array_stats
from torch import Tensor

from pplgen.checks.check import Check, Verdict, beside, despite
from pplgen.checks.components import exchangeable
from pplgen.checks.inputs import SAMPLED, CheckInputs
from pplgen.inference.iterates import flatten, tracked_indices, unflatten
from pplgen.inference.training import StopReason, Training
from pplgen.posterior.draws import draw_shared
from pplgen.posterior.relabelling import match_components
from pplgen.story.latent import LatentStory

__all__ = ["elbo_change", "faults", "iterate_rhat", "missed_modes", "restarts_agree"]

RHAT = 1.1
"""Split R-hat above which parameters have not settled."""
FEWEST = 20
"""Iterates in the last half of a run at least."""
CHANGE = 0.01
"""Relative change of the ELBO."""
AGREEMENT = 1.0
"""Nats within which ELBOs agree."""
NEAR = 10.0
"""Nats below the best ELBO within which a restart may be at another mode; its share is at most exp(-10) beyond."""
APART = 5.0
"""Posterior standard deviations between means of two modes at least, the larger of the two being meant."""
MISSED = 0.05
"""Share of the posterior that may lie in other modes."""
MODE_DRAWS = 200

DHAKA = "Dhaka et al. 2020"


def iterate_rhat(inputs: CheckInputs) -> Check:
    """Largest split R-hat of the guide's unconstrained parameters over the last half of the run.

    As the learning rate falls, parameters wander ever more slowly, and R-hat stays large where nothing is to be gained
    any more; so it counts only where the ELBO has moved too.
    """
    name, source = "R-hat of parameters, last half of the run", f"{DHAKA}; with the ELBO, ours"
    if inputs.sampled:
        return beside(name, source, SAMPLED)
    kept = inputs.runs[0].iterates if inputs.runs else np.empty(0)
    half = kept[len(kept) // 2 :]
    if isinstance(inputs.story, LatentStory):
        return beside(name, source, "weights of networks move on along directions that change nothing; see the ELBO")
    if len(half) < FEWEST:
        return beside(name, source, "the run was too short, or its iterates were not kept")
    half = half[len(half) % 2 :].astype(float)
    chains = half.reshape(2, -1, half.shape[1])
    moving = half.std(0) > 1e-6 * (1e-6 + np.abs(half).mean(0))
    if not moving.any():
        return Check(name, 1.0, RHAT, source, Verdict.PASS)
    values = array_stats.rhat(chains[:, :, moving], chain_axis=0, draw_axis=1, method="identity")
    worst = int(np.argmax(values))
    value = float(values[worst])
    if value <= RHAT:
        return Check(name, value, RHAT, source, Verdict.PASS)
    which = _name(inputs, int(np.flatnonzero(moving)[worst]))
    share = f"{int((values > RHAT).sum())} of {len(values)} parameters still move, {which} most"
    history = inputs.runs[0].history
    change, error = _change(history[len(history) // 2 :])
    if abs(change) <= max(AGREEMENT, 2 * error):
        reason = f"nothing more is to be gained; {share}, which is worth {change:.2g} +- {error:.1g} nats"
        return Check(name, value, RHAT, source, Verdict.PASS, despite(Verdict.PASS, value, RHAT, reason))
    remedy = f"{share}, and the ELBO by {change:.3g} +- {error:.1g} nats: give more steps, or a higher learning_rate"
    return Check(name, value, RHAT, source, Verdict.FAIL, remedy)


def elbo_change(inputs: CheckInputs) -> Check:
    """Relative change of the mean ELBO between the halves of the last fifth of the run, heeding its error."""
    name = "relative change of the ELBO"
    if inputs.sampled:
        return beside(name, DHAKA, SAMPLED)
    history = inputs.runs[0].history if inputs.runs else np.empty(0)
    last = history[-(len(history) // 5) :] if len(history) >= 5 * FEWEST else np.empty(0)
    if not len(last):
        return beside(name, DHAKA, "the run was too short, or its history was not kept")
    scale = max(abs(last.mean()), 1.0)
    change, error = (value / scale for value in _change(last))
    value = float(abs(change))
    stopped = inputs.runs[0].stop
    if value <= max(CHANGE, 2 * error):
        noise = f"it is within its own error, {error:.1g}"
        if stopped is StopReason.STEPS:
            reason = stopped.value if value <= CHANGE else f"{noise}, but {stopped.value}"
            return Check(name, value, CHANGE, DHAKA, Verdict.WARN, despite(Verdict.WARN, value, CHANGE, reason))
        note = "" if value <= CHANGE else despite(Verdict.PASS, value, CHANGE, noise)
        return Check(name, value, CHANGE, DHAKA, Verdict.PASS, note)
    remedy = f"the ELBO still moves, by {change:+.2g} +- {error:.1g} of itself: give more steps"
    return Check(name, value, CHANGE, DHAKA, Verdict.FAIL, remedy)


def faults(inputs: CheckInputs) -> Check:
    """Count how often the run went back to its last good state, the ELBO or its gradient being infinite or NaN."""
    name, source = "times the run was infinite or NaN", "this package"
    if inputs.sampled:
        return beside(name, source, SAMPLED)
    if not inputs.runs:
        return beside(name, source, "how it was trained is not known")
    best = inputs.runs[0]
    if not best.faults:
        return Check(name, 0, 0, source, Verdict.PASS)
    verdict = Verdict.FAIL if best.broke_down else Verdict.WARN
    remedy = "; look at the model there, or start at a lower learning_rate"
    return Check(name, len(best.faults), 0, source, verdict, "; ".join(best.faults) + remedy)


def restarts_agree(inputs: CheckInputs) -> Check:
    """Restarts, the best among them, whose final ELBO is within ``AGREEMENT`` nats, or its error, of the best."""
    name, source = "restarts that reach the best ELBO", "this package"
    runs = inputs.runs
    if inputs.sampled:
        return beside(name, source, SAMPLED)
    if len(runs) < 2:
        return beside(
            name, source, "one restart has nothing to agree with; fit(restarts=8) says how often it gets here"
        )
    agreeing = sum(runs[0].elbo - run.elbo <= _tolerance(runs[0], run) for run in runs)
    if agreeing >= 2:
        return Check(name, agreeing, 2, source, Verdict.PASS)
    second = max(run.elbo for run in runs[1:])
    remedy = f"the best of {len(runs)} restarts is {runs[0].elbo - second:.1f} nats above the next: it may not be the "
    remedy += "best there is, or have a density that has collapsed on a point; look at it, and give more restarts"
    return Check(name, agreeing, 2, source, Verdict.WARN, remedy)


def missed_modes(inputs: CheckInputs) -> Check:
    """Share of the posterior at modes that other restarts found and the guide misses, components relabelled.

    Each restart's guide stands for its mode, whose mass is at least ``exp(ELBO)``; restarts are at different modes
    where the mean of some parameter differs by ``APART`` standard deviations. k-hat sees nothing of a missed mode.
    """
    name, source = "posterior at modes that are missed (share)", "Yao et al. 2022, stacking; threshold ours"
    runs = inputs.runs
    if inputs.sampled:
        return beside(name, source, SAMPLED)
    if len(runs) < 2 or not all(len(run.final) for run in runs):
        return beside(name, source, "it takes several restarts with few enough parameters to be kept")
    if not inputs.structure.shared_latent or inputs.point:
        return beside(name, source, "it takes latents that all rows share, with a density")
    near = [run for run in runs if runs[0].elbo - run.elbo < NEAR]
    places = _places(inputs, near)
    modes: list[int] = []
    for index in range(len(near)):
        if all(_apart(places[index], places[mode]) for mode in modes):
            modes.append(index)
    masses = np.exp([near[mode].elbo - runs[0].elbo for mode in modes])
    value = float(1 - masses[0] / masses.sum())
    if value <= MISSED:
        return Check(name, value, MISSED, source, Verdict.PASS)
    remedy = f"{len(modes)} modes among {len(runs)} restarts: the guide knows one; say in the model which is meant, "
    return Check(
        name, value, MISSED, source, Verdict.FAIL, remedy + "weigh the restarts by exp(ELBO), or sample by NUTS"
    )


def _places(inputs: CheckInputs, runs: list[Training]) -> list[dict[str, Tensor]]:
    """Draws of what all rows share at the end of each run, the pair being left as it was."""
    pair = inputs.pair
    now = pair.snapshot()
    places = []
    try:
        for run in runs:
            pair.restore(unflatten(torch.from_numpy(run.final), now))
            places.append(draw_shared(pair, MODE_DRAWS))
    finally:
        pair.restore(now)
    axes = exchangeable(inputs, places[0])
    return [match_components(place, places[0], axes) for place in places]


def _apart(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether means differ by ``APART`` of the larger standard deviations somewhere."""
    for name in first:
        a, b = first[name].double(), second[name].double()
        spread = torch.maximum(a.std(0), b.std(0)).clamp_min(1e-12)
        if bool(((a.mean(0) - b.mean(0)).abs() / spread).max() > APART):
            return True
    return False


def _tolerance(best: Training, run: Training) -> float:
    return max(AGREEMENT, 4 * math.hypot(best.elbo_error, run.elbo_error))


def _change(history: np.ndarray) -> tuple[float, float]:
    """Change of the mean ELBO from one half to the other in nats, and its Monte Carlo standard error.

    The noise of ELBOs is independent from step to step.
    """
    before, after = np.array_split(history, 2)
    error = math.hypot(*(float(half.std(ddof=1)) / math.sqrt(len(half)) for half in (before, after)))
    return float(after.mean() - before.mean()), error


def _name(inputs: CheckInputs, place: int) -> str:
    """Name a followed parameter."""
    values = inputs.pair.snapshot()
    index = int(tracked_indices(len(flatten(values)))[place])
    for name in sorted(values):
        if index < values[name].numel():
            return repr(name) if values[name].numel() == 1 else f"{name!r} (entry {index})"
        index -= values[name].numel()
    raise AssertionError("the index is one of a parameter")
