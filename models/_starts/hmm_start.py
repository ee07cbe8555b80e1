"""Start of hidden Markov models: k-means of steps or of moving averages, refined by EM."""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
import torch
from pplgen.models._starts.emissions import M_STEPS, clustering_features
from pplgen.models._starts.kmeans_plus_plus import kmeans_plus_plus
from pplgen.models._starts.regime_scales import RegimeScales
from torch import Tensor

from pplgen.distributions.hidden_markov import HiddenMarkovSeries, marginals
from pplgen.distributions.missing import MarginalIndependent

WINDOWS = (1, 5, 20)
"""Lengths of the moving windows that are clustered: short ones separate means, long ones also scales."""
EM_STEPS = 20


def initial_regimes(
    series: Callable[[dict[str, Tensor]], HiddenMarkovSeries],
    scales: RegimeScales,
    y: Tensor,
    weights: Tensor,
    known: dict[str, Tensor],
    concentration: float,
) -> dict[str, Tensor]:
    """Estimate regimes by EM from k-means++ starts, one for each window length; return the best.

    Regimes are ordered by the mean of their first column, or in the order of their known or prior means.

    Parameters
    ----------
    series
        Distribution of series at values of the parameters.
    scales
        Prior constants of the regimes' parameters, and the kind of emissions.
    y
        Series, shape ``(num_series, num_steps, D)``.
    weights
        Weight of each series, shape ``(num_series,)``.
    known
        Known values of parameters.
    concentration
        Prior count of each transition.

    Returns
    -------
    dict
        ``pi``, ``P`` and the emission parameters.
    """
    K, observed = len(scales.m), ~y.isnan().all(-1)
    steps = clustering_features(scales, y.flatten(0, 1)).unflatten(0, y.shape[:2])
    best: tuple[float, dict[str, Tensor]] | None = None
    for window in WINDOWS:
        if best is not None and window * K * 2 > y.shape[1]:
            break
        features = _window_averages(steps, observed, window).flatten(0, 1)
        responsibilities = kmeans_plus_plus(features, K, weights=(weights[:, None] * observed).flatten())
        start = _run_em(series, scales, y, responsibilities, weights, known, concentration)
        if best is None or start[0] > best[0]:
            best = start
    assert best is not None
    return best[1]


def autoregressive_start(
    scales: RegimeScales,
    y: Tensor,
    weights: Tensor,
    known: dict[str, Tensor],
    concentration: float,
    order: int,
    switching: dict[str, bool],
) -> dict[str, Tensor]:
    """Estimate the regimes of autoregressions ignoring the lags, ordered by a parameter that switches.

    Parameters
    ----------
    scales, y, weights, concentration
        As for ``initial_regimes``, with one column.
    known
        Known values of the autoregression's parameters.
    order
        Number of lags p.
    switching
        Whether ``mu``, ``sigma`` and ``phi`` differ between regimes.

    Returns
    -------
    dict
        ``P``, ``mu``, ``sigma`` and ``phi``, the last random near zero.
    """

    def without_lags(theta: dict[str, Tensor]) -> HiddenMarkovSeries:
        emission = MarginalIndependent(dist.Normal(theta["mu"], theta["sigma"]))
        return HiddenMarkovSeries(theta["pi"].log(), theta["P"].log(), emission, y.shape[1])

    means = {"mu": known["mu"].unsqueeze(-1)} if switching["mu"] and "mu" in known else {}
    start = initial_regimes(without_lags, scales, y, weights, means, concentration)
    P, mu, sigma = start["P"], start["mu"][:, 0], start["sigma"][:, 0]
    order_of = torch.arange(len(P), device=y.device)
    if not switching["mu"]:
        expected = known["sigma"] if switching["sigma"] and "sigma" in known else order_of
        order_of = sigma.argsort()[expected.argsort().argsort()]
    phi = 0.1 * torch.randn(len(P), order, dtype=y.dtype, device=y.device)
    values = {"mu": mu[order_of], "sigma": sigma[order_of], "phi": phi}
    shared = {name: value if switching[name] else value.mean(0) for name, value in values.items()}
    return {"P": P[order_of][:, order_of], **shared}


def _run_em(
    series: Callable[[dict[str, Tensor]], HiddenMarkovSeries],
    scales: RegimeScales,
    y: Tensor,
    responsibilities: Tensor,
    weights: Tensor,
    known: dict[str, Tensor],
    concentration: float,
) -> tuple[float, dict[str, Tensor]]:
    """Take steps of EM; return the log likelihood before the last step, in nats, and the parameters."""
    K, x, m_step = len(scales.m), y.flatten(0, 1), M_STEPS[scales.kind]
    counts = weights[:, None] * ~y.isnan().all(-1)
    pair_weights = (counts[:, 1:] * (counts[:, :-1] > 0))[..., None, None]
    pi, P = y.new_full((K,), 1 / K), y.new_full((K, K), 1 / K)
    expected = next((known[name] for name in ("mu", "rate") if name in known), scales.m)[:, 0]
    responsibilities, total = responsibilities[:, _regime_order(expected, x, responsibilities)], 0.0
    for _ in range(EM_STEPS):
        at = series({"pi": pi, "P": P, **m_step(scales, x, responsibilities), **known})
        log_likelihood, regimes, pairs = marginals(at.log_initial, at.log_transition, at.log_emission(y))
        total = (weights * log_likelihood).sum().item()
        if not known:
            order = _regime_order(expected, x, (counts.unsqueeze(-1) * regimes).flatten(0, 1))
            regimes, pairs = regimes[..., order], pairs[..., order, :][..., order]
        responsibilities = (counts.unsqueeze(-1) * regimes).flatten(0, 1)
        pi, P = (
            1 + responsibilities.unflatten(0, y.shape[:2])[:, 0].sum(0),
            concentration + (pair_weights * pairs).sum((0, 1)),
        )
        pi, P = pi / pi.sum(), P / P.sum(-1, keepdim=True)
    return total, {"pi": pi, "P": P, **m_step(scales, x, responsibilities), **known}


def _regime_order(expected: Tensor, x: Tensor, responsibilities: Tensor) -> Tensor:
    """Return the cluster of each regime, matching the order of the first column's expected means."""
    first = x[:, 0]
    missing = first.isnan().unsqueeze(-1)
    weight = torch.where(missing, 0.0, responsibilities)
    means = (weight * first.nan_to_num().unsqueeze(-1)).sum(0) / weight.sum(0).clamp_min(torch.finfo(x.dtype).tiny)
    return means.argsort(stable=True)[expected.argsort(stable=True).argsort()]


def _window_averages(features: Tensor, observed: Tensor, window: int) -> Tensor:
    """Average features and their absolute values over the observed steps of a window around each step."""
    if window == 1:
        return features
    both = torch.cat([features, features.abs(), torch.ones_like(features[..., :1])], -1)
    both = torch.where(observed.unsqueeze(-1), both, 0.0)
    before = (window - 1) // 2
    padded = torch.nn.functional.pad(both, (0, 0, before, window - 1 - before))
    summed = padded.unfold(-2, window, 1).sum(-1)
    return summed[..., :-1] / summed[..., -1:].clamp_min(1.0)
