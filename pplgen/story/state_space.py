"""The contract of state space stories: rows are series, and a story says what it is at given parameters."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from pplgen.errors import InputError
from pplgen.story.base import Story, check_count
from pplgen.story.dynamics import HiddenMarkov, StateSpace

__all__ = ["StateSpaceStory", "series_lengths", "step_mask"]


class StateSpaceStory(Story):
    """A story whose rows are series: ``model(y=None, num_rows=1)`` and ``guide`` likewise.

    Series y of shape ``(num_series, num_steps, num_features)`` are rows of ``pyro.plate("data", ...)``. NaN is a
    missing entry, and a shorter series ends in steps of NaN. At values of its parameters a story says with
    ``state_space`` which state space model it is; filtering, smoothing, forecasting and imputing are the toolkit's.

    Parameters
    ----------
    num_features
        Number of data columns.
    **config
        As for ``Story``.
    """

    takes_series: ClassVar[bool] = True
    accepts_missing: ClassVar[bool] = True
    num_steps: Tensor
    """Length of the series that are simulated, that of the training series; 100 before there are any."""

    def __init__(self, num_features: int, **config: Any) -> None:
        super().__init__(num_features=num_features, **config)
        self.num_features = num_features
        self.register_buffer("num_steps", torch.tensor(100))

    def state_space(self, y: Tensor) -> StateSpace:
        """Return the state space model of series y; called with the parameters conditioned on a draw."""
        raise NotImplementedError(f"{type(self).__name__} does not say which state space model it is")

    def fill(self, y: Tensor, regimes: Tensor) -> Tensor:
        """Draw the missing entries of y along a path of hidden states, shape ``(num_series, num_steps)``.

        Called for a hidden Markov story alone, with the parameters conditioned on a draw.
        """
        raise NotImplementedError(f"{type(self).__name__} does not draw observations along a path")

    def regimes_given(self, y: Tensor, x: Tensor) -> HiddenMarkov:
        """Return the chain of regimes given a path of states, of what it and y say of the regimes.

        Called for a switching story alone, with the parameters conditioned on a draw; x is of shape ``(num_series,
        num_steps, num_states)``, and ``log_emission`` holds ``log p(x_t, y_t | x_{t-1}, s_t)``.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say which regimes go with a path of states")

    def log_transition(self, x: Tensor) -> Tensor | None:
        """Return ``log p(s_{t+1} | s_t, x_t)`` at states x of shape ``(..., num_states)``, shape ``(..., K, K)``.

        Where regimes do not depend on the state, ``None`` or one matrix of shape ``(K, K)``: then they move by the
        description's ``P``. Called for a switching story alone, with the parameters conditioned on a draw.
        """
        return None

    def check_data(self, x: Tensor) -> None:
        """Refuse what are no series of the story's features."""
        if x.ndim != 3 or x.shape[-1] != self.num_features:
            expected = f"(num_series, num_steps, {self.num_features})"
            raise InputError(f"data of shape {tuple(x.shape)}: this {type(self).__name__} expects {expected}")

    def check_training_data(self, x: Tensor) -> None:
        """Refuse series of one step, from which no dynamics can be learned."""
        longest = int(series_lengths(x).max())
        if longest < 2:
            raise InputError(f"{longest} step is too little to learn dynamics from; give series of at least 2")

    def simulate(self, num_rows: int, num_steps: int | None = None) -> Tensor:
        """Draw series from the prior predictive distribution, shape ``(num_rows, num_steps, num_features)``."""
        before = self.num_steps.clone()
        try:
            if num_steps is not None:
                self.num_steps.fill_(check_count("num_steps", num_steps))
            return super().simulate(num_rows)
        finally:
            self.num_steps.copy_(before)


def series_lengths(y: Tensor) -> Tensor:
    """Count the steps of each series up to the last at which anything is seen, shape ``(num_series,)``."""
    seen = (~y.isnan()).any(dim=-1)
    steps = torch.arange(1, y.shape[-2] + 1, device=y.device)
    return (seen * steps).amax(dim=-1)


def step_mask(y: Tensor, at_least: int = 0) -> Tensor:
    """Tell which steps belong to their series, shape ``(num_series, num_steps)``, ``at_least`` so many of each."""
    return torch.arange(y.shape[-2], device=y.device) < series_lengths(y).clamp_min(at_least)[:, None]
