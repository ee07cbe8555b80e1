"""What can be asked of a fit of series beside what can be asked of any."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import xarray as xr

from pplgen import scores, states
from pplgen.described import series_story
from pplgen.forecasting import forecast_series
from pplgen.pair import Pair
from pplgen.story import check_count

__all__ = ["SeriesVerbs"]


class SeriesVerbs:
    """Verbs of a fit whose rows are series; for others each is an ``InputError``.

    ``x`` is whatever ``load_series`` takes, ``None`` for the training series. ``draws`` are those of the parameters.
    """

    pair: Pair
    columns: tuple[str, ...]

    def _rows(self, x: Any) -> tuple[Any, ...]:
        """Return the arguments of model and guide for the rows ``x``."""
        raise NotImplementedError

    def _ready(self, seed: int | None) -> contextlib.AbstractContextManager[None]:
        """Seed the generators and give Pyro the pair's parameters."""
        raise NotImplementedError

    def filter(self, x: Any = None, *, draws: int = 200, seed: int | None = None) -> xr.Dataset:
        """Say what is known of each step of series from those up to it; see ``pplgen.states.filter_series``."""
        with self._series("filter", x, draws, seed) as given:
            return states.filter_series(*given)

    def smooth(
        self, x: Any = None, *, draws: int = 200, keep_draws: bool = False, seed: int | None = None
    ) -> xr.Dataset:
        """Say what is known of each step of series from the whole of them; see ``pplgen.states.smooth_series``."""
        with self._series("smooth", x, draws, seed) as given:
            return states.smooth_series(*given, keep_draws=keep_draws)

    def forecast(
        self, horizon: int, x: Any = None, *, draws: int = 500, keep_draws: bool = False, seed: int | None = None
    ) -> xr.Dataset:
        """Simulate series onwards for ``horizon`` steps; see ``pplgen.forecasting.forecast_series``."""
        check_count("horizon", horizon)
        with self._series("forecast", x, draws, seed) as given:
            return forecast_series(*given, horizon=horizon, keep_draws=keep_draws)

    def leave_future_out(
        self, x: Any = None, *, start: int | None = None, draws: int = 1000, seed: int | None = None
    ) -> scores.LeaveFutureOut:
        """Score one-step-ahead predictions of series from step ``start`` on; see ``scores.leave_future_out``."""
        with self._series("leave_future_out", x, draws, seed) as (pair, rows, _, number):
            return scores.leave_future_out(pair, rows, start, number)

    @contextlib.contextmanager
    def _series(self, verb: str, x: Any, draws: int, seed: int | None) -> Iterator[tuple[Any, ...]]:
        """Give what verbs of series take: the pair, its arguments for ``x``, their columns, and how many draws."""
        series_story(self.pair, verb)
        rows, number = self._rows(x), check_count("draws", draws)
        with self._ready(seed):
            yield self.pair, rows, self.columns, number
