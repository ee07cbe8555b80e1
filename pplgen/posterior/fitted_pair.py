"""A trained pair with its restarts and rows: the interface that checks, plots and reports use."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from pplgen.data.streams import RowStream
from pplgen.data.table import Table
from pplgen.data.tensors import as_dtype
from pplgen.errors import InputError
from pplgen.inference.model_arguments import bare_arguments, read_new_rows
from pplgen.inference.nuts import Chains
from pplgen.inference.training_result import StopReason, Training, best_first
from pplgen.posterior.parameter_names import variable_name
from pplgen.story.base import Story, check_count
from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair

__all__ = ["AGREEMENT", "FittedPair"]

AGREEMENT = 1.0
"""Nats within which the final ELBOs of two restarts agree."""


class FittedPair(ABC):
    """A trained pair, the record of its training, and its training rows.

    ``pplgen.Fit`` is the only public subclass; packages below ``pplgen.fitting`` depend on this class instead.

    Attributes
    ----------
    pair : Pair
        The trained model and guide; ``with fit.pair.isolated():`` gives Pyro their parameters.
    runs : tuple of Training
        Every restart that ended with a finite ELBO, in order.
    table : Table or None
        A story's training data; ``None`` for a bare pair and for a fit loaded without its data.
    columns : tuple of str
        Names of the training columns.
    seed : int
        Seed passed to ``fit``.
    num_failed : int
        Number of restarts that failed and were dropped.
    path : str
        Execution path: the compiled graph, the traced graph, or plain Pyro and the reason.
    origin : dict
        Other fields of a saved run's header: options, versions, date, command.
    chains : Chains or None
        Sampler statistics; ``None`` for a fit by SVI.
    """

    pair: Pair
    runs: tuple[Training, ...]
    table: Table | None
    columns: tuple[str, ...]
    seed: int
    num_failed: int
    path: str
    origin: dict[str, Any]
    chains: Chains | None = None

    @property
    def interrupted(self) -> bool:
        """Whether training was interrupted from the keyboard."""
        return any(run.stop is StopReason.INTERRUPTED for run in self.runs)

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
        """The selected restart, see ``pplgen.inference.training_result.best_first``."""
        return best_first(self.runs)[0]

    @property
    def elbo(self) -> float:
        """Final ELBO in nats for all rows, averaged over many evaluations."""
        return self.best.elbo

    @property
    def stop(self) -> StopReason:
        """Why the best restart stopped."""
        return self.best.stop

    @property
    def how(self) -> str:
        """Why training stopped, as a sentence."""
        return self.best.how

    @property
    def spread(self) -> float:
        """Best minus worst final ELBO of the restarts, in nats; zero for a single restart."""
        return self.elbo - min(run.elbo for run in self.runs)

    @property
    def num_agreeing(self) -> int:
        """Number of restarts, including the best, with a final ELBO within ``AGREEMENT`` nats of the best."""
        return sum(self.elbo - run.elbo <= AGREEMENT for run in self.runs)

    @property
    def has_rows(self) -> bool:
        """Whether the training rows are in memory."""
        return self.story is None or self.table is not None

    @property
    def of_series(self) -> bool:
        """Whether the data are series, as for a state space story."""
        return self.story is not None and self.story.takes_series

    @property
    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Story, data, options and results; the header of a saved run."""

    @property
    @abstractmethod
    def data_facts(self) -> dict[str, Any]:
        """Name, length and fingerprint of the training rows; empty for a bare pair."""

    @abstractmethod
    def to_datatree(
        self, draws: int = 1000, *, groups: Iterable[str] | None = None, seed: int | None = None
    ) -> xr.DataTree:
        """Convert draws to ArviZ's layout."""

    @abstractmethod
    def sample(self, num_rows: int, *, seed: int | None = None) -> Tensor:
        """Draw new rows from the posterior predictive distribution."""

    @abstractmethod
    def encode(self, x: Any = None, *, seed: int | None = None) -> xr.Dataset:
        """Return mean and standard deviation of the latent variables of each row."""

    @abstractmethod
    def reconstruct(self, x: Any = None, *, seed: int | None = None) -> Tensor:
        """Decode the mean latent variables of each row."""

    @abstractmethod
    def smooth(
        self, x: Any = None, *, draws: int = 200, keep_draws: bool = False, seed: int | None = None
    ) -> xr.Dataset:
        """Return moments of the states given the whole series."""

    @abstractmethod
    def residuals(self, x: Any = None, *, draws: int = 200, seed: int | None = None) -> xr.Dataset:
        """Return one-step-ahead residuals of series."""

    def readable_sites(self, tree: xr.DataTree) -> list[str]:
        """Sites of the posterior group to show in a table: neither auxiliary nor per-row."""
        hidden = self.pair.structure.per_row | (self.story.auxiliary if self.story else frozenset())
        names = {variable_name(name) for name in hidden}
        return [str(name) for name in tree["posterior"].data_vars if name not in names]

    @property
    def _without_rows(self) -> str:
        """Message: why the training rows are not in memory, and how to supply them."""
        where = "was loaded without its data" if self.pair.source is None else "was trained on a stream of rows"
        return f"this fit {where}; load it with its rows by pplgen.load(directory, data)"

    @contextlib.contextmanager
    def _ready(self, seed: int | None) -> Iterator[None]:
        """Seed the generators, by default with the fit's seed, and load the pair's parameters into Pyro."""
        with seeded(self.seed if seed is None else check_count("seed", seed, minimum=0)), self.pair.isolated():
            yield

    def named(self, x: Tensor) -> Table:
        """Return rows whose columns are those of training, in their order, as a table with their names."""
        return Table(x, self.columns, "rows")

    def _with_identifiers(self, results: xr.Dataset, x: Any) -> xr.Dataset:
        """Add the identifiers of the rows ``x``, where they have any, as coordinates."""
        table = self.table if x is None else x
        if not isinstance(table, Table) or table.carried is None or "row" not in results.dims:
            return results
        free = [name for name in table.carried if name not in results.variables and name not in results.dims]
        return results.assign_coords({name: ("row", table.carried[name].to_numpy()) for name in free})

    def _rows(self, x: Any) -> tuple[Any, ...]:
        """Arguments of model and guide for the rows ``x``; the training rows for ``None``."""
        if isinstance(x, RowStream):
            raise InputError(
                f"{x.name} is a stream of rows, supported only by log_likelihood of stories of rows; "
                "load_data reads all rows into memory"
            )
        if x is None:
            if not self.has_rows:
                raise InputError(f"{self._without_rows}, or give rows")
            return self.pair.data
        like = next((value for value in self.pair.data if isinstance(value, Tensor)), torch.empty(0))
        if self.story is None:
            dtype = as_dtype(self.origin.get("options", {}).get("dtype"))
            return bare_arguments(x, like.device, self.pair.model if isinstance(x, Mapping) else None, dtype=dtype)
        return (read_new_rows(self.story, x, self.columns, like.dtype).to(like.device),)
