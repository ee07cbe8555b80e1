r"""Mixture for columns of mixed kinds, independent given the component: latent class analysis and its kin.

The story, for rows x_i whose columns are measurements, counts, yes and no, or categories, and K components::

    pi              ~ Dirichlet(alpha, ..., alpha)
    theta_kd        ~ the prior of column d's kind
    z_i | pi        ~ Categorical(pi)
    x_id | z_i = k  ~ the likelihood of column d's kind, at theta_kd

With columns that are all ``binary`` or categorical this is latent class analysis; with ``poisson``, a mixture for
counts; with ``student``, one that outliers do not pull. ``_distributions`` holds the kinds:
their priors, likelihoods and guides. The index z is summed out exactly; missing entries count for nothing.

References
----------
Lazarsfeld and Henry (1968), Latent structure analysis.
McLachlan and Peel (2000), Finite mixture models, chapters 5 and 7.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from pplgen.models._distributions.categories import columns_of
from pplgen.models._distributions.columns import Columns
from pplgen.models._distributions.missing import SideBySide
from pplgen.models._guides.weights import weights_guide
from pplgen.models._rows import ComponentRows
from pplgen.models._starts.seeding import column_scales, kmeans_plus_plus
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

from pplgen.story.base import InputError, Story, check_count, check_positive, pyro_method


class MixedMixture(ComponentRows, Story):
    """Rows of measurements, counts, yes and no, or categories from K components, columns independent in each.

    Parameters
    ----------
    num_components
        Number of components K.
    num_features
        Number of data columns D.
    columns
        Kinds of the columns, with commas between them, or one for all: ``normal``, ``student``, ``poisson``,
        ``binary``, or ``categorical3`` for three categories 0, 1, 2.
    concentration
        Prior concentration alpha of each weight; below one, surplus components empty out.
    """

    def __init__(
        self,
        num_components: int = 2,
        num_features: int = 2,
        *,
        columns: str = "normal",
        concentration: float = 1.0,
    ) -> None:
        K = check_count("num_components", num_components)
        D = check_count("num_features", num_features)
        kinds = self._kinds(columns, D)
        super().__init__(
            num_components=K,
            num_features=D,
            columns=",".join(kinds),
            concentration=check_positive("concentration", concentration),
        )
        self.K, self.D = K, D
        self.parts: Sequence[Columns] = PyroModule[nn.ModuleList](columns_of(kinds, K))
        self.auxiliary = frozenset(f"{part.kind}_{name}" for part in self.parts for name in part.auxiliary)
        self.dims = {"weights": ("component",), "z": ("row", "component"), "x": ("row", "feature")}
        for part in self.parts:
            axes = ("component", f"{part.kind}_feature")
            for name in (*part.sites, *part.auxiliary):
                more = (f"{part.kind}_category",) if part.kind.startswith("categorical") else ()
                self.dims[f"{part.kind}_{name}"] = (*axes, *more)
        self.register_buffer("alpha", torch.full((K,), self.config["concentration"]))
        self.q_weights = PyroParam(torch.ones(K), constraints.positive)

    @pyro_method
    def model(self, x: Tensor | None = None, num_rows: int = 1) -> Tensor:
        """Generate ``num_rows`` rows, or score ``x`` of shape ``(num_rows, num_features)``."""
        weights, drawn = self._draw()
        with pyro.plate("data", num_rows if x is None else len(x)):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            return pyro.sample("x", self._rows(drawn, z), obs=x)

    def _draw(self) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
        """Draw what all rows share."""
        weights = pyro.sample("weights", dist.Dirichlet(self.alpha))
        with pyro.plate("components", self.K):
            return weights, [part.draw() for part in self.parts]

    def _rows(self, drawn: list[tuple[Tensor, ...]], z: Tensor) -> SideBySide:
        """Return the distribution of rows of the components z."""
        parts = [(part.places, part.rows(own, z)) for part, own in zip(self.parts, drawn, strict=True)]
        return SideBySide(parts)

    @pyro_method
    def guide(self, x: Tensor | None = None, num_rows: int = 1) -> None:
        """Draw weights and the columns' parameters; no site depends on the rows."""
        pyro.sample("weights", weights_guide(self.q_weights))
        with pyro.plate("components", self.K):
            for part in self.parts:
                part.draw_guide()

    def labels(self, columns: Sequence[str]) -> dict[str, list[str]]:
        """Label each kind's columns by their names."""
        own = {f"{part.kind}_feature": [columns[place] for place in part.places] for part in self.parts}
        return {"feature": list(columns), **own}

    def check_data(self, x: Tensor) -> None:
        """Refuse rows of another width, and entries that are not of their column's kind."""
        super().check_data(x)
        for part in self.parts:
            part.check(x[:, part.places])

    @torch.no_grad()
    def initialise(self, x: Tensor, labels: Tensor | None = None, weights: Tensor | None = None) -> None:
        """Start q at the posterior given k-means clusters of the standardised columns."""
        mean, deviation = column_scales(x, weights)
        scaled = torch.where(x.isnan(), 0.0, (x - mean) / deviation)
        shares = kmeans_plus_plus(scaled, self.K, labels, weights)
        self.q_weights = self.config["concentration"] + shares.sum(0)
        for part in self.parts:
            part.begin(x[:, part.places], shares)

    @staticmethod
    def _kinds(columns: str | Sequence[str], num_features: int) -> list[str]:
        """Read one kind for each column."""
        given = columns.split(",") if isinstance(columns, str) else list(columns)
        kinds = [str(kind).strip() for kind in given]
        kinds = kinds * num_features if len(kinds) == 1 else kinds
        if len(kinds) != num_features:
            raise InputError(f"columns={columns!r}: expected one kind, or one for each of {num_features} columns")
        return kinds
