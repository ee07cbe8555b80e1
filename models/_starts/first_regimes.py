"""Where a hidden Markov model starts: clusters of steps, or of stretches of steps, sharpened by EM."""

from __future__ import annotations

from typing import Any

import torch
from pplgen.models._distributions.chain import marginals
from pplgen.models._distributions.emissions import Emission
from pplgen.models._starts.seeding import kmeans_plus_plus
from torch import Tensor

WINDOWS = (1, 5, 20)
"""Lengths of the stretches that are clustered: short ones tell means apart, long ones spreads and mixtures too."""
EM_STEPS = 20


def first_regimes(
    emission: Emission, y: Tensor, weights: Tensor, known: dict[str, Tensor], concentration: float
) -> dict[str, Tensor]:
    """Find regimes from random seeds; the best of one start for each length of the stretches.

    Regimes are numbered by the mean of their first column, or as their known or prior means are.

    Parameters
    ----------
    emission
        Whose scales are set.
    y
        Series, shape ``(num_series, num_steps, D)``.
    weights
        How much each series counts, shape ``(num_series,)``.
    known
        Known values of parameters.
    concentration
        Prior count of each transition.

    Returns
    -------
    dict
        ``pi``, ``P`` and the parameters of the emissions.
    """
    seen = ~y.isnan().all(-1)
    counts = weights[:, None] * seen
    best: tuple[float, dict[str, Tensor]] | None = None
    for window in WINDOWS:
        if best is not None and window * emission.K * 2 > y.shape[1]:
            break
        coordinates = _stretches(emission.coordinates(y.flatten(0, 1)).unflatten(0, y.shape[:2]), seen, window)
        shares = kmeans_plus_plus(coordinates.flatten(0, 1), emission.K, weights=counts.flatten())
        start = _climb(emission, y, shares, weights, known, concentration)
        if best is None or start[0] > best[0]:
            best = start
    assert best is not None
    return best[1]


def autoregressive_start(
    emission: Emission,
    y: Tensor,
    weights: Tensor,
    known: dict[str, Tensor],
    concentration: float,
    order: int,
    switching: dict[str, bool],
) -> dict[str, Tensor]:
    """Find the regimes of autoregressions as if there were no lags, numbered by what switches.

    Parameters
    ----------
    emission, y, weights, concentration
        As of ``first_regimes``, the emissions being normal in one column.
    known
        Known values of the autoregression's parameters.
    order
        Number of lags p.
    switching
        Whether ``mu``, ``sigma`` and ``phi`` differ between regimes.

    Returns
    -------
    dict
        ``P``, ``mu``, ``sigma`` and ``phi``, the last at random near zero.
    """
    means = {"mu": known["mu"].unsqueeze(-1)} if switching["mu"] and "mu" in known else {}
    found = first_regimes(emission, y, weights, means, concentration)
    P, mu, sigma = found["P"], found["mu"][:, 0], found["sigma"][:, 0]
    order_of = torch.arange(emission.K, device=y.device)
    if not switching["mu"]:
        expected = known["sigma"] if switching["sigma"] and "sigma" in known else order_of
        order_of = sigma.argsort()[expected.argsort().argsort()]
    phi = 0.1 * torch.randn(emission.K, order, dtype=y.dtype, device=y.device)
    values = {"mu": mu[order_of], "sigma": sigma[order_of], "phi": phi}
    alike = {name: value if switching[name] else value.mean(0) for name, value in values.items()}
    return {"P": P[order_of][:, order_of], **alike}


def _climb(
    emission: Emission, y: Tensor, shares: Tensor, weights: Tensor, known: dict[str, Tensor], concentration: float
) -> tuple[float, dict[str, Tensor]]:
    """Take steps of EM; return the log likelihood before the last of them, in nats, and the parameters."""
    K, x = emission.K, y.flatten(0, 1)
    every, counts = torch.arange(K, device=y.device), weights[:, None] * ~y.isnan().all(-1)
    links = (counts[:, 1:] * (counts[:, :-1] > 0))[..., None, None]
    pi, P = y.new_full((K,), 1 / K), y.new_full((K, K), 1 / K)
    order, total = _numbering(emission, x, shares, known), 0.0
    shares = shares[:, order]
    for _ in range(EM_STEPS):
        theta = {"pi": pi, "P": P, **emission.fitted(x, shares), **known}
        density = emission.steps(theta, every).log_prob(y.movedim(1, 0).unsqueeze(-2)).movedim(0, 1)
        log_likelihood, regimes, pairs = marginals(theta["pi"].log(), theta["P"].log(), density)
        total = (weights * log_likelihood).sum().item()
        if not known:
            order = _numbering(emission, x, (counts.unsqueeze(-1) * regimes).flatten(0, 1), known)
            regimes, pairs = regimes[..., order], pairs[..., order, :][..., order]
        shares = (counts.unsqueeze(-1) * regimes).flatten(0, 1)
        pi, P = 1 + shares.unflatten(0, y.shape[:2])[:, 0].sum(0), concentration + (links * pairs).sum((0, 1))
        pi, P = pi / pi.sum(), P / P.sum(-1, keepdim=True)
    return total, {"pi": pi, "P": P, **emission.fitted(x, shares), **known}


def _numbering(emission: Emission, x: Tensor, shares: Tensor, known: dict[str, Tensor]) -> Tensor:
    """Return which cluster each regime is: in the order of the first column's means that are expected of them."""
    first = x[:, 0]
    gap = first.isnan().unsqueeze(-1)
    weight = torch.where(gap, 0.0, shares)
    means = (weight * first.nan_to_num().unsqueeze(-1)).sum(0) / weight.sum(0).clamp_min(torch.finfo(x.dtype).tiny)
    expected: Any = known.get(emission.centre, emission.m)
    expected = emission.m[:, 0] if expected.shape != emission.m.shape else expected[:, 0]
    return means.argsort(stable=True)[expected.argsort(stable=True).argsort()]


def _stretches(coordinates: Tensor, seen: Tensor, window: int) -> Tensor:
    """Average steps, and how far they are from zero, over the seen ones of a window around each."""
    if window == 1:
        return coordinates
    both = torch.cat([coordinates, coordinates.abs(), torch.ones_like(coordinates[..., :1])], -1)
    both = torch.where(seen.unsqueeze(-1), both, 0.0)
    before = (window - 1) // 2
    padded = torch.nn.functional.pad(both, (0, 0, before, window - 1 - before))
    summed = padded.unfold(-2, window, 1).sum(-1)
    return summed[..., :-1] / summed[..., -1:].clamp_min(1.0)
