"""``calibrate``: simulation-based calibration (SBC) of a story, of a bare pair, or of an amortised fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from pplgen.calibration.amortised import amortised_trials
from pplgen.calibration.ranking import rank_truths
from pplgen.calibration.result import Calibration
from pplgen.calibration.trials import Settings, Trials, run_trials
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
    """Run simulation-based calibration: simulate from the prior, fit all data sets as one program, rank the truths.

    Exchangeable components of truths and draws are matched to the fit's draws before ranking. Row latents are ranked
    for the first eight rows. Under an initialised ``torch.distributed`` process group, all ranks of which call this
    with the same arguments, each rank fits some of the data sets, and all return the same ``Calibration``.

    Parameters
    ----------
    model
        A ``Story`` or a Pyro model; or a fit of a story that has row latents only, such as an autoencoder, whose guide
        is calibrated without refitting on rows simulated from the trained model.
    data
        For a bare model its arguments, as a tuple if several; observed values are replaced by simulated ones. For a
        story, rows that fix data-dependent priors; ``None`` for its default priors.
    guide
        Guide of a bare model, as for ``fit``.
    num_datasets
        Number of data sets; for a fit, number of rows.
    num_rows
        Rows per data set of a story.
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
        If the model has learnable parameters without a prior or a prior that depends on each data set, as
        ``LinearGaussianSSM``, ``SwitchingLDS`` and ``DirichletProcessMixture``, or if the pair cannot be traced.
    RankLost
        If another rank has died or stopped.
    """
    settings = Settings(num_datasets, num_rows, draws, restarts, steps, learning_rate, seed, simulator, exchangeable)
    _check_settings(settings)
    if isinstance(model, FittedPair):
        if data is not None or guide is not None or simulator is not None:
            raise InputError("a fit has its own model and guide: leave out data, guide and simulator")
        with seeded(seed), model.pair.isolated():
            trials = amortised_trials(model.pair, num_datasets, draws)
        return rank_truths(model.name, trials, draws, seed)
    if isinstance(model, Story) and guide is not None:
        raise InputError(f"guide: {type(model).__name__} brings its own guide")
    name = type(model).__name__ if isinstance(model, Story) else getattr(model, "__name__", "a Pyro pair")
    return rank_truths(name, _refit(model, data, guide, settings, progress), draws, seed)


def _check_settings(settings: Settings) -> None:
    """Raise ``InputError`` for the first option that is out of range."""
    check_count("num_datasets", settings.num_datasets, minimum=10)
    check_count("num_rows", settings.num_rows)
    check_count("seed", settings.seed, minimum=0)
    check_count("steps", settings.steps)
    check_count("draws", settings.num_draws, minimum=9)
    check_positive("learning_rate", settings.learning_rate)


def _refit(
    model: Story | Callable[..., Any],
    data: Any,
    guide: Callable[..., Any] | None,
    settings: Settings,
    progress: bool | ProgressCallback,
) -> Trials:
    """Run the trials on all ranks, with a progress report on the first."""
    ranks, num_datasets = Ranks.current(), settings.num_datasets
    if num_datasets < ranks.size:
        raise InputError(f"num_datasets={num_datasets}: expected at least one for each of the {ranks.size} ranks")
    with ranks.monitored(), reporting(progress if ranks.first else False) as callback:

        def report(step: int, value: float, rate: float, doing: str) -> None:
            if callback:
                callback(Progress(num_datasets, num_datasets, step, settings.steps, value, rate, 0.0, doing))

        settings = replace(settings, restarts=check_count("restarts", settings.restarts))
        return run_trials(model, guide, data, settings, report=report, ranks=ranks)
