"""What a regime emits where it is counted or one of several categories, and the list of all kinds of emissions.

===========  =============================================================================================
kind         likelihood in regime k, and the prior of its parameters
===========  =============================================================================================
categorical  Categorical(probability_k);  probability_k ~ Dirichlet(1, ..., 1), for each column
poisson      Poisson(rate_k);  rate_k ~ Gamma(m^2 / w^2, m / w^2), of mean m and standard deviation w
===========  =============================================================================================
"""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pplgen.models._distributions.emissions import DiagonalEmission, Emission, FullEmission
from pplgen.models._distributions.missing import WhereSeen
from torch import Tensor

from pplgen.story.base import InputError, check_count


class CategoricalEmission(Emission):
    """One of C categories in each column, as 0, ..., C - 1."""

    dims = {"probability": ("regime", "feature", "category")}  # noqa: RUF012
    centre, takes = "probability", ("num_categories",)

    def __init__(self, num_regimes: int, num_features: int, given: dict[str, Any]) -> None:
        super().__init__(num_regimes, num_features, given)
        if given.get("num_categories") is None:
            raise InputError("num_categories: categorical emissions need it; give the number of categories of a column")
        self.C = check_count("num_categories", given["num_categories"], minimum=2)

    def priors(self) -> dict[str, Any]:
        """Return the prior of the categories' probabilities, ``(K, D, C)``."""
        return {"probability": dist.Dirichlet(self.m.new_ones(self.K, self.D, self.C)).to_event(2)}

    def steps(self, theta: dict[str, Tensor], z: Tensor) -> Any:
        """Return categorical steps."""
        return WhereSeen(dist.Categorical(theta["probability"][z]))

    def fitted(self, x: Tensor, shares: Tensor) -> dict[str, Tensor]:
        """Estimate probabilities."""
        counts = 1 + torch.einsum("nk,ndc->kdc", shares, self._hits(x))
        return {"probability": counts / counts.sum(-1, keepdim=True)}

    def check(self, y: Tensor) -> None:
        """Refuse what is no category."""
        self._refuse((y < 0) | (y >= self.C) | (y != y.round()), y, f"a whole number below num_categories={self.C}")

    def coordinates(self, x: Tensor) -> Tensor:
        """Return a column of zeros and ones for each category."""
        return self._hits(x).flatten(1)

    def _hits(self, x: Tensor) -> Tensor:
        return (x.unsqueeze(-1) == torch.arange(self.C, device=x.device)).to(x.dtype)


class PoissonEmission(Emission):
    """Counts."""

    dims = {"rate": ("regime", "feature")}  # noqa: RUF012
    centre, takes = "rate", ("prior_mean", "prior_mean_scale")

    def set_scales(self, mean: Tensor, deviation: Tensor) -> None:
        """Set m and w, both the columns' means, unless they were given."""
        super().set_scales(torch.where(mean > 0, mean, 1.0), deviation)
        self.w = self._given("prior_mean_scale", self.m)

    def priors(self) -> dict[str, Any]:
        """Return the prior of the rates, ``(K, D)``."""
        return {"rate": dist.Gamma((self.m / self.w).square(), self.m / self.w.square()).to_event(2)}

    def steps(self, theta: dict[str, Tensor], z: Tensor) -> Any:
        """Return Poisson steps."""
        return WhereSeen(dist.Poisson(theta["rate"][z]))

    def fitted(self, x: Tensor, shares: Tensor) -> dict[str, Tensor]:
        """Estimate rates."""
        seen, total = shares.T @ x.isfinite().to(x.dtype), shares.T @ x.nan_to_num()
        return {"rate": (1 + total) / (1 / self.m + seen)}

    def check(self, y: Tensor) -> None:
        """Refuse what is no count."""
        self._refuse((y < 0) | (y != y.round()), y, "a count 0, 1, 2, ...")


EMISSIONS: dict[str, type[Emission]] = {
    "diag": DiagonalEmission,
    "full": FullEmission,
    "categorical": CategoricalEmission,
    "poisson": PoissonEmission,
}
