"""Convert draws of a trained pair to an ``xarray.DataTree`` with ArviZ's groups, and to a summary table."""

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
import xarray as xr
from torch import Tensor

from pplgen.errors import DataWarning, InputError, near_names
from pplgen.inference.empirical_guide import StoredDraws
from pplgen.posterior.draws import (
    Draws,
    draw_posterior,
    draw_predictive,
    draw_prior,
    draw_shared,
    row_densities,
)
from pplgen.posterior.model_traces import model_trace
from pplgen.posterior.observed_densities import observed_densities, plate_names
from pplgen.posterior.parameter_names import names_along, variable_name
from pplgen.posterior.predictive import draw_generated
from pplgen.story.pair import Pair

__all__ = ["GROUPS", "INTERVAL", "group_of", "printed_table", "row_latents", "summarise", "to_datatree"]

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
"""Groups of the tree, named as in ArviZ."""

INTERVAL = 0.9
"""Probability of the equal-tailed interval in the table."""

ROW_ANNOTATIONS = {"row_labels": ("row",), "row_weights": ("row",)}
"""Names and dimensions in the tree of the labels and weights of rows."""

MAX_SITE_SIZE = 2**25
"""Largest number of values of a per-row site in the default groups; 128 MiB in single precision."""


def to_datatree(
    pair: Pair,
    columns: Sequence[str],
    *,
    draws: int = 1000,
    groups: Iterable[str] | None = None,
    attributes: Mapping[str, Any] | None = None,
    has_rows: bool = True,
    exclude: Collection[str] = frozenset(),
) -> xr.DataTree:
    """Draw from the guide and convert the draws to ArviZ's layout; call it inside ``pair.isolated``.

    Parameters
    ----------
    pair
        A trained pair.
    columns
        Names of the data's columns, used as labels of the dimension ``feature``.
    draws
        Number of draws from the guide, the prior and each predictive distribution.
    groups
        Subset of ``GROUPS``, whatever their size: ``log_likelihood``, the predictive groups and per-row latents hold
        ``draws`` values for every row. ``None``: all that apply, except those of more than ``MAX_SITE_SIZE`` values,
        which a ``DataWarning`` lists.
    attributes
        Attributes of the tree's root.
    has_rows
        Whether the pair's data are all the rows; otherwise per-row quantities are left out.
    exclude
        Sites that are left out of the posterior.

    Returns
    -------
    xarray.DataTree
        Draws have the dimensions ``(chain, draw, ...)``, with one chain unless they come from a sampler.
        ``sample_stats`` holds ``lp`` = log p(x, theta) with discrete latents summed out, and ``log_q`` = log q(theta),
        both in nats. ``log_likelihood`` has one variable for each observed site: log p(x_i | theta) by row, or by the
        plates of the site, discrete latents summed out. A ``/`` in the name of a site becomes a dot.
    """
    requested = set(GROUPS if groups is None else groups)
    for name in sorted(requested - set(GROUPS)):
        raise InputError(f"group {name!r}: expected a subset of {', '.join(GROUPS)}{near_names(name, GROUPS)}")
    if groups is None:
        requested, exclude = _default_groups(pair, draws)
    chains = pair.guide.num_chains if isinstance(pair.guide, StoredDraws) else 1
    scored = bool(requested - {"posterior", "observed_data", "constant_data"})
    sampled = draw_posterior(pair, draws, scored=scored, exclude=exclude)
    content: dict[str, dict[str, Tensor]] = {}
    if "posterior" in requested:
        generated = draw_generated(pair.story, pair, sampled) if pair.story is not None and has_rows else {}
        per_row = frozenset() if has_rows else pair.structure.per_row
        content["posterior"] = generated | {n: values for n, values in sampled.sites.items() if n not in per_row}
    if "sample_stats" in requested:
        content["sample_stats"] = {"lp": sampled.lp}
        if not isinstance(pair.guide, StoredDraws):
            content["sample_stats"]["log_q"] = sampled.log_q
    if "log_likelihood" in requested and (densities := _log_likelihood(pair, sampled, draws)):
        content["log_likelihood"] = densities
    if "posterior_predictive" in requested:
        content["posterior_predictive"] = draw_predictive(pair, sampled)
    if requested & {"prior", "prior_predictive"}:
        drawn = zip(("prior", "prior_predictive"), _prior(pair, draws, exclude), strict=True)
        content |= {name: sites for name, sites in drawn if name in requested and sites}
    fixed = {"observed_data", "constant_data"} & requested
    content |= {name: sites for name, sites in _data_groups(pair).items() if name in fixed and sites}
    tree = arviz_base.from_dict(
        {
            group: {variable_name(name): _as_array(value, group, chains) for name, value in sites.items()}
            for group, sites in content.items()
        },
        dims={variable_name(name): dims for name, dims in _dims(pair, content).items()},
        coords=_coords(pair, columns),
    )
    tree.attrs.update(attributes or {})
    return tree


def _prior(pair: Pair, draws: int, exclude: Collection[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Draw latents and observed sites from the prior; nothing, with a warning, if it is improper."""
    try:
        return draw_prior(pair, draws, exclude=exclude)
    except NotImplementedError as error:
        warnings.warn(f"prior, prior_predictive: left out of the tree: {error}", DataWarning, stacklevel=4)
        return {}, {}


def _log_likelihood(pair: Pair, sampled: Draws, draws: int) -> dict[str, Tensor]:
    """Log densities in nats: of a story's rows; of each observed site of a bare pair."""
    latents = sampled.named(pair.structure.latent)
    if pair.story is None:
        return observed_densities(pair, latents, draws)
    if pair.structure.why_no_row_densities():
        return {}
    return {"_".join(pair.structure.observed): row_densities(pair, latents, draws, pair.data).log_likelihood}


def group_of(tree: xr.DataTree, name: str) -> xr.Dataset:
    """Return a group of a tree, or an empty dataset if there is none of that name."""
    return tree[name].to_dataset() if name in tree.children else xr.Dataset()


def row_latents(pair: Pair, data: tuple[Any, ...], draws: int) -> xr.Dataset:
    """Posterior of each row's latents, averaged over draws of the shared latents.

    Returns
    -------
    xarray.Dataset
        For a discrete latent the probabilities of its values, dimensions ``(row, value)``, the latter under the
        story's name for it; for a continuous latent its mean, and its standard deviation as ``<name>_sd``.
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
        raise InputError("the pair has no latent site with one value per row")
    dataset = xr.Dataset(variables)
    return dataset.assign_coords({dim: range(size) for dim, size in dataset.sizes.items()})


def summarise(tree: xr.DataTree, var_names: Sequence[str] | None = None) -> pd.DataFrame:
    """Return mean, sd and equal-tailed ``INTERVAL`` of every scalar in the posterior group, unrounded."""
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


def printed_table(tree: xr.DataTree, sites: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """Return the table of ``summarise`` for printing, and a note on the rows it omits.

    Entries above the diagonal of matrices that are symmetric in every draw are omitted.
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
        repeated |= set(itertools.compress(names_along(site, axes), above))
    if not repeated:
        return table, []
    kind = "symmetric matrix" if len(symmetric) == 1 else "symmetric matrices"
    note = f"{', '.join(symmetric)}: {kind}; entries above the diagonal are not shown"
    return table[~table.index.isin(repeated)], [note]


def _is_symmetric(draws: np.ndarray) -> bool:
    """Return whether draws of shape ``(num_chains, num_draws, ...)`` are symmetric matrices."""
    if draws.ndim < 4 or draws.shape[-1] != draws.shape[-2] or draws.shape[-1] < 2:
        return False
    return np.allclose(draws, draws.swapaxes(-1, -2), rtol=1e-5, atol=1e-6 * float(np.abs(draws).max()))


def _default_groups(pair: Pair, draws: int) -> tuple[set[str], set[str]]:
    """Return the groups within ``MAX_SITE_SIZE``, and the sites beyond it; warn about what is left out."""
    structure = pair.structure
    nodes = model_trace(pair).nodes
    candidates = [*structure.latent, *structure.deterministic, *structure.observed]
    sizes = {name: nodes[name]["value"].numel() for name in candidates if name in structure.per_row}
    large = {name for name, size in sizes.items() if draws * size > MAX_SITE_SIZE}
    groups = set(GROUPS)
    if large & set(structure.latent):
        # quantities conditional on per-row latents are left out with them
        groups = {"posterior", "observed_data", "constant_data"}
    elif large & set(structure.observed):
        groups -= {"posterior_predictive", "prior_predictive"}
    if draws * pair.num_rows > MAX_SITE_SIZE:
        groups -= {"log_likelihood"}
    if any(sizes.get(name, 0) > MAX_SITE_SIZE for name in structure.observed):
        groups -= {"observed_data"}
    parts = [*sorted(large - set(structure.observed)), *(group for group in GROUPS if group not in groups)]
    if parts:
        message = f"{', '.join(parts)}: too large for {pair.num_rows:,} rows and {draws:,} draws; left out of the tree"
        warnings.warn(f"{message}; use fewer draws, or name the groups", DataWarning, stacklevel=4)
    return groups, large


def _data_groups(pair: Pair) -> dict[str, dict[str, Tensor]]:
    """Return the groups of observed values and of constants: arguments, row annotations, the story's constants."""
    nodes = model_trace(pair).nodes
    observed = {name: nodes[name]["value"] for name in pair.structure.observed}
    constants = dict(pair.story.constants) if pair.story is not None else {}
    arguments = zip(_argument_names(pair.model), pair.data[: pair.num_arguments], strict=False)
    annotations = zip(ROW_ANNOTATIONS, pair.data[pair.num_arguments :], strict=False)
    for name, value in (*arguments, *annotations):
        if isinstance(value, Tensor) and not any(value is other for other in observed.values()):
            constants[name] = value
    return {"observed_data": observed, "constant_data": constants}


def _argument_names(model: Callable[..., Any]) -> list[str]:
    """Names of the positional arguments in a model's signature."""
    parameters = inspect.signature(model).parameters.values()
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def _as_array(value: Tensor, group: str, chains: int) -> np.ndarray:
    """Return a NumPy array, with a leading chain axis where the group holds draws; prior groups have one chain."""
    array = value.detach().cpu().numpy()
    if group in ("observed_data", "constant_data"):
        return array
    chains = 1 if group.startswith("prior") else chains
    return array.reshape(chains, len(array) // chains, *array.shape[1:])


def _dims(pair: Pair, content: Mapping[str, Mapping[str, Tensor]]) -> dict[str, list[str]]:
    """Dimension names: the story's; for a bare pair only ``row``. ArviZ names the others."""
    if pair.story is not None:
        dims = {name: list(names) for name, names in {**pair.story.dims, **ROW_ANNOTATIONS}.items()}
        # the posterior group holds draws, without the axis of the values' probabilities
        return dims | {name: dims[name][:-1] for name in pair.structure.guide_enumerated if name in dims}
    dims = plate_names(pair) if "log_likelihood" in content else {}
    return dims | {name: ["row"] for name in ROW_ANNOTATIONS}


def _coords(pair: Pair, columns: Sequence[str]) -> dict[str, Any]:
    """Coordinate labels of the named dimensions; integers where there are none."""
    return {} if pair.story is None or not columns else dict(pair.story.labels(columns))
