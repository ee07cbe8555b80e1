"""What can be asked of any fit about how far it can be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import xarray as xr
from arviz_stats.utils import ELPDData

from pplgen.checks.table import Check, Checks, run_checks
from pplgen.errors import InputError
from pplgen.posterior.fitted_pair import FittedPair
from pplgen.posterior.importance_sampling import weighted_draws
from pplgen.posterior.leave_one_out import leave_one_out
from pplgen.report.console import print_checks
from pplgen.story.base import check_count

__all__ = ["DiagnosticMethods"]


class DiagnosticMethods(FittedPair):
    """Checks of any fit, and the report of them."""

    def diagnose(self, x: Any = None, *, seed: int | None = None) -> Checks:
        """Check how far the fit can be trusted; print values, thresholds, verdicts, remedies, and return them.

        What is returned is a tuple of checks, which also takes their names; at a prompt it shows counts of verdicts.

        Rows ``x``, as in ``log_likelihood``, take the place of the training rows where predictions and latents of
        single rows are checked. A fit without its rows at hand is checked for what needs none.
        """
        checks = self._checks(x, seed)
        print_checks(self.name, checks)
        return checks

    def report(
        self,
        directory: str | Path,
        *,
        tree: xr.DataTree | None = None,
        checks: tuple[Check, ...] | None = None,
        seed: int | None = None,
    ) -> Path:
        """Write ``report.html``, one page that needs nothing else, and the same as ``report.json``.

        They hold every check with its threshold, source and remedy, what was fitted to what, pictures, the table of
        parameters, and what reproduces the fit.

        Parameters
        ----------
        directory
            Where they go, new or old; a report that is there is replaced.
        tree
            Draws that are at hand; otherwise some are made.
        checks
            What ``diagnose`` returned; otherwise they are run.
        seed
            Of checks that are run; the fit's own where not given.

        Returns
        -------
        pathlib.Path
            The page.
        """
        from pplgen.report.page import report_draws, write_report

        fit: Any = self
        draws = report_draws(fit) if tree is None else tree
        found = self._checks(None, seed) if checks is None else checks
        return write_report(fit, draws, found, Path(directory))

    def loo(self, *, draws: int = 1000, seed: int | None = None) -> ELPDData:
        """Leave one row out at a time, without a fit to each; see ``pplgen.posterior.leave_one_out.leave_one_out``.

        Draws are weighed towards the posterior first, so that a guide that is too wide or too narrow is corrected for
        as far as its Pareto k allow.
        """
        if self.pair.weights is not None:
            raise InputError("loo: the fit was to weighted rows, which cannot be left out one at a time")
        self._rows(None)
        with self._ready(seed):
            return leave_one_out(weighted_draws(self.pair, check_count("draws", draws, minimum=2)))

    def _checks(self, x: Any, seed: int | None) -> Checks:
        """Run checks on rows ``x``."""
        rows = None if x is None else self._rows(x)
        runs = tuple(sorted(self.runs, key=lambda run: run.rank, reverse=True))
        with self._ready(seed):
            return run_checks(self.pair, rows, runs, has_rows=self.has_rows, columns=self.columns)
