"""The optimiser of a run in plain Pyro: its rates, and its state after a step."""

from __future__ import annotations

import copy
from typing import Any

import torch
from pyro.optim import PyroLRScheduler
from torch import Tensor

from pplgen.inference.optimisers import Optimiser, ScheduledOptim

__all__ = ["SVIOptimiser"]

States = dict[Tensor, dict[str, Any]]
"""Moments, step count and learning rate of each parameter that has moved."""


class SVIOptimiser:
    """A Pyro optimiser whose state can be recorded and restored; use it inside ``pair.isolated``.

    Parameters
    ----------
    optimiser
        Update rule and rates, or the user's optimiser; a scheduler of the user's makes a step after each epoch.
    steps_per_epoch
        Steps in which all rows are used once.
    """

    def __init__(self, optimiser: Optimiser, steps_per_epoch: int = 1) -> None:
        self.optim = optimiser.for_pyro()
        self.is_own = optimiser.own is not None
        """Whether the optimiser is the user's, who alone lowers its rates."""
        self._epoch = steps_per_epoch

    @property
    def rate(self) -> float:
        """Current learning rate, of the first parameter if it is the user's optimiser; NaN if it has none."""
        if isinstance(self.optim, ScheduledOptim):
            return self.optim.rate
        groups = (group for each in self._torch.values() for group in each.param_groups)
        return float(next((group["lr"] for group in groups if "lr" in group), torch.nan))

    def begin(self, step: int) -> None:
        """Set the rates of a step, counted from 1."""
        if isinstance(self.optim, ScheduledOptim):
            self.optim.taken = step - 1

    def end(self, step: int, loss: float) -> None:
        """Let a scheduler make its step at the end of an epoch."""
        if isinstance(self.optim, PyroLRScheduler) and step % self._epoch == 0:
            plateaus = self.optim.pt_scheduler_constructor is torch.optim.lr_scheduler.ReduceLROnPlateau
            self.optim.step(*([loss] if plateaus else []))

    def scale(self, factor: float, states: States) -> None:
        """Multiply all learning rates, also those of recorded states."""
        if isinstance(self.optim, ScheduledOptim):
            self.optim.stage *= factor
            return
        defaults = self.optim.pt_optim_args
        groups = [group for state in states.values() for group in state["param_groups"]]
        groups += [group for each in self._torch.values() for group in each.param_groups]
        for group in (*groups, *([defaults] if isinstance(defaults, dict) else [])):
            if "lr" in group:
                group["lr"] *= factor

    def reset_moments(self) -> None:
        """Start again from the present parameters."""
        for each in self._torch.values():
            each.state.clear()

    def states(self) -> States:
        """Copy the state of all parameters."""
        return {value: copy.deepcopy(each.state_dict()) for value, each in self._torch.items()}

    def restore(self, states: States) -> None:
        """Restore a state; parameters without one start again."""
        for value, each in self._torch.items():
            if value in states:
                each.load_state_dict(copy.deepcopy(states[value]))
            else:
                del self.optim.optim_objs[value]

    @property
    def _torch(self) -> dict[Tensor, torch.optim.Optimizer]:
        """Torch's optimiser of each parameter, without its scheduler."""
        return {value: getattr(each, "optimizer", each) for value, each in self.optim.optim_objs.items()}
