"""Linear Gaussian state space models: shared operations on parameters, missing coordinates and normal densities."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from pplgen.errors import InputError, renamed
from pplgen.exact.shapes import along_time, broadcast_batches, check_dtypes, check_series, check_shape
from pplgen.story.dynamics import LinearGaussian

__all__ = ["log_normal", "log_normals", "mask_missing", "matvec", "symmetrise", "unroll"]

__getattr__ = renamed(
    __name__,
    {
        "times": "matvec",
        "without_gaps": "mask_missing",
    },
)


def unroll(y: Float[Tensor, "... time observed"], parameters: LinearGaussian) -> LinearGaussian:
    """Expand parameters over time and include the initial state in the dynamics: ``x_1 = 0 x_0 + m0 + N(0, S0)``.

    The means ``m0`` and ``b`` are also expanded to all batch axes; shared covariances are not.

    Raises
    ------
    InputError
        If shapes or dtypes do not match.
    """
    check_dtypes(y=y, **parameters._asdict())
    check_series(y)
    m0, S0, A, b, Q, C, d, R = parameters
    if m0.ndim == 0:
        raise InputError("m0 has shape (); expected (D,), batch axes in front")
    (T, E), D = y.shape[-2:], m0.shape[-1]
    check_shape("S0", S0, D, D)
    A, Q = along_time("A", A, T, D, D), along_time("Q", Q, T, D, D)
    C, R = along_time("C", C, T, E, D), along_time("R", R, T, E, E)
    b, d = along_time("b", b, T, D), along_time("d", d, T, E)
    matrices = {name: matrix.shape[:-3] for name, matrix in {"A": A, "Q": Q, "C": C, "R": R}.items()}
    vectors = {name: vector.shape[:-2] for name, vector in {"y": y, "b": b, "d": d}.items()}
    batch = broadcast_batches(**vectors, **matrices, m0=m0.shape[:-1], S0=S0.shape[:-2])
    m0 = m0.expand(*batch, D)
    is_first = (torch.arange(T, device=y.device) == 0).unsqueeze(-1)
    A = torch.where(is_first.unsqueeze(-1), 0, A)
    b = torch.where(is_first, m0.unsqueeze(-2), b)
    Q = torch.where(is_first.unsqueeze(-1), S0.unsqueeze(-3), Q)
    return LinearGaussian(m0, S0, A, b, Q, C, d, R)


def mask_missing(
    y: Float[Tensor, "... observed"],
    C: Float[Tensor, "... observed state"],
    d: Float[Tensor, "... observed"],
    R: Float[Tensor, "... observed observed"],
) -> tuple[
    Float[Tensor, "... observed"],
    Float[Tensor, "... observed state"],
    Float[Tensor, "... observed"],
    Float[Tensor, "... observed observed"],
]:
    """Replace missing coordinates by uninformative ones: value 0, mean 0, independent noise of variance 1."""
    observed = ~y.isnan()
    if observed.all():
        return y, C, d, R
    both = observed.unsqueeze(-1) & observed.unsqueeze(-2)
    identity = torch.eye(y.shape[-1], dtype=R.dtype, device=R.device)
    return (
        torch.where(observed, y, 0),
        torch.where(observed.unsqueeze(-1), C, 0),
        torch.where(observed, d, 0),
        torch.where(both, R, identity),
    )


def log_normal(
    deviation: Float[Tensor, "... entries"],
    root: Float[Tensor, "... entries entries"],
    num_entries: Float[Tensor, "..."] | None = None,
) -> Float[Tensor, "..."]:
    """Return log densities of normal vectors in nats.

    Parameters
    ----------
    deviation
        Difference from the mean.
    root
        Cholesky factor of the covariance.
    num_entries
        Number of observed entries; the others are zero with variance one. Default: all.
    """
    return log_normals(deviation.unsqueeze(-1), root, num_entries).squeeze(-1)


def log_normals(
    deviations: Float[Tensor, "... entries vectors"],
    root: Float[Tensor, "... entries entries"],
    num_entries: Float[Tensor, "..."] | None = None,
) -> Float[Tensor, "... vectors"]:
    """Return ``log_normal`` of vectors with a common ``root``, the columns of a matrix."""
    number: Tensor | int = deviations.shape[-2] if num_entries is None else num_entries.unsqueeze(-1)
    squared = torch.linalg.solve_triangular(root, deviations, upper=False).square().sum(dim=-2)
    log_determinant = 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1, keepdim=True)
    return -0.5 * (number * math.log(2 * math.pi) + log_determinant + squared)


def matvec(
    matrix: Float[Tensor, "... rows columns"], vector: Float[Tensor, "... columns"]
) -> Float[Tensor, "... rows"]:
    """Return the matrix-vector product."""
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def symmetrise(matrix: Float[Tensor, "... size size"]) -> Float[Tensor, "... size size"]:
    """Return the mean of a matrix and its transpose, against asymmetry from rounding."""
    return (matrix + matrix.mT) / 2
