"""EM for switching dynamics: given paths, from random segmentations, and given series, with sampled paths."""

from __future__ import annotations

import torch
from pplgen.models._guides.recognition import responsibilities_chain
from torch import Tensor

from pplgen.distributions.hidden_markov import marginals
from pplgen.distributions.switching_observations import Emission
from pplgen.distributions.switching_path import Dynamics

TRIES, ROUNDS = 6, 25
MAX_STEPS = 10_000
"""Total number of steps of the series on which several segmentations are compared."""
MONTE_CARLO_ROUNDS, PATHS = 15, 4
MIN_NOISE = 0.05
"""Smallest observation noise, in standard deviations of the columns."""
RIDGE = 1e-3
"""Ridge penalty of the regressions, in units of the states' variance, per step."""


def fit_switching_autoregression(x: Tensor, inside: Tensor, num_regimes: int) -> tuple[Dynamics, Tensor]:
    """Fit a switching autoregression to given paths by EM from several random starts; return the best.

    The E-step computes the marginals of regimes, the M-step the autoregressions and transitions.

    Parameters
    ----------
    x
        States of unit variance, shape ``(num_series, T, D)``.
    inside
        Steps that belong to their series, shape ``(num_series, T)``.
    num_regimes
        K.

    Returns
    -------
    dynamics : Dynamics
        Dynamics, regimes ordered by decreasing frequency.
    probabilities : Tensor
        Marginals of the regimes, shape ``(num_series, T, K)``.
    """
    num_series = max(1, MAX_STEPS // x.shape[1])
    subset, mask = x[:num_series], inside[:num_series]
    m_steps = torch.func.vmap(_m_step, in_dims=(None, None, 0, 0))
    regimes, pairs = _random_segmentations(subset, num_regimes)
    for _ in range(ROUNDS):
        parts = m_steps(subset, mask, regimes, pairs)
        steps = torch.func.vmap(lambda *parts: Dynamics(*parts).log_steps(subset))(*parts)
        log_emission = torch.nn.functional.pad(torch.where(mask[:, 1:, None], steps, 0.0), (0, 0, 1, 0))
        total, regimes, pairs = marginals(parts[0].log()[:, None], parts[1].log()[:, None], log_emission)
    best = int(total.sum(-1).argmax())
    dynamics = Dynamics(*(part[best] for part in parts))
    regimes = regime_marginals(x, inside, dynamics)[1]
    order = (regimes * inside.unsqueeze(-1)).sum((0, 1)).argsort(descending=True)
    per_regime = {name: getattr(dynamics, name)[order] for name in ("pi", "P", "A", "b", "q", "l")}
    dynamics = dynamics._replace(**per_regime)
    return dynamics._replace(P=dynamics.P[:, order]), regimes[..., order]


def monte_carlo_em(
    y: Tensor, inside: Tensor, dynamics: Dynamics, emission: Emission, regimes: Tensor
) -> tuple[Dynamics, Emission, Tensor]:
    """Refine rough parameters by Monte Carlo EM, with paths drawn given the series and the last round's soft regimes.

    Parameters
    ----------
    y
        Standardised series, NaN where missing, shape ``(num_series, T, E)``.
    inside
        Steps that belong to their series, shape ``(num_series, T)``.
    dynamics, emission
        Initial parameters; the regimes share the emission.
    regimes
        Initial marginals of regimes, shape ``(num_series, T, K)``.
    """
    mask = inside.repeat(PATHS, 1)
    for _ in range(MONTE_CARLO_ROUNDS):
        logits = regimes.clamp_min(1e-4).log()
        corrections = (0, 2 + len(dynamics.m0))
        chain = responsibilities_chain(torch.nn.functional.pad(logits, corrections), y, inside, dynamics, emission)
        x = chain.rsample((PATHS,))
        _, marginal, pairs = regime_marginals(x.flatten(0, 1), mask, dynamics)
        dynamics = Dynamics(*_m_step(x.flatten(0, 1), mask, marginal, pairs))
        emission = _emission_m_step(y, x)
        regimes = marginal.unflatten(0, (PATHS, len(y))).mean(0)
    return dynamics, emission, regimes


def regime_marginals(x: Tensor, inside: Tensor, dynamics: Dynamics) -> tuple[Tensor, Tensor, Tensor]:
    """Return log normaliser, marginals of regimes, and of successive pairs, given paths."""
    steps = torch.where(inside[:, 1:, None], dynamics.log_steps(x), 0.0)
    return marginals(dynamics.pi.log(), dynamics.P.log(), torch.nn.functional.pad(steps, (0, 0, 1, 0)))


def _random_segmentations(x: Tensor, num_regimes: int) -> tuple[Tensor, Tensor]:
    """Segment time into blocks of random regimes, several times."""
    N, T, _ = x.shape
    length = max(1, T // (5 * num_regimes))
    blocks = torch.randint(num_regimes, (TRIES, N, -(-T // length)), device=x.device)
    hard = torch.nn.functional.one_hot(blocks.repeat_interleave(length, -1)[..., :T], num_regimes).to(x.dtype)
    regimes = 0.9 * hard + 0.1 / num_regimes
    return regimes, regimes[..., :-1, :, None] * regimes[..., 1:, None, :]


def _m_step(x: Tensor, inside: Tensor, regimes: Tensor, pairs: Tensor) -> tuple[Tensor, ...]:
    """Fit each regime's autoregression and the transitions, given the marginals of regimes and pairs."""
    D = x.shape[-1]
    later = inside[:, 1:, None].to(x.dtype)
    weights = (regimes[:, 1:] * later).flatten(0, 1)
    now, before = x[:, 1:].flatten(0, 1), x[:, :-1].flatten(0, 1)
    design = torch.cat([before, torch.ones_like(before[:, :1])], -1)
    count = weights.sum(0)[:, None, None]
    eye = torch.eye(D + 1, dtype=x.dtype, device=x.device)
    weighted = weights.mT.unsqueeze(-1) * design
    coefficients = torch.linalg.solve(weighted.mT @ design + RIDGE * (1 + count) * eye, weighted.mT @ now)
    residual = now - design @ coefficients
    scatter = (weights.mT.unsqueeze(-1) * residual).mT @ residual
    Q = (scatter + RIDGE * (D + count) * eye[1:, 1:]) / (1 + count)
    transitions = (pairs * later.unsqueeze(-1)).sum((0, 1)) + 1
    start = regimes[:, 0].sum(0) + 1
    L = torch.linalg.cholesky(Q)
    q = L.diagonal(dim1=-2, dim2=-1)
    i, j = torch.tril_indices(D, D, offset=-1)
    return (
        start / start.sum(),
        transitions / transitions.sum(-1, keepdim=True),
        x.new_zeros(D),
        x.new_ones(D),
        coefficients[:, :D].mT,
        coefficients[:, D],
        q,
        (L / q.unsqueeze(-2))[:, i, j],
    )


def _emission_m_step(y: Tensor, x: Tensor) -> Emission:
    """Fit the emission by regression on paths, ``(num_paths, num_series, T, D)``, from the observed entries."""
    D = x.shape[-1]
    design = torch.cat([x, torch.ones_like(x[..., :1])], -1).flatten(1, 2)
    observed = (~y.isnan()).to(x.dtype).flatten(0, 1)
    values = y.nan_to_num().flatten(0, 1)
    eye = torch.eye(D + 1, dtype=x.dtype, device=x.device)
    count = len(x) * observed.sum(0)
    gram = torch.einsum("te,mti,mtj->eij", observed, design, design) + RIDGE * (1 + count)[:, None, None] * eye
    cross = torch.einsum("te,mti->ei", observed * values, design)
    coefficients = torch.linalg.solve(gram, cross.unsqueeze(-1)).squeeze(-1)
    residual = observed * (values - design @ coefficients.mT)
    r = (residual.square().sum((0, 1)) / count.clamp_min(1)).sqrt().clamp_min(MIN_NOISE)
    return Emission(coefficients[:, :D], coefficients[:, D], r)
