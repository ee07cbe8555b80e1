"""Categorical and Poisson emissions, and the table of all kinds of emissions.

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
from pplgen.models._distributions.hmm_emissions import DiagonalEmission, Emission, FullEmission
from torch import Tensor

from pplgen.distributions.missing import MarginalIndependent
from pplgen.story.base import InputError, check_count


class CategoricalEmission(Emission):
    """Categorical emissions, coded as 0, ..., C - 1 in each column."""

    dims = {"probability": ("regime", "feature", "category")}  # noqa: RUF012
    ordered_by, accepted = "probability", ("num_categories",)

    def __init__(self, num_regimes: int, num_features: int, options: dict[str, Any]) -> None:
        super().__init__(num_regimes, num_features, options)
        if options.get("num_categories") is None:
            raise InputError(
                "num_categories: required by categorical emissions; give the number of categories of a column"
            )
        self.C = check_count("num_categories", options["num_categories"], minimum=2)

    def priors(self) -> dict[str, Any]:
        """Return the prior of the categories' probabilities, ``(K, D, C)``."""
        return {"probability": dist.Dirichlet(self.m.new_ones(self.K, self.D, self.C)).to_event(2)}

    def distribution(self, theta: dict[str, Tensor], z: Tensor) -> Any:
        """Return the categorical distribution of steps."""
        return MarginalIndependent(dist.Categorical(theta["probability"][z]))

    def m_step(self, x: Tensor, responsibilities: Tensor) -> dict[str, Tensor]:
        """Return the posterior mean of the probabilities given responsibilities."""
        counts = 1 + torch.einsum("nk,ndc->kdc", responsibilities, self._one_hot(x))
        return {"probability": counts / counts.sum(-1, keepdim=True)}

    def check(self, y: Tensor) -> None:
        """Raise ``InputError`` for entries that are not a category."""
        self._raise_if((y < 0) | (y >= self.C) | (y != y.round()), y, f"a whole number below num_categories={self.C}")

    def clustering_features(self, x: Tensor) -> Tensor:
        """Return one-hot columns, one for each category."""
        return self._one_hot(x).flatten(1)

    def _one_hot(self, x: Tensor) -> Tensor:
        return (x.unsqueeze(-1) == torch.arange(self.C, device=x.device)).to(x.dtype)


class PoissonEmission(Emission):
    """Poisson emissions."""

    dims = {"rate": ("regime", "feature")}  # noqa: RUF012
    ordered_by, accepted = "rate", ("prior_mean", "prior_mean_scale")

    def set_scales(self, mean: Tensor, sd: Tensor) -> None:
        """Set m and w, by default the columns' means."""
        super().set_scales(torch.where(mean > 0, mean, 1.0), sd)
        self.w = self._option("prior_mean_scale", self.m)

    def priors(self) -> dict[str, Any]:
        """Return the prior of the rates, ``(K, D)``."""
        return {"rate": dist.Gamma((self.m / self.w).square(), self.m / self.w.square()).to_event(2)}

    def distribution(self, theta: dict[str, Tensor], z: Tensor) -> Any:
        """Return the Poisson distribution of steps."""
        return MarginalIndependent(dist.Poisson(theta["rate"][z]))

    def m_step(self, x: Tensor, responsibilities: Tensor) -> dict[str, Tensor]:
        """Return the posterior mean of the rates given responsibilities."""
        observed, total = responsibilities.T @ x.isfinite().to(x.dtype), responsibilities.T @ x.nan_to_num()
        return {"rate": (1 + total) / (1 / self.m + observed)}

    def check(self, y: Tensor) -> None:
        """Raise ``InputError`` for entries that are not counts."""
        self._raise_if((y < 0) | (y != y.round()), y, "a count 0, 1, 2, ...")


EMISSIONS: dict[str, type[Emission]] = {
    "diag": DiagonalEmission,
    "full": FullEmission,
    "categorical": CategoricalEmission,
    "poisson": PoissonEmission,
}
