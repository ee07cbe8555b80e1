"""What the start of a hidden Markov model needs of each kind of emissions: M-steps, and features to cluster.

An M-step takes the prior constants, steps of shape ``(N, D)`` and responsibilities ``(N, K)``, and returns a mode or
mean of the parameters' posterior by name.
"""

from __future__ import annotations

import torch
from pplgen.models._starts.kmeans_plus_plus import column_scales
from pplgen.models._starts.regime_scales import RegimeScales
from torch import Tensor

KAPPA = 0.01
"""Prior sample size of a mean."""


def clustering_features(scales: RegimeScales, x: Tensor) -> Tensor:
    """Return features of steps ``(N, D)`` for k-means: standardised columns, or one-hot ones for each category."""
    if scales.kind == "categorical":
        return _one_hot(x, scales.options["num_categories"]).flatten(1)
    mean, sd = column_scales(x)
    return ((x - mean) / sd).nan_to_num()


def diagonal_step(scales: RegimeScales, x: Tensor, responsibilities: Tensor) -> dict[str, Tensor]:
    """Return means and standard deviations."""
    mean, n = _means(scales, x, responsibilities)
    observed, filled = x.isfinite().to(x.dtype), x.nan_to_num()
    squares = torch.stack(
        [w @ (observed * (filled - c).square()) for w, c in zip(responsibilities.T, mean, strict=True)]
    )
    return {"mu": mean, "sigma": ((_psi(scales) + squares) / (3 + n)).sqrt()}


def full_step(scales: RegimeScales, x: Tensor, responsibilities: Tensor) -> dict[str, Tensor]:
    """Return means and covariances, missing entries set to the mean."""
    mean, n = _means(scales, x, responsibilities)[0], responsibilities.sum(0)
    centred = [torch.where(x.isnan(), 0.0, x - c) for c in mean]
    scatter = torch.stack([(w[:, None] * d).T @ d for w, d in zip(responsibilities.T, centred, strict=True)])
    return {"mu": mean, "Sigma": (torch.diag(_psi(scales)) + scatter) / (x.shape[1] + 2 + n)[:, None, None]}


def categorical_step(scales: RegimeScales, x: Tensor, responsibilities: Tensor) -> dict[str, Tensor]:
    """Return the categories' probabilities."""
    counts = 1 + torch.einsum("nk,ndc->kdc", responsibilities, _one_hot(x, scales.options["num_categories"]))
    return {"probability": counts / counts.sum(-1, keepdim=True)}


def poisson_step(scales: RegimeScales, x: Tensor, responsibilities: Tensor) -> dict[str, Tensor]:
    """Return the rates."""
    observed, total = responsibilities.T @ x.isfinite().to(x.dtype), responsibilities.T @ x.nan_to_num()
    return {"rate": (1 + total) / (1 / scales.m + observed)}


M_STEPS = {"diag": diagonal_step, "full": full_step, "categorical": categorical_step, "poisson": poisson_step}


def _means(scales: RegimeScales, x: Tensor, responsibilities: Tensor) -> tuple[Tensor, Tensor]:
    """Return the regimes' means, and the number of entries in each."""
    n = responsibilities.T @ x.isfinite().to(x.dtype)
    return (KAPPA * scales.m + responsibilities.T @ x.nan_to_num()) / (KAPPA + n), n


def _psi(scales: RegimeScales) -> Tensor:
    """Scale of the variances of each of K regimes, which share the volume of the steps."""
    K, D = scales.m.shape
    return (scales.s / K ** (1 / D)).square()


def _one_hot(x: Tensor, num_categories: int) -> Tensor:
    return (x.unsqueeze(-1) == torch.arange(num_categories, device=x.device)).to(x.dtype)
