"""``calibrate``: simulation-based calibration (SBC) of a story, of a bare pair, or of an amortised fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from pplgen.calibration.amortised import amortised_trials
from pplgen.calibration.ranking import rank_truths
from pplgen.calibration.result import Calibration
from pplgen.calibration.trials import Settings, Study, Trials, posterior_study, prior_study, run_trials
from pplgen.distributed.ranks import Ranks
from pplgen.errors import InputError
from pplgen.inference.training_result import Progress, ProgressCallback
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
    num_rows: int | None = None,
    simulator: Story | Callable[..., Any] | None = None,
    exchangeable: Mapping[str, int] | None = None,
    seed: int = 0,
    restarts: int = 1,
    steps: int = 2000,
    learning_rate: float = 0.05,
    draws: int = 199,
    progress: bool | ProgressCallback = True,
) -> Calibration:
    """Run simulation-based calibration: simulate data sets, fit them all as one program, rank the truths.

    Data sets are simulated from the prior, or given a fit from its posterior and then refitted together with its rows
    (Säilynoja et al. 2025, https://arxiv.org/abs/2502.03279).

    Exchangeable components of truths and draws are matched to the fit's draws before ranking. Row latents are ranked
    for the first eight rows. Under an initialised ``torch.distributed`` process group, all ranks of which call this
    with the same arguments, each rank fits some of the data sets, and all return the same ``Calibration``.

    Parameters
    ----------
    model
        A ``Story`` or a Pyro model; or a fit, for calibration on data sets simulated from its posterior. The guide of a
        story that has row latents only, such as an autoencoder, is then calibrated without refitting, at the fitted
        parameters: that they are estimates is left out.
    data
        For a bare model its arguments, as a tuple if several; observed values are replaced by simulated ones. For a
        story, rows that fix data-dependent priors; ``None`` for its default priors.
    guide
        Guide of a bare model, as for ``fit``.
    num_datasets
        Number of data sets; for a fit, number of rows.
    num_rows
        Rows simulated per data set of a story. Default: 100; for a fit as many as its own.
    simulator
        Story or model that generates the data sets, with the same arguments and latents; default: ``model`` itself.
        The calibration then measures the effect of misspecification.
    exchangeable
        For a bare model with enumerated latents, the component axis of each latent that has one, counted from 0.
    seed
        Seed of simulations, initialisation, optimisation and draws.
    restarts
        Restarts per fit, of which the one with the best ELBO is used.
    steps, learning_rate
        Maximum number of steps per fit, and Adam's initial learning rate, which decays to a twentieth.
    draws
        Independent draws per guide among which the truth is ranked.
    progress
        As for ``fit``.

    Raises
    ------
    InputError
        If the model has learnable parameters without a prior, or a prior that depends on each data set and that no
        option fixes, or if the pair cannot be traced.
    RankLost
        If another rank has died or stopped.
    """
    settings = Settings(num_datasets, num_rows, draws, restarts, steps, learning_rate, seed, simulator, exchangeable)
    _check_settings(settings)
    if isinstance(model, FittedPair):
        if data is not None or guide is not None or simulator is not None:
            raise InputError("a fit has its own model and guide: leave out data, guide and simulator")
        if model.pair.structure.shared_latent:
            study = partial(posterior_study, model.pair, model.columns)
            return rank_truths(model.name, _run(study, settings, progress), draws, seed)
        with seeded(seed), model.pair.isolated():
            trials = amortised_trials(model.pair, num_datasets, draws)
        return rank_truths(model.name, trials, draws, seed)
    if isinstance(model, Story) and guide is not None:
        raise InputError(f"guide: {type(model).__name__} brings its own guide")
    name = type(model).__name__ if isinstance(model, Story) else getattr(model, "__name__", "a Pyro pair")
    return rank_truths(name, _run(partial(prior_study, model, guide, data), settings, progress), draws, seed)


def _check_settings(settings: Settings) -> None:
    """Raise ``InputError`` for the first option that is out of range."""
    check_count("num_datasets", settings.num_datasets, minimum=10)
    if settings.num_rows is not None:
        check_count("num_rows", settings.num_rows)
    check_count("seed", settings.seed, minimum=0)
    check_count("steps", settings.steps)
    check_count("draws", settings.num_draws, minimum=9)
    check_positive("learning_rate", settings.learning_rate)


def _run(study: Callable[[Settings], Study], settings: Settings, progress: bool | ProgressCallback) -> Trials:
    """Run the trials of a study on all ranks, with a progress report on the first."""
    ranks, num_datasets = Ranks.current(), settings.num_datasets
    if num_datasets < ranks.size:
        raise InputError(f"num_datasets={num_datasets}: expected at least one for each of the {ranks.size} ranks")
    with ranks.monitored(), reporting(progress if ranks.first else False) as callback:

        def report(step: int, value: float, rate: float, doing: str) -> None:
            if callback:
                callback(Progress(num_datasets, num_datasets, step, settings.steps, value, rate, 0.0, doing))

        settings = replace(settings, restarts=check_count("restarts", settings.restarts))
        return run_trials(study(settings), settings, report=report, ranks=ranks)
