"""A trained pair with its restarts and rows: what every room asks of a fit, and what its methods share."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from pplgen.data.streams import RowStream
from pplgen.data.table import Table
from pplgen.errors import InputError
from pplgen.inference.arguments import bare_arguments, new_rows
from pplgen.inference.nuts import Chains
from pplgen.inference.training import StopReason, Training
from pplgen.story.base import Story, check_count
from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair

__all__ = ["AGREEMENT", "FittedPair"]

AGREEMENT = 1.0
"""Nats within which the final ELBOs of two restarts agree."""


class FittedPair(ABC):
    """A trained pair, how its training went, and the rows that it was trained on.

    ``pplgen.Fit`` is the one kind that users meet; rooms below ``pplgen.fitting`` are written against this class.

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
        What else the header of a saved run holds: options, versions, when, the command.
    chains : Chains or None
        How the chains of a sampler went; ``None`` for a fit by SVI.
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
    def how(self) -> str:
        """How the training ended, in words."""
        return self.stop.value

    @property
    def spread(self) -> float:
        """Best minus worst final ELBO of the restarts, in nats; zero for one."""
        return self.elbo - min(run.elbo for run in self.runs)

    @property
    def num_agreeing(self) -> int:
        """Restarts, the best among them, whose final ELBO is within ``AGREEMENT`` nats of the best."""
        return sum(self.elbo - run.elbo <= AGREEMENT for run in self.runs)

    @property
    def has_rows(self) -> bool:
        """Whether the training rows are in memory."""
        return self.story is None or self.table is not None

    @property
    def of_series(self) -> bool:
        """Whether the data are series, as a state space story takes them."""
        return self.story is not None and self.story.takes_series

    @property
    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What was fitted to what, how and with what; the header of a saved run."""

    @abstractmethod
    def to_datatree(
        self, draws: int = 1000, *, groups: Iterable[str] | None = None, seed: int | None = None
    ) -> xr.DataTree:
        """Lay draws out for ArviZ."""

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
        """Return moments of the states of series given the whole of them."""

    def readable_sites(self, tree: xr.DataTree) -> list[str]:
        """Sites of the posterior group that a table shows: no auxiliary ones, and none of single rows."""
        hidden = self.pair.structure.per_row | (self.story.auxiliary if self.story else frozenset())
        return [str(name) for name in tree["posterior"].data_vars if name not in hidden]

    @property
    def _without_rows(self) -> str:
        """Say why the training rows are not at hand, and what brings them."""
        where = "was loaded without its data" if self.pair.source is None else "has only streamed its rows"
        return f"this fit {where}; give them: pplgen.load(directory, data)"

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
