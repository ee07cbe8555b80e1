"""Checks of sites at the first evaluation and after the last, as by Pyro with validation enabled."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer.util import is_validation_enabled
from pyro.util import check_site_shape
from torch.distributions import constraints

from pplgen.errors import InputError, first_line
from pplgen.story.isolation import seeded
from pplgen.story.structure import sample_sites, unwrap

__all__ = ["check_sites", "checked_traces", "invalid_draw"]

NUM_DRAWS = 3
"""Draws at the fitted parameters that are checked."""


def checked_traces(
    model: Callable[..., Any], guide: Callable[..., Any], data: tuple[Any, ...]
) -> tuple[poutine.Trace, poutine.Trace]:
    """Run the guide, then the model at its draws, and check their sites.

    Returns
    -------
    tuple
        Traces of guide and model.

    Raises
    ------
    InputError
        As ``check_sites``, or for a draw of the guide with which the model fails because its shape is wrong.
    """
    guide_trace = poutine.trace(guide).get_trace(*data)
    tracer = poutine.trace(poutine.replay(model, guide_trace))
    try:
        model_trace = tracer.get_trace(*data)
    except (RuntimeError, ValueError) as error:
        for name, node in sample_sites(tracer.msngr.trace).items():
            given, expected = tuple(node["value"].shape), tuple(node["fn"].shape())
            if name in guide_trace.nodes and not _broadcasts(given, expected):
                raise InputError(
                    f"site {name!r}: the guide draws a value of shape {given}; expected {expected}, the shape of the "
                    "model's distribution"
                ) from error
        raise
    check_sites(model_trace, guide_trace)
    return guide_trace, model_trace


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


def _broadcasts(given: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Whether a shape can be broadcast to another."""
    try:
        return tuple(torch.broadcast_shapes(given, expected)) == expected
    except RuntimeError:
        return False


@torch.no_grad()
def invalid_draw(model: Callable[..., Any], guide: Callable[..., Any], data: tuple[Any, ...]) -> str | None:
    """Describe what Pyro's validation, if enabled, refuses of some draws at the present parameters, else ``None``.

    Sums of probabilities and properties of matrices, which hold up to rounding, are not examined.
    """
    for seed in range(NUM_DRAWS if is_validation_enabled() else 0):
        try:
            with seeded(seed):
                for node in _nodes(model, guide, data):
                    node["fn"].log_prob(node["value"], *node["args"], **node["kwargs"])
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            continue
        except ValueError:
            # again without validation, to find the site even if its distribution could not be made
            with seeded(seed), pyro.validation_enabled(False):
                faults = (_invalid_parameter(node) or _invalid_value(node) for node in _nodes(model, guide, data))
                if fault := next(filter(None, faults), None):
                    return fault
    return None


def _nodes(model: Callable[..., Any], guide: Callable[..., Any], data: tuple[Any, ...]) -> Iterator[Any]:
    """Iterate over the sites of the guide, then over the model's at its draws."""
    guide_trace = poutine.trace(guide).get_trace(*data)
    yield from sample_sites(guide_trace).values()
    yield from sample_sites(poutine.trace(poutine.replay(model, guide_trace)).get_trace(*data)).values()


def _invalid_value(node: Any) -> str | None:
    """Describe a value outside the support, if that is a set of numbers."""
    try:
        support = node["fn"].support
    except NotImplementedError:
        return None
    return _outside_support(node) if _is_of_numbers(support) else None


def _invalid_parameter(node: Any) -> str | None:
    """Describe a parameter of a site's distribution that is a number outside its range."""
    fn = unwrap(node["fn"])
    for name, constraint in fn.arg_constraints.items():
        # others are computed from these
        if name not in vars(fn) or not _is_of_numbers(constraint):
            continue
        value = torch.as_tensor(getattr(fn, name))
        valid = constraint.check(value)
        if not bool(valid.all()):
            shown = f"{float(value[~valid].reshape(-1)[0]):g}"
            return (
                f"site {node['name']!r}: {name!r} of its distribution {type(fn).__name__} is {shown}; expected "
                f"{constraint}, as a constraint of a parameter ensures"
            )
    return None


def _is_of_numbers(constraint: Any) -> bool:
    """Whether a constraint is on each number alone."""
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return not constraints.is_dependent(constraint) and constraint.event_dim == 0
