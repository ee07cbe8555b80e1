"""Stacking of fits, or of the restarts of one: a mixture of predictive distributions by cross-validation."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from pplgen.errors import InputError
from pplgen.fitting.compare import METHODS, cross_validate, rank
from pplgen.fitting.restarts import restart_fits
from pplgen.fitting.result import Fit
from pplgen.posterior.datatree import group_of, printed_table
from pplgen.posterior.point_estimates import fitted_constants
from pplgen.posterior.relabelling import component_axes, relabel_dataset
from pplgen.posterior.row_likelihood import LogLikelihood
from pplgen.report.console import print_table
from pplgen.story.base import check_choice, check_count
from pplgen.story.isolation import seeded

__all__ = ["Stack", "stack"]

NEGLIGIBLE = 1e-3
"""Weight below which a fit is left out; the others' weights then sum to one."""
PREDICTIVE = ("posterior_predictive", "observed_data")
"""Groups that fits of different models share."""
DRAWN = ("posterior", "sample_stats", "log_likelihood", "posterior_predictive")
"""Groups with draws."""


class Stack:
    """Mixture of the predictive distributions of fits to the same rows.

    Attributes
    ----------
    fits : dict of str to Fit
        The fits with positive weight, the largest first.
    weights : pandas.Series
        Their stacking weights, which sum to one.
    table : pandas.DataFrame
        The comparison of all candidates, as of ``pplgen.compare``.
    of_restarts : bool
        Whether they are restarts of one fit, whose posteriors are mixed too.
    """

    def __init__(self, fits: Mapping[str, Fit], table: pd.DataFrame, *, of_restarts: bool) -> None:
        positive = table["weight"].astype(float).sort_values(ascending=False, kind="stable")
        positive = positive[positive >= NEGLIGIBLE]
        self.weights = positive / positive.sum()
        self.fits = {str(name): fits[str(name)] for name in self.weights.index}
        self.table, self.of_restarts = table, of_restarts

    def __repr__(self) -> str:
        parts = ", ".join(f"{name} {weight:.2f}" for name, weight in self.weights.items())
        return f"<Stack: {parts}>"

    def log_likelihood(self, x: Any = None, *, draws: int = 500, seed: int | None = None) -> LogLikelihood:
        """Return the log density of each row under the mixture in nats; arguments as of ``Fit.log_likelihood``."""
        parts = [fitted.log_likelihood(x, draws=draws, seed=seed) for fitted in self.fits.values()]
        log_weights = torch.as_tensor(np.log(self.weights.to_numpy()))
        terms = log_weights[:, None] + torch.stack([part.as_subclass(Tensor).double().cpu() for part in parts])
        errors = torch.stack([part.standard_error.double().cpu() for part in parts])
        error = (terms.softmax(0) * errors).square().sum(0).sqrt()
        kinds = dict.fromkeys(part.estimator for part in parts)
        return LogLikelihood.with_error(terms.logsumexp(0), error, " and ".join(kinds))

    def sample(self, num_rows: int, *, seed: int | None = None) -> Tensor:
        """Draw new rows from the mixture, in random order, shape ``(num_rows, num_features)``."""
        counts = self._counts(check_count("num_rows", num_rows))
        rows = torch.cat([self.fits[name].sample(count, seed=seed) for name, count in counts.items()])
        with seeded(next(iter(self.fits.values())).seed if seed is None else seed):
            return rows[torch.randperm(num_rows)]

    def to_datatree(
        self, draws: int = 1000, *, groups: Iterable[str] | None = None, seed: int | None = None
    ) -> xr.DataTree:
        """Draw from the mixture, in ArviZ's layout, as many draws of each fit as its weight says.

        Restarts have ``log_likelihood``, ``posterior`` and ``sample_stats``, with components in one order; only
        ``posterior_predictive`` and ``observed_data`` are those of different models. Restarts at the same mode
        share its weight.
        """
        available = ("posterior", "sample_stats", "log_likelihood", *PREDICTIVE) if self.of_restarts else PREDICTIVE
        requested = list(available) if groups is None else list(groups)
        if unknown := sorted(set(requested) - set(available)):
            what = "a stack of restarts" if self.of_restarts else "a stack of different models"
            raise InputError(f"group {unknown[0]!r}: {what} has {', '.join(available)}")
        counts = self._counts(check_count("draws", draws, minimum=2))
        trees = [self.fits[name].to_datatree(max(2, n), groups=requested, seed=seed) for name, n in counts.items()]
        content = {}
        for group in requested:
            parts = [group_of(tree, group) for tree in trees]
            if group in DRAWN:
                parts = [_one_chain(part).isel(draw=slice(n)) for part, n in zip(parts, counts.values(), strict=True)]
                if len({frozenset(map(str, part.data_vars)) for part in parts}) > 1:
                    raise InputError(f"group {group!r}: the fits have different variables; expected the same")
                parts = self._relabelled(parts) if group == "posterior" else parts
                joined = xr.concat(parts, "draw").assign_coords(draw=range(sum(counts.values())))
                parts = [joined]
            if parts[0].data_vars:
                content[f"/{group}"] = parts[0]
        tree = xr.DataTree.from_dict(content)
        tree.attrs = {"stack": ", ".join(self.fits), "weights": self.weights.tolist()}
        return tree

    def summary(self, draws: int = 1000) -> None:
        """Print the weights, and for restarts mean, sd and 90 % interval of every parameter under the mixture."""
        print_table("Stacking weights", self.weights.rename("weight").to_frame(), label="fit")
        if self.of_restarts:
            first = next(iter(self.fits.values()))
            tree = self.to_datatree(draws, groups=["posterior"])
            table, notes = printed_table(tree, first.readable_sites(tree))
            print_table(f"{first.name}, {len(self.fits)} restarts stacked", table, *notes)

    def _counts(self, number: int) -> dict[str, int]:
        """Divide a number by the weights, with the largest remainders rounded up; fits with none are left out."""
        exact = number * self.weights
        counts = exact.astype(int)
        rest = (exact - counts).sort_values(ascending=False, kind="stable").index[: number - int(counts.sum())]
        counts[rest] += 1
        return {str(name): int(count) for name, count in counts.items() if count}

    def _relabelled(self, posteriors: list[xr.Dataset]) -> list[xr.Dataset]:
        """Order the components of each posterior as those of the first."""
        axes = component_axes(next(iter(self.fits.values())).pair)
        first = {n: torch.as_tensor(posteriors[0][n].values).flatten(0, 1) for n in axes if n in posteriors[0]}
        return [relabel_dataset(posterior, first, axes) for posterior in posteriors]


def _one_chain(group: xr.Dataset) -> xr.Dataset:
    """Return draws of all chains as those of one."""
    chains = [group.isel(chain=[chain]).assign_coords(chain=[0]) for chain in range(group.sizes["chain"])]
    joined = xr.concat(chains, "draw")
    return joined.assign_coords(draw=range(joined.sizes["draw"]))


def stack(
    candidates: Mapping[str, Fit] | Fit,
    *,
    method: Literal["auto", "loo", "k-fold", "leave-future-out"] = "auto",
    draws: int = 1000,
) -> Stack:
    """Stack fits to the same rows, or the restarts of one fit: weights whose mixture predicts best.

    The weights maximise the cross-validated log density of the mixture. Models need not be nested, and none be true; a
    posterior whose restarts ended at several modes is better represented by their mixture than by one of them, and the
    weights need no mass of the modes.

    Parameters
    ----------
    candidates
        Fits by name, or a fit with several restarts.
    method
        How they are scored, as by ``pplgen.compare``; restarts by ``"loo"``, or ``"leave-future-out"`` for series.
    draws
        Posterior draws per candidate.

    Returns
    -------
    Stack
        ``weights``, and the mixture: ``log_likelihood``, ``sample``, ``to_datatree``, ``summary``.

    Raises
    ------
    InputError
        If there are fewer than two candidates, or they cannot be compared.

    References
    ----------
    Yao, Vehtari, Simpson and Gelman (2018), Using stacking to average Bayesian predictive distributions. Yao, Vehtari
    and Gelman (2022), Stacking for non-mixing Bayesian computations: the curse and blessing of multimodal posteriors.
    """
    check_choice("method", method, METHODS)
    check_count("draws", draws, minimum=2)
    of_restarts = isinstance(candidates, Fit)
    fits = restart_fits(candidates) if isinstance(candidates, Fit) else dict(candidates)
    if len(fits) < 2:
        raise InputError(f"{len(fits)} candidates: expected at least two to stack")
    for name, fitted in fits.items():
        if not isinstance(fitted, Fit):
            raise InputError(f"candidate {name!r} is a {type(fitted).__name__}; expected a fit")
    if of_restarts:
        first = next(iter(fits.values()))
        with first.pair.isolated():
            constants = fitted_constants(first.pair)
        if method == "k-fold" or constants:
            raise InputError(
                "restarts are stacked at their own parameters, which k-fold refits, and constants that were fitted to "
                "the rows have no leave-one-out density; expected method='loo' and a prior for every parameter"
            )
    scores, chosen = cross_validate(fits, method, draws)
    with warnings.catch_warnings():  # weights of fits that predict alike are uncertain, and harmless
        warnings.filterwarnings("ignore", message="Difference in performance")
        table = rank(scores)
    table.attrs["method"] = chosen
    return Stack(fits, table, of_restarts=of_restarts)
