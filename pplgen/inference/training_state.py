"""Training state of batched restarts, each checked separately after every window of steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pplgen.inference.convergence import DECAY, PLATEAUS, WINDOW, PlateauWatch, relative_drift
from pplgen.inference.engine import State
from pplgen.inference.iterates import Iterates
from pplgen.inference.nonfinite_policy import MAX_NON_FINITE, NOT_LOCALISED, RATE_FACTOR, non_finite_message
from pplgen.inference.optimisers import Optimiser
from pplgen.inference.training_result import Optimum, StopReason

__all__ = ["NonFinite", "RestartState", "TrainingState"]

NonFinite = tuple[int, str | None]
"""Step with non-finite values, and its explanation if any."""


@dataclass
class RestartState:
    """State of one restart."""

    watch: PlateauWatch
    history: list[float] = field(default_factory=list)
    stop: StopReason | None = None
    faults: list[str] = field(default_factory=list)
    """Messages about non-finite values."""
    good_step: int = 0
    """Step of the last good state."""
    optimum: Optimum | None = None
    """The stationary point at which L-BFGS ended."""
    iterates: Tensor = field(default_factory=lambda: torch.zeros(0))
    """Tracked parameters until the restart stopped, shape ``(num_stored, num_tracked)``."""


@dataclass
class TrainingState:
    """Training state of R restarts."""

    state: State
    rates: Tensor
    """Learning rates, zero for stopped restarts, shape ``(R, 1)``."""
    good: State
    """Last good state of each restart, in separate memory."""
    restarts: list[RestartState]
    taken: int = 0
    """Steps taken."""
    iterates: Iterates = field(default_factory=Iterates)
    """Tracked parameters of all restarts."""

    @classmethod
    def start(cls, vectors: Tensor, optimiser: Optimiser) -> TrainingState:
        """Return the initial state for parameters of shape ``(R, P)``."""
        rates = vectors.new_full((len(vectors), 1), optimiser.base_rate)
        restarts = [RestartState(PlateauWatch(optimiser.patience)) for _ in vectors]
        return cls(State.start(vectors), rates, State.start(vectors.clone()), restarts)

    @property
    def running(self) -> bool:
        """Whether any restart is still running."""
        return any(restart.stop is None for restart in self.restarts)

    @property
    def averaged(self) -> Tensor:
        """Which restarts ended by steps of Adam, with an average over at least a window of them, shape ``(R,)``."""
        by_adam = [restart.optimum is None and restart.stop is not StopReason.NOT_FINITE for restart in self.restarts]
        return torch.tensor(by_adam, device=self.rates.device) & (self.good.since[:, 0] >= WINDOW)

    @property
    def best_mean(self) -> float:
        """Best smoothed ELBO among the restarts, in nats."""
        means = [float(np.mean(restart.history[-WINDOW:])) for restart in self.restarts if restart.history]
        return max(means, default=math.nan)

    def record_iterates(self, steps: int, vectors: Tensor) -> None:
        """Store the tracked parameters ``steps`` into a window, if due."""
        self.iterates.record(self.taken + steps, vectors)

    def stop(self, reason: StopReason) -> None:
        """Stop all running restarts."""
        for index, restart in enumerate(self.restarts):
            if restart.stop is None:
                self._halt(index, reason)

    def adopt(self, vectors: Tensor, optima: Sequence[Optimum | None]) -> None:
        """Move restarts to the stationary points that L-BFGS found, shape ``(R, P)``, and stop them there."""
        found = torch.tensor([optimum is not None for optimum in optima], device=vectors.device)
        self.state, self.good = (
            state._replace(vectors=torch.where(found[:, None], vectors, state.vectors))
            for state in (self.state, self.good)
        )
        for index, optimum in enumerate(optima):
            if optimum is not None:
                self.restarts[index].optimum = optimum
                self._halt(index, StopReason.CONVERGED)

    def _halt(self, index: int, reason: StopReason) -> None:
        """Stop one restart."""
        restart = self.restarts[index]
        restart.stop, self.rates[index] = reason, 0.0
        stored = self.iterates.stacked()
        restart.iterates = stored[:, index].clone() if len(stored) else stored

    def non_finite(self, state: State, losses: Tensor) -> list[int]:
        """Return the indices of running restarts with non-finite parameters or losses after a window."""
        finite = (state.vectors.isfinite().all(dim=1) & losses.isfinite().all(dim=0)).tolist()
        return [index for index, restart in enumerate(self.restarts) if restart.stop is None and not finite[index]]

    def advance(
        self, state: State, losses: Tensor, *, judge: bool = True, faults: Mapping[int, NonFinite] | None = None
    ) -> None:
        """Update the state after a window: record good states, lower rates at plateaus, stop restarts.

        A restart with non-finite values is reset to its last good state at a lower rate; the last time, it stops.

        Parameters
        ----------
        state, losses
            State after the window, and its losses in nats, shape ``(num_steps, R)``.
        judge
            Whether to check for plateaus; not during KL warm-up.
        faults
            Step and explanation of located non-finite values, by restart.
        """
        non_finite = self.non_finite(state, losses)
        self.taken += len(losses)
        reset = torch.tensor([index in non_finite for index in range(len(self.restarts))], device=state.vectors.device)
        self.state = self._reset_to_good(state, reset)
        stopped = torch.tensor([restart.stop is not None for restart in self.restarts], device=reset.device)
        vectors = torch.where(stopped[:, None], self.good.vectors, self.state.vectors)
        self.good = State(vectors, *(value.clone() for value in self.state[1:]))
        elbos = (-losses).cpu().numpy()
        for index, restart in enumerate(self.restarts):
            if index in non_finite:
                self._step_back(index, *(faults or {}).get(index, (self.taken, NOT_LOCALISED)))
            elif restart.stop is None:
                window = elbos[:, index].tolist()
                restart.history.extend(window)
                restart.good_step = self.taken
                if judge and len(window) == WINDOW and restart.watch.plateau(window):
                    self._end_stage(index)
        self.iterates.mark()

    def _end_stage(self, index: int) -> None:
        """At a plateau of a restart, lower its rate and let Adam start again, or stop it at the last plateau."""
        watch, state = self.restarts[index].watch, self.state
        drift = relative_drift(
            state.vectors[index], state.average[index], float(self.rates[index]), int(state.since[index])
        )
        if watch.count(drift):
            self.rates[index] *= DECAY
            if watch.plateaus == PLATEAUS:
                self._halt(index, StopReason.CONVERGED)
                return
        self.state.reset_moments(index)
        self.good.reset_moments(index)

    def _reset_to_good(self, state: State, reset: Tensor) -> State:
        """Reset some restarts to their last good state."""
        parts = zip(self.good[:-1], state[:-1], strict=True)
        vectors, mean, square, average, since = (torch.where(reset[:, None], old, new) for old, new in parts)
        return State(vectors, mean, square, average, since, state.taken)

    def _step_back(self, index: int, step: int, fault: str | None) -> None:
        """Lower the rate of a reset restart; after ``MAX_NON_FINITE`` faults, stop it."""
        restart = self.restarts[index]
        self.rates[index] *= RATE_FACTOR
        self.iterates.overwrite_since_mark(self.good.vectors[index], index)
        restart.faults.append(
            non_finite_message(fault, step, len(restart.faults) + 1, restart.good_step, float(self.rates[index]))
        )
        if len(restart.faults) == MAX_NON_FINITE:
            self._halt(index, StopReason.NOT_FINITE)

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the state as tensors and JSON-able values."""
        tensors = {**self.state._asdict(), "rates": self.rates, "good": self.good.vectors}
        tensors |= {
            f"history{index}": torch.tensor(restart.history, dtype=torch.float64)
            for index, restart in enumerate(self.restarts)
        }
        tensors |= {f"iterates{index}": restart.iterates for index, restart in enumerate(self.restarts)}
        tensors["iterates"] = self.iterates.stacked()
        facts = [
            {
                "watch": vars(restart.watch),
                "stop": restart.stop.name if restart.stop else None,
                "faults": restart.faults,
                "kept": restart.good_step,
                "optimum": asdict(restart.optimum) if restart.optimum else None,
            }
            for restart in self.restarts
        ]
        return tensors, {"taken": self.taken, "stride": self.iterates.stride, "restarts": facts}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], facts: dict[str, Any], device: torch.device) -> TrainingState:
        """Restore a state from the result of ``to_tensors``."""
        restarts = []
        for index, restart in enumerate(facts["restarts"]):
            stop = None if restart["stop"] is None else StopReason[restart["stop"]]
            history, iterates = tensors[f"history{index}"].tolist(), tensors[f"iterates{index}"]
            optimum = Optimum.from_facts(restart)
            watch = PlateauWatch(**restart["watch"])
            restarts.append(RestartState(watch, history, stop, restart["faults"], restart["kept"], optimum, iterates))
        moved = {name: value.to(device) for name, value in tensors.items()}
        state = State(*(moved[name] for name in State._fields))
        stored = Iterates(list(moved["iterates"]), facts["stride"])
        good = State(moved["good"], *(value.clone() for value in state[1:]))
        return cls(state, moved["rates"], good, restarts, facts["taken"], stored)
