"""Kinds of columns: parsing the option, and checks of entries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.distributions import constraints

from pplgen.story.base import InputError

KINDS = ("normal", "student", "poisson", "binary")
"""Kinds of columns, besides ``categoricalC`` with C categories."""


def parse_kinds(columns: str | Sequence[str], num_features: int) -> list[str]:
    """Return the kind of each column, given one or all; raise ``InputError`` for an unknown kind."""
    kinds = [str(kind).strip() for kind in (columns.split(",") if isinstance(columns, str) else columns)]
    kinds = kinds * num_features if len(kinds) == 1 else kinds
    if len(kinds) != num_features:
        raise InputError(f"columns={columns!r}: expected one kind, or one for each of {num_features} columns")
    for kind in kinds:
        if kind not in KINDS and num_categories(kind) < 2:
            known = ", ".join(KINDS)
            raise InputError(f"columns: {kind!r}: expected one of {known}, or categorical3 for three categories")
    return kinds


def num_categories(kind: str) -> int:
    """Return the number of categories of a kind, 0 unless it is categorical."""
    number = kind.removeprefix("categorical")
    return int(number) if kind != number and number.isdecimal() else 0


def check_entries(x: Tensor, indices: Mapping[str, list[int]]) -> None:
    """Raise ``InputError`` for an observed entry outside its column's support, given the columns of each kind."""
    for kind, columns in indices.items():
        support, expected = _support(kind)
        entries = x[:, columns]
        invalid = torch.argwhere(~support.check(entries) & entries.isfinite())
        if len(invalid):
            row, j = invalid[0].tolist()
            raise InputError(
                f"column {columns[j] + 1}, row {row + 1}: {entries[row, j].item():g} is not a valid entry of a "
                f"column of kind {kind!r}; expected {expected}"
            )


def _support(kind: str) -> tuple[constraints.Constraint, str]:
    """Return the support of a kind's entries, and its name in messages."""
    if kind == "poisson":
        return constraints.nonnegative_integer, "0, 1, 2, ..."
    if kind == "binary":
        return constraints.boolean, "0 or 1"
    if C := num_categories(kind):
        return constraints.integer_interval(0, C - 1), f"a whole number below {C}"
    return constraints.real, "a number"
