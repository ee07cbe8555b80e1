"""Emissions of hidden regimes: the base class, and normal emissions.

====  ========================================================================================================
kind  likelihood in regime k, and the prior of its parameters
====  ========================================================================================================
diag  Normal(mu_k, diag(sigma_k^2));  mu_k ~ Normal(m, w), sigma_k^2 ~ s^2 K^(-2/D) / ChiSquared(3)
full  Normal(mu_k, Sigma_k);  mu_k ~ Normal(m, w), Sigma_k ~ InverseWishart(D + 2, diag(s^2) K^(-2/D))
====  ========================================================================================================

The priors of scales are those of ``_distributions/gaussians.py``: they keep a regime from collapsing onto a point.
"""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from pplgen.models._starts.kmeans_plus_plus import column_scales
from pyro.nn import PyroModule
from torch import Tensor

from pplgen.distributions import InverseWishart, inverse_chi
from pplgen.distributions.missing import MarginalIndependent, MarginalNormal
from pplgen.story.base import InputError, check_per_feature

SCALE, MEAN_SCALE = 0.15, 2.0
"""Default prior scale s and standard deviation w of the means, in standard deviations of the columns."""
KAPPA = 0.01
"""Prior sample size of a mean in ``m_step``."""


class Emission(PyroModule):
    """Emissions of K regimes in D columns.

    Parameters
    ----------
    num_regimes, num_features
        K and D.
    options
        Values of ``prior_mean`` m and ``prior_mean_scale`` w, shape ``(K, D)``, and ``prior_scale`` s, shape ``(D,)``;
        those that are None or absent are set from the data.
    """

    dims: dict[str, tuple[str, ...]] = {}  # noqa: RUF012
    ordered_by = "mu"
    """Parameter by whose first column regimes are ordered."""

    m: Tensor
    w: Tensor
    s: Tensor
    accepted: tuple[str, ...] = ("prior_mean", "prior_mean_scale", "prior_scale")
    """Options that the priors use."""

    def __init__(self, num_regimes: int, num_features: int, options: dict[str, Any]) -> None:
        super().__init__()
        self.K, self.D, self.options = num_regimes, num_features, options
        for name, value in options.items():
            if value is not None and name not in self.accepted:
                raise InputError(f"{name}={value!r}: these emissions accept only {', '.join(self.accepted)}")
        self.register_buffer("m", torch.zeros(num_regimes, num_features))
        self.register_buffer("w", torch.ones(num_regimes, num_features))
        self.register_buffer("s", torch.ones(num_features))
        self.set_scales(self.m[0], self.s)

    def set_scales(self, mean: Tensor, sd: Tensor) -> None:
        """Set m, w and s from means and standard deviations of the columns, unless given as options."""
        shape = self.m.shape
        self.m = self._option("prior_mean", mean.expand(shape))
        self.w = self._option("prior_mean_scale", MEAN_SCALE * sd.expand(shape))
        self.s = self._option("prior_scale", SCALE * sd)

    def priors(self) -> dict[str, Any]:
        """Return the priors of the regimes' parameters."""
        raise NotImplementedError

    def distribution(self, theta: dict[str, Tensor], z: Tensor) -> Any:
        """Return the distribution of steps given regimes z, event shape ``(D,)``."""
        raise NotImplementedError

    def m_step(self, x: Tensor, responsibilities: Tensor) -> dict[str, Tensor]:
        """Estimate the parameters from steps, shape ``(N, D)``, and responsibilities, ``(N, K)``: EM's M-step."""
        raise NotImplementedError

    def check(self, y: Tensor) -> None:
        """Raise ``InputError`` for an observed entry of series outside the likelihood's support."""

    def observe_missing(self, y: Tensor) -> None:
        """Record whether there are partly missing steps."""

    def clustering_features(self, x: Tensor) -> Tensor:
        """Return features of steps ``(N, D)`` for k-means, shape ``(N, ...)``, missing entries filled."""
        mean, sd = column_scales(x)
        return ((x - mean) / sd).nan_to_num()

    def learn_scales(self, x: Tensor, weights: Tensor) -> None:
        """Set m, w and s from steps, shape ``(N, D)``, and their weights."""
        self.set_scales(*column_scales(x, weights))

    def _option(self, name: str, default: Tensor) -> Tensor:
        """Return the option, or the default if it is None."""
        value = self.options.get(name)
        return default.clone() if value is None else default.new_tensor(value)

    def _raise_if(self, invalid: Tensor, y: Tensor, expected: str) -> None:
        """Raise ``InputError`` for the first invalid entry of series, if any."""
        entries = torch.argwhere(invalid & y.isfinite())
        if len(entries):
            i, t, j = entries[0].tolist()
            raise InputError(
                f"series {i + 1}, step {t + 1}, column {j + 1}: {y[i, t, j].item():g}: expected {expected}"
            )


class DiagonalEmission(Emission):
    """Normal emissions with diagonal covariances."""

    dims = {"mu": ("regime", "feature"), "sigma": ("regime", "feature")}  # noqa: RUF012

    def priors(self) -> dict[str, Any]:
        """Return the priors of means and standard deviations, ``(K, D)`` each."""
        return {
            "mu": dist.Normal(self.m, self.w).to_event(2),
            "sigma": inverse_chi(self.regime_scale.expand(self.K, self.D), 3.0).to_event(2),
        }

    def distribution(self, theta: dict[str, Tensor], z: Tensor) -> Any:
        """Return the normal distribution of steps."""
        return MarginalIndependent(dist.Normal(theta["mu"][z], theta["sigma"][z]))

    def m_step(self, x: Tensor, responsibilities: Tensor) -> dict[str, Tensor]:
        """Return means and standard deviations given responsibilities."""
        observed, filled = x.isfinite().to(x.dtype), x.nan_to_num()
        n = responsibilities.T @ observed
        mean = (KAPPA * self.m + responsibilities.T @ filled) / (KAPPA + n)
        squares = torch.stack(
            [w @ (observed * (filled - c).square()) for w, c in zip(responsibilities.T, mean, strict=True)]
        )
        return {"mu": mean, "sigma": ((self.regime_scale.square() + squares) / (3 + n)).sqrt()}

    @property
    def regime_scale(self) -> Tensor:
        """Prior scale of each of K regimes, ``s K^(-1/D)``, shape ``(D,)``."""
        return self.s / self.K ** (1 / self.D)


class FullEmission(DiagonalEmission):
    """Normal emissions with full covariances."""

    dims = {"mu": ("regime", "feature"), "Sigma": ("regime", "feature", "other_feature")}  # noqa: RUF012

    def __init__(self, num_regimes: int, num_features: int, options: dict[str, Any]) -> None:
        super().__init__(num_regimes, num_features, options)
        self.partly_missing = False

    def priors(self) -> dict[str, Any]:
        """Return the priors of means, ``(K, D)``, and covariances, ``(K, D, D)``."""
        Sigma = InverseWishart(self.D + 2, self.regime_scale.expand(self.K, self.D)).to_event(1)
        return {"mu": dist.Normal(self.m, self.w).to_event(2), "Sigma": Sigma}

    def distribution(self, theta: dict[str, Tensor], z: Tensor) -> Any:
        """Return the normal distribution of steps."""
        kind = MarginalNormal if self.partly_missing else CompleteStepNormal
        return kind(theta["mu"][z], scale_tril=torch.linalg.cholesky(theta["Sigma"])[z])

    def m_step(self, x: Tensor, responsibilities: Tensor) -> dict[str, Tensor]:
        """Return means and covariances given responsibilities, missing entries set to the mean."""
        mean, n = super().m_step(x, responsibilities)["mu"], responsibilities.sum(0)
        centred = [torch.where(x.isnan(), 0.0, x - c) for c in mean]
        scatter = torch.stack([(w[:, None] * d).T @ d for w, d in zip(responsibilities.T, centred, strict=True)])
        Sigma = (torch.diag(self.regime_scale.square()) + scatter) / (self.D + 2 + n)[:, None, None]
        return {"mu": mean, "Sigma": Sigma}

    def observe_missing(self, y: Tensor) -> None:
        """Record whether there are partly missing steps, each of which needs its own Cholesky factor."""
        gap = y.isnan()
        self.partly_missing |= bool((gap.any(-1) & ~gap.all(-1)).any())


class CompleteStepNormal(MarginalNormal):
    """Multivariate normal for steps that are either complete or entirely missing."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, zero for missing steps."""
        gap = value.isnan().all(-1)
        eye = torch.eye(value.shape[-1], dtype=value.dtype, device=value.device)
        whitener = torch.linalg.solve_triangular(self.scale_tril, eye.expand_as(self.scale_tril), upper=False)
        difference = torch.where(gap.unsqueeze(-1), 0.0, value) - self.loc
        whitened = torch.einsum("...kij,...kj->...ki", whitener, difference)
        log_volume = self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        density = -0.5 * whitened.square().sum(-1) - log_volume - 0.5 * value.shape[-1] * math.log(2 * math.pi)
        return torch.where(gap, 0.0, density)


def per_regime(name: str, value: Any, K: int, D: int, *, positive: bool = False) -> list[list[float]] | None:
    """Broadcast an option to ``(K, D)`` finite numbers: a scalar, one per feature, or one list per regime."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if value is None:
        return None
    if not (isinstance(value, (list, tuple)) and value and all(isinstance(each, (list, tuple)) for each in value)):
        row = check_per_feature(name, value, D, positive=positive)
        return [row or []] * K
    if len(value) != K:
        raise InputError(f"{name}={value!r}: expected one list for each of {K} regimes")
    return [check_per_feature(name, each, D, positive=positive) or [] for each in value]
