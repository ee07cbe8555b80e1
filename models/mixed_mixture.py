r"""Mixture for columns of mixed types, independent given the component, such as latent class analysis.

The story, for rows x_i of real, count, binary or categorical columns, and K components::

    pi              ~ Dirichlet(alpha, ..., alpha)
    theta_kd        ~ the prior of column d's kind
    z_i | pi        ~ Categorical(pi)
    x_id | z_i = k  ~ the likelihood of column d's kind, at theta_kd

With columns that are all ``binary`` or categorical this is latent class analysis; with ``poisson``, a mixture
for counts; with ``student``, a robust mixture. Priors, likelihoods and guides of the kinds of columns are in
``_distributions/columns.py`` and ``categories.py``. The index z is summed out, and missing entries are integrated out.

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
from pplgen.models._distributions.categories import make_columns
from pplgen.models._distributions.columns import Columns
from pplgen.models._guides.mixture_weights import weights_guide
from pplgen.models._rows import ComponentRows
from pplgen.models._starts.kmeans_plus_plus import column_scales, kmeans_plus_plus
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

from pplgen.distributions.missing import Blockwise
from pplgen.story.base import InputError, Story, check_count, check_positive, pyro_method


class MixedMixture(ComponentRows, Story):
    """Mixture of K components for real, count, binary or categorical columns, independent in each component.

    Parameters
    ----------
    num_components
        Number of components K.
    num_features
        Number of data columns D.
    columns
        Comma-separated kinds of the columns, or one for all: ``normal``, ``student``, ``poisson``,
        ``binary``, or ``categorical3`` for three categories 0, 1, 2.
    concentration
        Prior concentration alpha of each weight; values below one empty surplus components.
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
        self.parts: Sequence[Columns] = PyroModule[nn.ModuleList](make_columns(kinds, K))
        self.auxiliary = frozenset(f"{part.kind}_{name}" for part in self.parts for name in part.auxiliary)
        self.dims = {"weights": ("component",), "z": ("row", "component"), "x": ("row", "feature")}
        for part in self.parts:
            axes = ("component", f"{part.kind}_feature")
            for name in (*part.sites, *part.auxiliary):
                extra = (f"{part.kind}_category",) if part.kind.startswith("categorical") else ()
                self.dims[f"{part.kind}_{name}"] = (*axes, *extra)
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
        """Draw the global parameters."""
        weights = pyro.sample("weights", dist.Dirichlet(self.alpha))
        with pyro.plate("components", self.K):
            return weights, [part.draw() for part in self.parts]

    def _rows(self, drawn: list[tuple[Tensor, ...]], z: Tensor) -> Blockwise:
        """Return the distribution of rows given components z."""
        parts = [(part.indices, part.rows(parameters, z)) for part, parameters in zip(self.parts, drawn, strict=True)]
        return Blockwise(parts)

    @pyro_method
    def guide(self, x: Tensor | None = None, num_rows: int = 1) -> None:
        """Draw weights and the columns' parameters; no site depends on the rows."""
        pyro.sample("weights", weights_guide(self.q_weights))
        with pyro.plate("components", self.K):
            for part in self.parts:
                part.draw_guide()

    def labels(self, columns: Sequence[str]) -> dict[str, list[str]]:
        """Return coordinate labels: the column names of each kind."""
        by_kind = {f"{part.kind}_feature": [columns[place] for place in part.indices] for part in self.parts}
        return {"feature": list(columns), **by_kind}

    def check_data(self, x: Tensor) -> None:
        """Raise ``InputError`` for rows of another width, or entries outside their column's support."""
        super().check_data(x)
        for part in self.parts:
            part.check(x[:, part.indices])

    @torch.no_grad()
    def initialise(self, x: Tensor, labels: Tensor | None = None, weights: Tensor | None = None) -> None:
        """Set q to the posterior given k-means clusters of the standardised columns."""
        mean, sd = column_scales(x, weights)
        scaled = torch.where(x.isnan(), 0.0, (x - mean) / sd)
        responsibilities = kmeans_plus_plus(scaled, self.K, labels, weights)
        self.q_weights = self.config["concentration"] + responsibilities.sum(0)
        for part in self.parts:
            part.initialise(x[:, part.indices], responsibilities)

    @staticmethod
    def _kinds(columns: str | Sequence[str], num_features: int) -> list[str]:
        """Return one kind for each column."""
        parts = columns.split(",") if isinstance(columns, str) else list(columns)
        kinds = [str(kind).strip() for kind in parts]
        kinds = kinds * num_features if len(kinds) == 1 else kinds
        if len(kinds) != num_features:
            raise InputError(f"columns={columns!r}: expected one kind, or one for each of {num_features} columns")
        return kinds
