"""Training results: history, final ELBO and stop reason of a restart; progress of a running fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pplgen.inference.convergence import has_diverged
from pplgen.inference.iterates import MAX_FINAL_SIZE

__all__ = [
    "FINAL_EVALUATIONS",
    "Mode",
    "Optimum",
    "Progress",
    "ProgressCallback",
    "StopReason",
    "Training",
    "best_first",
    "no_good_state",
    "non_finite_at_end",
    "num_evaluations",
]

FINAL_EVALUATIONS = (20, 100)
"""Limits on the number of evaluations that estimate the final ELBO: half the number of steps, clipped to these."""


class StopReason(Enum):
    """Why a fit stopped; the value is the message to the user."""

    CONVERGED = "the smoothed ELBO has stopped improving"
    STEPS = "the maximum number of steps was reached before the ELBO stopped improving; increase steps"
    SAMPLED = "all draws of the sampler were taken"
    INTERRUPTED = "interrupted from the keyboard; the fit up to then is returned"
    DIVERGED = (
        "the run diverged: its ELBO is far below what it was, or its Monte Carlo error is as large as the ELBO itself; "
        "bound the parameters by their priors or a guide that fits, standardise the data, or lower learning_rate"
    )
    NOT_FINITE = (
        "the ELBO or its gradient was infinite or NaN at successively lower learning rates; the last good state is "
        "returned, so check the model there"
    )


@dataclass(frozen=True)
class Progress:
    """Progress of a fit, passed to the ``progress`` callback every few steps."""

    restart: int
    restarts: int
    step: int
    steps: int
    elbo: float
    """Mean over the last hundred steps, in nats for all rows; the best of restarts that run in one program."""
    steps_per_second: float
    rows_per_second: float
    """Rows processed per second by each restart."""
    doing: str
    """Execution path: plain Pyro, the traced graph or the compiled graph; or ``"compiling"``."""


@dataclass(frozen=True)
class Optimum:
    """Stationary point of the ELBO over fixed draws, found by L-BFGS.

    Gradient norm and Monte Carlo error are root mean squares over parameters, in the metric of the inverse Hessian:
    for a Gaussian guide, distances of its means in posterior standard deviations.
    """

    num_draws: int
    """Number of draws over which the ELBO is averaged."""
    num_iterations: int
    num_evaluations: int
    """Evaluations of the averaged ELBO and its gradient; restarts in one program share them."""
    gradient_norm: float
    tolerance: float
    """Largest gradient norm of a stationary point."""
    monte_carlo_error: float
    """Standard error of the optimum's parameters due to the finite number of draws."""

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> Optimum | None:
        """Return the optimum in the facts of a saved restart, ``None`` if there is none."""
        return cls(**facts["optimum"]) if facts.get("optimum") else None

    def __str__(self) -> str:
        return (
            f"stationary over {self.num_draws:,} fixed draws: gradient norm {self.gradient_norm:.1g} "
            f"(tolerance {self.tolerance:.1g}), Monte Carlo error {self.monte_carlo_error:.1g} posterior sd"
        )


@dataclass(frozen=True)
class Mode:
    """Mode of the joint density, at which Laplace's approximation was made."""

    gradient_norm: float
    """Root mean square over latents, in the metric of the inverse Hessian: a distance in posterior sds."""
    log_evidence: float
    """Laplace's approximation of log p(x), in nats."""

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> Mode | None:
        """Return the mode in the facts of a saved restart, ``None`` if there is none."""
        return cls(**facts["mode"]) if facts.get("mode") else None

    def __str__(self) -> str:
        return (
            f"Laplace approximation at a mode of the joint density: gradient norm {self.gradient_norm:.1g} "
            f"posterior sd, log evidence {self.log_evidence:.2f} nats"
        )


@dataclass(frozen=True)
class Training:
    """Result of one restart. ELBOs are in nats, for all rows."""

    seed: int
    history: np.ndarray = field(repr=False)
    """Noisy ELBO of each step, shape ``(num_steps,)``."""
    elbo: float
    """Mean of up to a hundred evaluations at the final parameters, on minibatches if the fit used them."""
    elbo_error: float
    """Monte Carlo standard error of ``elbo``."""
    stop: StopReason
    iterates: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False)
    """Tracked parameters along the run, evenly spaced, shape ``(num_stored, num_tracked)``; empty if unknown."""
    final: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False)
    """Flat final parameters, shape ``(P,)``; empty if there are too many to store."""
    optimum: Optimum | None = None
    """The stationary point at which L-BFGS ended; ``None`` if it was not used."""
    mode: Mode | None = None
    """The mode of Laplace's approximation; ``None`` for other methods."""
    faults: tuple[str, ...] = ()
    """Message about each infinite or NaN value after which the run returned to its last good state."""

    @classmethod
    def from_evaluations(
        cls,
        seed: int,
        history: list[float],
        final_values: Any,
        stop: StopReason,
        iterates: Tensor,
        final: Tensor,
        faults: Sequence[str] = (),
        optimum: Optimum | None = None,
        warm_up: int = 0,
    ) -> Training:
        """Return the result of a run, given evaluations of the ELBO at its final parameters.

        A run that diverged, after ``warm_up`` steps of another objective, has not converged.
        """
        elbo = float(np.mean(final_values))
        error = float(np.std(final_values, ddof=1)) / math.sqrt(len(final_values))
        if stop is StopReason.CONVERGED and has_diverged(history[warm_up:], elbo, error):
            stop, optimum = StopReason.DIVERGED, None
        stored = final if len(final) <= MAX_FINAL_SIZE else final[:0]
        arrays = (iterates.cpu().float().numpy(), stored.detach().cpu().double().numpy())
        return cls(seed, np.array(history), elbo, error, stop, *arrays, optimum, faults=tuple(faults))

    @classmethod
    def from_facts(cls, facts: dict[str, Any], final: Tensor) -> Training:
        """Return the result of a saved restart, without history and iterates."""
        return cls(
            facts["seed"],
            np.empty(0),
            float(facts["elbo"]),
            float(facts["elbo_error"]),
            StopReason[facts["stop"]],
            final=final.numpy(),
            optimum=Optimum.from_facts(facts),
            mode=Mode.from_facts(facts),
            faults=tuple(str(fault) for fault in facts.get("faults", ())),
        )

    @property
    def failed(self) -> bool:
        """Whether it ended with non-finite values; its last finite ELBO may be high by chance."""
        return self.stop is StopReason.NOT_FINITE or not math.isfinite(self.elbo)

    @property
    def how(self) -> str:
        """Why it stopped, as a sentence."""
        return str(self.mode or self.optimum or self.stop.value)

    @property
    def rank(self) -> tuple[bool, float]:
        """Sort key of runs, see ``best_first``: ELBO or evidence, failed runs below all others."""
        return not self.failed, self.elbo if self.mode is None else self.mode.log_evidence

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors saved for the best restart in addition to the parameters."""
        return {name: torch.from_numpy(getattr(self, name)) for name in ("history", "iterates")}

    @property
    def facts(self) -> dict[str, Any]:
        """Return the header fields of a restart in a saved run."""
        facts = {"seed": self.seed, "elbo": self.elbo, "elbo_error": self.elbo_error, "stop": self.stop.name}
        if self.optimum is not None:
            facts["optimum"] = asdict(self.optimum)
        if self.mode is not None:
            facts["mode"] = asdict(self.mode)
        return {**facts, "faults": list(self.faults)}


ProgressCallback = Callable[[Progress], None]
"""Type of ``fit(progress=...)``."""


def no_good_state(step: int, fault: str) -> str:
    """Return the message for a run with non-finite values in its first window."""
    return (
        f"the ELBO or its gradient is not finite by step {step}, before any good state: {fault}; check the scale of "
        "the data and the priors, or lower learning_rate"
    )


def non_finite_at_end(fault: str | None, earlier: Sequence[str]) -> str:
    """Return the message for a run whose final ELBO is not finite; ``earlier`` are messages about earlier faults."""
    fault = fault or ", ".join(earlier[-1:]) or "it is infinite or NaN for some draws"
    return f"the ELBO at the final parameters is not finite: {fault}; check the priors, or lower learning_rate"


def num_evaluations(steps: int) -> int:
    """Return the number of evaluations of the final ELBO after a number of steps."""
    minimum, maximum = FINAL_EVALUATIONS
    return min(maximum, max(minimum, steps // 2))


def best_first(runs: Iterable[Training]) -> list[Training]:
    """Sort runs by their final ELBO, the best first.

    Of those whose ELBO differs from the best by less than four standard errors the first is the one with the smallest
    Monte Carlo error of its optimum, if they ended at one: only the most promising restart is refined over many draws.
    """
    ordered = sorted(runs, key=lambda run: run.rank, reverse=True)
    if not ordered or ordered[0].optimum is None:
        return ordered
    top = ordered[0]
    tied = [
        run
        for run in ordered
        if run.optimum is not None
        and not run.failed
        and top.elbo - run.elbo <= 4 * math.hypot(top.elbo_error, run.elbo_error)
    ]
    first = min(tied, key=lambda run: run.optimum.monte_carlo_error if run.optimum else math.inf, default=top)
    return [first, *(run for run in ordered if run is not first)]
