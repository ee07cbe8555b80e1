"""What tests of state space models share: random models, and the switching model of growth rates."""

import csv
import itertools
import math

import pytest
import torch

from pplgen.exact.switching import per_regime
from pplgen.story.dynamics import LinearGaussian, SwitchingLinearGaussian

# eighty-six standard normals, the same at any seed: what collapsing costs depends on the model
NUMBERS = (
    0.39, -0.22, -0.32, -1.21, 1.04, -0.63, 0.57, 0.54, -0.39, -1.04, 1.32, 0.75, -1.33, -1.24, -0.10, -0.95, 0.62,
    -0.24, 0.02, -0.49, -0.06, -1.57, 0.43, -1.48, -0.48, 0.25, 0.16, -0.16, 0.42, 1.00, 0.60, 0.11, -0.84, -0.29,
    -0.15, -0.93, -1.33, 1.42, -0.42, 0.36, -0.15, 0.11, -0.11, -1.40, -1.38, -0.10, -0.97, 0.26, 0.68, -0.39, -0.51,
    -0.13, -0.15, 1.24, 1.49, 0.50, 0.23, 1.17, -1.40, 0.90, 1.10, -0.52, -0.85, -0.99, 0.63, 0.53, -0.85, 0.94,
    -2.12, 0.02, 0.48, 1.29, 0.90, -0.25, 1.94, -0.36, -1.05, -1.03, 1.35, 0.80, -0.47, 0.76, 0.53, 1.34, 1.61,
    0.07,
)  # fmt: skip


def normal(seed):
    """Return a function that draws standard normals of a shape, float64."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


def covariance(root):
    """Return a positive definite matrix from any square one."""
    return root @ root.mT / root.shape[-1] + 0.1 * torch.eye(root.shape[-1], dtype=root.dtype)


@pytest.fixture
def constant_model():
    """A series of 30 steps in 2 dimensions from 3 latent ones, all parameters constant."""
    draw = normal(0)
    return draw(30, 2), LinearGaussian(
        m0=draw(3),
        S0=covariance(draw(3, 3)),
        A=0.5 * draw(3, 3),
        b=draw(3),
        Q=covariance(draw(3, 3)),
        C=draw(2, 3),
        d=draw(2),
        R=covariance(draw(2, 2)),
    )


@pytest.fixture
def varying_model():
    """Two series of 7 steps with gaps; parameters that vary in time, across series, in both or in neither."""
    draw = normal(1)
    y = draw(2, 7, 2)
    y[0, 0, 1] = y[0, 3, :] = y[1, 5, 0] = y[1, 6, :] = torch.nan
    return y, LinearGaussian(
        m0=draw(2, 3),
        S0=covariance(draw(3, 3)),
        A=draw(7, 3, 3),
        b=draw(2, 7, 3),
        Q=covariance(draw(2, 1, 3, 3)),
        C=draw(2, 7, 2, 3),
        d=draw(2),
        R=covariance(draw(7, 2, 2)),
    )


@pytest.fixture
def growth(reference_data):
    """Growth of US real GNP in percent, 135 quarters, with a switching autoregression seen through noise."""
    with (reference_data / "series" / "hamilton_rgnp.csv").open() as file:
        y = torch.tensor([[float(row["rgnp_growth_pct"])] for row in csv.DictReader(file)], dtype=torch.float64)
    one = torch.ones(1, dtype=y.dtype)
    regimes = torch.tensor([[0.3, -0.4, 0.5], [0.8, 0.3, 0.2]], dtype=y.dtype)
    return y, SwitchingLinearGaussian(
        pi=torch.tensor([2 / 7, 5 / 7], dtype=y.dtype),
        P=torch.tensor([[0.75, 0.25], [0.1, 0.9]], dtype=y.dtype),
        m0=0 * one,
        S0=one.reshape(1, 1),
        A=regimes[:, 0, None, None],
        b=regimes[:, 1, None],
        Q=regimes[:, 2, None, None],
        C=one.reshape(1, 1),
        d=0 * one,
        R=0.25 * one.reshape(1, 1),
    )


@pytest.fixture
def switching_model():
    """A short series in 2 dimensions with a gap, from 2 latent ones in 3 regimes that also change how it is seen."""
    numbers = iter(NUMBERS)

    def draw(*shape):
        return torch.tensor(list(itertools.islice(numbers, math.prod(shape))), dtype=torch.float64).reshape(shape)

    y = draw(6, 2)
    y[2, 0] = y[4, :] = torch.nan
    return y, SwitchingLinearGaussian(
        pi=draw(3).softmax(-1),
        P=draw(3, 3).softmax(-1),
        m0=draw(2),
        S0=covariance(draw(2, 2)),
        A=0.6 * draw(3, 2, 2),
        b=draw(3, 2),
        Q=covariance(draw(3, 2, 2)),
        C=draw(3, 2, 2),
        d=draw(2),
        R=covariance(draw(3, 2, 2)),
    )


@pytest.fixture
def switching_models(switching_model):
    """Three short series; two models of them; and these as one, with batch axes for both."""
    y, parameters = switching_model
    full = per_regime(y, parameters)
    other = full._replace(P=full.P.flip(0), A=0.5 * full.A, d=full.d + 1)
    both = SwitchingLinearGaussian(*(torch.stack(pair).unsqueeze(1) for pair in zip(full, other, strict=True)))
    return torch.stack([y, y.flip(0), y + 1]), (full, other), both
