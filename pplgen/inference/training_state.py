"""The state of restarts that are trained together: each is judged separately, window by window."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pplgen.inference.convergence import DECAY, PLATEAUS, WINDOW, PlateauWatch
from pplgen.inference.engine import BETAS, State
from pplgen.inference.iterates import Iterates
from pplgen.inference.nonfinite import MAX_NON_FINITE, NOT_LOCALISED, RATE_FACTOR, non_finite_message
from pplgen.inference.options import Adam
from pplgen.inference.training import StopReason

__all__ = ["NonFinite", "RestartState", "TrainingState"]

NonFinite = tuple[int, str | None]
"""A step with non-finite values, and the explanation where there is one."""


@dataclass
class RestartState:
    """State of one restart among those that are trained together."""

    watch: PlateauWatch
    history: list[float] = field(default_factory=list)
    stop: StopReason | None = None
    faults: list[str] = field(default_factory=list)
    """Non-finite values on the way, a sentence each."""
    kept: int = 0
    """Step of its last good state."""
    iterates: Tensor = field(default_factory=lambda: torch.zeros(0))
    """Followed parameters along the run until it stopped, shape ``(num_kept, num_followed)``."""


@dataclass
class TrainingState:
    """State of R restarts."""

    state: State
    rates: Tensor
    """Learning rate of each, zero where it has stopped, shape ``(R, 1)``."""
    good: State
    """Last state of each in which all was finite, on its own memory."""
    restarts: list[RestartState]
    taken: int = 0
    """Steps taken."""
    iterates: Iterates = field(default_factory=Iterates)
    """Followed parameters of all of them along the run."""

    @classmethod
    def start(cls, vectors: Tensor, optimiser: Adam) -> TrainingState:
        """Return the state before the first step, at parameters of shape ``(R, P)``."""
        rates = vectors.new_full((len(vectors), 1), optimiser.learning_rate)
        restarts = [RestartState(PlateauWatch(optimiser.patience)) for _ in vectors]
        return cls(State.start(vectors), rates, State.start(vectors.clone()), restarts)

    @property
    def running(self) -> bool:
        """Whether any restart has not stopped."""
        return any(restart.stop is None for restart in self.restarts)

    @property
    def best_mean(self) -> float:
        """Best smoothed ELBO among the restarts, in nats."""
        means = [float(np.mean(restart.history[-WINDOW:])) for restart in self.restarts if restart.history]
        return max(means, default=math.nan)

    def notice(self, steps: int, vectors: Tensor) -> None:
        """Record the parameters where that is due, ``steps`` into a window."""
        self.iterates.record(self.taken + steps, vectors)

    def stop(self, reason: StopReason) -> None:
        """Stop the restarts that are still running."""
        for index, restart in enumerate(self.restarts):
            if restart.stop is None:
                self._halt(index, reason)

    def _halt(self, index: int, reason: StopReason) -> None:
        """Stop one restart."""
        restart = self.restarts[index]
        restart.stop, self.rates[index] = reason, 0.0
        kept = self.iterates.stacked()
        restart.iterates = kept[:, index].clone() if len(kept) else kept

    def non_finite(self, state: State, losses: Tensor) -> list[int]:
        """Return the running restarts that a window has left with non-finite parameters or losses."""
        finite = (state.vectors.isfinite().all(dim=1) & losses.isfinite().all(dim=0)).tolist()
        return [index for index, restart in enumerate(self.restarts) if restart.stop is None and not finite[index]]

    def advance(
        self, state: State, losses: Tensor, *, judge: bool = True, faults: Mapping[int, NonFinite] | None = None
    ) -> None:
        """Take a window's losses, ``(num_steps, R)``: keep good states, cut rates at plateaus, stop restarts.

        A restart with non-finite values returns to its last good state at a lower rate; the last time, it stops.

        Parameters
        ----------
        state, losses
            After the window, and in it.
        judge
            Whether to look for plateaus; not during KL warm-up.
        faults
            Step and explanation of those with non-finite values, as far as they were located.
        """
        non_finite = self.non_finite(state, losses)
        kept, self.taken = self.taken, self.taken + len(losses)
        back = torch.tensor([index in non_finite for index in range(len(self.restarts))], device=state.vectors.device)
        self.state = self._put_back(state, back, kept)
        stopped = torch.tensor([restart.stop is not None for restart in self.restarts], device=back.device)
        vectors = torch.where(stopped[:, None], self.good.vectors, self.state.vectors)
        self.good = State(vectors, *(value.clone() for value in self.state[1:]))
        elbos = (-losses).cpu().numpy()
        for index, restart in enumerate(self.restarts):
            if index in non_finite:
                self._step_back(index, *(faults or {}).get(index, (self.taken, NOT_LOCALISED)))
            elif restart.stop is None:
                window = elbos[:, index].tolist()
                restart.history.extend(window)
                restart.kept = self.taken
                if judge and len(window) == WINDOW and restart.watch.plateau(window):
                    self.rates[index] *= DECAY
                    if restart.watch.plateaus == PLATEAUS:
                        self._halt(index, StopReason.CONVERGED)
        self.iterates.mark()

    def _put_back(self, state: State, back: Tensor, kept: int) -> State:
        """Return some restarts to their last good state, after ``kept`` steps, with Adam's moments rescaled to now."""
        good = self.good
        if kept:
            # Adam divides by 1 - beta^t, where t counts the steps of all restarts
            corrections = ((1 - beta**self.taken) / (1 - beta**kept) for beta in BETAS)
            mean, square = (factor * part for factor, part in zip(corrections, good[1:3], strict=True))
            good = good._replace(mean=mean, square=square)
        vectors, mean, square = (
            torch.where(back[:, None], old, new) for old, new in zip(good[:3], state[:3], strict=True)
        )
        return State(vectors, mean, square, state.taken)

    def _step_back(self, index: int, step: int, what: str | None) -> None:
        """Lower the rate of a restart that went back; the last time, stop it."""
        restart = self.restarts[index]
        self.rates[index] *= RATE_FACTOR
        self.iterates.overwrite_since_mark(self.good.vectors[index], index)
        restart.faults.append(
            non_finite_message(what, step, len(restart.faults) + 1, restart.kept, float(self.rates[index]))
        )
        if len(restart.faults) == MAX_NON_FINITE:
            self._halt(index, StopReason.NOT_FINITE)

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return everything as tensors and JSON-able facts."""
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
                "kept": restart.kept,
            }
            for restart in self.restarts
        ]
        return tensors, {"taken": self.taken, "stride": self.iterates.stride, "restarts": facts}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], facts: dict[str, Any], device: torch.device) -> TrainingState:
        """Return the state that ``to_tensors`` returned."""
        restarts = []
        for index, restart in enumerate(facts["restarts"]):
            stop = None if restart["stop"] is None else StopReason[restart["stop"]]
            history, iterates = tensors[f"history{index}"].tolist(), tensors[f"iterates{index}"]
            restarts.append(
                RestartState(
                    PlateauWatch(**restart["watch"]), history, stop, restart["faults"], restart["kept"], iterates
                )
            )
        moved = {name: value.to(device) for name, value in tensors.items()}
        state = State(*(moved[name] for name in State._fields))
        kept = Iterates(list(moved["iterates"]), facts["stride"])
        good = State(moved["good"], *(value.clone() for value in state[1:]))
        return cls(state, moved["rates"], good, restarts, facts["taken"], kept)
