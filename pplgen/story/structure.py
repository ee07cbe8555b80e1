"""What one run of a model and a guide tells about them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoNormal, init_to_uniform
from torch import Tensor

from pplgen.errors import InputError

__all__ = ["Structure", "inspect_traces", "number_of_rows", "with_auto_normal"]

ROW_PLATE = "data"


@dataclass(frozen=True)
class Structure:
    """Sites and plates of a pair."""

    plate_depth: int
    """Number of batch dimensions that plates take."""
    row_plate: str | None
    """The plate of the rows: the one called ``data``, else the only one as long as the data with observed sites in it.
    ``None`` without either, and where the model draws subsamples of its rows itself."""
    latent: tuple[str, ...]
    """Latent sites that the guide draws, in its order."""
    enumerated: tuple[str, ...]
    """Discrete latent sites of the model that the guide leaves out; they are summed out."""
    guide_enumerated: tuple[str, ...]
    """Those discrete sites among ``latent`` that the guide sums out itself."""
    deterministic: tuple[str, ...]
    """Deterministic sites of the model, but for those of single rows that may depend on what is summed out."""
    observed: tuple[str, ...]
    """Observed sites of the model that hold data."""
    factors: tuple[str, ...]
    """Terms that ``pyro.factor`` adds to the log density."""
    per_row: frozenset[str]
    """Sites of the model inside the row plate."""

    @property
    def enumerates(self) -> bool:
        """Whether any discrete site, of the model or the guide, is summed out."""
        return bool(self.enumerated or self.guide_enumerated)

    @property
    def shared_latent(self) -> tuple[str, ...]:
        """Latent sites that all rows share."""
        return tuple(name for name in self.latent if name not in self.per_row)

    @property
    def row_latent(self) -> tuple[str, ...]:
        """Latent sites of single rows."""
        return tuple(name for name in self.latent if name in self.per_row)

    def why_no_row_densities(self) -> str | None:
        """Say in a sentence why densities of single rows are not defined; ``None`` where they are."""
        if self.row_plate is None:
            return "densities per row need a model whose rows live in pyro.plate('data', ...), all of them in each run"
        if shared := [name for name in self.enumerated if name not in self.per_row]:
            return f"densities per row are not defined: all rows share {shared[0]!r}, which is summed out"
        return None


def number_of_rows(data: tuple[Any, ...]) -> int | None:
    """Length of the first argument, where it is a tensor with axes."""
    return len(data[0]) if data and isinstance(data[0], Tensor) and data[0].ndim else None


def with_auto_normal(model: Callable[..., Any], data: tuple[Any, ...]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Mark the model's discrete latents for enumeration and give it a mean-field normal guide over the others.

    Locations start uniformly in (-2, 2) on the unconstrained scale, so that restarts differ.
    """
    trace = poutine.trace(model).get_trace(*data)
    nodes = {name: trace.nodes[name] for name in trace.stochastic_nodes}
    latent = {name: node["fn"] for name, node in nodes.items() if not poutine.util.site_is_subsample(node)}
    discrete = [name for name, fn in latent.items() if not fn.has_rsample and fn.support.is_discrete]
    for name in discrete:
        if not latent[name].has_enumerate_support:
            kind = type(latent[name]).__name__
            raise InputError(f"latent site {name!r} is {kind}, which cannot be summed out; give a guide for it")
    if discrete:
        model = config_enumerate(model, default="parallel")
    if len(discrete) == len(latent):
        raise InputError("the model has no continuous latent site, so there is nothing to fit; give a guide")
    return model, AutoNormal(poutine.block(model, hide=discrete), init_loc_fn=init_to_uniform)


def inspect_traces(guide_trace: poutine.Trace, model_trace: poutine.Trace, data: tuple[Any, ...]) -> Structure:
    """Sort the sites of a run by their part in inference."""
    sites = {name: node for name, node in model_trace.nodes.items() if node["type"] == "sample"}
    sites = {name: node for name, node in sites.items() if not poutine.util.site_is_subsample(node)}
    deterministic = tuple(name for name, node in sites.items() if node["infer"].get("_deterministic"))
    given = [name for name, node in sites.items() if node["is_observed"] and name not in deterministic]
    # pyro.factor observes an empty value
    observed = tuple(name for name in given if sites[name]["value"].numel())
    latent = tuple(name for name in guide_trace.stochastic_nodes if name in sites)
    enumerated = tuple(name for name in sites if name not in {*deterministic, *given, *latent})
    for name in enumerated:
        if sites[name]["infer"].get("enumerate") != "parallel":
            raise InputError(
                f"site {name!r} is in the model but not in the guide; add it there, or mark it "
                "infer={'enumerate': 'parallel'} if it is discrete"
            )
    frames = {frame for node in sites.values() for frame in node["cond_indep_stack"] if frame.vectorized}
    row_plate = _row_plate(frames, [sites[name] for name in observed], number_of_rows(data))
    per_row = frozenset(name for name, node in sites.items() if row_plate in _plates(node))
    return Structure(
        plate_depth=max((-frame.dim for frame in frames), default=0),
        row_plate=row_plate,
        latent=latent,
        enumerated=enumerated,
        guide_enumerated=tuple(name for name in latent if guide_trace.nodes[name]["infer"].get("enumerate")),
        deterministic=tuple(name for name in deterministic if not (enumerated and name in per_row)),
        observed=observed,
        factors=tuple(name for name in given if name not in observed),
        per_row=per_row,
    )


def _row_plate(frames: set[Any], observed: list[Any], rows: int | None) -> str | None:
    """Find the plate of the rows; see ``Structure.row_plate``."""
    lengths = {frame.name: frame.size for frame in frames}
    holding = {name for node in observed for name in _plates(node)}
    as_long = [name for name, length in lengths.items() if length == rows and name in holding]
    name = ROW_PLATE if ROW_PLATE in lengths else as_long[0] if len(as_long) == 1 else None
    subsampled = any(f.name == name and f.full_size not in (None, f.size) for f in frames)
    return None if subsampled else name


def _plates(node: Any) -> set[str]:
    """Names of the plates around a site."""
    return {frame.name for frame in node["cond_indep_stack"]}
