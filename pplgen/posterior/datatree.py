"""A trained pair as an ``xarray.DataTree`` with ArviZ's groups and named dimensions, and as a table."""

from __future__ import annotations

import inspect
import itertools
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import arviz_base
import arviz_stats
import numpy as np
import pandas as pd
import pyro
import torch
import xarray as xr
from pyro import poutine
from torch import Tensor

from pplgen.errors import DataWarning, InputError, near_names
from pplgen.inference.stored_draws import StoredDraws
from pplgen.posterior.draws import (
    draw_generated,
    draw_posterior,
    draw_predictive,
    draw_prior,
    draw_shared,
    row_densities,
)
from pplgen.posterior.names import entries_along
from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair

__all__ = ["GROUPS", "INTERVAL", "group_of", "printed", "row_latents", "summarise", "to_datatree"]

GROUPS = (
    "posterior",
    "sample_stats",
    "log_likelihood",
    "posterior_predictive",
    "prior",
    "prior_predictive",
    "observed_data",
    "constant_data",
)
"""Groups of the tree, ArviZ's names."""

INTERVAL = 0.9
"""Probability of the equal-tailed interval in the table."""

FACTS = {"row_labels": ("row",), "row_weights": ("row",)}
"""Names and dimensions in the tree of what is known of rows beside their columns."""


LARGEST = 2**25
"""Numbers that a site of single rows has in a group, where these are not named; 128 MiB in single precision."""


def to_datatree(
    pair: Pair,
    columns: Sequence[str],
    *,
    draws: int = 1000,
    groups: Iterable[str] | None = None,
    attributes: Mapping[str, Any] | None = None,
    has_rows: bool = True,
    without: Collection[str] = frozenset(),
) -> xr.DataTree:
    """Draw from the guide and lay the draws out for ArviZ; call it inside ``pair.isolated``.

    Parameters
    ----------
    pair
        A trained pair.
    columns
        Names of the data's columns, labels of the dimensions called ``feature``.
    draws
        Draws from the guide, from the prior, and of each predictive distribution.
    groups
        Some of ``GROUPS``, however large: ``log_likelihood``, the predictive groups and latents of single rows hold
        ``draws`` values for every row. ``None``: all that apply but those of more than ``LARGEST`` numbers, of which a
        ``DataWarning`` tells.
    attributes
        Kept as attributes of the tree's root.
    has_rows
        Whether the pair's data are all the rows; what depends on single rows is left out otherwise.
    without
        Sites that are left out of the posterior.

    Returns
    -------
    xarray.DataTree
        Draws carry the dimensions ``(chain, draw, ...)`` with one chain, or a sampler's. ``sample_stats`` holds ``lp``
        = log p(x, theta) with discrete latents summed out, and ``log_q`` = log q(theta), both in nats.
        ``log_likelihood`` has one value per row: log p(x_i | theta), discrete latents summed out.
    """
    wanted = set(GROUPS if groups is None else groups)
    for name in sorted(wanted - set(GROUPS)):
        raise InputError(f"group {name!r}: expected some of {', '.join(GROUPS)}{near_names(name, GROUPS)}")
    if groups is None:
        wanted, without = _affordable(pair, draws)
    chains = pair.guide.num_chains if isinstance(pair.guide, StoredDraws) else 1
    scored = bool(wanted - {"posterior", "observed_data", "constant_data"})
    sampled = draw_posterior(pair, draws, scored=scored, without=without)
    content: dict[str, dict[str, Tensor]] = {}
    if "posterior" in wanted:
        generated = draw_generated(pair.story, pair, sampled) if pair.story is not None and has_rows else {}
        per_row = frozenset() if has_rows else pair.structure.per_row
        content["posterior"] = generated | {n: values for n, values in sampled.sites.items() if n not in per_row}
    if "sample_stats" in wanted:
        content["sample_stats"] = {"lp": sampled.lp}
        if not isinstance(pair.guide, StoredDraws):
            content["sample_stats"]["log_q"] = sampled.log_q
    if "log_likelihood" in wanted and pair.structure.why_no_row_densities() is None:
        rows = row_densities(pair, sampled.named(pair.structure.latent), draws, pair.data).log_likelihood
        content["log_likelihood"] = {"_".join(pair.structure.observed): rows}
    if "posterior_predictive" in wanted:
        content["posterior_predictive"] = draw_predictive(pair, sampled)
    if wanted & {"prior", "prior_predictive"}:
        latent, observed = draw_prior(pair, draws, without=without)
        content |= {
            name: sites for name, sites in (("prior", latent), ("prior_predictive", observed)) if name in wanted
        }
    fixed = {"observed_data", "constant_data"} & wanted
    content |= {name: sites for name, sites in _given(pair).items() if name in fixed and sites}
    tree = arviz_base.from_dict(
        {group: {name: _as_array(value, group, chains) for name, value in content[group].items()} for group in content},
        dims=_dims(pair, content),
        coords=_coords(pair, columns),
    )
    tree.attrs.update(attributes or {})
    return tree


def group_of(tree: xr.DataTree, name: str) -> xr.Dataset:
    """Return a group of a tree, an empty one where it has none of that name."""
    return tree[name].to_dataset() if name in tree.children else xr.Dataset()


def row_latents(pair: Pair, data: tuple[Any, ...], draws: int) -> xr.Dataset:
    """Posterior of each row's latents, averaged over draws of everything else.

    Returns
    -------
    xarray.Dataset
        A discrete latent becomes the probabilities of its values, dimensions ``(row, value)``, the latter by the
        story's name for it. A continuous latent becomes its mean, with its standard deviation as ``<name>_sd``.
    """
    if data is not pair.data:
        pair.check_amortised()
    scores = row_densities(pair, draw_shared(pair, draws), draws, data)
    names = {} if pair.story is None else pair.story.dims
    variables: dict[str, Any] = {}
    for name, probabilities in scores.probabilities.items():
        variables[name] = (names.get(name, ("row", f"{name}_value")), probabilities.mean(dim=0).cpu().numpy())
    for name, drawn in scores.drawn.items():
        values = drawn.float()
        dims = names.get(name, ("row", *(f"{name}_dim_{d}" for d in range(values.ndim - 2))))
        variables[name] = (dims, values.mean(dim=0).cpu().numpy())
        variables[f"{name}_sd"] = (dims, values.std(dim=0).cpu().numpy())
    if not variables:
        raise InputError("the pair has no latent site with one value to a row")
    dataset = xr.Dataset(variables)
    return dataset.assign_coords({dim: range(size) for dim, size in dataset.sizes.items()})


def summarise(tree: xr.DataTree, var_names: Sequence[str] | None = None) -> pd.DataFrame:
    """Return mean, sd and equal-tailed interval (``INTERVAL``) of every scalar in the posterior group, unrounded."""
    if var_names is not None and not list(var_names):
        return pd.DataFrame(columns=["mean", "sd", "lower", "upper"], dtype=float)
    table = arviz_stats.summary(
        tree,
        var_names=None if var_names is None else list(var_names),
        kind="stats",
        ci_prob=INTERVAL,
        ci_kind="eti",
        round_to="none",
    )
    return pd.DataFrame(table).astype(float)


def printed(tree: xr.DataTree, sites: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """Return the table of ``summarise`` as a terminal shows it, and a line that says what it leaves out.

    Of a matrix that is symmetric in every draw, entries above the diagonal repeat those below.
    """
    table = summarise(tree, sites).set_axis(["mean", "sd", "5 %", "95 %"], axis=1)
    symmetric, repeated = [], set()
    for site in sites:
        values = group_of(tree, "posterior")[site]
        if not _is_symmetric(values.values):
            continue
        symmetric.append(site)
        axes = [
            list(values[dim].values) if dim in values.coords else range(values.sizes[dim]) for dim in values.dims[2:]
        ]
        above = (index[-1] > index[-2] for index in np.ndindex(values.shape[2:]))
        repeated |= set(itertools.compress(entries_along(site, axes), above))
    if not repeated:
        return table, []
    kind = "a symmetric matrix, of which" if len(symmetric) == 1 else "symmetric matrices, of which"
    return table[~table.index.isin(repeated)], [f"{', '.join(symmetric)}: {kind} no entry above the diagonal is shown"]


def _is_symmetric(draws: np.ndarray) -> bool:
    """Tell whether draws of shape ``(num_chains, num_draws, ...)`` are matrices that are their own transposes."""
    if draws.ndim < 4 or draws.shape[-1] != draws.shape[-2] or draws.shape[-1] < 2:
        return False
    return np.allclose(draws, draws.swapaxes(-1, -2), rtol=1e-5, atol=1e-6 * float(np.abs(draws).max()))


def _affordable(pair: Pair, draws: int) -> tuple[set[str], set[str]]:
    """Return groups of bearable size, and sites that are too large for them; warn of what is left out."""
    structure = pair.structure
    with seeded(0), torch.no_grad(), pyro.validation_enabled(False):
        nodes = poutine.trace(pair.model).get_trace(*pair.data).nodes
    candidates = [*structure.latent, *structure.deterministic, *structure.observed]
    sizes = {name: nodes[name]["value"].numel() for name in candidates if name in structure.per_row}
    large = {name for name, size in sizes.items() if draws * size > LARGEST}
    groups = set(GROUPS)
    if large & set(structure.latent):
        # what is conditional on the latents of rows goes with them
        groups = {"posterior", "observed_data", "constant_data"}
    elif large & set(structure.observed):
        groups -= {"posterior_predictive", "prior_predictive"}
    if draws * pair.num_rows > LARGEST:
        groups -= {"log_likelihood"}
    if any(sizes.get(name, 0) > LARGEST for name in structure.observed):
        groups -= {"observed_data"}
    parts = [*sorted(large - set(structure.observed)), *(group for group in GROUPS if group not in groups)]
    if parts:
        message = (
            f"{', '.join(parts)}: too much for {pair.num_rows:,} rows and {draws:,} draws, and left out of the tree"
        )
        warnings.warn(f"{message}; ask for fewer draws, or for groups by name", DataWarning, stacklevel=4)
    return groups, large


def _given(pair: Pair) -> dict[str, dict[str, Tensor]]:
    """Sort what was given into observed values and constants: other arguments, and a story's own."""
    with torch.no_grad(), pyro.validation_enabled(False):
        trace = poutine.trace(pair.model).get_trace(*pair.data)
    observed = {name: trace.nodes[name]["value"] for name in pair.structure.observed}
    constants = dict(pair.story.constants) if pair.story is not None else {}
    arguments = zip(_argument_names(pair.model), pair.data[: pair.num_arguments], strict=False)
    facts = zip(FACTS, pair.data[pair.num_arguments :], strict=False)
    for name, value in (*arguments, *facts):
        if isinstance(value, Tensor) and not any(value is other for other in observed.values()):
            constants[name] = value
    return {"observed_data": observed, "constant_data": constants}


def _argument_names(model: Callable[..., Any]) -> list[str]:
    """Names of a model's positional arguments, as far as it tells them."""
    parameters = inspect.signature(model).parameters.values()
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def _as_array(value: Tensor, group: str, chains: int) -> np.ndarray:
    """Return a NumPy array, with a chain axis in front where the group holds draws; those of the prior are of none."""
    array = value.detach().cpu().numpy()
    if group in ("observed_data", "constant_data"):
        return array
    chains = 1 if group.startswith("prior") else chains
    return array.reshape(chains, len(array) // chains, *array.shape[1:])


def _dims(pair: Pair, content: Mapping[str, Mapping[str, Tensor]]) -> dict[str, list[str]]:
    """Names of axes: a story's own; for a bare pair, the rows of what it observed. ArviZ names the others."""
    if pair.story is not None:
        dims = {name: list(names) for name, names in {**pair.story.dims, **FACTS}.items()}
        # drawn, it has a value; elsewhere, probabilities of its values
        return dims | {name: dims[name][:-1] for name in pair.structure.guide_enumerated if name in dims}
    rows = content.get("log_likelihood", {})
    return {name: ["row"] for name in [*rows, *FACTS]}


def _coords(pair: Pair, columns: Sequence[str]) -> dict[str, Any]:
    """Labels of the named dimensions: columns for features, numbers for the rest by default."""
    return {} if pair.story is None or not columns else dict(pair.story.labels(columns))
