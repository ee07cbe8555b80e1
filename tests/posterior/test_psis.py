"""Pareto-smoothed importance weights."""

import torch

from pplgen.posterior.psis import smoothed_weights


def test_pareto_smoothed_weights():
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(100_000, generator=generator, dtype=torch.float64)
    # Pareto tails of shapes k
    true = torch.tensor([0.3, 0.6], dtype=torch.float64)
    weights, k = smoothed_weights(-true * uniform.log()[:, None])
    torch.testing.assert_close(weights.sum(0), torch.ones(2).double())
    # four standard errors: that of the fit to the 3 sqrt(100,000) = 949 largest is (1 + k) / sqrt(949), .04 and .05
    assert ((k - true).abs() < 4 * (1 + true) / 949**0.5).all()
    weights, k = smoothed_weights(torch.zeros(100))
    assert k == -torch.inf
    torch.testing.assert_close(weights, torch.full((100,), 0.01).double())
    _, k = smoothed_weights(torch.tensor([0.0] + [-1e4] * 99))
    assert k == torch.inf
