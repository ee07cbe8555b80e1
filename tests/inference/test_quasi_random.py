"""Base draws by randomised quasi-Monte Carlo."""

import torch

from pplgen.inference.quasi_random import draw_blocks

CPU = torch.device("cpu")


def test_blocks_are_mirrored_and_standardised():
    draws = draw_blocks(4, 32, 3, 2, seed=0, device=CPU)
    assert (len(draws), draws.normals.shape, draws.uniforms.shape) == (128, (128, 3), (128, 2))
    for normals, uniforms in zip(draws.normals.split(32), draws.uniforms.split(32), strict=True):
        # rounding of float64
        torch.testing.assert_close(normals.mean(0), torch.zeros(3).double(), rtol=0, atol=1e-12)
        torch.testing.assert_close(normals.T @ normals / 32, torch.eye(3).double(), rtol=0, atol=1e-12)
        torch.testing.assert_close(uniforms[:16] + uniforms[16:], torch.ones(16, 2).double())
    assert not torch.equal(draws.normals[:32], draws.normals[32:64])


def test_draws_depend_on_the_seed_alone():
    first, again, other = (draw_blocks(2, 8, 5, 0, seed=seed, device=CPU).normals for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_many_dimensions_have_independent_draws():
    draws = draw_blocks(2, 4, 30_000, 0, seed=0, device=CPU).normals
    # unit variance in each dimension over a block; neighbouring dimensions uncorrelated: 1 / sqrt(120,000) = .003
    torch.testing.assert_close(draws[:4].square().mean(0), torch.ones(30_000).double())
    assert abs(float((draws[:, :-1] * draws[:, 1:]).mean())) < 0.012
