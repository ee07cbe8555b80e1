"""Binary and categorical columns, and the table of all kinds of columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pplgen.models._distributions.columns import Columns, NormalColumns, PoissonColumns, StudentColumns
from pyro.nn import PyroParam
from torch import Tensor
from torch.distributions import constraints

from pplgen.story.base import InputError


class BinaryColumns(Columns):
    """Binary columns, 0 or 1."""

    kind, sites = "binary", ("probability",)

    def __init__(self, indices: list[int], num_components: int) -> None:
        super().__init__(indices, num_components)
        self.q_yes = PyroParam(torch.ones(num_components, self.width), constraints.positive)
        self.q_no = PyroParam(torch.ones(num_components, self.width), constraints.positive)

    def draw(self) -> tuple[Tensor, ...]:
        """Draw the probabilities of 1 from the prior."""
        one = torch.ones_like(self.m)
        return (pyro.sample("binary_probability", dist.Beta(one, one).to_event(1)),)

    def draw_guide(self) -> None:
        """Draw the probabilities from the guide, Beta distributions."""
        pyro.sample("binary_probability", dist.Beta(self.q_yes, self.q_no).to_event(1))

    def entries(self, drawn: tuple[Tensor, ...], z: Tensor) -> Any:
        """Return the Bernoulli distribution of entries."""
        return dist.Bernoulli(drawn[0][z])

    def check(self, x: Tensor) -> None:
        """Raise ``InputError`` for entries other than 0 and 1."""
        self._raise_if((x != 0) & (x != 1), x, "0 or 1")

    def initialise(self, x: Tensor, responsibilities: Tensor) -> None:
        """Set the guide to the posterior given soft clusters."""
        n, total, _ = self._sums(x, responsibilities)
        self.q_yes, self.q_no = 1 + total, 1 + n - total


class CategoricalColumns(Columns):
    """Categorical columns, coded as 0, ..., C - 1."""

    sites = ("probability",)

    def __init__(self, indices: list[int], num_components: int, num_categories: int) -> None:
        super().__init__(indices, num_components)
        self.C, self.kind = num_categories, f"categorical{num_categories}"
        self.q_counts = PyroParam(torch.ones(num_components, self.width, num_categories), constraints.positive)

    def draw(self) -> tuple[Tensor, ...]:
        """Draw the categories' probabilities from the prior, shape ``(K, width, C)``."""
        ones = self.m.new_ones(self.width, self.C)
        return (pyro.sample(f"{self.kind}_probability", dist.Dirichlet(ones).to_event(1)),)

    def draw_guide(self) -> None:
        """Draw the probabilities from the guide, Dirichlet distributions."""
        pyro.sample(f"{self.kind}_probability", dist.Dirichlet(self.q_counts).to_event(1))

    def entries(self, drawn: tuple[Tensor, ...], z: Tensor) -> Any:
        """Return the categorical distribution of entries."""
        return dist.Categorical(drawn[0][z])

    def check(self, x: Tensor) -> None:
        """Raise ``InputError`` for entries that are not a category."""
        self._raise_if((x < 0) | (x >= self.C) | (x != x.round()), x, f"a whole number below {self.C}")

    def initialise(self, x: Tensor, responsibilities: Tensor) -> None:
        """Set the guide to the posterior given soft clusters."""
        one_hot = (x.unsqueeze(-1) == torch.arange(self.C, device=x.device)).to(x.dtype)
        self.q_counts = 1 + torch.einsum("nk,ndc->kdc", responsibilities, one_hot)


KINDS: dict[str, Any] = {kind.kind: kind for kind in (NormalColumns, StudentColumns, PoissonColumns, BinaryColumns)}


def make_columns(kinds: Sequence[str], num_components: int) -> list[Columns]:
    """Group columns by kind, one ``Columns`` for each; raise ``InputError`` for an unknown kind."""
    parts = []
    for kind in dict.fromkeys(kinds):
        indices = [index for index, other in enumerate(kinds) if other == kind]
        categories = kind.removeprefix("categorical")
        if kind in KINDS:
            parts.append(KINDS[kind](indices, num_components))
        elif kind != categories and categories.isdigit() and int(categories) >= 2:
            parts.append(CategoricalColumns(indices, num_components, int(categories)))
        else:
            known = ", ".join(KINDS)
            raise InputError(f"columns: {kind!r}: expected one of {known}, or categorical3 for three categories")
    return parts
