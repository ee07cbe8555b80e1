"""``SampledFit``: draws of a sampler, with everything that can be asked of a fit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

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
from pplgen.inference.nuts import Chains
from pplgen.inference.stored_draws import StoredDraws
from pplgen.posterior import datatree as posterior
from pplgen.posterior.relabelling import component_axes, relabel_dataset
from pplgen.report.console import print_table
from pplgen.story.base import check_count
from pplgen.story.pair import Pair

__all__ = ["SampledFit"]

RHAT = 1.01
"""R-hat above which chains have not mixed (Vehtari et al. 2021, https://doi.org/10.1214/20-BA1221)."""


class SampledFit(Fit):
    """What NUTS drew from the posterior; all of ``Fit`` but what is of the ELBO.

    Attributes
    ----------
    chains : Chains
        How the sampler went.
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
    def best(self) -> NoReturn:
        """Of a sampler there is none."""
        raise InputError("a fit by method='nuts' has no ELBO, no steps of optimisation and no best restart")

    @property
    def num_agreeing(self) -> NoReturn:
        """Of a sampler there are none."""
        raise InputError("a fit by method='nuts' has no restarts to agree")

    @property
    def draws(self) -> StoredDraws:
        """The guide that replays the draws."""
        guide: StoredDraws = self.pair.guide
        return guide

    def to_datatree(
        self, draws: int | None = None, *, groups: Iterable[str] | None = None, seed: int | None = None
    ) -> xr.DataTree:
        """Lay draws out for ArviZ, with the chains that they come from; see ``pplgen.posterior.datatree.to_datatree``.

        Parameters
        ----------
        draws
            How many of all chains, evenly spaced; ``None`` for all.
        groups, seed
            As for ``Fit.to_datatree``.
        """
        if not self.has_rows and (groups is None or set(groups) != {"posterior"}):
            raise InputError(f"{self._without_rows}, or ask for groups=['posterior'] alone")
        number = self.draws.thinned_size(self.draws.total if draws is None else check_count("draws", draws, minimum=2))
        facts = {"story": self.name, "seed": self.seed, "sampler": "NUTS", "divergences": self.chains.divergences}
        with self._ready(seed):
            return posterior.to_datatree(
                self.pair, self.columns, draws=number, groups=groups, attributes=facts, has_rows=self.has_rows
            )

    def summary(self, draws: int | None = None, *, tree: xr.DataTree | None = None) -> None:
        """Print mean, sd, 90 % interval, effective sample size and R-hat of every parameter, and how the sampler went.

        ``tree`` holds draws that are at hand; otherwise those that are stored are taken.
        """
        tree = self.to_datatree(draws, groups=["posterior"]) if tree is None else tree
        names = self.readable_sites(tree)
        table, left_out = posterior.printed_table(tree, names)
        lines = [f"{self.how}; NUTS on {self.path}"]
        if len(table):
            mixing = self._mixing(tree, names)
            table = table.assign(ess=mixing["ess_bulk"], **{"R-hat": mixing["r_hat"]})
            if (worst := mixing["r_hat"].max()) > RHAT:
                lines.append(f"R-hat {worst:.3f}: the chains have not mixed, or components have swapped names in some")
        print_table(f"{self.name}, sampled", table, *lines, *left_out)

    @property
    def _tensors(self) -> dict[str, Tensor]:
        """The draws, by chain."""
        chains = self.draws.num_chains
        return {f"draws/{name}": value.unflatten(0, (chains, -1)) for name, value in self.draws.draws.items()}

    @property
    def _training_facts(self) -> dict[str, Any]:
        """How the sampler went, for the header of a saved run."""
        return {"method": "nuts", "chains": vars(self.chains)}

    def mixing_checks(self) -> tuple[Check, ...]:
        """Judge the chains: R-hat, effective sample size, divergent draws."""
        tree = self.to_datatree(groups=["posterior"])
        mixing = self._mixing(tree, self.readable_sites(tree))
        return (
            sampler.split_rhat(mixing),
            sampler.effective_size(mixing, self.chains.num_chains),
            sampler.divergences(self.chains.divergences, self.draws.total),
        )

    def _checks(self, x: Any, seed: int | None) -> Checks:
        """Judge the chains, and run the checks that any posterior allows."""
        return Checks((*self.mixing_checks(), *super()._checks(x, seed)))

    def _mixing(self, tree: xr.DataTree, names: list[str]) -> pd.DataFrame:
        """Return R-hat and effective sample sizes of all scalars, components in the order of the first chain."""
        if not names:
            return pd.DataFrame(columns=["r_hat", "ess_bulk", "ess_tail"], dtype=float)
        posterior = tree["posterior"].to_dataset()[names]
        first = {str(name): torch.as_tensor(values.values[0]) for name, values in posterior.items()}
        ordered = relabel_dataset(posterior, first, component_axes(self.pair))
        with np.errstate(invalid="ignore"):  # of what is constant
            return arviz_stats.summary(ordered, kind="diagnostics", round_to="none").astype(float)

    @property
    def how(self) -> str:
        """How the sampler went, in words."""
        of = self.chains
        diverged = f", {of.divergences} of them divergent" if of.divergences else ""
        return f"{of.num_chains} chains of {of.num_draws:,} draws after {of.warm_up:,} of warm-up{diverged}"
