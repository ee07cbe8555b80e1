"""``fit``: a story, or any Pyro pair, and data become a ``Fit``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from pyro.infer import ELBO

from pplgen.errors import InputError, Interrupted
from pplgen.fitting.nuts_fit import fit_nuts
from pplgen.fitting.options import FitOptions, explicit_options
from pplgen.fitting.prepare import prepare
from pplgen.fitting.result import Fit
from pplgen.inference.minibatches import Augment
from pplgen.inference.shared_restarts import best_of
from pplgen.inference.train import train_restarts
from pplgen.inference.training import ProgressCallback
from pplgen.report.console import reporting
from pplgen.storage.checkpoint import DEFAULT_INTERVAL
from pplgen.story.base import Story

__all__ = ["fit"]


def fit(
    model: Story | Callable[..., Any],
    data: Any,
    guide: Callable[..., Any] | None = None,
    *,
    labels: Any = None,
    weights: Any = None,
    method: Literal["svi", "nuts"] = "svi",
    seed: int = 0,
    steps: int | None = None,
    learning_rate: float = 0.02,
    clip: float | None = None,
    decay: float = 1.0,
    patience: int | None = None,
    restarts: int | None = None,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    elbo: str | ELBO | None = None,
    num_particles: int = 1,
    free_bits: float | None = None,
    warm_up: int = 0,
    augment: str | Augment | None = None,
    compile: Literal["auto", "inductor", "graph", "off"] = "auto",  # noqa: A002
    checkpoint: str | Path | None = None,
    checkpoint_every: float = DEFAULT_INTERVAL,
    shard: Literal["rows", "restarts"] | None = "rows",
    progress: bool | ProgressCallback = True,
) -> Fit:
    """Fit a story, or any Pyro model and guide, by stochastic variational inference.

    Nothing that is given is changed: modules are copied, Pyro's parameter store and every random generator are left as
    they were found. The same seed gives the same numbers.

    Parameters
    ----------
    model
        A ``Story``, or a Pyro model.
    data
        For a story, whatever ``load_data`` takes, or what ``stream_data`` returns: rows that stay in their file and
        come in batches, so that ten million of them need little memory. For a bare model its argument, or a tuple of
        them.
    guide
        The guide of a bare model; ``None`` for ``AutoNormal`` over its continuous latents, discrete ones summed out.
    labels
        Known values of the rows' discrete latent, counted from 0, one for each row: missing or -1 where it is not
        known. For a story also the name of the column that holds them. Known rows have that value for certain, and
        inform its probability; others are summed out.
    weights
        How much each row counts, one number of at least 0 for each, or the name of a column: the density of a row is
        raised to its weight, as if the row were there so many times.
    method
        ``"svi"``; or ``"nuts"`` to sample from the posterior by Pyro's NUTS, discrete latents summed out: slower, and
        exact but for the Monte Carlo error that ``summary`` tells. Of the options below it takes ``seed``, ``steps``,
        ``restarts``, ``warm_up``, ``device``, ``compile`` and ``progress``; the guide is where chains start.
    seed
        Of initialisation and optimisation.
    steps
        At most so many for each restart, 10,000 by default; it stops earlier once the smoothed ELBO has stopped
        improving. Of NUTS, draws of each chain: 1,000.
    learning_rate
        Adam's first one; it is cut at each plateau, and to a tenth where the ELBO or its gradient is not finite: the
        restart goes back to its last good state then, twice, and ends there the third time.
    clip
        Largest absolute value of an entry of the gradient, as in Pyro's ``ClippedAdam``; ``None`` for any.
    decay
        Factor of the learning rate at each step, ``ClippedAdam``'s ``lrd``; at most one.
    patience
        Steps over which the ELBO is averaged before its trend is judged, in hundreds. ``None``: 100; for minibatches
        of a ``LatentStory`` a pass over the rows, for its networks go on learning where single steps no longer tell.
    restarts
        Independent runs, one by default, of which that with the best final ELBO is kept. Of NUTS, chains: four.
    batch_size
        Rows per step, the row plate being scaled to all of them. ``None``: all; 10,000 of a stream; 500 of a
        ``LatentStory``, where its rows are a stream or more than 10,000.
    device
        Where to compute, such as ``"cuda"``. ``None``: the CPU for a story, where the data are for a bare pair.
    elbo
        ``"sampled"``: ``TraceEnum_ELBO`` where discrete latents are summed out, else ``Trace_ELBO``, and so for
        ``None``. ``"analytic"``: divergences in closed form where there is one, ``TraceMeanField_ELBO``.
        ``"score-function"``: the sampled one, its gradients not through the draws. ``"importance"``: the
        importance-weighted bound of each row. Or a bound of Pyro's.
    num_particles
        Draws of the guide in each step: L of the first three, K of the last.
    free_bits
        Nats that each entry of a row's latents may diverge from the prior for nothing, on average over the rows of a
        step; with ``elbo="analytic"``. The ELBO is then that with this allowance, which is lower.
    warm_up
        Steps over which the weight of a ``LatentStory``'s codes rises from 0 to 1, linearly. No plateau is looked for
        before, and the final ELBO has the whole weight. Of NUTS, steps of adaptation: 1,000.
    augment
        Function applied to the rows of every step, at random by torch's generators; or ``"bernoulli"``, which draws
        pixels anew from grey values. The final ELBO is that of such rows; what comes after sees the rows as given.
    compile
        ``"graph"``: the pair is traced once into a graph of tensor operations, and all restarts run as one program.
        ``"inductor"``: that program is compiled, which takes from seconds to a minute. ``"auto"``: each where the run
        is long enough to repay it. ``"off"``: Pyro's own SVI, one restart after the other. Where a
        pair has no graph that agrees with Pyro, Pyro's own SVI runs, and ``Fit.path`` says why.
    checkpoint
        Directory in which to keep, now and then and at the end, where the fit stands; the last two files stay. The same
        call continues from there, after it was killed or for more ``steps``, and ends where it would have ended had it
        run on, up to the rounding of another ``compile`` path. Plain Pyro keeps none.
    checkpoint_every
        Seconds between two of them, at least.
    shard
        What the ranks of an initialised ``torch.distributed`` process group share, all of which call ``fit`` with the
        same arguments and get the same fit: ``"rows"``, each computing the gradient of its part of them; or
        ``"restarts"``, each running some. ``None``: each process fits on its own. The first rank alone calls
        ``progress`` and writes ``checkpoint``.
    progress
        A bar on the terminal, nothing, or a function called with a ``Progress`` every few steps.

    Raises
    ------
    InputError
        Where the data, the pair or an option cannot be fitted.
    RankLost
        Where another rank has died or stopped.
    """
    call = locals()
    options = FitOptions.of(call)
    if isinstance(model, Story) and guide is not None:
        raise InputError(
            f"guide: {type(model).__name__} brings its own guide; fit(story.model, data, guide) takes yours"
        )
    prepared = prepare(
        model,
        guide,
        data,
        labels,
        weights,
        seed=seed,
        device=options.device,
        recorded=explicit_options(fit, call),
        ranks=options.ranks.all,
    )
    if options.method == "nuts":
        return fit_nuts(prepared, options, progress)
    ranks, own_rows = options.ranks.all, options.ranks.rows.size == 1
    with ranks.monitored(), reporting(progress if ranks.first else False) as callback:
        try:
            pairs = prepared.start(options.restart_seeds, options.ranks)
            trained = train_restarts(pairs, options.restart_seeds, options.training(pairs[0]), callback)
            best, results = best_of(pairs, trained.results, options.ranks.restarts)
        except KeyboardInterrupt:
            when = "before the fit was done" if own_rows else "while ranks shared the rows"
            raise Interrupted(f"interrupted {when}; there is no fit to keep") from None
    if best is None:
        raise trained.failure or InputError("no restart of any rank has a finite ELBO")
    runs = tuple(run for run in results if run is not None)
    path = trained.path if ranks.size == 1 else f"{trained.path}; {ranks.size} ranks shared the {shard}"
    return Fit(
        best,
        runs,
        table=prepared.table,
        seed=seed,
        num_failed=len(results) - len(runs),
        path=path,
        origin=prepared.origin,
    )
