"""K-fold and leave-group-out cross-validation: a pair is fitted anew without each fold, all folds in one program."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from arviz_stats.utils import ELPDData
from torch import Tensor

from pplgen.errors import InputError
from pplgen.fitting.fit import fit
from pplgen.fitting.fit_options import FitOptions
from pplgen.fitting.prepare import prepare
from pplgen.fitting.result import Fit
from pplgen.inference.train import train_separate_data
from pplgen.inference.training_result import StopReason, Training, best_first
from pplgen.posterior.point_estimates import require_densities
from pplgen.story.base import check_count
from pplgen.story.isolation import exclusive, seeded
from pplgen.story.pair import Pair
from pplgen.timeseries.series_likelihood import log_likelihood

__all__ = ["k_fold"]


def k_fold(
    fitted: Fit,
    folds: int | None = None,
    *,
    groups: Sequence[Any] | None = None,
    draws: int = 500,
    seed: int | None = None,
    **options: Any,
) -> ELPDData:
    """Estimate the expected log predictive density of new rows by refitting without each fold of rows.

    Everything is fitted again, data-dependent priors and constants too, from rows without the fold: their weights are
    zero. All fits run as one program where the pair can be traced and every step uses all rows, else one by one. A pair
    that ended at a stationary point is fitted from its parameters too, and the fit with the better ELBO counts.

    Parameters
    ----------
    fitted
        A fit by SVI with its training rows.
    folds
        Number of folds, at random and of equal sizes (default: 10, or the number of rows if smaller).
    groups
        Group of each row: rows of a group are left out together, so that the result is for rows of new groups. With
        ``folds=None`` each group is a fold.
    draws
        Draws of the guide over which densities of held-out rows are averaged.
    seed
        Random seed of folds, fits and draws; default: the fit's.
    **options
        Options of ``fit`` for the folds; default: those of the fit.

    Returns
    -------
    arviz_stats.utils.ELPDData
        ``elpd`` in nats and its standard error ``se``, over groups if given; ``elpd_i``, the log predictive density of
        each row given the other folds; ``p``, how much the rows' density is higher where they were fitted; ``warning``,
        whether a fold did not converge. ``arviz_stats.compare`` takes it.

    Raises
    ------
    InputError
        If rows cannot be held out: weighted rows, a single row or series, a stream, a guide with parameters of rows, or
        rows without a density.

    References
    ----------
    Vehtari, Gelman and Gabry (2017), Practical Bayesian model evaluation using leave-one-out cross-validation and WAIC.
    """
    number = _require_rows(fitted)
    seed = fitted.seed if seed is None else check_count("seed", seed, minimum=0)
    assigned = _assign(number, folds, groups, seed)
    num_folds = int(assigned.max()) + 1
    fit_options = FitOptions.of(_call(fitted, options, seed))
    with exclusive(), torch.enable_grad():
        all_rows = fit_options.training(fitted.pair).batching.is_constant(fitted.pair)
        by_weight = all_rows and not fitted.pair.structure.guide_enumerated
        starts = (False, True) if fitted.best.optimum is not None and "guide" not in fitted.origin else (False,)
        every = [
            _without(fitted, assigned == fold, fit_options, seed, keep=by_weight, warm=warm)
            for warm in starts
            for fold in range(num_folds)
        ]
        seeds = np.random.SeedSequence(seed).generate_state(len(every)).tolist()
        pairs, runs = _best(every, train_separate_data(every, seeds, fit_options.training(every[0])), num_folds)
    densities = torch.zeros(number, dtype=torch.float64)
    with torch.no_grad():
        for fold, pair in enumerate(pairs):
            held_out = torch.from_numpy(np.flatnonzero(assigned == fold))
            arguments = _rows_of(fitted.pair, held_out)
            with seeded(seed), pair.isolated():
                densities[held_out] = log_likelihood(pair, arguments, draws).double().cpu()
    within = float(fitted.log_likelihood(draws=draws, seed=seed).double().sum())
    return _result(densities.numpy(), within, draws, num_folds, groups, runs)


def _require_rows(fitted: Fit) -> int:
    """Return the number of rows, or raise ``InputError`` if they cannot be held out."""
    fitted._rows(None)
    pair = fitted.pair
    if fitted.chains is not None or fitted.best.mode is not None:
        raise InputError("k_fold: refits by SVI; expected a fit of that method")
    if reason := pair.structure.why_no_row_densities():
        raise InputError(f"k_fold: {reason}")
    if pair.weights is not None:
        raise InputError("k_fold: the fit has weighted rows, which cannot be held out one by one")
    number = pair.structure.row_axes.count(pair.data) or 0
    if number < 2:
        what = "series" if fitted.of_series else "row"
        advice = "; fit.leave_future_out() scores its steps" if fitted.of_series else ""
        raise InputError(f"k_fold: needs at least two rows, and there is one {what}{advice}")
    with pair.isolated():
        pair.check_amortised()
        require_densities(pair, "k_fold")
    return number


def _assign(number: int, folds: int | None, groups: Sequence[Any] | None, seed: int) -> np.ndarray:
    """Return the fold of each row, counted from 0, shape ``(number,)``."""
    if groups is None:
        codes, what = np.arange(number), "rows"
    else:
        if len(groups) != number:
            raise InputError(f"groups: {len(groups)} values; expected one for each of the {number} rows")
        codes, what = np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1), "groups"
    units = int(codes.max()) + 1
    folds = (units if groups is not None else min(10, units)) if folds is None else check_count("folds", folds)
    if not 2 <= folds <= units:
        raise InputError(f"folds={folds}: expected a number from 2 to {units}, the number of {what}")
    order = np.random.default_rng(seed).permutation(units)
    of_unit = np.empty(units, dtype=int)
    of_unit[order] = np.arange(units) % folds
    return of_unit[codes]


def _call(fitted: Fit, options: dict[str, Any], seed: int) -> dict[str, Any]:
    """Return the arguments of ``fit`` for the folds: its defaults, what the fit was called with, and ``options``."""
    parameters = inspect.signature(fit).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    kept = {name for name in parameters if name not in {*options, "labels", "weights", "restarts"}}
    recorded = {name: value for name, value in fitted.origin.get("options", {}).items() if name in kept}
    if unknown := sorted(set(options) - {name for name, each in parameters.items() if each.kind is each.KEYWORD_ONLY}):
        raise InputError(f"k_fold: unknown option {unknown[0]!r}; expected options of pplgen.fit")
    if lost := sorted(name for name, value in recorded.items() if value is None):
        raise InputError(f"k_fold: the fit's {lost[0]!r} is an object, which it does not keep; give it again")
    return {**defaults, **recorded, "restarts": 1, **options, "seed": seed, "guide": None, "data": None, "shard": None}


def _rows_of(pair: Pair, which: Tensor) -> tuple[Any, ...]:
    """Return the arguments of the model for some rows."""
    return pair.structure.row_axes.select(pair.data[: pair.num_arguments], which)


def _best(
    pairs: list[Pair], runs: list[Training | None], num_folds: int
) -> tuple[tuple[Pair, ...], tuple[Training, ...]]:
    """Return the fit with the best ELBO of each fold, and its training."""
    chosen = []
    for fold in range(num_folds):
        done = [(run, pair) for run, pair in zip(runs[fold::num_folds], pairs[fold::num_folds], strict=True) if run]
        if not done:
            raise InputError(f"k_fold: the fit without fold {fold + 1} of {num_folds} has no finite ELBO")
        best = best_first([run for run, _ in done])[0]
        chosen.append(next((pair, run) for run, pair in done if run is best))
    fitted, trainings = zip(*chosen, strict=True)
    return fitted, trainings


def _without(fitted: Fit, held_out: np.ndarray, options: FitOptions, seed: int, *, keep: bool, warm: bool) -> Pair:
    """Return an untrained pair without the held-out rows: their weight is zero if they are to ``keep``.

    A ``warm`` one starts at the parameters of the fit.
    """
    pair, story, labels = fitted.pair, fitted.story, fitted.pair.labels
    data, weights = pair.data[: pair.num_arguments], None
    if keep:
        weights = torch.from_numpy(~held_out).to(pair.dtype)
    else:
        training = torch.from_numpy(np.flatnonzero(~held_out))
        data, labels = _rows_of(pair, training), None if labels is None else labels[training]
    name = fitted.origin.get("guide")
    prepared = prepare(
        pair.model if story is None else story,
        name if name or story is not None else pair.guide,
        data if story is None else data[0].cpu(),
        labels,
        weights,
        seed=seed,
        device=options.device,
        recorded={},
        rows=None if story is not None else pair.structure.row_plate,
        warm_up=options.warm_up,
    )
    with seeded(seed):
        without = prepared.new_pair()
    if warm:
        with pair.isolated():
            parameters = pair.snapshot()
        with without.isolated():
            without.restore(parameters)
    return without


def _result(
    densities: np.ndarray,
    within: float,
    draws: int,
    num_folds: int,
    groups: Sequence[Any] | None,
    runs: tuple[Training, ...],
) -> ELPDData:
    """Sum the densities of held-out rows, in ArviZ's layout."""
    units = densities
    if groups is not None:
        codes = np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)
        units = np.bincount(codes, weights=densities)
    elpd, se = float(densities.sum()), math.sqrt(len(units) * float(units.var()))
    warning = any(run.stop is not StopReason.CONVERGED for run in runs)
    pointwise = xr.DataArray(densities, dims=["row"], coords={"row": range(len(densities))})
    counts = (draws, len(densities))
    return ELPDData("loo_kfold", elpd, se, within - elpd, *counts, "log", warning, None, pointwise, n_folds=num_folds)
