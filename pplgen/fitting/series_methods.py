"""Methods of a fit to series: filter, smooth, forecast, residuals, leave-future-out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import xarray as xr

from pplgen.posterior.fitted_pair import FittedPair
from pplgen.story.base import check_count
from pplgen.timeseries import smoothing
from pplgen.timeseries.forecasting import forecast_series
from pplgen.timeseries.leave_future_out import LeaveFutureOut, leave_future_out
from pplgen.timeseries.one_step import series_residuals
from pplgen.timeseries.parameter_draws import series_story

__all__ = ["SeriesMethods"]


class SeriesMethods(FittedPair):
    """Methods of a fit whose rows are series; for others each raises ``InputError``.

    ``x`` is any input of ``load_series``, ``None`` for the training series; ``draws`` is the number of parameter draws.
    """

    def filter(self, x: Any = None, *, draws: int = 200, seed: int | None = None) -> xr.Dataset:
        """Return moments of each step's state given the series up to it; see ``pplgen.timeseries.smoothing``."""
        with self._series("filter", x, draws, seed) as arguments:
            return smoothing.filter_series(*arguments)

    def smooth(
        self, x: Any = None, *, draws: int = 200, keep_draws: bool = False, seed: int | None = None
    ) -> xr.Dataset:
        """Return moments of each step's state given the whole series; see ``pplgen.timeseries.smoothing``."""
        with self._series("smooth", x, draws, seed) as arguments:
            return smoothing.smooth_series(*arguments, keep_draws=keep_draws)

    def forecast(
        self, horizon: int, x: Any = None, *, draws: int = 500, keep_draws: bool = False, seed: int | None = None
    ) -> xr.Dataset:
        """Forecast series for ``horizon`` steps by simulation; see ``pplgen.timeseries.forecasting``."""
        check_count("horizon", horizon)
        with self._series("forecast", x, draws, seed) as arguments:
            return forecast_series(*arguments, horizon=horizon, keep_draws=keep_draws)

    def residuals(self, x: Any = None, *, draws: int = 200, seed: int | None = None) -> xr.Dataset:
        """Return one-step-ahead residuals, standard normal under the model; see ``pplgen.timeseries.one_step``."""
        with self._series("residuals", x, draws, seed) as arguments:
            return series_residuals(*arguments)

    def leave_future_out(
        self, x: Any = None, *, start: int | None = None, draws: int = 1000, seed: int | None = None
    ) -> LeaveFutureOut:
        """Score one-step-ahead predictions from step ``start`` on; see ``pplgen.timeseries.leave_future_out``."""
        with self._series("leave_future_out", x, draws, seed) as (pair, rows, _, number):
            return leave_future_out(pair, rows, start, number)

    @contextlib.contextmanager
    def _series(self, method: str, x: Any, draws: int, seed: int | None) -> Iterator[tuple[Any, ...]]:
        """Yield the pair, its arguments for ``x``, the columns and the number of draws, or raise ``InputError``."""
        series_story(self.pair, method)
        rows, number = self._rows(x), check_count("draws", draws)
        with self._ready(seed):
            yield self.pair, rows, self.columns, number
