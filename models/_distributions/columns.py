"""Columns that are independent given the mixture component: kinds, priors, guides and likelihoods.

========  ==============================================================================================
kind      likelihood of an entry in component k, and the prior of its parameters
========  ==============================================================================================
normal    Normal(mu_k, sigma_k);  sigma_k^2 ~ s^2 / ChiSquared(3),  mu_k | sigma_k ~ Normal(m, sigma_k / .1)
student   StudentT(4, mu_k, sigma_k), with the same priors: robust to outliers
poisson   Poisson(rate_k);  rate_k ~ Gamma(1, 1 / m)
binary    Bernoulli(p_k);  p_k ~ Beta(1, 1)
========  ==============================================================================================

A column with C categories is ``categoricalC``: Categorical(p_k) with p_k ~ Dirichlet(1, ..., 1). Every guide is in its
prior's family, conjugate given the components except for ``student``. Missing entries are integrated out.
"""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.distributions import constraints

from pplgen.distributions.missing import MarginalIndependent
from pplgen.story.base import InputError

DEGREES_OF_FREEDOM = 4.0
KAPPA = 0.01


class Columns(PyroModule):
    """Columns of one kind.

    Parameters
    ----------
    indices
        Indices of these columns in the data.
    num_components
        Number of components K.
    """

    kind = ""
    sites: tuple[str, ...] = ()
    """Names of the sample sites, each with axes ``(component, column of this kind)``."""
    auxiliary: frozenset[str] = frozenset()

    def __init__(self, indices: list[int], num_components: int) -> None:
        super().__init__()
        self.indices, self.K, self.width = indices, num_components, len(indices)
        self.register_buffer("m", torch.zeros(self.width))

    def draw(self) -> tuple[Tensor, ...]:
        """Draw the parameters of all components from the prior, inside the components' plate."""
        raise NotImplementedError

    def draw_guide(self) -> None:
        """Draw the same sites from the guide."""
        raise NotImplementedError

    def entries(self, drawn: tuple[Tensor, ...], z: Tensor) -> Any:
        """Return the distribution of entries given components z, shape ``(..., width)``."""
        raise NotImplementedError

    def rows(self, drawn: tuple[Tensor, ...], z: Tensor) -> MarginalIndependent:
        """Return the distribution of these columns given components z."""
        return MarginalIndependent(self.entries(drawn, z))

    def check(self, x: Tensor) -> None:
        """Raise ``InputError`` for an observed entry outside the likelihood's support."""

    def initialise(self, x: Tensor, responsibilities: Tensor) -> None:
        """Set prior scales from the columns, and the guide to the posterior given soft clusters, ``(num_rows, K)``."""
        raise NotImplementedError

    def _sums(self, x: Tensor, responsibilities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return count, sum and sum of squares of the observed entries, shape ``(K, width)`` each."""
        observed = x.isfinite().to(x.dtype)
        filled = torch.where(x.isnan(), 0.0, x)
        return responsibilities.T @ observed, responsibilities.T @ filled, responsibilities.T @ filled.square()

    def _raise_if(self, invalid: Tensor, x: Tensor, expected: str) -> None:
        """Raise ``InputError`` for the first invalid entry, if any."""
        entries = torch.argwhere(invalid & x.isfinite())
        if len(entries):
            row, j = entries[0].tolist()
            raise InputError(
                f"column {self.indices[j] + 1}, row {row + 1}: {x[row, j].item():g} is not a valid entry of a "
                f"column of kind {self.kind!r}; expected {expected}"
            )


class NormalColumns(Columns):
    """Real-valued columns with normal likelihoods."""

    kind, sites, auxiliary = "normal", ("mu", "sigma"), frozenset({"relative_precision"})

    def __init__(self, indices: list[int], num_components: int) -> None:
        super().__init__(indices, num_components)
        shape = (num_components, self.width)
        self.register_buffer("s", torch.ones(self.width))
        self.q_location = PyroParam(torch.randn(shape))
        self.q_spread = PyroParam(torch.full(shape, 0.1), constraints.positive)
        self.q_shape = PyroParam(torch.full(shape, 2.0), constraints.positive)
        self.q_rate = PyroParam(torch.ones(shape), constraints.positive)

    def draw(self) -> tuple[Tensor, ...]:
        """Draw locations and scales from the prior."""
        three = self.s.new_tensor(3.0).expand(self.width)
        b = pyro.sample(f"{self.kind}_relative_precision", dist.Chi2(three).to_event(1))
        sigma = pyro.deterministic(f"{self.kind}_sigma", self.s / b.sqrt(), event_dim=1)
        return pyro.sample(f"{self.kind}_mu", dist.Normal(self.m, sigma / KAPPA**0.5).to_event(1)), sigma

    def draw_guide(self) -> None:
        """Draw from the guide: q(b) Gamma, q(mu | sigma) Normal."""
        b = pyro.sample(f"{self.kind}_relative_precision", dist.Gamma(self.q_shape, self.q_rate).to_event(1))
        loc, scale = self.m + self.s * self.q_location, self.q_spread * self.s / b.sqrt()
        pyro.sample(f"{self.kind}_mu", dist.Normal(loc, scale).to_event(1))

    def entries(self, drawn: tuple[Tensor, ...], z: Tensor) -> Any:
        """Return the normal distribution of entries."""
        return dist.Normal(drawn[0][z], drawn[1][z])

    def initialise(self, x: Tensor, responsibilities: Tensor) -> None:
        """Set the guide to the normal model's posterior."""
        n, total, squares = self._sums(x, responsibilities)
        count = n.sum(0).clamp(min=1)
        self.m = total.sum(0) / count
        sd = (squares.sum(0) / count - self.m.square()).clamp(min=0).sqrt()
        self.s = torch.where(sd > 0, sd, 1.0)
        mean = (total - n * self.m) / (KAPPA + n)
        scatter = squares - 2 * self.m * total + n * self.m.square() - (KAPPA + n) * mean.square()
        self.q_location, self.q_spread = mean / self.s, (KAPPA + n).rsqrt()
        self.q_shape, self.q_rate = (3 + n) / 2, 0.5 + scatter.clamp(min=0) / (2 * self.s.square())


class StudentColumns(NormalColumns):
    """Real-valued columns with Student-t likelihoods."""

    kind = "student"

    def entries(self, drawn: tuple[Tensor, ...], z: Tensor) -> Any:
        """Return the Student-t distribution of entries."""
        return dist.StudentT(DEGREES_OF_FREEDOM, drawn[0][z], drawn[1][z])


class PoissonColumns(Columns):
    """Counts with Poisson likelihoods."""

    kind, sites = "poisson", ("rate",)

    def __init__(self, indices: list[int], num_components: int) -> None:
        super().__init__(indices, num_components)
        self.q_shape = PyroParam(torch.ones(num_components, self.width), constraints.positive)
        self.q_rate = PyroParam(torch.ones(num_components, self.width), constraints.positive)
        self.m += 1.0

    def draw(self) -> tuple[Tensor, ...]:
        """Draw the rates from the prior."""
        return (pyro.sample("poisson_rate", dist.Gamma(torch.ones_like(self.m), 1 / self.m).to_event(1)),)

    def draw_guide(self) -> None:
        """Draw the rates from the guide, Gamma distributions."""
        pyro.sample("poisson_rate", dist.Gamma(self.q_shape, self.q_rate).to_event(1))

    def entries(self, drawn: tuple[Tensor, ...], z: Tensor) -> Any:
        """Return the Poisson distribution of entries."""
        return dist.Poisson(drawn[0][z])

    def check(self, x: Tensor) -> None:
        """Raise ``InputError`` for entries that are not counts."""
        self._raise_if((x < 0) | (x != x.round()), x, "0, 1, 2, ...")

    def initialise(self, x: Tensor, responsibilities: Tensor) -> None:
        """Set the guide to the Poisson model's posterior."""
        n, total, _ = self._sums(x, responsibilities)
        mean = total.sum(0) / n.sum(0).clamp(min=1)
        self.m = torch.where(mean > 0, mean, 1.0)
        self.q_shape, self.q_rate = 1 + total, 1 / self.m + n
