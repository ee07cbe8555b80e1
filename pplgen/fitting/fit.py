"""``fit``: train a story, or any Pyro model and guide, on data."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from pyro.infer import ELBO
from pyro.optim import PyroOptim

from pplgen.data.tensors import as_dtype
from pplgen.errors import DataWarning, InputError, Interrupted
from pplgen.fitting.fit_options import FitOptions, explicit_options
from pplgen.fitting.nuts_fit import fit_nuts
from pplgen.fitting.prepare import Prepared, prepare
from pplgen.fitting.result import Fit
from pplgen.inference.laplace import approximate_all
from pplgen.inference.minibatches import Augment
from pplgen.inference.optimisers import LearningRate, Schedule
from pplgen.inference.restarts_over_ranks import best_of
from pplgen.inference.train import train_restarts
from pplgen.inference.training_result import ProgressCallback, StopReason, best_first
from pplgen.report.console import reporting
from pplgen.storage.checkpoint import DEFAULT_INTERVAL
from pplgen.story.base import Story
from pplgen.story.isolation import exclusive

__all__ = ["fit"]


def fit(
    model: Story | Callable[..., Any],
    data: Any,
    guide: Callable[..., Any] | Literal["mean-field", "low-rank", "full-rank", "flow"] | None = None,
    *,
    labels: Any = None,
    weights: Any = None,
    rows: str | None = None,
    method: Literal["svi", "laplace", "nuts"] = "svi",
    seed: int = 0,
    steps: int | None = None,
    optimiser: str | Mapping[str, Any] | PyroOptim | torch.optim.Optimizer = "auto",
    learning_rate: LearningRate = 0.02,
    clip: float | None = None,
    decay: float | Schedule = 1.0,
    patience: int | None = None,
    restarts: int | None = None,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    elbo: str | ELBO | None = None,
    num_particles: int = 1,
    free_bits: float | None = None,
    warm_up: int | Mapping[str, int] = 0,
    augment: str | Augment | None = None,
    compile: Literal["auto", "inductor", "graph", "off"] = "auto",  # noqa: A002
    checkpoint: str | Path | None = None,
    checkpoint_every: float = DEFAULT_INTERVAL,
    shard: Literal["rows", "restarts"] | None = "rows",
    progress: bool | ProgressCallback = True,
) -> Fit:
    """Fit a story, or any Pyro model and guide, by stochastic variational inference, Laplace's approximation or NUTS.

    Arguments are not modified: modules are copied, a model that writes into its data is refused, and Pyro's parameter
    store and all random generators are restored. The same seed gives the same result.

    Parameters
    ----------
    model
        A ``Story``, or a Pyro model.
    data
        For a story, any input of ``load_data`` (``load_series`` for series), or a stream of ``stream_data``, which
        reads minibatches from a file that need not fit in memory. For a bare model, its argument, or a tuple of its
        arguments. NaN is missing.
    guide
        ``None`` for a story's own guide, or ``AutoNormal`` over a bare model's continuous latents; a guide of a bare
        model; or the name of one, discrete latents summed out: ``"full-rank"`` for a normal distribution on the
        unconstrained scale with all correlations (``AutoMultivariateNormal``), ``"low-rank"`` with those of a few
        factors (``AutoLowRankMultivariateNormal``), ``"mean-field"`` without, ``"flow"`` for a full-rank one bent by
        the networks of affine couplings, which needs more steps and accurate gradients (``num_particles=32``). A
        story's named guide is of the latents that all rows share, and starts at the story's own guide, which still
        draws those of rows.
    labels
        Observed values of the discrete latent of each row, counted from 0; missing or -1 if unobserved. For a story
        also the name of a column. Labelled rows are conditioned on; in others the latent is summed out.
    weights
        Weight of each row: its log density is multiplied by it. At least 0; or the name of a column. Default: 1.
    rows
        Name of a bare model's row plate: its entries are what minibatches, labels, weights and densities of rows count.
        Default: the one named ``data``, else the outermost of those around all observations whose size is the length of
        an argument's axis. Rows are then entries along that axis; if several are as long, along those with which a part
        of the rows has the same densities as among all.
    method
        ``"svi"``. ``"laplace"`` for a normal approximation on the unconstrained scale at a mode of the joint density,
        discrete latents summed out: its covariance is the inverse Hessian there, and the restart with the largest
        approximate evidence is returned. The mode is found by Adam and L-BFGS. Or ``"nuts"`` for draws from the
        posterior by Pyro's NUTS, discrete latents summed out: slower, and exact up to the Monte Carlo error that
        ``summary`` prints. NUTS supports the options ``seed``, ``steps``, ``restarts``, ``warm_up``, ``device``,
        ``compile`` and ``progress``; chains are initialised from the guide.
    seed
        Random seed of initialisation and optimisation.
    steps
        Maximum number of steps of Adam of each restart (default: 10,000); a restart stops earlier once L-BFGS has found
        a stationary point, or the smoothed ELBO has stopped improving. For NUTS, number of draws per chain after
        warm-up (default: 1,000).
    optimiser
        ``"auto"``: after 50 steps of Adam, L-BFGS maximises the ELBO averaged over fixed draws of the guide (Giordano,
        Ingram and Broderick 2024), to a stationary point whose gradient norm and Monte Carlo error ``Fit.how`` states.
        It needs the traced graph, all rows in each step, reparameterised draws, no networks and at most 5,000
        parameters; elsewhere, and where it finds no stationary point that is as good on fresh draws, Adam continues.
        ``"adam"``, ``"adamw"`` or ``"sgd"``: alone; with options of torch's, such as
        ``{"name": "adamw", "betas": (0.9, 0.99), "weight_decay": 0.1}``. Or an object of ``pyro.optim`` or
        ``torch.optim``, with which plain Pyro runs: its rates are its own, a scheduler of ``pyro.optim`` makes a step
        after each epoch, and the first plateau ends the fit.
    learning_rate
        Initial learning rate; or rates by parameter, as a mapping from names (others have the default) or a function of
        the name, without L-BFGS; a rate of 0 leaves a parameter where it is. Rates are multiplied by .3 at each plateau
        of the smoothed ELBO, where the optimiser's moments are reset, and which does not count while a parameter
        drifts; the third ends the fit, with the average of the parameters since the second if its ELBO is better. They
        are multiplied by .1 when the ELBO or its gradient is not finite: the restart returns to its last good state,
        and stops there the third time.
    clip
        Clip gradient entries at this absolute value, as Pyro's ``ClippedAdam`` does (default: off).
    decay
        Factor on the learning rate per step, ``lrd`` of ``ClippedAdam``; at most 1 (default: no decay). Or a schedule:
        a function of the step, counted from 1, that returns the factor on the initial learning rate.
    patience
        Steps per average of the ELBO when plateaus are detected; at least 100, rounded up to hundreds. Default: 100;
        for minibatches of a ``LatentStory``, one epoch.
    restarts
        Number of independent optimisations (default: 1); the one with the best final ELBO is returned. For NUTS, number
        of chains (default: 4).
    batch_size
        Rows per step; the row plate is scaled to all rows. Default: all rows; 10,000 for a stream; 500 for a
        ``LatentStory`` whose rows are a stream or more than 10,000.
    device
        Device to compute on, such as ``"cuda"``. Default: the CPU for a story, the device of the data for a bare pair.
    dtype
        Floating-point type of rows and parameters, such as ``"float64"``; of a bare pair, of its floating-point
        arguments. Default: that of ``data``, see ``load_data``.
    elbo
        ``"sampled"``: Pyro's ``Trace_ELBO``, or ``TraceEnum_ELBO`` if discrete latents are summed out.
        ``"sticking-the-landing"``: the same value; gradients without their score term (Roeder, Wu and Duvenaud 2017),
        which vary less, where the guide's draws are reparameterised and do not depend on one another, and no discrete
        latent is summed out. It is the default of minibatches and networks, elsewhere ``"sampled"``.
        ``"analytic"``: ``TraceMeanField_ELBO``, with KL divergences in closed form where available.
        ``"score-function"``: ``"sampled"`` with score-function gradients. ``"importance"``: the importance-weighted
        bound of each row. Or an instance of Pyro's ``ELBO``.
    num_particles
        Draws from the guide over which each gradient is averaged; for ``"importance"``, importance samples per row.
    free_bits
        Free bits per latent dimension, in nats (default: none): the KL divergence of a dimension, averaged over the
        rows of a step, is not penalised below this value. Requires ``elbo="analytic"``. Lowers the reported ELBO.
    warm_up
        Steps of KL warm-up for a ``LatentStory``: the weight of its latent variables' KL terms rises linearly from 0 to
        1 (default: 0). For any pair, latents with the number of steps: ``{"z": 500}``. Plateaus are detected
        afterwards; the final ELBO has weight 1. For NUTS, number of adaptation steps (default: as many as ``steps``).
    augment
        Random transformation of the rows of each step, a function; or ``"bernoulli"``, which redraws binary pixels from
        grey values. The final ELBO is for transformed rows; checks and predictions use the original rows.
    compile
        ``"graph"``: trace the pair into a graph of tensor operations, and run all restarts as one batched program.
        ``"inductor"``: also compile that program, which takes up to a minute. ``"auto"``: trace and compile if the run
        is long enough to repay it. ``"off"``: Pyro's ``SVI``, one restart after the other. A pair whose graph does not
        reproduce Pyro's loss is trained by Pyro's ``SVI``; ``Fit.path`` gives the reason.
    checkpoint
        Directory for checkpoints of the training state, written periodically and at the end; the last two are retained.
        The same call resumes from the latest, after an interruption or with more ``steps``, and gives the result of an
        uninterrupted run, up to rounding under another ``compile`` path. Not supported by plain Pyro.
    checkpoint_every
        Minimum number of seconds between two checkpoints.
    shard
        What is distributed over the ranks of an initialised ``torch.distributed`` process group, all of which call
        ``fit`` with the same arguments and return the same fit: ``"rows"``, each rank computing the gradient of its
        rows; or ``"restarts"``, each running some. ``None``: each process fits separately. Only rank 0 calls
        ``progress`` and writes ``checkpoint``.
    progress
        Whether to show a progress bar; or a function called with a ``Progress`` every few steps.

    Returns
    -------
    Fit
        The trained pair, with its restarts and rows.

    Raises
    ------
    InputError
        If data, pair or options are invalid, or no restart has a finite ELBO.
    RankLost
        If another rank has failed.
    """
    call = locals()
    with exclusive(), torch.enable_grad():
        options = FitOptions.of(call)
        if isinstance(model, Story) and not (guide is None or isinstance(guide, str)):
            raise InputError(
                f"guide: {type(model).__name__} has its own guide; expected the name of another, or a bare model, "
                "fit(story.model, data, guide)"
            )
        prepared = prepare(
            model,
            "point" if options.method == "laplace" else guide,
            data,
            labels,
            weights,
            seed=seed,
            device=options.device,
            recorded=explicit_options(fit, call),
            rows=rows,
            dtype=as_dtype(dtype),
            warm_up=0 if options.method == "nuts" else warm_up,
            ranks=options.ranks.all,
        )
        return (fit_nuts if options.method == "nuts" else _train)(prepared, options, progress)


def _train(prepared: Prepared, options: FitOptions, progress: bool | ProgressCallback) -> Fit:
    """Train all restarts, and return the fit."""
    ranks, own_rows = options.ranks.all, options.ranks.rows.size == 1
    with ranks.monitored(), reporting(progress if ranks.first else False) as callback:
        try:
            pairs = prepared.start(options.restart_seeds, options.ranks)
            trained = train_restarts(pairs, options.restart_seeds, options.training(pairs[0]), callback)
            if options.method == "laplace":
                pairs, trained = approximate_all(pairs, trained)
            best, results = best_of(pairs, trained.results, options.ranks.restarts)
        except KeyboardInterrupt:
            when = "before the fit was finished" if own_rows else "while ranks shared the rows"
            raise Interrupted(f"interrupted {when}; no fit is returned") from None
    if best is None:
        raise trained.failure or InputError("no restart of any rank has a finite ELBO")
    runs = tuple(run for run in results if run is not None)
    if hasattr(best.guide, "start") or hasattr(getattr(best.guide, "shared", None), "start"):
        # parameters of a restart are relative to its own start, so that they do not apply to another's guide
        runs = tuple(replace(run, final=run.final[:0]) for run in runs)
    best_run = best_first(runs)[0]
    if best_run.stop is StopReason.DIVERGED:
        warnings.warn(best_run.how, DataWarning, stacklevel=3)
    path = trained.path + ", then L-BFGS" * (best_run.optimum is not None and best_run.mode is None)
    path = path if ranks.size == 1 else f"{path}; {ranks.size} ranks shared the {'restarts' if own_rows else 'rows'}"
    return Fit(
        best,
        runs,
        table=prepared.table,
        seed=options.seed,
        num_failed=len(results) - len(runs),
        path=path,
        origin=prepared.origin,
    )
