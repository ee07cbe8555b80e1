"""What a regime emits at each step: what all kinds share, and measurements.

====  ========================================================================================================
kind  likelihood in regime k, and the prior of its parameters
====  ========================================================================================================
diag  Normal(mu_k, diag(sigma_k^2));  mu_k ~ Normal(m, w), sigma_k^2 ~ s^2 K^(-2/D) / ChiSquared(3)
full  Normal(mu_k, Sigma_k);  mu_k ~ Normal(m, w), Sigma_k ~ InverseWishart(D + 2, diag(s^2) K^(-2/D))
====  ========================================================================================================

The priors of scales are those of ``_distributions/gaussians.py``: a regime cannot collapse onto a point or a line.
"""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from pplgen.models._distributions.inverse_wishart import InverseWishart, inverse_chi
from pplgen.models._distributions.missing import MarginalNormal, WhereSeen
from pplgen.models._starts.seeding import column_scales
from pyro.nn import PyroModule
from torch import Tensor

from pplgen.story.base import InputError, check_per_feature

WIDTH, REACH = 0.15, 2.0
"""Scale s, and deviation w of the means, by default, in standard deviations of the columns."""
KAPPA = 0.01
"""Steps that the prior of a mean is worth where the emissions start."""


class Emission(PyroModule):
    """Emissions of K regimes in D columns.

    Parameters
    ----------
    num_regimes, num_features
        K and D.
    given
        Of ``prior_mean`` m and ``prior_mean_scale`` w, shape ``(K, D)``, and ``prior_scale`` s, shape ``(D,)``, those
        that are not taken from the data.
    """

    dims: dict[str, tuple[str, ...]] = {}  # noqa: RUF012
    centre = "mu"
    """The parameter whose first column says how regimes are numbered."""

    m: Tensor
    w: Tensor
    s: Tensor
    takes: tuple[str, ...] = ("prior_mean", "prior_mean_scale", "prior_scale")
    """Options of which the priors know."""

    def __init__(self, num_regimes: int, num_features: int, given: dict[str, Any]) -> None:
        super().__init__()
        self.K, self.D, self.given = num_regimes, num_features, given
        for name, value in given.items():
            if value is not None and name not in self.takes:
                raise InputError(f"{name}={value!r}: the emissions take {', '.join(self.takes)}")
        self.register_buffer("m", torch.zeros(num_regimes, num_features))
        self.register_buffer("w", torch.ones(num_regimes, num_features))
        self.register_buffer("s", torch.ones(num_features))
        self.set_scales(self.m[0], self.s)

    def set_scales(self, mean: Tensor, deviation: Tensor) -> None:
        """Set m, w and s from means and standard deviations of the columns, unless they were given."""
        shape = self.m.shape
        self.m = self._given("prior_mean", mean.expand(shape))
        self.w = self._given("prior_mean_scale", REACH * deviation.expand(shape))
        self.s = self._given("prior_scale", WIDTH * deviation)

    def priors(self) -> dict[str, Any]:
        """Return the priors of the regimes' parameters."""
        raise NotImplementedError

    def steps(self, theta: dict[str, Tensor], z: Tensor) -> Any:
        """Return the distribution of steps in the regimes z, of event shape ``(D,)``."""
        raise NotImplementedError

    def fitted(self, x: Tensor, shares: Tensor) -> dict[str, Tensor]:
        """Estimate the parameters from steps, shape ``(N, D)``, and how much they belong to regimes, ``(N, K)``."""
        raise NotImplementedError

    def check(self, y: Tensor) -> None:
        """Raise ``InputError`` where a seen entry of series is outside of the likelihood's support."""

    def observe_missing(self, y: Tensor) -> None:
        """Note whether there are steps of which only some entries are seen."""

    def coordinates(self, x: Tensor) -> Tensor:
        """Return steps, shape ``(N, D)``, in coordinates in which they may be clustered, missing entries filled."""
        mean, deviation = column_scales(x)
        return ((x - mean) / deviation).nan_to_num()

    def learn_scales(self, x: Tensor, weights: Tensor) -> None:
        """Set m, w and s from steps, shape ``(N, D)``, and their weights."""
        self.set_scales(*column_scales(x, weights))

    def _given(self, name: str, default: Tensor) -> Tensor:
        """Return what was given, or the default."""
        value = self.given.get(name)
        return default.clone() if value is None else default.new_tensor(value)

    def _refuse(self, wrong: Tensor, y: Tensor, what: str) -> None:
        """Name the first entry of series that is wrong."""
        found = torch.argwhere(wrong & y.isfinite())
        if len(found):
            i, t, j = found[0].tolist()
            raise InputError(f"series {i + 1}, step {t + 1}, column {j + 1}: {y[i, t, j].item():g}: expected {what}")


class DiagonalEmission(Emission):
    """Measurements, independent given the regime."""

    dims = {"mu": ("regime", "feature"), "sigma": ("regime", "feature")}  # noqa: RUF012

    def priors(self) -> dict[str, Any]:
        """Return the priors of means and standard deviations, ``(K, D)`` each."""
        return {
            "mu": dist.Normal(self.m, self.w).to_event(2),
            "sigma": inverse_chi(self.narrow.expand(self.K, self.D), 3.0).to_event(2),
        }

    def steps(self, theta: dict[str, Tensor], z: Tensor) -> Any:
        """Return normal steps."""
        return WhereSeen(dist.Normal(theta["mu"][z], theta["sigma"][z]))

    def fitted(self, x: Tensor, shares: Tensor) -> dict[str, Tensor]:
        """Estimate means and standard deviations."""
        seen, filled = x.isfinite().to(x.dtype), x.nan_to_num()
        n = shares.T @ seen
        mean = (KAPPA * self.m + shares.T @ filled) / (KAPPA + n)
        squares = torch.stack([w @ (seen * (filled - c).square()) for w, c in zip(shares.T, mean, strict=True)])
        return {"mu": mean, "sigma": ((self.narrow.square() + squares) / (3 + n)).sqrt()}

    @property
    def narrow(self) -> Tensor:
        """Prior scale for one of K regimes, shape ``(D,)``."""
        return self.s / self.K ** (1 / self.D)


class FullEmission(DiagonalEmission):
    """Measurements with a covariance."""

    dims = {"mu": ("regime", "feature"), "Sigma": ("regime", "feature", "other_feature")}  # noqa: RUF012

    def __init__(self, num_regimes: int, num_features: int, given: dict[str, Any]) -> None:
        super().__init__(num_regimes, num_features, given)
        self.partly = False

    def priors(self) -> dict[str, Any]:
        """Return the priors of means, ``(K, D)``, and covariances, ``(K, D, D)``."""
        Sigma = InverseWishart(self.D + 2, self.narrow.expand(self.K, self.D)).to_event(1)
        return {"mu": dist.Normal(self.m, self.w).to_event(2), "Sigma": Sigma}

    def steps(self, theta: dict[str, Tensor], z: Tensor) -> Any:
        """Return normal steps."""
        kind = MarginalNormal if self.partly else WholeSteps
        return kind(theta["mu"][z], scale_tril=torch.linalg.cholesky(theta["Sigma"])[z])

    def fitted(self, x: Tensor, shares: Tensor) -> dict[str, Tensor]:
        """Estimate means and covariances, missing entries being at the mean."""
        mean, n = super().fitted(x, shares)["mu"], shares.sum(0)
        centred = [torch.where(x.isnan(), 0.0, x - c) for c in mean]
        scatter = torch.stack([(w[:, None] * d).T @ d for w, d in zip(shares.T, centred, strict=True)])
        Sigma = (torch.diag(self.narrow.square()) + scatter) / (self.D + 2 + n)[:, None, None]
        return {"mu": mean, "Sigma": Sigma}

    def observe_missing(self, y: Tensor) -> None:
        """Note whether there are steps of which only some entries are seen, which cost a factor each."""
        gap = y.isnan()
        self.partly |= bool((gap.any(-1) & ~gap.all(-1)).any())


class WholeSteps(MarginalNormal):
    """Multivariate normal steps that are seen as a whole or not at all."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, zero where nothing is seen."""
        gap = value.isnan().all(-1)
        eye = torch.eye(value.shape[-1], dtype=value.dtype, device=value.device)
        whitener = torch.linalg.solve_triangular(self.scale_tril, eye.expand_as(self.scale_tril), upper=False)
        difference = torch.where(gap.unsqueeze(-1), 0.0, value) - self.loc
        whitened = torch.einsum("...kij,...kj->...ki", whitener, difference)
        log_volume = self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        density = -0.5 * whitened.square().sum(-1) - log_volume - 0.5 * value.shape[-1] * math.log(2 * math.pi)
        return torch.where(gap, 0.0, density)


def per_regime(name: str, value: Any, K: int, D: int, *, positive: bool = False) -> list[list[float]] | None:
    """Return ``(K, D)`` finite numbers from one, from one for each feature, or from a list of these for each regime."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if value is None:
        return None
    if not (isinstance(value, (list, tuple)) and value and all(isinstance(each, (list, tuple)) for each in value)):
        row = check_per_feature(name, value, D, positive=positive)
        return [row or []] * K
    if len(value) != K:
        raise InputError(f"{name}={value!r}: expected one list for each of {K} regimes")
    return [check_per_feature(name, each, D, positive=positive) or [] for each in value]
