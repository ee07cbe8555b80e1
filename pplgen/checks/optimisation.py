"""Checks of the optimisation: convergence, non-finite values, and agreement of restarts."""

from __future__ import annotations

import math

import numpy as np
import torch
from arviz_stats.base import array_stats
from torch import Tensor

from pplgen.checks.check import Check, Verdict, not_applicable, override_note
from pplgen.checks.components import exchangeable
from pplgen.checks.inputs import SAMPLED, CheckInputs
from pplgen.inference.iterates import flatten, tracked_indices, unflatten
from pplgen.inference.training_result import StopReason, Training
from pplgen.posterior.draws import draw_shared
from pplgen.posterior.relabelling import match_components
from pplgen.story.latent import LatentStory

__all__ = [
    "elbo_change",
    "faults",
    "gradient_norm",
    "iterate_rhat",
    "missed_modes",
    "monte_carlo_error",
    "restarts_agree",
]

RHAT = 1.1
"""Split R-hat above which parameters have not converged."""
FEWEST = 20
"""Minimum number of iterates in the last half of a run."""
CHANGE = 0.01
"""Relative change of the ELBO above which it has not converged."""
AGREEMENT = 1.0
"""Nats within which two ELBOs are considered equal."""
NEAR = 10.0
"""Nats below the best ELBO within which a restart counts as a mode; beyond, its mass is below exp(-10)."""
APART = 5.0
"""Minimum distance between the means of two modes, in units of the larger posterior standard deviation."""
MISSED = 0.05
"""Largest accepted posterior mass of missed modes."""
MODE_DRAWS = 200
"""Guide draws per restart."""

ACCURATE = 0.05
"""Monte Carlo error of an optimum, in posterior standard deviations, above which means and sds are inaccurate."""

GIORDANO = "Giordano, Ingram and Broderick 2024"
STATIONARY = "the run ended at a stationary point, see the gradient norm"
DHAKA = "Dhaka et al. 2020"


def iterate_rhat(inputs: CheckInputs) -> Check:
    """Largest split R-hat of the guide's unconstrained parameters over the last half of the run.

    With a decaying learning rate parameters drift ever more slowly, and R-hat stays large after the ELBO has
    converged; so the check fails only if the ELBO has changed too.
    """
    name, source = "R-hat of parameters, last half of the run", f"{DHAKA}; combination with the ELBO ours"
    if inputs.sampled:
        return not_applicable(name, source, SAMPLED)
    iterates = inputs.runs[0].iterates if inputs.runs else np.empty(0)
    half = iterates[len(iterates) // 2 :]
    if inputs.optimum is not None:
        return not_applicable(name, source, STATIONARY)
    if isinstance(inputs.story, LatentStory):
        return not_applicable(
            name, source, "network weights drift along flat directions of the ELBO; see the ELBO instead"
        )
    if len(half) < FEWEST:
        return not_applicable(name, source, "the run was too short, or its iterates were not stored")
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
    which = _parameter_name(inputs, int(np.flatnonzero(moving)[worst]))
    finding = f"{int((values > RHAT).sum())} of {len(values)} parameters still change, {which} most"
    history = inputs.runs[0].history
    change, error = _change(history[len(history) // 2 :])
    if abs(change) <= max(AGREEMENT, 2 * error):
        reason = f"the ELBO has converged; {finding}, which changes it by {change:.2g} +- {error:.1g} nats"
        return Check(name, value, RHAT, source, Verdict.PASS, override_note(Verdict.PASS, value, RHAT, reason))
    remedy = f"{finding}, and the ELBO by {change:.3g} +- {error:.1g} nats: use more steps, or a higher learning_rate"
    return Check(name, value, RHAT, source, Verdict.FAIL, remedy)


def elbo_change(inputs: CheckInputs) -> Check:
    """Relative change of the mean ELBO between halves of the last fifth of the run, beyond its Monte Carlo error."""
    name = "relative change of the ELBO"
    if inputs.sampled:
        return not_applicable(name, DHAKA, SAMPLED)
    if inputs.optimum is not None:
        return not_applicable(name, DHAKA, STATIONARY)
    if inputs.runs and inputs.runs[0].stop is StopReason.DIVERGED:
        best = inputs.runs[0]
        value = best.elbo_error / max(abs(best.elbo), 1.0)
        return Check(name, value, CHANGE, DHAKA, Verdict.FAIL, override_note(Verdict.FAIL, value, CHANGE, best.how))
    history = inputs.runs[0].history if inputs.runs else np.empty(0)
    last = history[-(len(history) // 5) :] if len(history) >= 5 * FEWEST else np.empty(0)
    if not len(last):
        return not_applicable(name, DHAKA, "the run was too short, or its history was not stored")
    scale = max(abs(last.mean()), 1.0)
    change, error = (value / scale for value in _change(last))
    value = float(abs(change))
    stop = inputs.runs[0].stop
    if value <= max(CHANGE, 2 * error):
        noise = f"it is within its Monte Carlo error, {error:.1g}"
        if stop is StopReason.STEPS:
            reason = stop.value if value <= CHANGE else f"{noise}, but {stop.value}"
            return Check(name, value, CHANGE, DHAKA, Verdict.WARN, override_note(Verdict.WARN, value, CHANGE, reason))
        note = "" if value <= CHANGE else override_note(Verdict.PASS, value, CHANGE, noise)
        return Check(name, value, CHANGE, DHAKA, Verdict.PASS, note)
    remedy = f"the ELBO still changes, by a fraction {change:+.2g} +- {error:.1g} of its value: use more steps"
    return Check(name, value, CHANGE, DHAKA, Verdict.FAIL, remedy)


def gradient_norm(inputs: CheckInputs) -> Check:
    """Gradient norm of the ELBO over fixed draws at the optimum, in the metric of the inverse Hessian."""
    name = "gradient norm at the optimum (posterior sd)"
    if inputs.optimum is None:
        return not_applicable(name, GIORDANO, "the run did not end with L-BFGS over fixed draws")
    found = inputs.optimum
    return Check(name, found.gradient_norm, found.tolerance, GIORDANO, Verdict.PASS)


def monte_carlo_error(inputs: CheckInputs) -> Check:
    """Return the standard error of the optimum that is due to the finite number of draws."""
    name, source = "Monte Carlo error of the optimum (posterior sd)", f"{GIORDANO}; threshold ours"
    if inputs.optimum is None:
        return not_applicable(name, source, "the run did not end with L-BFGS over fixed draws")
    found = inputs.optimum
    if found.monte_carlo_error <= ACCURATE:
        return Check(name, found.monte_carlo_error, ACCURATE, source, Verdict.PASS)
    remedy = (
        f"{found.num_draws:,} draws were all that fit into memory: fit on fewer rows, or compare with method='nuts'"
    )
    return Check(name, found.monte_carlo_error, ACCURATE, source, Verdict.WARN, remedy)


def faults(inputs: CheckInputs) -> Check:
    """Count how often the run was rolled back after an infinite or NaN ELBO or gradient."""
    name, source = "non-finite ELBO or gradient (count)", "this package"
    if inputs.sampled:
        return not_applicable(name, source, SAMPLED)
    if not inputs.runs:
        return not_applicable(name, source, "the training history is not available")
    best = inputs.runs[0]
    if not best.faults:
        return Check(name, 0, 0, source, Verdict.PASS)
    verdict = Verdict.FAIL if best.failed else Verdict.WARN
    remedy = "; inspect the model at these values, or use a lower learning_rate"
    return Check(name, len(best.faults), 0, source, verdict, "; ".join(best.faults) + remedy)


def restarts_agree(inputs: CheckInputs) -> Check:
    """Count the restarts, best included, whose final ELBO is within ``AGREEMENT`` nats, or its error, of the best."""
    name, source = "restarts that reach the best ELBO", "this package"
    runs = inputs.runs
    if inputs.sampled:
        return not_applicable(name, source, SAMPLED)
    if len(runs) < 2:
        return not_applicable(
            name, source, "there is a single restart; fit(restarts=8) shows how often this ELBO is reached"
        )
    agreeing = sum(runs[0].elbo - run.elbo <= _tolerance(runs[0], run) for run in runs)
    if agreeing >= 2:
        return Check(name, agreeing, 2, source, Verdict.PASS)
    second = max(run.elbo for run in runs[1:])
    remedy = f"the best of {len(runs)} restarts is {runs[0].elbo - second:.1f} nats above the next: it may not be the "
    remedy += "global optimum, or a component may have collapsed on a point; inspect it, and use more restarts"
    return Check(name, agreeing, 2, source, Verdict.WARN, remedy)


def missed_modes(inputs: CheckInputs) -> Check:
    """Posterior mass of modes that other restarts found and the guide misses, components relabelled.

    Each restart's guide represents a mode, whose mass is at least ``exp(ELBO)``; two restarts are at different modes if
    the mean of some parameter differs by ``APART`` standard deviations. k-hat cannot detect a missed mode.
    """
    name, source = "posterior mass at missed modes", "Yao et al. 2022, stacking; threshold ours"
    runs = inputs.runs
    if inputs.sampled:
        return not_applicable(name, source, SAMPLED)
    if len(runs) < 2 or not all(len(run.final) for run in runs):
        return not_applicable(name, source, "it needs several restarts whose final parameters were stored")
    if not inputs.structure.shared_latent or inputs.point_latent:
        return not_applicable(name, source, "it needs shared latents whose guide has a density")
    near = [run for run in runs if runs[0].elbo - run.elbo < NEAR]
    draws = _restart_draws(inputs, near)
    modes: list[int] = []
    for index in range(len(near)):
        if all(_differ(draws[index], draws[mode]) for mode in modes):
            modes.append(index)
    masses = np.exp([near[mode].elbo - runs[0].elbo for mode in modes])
    value = float(1 - masses[0] / masses.sum())
    if value <= MISSED:
        return Check(name, value, MISSED, source, Verdict.PASS)
    remedy = f"{len(modes)} modes among {len(runs)} restarts, the guide covers one: make the model identify it, "
    return Check(
        name, value, MISSED, source, Verdict.FAIL, remedy + "weight the restarts by exp(ELBO), or sample by NUTS"
    )


def _restart_draws(inputs: CheckInputs, runs: list[Training]) -> list[dict[str, Tensor]]:
    """Draws of shared latents from each restart's guide, relabelled; the pair's parameters are restored afterwards."""
    pair = inputs.pair
    current = pair.snapshot()
    draws = []
    try:
        for run in runs:
            pair.restore(unflatten(torch.from_numpy(run.final), current))
            draws.append(draw_shared(pair, MODE_DRAWS))
    finally:
        pair.restore(current)
    axes = exchangeable(inputs, draws[0])
    return [match_components(each, draws[0], axes) for each in draws]


def _differ(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether the means of some parameter differ by ``APART`` times the larger standard deviation."""
    for name in (each for each in first if first[each].numel()):
        a, b = first[name].double(), second[name].double()
        sd = torch.maximum(a.std(0), b.std(0)).clamp_min(1e-12)
        if bool(((a.mean(0) - b.mean(0)).abs() / sd).max() > APART):
            return True
    return False


def _tolerance(best: Training, run: Training) -> float:
    return max(AGREEMENT, 4 * math.hypot(best.elbo_error, run.elbo_error))


def _change(history: np.ndarray) -> tuple[float, float]:
    """Change of the mean ELBO between two halves, in nats, and its Monte Carlo standard error.

    ELBO estimates of different steps are independent.
    """
    before, after = np.array_split(history, 2)
    error = math.hypot(*(float(half.std(ddof=1)) / math.sqrt(len(half)) for half in (before, after)))
    return float(after.mean() - before.mean()), error


def _parameter_name(inputs: CheckInputs, place: int) -> str:
    """Return the name of a recorded parameter, with its index."""
    values = inputs.pair.snapshot()
    index = int(tracked_indices(len(flatten(values)))[place])
    for name in sorted(values):
        if index < values[name].numel():
            return repr(name) if values[name].numel() == 1 else f"{name!r} (entry {index})"
        index -= values[name].numel()
    raise AssertionError("every index belongs to a parameter")
