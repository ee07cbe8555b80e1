"""What can be asked of a fit about how far it can be trusted."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import Any

import xarray as xr

from pplgen.diagnostics import Check, print_checks, run_checks
from pplgen.errors import DataWarning
from pplgen.latent import LatentStory
from pplgen.pair import Pair

__all__ = ["TrustVerbs"]

REPORT_DRAWS = 1000
"""Posterior draws of which a report shows pictures."""


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
        from pplgen.report import write_report

        fit: Any = self
        if tree is None:
            tree = self._report_draws(fit)
        checks = self._checks(None, seed) if fit.has_rows else ()
        return write_report(fit, tree, checks, Path(directory))

    def _checks(self, x: Any, seed: int | None) -> tuple[Check, ...]:
        """Run checks on rows ``x``."""
        rows = self._rows(x)
        with self._ready(seed):
            return run_checks(self.pair, rows)

    @staticmethod
    def _report_draws(fit: Any) -> xr.DataTree:
        """Draw what a report shows; it says itself what is left out for its size."""
        if not fit.has_rows:
            return fit.to_datatree(REPORT_DRAWS, groups=["posterior"])
        if isinstance(fit.story, LatentStory):  # codes and rows are drawn anew
            return fit.to_datatree(REPORT_DRAWS, groups=["posterior", "observed_data", "prior"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)
            return fit.to_datatree(REPORT_DRAWS)
