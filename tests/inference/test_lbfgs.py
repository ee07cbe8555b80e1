"""L-BFGS for many functions at once."""

import torch

from pplgen.inference.lbfgs import DenseInverseHessian, LimitedMemoryInverseHessian, Point, line_search


def rosenbrock(vectors):
    """Rosenbrock's function in two dimensions, with its gradient; infinite to the left of -1.5."""
    x, y = vectors.unbind(-1)
    values = (1 - x).square() + 100 * (y - x * x).square()
    gradients = torch.stack([2 * (x - 1) - 400 * x * (y - x * x), 200 * (y - x * x)], -1)
    return Point(vectors, torch.where(x < -1.5, torch.inf, values), gradients)


def test_each_function_is_minimised_at_its_own_pace():
    starts = torch.tensor([[-1.2, 1.0], [0.0, 0.0], [1.0, 1.0], [0.5, 2.0]], dtype=torch.float64)
    point, inverse = rosenbrock(starts), LimitedMemoryInverseHessian(torch.ones_like(starts))
    for _ in range(100):
        after, _ = line_search(rosenbrock, point, -inverse.times(point.gradients), point.gradients.norm(dim=-1) > 1e-9)
        assert (after.values <= point.values + 1e-12).all()
        inverse.update(point, after)
        point = after
    torch.testing.assert_close(point.vectors, torch.ones_like(starts), rtol=0, atol=1e-6)


def test_a_dense_inverse_is_that_of_the_hessian():
    A = torch.tensor([[[4.0, 1.0], [1.0, 3.0]], [[1.0, 0.0], [0.0, 100.0]]], dtype=torch.float64)
    dense = DenseInverseHessian(A, A)
    g = torch.tensor([[1.0, 2.0], [-1.0, 5.0]], dtype=torch.float64)
    torch.testing.assert_close(dense.times(g), torch.linalg.solve(A, g), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(dense.decrement(g), (g * torch.linalg.solve(A, g)).sum(-1) / 2)


def test_a_flat_direction_is_left_out():
    A = torch.tensor([[[2.0, 0.0], [0.0, 0.0]]], dtype=torch.float64)
    g = torch.tensor([[4.0, 1e-9]], dtype=torch.float64)
    torch.testing.assert_close(DenseInverseHessian(A, A).times(g), torch.tensor([[2.0, 0.0]], dtype=torch.float64))
