"""Pareto-smoothed importance weights."""

import torch

from pplgen.posterior.psis import smoothed_weights


def test_pareto_smoothed_weights():
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(4000, generator=generator, dtype=torch.float64)
    # a Pareto tail of shape k
    weights, k = smoothed_weights(torch.stack([-0.3 * uniform.log(), -0.9 * uniform.log()], -1))
    torch.testing.assert_close(weights.sum(0), torch.ones(2).double())
    # the fit's own error with 190 draws in the tail is about (1 + k) / sqrt(190)
    torch.testing.assert_close(k, torch.tensor([0.3, 0.9]).double(), rtol=0, atol=3 * 1.9 / 190**0.5)
    weights, k = smoothed_weights(torch.zeros(100))
    assert k == -torch.inf
    torch.testing.assert_close(weights, torch.full((100,), 0.01).double())
    _, k = smoothed_weights(torch.tensor([0.0] + [-1e4] * 99))
    assert k == torch.inf
