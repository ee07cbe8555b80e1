"""Guides of the parameters of a mixture's columns: for each kind of column its conjugate family, given the components.

===========  =============================================================
kind         guide of component k, with separate parameters for each column
===========  =============================================================
normal       sigma_k^-2 ~ Gamma,  mu_k | sigma_k ~ Normal
student      the same, which is not conjugate
poisson      rate_k ~ Gamma
binary       p_k ~ Beta
categorical  p_k ~ Dirichlet
===========  =============================================================
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.distributions import constraints

from pplgen.distributions.inverse_chi import InverseRootGamma
from pplgen.story.base import InputError


class ConjugateColumns(PyroModule):
    """Guide of the columns of one kind, with m, the priors' location or mean in units of the columns.

    Parameters
    ----------
    kind
        Kind of these columns, with which the names of their sites start.
    width
        Number of these columns.
    num_components
        Number of components K.
    """

    sites: tuple[str, ...] = ("probability",)
    """Names of the sample sites after the kind's, each with axes ``(component, column of this kind)``."""
    constants: tuple[str, ...] = ()
    """Which of m and s the priors have."""

    def __init__(self, kind: str, width: int, num_components: int) -> None:
        super().__init__()
        self.kind, self.shape = kind, (num_components, width)
        self.register_buffer("m", torch.zeros(width))
        self.given: dict[str, list[float] | None] = {}

    def fix_priors(self, mean: list[float] | None, scale: list[float] | None) -> None:
        """Set m and s, where this kind has them, to the given values, if not None, for good."""
        if self.kind == "poisson" and mean is not None and min(mean) <= 0:
            raise InputError(f"prior_mean: {min(mean)!r} for a poisson column: expected a positive mean of its rate")
        self.given = {"m": mean, "s": scale}
        self._set_priors()

    def _set_priors(self, **values: Tensor) -> None:
        """Set m and s to these values unless they are given."""
        fixed = {name: self.m.new_tensor(value) for name, value in self.given.items() if value is not None}
        for name, value in (values | fixed).items():
            if name in self.constants:
                setattr(self, name, value)

    def sample(self) -> None:
        """Draw the sites of all components, inside the components' plate."""
        raise NotImplementedError

    def initialise(self, x: Tensor, responsibilities: Tensor) -> None:
        """Set priors from the columns unless given, and the guide to the posterior given clusters ``(num_rows, K)``."""
        raise NotImplementedError


class RealColumns(ConjugateColumns):
    """Guide of ``normal`` and ``student`` columns, with s, the priors' scale in units of the columns."""

    sites, constants = ("mu", "sigma"), ("m", "s")
    kappa = 0.01
    """Prior sample size of the locations, in rows: the model's ``mu | sigma ~ Normal(m, sigma / .1)``."""

    def __init__(self, kind: str, width: int, num_components: int) -> None:
        super().__init__(kind, width, num_components)
        self.register_buffer("s", torch.ones(width))
        self.q_location = PyroParam(torch.randn(self.shape))
        self.q_spread = PyroParam(torch.full(self.shape, 0.1), constraints.positive)
        self.q_shape = PyroParam(torch.full(self.shape, 2.0), constraints.positive)
        self.q_rate = PyroParam(torch.ones(self.shape), constraints.positive)

    def sample(self) -> None:
        """Draw scales and locations."""
        q_sigma = InverseRootGamma(self.q_shape, self.q_rate, self.s)
        sigma = pyro.sample(f"{self.kind}_sigma", q_sigma.to_event(1))
        q_mu = dist.Normal(self.m + self.s * self.q_location, self.q_spread * sigma)
        pyro.sample(f"{self.kind}_mu", q_mu.to_event(1))

    def initialise(self, x: Tensor, responsibilities: Tensor) -> None:
        """Set the guide to the normal model's posterior."""
        n, total, squares = _sums(x, responsibilities)
        count = n.sum(0).clamp(min=1)
        average = total.sum(0) / count
        sd = (squares.sum(0) / count - average.square()).clamp(min=0).sqrt()
        self._set_priors(m=average, s=torch.where(sd > 0, sd, 1.0))
        mean = (total - n * self.m) / (self.kappa + n)
        scatter = squares - 2 * self.m * total + n * self.m.square() - (self.kappa + n) * mean.square()
        self.q_location, self.q_spread = mean / self.s, (self.kappa + n).rsqrt()
        self.q_shape, self.q_rate = (3 + n) / 2, 0.5 + scatter.clamp(min=0) / (2 * self.s.square())


class PoissonColumns(ConjugateColumns):
    """Guide of ``poisson`` columns."""

    sites, constants = ("rate",), ("m",)

    def __init__(self, kind: str, width: int, num_components: int) -> None:
        super().__init__(kind, width, num_components)
        self.q_shape = PyroParam(torch.ones(self.shape), constraints.positive)
        self.q_rate = PyroParam(torch.ones(self.shape), constraints.positive)
        self.m += 1.0

    def sample(self) -> None:
        """Draw the rates."""
        pyro.sample("poisson_rate", dist.Gamma(self.q_shape, self.q_rate).to_event(1))

    def initialise(self, x: Tensor, responsibilities: Tensor) -> None:
        """Set the guide to the posterior."""
        n, total, _ = _sums(x, responsibilities)
        mean = total.sum(0) / n.sum(0).clamp(min=1)
        self._set_priors(m=torch.where(mean > 0, mean, 1.0))
        self.q_shape, self.q_rate = 1 + total, 1 / self.m + n


class BinaryColumns(ConjugateColumns):
    """Guide of ``binary`` columns."""

    def __init__(self, kind: str, width: int, num_components: int) -> None:
        super().__init__(kind, width, num_components)
        self.q_yes = PyroParam(torch.ones(self.shape), constraints.positive)
        self.q_no = PyroParam(torch.ones(self.shape), constraints.positive)

    def sample(self) -> None:
        """Draw the probabilities of 1."""
        pyro.sample("binary_probability", dist.Beta(self.q_yes, self.q_no).to_event(1))

    def initialise(self, x: Tensor, responsibilities: Tensor) -> None:
        """Set the guide to the posterior."""
        n, total, _ = _sums(x, responsibilities)
        self.q_yes, self.q_no = 1 + total, 1 + n - total


class CategoricalColumns(ConjugateColumns):
    """Guide of ``categoricalC`` columns, coded as 0, ..., C - 1."""

    def __init__(self, kind: str, width: int, num_components: int) -> None:
        super().__init__(kind, width, num_components)
        self.C = int(kind.removeprefix("categorical"))
        self.q_counts = PyroParam(torch.ones(*self.shape, self.C), constraints.positive)

    def sample(self) -> None:
        """Draw the categories' probabilities, shape ``(K, width, C)``."""
        pyro.sample(f"{self.kind}_probability", dist.Dirichlet(self.q_counts).to_event(1))

    def initialise(self, x: Tensor, responsibilities: Tensor) -> None:
        """Set the guide to the posterior."""
        one_hot = (x.unsqueeze(-1) == torch.arange(self.C, device=x.device)).to(x.dtype)
        self.q_counts = 1 + torch.einsum("nk,ndc->kdc", responsibilities, one_hot)


def conjugate_columns(kind: str, width: int, num_components: int) -> ConjugateColumns:
    """Return the guide of the columns of a kind."""
    guides = {"normal": RealColumns, "student": RealColumns, "poisson": PoissonColumns, "binary": BinaryColumns}
    return guides.get(kind, CategoricalColumns)(kind, width, num_components)


def _sums(x: Tensor, responsibilities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return count, sum and sum of squares of the observed entries, shape ``(K, width)`` each."""
    observed = x.isfinite().to(x.dtype)
    filled = torch.where(x.isnan(), 0.0, x)
    return responsibilities.T @ observed, responsibilities.T @ filled, responsibilities.T @ filled.square()
