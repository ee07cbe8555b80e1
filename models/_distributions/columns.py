"""Columns that the components of a mixture know one by one: their kinds, with prior, guide and likelihood.

========  ==============================================================================================
kind      likelihood of an entry in component k, and the prior of its parameters
========  ==============================================================================================
normal    Normal(mu_k, sigma_k);  sigma_k^2 ~ s^2 / ChiSquared(3),  mu_k | sigma_k ~ Normal(m, sigma_k / .1)
student   StudentT(4, mu_k, sigma_k), with the same priors: rows far out pull less
poisson   Poisson(rate_k);  rate_k ~ Gamma(1, 1 / m)
binary    Bernoulli(p_k);  p_k ~ Beta(1, 1)
========  ==============================================================================================

A column with C categories is ``categoricalC``: Categorical(p_k) with p_k ~ Dirichlet(1, ..., 1). Every guide is of its
prior's family, conjugate given the components except for ``student``. Missing entries count for nothing.
"""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pplgen.models._distributions.missing import WhereSeen
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.distributions import constraints

from pplgen.story.base import InputError

DEGREES_OF_FREEDOM = 4.0
KAPPA = 0.01


class Columns(PyroModule):
    """Columns of one kind.

    Parameters
    ----------
    places
        Which columns of the data they are.
    num_components
        Number of components K.
    """

    kind = ""
    sites: tuple[str, ...] = ()
    """Names of the sites, each with axes ``(component, column of this kind)``."""
    auxiliary: frozenset[str] = frozenset()

    def __init__(self, places: list[int], num_components: int) -> None:
        super().__init__()
        self.places, self.K, self.width = places, num_components, len(places)
        self.register_buffer("m", torch.zeros(self.width))

    def draw(self) -> tuple[Tensor, ...]:
        """Draw the parameters of all components from the prior, inside their plate."""
        raise NotImplementedError

    def draw_guide(self) -> None:
        """Draw the same sites from the guide."""
        raise NotImplementedError

    def entries(self, drawn: tuple[Tensor, ...], z: Tensor) -> Any:
        """Return the distribution of entries of the components z, shape ``(..., width)``."""
        raise NotImplementedError

    def rows(self, drawn: tuple[Tensor, ...], z: Tensor) -> WhereSeen:
        """Return the distribution of these columns of rows of the components z."""
        return WhereSeen(self.entries(drawn, z))

    def check(self, x: Tensor) -> None:
        """Raise ``InputError`` where a seen entry is outside of the likelihood's support."""

    def begin(self, x: Tensor, shares: Tensor) -> None:
        """Set scales from the columns, and the guide to the posterior given soft clusters, ``(num_rows, K)``."""
        raise NotImplementedError

    def _sums(self, x: Tensor, shares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Count, add up and square the seen entries, shape ``(K, width)`` each."""
        seen = x.isfinite().to(x.dtype)
        filled = torch.where(x.isnan(), 0.0, x)
        return shares.T @ seen, shares.T @ filled, shares.T @ filled.square()

    def _refuse(self, wrong: Tensor, x: Tensor, what: str) -> None:
        """Name the first entry that is wrong."""
        found = torch.argwhere(wrong & x.isfinite())
        if len(found):
            row, j = found[0].tolist()
            raise InputError(
                f"column {self.places[j] + 1}, row {row + 1}: {x[row, j].item():g} is no entry of a column of kind "
                f"{self.kind!r}; expected {what}"
            )


class NormalColumns(Columns):
    """Measurements."""

    kind, sites, auxiliary = "normal", ("mu", "sigma"), frozenset({"relative_precision"})

    def __init__(self, places: list[int], num_components: int) -> None:
        super().__init__(places, num_components)
        shape = (num_components, self.width)
        self.register_buffer("s", torch.ones(self.width))
        self.q_location = PyroParam(torch.randn(shape))
        self.q_spread = PyroParam(torch.full(shape, 0.1), constraints.positive)
        self.q_shape = PyroParam(torch.full(shape, 2.0), constraints.positive)
        self.q_rate = PyroParam(torch.ones(shape), constraints.positive)

    def draw(self) -> tuple[Tensor, ...]:
        """Draw locations and scales."""
        three = self.s.new_tensor(3.0).expand(self.width)
        b = pyro.sample(f"{self.kind}_relative_precision", dist.Chi2(three).to_event(1))
        sigma = pyro.deterministic(f"{self.kind}_sigma", self.s / b.sqrt(), event_dim=1)
        return pyro.sample(f"{self.kind}_mu", dist.Normal(self.m, sigma / KAPPA**0.5).to_event(1)), sigma

    def draw_guide(self) -> None:
        """Draw q(b) Gamma and q(mu | sigma) Normal."""
        b = pyro.sample(f"{self.kind}_relative_precision", dist.Gamma(self.q_shape, self.q_rate).to_event(1))
        centre, spread = self.m + self.s * self.q_location, self.q_spread * self.s / b.sqrt()
        pyro.sample(f"{self.kind}_mu", dist.Normal(centre, spread).to_event(1))

    def entries(self, drawn: tuple[Tensor, ...], z: Tensor) -> Any:
        """Return normal entries."""
        return dist.Normal(drawn[0][z], drawn[1][z])

    def begin(self, x: Tensor, shares: Tensor) -> None:
        """Set the guide to the normal model's posterior."""
        n, total, squares = self._sums(x, shares)
        everything = n.sum(0).clamp(min=1)
        self.m = total.sum(0) / everything
        deviation = (squares.sum(0) / everything - self.m.square()).clamp(min=0).sqrt()
        self.s = torch.where(deviation > 0, deviation, 1.0)
        mean = (total - n * self.m) / (KAPPA + n)
        scatter = squares - 2 * self.m * total + n * self.m.square() - (KAPPA + n) * mean.square()
        self.q_location, self.q_spread = mean / self.s, (KAPPA + n).rsqrt()
        self.q_shape, self.q_rate = (3 + n) / 2, 0.5 + scatter.clamp(min=0) / (2 * self.s.square())


class StudentColumns(NormalColumns):
    """Measurements with outliers."""

    kind = "student"

    def entries(self, drawn: tuple[Tensor, ...], z: Tensor) -> Any:
        """Return Student-t entries."""
        return dist.StudentT(DEGREES_OF_FREEDOM, drawn[0][z], drawn[1][z])


class PoissonColumns(Columns):
    """Counts."""

    kind, sites = "poisson", ("rate",)

    def __init__(self, places: list[int], num_components: int) -> None:
        super().__init__(places, num_components)
        self.q_shape = PyroParam(torch.ones(num_components, self.width), constraints.positive)
        self.q_rate = PyroParam(torch.ones(num_components, self.width), constraints.positive)
        self.m += 1.0

    def draw(self) -> tuple[Tensor, ...]:
        """Draw rates."""
        return (pyro.sample("poisson_rate", dist.Gamma(torch.ones_like(self.m), 1 / self.m).to_event(1)),)

    def draw_guide(self) -> None:
        """Draw rates from Gamma distributions."""
        pyro.sample("poisson_rate", dist.Gamma(self.q_shape, self.q_rate).to_event(1))

    def entries(self, drawn: tuple[Tensor, ...], z: Tensor) -> Any:
        """Return Poisson entries."""
        return dist.Poisson(drawn[0][z])

    def check(self, x: Tensor) -> None:
        """Refuse what is no count."""
        self._refuse((x < 0) | (x != x.round()), x, "0, 1, 2, ...")

    def begin(self, x: Tensor, shares: Tensor) -> None:
        """Set the guide to the Poisson model's posterior."""
        n, total, _ = self._sums(x, shares)
        mean = total.sum(0) / n.sum(0).clamp(min=1)
        self.m = torch.where(mean > 0, mean, 1.0)
        self.q_shape, self.q_rate = 1 + total, 1 / self.m + n
