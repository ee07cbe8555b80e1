"""``calibrate``: simulate from the prior, fit every data set, and rank what was true among the draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from pplgen.calibration.amortised import row_trials
from pplgen.calibration.result import Calibration
from pplgen.calibration.trials import Trials, run_trials
from pplgen.distributed.ranks import Ranks
from pplgen.errors import InputError
from pplgen.inference.training import Progress, ProgressCallback, StopReason
from pplgen.posterior.fitted_pair import FittedPair
from pplgen.report.console import reporting
from pplgen.story.base import Story, check_count, check_positive
from pplgen.story.isolation import seeded

__all__ = ["calibrate"]


def calibrate(
    model: Story | Callable[..., Any] | FittedPair,
    data: Any = None,
    guide: Callable[..., Any] | None = None,
    *,
    num_datasets: int = 200,
    num_rows: int = 100,
    simulator: Story | Callable[..., Any] | None = None,
    exchangeable: Mapping[str, int] | None = None,
    seed: int = 0,
    restarts: int = 1,
    steps: int = 2000,
    learning_rate: float = 0.05,
    draws: int = 199,
    progress: bool | ProgressCallback = True,
) -> Calibration:
    """Check inference by simulation: data sets from the prior, a fit to each, all of them as one batched program.

    Under an initialised ``torch.distributed`` process group, all ranks of which call this with the same arguments, each
    rank fits some of the data sets, and all get the same ``Calibration``.

    Components that the likelihood does not tell apart are matched to the fit's draws, the truth's as the
    draws'. Of latents of single rows those of the first eight rows are ranked.

    Parameters
    ----------
    model
        A ``Story``, or a Pyro model; or a fit of a story whose latents all belong to single rows, such as an
        autoencoder: its guide is calibrated as it is, on rows simulated from the trained model.
    data
        For a bare model its arguments, or a tuple of them; observed values among them are replaced by simulated ones.
        For a story, rows whose scale its priors are taken from, where they are left to the data; ``None`` for the
        priors that it has before it sees any.
    guide
        The guide of a bare model, as for ``fit``.
    num_datasets
        How many data sets; rows, of a fit.
    num_rows
        Rows of each data set of a story.
    simulator
        What the data sets come from, where that is not ``model`` itself: a story, or a model of the same arguments with
        the same latents. A calibration that fails then shows what the difference costs.
    exchangeable
        Of a bare model with discrete latents, summed out: the axis of components of each latent that has one, counted
        from 0.
    seed
        Of simulations, starts, optimisation and draws.
    restarts
        Starts of each fit, the one with the best ELBO being kept: mixtures get stuck from some.
    steps, learning_rate
        Of each fit at most, and Adam's first one, which falls to a twentieth over the steps.
    draws
        Draws of each guide, among which the truth is ranked; independent, so that none need be left out.
    progress
        As for ``fit``.

    Returns
    -------
    Calibration
        With ``checks``, ``summary``, ``plot`` and ``to_dataset``.

    Raises
    ------
    InputError
        Where model or options cannot be calibrated: parameters without a prior; a prior that is taken from each data
        set and that no option settles, as of ``LinearGaussianSSM``, ``SwitchingLDS`` and ``DirichletProcessMixture``;
        a pair that has no faithful graph.
    RankLost
        Where another rank has died or stopped.
    """
    check_count("num_datasets", num_datasets, minimum=10)
    check_count("num_rows", num_rows)
    check_count("seed", seed, minimum=0)
    check_count("steps", steps)
    check_count("draws", draws, minimum=9)
    check_positive("learning_rate", learning_rate)
    if isinstance(model, FittedPair):
        if data is not None or guide is not None or simulator is not None:
            raise InputError("a fit brings its model and guide: leave data, guide and simulator out")
        with seeded(seed), model.pair.isolated():
            trials = row_trials(model.pair, num_datasets, draws)
        return _ranked(model.name, trials, draws, seed)
    if isinstance(model, Story) and guide is not None:
        raise InputError(f"guide: {type(model).__name__} brings its own guide")
    name = type(model).__name__ if isinstance(model, Story) else getattr(model, "__name__", "a Pyro pair")
    ranks = Ranks.current()
    if num_datasets < ranks.size:
        raise InputError(f"num_datasets={num_datasets}: expected one at least for each of the {ranks.size} ranks")
    with ranks.monitored(), reporting(progress if ranks.first else False) as callback:

        def report(step: int, value: float, rate: float, doing: str) -> None:
            if callback:
                callback(Progress(num_datasets, num_datasets, step, steps, value, rate, 0.0, doing))

        trials = run_trials(
            model,
            guide,
            data,
            num_datasets=num_datasets,
            num_rows=num_rows,
            num_draws=draws,
            restarts=check_count("restarts", restarts),
            steps=steps,
            learning_rate=learning_rate,
            seed=seed,
            simulator=simulator,
            exchangeable=exchangeable,
            report=report,
            ranks=ranks,
        )
    return _ranked(name, trials, draws, seed)


def _ranked(name: str, trials: Trials, num_draws: int, seed: int) -> Calibration:
    """Rank every scalar, ties at random; leave out what is constant, or another quantity once more."""
    generator = np.random.default_rng(seed)
    quantities: list[str] = []
    columns: list[tuple[np.ndarray, ...]] = []
    for site, truth in trials.truths.items():
        values, drawn = _flat(truth), _flat(trials.draws[site], 2)
        for label, own, theirs in zip(trials.names[site], values.T, np.moveaxis(drawn, -1, 0), strict=True):
            if np.ptp(own) == 0 or any(np.array_equal(own, column[0]) for column in columns):
                continue
            below, equal = (theirs < own[:, None]).sum(1), (theirs == own[:, None]).sum(1)
            ranks = below + generator.integers(0, equal + 1)
            quantities.append(label)
            columns.append((own, ranks, theirs.mean(1), theirs.std(1, ddof=1)))
    truths, ranks, means, deviations = (np.stack(each, axis=1) for each in zip(*columns, strict=True))
    unconverged = sum(stop is not StopReason.CONVERGED for stop in trials.stops)
    return Calibration(
        name,
        tuple(quantities),
        ranks,
        num_draws,
        truths,
        means,
        deviations,
        trials.num_failed,
        unconverged,
        trials.path,
    )


def _flat(values: Tensor, leading: int = 1) -> np.ndarray:
    """Return doubles with the axes behind the leading ones laid out as one."""
    return values.detach().cpu().double().reshape(*values.shape[:leading], -1).numpy()
