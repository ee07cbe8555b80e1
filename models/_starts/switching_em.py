"""EM for switching dynamics: of given paths, from random divisions of time, and of paths drawn given series."""

from __future__ import annotations

import torch
from pplgen.models._distributions.chain import marginals
from pplgen.models._distributions.switching import Dynamics
from pplgen.models._distributions.switching_emission import Emission
from pplgen.models._guides.recognition import responsibilities_chain
from torch import Tensor

TRIES, ROUNDS = 6, 25
MOST_STEPS = 10_000
"""Steps of all series together on which several divisions are tried."""
DRAWN_ROUNDS, PATHS = 15, 4
LEAST_NOISE = 0.05
"""Standard deviation of what is seen given the state, at least, in those of the columns."""
RIDGE = 1e-3
"""Of the regressions, in units of the states' variance and of steps' share."""


def switching_autoregression(x: Tensor, inside: Tensor, num_regimes: int) -> tuple[Dynamics, Tensor]:
    """Fit given paths from several random starts at once, and keep the best.

    Each round finds the probabilities of regimes given every regime's autoregression, then the autoregressions and
    transitions given those.

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
        Regimes numbered by how often they are at work.
    probabilities : Tensor
        Of the regimes, shape ``(num_series, T, K)``.
    """
    kept = max(1, MOST_STEPS // x.shape[1])
    few, here = x[:kept], inside[:kept]
    every = torch.func.vmap(_maximised, in_dims=(None, None, 0, 0))
    regimes, pairs = _divisions(few, num_regimes)
    for _ in range(ROUNDS):
        log_pi, log_P, *rest = every(few, here, regimes, pairs)
        steps = torch.func.vmap(lambda *parts: Dynamics(*parts).log_steps(few))(log_pi, log_P, *rest)
        seen = torch.nn.functional.pad(torch.where(here[:, 1:, None], steps, 0.0), (0, 0, 1, 0))
        total, regimes, pairs = marginals(log_pi[:, None], log_P[:, None], seen)
    best = int(total.sum(-1).argmax())
    moves = Dynamics(*(part[best] for part in (log_pi, log_P, *rest)))
    regimes = regimes_of(x, inside, moves)[1]
    order = (regimes * inside.unsqueeze(-1)).sum((0, 1)).argsort(descending=True)
    log_P = moves.log_P[order][:, order]
    per_regime = {name: getattr(moves, name)[order] for name in ("log_pi", "A", "b", "L")}
    return moves._replace(log_P=log_P, **per_regime), regimes[..., order]


def refined(
    y: Tensor, inside: Tensor, dynamics: Dynamics, emission: Emission, regimes: Tensor
) -> tuple[Dynamics, Emission, Tensor]:
    """Climb on from rough parameters, with paths drawn given the series under the soft regimes of the round before.

    Parameters
    ----------
    y
        Series on a common scale, NaN where missing, shape ``(num_series, T, E)``.
    inside
        Steps that belong to their series, shape ``(num_series, T)``.
    dynamics, emission
        Where to start; the regimes share the emission.
    regimes
        Probabilities of regimes, shape ``(num_series, T, K)``.
    """
    everywhere = inside.repeat(PATHS, 1)
    for _ in range(DRAWN_ROUNDS):
        logits = regimes.clamp_min(1e-4).log()
        corrections = (0, 2 + len(dynamics.m0))
        chain = responsibilities_chain(torch.nn.functional.pad(logits, corrections), y, inside, dynamics, emission)
        x = chain.rsample((PATHS,))
        _, drawn, pairs = regimes_of(x.flatten(0, 1), everywhere, dynamics)
        dynamics = Dynamics(*_maximised(x.flatten(0, 1), everywhere, drawn, pairs))
        emission = _regressed(y, x)
        regimes = drawn.unflatten(0, (PATHS, len(y))).mean(0)
    return dynamics, emission, regimes


def regimes_of(x: Tensor, inside: Tensor, dynamics: Dynamics) -> tuple[Tensor, Tensor, Tensor]:
    """Find the probabilities of regimes, and of neighbours, given paths."""
    steps = torch.where(inside[:, 1:, None], dynamics.log_steps(x), 0.0)
    return marginals(dynamics.log_pi, dynamics.log_P, torch.nn.functional.pad(steps, (0, 0, 1, 0)))


def _divisions(x: Tensor, num_regimes: int) -> tuple[Tensor, Tensor]:
    """Divide time into stretches of random regimes, several times."""
    N, T, _ = x.shape
    length = max(1, T // (5 * num_regimes))
    stretches = torch.randint(num_regimes, (TRIES, N, -(-T // length)), device=x.device)
    hard = torch.nn.functional.one_hot(stretches.repeat_interleave(length, -1)[..., :T], num_regimes).to(x.dtype)
    regimes = 0.9 * hard + 0.1 / num_regimes
    return regimes, regimes[..., :-1, :, None] * regimes[..., 1:, None, :]


def _maximised(x: Tensor, inside: Tensor, regimes: Tensor, pairs: Tensor) -> tuple[Tensor, ...]:
    """Fit every regime's autoregression and the transitions, given the probabilities of regimes."""
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
    moves = (pairs * later.unsqueeze(-1)).sum((0, 1)) + 1
    start = regimes[:, 0].sum(0) + 1
    return (
        (start / start.sum()).log(),
        (moves / moves.sum(-1, keepdim=True)).log(),
        x.new_zeros(D),
        torch.eye(D, dtype=x.dtype, device=x.device),
        coefficients[:, :D].mT,
        coefficients[:, D],
        torch.linalg.cholesky(Q),
    )


def _regressed(y: Tensor, x: Tensor) -> Emission:
    """Fit how series are seen along paths, shape ``(num_paths, num_series, T, D)``, from the entries that are there."""
    D = x.shape[-1]
    design = torch.cat([x, torch.ones_like(x[..., :1])], -1).flatten(1, 2)
    seen = (~y.isnan()).to(x.dtype).flatten(0, 1)
    values = y.nan_to_num().flatten(0, 1)
    eye = torch.eye(D + 1, dtype=x.dtype, device=x.device)
    count = len(x) * seen.sum(0)
    gram = torch.einsum("te,mti,mtj->eij", seen, design, design) + RIDGE * (1 + count)[:, None, None] * eye
    cross = torch.einsum("te,mti->ei", seen * values, design)
    coefficients = torch.linalg.solve(gram, cross.unsqueeze(-1)).squeeze(-1)
    residual = seen * (values - design @ coefficients.mT)
    r = (residual.square().sum((0, 1)) / count.clamp_min(1)).sqrt().clamp_min(LEAST_NOISE)
    return Emission(coefficients[None, :, :D], coefficients[None, :, D], r[None])
