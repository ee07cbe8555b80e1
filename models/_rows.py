"""Base classes of mixtures: checks of options, rows and labels, and imputation of missing entries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pplgen.models._guides.covariances import gaussian_components
from pyro.nn import pyro_method
from torch import Tensor

from pplgen.story.base import InputError, Story, check_count, check_per_feature, check_positive
from pplgen.story.shared_sites import row_distribution, shared_values


class ComponentRows(Story):
    """Base class of stories with rows of D columns from K components, missing entries integrated out."""

    accepts_missing = True
    K: int
    D: int

    def _rows(self, x: Tensor, z: Tensor) -> Any:
        """Return the model's distribution of rows x given their components z, which broadcast to ``(num_rows,)``."""
        return row_distribution(self.model, x, given={"z": z})

    def _assign(self, x: Tensor) -> Tensor:
        """Draw the component of each row given the parameters, shape ``(num_rows,)``."""
        index = torch.arange(self.K, device=x.device)[:, None]
        joint = shared_values(self.model)["weights"].log()[:, None] + self._rows(x, index).log_prob(x)
        with pyro.plate("data", len(x)):
            z: Tensor = pyro.sample("z", dist.Categorical(logits=joint.T))
        return z

    @pyro_method
    def complete(self, x: Tensor) -> Tensor:
        """Draw the missing entries of rows given the observed ones, after each row's component."""
        completed: Tensor = self._rows(x, self._assign(x)).complete(x)
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
    """Base class of mixtures of Gaussian components.

    Parameters
    ----------
    num_components, num_features
        K and D.
    options
        Kind of ``covariance``, ``concentration``, ``mean_precision`` kappa and, for stories that have them,
        ``prior_mean`` and ``prior_scale``: centre m and scale s of the priors, in data units.
    fewest
        Smallest number of components.
    sharing
        Number of components that share the volume of the rows in the prior, by default K.
    """

    missing = False
    """Whether entries of the rows may be missing."""

    def __init__(
        self,
        num_components: int,
        num_features: int,
        options: Mapping[str, Any],
        *,
        fewest: int = 1,
        sharing: int | None = None,
    ) -> None:
        K = check_count("num_components", num_components, minimum=fewest)
        D, config = check_count("num_features", num_features), dict(options)
        for name in ("concentration", "mean_precision"):
            config[name] = check_positive(name, config[name])
        for name in config.keys() & {"prior_mean", "prior_scale"}:
            config[name] = check_per_feature(name, config[name], D, positive=name == "prior_scale")
        super().__init__(num_components=K, num_features=D, **config)
        self.K, self.D, self.kappa = K, D, config["mean_precision"]
        self.components = gaussian_components(config["covariance"], K, D, self.kappa, sharing=sharing)
        self.components.set_scales(config.get("prior_mean"), config.get("prior_scale"))
        self.auxiliary = self.components.auxiliary
        self.dims = {"weights": ("component",), **self.components.dims, "z": ("row", "component")}
        self.dims |= {"x": ("row", "feature"), "prior_mean": ("feature",), "prior_scale": ("feature",)}

    @property
    def constants(self) -> dict[str, Tensor]:
        """Centre m and scale s of the priors, in data units, shape ``(D,)`` each."""
        return {"prior_mean": self.components.m, "prior_scale": self.components.s}

    def observe_missing(self, x: Tensor) -> None:
        """Integrate out missing entries from now on, if there are any."""
        self.missing |= bool(x.isnan().any())
