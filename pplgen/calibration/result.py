"""``Calibration``: ranks of what was true among draws of fits to simulated data, and what they say.

Where data and parameters are drawn from the model and the draws from its posterior, ranks are uniform, those of any
quantity that depends on parameters and data. Ranks of the parameters alone do not tell the posterior from the prior;
that of the log-likelihood does.

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

from pplgen.calibration.plots import calibration_picture
from pplgen.calibration.trials import LOG_LIKELIHOOD
from pplgen.checks.table import Check, Verdict
from pplgen.checks.uniformity import holm, p_value
from pplgen.report.console import print_table

__all__ = ["COVERAGES", "Calibration"]

COVERAGES = (0.5, 0.8, 0.9, 0.95)
"""Probabilities of the central intervals whose coverage is told."""
FAILS, WARNS = 0.01, 0.05
"""Adjusted p-values below which ranks are not uniform, and doubtful. Conventions of this package."""
SOURCE = "Säilynoja et al. 2022; Holm 1979"
MANY = 0.1
"""Share of fits that have not converged, above which nothing is said of the guide. A convention of this package."""
SHIFT = 2.5
"""Standard errors by which the mean of the ranks, or their spread, is off before its direction is named."""


@dataclass(frozen=True)
class Calibration:
    """Ranks of what was true among draws of the fits.

    Attributes
    ----------
    name : str
        Of the story or the model.
    quantities : tuple of str
        Every scalar that was ranked, ``log_likelihood`` among them: log p(x | theta), discrete latents summed out.
    ranks : numpy.ndarray
        How many draws lie below the truth, from 0 to ``num_draws``, shape ``(num_datasets, num_quantities)``.
    num_draws : int
        Draws of each fit.
    truths, means, deviations : numpy.ndarray
        What was true, and mean and standard deviation of the draws, shape ``(num_datasets, num_quantities)``.
    num_failed : int
        Fits that broke down, and are left out.
    num_unconverged : int
        Fits whose steps ran out before the ELBO stopped improving.
    path : str
        What ran.
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
        """Probability of ranks as far from uniform as these, adjusted to the number of quantities."""
        return holm([p_value(column, self.num_draws) for column in self.ranks.T])

    @property
    def passed(self) -> bool:
        """Whether no rank fails."""
        return all(check.verdict is not Verdict.FAIL for check in self.checks())

    @property
    def coverage(self) -> pd.DataFrame:
        """Share of truths inside central intervals of the draws, one row for each quantity, a column for each level."""
        places = (self.ranks + 0.5) / (self.num_draws + 1)
        columns = {level: (abs(places - 0.5) <= level / 2).mean(0) for level in COVERAGES}
        return pd.DataFrame(columns, index=list(self.quantities))

    @property
    def z_scores(self) -> np.ndarray:
        """Mean of the draws minus the truth in their standard deviations, shape ``(num_datasets, num_quantities)``."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return (self.means - self.truths) / self.deviations

    @property
    def contraction(self) -> np.ndarray:
        """One minus the draws' variance in units of the prior's, shape ``(num_datasets, num_quantities)``.

        The prior's is that of the truths (Schad, Betancourt and Vasishth 2021,
        https://doi.org/10.1037/met0000275).
        """
        return 1 - np.square(self.deviations) / self.truths.var(0, ddof=1)

    def checks(self) -> tuple[Check, ...]:
        """Return a check for each quantity: whether its ranks are uniform, p-values adjusted to their number."""
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
        """Print p-values, coverage, z-scores and contraction, and what to do about what fails."""
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
        told = [f"{len(self.ranks)} data sets, {self.num_draws} draws each; {self.path}"]
        if self.num_failed:
            told.append(f"{self.num_failed} more fits broke down")
        if self.num_unconverged:
            told.append(self._unconverged)
        lines = [f"{check.name}: {check.remedy}" for check in checks if check.remedy]
        print_table(f"Calibration of {self.name}", table, "; ".join(told), *lines, digits=2)

    def plot(self, most: int = 12) -> Figure:
        """Draw, for up to ``most`` quantities, those of smallest p-values first, how far ranks are from uniform.

        Beside them z-scores against contraction.
        """
        order = np.argsort(self.p_values, kind="stable")[:most]
        return calibration_picture(self.to_dataset().isel(quantity=order), self.num_draws, self.name)

    def to_dataset(self) -> xr.Dataset:
        """Lay everything out as an ``xarray.Dataset`` with dimensions ``(dataset, quantity)``; it writes netCDF."""
        names = ("dataset", "quantity")
        arrays = {
            "rank": self.ranks,
            "truth": self.truths,
            "mean": self.means,
            "sd": self.deviations,
            "z_score": self.z_scores,
            "contraction": self.contraction,
        }
        variables: dict[str, Any] = {name: (names, values) for name, values in arrays.items()}
        variables["p"] = (names[1:], self.p_values)
        facts = {"model": self.name, "num_draws": self.num_draws, "num_failed": self.num_failed}
        return xr.Dataset(variables, coords={"quantity": list(self.quantities)}, attrs=facts)

    def _remedy(self, name: str, ranks: np.ndarray) -> str:
        """Say in which way ranks are not uniform, and what to do next: more steps before anything else."""
        found, remedy = self._found(name, ranks)
        if self.num_unconverged > MANY * len(ranks):
            return f"give more steps first, for {self._unconverged}; {found}"
        return f"{found}: {remedy}"

    def _found(self, name: str, ranks: np.ndarray) -> tuple[str, str]:
        """Return in which way ranks are not uniform, and what that points at where fits have converged."""
        places = (ranks + 0.5) / (self.num_draws + 1) - 0.5
        # of a uniform number: variance 1/12, and that of its square 1/180
        shift = places.mean() * np.sqrt(12 * len(places))
        spread = (np.square(places).mean() - 1 / 12) * np.sqrt(180 * len(places))
        if name == LOG_LIKELIHOOD and shift > SHIFT:
            return "the truth fits its data better than the draws do", (
                "the guide learns too little from the data, or the likelihood that is fitted is not that of the "
                "simulator"
            )
        if spread > SHIFT and spread > abs(shift):
            return "draws are too narrow (ranks pile up at both ends)", (
                "take a guide with correlations, such as AutoMultivariateNormal, or method='nuts'"
            )
        if spread < -SHIFT and -spread > abs(shift):
            return "draws are too wide (ranks pile up in the middle)", "more steps, or a lower learning rate"
        if abs(shift) > SHIFT:
            found = f"draws lie {'below' if shift > 0 else 'above'} the truth on average"
            return found, "look for a bug in model or guide, or take a richer guide"
        return "ranks are not uniform, though neither their mean nor their spread is far off", (
            "run it again with another seed and more data sets; what stays, and plot() shows, is a shape of the "
            "posterior that the guide lacks, such as skewness or two modes: take a richer guide"
        )
