"""Mixins of mixtures: checks of rows and labels, and imputation of missing entries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pplgen.models._distributions.gaussians import GaussianComponents
from pyro.nn import pyro_method
from torch import Tensor

from pplgen.story.base import InputError
from pplgen.story.shared_sites import shared_values


class ComponentRows:
    """Mixin for rows of D columns from K components, missing entries integrated out."""

    accepts_missing = True
    K: int
    D: int

    model: Callable[..., Any]

    def _rows(self, theta: dict[str, Tensor], z: Tensor) -> Any:
        """Return the distribution of rows given parameters, by site, and components z."""
        raise NotImplementedError

    def _assign(self, theta: dict[str, Tensor], x: Tensor) -> Tensor:
        """Draw the component of each row given parameters, by site, shape ``(num_rows,)``."""
        index = torch.arange(self.K, device=x.device)[:, None]
        joint = theta["weights"].log()[:, None] + self._rows(theta, index).log_prob(x)
        with pyro.plate("data", len(x)):
            z: Tensor = pyro.sample("z", dist.Categorical(logits=joint.T))
        return z

    @pyro_method
    def complete(self, x: Tensor) -> Tensor:
        """Draw the missing entries of rows given the observed ones, after each row's component."""
        theta = shared_values(self.model)
        completed: Tensor = self._rows(theta, self._assign(theta, x)).complete(x)
        return completed

    def check_data(self, x: Tensor) -> None:
        """Raise ``InputError`` for rows of another width."""
        if x.ndim != 2 or x.shape[1] != self.D:
            raise InputError(f"data of shape {tuple(x.shape)}: this {type(self).__name__} expects (num_rows, {self.D})")

    def check_training_data(self, x: Tensor) -> None:
        """Raise ``InputError`` for fewer rows than components."""
        if len(x) < max(2, self.K):
            raise InputError(f"{len(x)} rows are too few for {self.K} components; give at least {max(2, self.K)}")

    def check_labels(self, labels: Tensor) -> None:
        """Raise ``InputError`` for labels that are not a component."""
        if (labels >= self.K).any():
            row = int((labels >= self.K).nonzero()[0])
            expected = f"expected 0 to {self.K - 1}, or -1 if unknown"
            raise InputError(f"labels, row {row + 1}: {labels[row].item()}: {expected}")


class GaussianRows(ComponentRows):
    """Mixin for rows from Gaussian components."""

    components: GaussianComponents

    def _rows(self, theta: dict[str, Tensor], z: Tensor) -> Any:
        if "Sigma" in theta:
            scale = self.components.scale_tril(theta["bartlett_diagonal"], theta["bartlett_lower"])
        else:
            scale = theta["sigma"].reshape(self.K, -1)
        return self.components.rows((theta["mu"], scale), z)

    @property
    def constants(self) -> dict[str, Tensor]:
        """Centre m and scale s of the priors, in data units, shape ``(D,)`` each."""
        return {"prior_mean": self.components.m, "prior_scale": self.components.s}

    def observe_missing(self, x: Tensor) -> None:
        """Integrate out missing entries from now on, if there are any."""
        self.components.missing |= bool(x.isnan().any())
