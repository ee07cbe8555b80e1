"""The contract of state space stories: rows are series, and a story returns its state space parameters."""

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
    missing entry, and shorter series are padded with NaN. Given its parameters, a story returns its state space model
    from ``state_space``; the toolkit provides filtering, smoothing, forecasting and imputation.

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
    """Number of steps of simulated series: that of the training series, 100 before training."""

    def __init__(self, num_features: int, **config: Any) -> None:
        super().__init__(num_features=num_features, **config)
        self.num_features = num_features
        self.register_buffer("num_steps", torch.tensor(100))

    def state_space(self, y: Tensor) -> StateSpace:
        """Return the state space model of series y; called with the parameters conditioned on a draw."""
        raise NotImplementedError(f"{type(self).__name__} does not define state_space(y)")

    def fill(self, y: Tensor, regimes: Tensor) -> Tensor:
        """Draw the missing entries of y given a path of hidden states, shape ``(num_series, num_steps)``.

        Called only for hidden Markov stories, with the parameters conditioned on a draw.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define fill(y, regimes)")

    def regimes_given(self, y: Tensor, x: Tensor) -> HiddenMarkov:
        """Return the hidden Markov model of the regimes given a path x of states and y.

        Called only for switching stories, with the parameters conditioned on a draw; x has shape ``(num_series,
        num_steps, num_states)``, and ``log_emission`` holds ``log p(x_t, y_t | x_{t-1}, s_t)``.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define regimes_given(y, x)")

    def log_transition(self, x: Tensor) -> Tensor | None:
        """Return ``log p(s_{t+1} | s_t, x_t)`` at states x of shape ``(..., num_states)``, shape ``(..., K, K)``.

        If regimes do not depend on the state, ``None`` or one matrix of shape ``(K, K)``: transitions then follow ``P``
        of ``state_space``. Called only for switching stories, with the parameters conditioned on a draw.
        """
        return None

    def check_data(self, x: Tensor) -> None:
        """Raise ``InputError`` if ``x`` is not a batch of series with the story's number of features."""
        if x.ndim != 3 or x.shape[-1] != self.num_features:
            expected = f"(num_series, num_steps, {self.num_features})"
            raise InputError(f"data of shape {tuple(x.shape)}: this {type(self).__name__} expects {expected}")

    def check_training_data(self, x: Tensor) -> None:
        """Raise ``InputError`` if all series have fewer than two steps."""
        longest = int(series_lengths(x).max())
        if longest < 2:
            raise InputError(f"the longest series has {longest} step; learning dynamics requires at least 2")

    def simulate(self, num_rows: int, num_steps: int | None = None) -> Tensor:
        """Draw series from the prior predictive distribution, shape ``(num_rows, num_steps, num_features)``."""
        previous = self.num_steps.clone()
        try:
            if num_steps is not None:
                self.num_steps.fill_(check_count("num_steps", num_steps))
            return super().simulate(num_rows)
        finally:
            self.num_steps.copy_(previous)


def series_lengths(y: Tensor) -> Tensor:
    """Return the number of steps of each series up to its last observation, shape ``(num_series,)``."""
    observed = (~y.isnan()).any(dim=-1)
    steps = torch.arange(1, y.shape[-2] + 1, device=y.device)
    return (observed * steps).amax(dim=-1)


def step_mask(y: Tensor, at_least: int = 0) -> Tensor:
    """Mask the steps within each series' length, at least ``at_least``; shape ``(num_series, num_steps)``."""
    return torch.arange(y.shape[-2], device=y.device) < series_lengths(y).clamp_min(at_least)[:, None]
