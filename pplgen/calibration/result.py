"""``Calibration``: ranks of the truth among draws of fits to simulated data, with tests of their uniformity.

If parameters and data are drawn from the model, and the draws from its posterior, the ranks of any quantity that
depends on parameters and data are uniform. Ranks of parameters alone cannot distinguish the posterior from the prior;
those of the log-likelihood can.

References
----------
Talts, Betancourt, Simpson, Vehtari and Gelman (2018), Validating Bayesian inference algorithms with simulation-based
calibration, https://arxiv.org/abs/1804.06788.
Modrák, Moon, Kim, Bürkner, Huurre, Faltejsková, Gelman and Vehtari (2023), Simulation-based calibration checking for
Bayesian computation: the choice of test quantities shapes sensitivity, https://doi.org/10.1214/23-BA1404.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from pplgen.calibration.plots import plot_calibration
from pplgen.calibration.quantities import LOG_LIKELIHOOD
from pplgen.checks.registry import Check, Verdict
from pplgen.checks.uniformity import holm, p_value
from pplgen.report.console import print_table

__all__ = ["COVERAGES", "Calibration"]

COVERAGES = (0.5, 0.8, 0.9, 0.95)
"""Levels of the central intervals whose coverage is reported."""
FAILS, WARNS = 0.01, 0.05
"""Adjusted p-values below which a check fails, and below which it warns. Conventions of this package."""
SOURCE = "Säilynoja et al. 2022; Holm 1979"
MAX_UNCONVERGED = 0.1
"""Fraction of unconverged fits above which the remedy is more steps. A convention of this package."""
SHIFT = 2.5
"""Standard errors by which mean or variance of the ranks must differ from uniform before the direction is reported."""


@dataclass(frozen=True)
class Calibration:
    """Ranks of the truths among draws of the fits.

    Attributes
    ----------
    name : str
        Name of the story or model.
    quantities : tuple of str
        Names of the ranked scalars, including ``log_likelihood``: log p(x | theta), discrete latents summed out.
    ranks : numpy.ndarray
        Number of draws below the truth, from 0 to ``num_draws``, shape ``(num_datasets, num_quantities)``.
    num_draws : int
        Number of draws per fit.
    truths, means, deviations : numpy.ndarray
        True values, and means and standard deviations of the draws, shape ``(num_datasets, num_quantities)``.
    num_failed : int
        Number of fits that broke down and are left out.
    num_unconverged : int
        Number of fits whose steps ran out before the ELBO stopped improving.
    path : str
        How the fits were run.
    """

    name: str
    quantities: tuple[str, ...]
    ranks: np.ndarray
    num_draws: int
    truths: np.ndarray
    means: np.ndarray
    deviations: np.ndarray
    num_failed: int
    num_unconverged: int
    path: str

    def __repr__(self) -> str:
        failing = [check.name for check in self.checks() if check.verdict is Verdict.FAIL]
        return f"<Calibration of {self.name}: {', '.join(failing) + ' not uniform' if failing else 'passed'}>"

    @cached_property
    def p_values(self) -> np.ndarray:
        """P-values of uniformity, adjusted for the number of quantities, shape ``(num_quantities,)``."""
        return holm([p_value(column, self.num_draws) for column in self.ranks.T])

    @property
    def passed(self) -> bool:
        """Whether no check fails."""
        return all(check.verdict is not Verdict.FAIL for check in self.checks())

    @property
    def coverage(self) -> pd.DataFrame:
        """Fraction of truths inside central intervals of the draws, a row per quantity and a column per level."""
        quantiles = (self.ranks + 0.5) / (self.num_draws + 1)
        columns = {level: (abs(quantiles - 0.5) <= level / 2).mean(0) for level in COVERAGES}
        return pd.DataFrame(columns, index=list(self.quantities))

    @property
    def z_scores(self) -> np.ndarray:
        """Posterior z-scores, mean of the draws minus truth over their sd, shape ``(num_datasets, num_quantities)``."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return (self.means - self.truths) / self.deviations

    @property
    def contraction(self) -> np.ndarray:
        """Posterior contraction, one minus posterior over prior variance, shape ``(num_datasets, num_quantities)``.

        The prior variance is that of the truths (Schad, Betancourt and Vasishth 2021,
        https://doi.org/10.1037/met0000275).
        """
        return 1 - np.square(self.deviations) / self.truths.var(0, ddof=1)

    def checks(self) -> tuple[Check, ...]:
        """Check the uniformity of the ranks of each quantity, with adjusted p-values."""
        checks = []
        for name, value, ranks in zip(self.quantities, self.p_values, self.ranks.T, strict=True):
            verdict = Verdict.FAIL if value < FAILS else Verdict.WARN if value < WARNS else Verdict.PASS
            remedy = "" if verdict is Verdict.PASS else self._remedy(name, ranks)
            checks.append(Check(f"ranks of {name}", float(value), FAILS, SOURCE, verdict, remedy))
        return tuple(checks)

    @property
    def _unconverged(self) -> str:
        return (
            f"in {self.num_unconverged} of {len(self.ranks)} fits the steps ran out before the ELBO stopped improving"
        )

    def summary(self) -> None:
        """Print p-values, coverage, z-scores and contraction of each quantity, and remedies."""
        checks = self.checks()
        inside = (100 * self.coverage).round().astype(int)
        with np.errstate(invalid="ignore"):
            table = pd.DataFrame(
                {
                    "p": self.p_values,
                    f"in {'/'.join(f'{100 * level:.0f}' for level in COVERAGES)} %": [
                        "/".join(map(str, row)) for row in inside.values
                    ],
                    "mean z": self.z_scores.mean(0),
                    "sd z": self.z_scores.std(0),
                    "contraction": self.contraction.mean(0),
                    "verdict": [str(check.verdict) for check in checks],
                },
                index=list(self.quantities),
                dtype=object,
            )
        header = [f"{len(self.ranks)} data sets, {self.num_draws} draws each; {self.path}"]
        if self.num_failed:
            header.append(f"{self.num_failed} more fits broke down")
        if self.num_unconverged:
            header.append(self._unconverged)
        lines = [f"{check.name}: {check.remedy}" for check in checks if check.remedy]
        print_table(f"Calibration of {self.name}", table, "; ".join(header), *lines, digits=2)

    def plot(self, most: int = 12) -> Figure:
        """Plot ECDF differences of the ``most`` quantities of smallest p-values, and z-scores against contraction."""
        order = np.argsort(self.p_values, kind="stable")[:most]
        return plot_calibration(self.to_dataset().isel(quantity=order), self.num_draws, self.name)

    def to_dataset(self) -> xr.Dataset:
        """Return ranks and statistics as an ``xarray.Dataset`` with dimensions ``(dataset, quantity)``."""
        dims = ("dataset", "quantity")
        arrays = {
            "rank": self.ranks,
            "truth": self.truths,
            "mean": self.means,
            "sd": self.deviations,
            "z_score": self.z_scores,
            "contraction": self.contraction,
        }
        variables: dict[str, Any] = {name: (dims, values) for name, values in arrays.items()}
        variables["p"] = (dims[1:], self.p_values)
        attrs = {"model": self.name, "num_draws": self.num_draws, "num_failed": self.num_failed}
        return xr.Dataset(variables, coords={"quantity": list(self.quantities)}, attrs=attrs)

    def _remedy(self, name: str, ranks: np.ndarray) -> str:
        """Return finding and remedy for ranks that are not uniform; unconverged fits need more steps first."""
        finding, remedy = self._diagnose(name, ranks)
        if self.num_unconverged > MAX_UNCONVERGED * len(ranks):
            return f"use more steps first, as {self._unconverged}; {finding}"
        return f"{finding}: {remedy}"

    def _diagnose(self, name: str, ranks: np.ndarray) -> tuple[str, str]:
        """Return how the ranks deviate from uniform, and the remedy if the fits have converged."""
        centred = (ranks + 0.5) / (self.num_draws + 1) - 0.5
        # a centred uniform variable has variance 1/12, and its square has variance 1/180
        shift = centred.mean() * np.sqrt(12 * len(centred))
        spread = (np.square(centred).mean() - 1 / 12) * np.sqrt(180 * len(centred))
        if name == LOG_LIKELIHOOD and shift > SHIFT:
            return "the truth has a higher log-likelihood than the draws", (
                "the guide learns too little from the data, or the fitted likelihood differs from the simulator's"
            )
        if spread > SHIFT and spread > abs(shift):
            return "draws are too narrow (ranks pile up at both ends)", (
                "use a guide with correlations, such as AutoMultivariateNormal, or method='nuts'"
            )
        if spread < -SHIFT and -spread > abs(shift):
            return "draws are too wide (ranks pile up in the middle)", "more steps, or a lower learning rate"
        if abs(shift) > SHIFT:
            finding = f"draws lie {'below' if shift > 0 else 'above'} the truth on average"
            return finding, "look for a bug in model or guide, or use a richer guide"
        return "ranks are not uniform, though their mean and variance are", (
            "rerun with another seed and more data sets; if it persists, the guide cannot represent the shape of the "
            "posterior (see plot()), such as skewness or two modes: use a richer guide"
        )
