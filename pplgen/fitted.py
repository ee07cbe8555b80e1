"""``Fit``: a trained pair and what can be asked of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pplgen import posterior, scores, store
from pplgen.arguments import bare_arguments, new_rows
from pplgen.codes import is_plain
from pplgen.data import Table
from pplgen.errors import InputError
from pplgen.generating import impute_rows, sample_rows
from pplgen.isolation import seeded
from pplgen.keeping import kept_buffers, pair_facts, type_name
from pplgen.latent_verbs import LatentVerbs
from pplgen.own_code import import_path
from pplgen.pair import Pair
from pplgen.paths import impute_series
from pplgen.series_verbs import SeriesVerbs
from pplgen.state_space import StateSpaceStory
from pplgen.story import Story, check_count
from pplgen.streams import RowStream
from pplgen.terminal import print_table
from pplgen.training import StopReason, Training
from pplgen.trust_verbs import TrustVerbs

__all__ = ["Fit"]

AGREEMENT = 1.0
"""Nats within which the final ELBOs of two restarts agree."""


class Fit(SeriesVerbs, LatentVerbs, TrustVerbs):
    """A trained pair, with what can be asked of it.

    Attributes
    ----------
    pair : Pair
        The trained model and guide; ``with fit.pair.isolated():`` gives Pyro their parameters.
    runs : tuple of Training
        Every restart that ended with a finite ELBO, in order.
    table : Table or None
        A story's training data; ``None`` for a bare pair and for a fit that was loaded without them.
    columns : tuple of str
        Names of the training columns.
    seed : int
        The seed of ``fit``.
    num_failed : int
        Restarts that broke down and were dropped.
    path : str
        What ran: the compiled graph, the traced graph, or plain Pyro and why.
    origin : dict
        What else a saved run tells: options, versions, when, the command.
    """

    def __init__(
        self,
        pair: Pair,
        runs: tuple[Training, ...],
        *,
        table: Table | None,
        seed: int,
        num_failed: int = 0,
        path: str = "",
        origin: dict[str, Any] | None = None,
    ) -> None:
        self.pair, self.runs, self.table, self.seed, self.num_failed = pair, runs, table, seed, num_failed
        self.path, self.origin = path, origin or {}
        self.columns: tuple[str, ...] = table.columns if table is not None else tuple(self.origin.get("columns", ()))

    def __repr__(self) -> str:
        return f"<Fit of {self.name}: ELBO {self.elbo:.2f} +- {self.best.elbo_error:.2f}; {self.stop.value}>"

    @property
    def name(self) -> str:
        """Name of the story, or of the bare pair's model."""
        return type(self.story).__name__ if self.story else getattr(self.pair.model, "__name__", "a Pyro pair")

    @property
    def story(self) -> Story | None:
        """The trained copy of the story, ``None`` for a bare pair."""
        return self.pair.story

    @property
    def best(self) -> Training:
        """The restart that was kept, the one with the best final ELBO."""
        return max(self.runs, key=lambda run: run.rank)

    @property
    def elbo(self) -> float:
        """Final ELBO in nats for all rows, a mean over many evaluations."""
        return self.best.elbo

    @property
    def stop(self) -> StopReason:
        """Why the kept restart stopped."""
        return self.best.stop

    @property
    def spread(self) -> float:
        """Best minus worst final ELBO of the restarts, in nats; zero for one."""
        return self.elbo - min(run.elbo for run in self.runs)

    @property
    def num_agreeing(self) -> int:
        """Restarts, the best among them, whose final ELBO is within ``AGREEMENT`` nats of the best."""
        return sum(self.elbo - run.elbo <= AGREEMENT for run in self.runs)

    def to_datatree(
        self, draws: int = 1000, *, groups: Iterable[str] | None = None, seed: int | None = None
    ) -> xr.DataTree:
        """Lay draws out for ArviZ; see ``pplgen.posterior.to_datatree``.

        A fit without its rows at hand, streamed or loaded without them, has the ``posterior`` group alone; the latter
        only where it is asked for.
        """
        check_count("draws", draws, minimum=2)
        if not self.has_rows:
            if groups is None and self.pair.source is not None:
                groups = ["posterior"]
            if groups is None or set(groups) != {"posterior"}:
                raise InputError(f"{self._without_rows}, or ask for groups=['posterior'] alone")
        facts = {"story": self.name, "seed": self.seed, "elbo": self.elbo, "stop": self.stop.name}
        with self._ready(seed):
            return posterior.to_datatree(
                self.pair, self.columns, draws=draws, groups=groups, attributes=facts, has_rows=self.has_rows
            )

    def summary(self, draws: int = 1000, *, tree: xr.DataTree | None = None) -> None:
        """Print mean, sd and 90 % interval of every parameter, the ELBO, and why the fit stopped.

        ``tree`` holds draws that are at hand; otherwise ``draws`` are made.
        """
        if tree is None:
            # latents of single rows are in no table; where there are no others, two draws say all
            number = check_count("draws", draws, minimum=2) if self.pair.structure.shared_latent else 2
            options: dict[str, Any] = {"has_rows": self.has_rows, "without": self.pair.structure.per_row}
            with self._ready(None):
                tree = posterior.to_datatree(self.pair, self.columns, draws=number, groups=["posterior"], **options)
        best, data = self.best, self._data_facts
        shared, left_out = posterior.printed(tree, self.readable_sites(tree))
        each = f", {best.elbo / data['num_rows']:.2f} a row" if data and not len(shared) else ""
        agreeing = f"{self.num_agreeing} of them within {AGREEMENT:g} nat, all within {self.spread:.2f}"
        restarts = f"; best of {len(self.runs)} restarts, {agreeing}" if len(self.runs) > 1 else ""
        failed = f"; {self.num_failed} restarts broke down" if self.num_failed else ""
        rows = "series" if self.story and self.story.takes_series else "rows"
        print_table(
            f"{self.name} on {data['name']}, {data['num_rows']:,} {rows}" if data else self.name,
            shared,
            f"ELBO {best.elbo:.2f} +- {best.elbo_error:.2f} nats{each}{restarts}{failed}",
            f"{len(best.history):,} steps of {self.path}: {best.stop.value}",
            *best.faults,
            *left_out,
        )

    def readable_sites(self, tree: xr.DataTree) -> list[str]:
        """Sites of the posterior group that a table shows: no auxiliary ones, and none of single rows."""
        hidden = self.pair.structure.per_row | (self.story.auxiliary if self.story else frozenset())
        return [str(name) for name in tree["posterior"].data_vars if name not in hidden]

    def log_likelihood(
        self, x: Any = None, *, draws: int = 500, estimator: str | None = None, seed: int | None = None
    ) -> scores.LogLikelihood:
        """Log posterior predictive density of each row in nats, discrete latents summed out, shape ``(num_rows,)``.

        ``x`` is whatever ``load_data`` takes (series, for a state space story; a bare model's arguments, for a bare
        pair), or what ``stream_data`` returns; ``None`` for the training rows. It is ``log mean_s p(x_i | theta_s)``
        over draws of the guide; latents of single rows are integrated out by importance sampling from the guide. A
        switching story offers ``estimator="gaussian-sum"``, taken unless told otherwise, ``"importance"`` (the guide's
        paths), ``"kim"`` and ``"particle"``. Its ``estimator`` and ``standard_error`` say how far it can be trusted.
        """
        if isinstance(x, RowStream) and not isinstance(self.story, StateSpaceStory):
            blocks = (Table(block, x.columns, x.name) for block in x.blocks())
            options: dict[str, Any] = {"draws": draws, "estimator": estimator, "seed": seed}
            return scores.LogLikelihood.joined([self.log_likelihood(block, **options) for block in blocks])
        rows = self._rows(x)
        with self._ready(seed):
            return scores.row_log_likelihood(self.pair, rows, check_count("draws", draws), estimator)

    def latents(self, x: Any = None, *, draws: int = 500, seed: int | None = None) -> xr.Dataset:
        """Posterior of each row's latents: probabilities of discrete ones, mean and sd of continuous ones.

        ``x`` as in ``log_likelihood``. A mixture's responsibilities are ``fit.latents(x)["z"]``, dimensions
        ``(row, component)``. Those of series are what ``smooth`` finds.
        """
        if self.story is not None and self.story.takes_series:
            return self.smooth(x, draws=draws, seed=seed)
        if is_plain(self.story):
            return self.encode(x, seed=seed)
        rows = self._rows(x)
        with self._ready(seed):
            return posterior.row_latents(self.pair, rows, check_count("draws", draws))

    def sample(self, num_rows: int, *, seed: int | None = None) -> Tensor:
        """Draw new rows from a story's posterior predictive distribution, shape ``(num_rows, num_features)``."""
        if self.story is None:
            raise InputError(
                "new rows need a Story, whose model simulates from None; "
                "to_datatree(groups=['posterior_predictive']) replicates the observed rows of any pair"
            )
        check_count("num_rows", num_rows)
        with self._ready(seed):
            return sample_rows(self.story, self.pair, num_rows).cpu()

    def impute(self, x: Any = None, *, draws: int = 100, seed: int | None = None) -> Tensor:
        """Draw the missing entries of rows given the others, shape ``(draws, num_rows, ...)``.

        ``x`` as in ``log_likelihood``; entries that are not missing are repeated. With NaN in place of the top half of
        pictures it inpaints, of spoilt pixels it denoises, of all but a coarser grid it super-resolves; see
        ``latent_plots.plot_inpainting``.
        """
        if self.story is None:
            raise InputError("a bare pair does not say how to impute; a Story with a method 'complete' does")
        rows, number = self._rows(x), check_count("draws", draws)
        with self._ready(seed):
            if self.story.takes_series:
                return impute_series(self.pair, rows, number).cpu()
            return impute_rows(self.story, self.pair, rows, number).cpu()

    def save(self, directory: str | Path, *, force: bool = False) -> None:
        """Write parameters and header into ``directory``; a run that is there already stays unless ``force``.

        ``pplgen.load`` reads it back, a story of your own or a bare pair with the code that you give it again.
        """
        with store.staged(Path(directory), force=force) as folder:
            self.write(folder)

    def write(self, folder: Path) -> None:
        """Write parameters and header into a folder of ``store.staged``, beside whatever else goes there."""
        store.write(folder, self._tensors | kept_buffers(self.pair), {**self.facts, **pair_facts(self.pair)})

    @property
    def facts(self) -> dict[str, Any]:
        """What was fitted to what, how and with what; the header of a saved run."""
        story = self.story
        facts = {
            **self.origin,
            "story": self.name if story is None else import_path(type(story)),
            "config": {} if story is None else story.config,
            "columns": list(self.columns),
            "seed": self.seed,
            "path": self.path,
            **self._how_it_went,
        }
        if "created" not in self.origin:
            facts |= {"data": self._data_facts, **store.provenance()}
        return facts

    @property
    def _tensors(self) -> dict[str, Tensor]:
        """What training ended with, and how it went."""
        with self.pair.isolated():
            tensors = {f"parameter/{name}": value for name, value in self.pair.snapshot().items()}
        if all(len(run.final) for run in self.runs):
            tensors["finals"] = torch.from_numpy(np.stack([run.final for run in self.runs]))
        return tensors | self.best.tensors

    @property
    def _how_it_went(self) -> dict[str, Any]:
        """What a header tells of the training."""
        return {"best": self.runs.index(self.best), "num_failed": self.num_failed, "runs": [r.facts for r in self.runs]}

    @property
    def has_rows(self) -> bool:
        """Whether the training rows are in memory."""
        return self.story is None or self.table is not None

    @property
    def _without_rows(self) -> str:
        """Say why the training rows are not at hand, and what brings them."""
        where = "was loaded without its data" if self.pair.source is None else "has only streamed its rows"
        return f"this fit {where}; give them: pplgen.load(directory, data)"

    @property
    def _data_facts(self) -> dict[str, Any]:
        """Name, length and fingerprint of the training rows; empty for a bare pair."""
        if self.table is None:
            return dict(self.origin.get("data", {}))
        known = [what for what in ("labels", "weights") if getattr(self.table, what) is not None]
        facts = {"name": self.table.name, "num_rows": len(self.table), "fingerprint": self.table.fingerprint}
        facts |= {} if self.table.label_names is None else {"label_names": list(self.table.label_names)}
        return {**facts, "dtype": type_name(self.table.values), "known": known}

    @contextlib.contextmanager
    def _ready(self, seed: int | None) -> Iterator[None]:
        """Seed the generators, by default with the fit's own seed, and give Pyro the pair's parameters."""
        with seeded(self.seed if seed is None else check_count("seed", seed, minimum=0)), self.pair.isolated():
            yield

    def _rows(self, x: Any) -> tuple[Any, ...]:
        """Arguments of model and guide for the rows ``x``; the training rows for ``None``."""
        if isinstance(x, RowStream):
            takers = "log_likelihood of stories of rows alone takes"
            raise InputError(f"{x.name} is a stream of rows, which {takers}; load_data reads them all")
        if x is None:
            if not self.has_rows:
                raise InputError(f"{self._without_rows}, or give rows")
            return self.pair.data
        like = next((value for value in self.pair.data if isinstance(value, Tensor)), torch.empty(0))
        if self.story is None:
            return bare_arguments(x, like.device)
        return (new_rows(self.story, x, self.columns, like.dtype).to(like.device),)
