"""Sites and plates of a model and a guide, from their traces."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pyro import poutine
from pyro.distributions import ExpandedDistribution, Independent, MaskedDistribution

from pplgen.errors import InputError
from pplgen.story.rows import RowAxes, row_plate_of

__all__ = [
    "Structure",
    "inspect_traces",
    "plates_of_site",
    "sample_sites",
    "unwrap",
    "vectorised_plates",
]


@dataclass(frozen=True)
class Structure:
    """Sites and plates of a pair."""

    plate_depth: int
    """Number of batch dimensions that plates occupy (``max_plate_nesting``)."""
    row_plate: str | None
    """The row plate, see ``pplgen.story.rows``. ``None`` without one, and if the model subsamples its rows."""
    row_axes: RowAxes
    """Axis of each argument that counts the rows."""
    latent: tuple[str, ...]
    """Latent sites that the guide samples, in its order."""
    enumerated: tuple[str, ...]
    """Discrete latent sites of the model that are not in the guide and are summed out."""
    guide_enumerated: tuple[str, ...]
    """Discrete sites among ``latent`` that are enumerated in the guide."""
    deterministic: tuple[str, ...]
    """Deterministic sites of the model, except those in the row plate that may depend on enumerated sites."""
    observed: tuple[str, ...]
    """Observed sites of the model that hold data."""
    factors: tuple[str, ...]
    """Terms that ``pyro.factor`` adds to the log density."""
    per_row: frozenset[str]
    """Sites of the model inside the row plate."""
    subsamples: bool = False
    """Whether a plate holds a random subsample of its rows."""

    @property
    def enumerates(self) -> bool:
        """Whether any discrete site, of the model or the guide, is enumerated."""
        return bool(self.enumerated or self.guide_enumerated)

    @property
    def shared_latent(self) -> tuple[str, ...]:
        """Latent sites outside the row plate."""
        return tuple(name for name in self.latent if name not in self.per_row)

    @property
    def row_latent(self) -> tuple[str, ...]:
        """Latent sites inside the row plate."""
        return tuple(name for name in self.latent if name in self.per_row)

    def unknown_latents(self, model_trace: poutine.Trace) -> list[str]:
        """Return the latents of a run of the model that the pair did not have when it was inspected."""
        known = {*self.latent, *self.enumerated}
        return [n for n, node in sample_sites(model_trace).items() if not (node["is_observed"] or n in known)]

    def why_no_row_densities(self) -> str | None:
        """Explain why per-row densities are not defined; ``None`` if they are."""
        if self.row_plate is None:
            return "densities per row require a model with all rows in a plate, without subsampling; rows= names it"
        if shared := [name for name in self.enumerated if name not in self.per_row]:
            return f"densities per row are not defined: the enumerated site {shared[0]!r} is shared by all rows"
        return None


def sample_sites(trace: poutine.Trace) -> dict[str, Any]:
    """Return the sample sites of a trace by name, without the subsamples of plates."""
    sites = ((name, node) for name, node in trace.nodes.items() if node["type"] == "sample")
    return {name: node for name, node in sites if not poutine.util.site_is_subsample(node)}


def plates_of_site(node: Any) -> dict[str, Any]:
    """Return the vectorised plates of a site by name."""
    return {frame.name: frame for frame in node["cond_indep_stack"] if frame.vectorized}


def vectorised_plates(sites: Iterable[Any]) -> tuple[set[Any], int]:
    """Return the vectorised plates of sites, and the number of batch dimensions that they occupy."""
    frames = {frame for node in sites for frame in plates_of_site(node).values()}
    return frames, max((-frame.dim for frame in frames), default=0)


def unwrap(distribution: Any, kinds: Any = Independent | MaskedDistribution | ExpandedDistribution) -> Any:
    """Return the distribution inside (nested) wrappers of these kinds."""
    while isinstance(distribution, kinds):
        distribution = distribution.base_dist
    return distribution


def inspect_traces(
    guide_trace: poutine.Trace, model_trace: poutine.Trace, data: tuple[Any, ...], rows: str | None = None
) -> Structure:
    """Classify the sites of traces by their role in inference; ``rows`` names the row plate."""
    sites = sample_sites(model_trace)
    deterministic = tuple(name for name, node in sites.items() if node["infer"].get("_deterministic"))
    conditioned = [name for name, node in sites.items() if node["is_observed"] and name not in deterministic]
    # pyro.factor observes an empty value
    observed = tuple(name for name in conditioned if sites[name]["value"].numel())
    latent = tuple(name for name in guide_trace.stochastic_nodes if name in sites)
    enumerated = tuple(name for name in sites if name not in {*deterministic, *conditioned, *latent})
    for name in enumerated:
        if sites[name]["infer"].get("enumerate") != "parallel":
            raise InputError(
                f"site {name!r} is in the model but not in the guide; add it there, or mark it "
                "infer={'enumerate': 'parallel'} if it is discrete"
            )
    frames, plate_depth = vectorised_plates(sites.values())
    frame = row_plate_of(frames, [sites[name] for name in observed], data, rows)
    row_plate = None if frame is None or _subsamples(frame) else frame.name
    per_row = frozenset(name for name, node in sites.items() if row_plate in _plates(node))
    return Structure(
        plate_depth=plate_depth,
        row_plate=row_plate,
        row_axes=RowAxes.of(data, None if frame is None else frame.size),
        latent=latent,
        enumerated=enumerated,
        guide_enumerated=tuple(name for name in latent if guide_trace.nodes[name]["infer"].get("enumerate")),
        deterministic=tuple(name for name in deterministic if not (enumerated and name in per_row)),
        observed=observed,
        factors=tuple(name for name in conditioned if name not in observed),
        per_row=per_row,
        subsamples=any(map(_subsamples, frames)),
    )


def _subsamples(frame: Any) -> bool:
    """Whether a plate holds a random subsample of its rows."""
    return frame.full_size not in (None, frame.size)


def _plates(node: Any) -> set[str]:
    """Names of a site's plates."""
    return {frame.name for frame in node["cond_indep_stack"]}
