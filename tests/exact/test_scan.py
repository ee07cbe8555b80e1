"""The associative scan against a loop, with an operation that does not commute."""

import pytest
import torch

from pplgen.exact.scan import associative_scan


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 5, 7, 8, 13])
@pytest.mark.parametrize("reverse", [False, True])
def test_equals_a_loop(num_steps, reverse):
    """Affine maps ``x -> M x + v``, the matrices shared by two batches of vectors."""
    generator = torch.Generator().manual_seed(num_steps)
    M = torch.randn(num_steps, 2, 2, generator=generator, dtype=torch.float64)
    v = torch.randn(2, num_steps, 2, 1, generator=generator, dtype=torch.float64)

    def combine(earlier, later):
        return later[0] @ earlier[0], later[0] @ earlier[1] + later[1]

    matrices, vectors = associative_scan(combine, (M, v), dim=-3, reverse=reverse)
    for t in range(num_steps):
        members = range(t, num_steps) if reverse else range(t + 1)
        matrix, vector = torch.eye(2, dtype=M.dtype), torch.zeros(2, 2, 1, dtype=M.dtype)
        for s in members:
            matrix, vector = M[s] @ matrix, M[s] @ vector + v[:, s]
        torch.testing.assert_close(matrices[t], matrix)
        torch.testing.assert_close(vectors[:, t], vector)


def test_rounds_grow_with_the_logarithm():
    rounds = []

    def combine(earlier, later):
        rounds.append(len(earlier[0]))
        return (earlier[0] + later[0],)

    (sums,) = associative_scan(combine, (torch.ones(1024),), dim=-1)
    torch.testing.assert_close(sums, torch.arange(1.0, 1025))
    assert len(rounds) <= 2 * 10
    assert sum(rounds) <= 2 * 1024
