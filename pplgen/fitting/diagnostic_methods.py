"""Diagnostic methods of any fit: checks, report, PSIS-LOO, anomalous rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pyro
import torch
import xarray as xr
from arviz_stats.utils import ELPDData
from torch import Tensor

from pplgen.checks.registry import Check, Checks, run_checks
from pplgen.errors import InputError
from pplgen.inference.training_result import best_first
from pplgen.posterior.anomaly import conformal_anomalies, require_calibration_rows
from pplgen.posterior.evidence import METHODS, LogEvidence, estimate_log_evidence
from pplgen.posterior.fitted_pair import FittedPair
from pplgen.posterior.importance_sampling import weighted_draws
from pplgen.posterior.leave_one_out import leave_one_out
from pplgen.story.base import check_choice, check_count, check_positive
from pplgen.timeseries.one_step import one_step_pit
from pplgen.timeseries.series_likelihood import log_likelihood

__all__ = ["DiagnosticMethods"]


class DiagnosticMethods(FittedPair):
    """Diagnostic methods of any fit."""

    def diagnose(self, x: Any = None, *, seed: int | None = None) -> Checks:
        """Run all checks of the fit; ``print`` shows their values, thresholds, verdicts and remedies.

        The result is a tuple of checks that can also be indexed by name; its representation counts the verdicts.

        With rows ``x``, as in ``log_likelihood``, predictions and per-row latents are checked on those rows instead of
        the training rows. Without training rows in memory, checks that need them are skipped.
        """
        return self._checks(x, seed)

    def report(
        self,
        directory: str | Path,
        *,
        tree: xr.DataTree | None = None,
        checks: tuple[Check, ...] | None = None,
        seed: int | None = None,
    ) -> Path:
        """Write ``report.html``, a self-contained page, and ``report.json`` with the same content.

        They contain every check with its threshold, source and remedy, the story and data, plots, the table of
        parameters, and the options that reproduce the fit.

        Parameters
        ----------
        directory
            Output directory, created if needed; an existing report is replaced.
        tree
            Posterior draws; default: new draws.
        checks
            Result of ``diagnose``; default: all checks are run.
        seed
            Random seed of the checks; default: the fit's.

        Returns
        -------
        pathlib.Path
            Path of the page.
        """
        from pplgen.report.page import report_draws, write_report

        fit: Any = self
        draws = report_draws(fit) if tree is None else tree
        results = self._checks(None, seed) if checks is None else checks
        return write_report(fit, draws, results, Path(directory))

    def loo(self, *, draws: int = 1000, seed: int | None = None) -> ELPDData:
        """Return leave-one-out predictive densities by PSIS-LOO; see ``pplgen.posterior.leave_one_out.leave_one_out``.

        Draws of the guide are importance-weighted towards the posterior, which corrects a guide that is too wide or too
        narrow as far as the Pareto k values allow. Constants that were fitted to the rows stay as they are, so that the
        result is too high if there are any; ``pplgen.k_fold`` refits them.
        """
        if self.pair.weights is not None:
            raise InputError("loo: the fit has weighted rows, for which LOO is not defined")
        self._rows(None)
        if not self.pair.structure.shared_latent:
            raise InputError(
                "loo: all shared quantities are constants fitted to the rows, so that no draw leaves a row out; "
                "pplgen.k_fold(fit) fits them without it"
            )
        with self._ready(seed):
            return leave_one_out(weighted_draws(self.pair, check_count("draws", draws, minimum=2)))

    def log_evidence(
        self,
        method: Literal["auto", "importance", "bridge", "annealed"] = "auto",
        *,
        draws: int | None = None,
        seed: int | None = None,
    ) -> LogEvidence:
        """Estimate the log evidence (log marginal likelihood) of the training rows, with its standard error.

        The ELBO is a lower bound of it. Parameters without a prior have none; ``print`` shows the estimate in a line,
        and says where it is unreliable, or depends on a prior that was taken from the data.

        Parameters
        ----------
        method
            ``"importance"``: importance sampling from the guide, the default of a guide; its Pareto k shows whether the
            guide is near enough. ``"bridge"``: bridge sampling between posterior draws and a normal distribution
            fitted to half of them, the default of a fit by NUTS; another fit is first sampled by NUTS. ``"annealed"``:
            annealed importance sampling from a normal distribution with the guide's moments.
        draws
            Number of draws, or of chains of ``"annealed"``; default: 4,000, 2,000 and 1,000.
        seed
            Random seed; default: the fit's.

        Returns
        -------
        pplgen.posterior.evidence.LogEvidence
            ``value`` and ``standard_error`` in nats, ``pareto_k``, ``reliable`` and ``problem``.

        Raises
        ------
        InputError
            If parameters are point estimates, rows are weighted, subsampled or not in memory, a prior is improper, or
            the method does not apply.

        References
        ----------
        Meng and Wong (1996), Simulating ratios of normalizing constants via a simple identity. Neal (2001), Annealed
        importance sampling.
        """
        check_choice("method", method, ("auto", *METHODS))
        self._rows(None)
        chosen = method if method != "auto" else "importance" if self.chains is None else "bridge"
        number = None if draws is None else check_count("draws", draws, minimum=2)
        with self._ready(seed), torch.no_grad():
            return estimate_log_evidence(self.pair, chosen, number, self.seed if seed is None else seed)

    def anomaly(
        self, x: Any = None, *, held_out: Any = None, rate: float = 0.01, draws: int = 200, seed: int | None = None
    ) -> xr.Dataset:
        """Score how unlikely each row is under the model, and flag those beyond a threshold.

        The score is minus the log posterior predictive density in nats, as of ``log_likelihood``; series are scored as
        a whole. With n normal rows its conformal p-value is ``(1 + #{normal rows with a score as high}) / (n + 1)``:
        whatever the model, a normal row outside the training rows is flagged with probability at most ``rate``.

        Parameters
        ----------
        x
            Rows to score.
        held_out
            Normal rows outside the training rows. ``None``: the training rows, whose scores are lower than those of new
            rows, so that a fraction above ``rate`` of new rows is flagged.
        rate
            False-alarm rate: fraction of normal rows that are flagged.
        draws
            Draws from the guide; for latent-variable stories, importance samples per row.
        seed
            Random seed of the draws.

        Returns
        -------
        xarray.Dataset
            ``score``, ``p_value`` and ``flagged``, dimension ``row``; ``normal_score`` of the calibration rows,
            dimension ``normal_row``; ``threshold``, which a flagged row's score exceeds.

        Notes
        -----
        Rows must have as many missing entries as the calibration rows, because every entry contributes to the density.
        A density can be high at out-of-distribution rows, such as pictures smoother than any training picture
        (Nalisnick et al. 2019); the false-alarm rate still holds, but the detection rate may be low.

        References
        ----------
        Laxhammar and Falkman (2010), Conformal prediction for distribution-independent anomaly detection.
        Nalisnick et al. (2019), Do deep generative models know what they don't know?
        """
        if check_positive("rate", rate) >= 1:
            raise InputError(f"rate={rate!r}: expected a fraction of rows between 0 and 1")
        check_count("draws", draws)
        # rows alone: labels and weights do not enter the score
        normal, rows = (self._rows(each)[: self.pair.num_arguments] for each in (held_out, x))
        normal_score = self._minus_log_density(normal, draws, seed)
        require_calibration_rows(len(normal_score), rate)
        score = normal_score if rows[0] is normal[0] else self._minus_log_density(rows, draws, seed)
        by = "training rows" if held_out is None else "held-out rows"
        scores = conformal_anomalies(score, normal_score, rate).assign_attrs(calibrated_by=by, draws=draws)
        return self._with_identifiers(scores, x)

    def _minus_log_density(self, rows: tuple[Any, ...], draws: int, seed: int | None) -> Tensor:
        """Return minus the log posterior predictive density of rows in nats, at the same draws for all of one seed."""
        with self._ready(seed), torch.no_grad(), pyro.validation_enabled(False):
            return -log_likelihood(self.pair, rows, draws).as_subclass(Tensor).cpu().double()

    def _checks(self, x: Any, seed: int | None) -> Checks:
        """Run all checks, on rows ``x`` or the training rows."""
        rows = None if x is None else self._rows(x)
        runs = tuple(best_first(self.runs))
        with self._ready(seed):
            return run_checks(
                self.pair, rows, runs, has_rows=self.has_rows, columns=self.columns, one_step_pit=one_step_pit
            )
