"""What checks are made of: draws, their weights and replicated data, each computed once, when first asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from torch import Tensor

from pplgen.checks.replicates import Replicates, replicate
from pplgen.errors import InputError
from pplgen.inference.estimators import unwrap_independent
from pplgen.inference.stored_draws import StoredDraws
from pplgen.inference.training import Training
from pplgen.posterior.draws import Draws, draw_posterior, draw_shared, row_densities, shared_densities
from pplgen.posterior.importance_sampling import INNER_DRAWS, WeightedDraws, integrate_row_latents, weighted_draws
from pplgen.posterior.likelihood import latent_densities
from pplgen.posterior.parameter_names import entry_names
from pplgen.story.latent import LatentStory
from pplgen.story.pair import Pair, select_rows
from pplgen.story.structure import number_of_rows

__all__ = ["REPLICATES", "SAMPLED", "CheckInputs"]

REPLICATES = 4
"""Independent sets of draws of which k-hat is computed."""
DRAWS = 10_000
"""Draws of each set; down to a quarter where data are larger than ``CHEAP``, fewer where larger than ``DEAR``."""
CHEAP, DEAR, FEWEST = 2**25, 2**27, 250
"""Entries of data, times draws, up to which all of ``DRAWS`` and all of a quarter are drawn; draws at least."""
SCAN = 16
"""Entries of rows that a step of a series costs as much as."""
WEIGHTED_DRAWS = 1000
"""Draws that are weighed row by row."""
NUMBERS = 2**22
"""Densities of single rows that are kept."""
DENSITIES = 2**24
"""Densities of single rows that are computed at once, where these have latents to integrate out."""
JOINT = 100
"""Numbers of latents of single rows up to which they are weighed together with what all rows share."""
ROWS, CODES = 100, 1000
"""Rows whose latents are weighed on their own, and draws of each."""
REPLICATED = 2**25
"""Entries of rows that are replicated."""
SAMPLED = "the draws are a sampler's, of the posterior itself; R-hat and effective sample size judge them"
"""Why draws are not weighed, and no optimisation is judged."""
SCALARS = 200
"""Scalars of the parameters that are looked at, at most."""


class CheckInputs:
    """What checks are made of; use it inside ``pair.isolated``.

    Parameters
    ----------
    pair
        A trained pair.
    rows
        Arguments of model and guide to hold the fit against; ``None`` for the pair's own.
    runs
        Its restarts, the best first.
    has_rows
        Whether the pair's data are the rows of the fit, all of them.
    columns
        Names of the data's columns, where there are any.
    """

    def __init__(
        self,
        pair: Pair,
        rows: tuple[Any, ...] | None = None,
        runs: tuple[Training, ...] = (),
        *,
        has_rows: bool = True,
        columns: Sequence[str] = (),
    ) -> None:
        self.columns = columns
        self.pair, self.structure, self.story = pair, pair.structure, pair.story
        self.runs, self.has_rows = runs, has_rows and pair.source is None
        self.rows = pair.data if rows is None else rows
        self.is_training = self.has_rows and self.rows is pair.data

    @property
    def num_rows(self) -> int:
        """How many rows the fit is held against; zero where there are none at hand."""
        made_up = self.rows is self.pair.data and not self.has_rows and self.pair.source is None
        return 0 if made_up else number_of_rows(self.rows) or 0

    @cached_property
    def traces(self) -> tuple[poutine.Trace, poutine.Trace]:
        """One run of the guide, and of the model at its draws."""
        guide = poutine.trace(self.pair.guide).get_trace(*self.pair.data)
        model = poutine.trace(poutine.replay(self.pair.model, guide)).get_trace(*self.pair.data)
        return poutine.util.prune_subsample_sites(guide), model

    @property
    def sampled(self) -> bool:
        """Whether the draws are a sampler's: of the posterior itself, with no density of a guide."""
        return isinstance(self.pair.guide, StoredDraws)

    @cached_property
    def point(self) -> str | None:
        """Name of a latent that the guide puts at a point, where it has no density; ``None`` without one."""
        if self.sampled:
            return None
        guide, _ = self.traces
        if set(guide.stochastic_nodes) - set(self.structure.latent):
            return None  # an automatic guide transforms draws of sites of its own
        points = (n for n in self.structure.latent if isinstance(unwrap_independent(guide.nodes[n]["fn"]), Delta))
        return next(points, None)

    @property
    def num_row_numbers(self) -> int:
        """Numbers of latents of single rows, all rows together."""
        return sum(self.traces[1].nodes[name]["value"].numel() for name in self.structure.row_latent)

    @cached_property
    def why_no_training_rows(self) -> str | None:
        """Say why the rows of the fit cannot be scored; ``None`` where they can."""
        if self.pair.source is not None:
            return "the fit has only streamed its rows"
        if self.has_rows:
            return None
        return "the rows of the fit are not at hand; give them: pplgen.load(directory, data), or pplgen check RUN DATA"

    @cached_property
    def why_not_weighted(self) -> str | None:
        """Say why draws of the guide cannot be weighed; ``None`` where they can."""
        if self.why_no_training_rows:
            return self.why_no_training_rows
        if not self.structure.latent:
            return "the guide draws nothing"
        if self.point:
            return f"the guide puts {self.point!r} at a point, which has no density to weigh"
        return None

    @cached_property
    def why_not_joint(self) -> str | None:
        """Say why all latents cannot be weighed together; ``None`` where they can."""
        if self.sampled:
            return SAMPLED
        if self.why_not_weighted:
            return self.why_not_weighted
        if self.num_row_numbers > JOINT:
            return f"together, {self.num_row_numbers:,} numbers of single rows would hide everything else"
        return None

    @cached_property
    def why_no_shared(self) -> str | None:
        """Say why draws of what all rows share cannot be weighed row by row; ``None`` where they can."""
        if self.why_not_weighted:
            return self.why_not_weighted
        if not self.structure.shared_latent:
            return "the rows share no latent: what they share is a parameter, fitted as a point"
        if reason := self.structure.why_no_row_densities():
            return reason
        try:
            return None if self.weighted else ""
        except InputError as error:
            return str(error)

    @cached_property
    def num_draws(self) -> int:
        """Draws of each replicate of k-hat; few where it is not computed."""
        if self.num_row_numbers > JOINT:
            return FEWEST
        _, model = self.traces
        entries = sum(model.nodes[name]["value"].numel() for name in self.structure.observed)
        shared = sum(model.nodes[name]["value"].numel() for name in self._shared)
        size = REPLICATES * max(1, entries, shared) * (SCAN if self.story and self.story.takes_series else 1)
        return min(DRAWS, max(CHEAP // size, min(DRAWS // REPLICATES, max(FEWEST, DEAR // size))))

    @property
    def _shared(self) -> list[str]:
        names = self.structure.shared_latent + self.structure.deterministic
        return [name for name in names if name not in self.structure.per_row]

    @cached_property
    def drawn(self) -> Draws:
        """Draws of the guide, all replicates after one another, with what all rows share."""
        return draw_posterior(self.pair, REPLICATES * self.num_draws, exclude=self.structure.per_row)

    @cached_property
    def log_ratios(self) -> Tensor:
        """``log p(x, theta) - log q(theta)`` of all latents, shape ``(REPLICATES, num_draws)``."""
        return (self.drawn.lp.double() - self.drawn.log_q.double()).reshape(REPLICATES, -1)

    @cached_property
    def shared_ratios(self) -> Tensor:
        """The same of what all rows share, latents of single rows integrated out, shape ``(REPLICATES, draws)``."""
        number = max(FEWEST, min(self.num_draws, DRAWS // REPLICATES, self._inner_draws // REPLICATES))
        return integrate_row_latents(self.pair, REPLICATES * number)[1].double().reshape(REPLICATES, -1)

    @property
    def _inner_draws(self) -> int:
        """Draws whose densities, for each row and inner draw, fit."""
        return DENSITIES // (INNER_DRAWS * max(1, self.pair.num_rows))

    @cached_property
    def chosen(self) -> slice:
        """Rows that are looked at one by one: evenly chosen, so many that their densities fit."""
        return slice(0, None, max(1, math.ceil(self.pair.num_rows * WEIGHTED_DRAWS / NUMBERS)))

    @cached_property
    def weighted(self) -> WeightedDraws:
        """Draws of what all rows share, weighed, with the densities of the ``chosen`` training rows."""
        if self.sampled:
            return weighted_draws(self.pair, WEIGHTED_DRAWS, self.chosen)
        if self.structure.row_latent:
            return weighted_draws(self.pair, max(FEWEST, min(WEIGHTED_DRAWS, self._inner_draws)), self.chosen)
        return weighted_draws(self.pair, min(WEIGHTED_DRAWS, len(self.drawn.lp)), self.chosen, self.drawn)

    @cached_property
    def scalars(self) -> dict[str, Tensor]:
        """Scalars of what all rows share at the weighed draws, evenly chosen ones of many, ``(num_draws,)`` each."""
        found = dict(self._scalars())
        kept = sorted({*torch.linspace(0, len(found) - 1, min(SCALARS, len(found))).round().int().tolist()})
        names = list(found)
        return {names[index]: found[names[index]] for index in kept}

    def _scalars(self) -> Iterator[tuple[str, Tensor]]:
        auxiliary = self.story.auxiliary if self.story else frozenset()
        sites = {n: self.weighted.sites[n].double() for n in self._shared if n in self.weighted.sites}
        entries = entry_names({name: values.shape[1:] for name, values in sites.items()}, self.story, self.columns)
        for name, values in sites.items():
            if name in auxiliary:
                continue
            for entry, column in zip(entries[name], values.reshape(len(values), -1).T, strict=True):
                if column.std() > 1e-6 * (
                    1e-30 + column.abs().mean()
                ):  # some are constants, such as zeros of a triangle
                    yield entry, column

    @cached_property
    def row_ratios(self) -> Tensor:
        """``log p(x_i, z_i | theta) - log q(z_i | x_i, theta)`` at one theta, shape ``(CODES, num_rows)``."""
        rows = self.some_rows(ROWS)
        if isinstance(self.story, LatentStory) and not self.structure.shared_latent:
            return torch.cat(list(latent_densities(self.pair, rows, CODES)), dim=1)
        sites = {} if not self.structure.shared_latent else shared_densities(self.pair, 1)[0]
        repeated = {name: value.expand(CODES, *value.shape[1:]) for name, value in sites.items()}
        return row_densities(self.pair, repeated, CODES, rows).log_likelihood

    def some_rows(self, number: int) -> tuple[Any, ...]:
        """Return arguments for some of the rows, evenly chosen; for all where the guide knows no fewer."""
        if self.structure.row_latent:
            try:
                self.pair.check_amortised()
            except InputError:
                return self.rows
        chosen = slice(0, None, max(1, math.ceil(self.num_rows / number)))
        return tuple(select_rows(value, chosen, self.num_rows) for value in self.rows)

    @cached_property
    def predicted(self) -> tuple[Any, ...]:
        """Rows of which replicates are made: of a story's many rows, every ``predicted_step``-th."""
        return tuple(select_rows(value, slice(0, None, self.predicted_step), self.num_rows) for value in self.rows)

    @cached_property
    def predicted_step(self) -> int:
        """Distance between rows of which replicates are made, a multiple of that between ``chosen`` ones."""
        if self.story is None or self.story.takes_series:
            return 1
        every = self.chosen.step if self.structure.shared_latent and self.is_training else 1
        numbers = WEIGHTED_DRAWS * self.rows[0].numel()
        return every * max(1, math.ceil(numbers / (every * REPLICATED)))

    @cached_property
    def replicates(self) -> Replicates:
        """Data that were replicated at draws of what all rows share: the weighed ones, where draws can be weighed."""
        sites = draw_shared(self.pair, WEIGHTED_DRAWS) if self.why_no_shared else self.weighted.sites
        shared = {name: sites[name] for name in self.structure.shared_latent}
        number = len(next(iter(shared.values()))) if shared else WEIGHTED_DRAWS
        with pyro.validation_enabled(False):
            return replicate(self.pair, self.predicted, shared, number, self.columns)
