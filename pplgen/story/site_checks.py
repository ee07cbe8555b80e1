"""Checks of the sites of a model and a guide at their first evaluation, as by Pyro with validation enabled."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.util import check_site_shape

from pplgen.errors import InputError, first_line
from pplgen.story.structure import sample_sites, unwrap

__all__ = ["check_sites"]


@torch.no_grad()
def check_sites(model: poutine.Trace, guide: poutine.Trace) -> None:
    """Check supports of observations, shapes of log densities, and that each site of the guide is in the model.

    Parameters
    ----------
    model
        Trace of the model, replayed against the guide's; nothing is enumerated.
    guide
        Trace of the guide.

    Raises
    ------
    InputError
        Names the site, and what it was expected to be.
    """
    sampled, guided = sample_sites(model), sample_sites(guide)
    for name, node in guided.items():
        if name not in sampled and not node["infer"].get("is_auxiliary"):
            raise InputError(
                f"site {name!r} is in the guide but not in the model; remove it, or mark it "
                "infer={'is_auxiliary': True}"
            )
    for node in (*sampled.values(), *guided.values()):
        _check_log_density(node)


def _check_log_density(node: Any) -> None:
    """Raise ``InputError`` if a site has no log density, or one whose shape does not match its plates."""
    name, plates = node["name"], [frame for frame in node["cond_indep_stack"] if frame.dim is not None]
    try:
        log_prob = node["fn"].log_prob(node["value"], *node["args"], **node["kwargs"])
    except ValueError as error:
        raise InputError(_outside_support(node) or f"site {name!r}: {first_line(error)}") from None
    log_prob = scale_and_mask(log_prob, mask=node["mask"])
    try:
        check_site_shape({**node, "log_prob": log_prob}, max_plate_nesting=math.inf)
    except ValueError as error:
        sizes = tuple(frame.size for frame in sorted(plates, key=lambda frame: frame.dim))
        origin = "its plates " + ", ".join(f"{frame.name!r} of {frame.size}" for frame in plates)
        raise InputError(
            f"site {name!r}: its log density has shape {tuple(log_prob.shape)}, expected {sizes} from "
            f"{origin if plates else 'no plate'}; squeeze or reshape its arguments or data, call .to_event, or add a "
            f"plate ({first_line(error)})"
        ) from None


def _outside_support(node: Any) -> str | None:
    """Describe the first value outside the support of a site's distribution; ``None`` if there is none."""
    fn, value = node["fn"], node["value"]
    try:
        valid = torch.as_tensor(fn.support.check(value))
    except (NotImplementedError, AttributeError, RuntimeError):
        return None
    if valid.all():
        return None
    place = tuple(torch.argwhere(~valid)[0].tolist())
    entry = value[place] if valid.ndim <= value.ndim else value
    shown = f"{float(entry):g}" if entry.numel() == 1 else str(entry.tolist())
    what = "observed site" if node["is_observed"] else "site"
    return (
        f"{what} {node['name']!r}{', entry ' + ', '.join(map(str, place)) + ',' if place else ''} is {shown}, outside "
        f"the support of its distribution {type(unwrap(fn)).__name__}: {fn.support}"
    )
