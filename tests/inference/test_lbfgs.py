"""L-BFGS for many functions at once."""

import itertools

import torch

from pplgen.inference.lbfgs import MEMORY, DenseInverseHessian, LimitedMemoryInverseHessian, Point, line_search


def rosenbrock(vectors, which=None):
    """Rosenbrock's function in two dimensions, with its gradient; infinite to the left of -1.5, NaN where not asked."""
    x, y = vectors.unbind(-1)
    values = (1 - x).square() + 100 * (y - x * x).square()
    gradients = torch.stack([2 * (x - 1) - 400 * x * (y - x * x), 200 * (y - x * x)], -1)
    values = torch.where(x < -1.5, torch.inf, values)
    return Point(vectors, values if which is None else torch.where(which, values, torch.nan), gradients)


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


def test_steps_not_taken_leave_the_curvature_as_it_was():
    g = torch.tensor([[1.0, 2.0], [-1.0, 5.0]], dtype=torch.float64)
    points = [rosenbrock(torch.tensor([[x, 1.0], [0.5, x]], dtype=torch.float64)) for x in (0.0, 0.1, 0.3, 0.4)]
    inverse, only = (LimitedMemoryInverseHessian(torch.ones_like(g)) for _ in range(2))
    for before, after in itertools.pairwise(points):
        inverse.update(before, after)
        for _ in range(MEMORY):
            inverse.update(after, after)
        only.update(before, after)
    torch.testing.assert_close(inverse.times(g), only.times(g), rtol=1e-12, atol=0)
    inverse.forget(torch.tensor([False, True]))
    torch.testing.assert_close(inverse.times(g)[0], only.times(g)[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(inverse.times(g)[1], g[1] / g[1].norm())


def test_wrong_derivatives_are_corrected_by_the_steps_taken():
    A = torch.tensor([[[4.0, 1.0], [1.0, 3.0]]], dtype=torch.float64)
    dense = DenseInverseHessian(A, 1.3 * A + 0.2)
    point = torch.tensor([[3.0, -2.0]], dtype=torch.float64)
    for _ in range(8):  # without corrections, 4e-5 are left
        gradients = torch.einsum("rpq,rq->rp", A, point)
        after = point - dense.step(gradients)
        values = torch.zeros(1)
        dense.update(Point(point, values, gradients), Point(after, values, torch.einsum("rpq,rq->rp", A, after)))
        point = after
    assert point.norm() < 1e-9  # Broyden's method ends after 2P steps on a linear system (Gay 1979)
