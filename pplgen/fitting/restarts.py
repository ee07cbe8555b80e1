"""The restarts of a fit as separate fits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from pplgen.errors import InputError
from pplgen.fitting.result import Fit
from pplgen.inference.iterates import unflatten
from pplgen.inference.training_result import Training, best_first

__all__ = ["RestartFit", "restart_fits"]


class RestartFit(Fit):
    """A restart of a fit: the fit's pair, with the restart's parameters while a method runs.

    Parameters
    ----------
    fitted
        The fit.
    run
        Its restart.
    """

    def __init__(self, fitted: Fit, run: Training) -> None:
        super().__init__(
            fitted.pair, (run,), table=fitted.table, seed=fitted.seed, path=fitted.path, origin=fitted.origin
        )

    @contextlib.contextmanager
    def _ready(self, seed: int | None) -> Iterator[None]:
        """Load the restart's parameters into the pair, and the pair's own afterwards."""
        with super()._ready(seed):
            current = self.pair.snapshot()
            self.pair.restore(unflatten(torch.from_numpy(self.best.final), current))
            try:
                yield
            finally:
                self.pair.restore(current)


def restart_fits(fitted: Fit) -> dict[str, Fit]:
    """Return the restarts of a fit by name, best first.

    Raises
    ------
    InputError
        If there are fewer than two, or their parameters were not stored.
    """
    if len(fitted.runs) < 2:
        raise InputError(f"{fitted.name}: {len(fitted.runs)} restarts; expected at least two, as by fit(restarts=8)")
    if not all(len(run.final) for run in fitted.runs):
        raise InputError(
            f"{fitted.name}: the parameters of its restarts were not stored, because they are many or relative to each "
            "restart's start; fit each with its own seed and stack the fits"
        )
    return {f"restart {number}": RestartFit(fitted, run) for number, run in enumerate(best_first(fitted.runs), start=1)}
