"""Checks of the optimisation: convergence, non-finite values, and agreement of restarts."""

from __future__ import annotations

import math

import numpy as np
from arviz_stats.base import array_stats

from pplgen.checks.check import Check, Verdict, not_applicable, override_note
from pplgen.checks.inputs import SAMPLED, CheckInputs
from pplgen.inference.convergence import WINDOW
from pplgen.inference.iterates import flatten, tracked_indices
from pplgen.inference.training_result import StopReason, Training
from pplgen.story.latent import LatentStory

__all__ = [
    "elbo_change",
    "faults",
    "gradient_norm",
    "last_half",
    "monte_carlo_error",
    "restarts_agree",
]

RHAT = 1.1
"""Split R-hat above which parameters drift."""
FEWEST = 20
"""Minimum number of iterates in the last half of a run."""
CHANGE = 0.01
"""Relative change of the ELBO above which it has not converged."""
AGREEMENT = 1.0
"""Nats within which two ELBOs are considered equal."""

ACCURATE = 0.05
"""Monte Carlo error of an optimum, in posterior standard deviations, above which means and sds are inaccurate."""

GIORDANO = "Giordano, Ingram and Broderick 2024"
STATIONARY = "the run ended at a stationary point, see the gradient norm"
DHAKA = "Dhaka et al. 2020"


def last_half(inputs: CheckInputs) -> Check:
    """Change of the mean ELBO over the last half of the run, in nats, beyond its Monte Carlo error.

    With a decaying learning rate parameters drift ever more slowly, and their split R-hat stays large after the ELBO
    has converged (Dhaka et al. 2020); it is a note.
    """
    name, source = "ELBO change over the last half of the run (nats)", f"{DHAKA}; threshold ours"
    if inputs.sampled:
        return not_applicable(name, source, SAMPLED)
    if inputs.optimum is not None:
        return not_applicable(name, source, STATIONARY)
    if isinstance(inputs.story, LatentStory):
        return not_applicable(name, source, "networks improve slowly for long; see the relative change of the ELBO")
    history = inputs.runs[0].history if inputs.runs else np.empty(0)
    if len(history) < 2 * FEWEST:
        return not_applicable(name, source, "the run was too short, or its history was not stored")
    change, error = _change(history[len(history) // 2 :])
    value, threshold = abs(change), max(AGREEMENT, 2 * error)
    drift = _drift(inputs)
    if value <= threshold:
        return Check(name, value, threshold, source, Verdict.PASS, drift)
    finding = f"the ELBO changes by {change:+.3g} +- {error:.1g} nats{'; ' + drift if drift else ''}"
    remedy = f"{finding}: {_longer(inputs.runs[0].stop)}"
    return Check(name, value, threshold, source, Verdict.FAIL, remedy)


def _drift(inputs: CheckInputs) -> str:
    """Report split R-hat of the guide's unconstrained parameters over the last half, if it is large."""
    iterates = inputs.runs[0].iterates
    half = iterates[len(iterates) // 2 :]
    half = half[len(half) % 2 :].astype(float)
    moving = half.std(0) > 1e-6 * (1e-6 + np.abs(half).mean(0)) if len(half) >= FEWEST else np.zeros(0, dtype=bool)
    if not moving.any():
        return ""
    chains = half.reshape(2, -1, half.shape[1])
    values = array_stats.rhat(chains[:, :, moving], chain_axis=0, draw_axis=1, method="identity")
    if (highest := float(values.max())) <= RHAT:
        return ""
    which = _parameter_name(inputs, int(np.flatnonzero(moving)[np.argmax(values)]))
    return f"R-hat of {int((values > RHAT).sum())} of {len(values)} parameters is above {RHAT}, {which} {highest:.2f}"


def elbo_change(inputs: CheckInputs) -> Check:
    """Relative change of the mean ELBO between halves of the last fifth of the run, beyond its Monte Carlo error."""
    name = "relative change of the ELBO"
    if inputs.sampled:
        return not_applicable(name, DHAKA, SAMPLED)
    if inputs.optimum is not None:
        return not_applicable(name, DHAKA, STATIONARY)
    history = inputs.runs[0].history if inputs.runs else np.empty(0)
    if inputs.runs and inputs.runs[0].stop is StopReason.DIVERGED:
        return _diverged(name, inputs.runs[0])
    last = history[-(len(history) // 5) :] if len(history) >= 5 * FEWEST else np.empty(0)
    if not len(last):
        return not_applicable(name, DHAKA, "the run was too short, or its history was not stored")
    change, error = (value / max(abs(last.mean()), 1.0) for value in _change(last))
    value, threshold, stop = float(abs(change)), max(CHANGE, 2 * error), inputs.runs[0].stop
    if value > threshold:
        remedy = f"the ELBO still changes, by a fraction {change:+.2g} +- {error:.1g} of its value: {_longer(stop)}"
        return Check(name, value, threshold, DHAKA, Verdict.FAIL, remedy)
    if stop is StopReason.STEPS:
        reason = override_note(Verdict.WARN, value, threshold, stop.value)
        return Check(name, value, threshold, DHAKA, Verdict.WARN, reason)
    return Check(name, value, threshold, DHAKA, Verdict.PASS)


def _diverged(name: str, run: Training) -> Check:
    """Return the failed check of a run that diverged: how far its ELBO is below its history, or its error."""
    scale = max(abs(run.elbo), 1.0)
    num_windows = len(run.history) // WINDOW
    best = max(run.history[: num_windows * WINDOW].reshape(num_windows, -1).mean(1), default=run.elbo)
    value = max(run.elbo_error, float(best) - run.elbo) / scale
    return Check(name, value, CHANGE, DHAKA, Verdict.FAIL, run.how)


def _longer(stop: StopReason) -> str:
    """Recommend what continues a run: one that stopped by itself does so again with more steps."""
    if stop is StopReason.CONVERGED:
        return "raise patience, so that plateaus are detected over more steps, or start with a higher learning_rate"
    return "use more steps, or a higher learning_rate"


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
