"""Annealed importance sampling: from a normal proposal to the posterior by Hamiltonian Monte Carlo.

A chain starts at a draw of the proposal q and passes densities proportional to ``q^(1 - b) p^b``, b from 0 to 1, with a
transition that leaves each unchanged. The product of the ratios of successive densities at its states is an unbiased
estimate of the integral of p, however well the chains mix (Neal 2001, Annealed importance sampling).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pplgen.posterior.normal_proposal import NormalProposal

__all__ = ["anneal"]

NUM_DENSITIES = 50
"""Number of densities after the proposal's, evenly spaced in b."""
LEAPFROGS = 5
"""Steps of a Hamiltonian trajectory."""
STEP_SIZES = (0.2, 1.0)
"""Range of step sizes in standard deviations of the proposal, log-uniform: long ones for the bulk, short for tails."""


def anneal(proposal: NormalProposal, num_chains: int) -> tuple[Tensor, Tensor]:
    """Run chains from the proposal to the posterior.

    Returns
    -------
    tuple
        The final states in the proposal's coordinates, shape ``(num_chains, P)``, and the log weights in nats, shape
        ``(num_chains,)``: the mean of their exponentials is unbiased for the integral of the joint density.
    """
    state = torch.randn(num_chains, len(proposal.mean), dtype=torch.float64)
    values, gradients = proposal.log_joint(state)
    log_weights = torch.zeros(num_chains, dtype=torch.float64)
    for index in range(1, NUM_DENSITIES + 1):
        b = index / NUM_DENSITIES
        log_weights += (values - proposal.log_density(state)) / NUM_DENSITIES
        if index < NUM_DENSITIES:
            state, values, gradients = _move(proposal, b, state, values, gradients)
    return state, log_weights


def _move(
    proposal: NormalProposal, b: float, state: Tensor, values: Tensor, gradients: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Take one Hamiltonian transition of every chain; return states, log joint densities and their gradients."""
    low, high = (math.log(size) for size in STEP_SIZES)
    sizes = (low + (high - low) * torch.rand(len(state), 1, dtype=torch.float64)).exp()
    sizes = sizes * state.shape[1] ** -0.25
    momentum = torch.randn_like(state)

    def total(state: Tensor, values: Tensor, momentum: Tensor) -> Tensor:
        return (1 - b) * proposal.log_density(state) + b * values - 0.5 * momentum.square().sum(-1)

    def force(state: Tensor, gradients: Tensor) -> Tensor:
        return b * gradients - (1 - b) * state

    moved, moved_values, moved_gradients = state, values, gradients
    before = total(state, values, momentum)
    for _ in range(LEAPFROGS):
        momentum = momentum + 0.5 * sizes * force(moved, moved_gradients)
        moved = moved + sizes * momentum
        moved_values, moved_gradients = proposal.log_joint(moved)
        momentum = momentum + 0.5 * sizes * force(moved, moved_gradients)
    log_ratio = (total(moved, moved_values, momentum) - before).nan_to_num(-math.inf)
    accepted = torch.rand(len(state), dtype=torch.float64).log() < log_ratio
    return (
        torch.where(accepted[:, None], moved, state),
        torch.where(accepted, moved_values, values),
        torch.where(accepted[:, None], moved_gradients, gradients),
    )
