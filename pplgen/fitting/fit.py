"""``fit``: a story, or any Pyro pair, and data become a ``Fit``."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pyro.infer import ELBO

from pplgen.compiler.tracing import NotTraceable
from pplgen.data.streams import RowStream
from pplgen.distributed.sharding import align, require_alike, require_shareable
from pplgen.errors import DataWarning, InputError, Interrupted
from pplgen.fitting.defaults import default_batch_size, default_patience, explicit_options
from pplgen.fitting.nuts_fit import sampled
from pplgen.fitting.prepare import prepare
from pplgen.fitting.result import Fit
from pplgen.inference.arguments import check_device
from pplgen.inference.convergence import WINDOW
from pplgen.inference.minibatches import Augment
from pplgen.inference.objectives import augmentation, bound_of, check_warm_up
from pplgen.inference.restarts import train_together
from pplgen.inference.shared_restarts import best_of, sharing
from pplgen.inference.svi import Adam, Progress, StopReason, Training, train
from pplgen.report.console import ProgressCallback, reporting
from pplgen.storage.checkpoint import SECONDS, CheckpointOptions, found
from pplgen.story.base import Story, check_choice, check_count, check_positive
from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair

__all__ = ["fit"]

_DEFAULTS = {"svi": (10_000, 1), "nuts": (1000, 4)}
"""Steps and restarts of each method, where none are given."""
_COMPILERS = ("auto", "inductor", "graph", "off")
REPAYS_TRACING = 100
"""Steps, of all restarts, from which on tracing costs less than it saves."""


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
    checkpoint_every: float = SECONDS,
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
    given = explicit_options(fit, locals())
    check_choice("method", method, _DEFAULTS)
    usual = zip((steps, restarts), _DEFAULTS[method], strict=True)
    steps, restarts = (default if own is None else own for own, default in usual)
    check_count("seed", seed, minimum=0)
    check_count("steps", steps)
    check_count("restarts", restarts)
    ranks, rows, runners = sharing(shard, method, restarts, checkpoint)
    if method == "nuts":
        unfit = {"clip": clip, "patience": patience, "batch_size": batch_size, "elbo": elbo, "free_bits": free_bits}
        unfit |= {"augment": augment, "checkpoint": checkpoint, "stream": data if isinstance(data, RowStream) else None}
        if refused := [name for name, value in unfit.items() if value is not None]:
            raise InputError(f"{refused[0]}: method='nuts' takes no such option")
    check_positive("learning_rate", learning_rate)
    if clip is not None:
        check_positive("clip", clip)
    if check_positive("decay", decay) > 1:
        raise InputError(f"decay={decay!r}: expected a number above 0 and at most 1")
    if batch_size is not None:
        check_count("batch_size", batch_size)
    check_choice("compile", compile, _COMPILERS)
    check_positive("checkpoint_every", checkpoint_every)
    if checkpoint is not None and compile == "off":
        raise InputError("checkpoint: compile='off' runs plain Pyro, which keeps none")
    target = None if device is None else check_device(device)
    if isinstance(model, Story) and guide is not None:
        raise InputError(
            f"guide: {type(model).__name__} brings its own guide; fit(story.model, data, guide) takes yours"
        )
    restart_seeds = np.random.SeedSequence(seed).generate_state(restarts).tolist()[runners.rank :: runners.size]
    prepared = prepare(model, guide, data, labels, weights, seed, target, options=given, ranks=ranks)
    if method == "nuts":
        return sampled(prepared, restart_seeds, steps, warm_up or steps, compile, progress, seed)
    num_rows = len(prepared.table or data) if isinstance(model, Story) else 0
    if batch_size is None:
        batch_size = default_batch_size(model, num_rows, streamed=isinstance(data, RowStream))
    patience = default_patience(model, num_rows, batch_size) if patience is None else patience
    optimiser = Adam(learning_rate, clip, decay, check_count("patience", patience, minimum=WINDOW))
    options: dict[str, Any] = {"steps": steps, "optimiser": optimiser, "batch_size": batch_size, "warm_up": warm_up}
    options |= {"augment": augmentation(augment), "ranks": rows}
    pairs: list[Pair] = []
    failures: list[InputError] = []
    with ranks.watched(), reporting(progress if ranks.first else False) as callback:
        try:
            for restart_seed in restart_seeds:
                with seeded(restart_seed):
                    pairs.append(prepared.start())
            require_alike(pairs[0], ranks)
            for pair in pairs:
                align(pair, rows)
            check_warm_up(pairs[0], warm_up, steps)
            options["elbo"] = bound_of(pairs[0], elbo, num_particles, free_bits, batch_size)
            if rows.size > 1:
                require_shareable(pairs[0], options["elbo"])
            keep = None if checkpoint is None else CheckpointOptions(Path(checkpoint), checkpoint_every)
            results, path = _train(pairs, restart_seeds, compile, callback, failures, options, keep)
            best, results = best_of(pairs, results, runners)
        except KeyboardInterrupt:
            when = "before the fit was done" if rows.size == 1 else "while ranks shared the rows"
            raise Interrupted(f"interrupted {when}; there is no fit to keep") from None
        if best is None:
            raise failures[0]
    runs = tuple(run for run in results if run is not None)
    path = path if ranks.size == 1 else f"{path}; {ranks.size} ranks shared the {shard}"
    facts: dict[str, Any] = {"table": prepared.table, "origin": prepared.origin, "path": path}
    return Fit(best, runs, seed=seed, num_failed=len(results) - len(runs), **facts)


def _train(
    pairs: list[Pair],
    seeds: list[int],
    compiler: str,
    callback: ProgressCallback | None,
    failures: list[InputError],
    options: dict[str, Any],
    checkpoint: CheckpointOptions | None,
) -> tuple[list[Training | None], str]:
    """Train all restarts as one program where that can be done faithfully, else one after the other in plain Pyro."""
    restarts, steps = len(pairs), options["steps"]
    rows = options["batch_size"] or pairs[0].num_rows
    few = compiler == "auto" and restarts * steps < REPAYS_TRACING
    reason = f"{restarts * steps} steps do not repay tracing" if few else "compile='off'"
    if compiler != "off" and not few:

        def together(step: int, value: float, rate: float, doing: str) -> None:
            if callback:
                callback(Progress(restarts, restarts, step, steps, value, rate, rows * rate, doing))

        try:
            with seeded(seeds[0]):
                return train_together(
                    pairs, seeds=seeds, compiler=compiler, report=together, checkpoint=checkpoint, **options
                )
        except NotTraceable as error:
            reason = str(error)
            if checkpoint is not None:
                warnings.warn(f"no checkpoint is kept, for plain Pyro runs: {reason}", DataWarning, stacklevel=3)
        except InputError as error:  # of ranks that share the restarts another one may have a fit
            failures.append(error)
            return [None] * restarts, "the traced graph"
    if checkpoint is not None and options["ranks"].once(lambda: found(checkpoint.directory)):
        raise InputError(f"{str(checkpoint.directory)!r} holds a checkpoint, and here plain Pyro runs, for {reason}")
    results: list[Training | None] = []
    for index, (pair, seed) in enumerate(zip(pairs, seeds, strict=True), start=1):

        def alone(step: int, value: float, rate: float, index: int = index) -> None:
            if callback:
                callback(Progress(index, restarts, step, steps, value, rate, rows * rate, "plain Pyro"))

        try:
            with seeded(seed), pair.isolated():
                results.append(train(pair, seed=seed, report=alone, **options))
        except InputError as error:
            failures.append(error)
            results.append(None)
        except KeyboardInterrupt:
            if not any(results) or options["ranks"].size > 1:
                raise
            break
        if results[-1] is not None and results[-1].stop is StopReason.INTERRUPTED:
            break
    return results, f"plain Pyro, for {reason}"
