"""Parameters of state space models: linear Gaussian, hidden Markov, switching linear Gaussian."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["HiddenMarkov", "LinearGaussian", "MarkovChain", "StateSpace", "SwitchingLinearGaussian"]


class LinearGaussian(NamedTuple):
    """Parameters of a linear Gaussian state space model with D latent and E observed dimensions.

    All but ``m0`` and ``S0`` are constant or have a leading time axis of length T. Batch axes precede the time axis,
    which has length 1 for a constant, and broadcast: ``A`` is ``(D, D)``, ``(T, D, D)``, ``(batch, 1, D, D)`` or
    ``(batch, T, D, D)``, ``m0`` is ``(D,)`` or ``(batch, D)``. The first steps of ``A``, ``b`` and ``Q`` are not used.
    """

    m0: Tensor
    """``E[x_1]``, shape ``(D,)``."""
    S0: Tensor
    """``Cov[x_1]``, shape ``(D, D)``, positive semi-definite."""
    A: Tensor
    """``x_t = A_t x_{t-1} + b_t + N(0, Q_t)``, shape ``(D, D)``."""
    b: Tensor
    """``x_t = A_t x_{t-1} + b_t + N(0, Q_t)``, shape ``(D,)``."""
    Q: Tensor
    """``x_t = A_t x_{t-1} + b_t + N(0, Q_t)``, shape ``(D, D)``, positive semi-definite."""
    C: Tensor
    """``y_t = C_t x_t + d_t + N(0, R_t)``, shape ``(E, D)``."""
    d: Tensor
    """``y_t = C_t x_t + d_t + N(0, R_t)``, shape ``(E,)``."""
    R: Tensor
    """``y_t = C_t x_t + d_t + N(0, R_t)``, shape ``(E, E)``, positive definite."""


class MarkovChain(NamedTuple):
    """Log potentials of a chain of T states with K values each, minus infinity where impossible."""

    log_initial: Tensor
    """``log p(s_1)``, shape ``(..., K)``."""
    log_transition: Tensor
    """``log p(s_{t+1} | s_t)``, from rows to columns, shape ``(K, K)`` or ``(..., T - 1, K, K)``."""


class HiddenMarkov(NamedTuple):
    """A hidden Markov model with observations y_1, ..., y_T."""

    chain: MarkovChain
    """Chain of the hidden states."""
    log_emission: Tensor
    """``log p(y_t | s_t, y_1:t-1)`` in nats, zero where y_t is missing, shape ``(..., T, K)``."""
    regimes: Tensor
    """Regime of each hidden state, shape ``(K,)``: ``arange(K)`` unless states also encode past regimes."""


class SwitchingLinearGaussian(NamedTuple):
    """Parameters of a switching linear Gaussian model with K regimes, D latent and E observed dimensions.

    Those of ``A``, ``b``, ``Q``, ``C``, ``d`` and ``R`` that all regimes share may omit the regime axis.
    """

    pi: Tensor
    """``p(s_1)``, shape ``(K,)``."""
    P: Tensor
    """``p(s_t | s_{t-1})``, from rows to columns, shape ``(K, K)``."""
    m0: Tensor
    """``E[x_1]`` in every regime, shape ``(D,)``."""
    S0: Tensor
    """``Cov[x_1]`` in every regime, shape ``(D, D)``."""
    A: Tensor
    """``x_t = A[s_t] x_{t-1} + b[s_t] + N(0, Q[s_t])``, shape ``(K, D, D)``."""
    b: Tensor
    """``x_t = A[s_t] x_{t-1} + b[s_t] + N(0, Q[s_t])``, shape ``(K, D)``."""
    Q: Tensor
    """``x_t = A[s_t] x_{t-1} + b[s_t] + N(0, Q[s_t])``, shape ``(K, D, D)``."""
    C: Tensor
    """``y_t = C[s_t] x_t + d[s_t] + N(0, R[s_t])``, shape ``(K, E, D)``."""
    d: Tensor
    """``y_t = C[s_t] x_t + d[s_t] + N(0, R[s_t])``, shape ``(K, E)``."""
    R: Tensor
    """``y_t = C[s_t] x_t + d[s_t] + N(0, R[s_t])``, shape ``(K, E, E)``."""


StateSpace = LinearGaussian | HiddenMarkov | SwitchingLinearGaussian
