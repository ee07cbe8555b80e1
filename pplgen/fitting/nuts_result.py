"""``SampledFit``: the result of NUTS, with the methods of ``Fit``."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import arviz_stats
import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from pplgen.checks import sampler
from pplgen.checks.check import Check, Checks
from pplgen.data.table import Table
from pplgen.errors import InputError
from pplgen.fitting.result import Fit
from pplgen.inference.empirical_guide import StoredDraws
from pplgen.inference.nuts import Chains
from pplgen.inference.training_result import StopReason, Training
from pplgen.posterior import datatree
from pplgen.posterior.relabelling import component_axes, relabel_dataset
from pplgen.report.console import print_table
from pplgen.story.base import check_count
from pplgen.story.pair import Pair

__all__ = ["SampledFit"]

RHAT = 1.01
"""R-hat above which chains have not mixed (Vehtari et al. 2021, https://doi.org/10.1214/20-BA1221)."""


class SampledFit(Fit):
    """Posterior draws by NUTS, with all methods of ``Fit`` except those that concern the ELBO.

    Attributes
    ----------
    chains : Chains
        Sampler statistics: chains, draws, divergences.
    """

    chains: Chains

    def __init__(
        self,
        pair: Pair,
        chains: Chains,
        *,
        table: Table | None,
        seed: int,
        path: str = "",
        origin: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(pair, (), table=table, seed=seed, path=path, origin=origin)
        self.chains = chains

    def __repr__(self) -> str:
        return f"<SampledFit of {self.name}: {self.how}>"

    @property
    def best(self) -> Training:
        """A record without optimisation steps, whose ELBO is NaN: a sampler has none."""
        return Training(self.seed, np.empty(0), math.nan, math.nan, StopReason.SAMPLED)

    @property
    def spread(self) -> float:
        """NaN: a sampler has no ELBOs."""
        return math.nan

    @property
    def num_agreeing(self) -> int:
        """Zero: a sampler has chains instead of restarts."""
        return 0

    @property
    def draws(self) -> StoredDraws:
        """The guide, which replays the stored draws."""
        guide: StoredDraws = self.pair.guide
        return guide

    def to_datatree(
        self, draws: int | None = None, *, groups: Iterable[str] | None = None, seed: int | None = None
    ) -> xr.DataTree:
        """Convert draws to ArviZ's layout, by chain; see ``pplgen.posterior.datatree.to_datatree``.

        Parameters
        ----------
        draws
            Total number of draws over all chains, evenly thinned; ``None`` for all.
        groups, seed
            As for ``Fit.to_datatree``.
        """
        if not self.has_rows and (groups is None or set(groups) != {"posterior"}):
            raise InputError(f"{self._without_rows}, or ask for groups=['posterior'] alone")
        number = self.draws.thinned_size(self.draws.total if draws is None else check_count("draws", draws, minimum=2))
        facts = {"story": self.name, "seed": self.seed, "sampler": "NUTS", "divergences": self.chains.divergences}
        with self._ready(seed):
            return datatree.to_datatree(
                self.pair, self.columns, draws=number, groups=groups, attributes=facts, has_rows=self.has_rows
            )

    def summary(self, draws: int | None = None, *, tree: xr.DataTree | None = None) -> None:
        """Print mean, sd, 90 % interval, effective sample size and R-hat of every parameter, and sampler statistics.

        ``tree`` contains posterior draws; default: the stored draws.
        """
        tree = self.to_datatree(draws, groups=["posterior"]) if tree is None else tree
        names = self.readable_sites(tree)
        table, left_out = datatree.printed_table(tree, names)
        lines = [f"{self.how}; NUTS on {self.path}"]
        if len(table):
            mixing = self._mixing(tree, names)
            table = table.assign(ess=mixing["ess_bulk"], **{"R-hat": mixing["r_hat"]})
            if (worst := mixing["r_hat"].max()) > RHAT:
                lines.append(f"R-hat {worst:.3f}: the chains have not mixed, or component labels switched within some")
        print_table(f"{self.name}, sampled", table, *lines, *left_out)

    @property
    def _tensors(self) -> dict[str, Tensor]:
        """The draws, by chain."""
        chains = self.draws.num_chains
        return {f"draws/{name}": value.unflatten(0, (chains, -1)) for name, value in self.draws.draws.items()}

    @property
    def _training_facts(self) -> dict[str, Any]:
        """Sampler statistics for the header of a saved run."""
        return {"method": "nuts", "chains": vars(self.chains)}

    def mixing_checks(self) -> tuple[Check, ...]:
        """Check the chains: R-hat, effective sample size, divergent transitions."""
        tree = self.to_datatree(groups=["posterior"])
        mixing = self._mixing(tree, self.readable_sites(tree))
        return (
            sampler.split_rhat(mixing),
            sampler.effective_size(mixing, self.chains.num_chains),
            sampler.divergences(self.chains.divergences, self.draws.total),
        )

    def _checks(self, x: Any, seed: int | None) -> Checks:
        """Check the chains, and run the checks that apply to any posterior."""
        return Checks((*self.mixing_checks(), *super()._checks(x, seed)))

    def _mixing(self, tree: xr.DataTree, names: list[str]) -> pd.DataFrame:
        """Return R-hat and effective sample sizes of all scalars, components in the order of the first chain."""
        if not names:
            return pd.DataFrame(columns=["r_hat", "ess_bulk", "ess_tail"], dtype=float)
        posterior = tree["posterior"].to_dataset()[names]
        first = {str(name): torch.as_tensor(values.values[0]) for name, values in posterior.items()}
        ordered = relabel_dataset(posterior, first, component_axes(self.pair))
        with np.errstate(divide="ignore", invalid="ignore"):  # constant scalars, chains that never moved
            return arviz_stats.summary(ordered, kind="diagnostics", round_to="none").astype(float)

    @property
    def how(self) -> str:
        """Sampler statistics as a phrase."""
        chains = self.chains
        diverged = f", {chains.divergences} of them divergent" if chains.divergences else ""
        return f"{chains.num_chains} chains of {chains.num_draws:,} draws after {chains.warm_up:,} of warm-up{diverged}"
