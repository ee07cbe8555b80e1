"""Inputs of checks: draws, importance weights and replicated data, each computed lazily and cached."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pplgen.checks.replicates import Replicates, replicate
from pplgen.errors import InputError
from pplgen.inference.empirical_guide import StoredDraws
from pplgen.inference.training_result import Optimum, Training
from pplgen.posterior.draws import Draws, draw_posterior, draw_shared, row_densities, shared_densities
from pplgen.posterior.importance_sampling import INNER_DRAWS, WeightedDraws, integrate_row_latents, weighted_draws
from pplgen.posterior.parameter_names import entry_names
from pplgen.posterior.point_estimates import point_latents
from pplgen.posterior.row_likelihood import latent_densities
from pplgen.story.latent import LatentStory
from pplgen.story.pair import Pair

__all__ = ["REPLICATES", "SAMPLED", "CheckInputs"]

Result = TypeVar("Result")
REPLICATES = 4
"""Independent replicates of k-hat."""
DRAWS = 10_000
"""Draws per replicate; fewer for large data, see the budgets."""
FULL_BUDGET, QUARTER_BUDGET, MIN_DRAWS = 2**25, 2**27, 250
"""Largest data entries times draws for all of ``DRAWS``, and for a quarter of them; minimum number of draws."""
SERIES_COST = 16
"""Cost of an entry of a series, relative to one of independent rows."""
WEIGHTED_DRAWS = 1000
"""Importance-weighted draws with per-row densities."""
MAX_SCORES = 2**22
"""Maximum number of per-row densities in memory."""
SCORES_AT_ONCE = 2**24
"""Maximum number of per-row densities computed at once when row latents are integrated out."""
MAX_ROW_LATENTS = 100
"""Maximum number of row-latent scalars that are importance-weighted jointly with shared latents."""
KHAT_ROWS, ROW_DRAWS = 100, 1000
"""Rows whose latents are importance-weighted separately, and draws of each."""
MAX_REPLICATED = 2**25
"""Maximum number of replicated data entries."""
SAMPLED = "the draws are MCMC draws from the posterior; R-hat and effective sample size diagnose them"
"""Why checks of a guide and of its optimisation do not apply."""
MAX_SCALARS = 200
"""Maximum number of parameter scalars that are checked."""


class CheckInputs:
    """Inputs of checks; use inside ``pair.isolated``.

    Parameters
    ----------
    pair
        A trained pair.
    rows
        Arguments of model and guide to check the fit on; ``None`` for the pair's own data.
    runs
        Its restarts, best first.
    has_rows
        Whether the pair holds all rows that it was fitted to.
    columns
        Column names of the data, if any.
    one_step_pit
        ``pplgen.timeseries.one_step.one_step_pit``, for series.
    """

    def __init__(
        self,
        pair: Pair,
        rows: tuple[Any, ...] | None = None,
        runs: tuple[Training, ...] = (),
        *,
        has_rows: bool = True,
        columns: Sequence[str] = (),
        one_step_pit: Callable[..., Tensor] | None = None,
    ) -> None:
        self.columns, self.one_step_pit = columns, one_step_pit
        self.pair, self.structure, self.story = pair, pair.structure, pair.story
        self.runs, self.has_rows = runs, has_rows and pair.source is None
        self.rows = pair.data if rows is None else rows
        self.is_training = self.has_rows and self.rows is pair.data
        self._results: dict[Callable[..., Any], Any] = {}

    def once(self, compute: Callable[[CheckInputs], Result]) -> Result:
        """Return what a function computes from these inputs, computed at the first call; several checks rest on it."""
        result: Result = self._results[compute] if compute in self._results else compute(self)
        self._results[compute] = result
        return result

    @property
    def num_rows(self) -> int:
        """Number of rows that the fit is checked on; zero if they are not available."""
        placeholder = self.rows is self.pair.data and not self.has_rows and self.pair.source is None
        return 0 if placeholder else self.structure.row_axes.count(self.rows) or 0

    @cached_property
    def traces(self) -> tuple[poutine.Trace, poutine.Trace]:
        """A trace of the guide, and of the model replayed at its draws."""
        guide = poutine.trace(self.pair.guide).get_trace(*self.pair.data)
        model = poutine.trace(poutine.replay(self.pair.model, guide)).get_trace(*self.pair.data)
        return poutine.util.prune_subsample_sites(guide), model

    @property
    def optimum(self) -> Optimum | None:
        """The stationary point at which the best restart ended, if any."""
        return self.runs[0].optimum if self.runs else None

    @property
    def sampled(self) -> bool:
        """Whether the draws are MCMC draws, which have no guide density."""
        return isinstance(self.pair.guide, StoredDraws)

    @cached_property
    def point_latent(self) -> str | None:
        """Name of a latent whose guide is a point mass; ``None`` if there is none."""
        return next(iter(point_latents(self.pair)), None)

    @property
    def num_row_latents(self) -> int:
        """Number of row-latent scalars, over all rows."""
        return sum(self.traces[1].nodes[name]["value"].numel() for name in self.structure.row_latent)

    @cached_property
    def why_no_training_rows(self) -> str | None:
        """Why the training rows cannot be scored; ``None`` if they can."""
        if self.pair.source is not None:
            return "the rows of the fit were streamed and are not in memory"
        if self.has_rows:
            return None
        return "the rows of the fit are not available; give them to pplgen.load(directory, data) or pplgen check"

    @cached_property
    def why_no_weights(self) -> str | None:
        """Why guide draws cannot be importance-weighted; ``None`` if they can."""
        if self.why_no_training_rows:
            return self.why_no_training_rows
        if not self.structure.latent:
            return "the guide has no latent variables"
        if self.point_latent:
            return f"the guide is a point mass at {self.point_latent!r}, which has no density"
        return None

    @cached_property
    def why_not_joint(self) -> str | None:
        """Why all latents cannot be importance-weighted jointly; ``None`` if they can."""
        if self.sampled:
            return SAMPLED
        if self.why_no_weights:
            return self.why_no_weights
        if self.num_row_latents > MAX_ROW_LATENTS:
            return f"the weights would be dominated by {self.num_row_latents:,} row-latent scalars"
        return None

    @cached_property
    def why_no_shared(self) -> str | None:
        """Why draws of shared latents have no per-row importance weights; ``None`` if they have."""
        if self.why_no_weights:
            return self.why_no_weights
        if not self.structure.shared_latent:
            return "the model has no shared latent: shared quantities are point-estimated parameters"
        if reason := self.structure.why_no_row_densities():
            return reason
        try:
            return None if self.weighted else ""
        except InputError as error:
            return str(error)

    @cached_property
    def num_draws(self) -> int:
        """Draws per replicate of k-hat; few if it is not computed."""
        if self.num_row_latents > MAX_ROW_LATENTS:
            return MIN_DRAWS
        _, model = self.traces
        entries = sum(model.nodes[name]["value"].numel() for name in self.structure.observed)
        shared = sum(model.nodes[name]["value"].numel() for name in self._shared)
        size = REPLICATES * max(1, entries, shared) * (SERIES_COST if self.story and self.story.takes_series else 1)
        return min(DRAWS, max(FULL_BUDGET // size, min(DRAWS // REPLICATES, max(MIN_DRAWS, QUARTER_BUDGET // size))))

    @property
    def _shared(self) -> list[str]:
        names = self.structure.shared_latent + self.structure.deterministic
        return [name for name in names if name not in self.structure.per_row]

    @cached_property
    def guide_draws(self) -> Draws:
        """Draws of shared latents from the guide, all replicates concatenated."""
        number, few = REPLICATES * self.num_draws, REPLICATES * MIN_DRAWS
        return draw_posterior(self.pair, number, exclude=self.structure.per_row, max_looped=few)

    @cached_property
    def log_ratios(self) -> Tensor:
        """``log p(x, theta) - log q(theta)`` of all latents, shape ``(REPLICATES, num_draws)``."""
        return (self.guide_draws.lp.double() - self.guide_draws.log_q.double()).reshape(REPLICATES, -1)

    @cached_property
    def shared_log_ratios(self) -> Tensor:
        """Log ratios of shared latents, row latents integrated out, shape ``(REPLICATES, num_draws)``."""
        num_draws = max(MIN_DRAWS, min(self.num_draws, DRAWS // REPLICATES, self._inner_draws // REPLICATES))
        return integrate_row_latents(self.pair, REPLICATES * num_draws)[1].double().reshape(REPLICATES, -1)

    @property
    def _inner_draws(self) -> int:
        """Number of draws whose densities, for each row and inner draw, fit in memory."""
        return SCORES_AT_ONCE // (INNER_DRAWS * max(1, self.pair.num_rows))

    @cached_property
    def scored_rows(self) -> slice:
        """Training rows that are scored one by one: evenly spaced, as many as fit in memory."""
        return slice(0, None, max(1, math.ceil(self.pair.num_rows * WEIGHTED_DRAWS / MAX_SCORES)))

    @cached_property
    def weighted(self) -> WeightedDraws:
        """Importance-weighted draws of shared latents, with the densities of the ``scored_rows``."""
        if self.sampled:
            return weighted_draws(self.pair, WEIGHTED_DRAWS, self.scored_rows)
        if self.structure.row_latent:
            return weighted_draws(self.pair, max(MIN_DRAWS, min(WEIGHTED_DRAWS, self._inner_draws)), self.scored_rows)
        draws = self.guide_draws
        return weighted_draws(self.pair, min(WEIGHTED_DRAWS, len(draws.lp)), self.scored_rows, draws)

    @cached_property
    def scalars(self) -> dict[str, Tensor]:
        """Scalars of shared latents at the weighted draws, evenly spaced if many, shape ``(num_draws,)`` each."""
        return self._scalars(self.weighted.sites)

    @cached_property
    def most_draws(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Log ratios of as many draws of shared latents as there are, shape ``(num_draws,)``, and their scalars."""
        if self.structure.row_latent:
            return self.weighted.log_ratio, self.scalars
        return self.log_ratios.flatten(), self._scalars(self.guide_draws.sites)

    def _scalars(self, every: Mapping[str, Tensor]) -> dict[str, Tensor]:
        scalars = dict(self._varying(every))
        chosen = sorted({*torch.linspace(0, len(scalars) - 1, min(MAX_SCALARS, len(scalars))).round().int().tolist()})
        names = list(scalars)
        return {names[index]: scalars[names[index]] for index in chosen}

    def _varying(self, every: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        auxiliary = self.story.auxiliary if self.story else frozenset()
        sites = {name: every[name].double() for name in self._shared if name in every}
        entries = entry_names({name: values.shape[1:] for name, values in sites.items()}, self.story, self.columns)
        for name, values in sites.items():
            if name in auxiliary:
                continue
            for entry, column in zip(entries[name], values.reshape(len(values), -1).T, strict=True):
                # some are constant, such as the zeros of a triangular matrix
                if column.std() > 1e-6 * (1e-30 + column.abs().mean()):
                    yield entry, column

    @cached_property
    def row_log_ratios(self) -> Tensor:
        """``log p(x_i, z_i | theta) - log q(z_i | x_i, theta)`` at one theta, shape ``(ROW_DRAWS, num_rows)``."""
        rows = self.subset_of_rows(KHAT_ROWS)
        if isinstance(self.story, LatentStory) and not self.structure.shared_latent:
            return torch.cat(list(latent_densities(self.pair, rows, ROW_DRAWS)), dim=1)
        sites = {} if not self.structure.shared_latent else shared_densities(self.pair, 1)[0]
        repeated = {name: value.expand(ROW_DRAWS, *value.shape[1:]) for name, value in sites.items()}
        return row_densities(self.pair, repeated, ROW_DRAWS, rows).log_likelihood

    def subset_of_rows(self, number: int) -> tuple[Any, ...]:
        """Return arguments for evenly spaced rows; for all of them if the guide is not amortised."""
        if self.structure.row_latent:
            try:
                self.pair.check_amortised()
            except InputError:
                return self.rows
        subset = slice(0, None, max(1, math.ceil(self.num_rows / number)))
        return self.structure.row_axes.select(self.rows, subset)

    @cached_property
    def replicated_rows(self) -> tuple[Any, ...]:
        """Rows that are replicated: for a story with many rows, every ``replicated_step``-th."""
        return self.structure.row_axes.select(self.rows, slice(0, None, self.replicated_step))

    @cached_property
    def replicated_step(self) -> int:
        """Spacing of the replicated rows, a multiple of that of ``scored_rows``."""
        if self.story is None or self.story.takes_series:
            return 1
        every = self.scored_rows.step if self.structure.shared_latent and self.is_training else 1
        entries = WEIGHTED_DRAWS * self.rows[0].numel()
        return every * max(1, math.ceil(entries / (every * MAX_REPLICATED)))

    @cached_property
    def replicates(self) -> Replicates:
        """Data replicated at draws of shared latents: the ``weighted`` draws if available."""
        sites = draw_shared(self.pair, WEIGHTED_DRAWS) if self.why_no_shared else self.weighted.sites
        shared = {name: sites[name] for name in self.structure.shared_latent}
        num_draws = len(next(iter(shared.values()))) if shared else WEIGHTED_DRAWS
        with pyro.validation_enabled(False):
            return replicate(self.pair, self.replicated_rows, shared, num_draws, self.columns)
