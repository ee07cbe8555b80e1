"""What mixtures have in common beside their story: which rows they take, and how missing entries are drawn."""

from __future__ import annotations

from typing import Any

from pplgen.models._gaussians import GaussianComponents
from pyro.nn import pyro_method
from torch import Tensor

from pplgen.story import InputError


class ComponentRows:
    """Rows of D columns from K components."""

    K: int
    D: int

    def check_data(self, x: Tensor) -> None:
        """Refuse rows of another width."""
        if x.ndim != 2 or x.shape[1] != self.D:
            raise InputError(f"data of shape {tuple(x.shape)}: this {type(self).__name__} expects (num_rows, {self.D})")

    def check_training_data(self, x: Tensor) -> None:
        """Refuse fewer rows than components."""
        if len(x) < max(2, self.K):
            raise InputError(f"{len(x)} rows are too few for {self.K} components; give at least {max(2, self.K)}")


class GaussianRows(ComponentRows):
    """Rows from Gaussian components, whose missing entries are integrated out."""

    accepts_missing = True
    components: GaussianComponents

    def _draw(self) -> tuple[Tensor, Any]:
        """Draw weights and components, which all rows share."""
        raise NotImplementedError

    @pyro_method
    def complete(self, x: Tensor) -> Tensor:
        """Draw the missing entries of rows given the others, at the latents' values."""
        weights, drawn = self._draw()
        return self.components.complete(weights, drawn, x)

    @property
    def constants(self) -> dict[str, Tensor]:
        """Centre m and scale s of the priors, in data units, shape ``(D,)`` each."""
        return {"prior_mean": self.components.m, "prior_scale": self.components.s}

    def notice(self, x: Tensor) -> None:
        """Integrate missing entries out from here on, where there are any."""
        self.components.missing |= bool(x.isnan().any())
