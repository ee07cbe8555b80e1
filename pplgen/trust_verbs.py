"""What can be asked of a fit about how far it can be trusted."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import xarray as xr

from pplgen.diagnostics import Check, print_checks, run_checks
from pplgen.pair import Pair

__all__ = ["TrustVerbs"]


class TrustVerbs:
    """Checks of any fit, and the report of them."""

    pair: Pair

    def _rows(self, x: Any) -> tuple[Any, ...]:
        """Return the arguments of model and guide for the rows ``x``."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        """Name of the story, or of the bare pair's model."""
        raise NotImplementedError

    def _ready(self, seed: int | None) -> contextlib.AbstractContextManager[None]:
        """Seed the generators and give Pyro the pair's parameters."""
        raise NotImplementedError

    def diagnose(self, x: Any = None, *, seed: int | None = None) -> tuple[Check, ...]:
        """Run checks on rows ``x``, as in ``log_likelihood``; print values, thresholds, verdicts, and return them."""
        checks = self._checks(x, seed)
        print_checks(self.name, checks)
        return checks

    def report(self, directory: str | Path, *, tree: xr.DataTree | None = None, seed: int | None = None) -> Path:
        """Write ``report.html``, one page that needs nothing else, and the same as ``report.json``.

        They hold every check with its threshold, source and remedy, what was fitted to what, pictures, the table of
        parameters, and what reproduces the fit.

        Parameters
        ----------
        directory
            Where they go, new or old; a report that is there is replaced.
        tree
            Draws that are at hand; otherwise some are made.
        seed
            Of the checks; the fit's own where not given.

        Returns
        -------
        pathlib.Path
            The page.
        """
        from pplgen.report import report_draws, write_report

        fit: Any = self
        draws = report_draws(fit) if tree is None else tree
        return write_report(fit, draws, self._checks(None, seed) if fit.has_rows else (), Path(directory))

    def _checks(self, x: Any, seed: int | None) -> tuple[Check, ...]:
        """Run checks on rows ``x``."""
        rows = self._rows(x)
        with self._ready(seed):
            return run_checks(self.pair, rows)
