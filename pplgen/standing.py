"""Where restarts that run together stand: each is judged window by window, on its own."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pplgen.engine import State
from pplgen.iterates import Iterates
from pplgen.training import DECAY, PLATEAUS, WINDOW, Adam, PlateauWatch, StopReason

__all__ = ["Lane", "Standing"]


@dataclass
class Lane:
    """One restart among those that run together."""

    watch: PlateauWatch
    history: list[float] = field(default_factory=list)
    stop: StopReason | None = None
    broken: bool = False
    iterates: Tensor = field(default_factory=lambda: torch.zeros(0))
    """Where it had been when it stopped, shape ``(num_kept, num_followed)``."""


@dataclass
class Standing:
    """Where R restarts stand."""

    state: State
    rates: Tensor
    """Learning rate of each, zero where it has stopped, shape ``(R, 1)``."""
    good: Tensor
    """Last parameters of each that were finite, shape ``(R, P)``."""
    lanes: list[Lane]
    taken: int = 0
    """Steps taken."""
    iterates: Iterates = field(default_factory=Iterates)
    """Where all of them have been."""

    @classmethod
    def start(cls, vectors: Tensor, optimiser: Adam) -> Standing:
        """Return where restarts stand before the first step, at parameters of shape ``(R, P)``."""
        rates = vectors.new_full((len(vectors), 1), optimiser.learning_rate)
        lanes = [Lane(PlateauWatch(optimiser.patience)) for _ in vectors]
        return cls(State.start(vectors), rates, vectors.clone(), lanes)

    @property
    def running(self) -> bool:
        """Whether any restart has not stopped."""
        return any(lane.stop is None for lane in self.lanes)

    @property
    def best_mean(self) -> float:
        """Best smoothed ELBO among the restarts, in nats."""
        means = [float(np.mean(lane.history[-WINDOW:])) for lane in self.lanes if lane.history]
        return max(means, default=math.nan)

    def notice(self, steps: int, vectors: Tensor) -> None:
        """Keep what is due of the parameters, so many steps into a window."""
        self.iterates.notice(self.taken + steps, vectors)

    def stop(self, reason: StopReason) -> None:
        """Stop what has not stopped."""
        for index, lane in enumerate(self.lanes):
            if lane.stop is None:
                self._halt(index, reason)

    def _halt(self, index: int, reason: StopReason) -> None:
        """Stop one restart, whose iterates end here."""
        lane = self.lanes[index]
        lane.stop, self.rates[index] = reason, 0.0
        kept = self.iterates.stacked()
        lane.iterates = kept[:, index].clone() if len(kept) else kept

    def advance(self, state: State, losses: Tensor, *, judge: bool = True) -> None:
        """Take a window's losses, ``(num_steps, R)``: keep good states, cut rates at plateaus, stop what is done.

        Windows of a bound that is being warmed up are not to be judged.
        """
        self.state = state
        self.taken += len(losses)
        elbos = (-losses).cpu().numpy()
        finite = state.vectors.isfinite().all(dim=1).tolist()
        for index, lane in enumerate(self.lanes):
            if lane.stop is not None:
                continue
            window = elbos[:, index]
            if not (finite[index] and np.isfinite(window).all()):
                lane.broken = not lane.history
                self._halt(index, StopReason.NOT_FINITE)
                continue
            lane.history.extend(window.tolist())
            self.good[index] = state.vectors[index]
            if judge and len(window) == WINDOW and lane.watch.plateau(window.tolist()):
                self.rates[index] *= DECAY
                if lane.watch.plateaus == PLATEAUS:
                    self._halt(index, StopReason.CONVERGED)

    def frozen(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Lay everything out as tensors and JSON-able facts."""
        tensors = {**self.state._asdict(), "rates": self.rates, "good": self.good}
        tensors |= {
            f"history{index}": torch.tensor(lane.history, dtype=torch.float64) for index, lane in enumerate(self.lanes)
        }
        tensors |= {f"iterates{index}": lane.iterates for index, lane in enumerate(self.lanes)}
        tensors["iterates"] = self.iterates.stacked()
        facts = [
            {
                "watch": vars(lane.watch),
                "stop": lane.stop.name if lane.stop else None,
                "broken": lane.broken,
            }
            for lane in self.lanes
        ]
        return tensors, {"taken": self.taken, "stride": self.iterates.stride, "lanes": facts}

    @classmethod
    def thawed(cls, tensors: dict[str, Tensor], facts: dict[str, Any], device: torch.device) -> Standing:
        """Return what ``frozen`` laid out."""
        lanes = []
        for index, lane in enumerate(facts["lanes"]):
            stop = None if lane["stop"] is None else StopReason[lane["stop"]]
            history, iterates = tensors[f"history{index}"].tolist(), tensors[f"iterates{index}"]
            lanes.append(Lane(PlateauWatch(**lane["watch"]), history, stop, lane["broken"], iterates))
        moved = {name: value.to(device) for name, value in tensors.items()}
        state = State(*(moved[name] for name in State._fields))
        kept = Iterates(list(moved["iterates"]), facts["stride"])
        return cls(state, moved["rates"], moved["good"], lanes, facts["taken"], kept)
