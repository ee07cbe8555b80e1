"""Rows of a pair: its row plate, and the axis of each argument that counts its rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pplgen.errors import InputError

__all__ = ["RowAxes", "row_plate_of"]

ROW_PLATE = "data"


@dataclass(frozen=True)
class RowAxes:
    """Axis of each argument of a pair that counts the rows."""

    axes: tuple[int | None, ...] = ()
    """``None`` for an argument without rows. Labels and weights of rows, which follow the arguments, have axis 0."""

    @classmethod
    def of(cls, data: tuple[Any, ...], num_rows: int | None) -> RowAxes:
        """Find the axes of a length: an argument's first axis, or else its only one that has it.

        Without such an axis, as where a plate subsamples its rows, rows are the entries of the first argument.
        """
        axes = [None if num_rows is None else _axis_of(value, num_rows) for value in data]
        first = _first_length(data)
        if first is not None and all(axis is None for axis in axes):
            axes = [_axis_of(value, first) for value in data]
        return cls(tuple(axes))

    def count(self, data: tuple[Any, ...]) -> int | None:
        """Return the number of rows of arguments, ``None`` if no argument has any."""
        pairs = zip(data, self.axes, strict=False)
        return next((value.shape[axis] for value, axis in pairs if axis is not None), None)

    def select(self, data: tuple[Any, ...], chosen: Tensor | slice) -> tuple[Any, ...]:
        """Select rows of all arguments that have them."""
        axes = (*self.axes, *[0] * (len(data) - len(self.axes)))
        return tuple(_selected(value, axis, chosen) for value, axis in zip(data, axes, strict=False))


def row_plate_of(frames: Iterable[Any], observed: list[Any], data: tuple[Any, ...], given: str | None) -> Any:
    """Return the row plate, ``None`` if there is none.

    It is the one named ``given``, else the one named ``data``, else the outermost of the plates around all observed
    sites whose size is the length of some argument's axis, else the only one of the first argument's length around any.

    Parameters
    ----------
    frames
        Vectorised plates of the model.
    observed
        Observed sites.
    data
        Arguments of the model.
    given
        Name of the row plate.

    Raises
    ------
    InputError
        If the given name is not of a plate around an observed site.
    """
    plates = {frame.name: frame for frame in frames}
    # the stack of a site begins with the outermost plate
    around = [[frame.name for frame in node["cond_indep_stack"] if frame.name in plates] for node in observed]
    if given is not None:
        if given not in {name for names in around for name in names}:
            raise InputError(f"rows={given!r}: expected a plate around an observed site, among {sorted(plates)}")
        return plates[given]
    if ROW_PLATE in plates:
        return plates[ROW_PLATE]
    lengths = {length for value in data if isinstance(value, Tensor) for length in value.shape}
    common = [name for name in (around[0] if around else []) if all(name in names for names in around)]
    if fitting := [name for name in common if plates[name].size in lengths]:
        return plates[fitting[0]]
    candidates = {name for names in around for name in names if plates[name].size == _first_length(data)}
    return plates[candidates.pop()] if len(candidates) == 1 else None


def _first_length(data: tuple[Any, ...]) -> int | None:
    """Return the length of the first argument, ``None`` if it is not a tensor with axes."""
    return len(data[0]) if data and isinstance(data[0], Tensor) and data[0].ndim else None


def _axis_of(value: Any, num_rows: int) -> int | None:
    """Return the axis of an argument with a length, ``None`` if none, or several but the first, have it."""
    axes = [axis for axis, length in enumerate(value.shape) if length == num_rows] if isinstance(value, Tensor) else []
    return axes[0] if axes and (axes[0] == 0 or len(axes) == 1) else None


def _selected(value: Any, axis: int | None, chosen: Tensor | slice) -> Any:
    """Select entries along an axis."""
    if axis is None or not isinstance(value, Tensor):
        return value
    index = chosen.to(value.device) if isinstance(chosen, Tensor) else chosen
    return value[(slice(None),) * axis + (index,)]
