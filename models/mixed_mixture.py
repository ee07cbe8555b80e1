r"""Mixture for columns of mixed types, independent given the component, such as latent class analysis.

The story, for rows x_i of real, count, binary or categorical columns, and K components::

    weights          ~ Dirichlet(alpha, ..., alpha)
    sigma_kd^2       ~ s_d^2 / ChiSquared(3)              normal and student columns
    mu_kd | sigma_kd ~ Normal(m_d, sigma_kd / .1)
    rate_kd          ~ Gamma(1, 1 / m_d)                  poisson columns
    probability_kd   ~ Beta(1, 1)                         binary columns
    probability_kd   ~ Dirichlet(1, ..., 1)               columns with C categories
    z_i              ~ Categorical(weights)
    x_id | z_i = k   ~ Normal(mu_kd, sigma_kd), StudentT(4, mu_kd, sigma_kd), Poisson(rate_kd),
                       Bernoulli(probability_kd) or Categorical(probability_kd), by the kind of column d

A site holds a parameter of the columns of one kind, with whose name it starts: ``student_mu``. With columns that are
all ``binary`` or categorical this is latent class analysis; with ``poisson``, a mixture for counts; with ``student``, a
robust mixture. By default ``initialise`` sets m and s to the columns' means and standard deviations (before, s is 1,
and m is 0 for real columns and 1 for counts). The guide's factors are in the priors' families, with separate
parameters, such as q(sigma_kd^-2) Gamma, and q(mu_kd | sigma_kd) = Normal(a_kd, t_kd sigma_kd). They are conjugate
given the components, except for ``student``. The index z is summed out, and missing entries are integrated out.

References
----------
Lazarsfeld and Henry (1968), Latent structure analysis.
McLachlan and Peel (2000), Finite mixture models, chapters 5 and 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pplgen.models._guides.conjugate_columns import ConjugateColumns, conjugate_columns
from pplgen.models._guides.mixture_weights import weights_guide
from pplgen.models._rows import ComponentRows
from pplgen.models._starts.column_kinds import check_entries, num_categories, parse_kinds
from pplgen.models._starts.kmeans_plus_plus import column_scales, kmeans_plus_plus
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

from pplgen.distributions import Blockwise, MarginalIndependent, inverse_chi
from pplgen.story import check_count, check_per_feature, check_positive, pyro_method


class MixedMixture(ComponentRows):
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
    prior_mean, prior_scale
        Prior constants m of real and count columns, above 0 for counts, and s of real columns, in data units: a number
        or one per column, unused for other columns. Default: the columns' means and standard deviations.
    """

    def __init__(
        self,
        num_components: int = 2,
        num_features: int = 2,
        *,
        columns: str = "normal",
        concentration: float = 1.0,
        prior_mean: float | Sequence[float] | None = None,
        prior_scale: float | Sequence[float] | None = None,
    ) -> None:
        K = check_count("num_components", num_components)
        D = check_count("num_features", num_features)
        kinds = parse_kinds(columns, D)
        priors = {
            "prior_mean": check_per_feature("prior_mean", prior_mean, D),
            "prior_scale": check_per_feature("prior_scale", prior_scale, D, positive=True),
        }
        alpha = check_positive("concentration", concentration)
        super().__init__(num_components=K, num_features=D, columns=",".join(kinds), concentration=alpha, **priors)
        self.K, self.D = K, D
        self.indices = {kind: [d for d in range(D) if kinds[d] == kind] for kind in dict.fromkeys(kinds)}
        self.categories = [C for C in map(num_categories, self.indices) if C]
        guides = [conjugate_columns(kind, len(places), K) for kind, places in self.indices.items()]
        self.parts: Sequence[ConjugateColumns] = PyroModule[nn.ModuleList](guides)
        self.dims = {"weights": ("component",), "z": ("row", "component"), "x": ("row", "feature")}
        self.dims |= {"prior_mean": ("feature",), "prior_scale": ("feature",)}
        for (kind, places), part in zip(self.indices.items(), self.parts, strict=True):
            part.fix_priors(*([value[d] for d in places] if (value := priors[name]) else None for name in priors))
            categories = (f"{kind}_category",) if num_categories(kind) else ()
            self.dims |= {f"{kind}_{site}": ("component", f"{kind}_feature", *categories) for site in part.sites}
        self.register_buffer("alpha", torch.full((K,), alpha))
        self.q_weights = PyroParam(torch.ones(K), constraints.positive)

    @pyro_method
    def model(self, x: Tensor | None = None, num_rows: int = 1) -> Tensor:
        """Generate ``num_rows`` rows, or score ``x`` of shape ``(num_rows, num_features)``."""
        prior = dict(zip(self.indices, self.parts, strict=True))  # m and s of the kinds of columns that there are
        columns: dict[str, tuple[Any, ...]] = {}  # of each kind, the distribution and its parameters
        weights = pyro.sample("weights", dist.Dirichlet(self.alpha))
        with pyro.plate("components", self.K):
            if "normal" in prior:
                m, s = prior["normal"].m, prior["normal"].s
                sigma = pyro.sample("normal_sigma", inverse_chi(s, 3.0).to_event(1))
                mu = pyro.sample("normal_mu", dist.Normal(m, sigma / 0.1).to_event(1))
                columns["normal"] = dist.Normal, mu, sigma
            if "student" in prior:
                m, s = prior["student"].m, prior["student"].s
                sigma = pyro.sample("student_sigma", inverse_chi(s, 3.0).to_event(1))
                mu = pyro.sample("student_mu", dist.Normal(m, sigma / 0.1).to_event(1))
                columns["student"] = partial(dist.StudentT, 4.0), mu, sigma
            if "poisson" in prior:
                m = prior["poisson"].m
                rate = pyro.sample("poisson_rate", dist.Gamma(torch.ones_like(m), 1 / m).to_event(1))
                columns["poisson"] = dist.Poisson, rate
            if "binary" in prior:
                one = torch.ones_like(prior["binary"].m)
                columns["binary"] = dist.Bernoulli, pyro.sample("binary_probability", dist.Beta(one, one).to_event(1))
            for C in self.categories:
                ones = self.alpha.new_ones(len(self.indices[f"categorical{C}"]), C)
                p = pyro.sample(f"categorical{C}_probability", dist.Dirichlet(ones).to_event(1))
                columns[f"categorical{C}"] = dist.Categorical, p
        with pyro.plate("data", num_rows if x is None else len(x)):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            entries = {kind: entry(*(value[z] for value in theta)) for kind, (entry, *theta) in columns.items()}
            rows = Blockwise([(self.indices[kind], MarginalIndependent(each)) for kind, each in entries.items()])
            return pyro.sample("x", rows, obs=x)

    @pyro_method
    def guide(self, x: Tensor | None = None, num_rows: int = 1) -> None:
        """Draw weights and the columns' parameters; no site depends on the rows."""
        pyro.sample("weights", weights_guide(self.q_weights))
        with pyro.plate("components", self.K):
            for part in self.parts:
                part.sample()

    def labels(self, columns: Sequence[str]) -> dict[str, list[str]]:
        """Return coordinate labels: the column names of each kind."""
        by_kind = {f"{kind}_feature": [columns[d] for d in places] for kind, places in self.indices.items()}
        return {"feature": list(columns), **by_kind}

    def check_data(self, x: Tensor) -> None:
        """Raise ``InputError`` for rows of another width, or entries outside their column's support."""
        super().check_data(x)
        check_entries(x, self.indices)

    @property
    def constants(self) -> dict[str, Tensor]:
        """Prior constants m and s of the columns that have them, else 0 and 1, in data units, shape ``(D,)`` each."""
        values = {"prior_mean": self.alpha.new_zeros(self.D), "prior_scale": self.alpha.new_ones(self.D)}
        for places, part in zip(self.indices.values(), self.parts, strict=True):
            for name, symbol in zip(values, ("m", "s"), strict=True):
                if symbol in part.constants:
                    values[name][places] = getattr(part, symbol)
        return values

    @torch.no_grad()
    def initialise(self, x: Tensor, labels: Tensor | None = None, weights: Tensor | None = None) -> None:
        """Set m and s unless specified, and q, the posterior given k-means clusters of the standardised columns."""
        mean, sd = column_scales(x, weights)
        scaled = torch.where(x.isnan(), 0.0, (x - mean) / sd)
        responsibilities = kmeans_plus_plus(scaled, self.K, labels, weights)
        self.q_weights = self.config["concentration"] + responsibilities.sum(0)
        for places, part in zip(self.indices.values(), self.parts, strict=True):
            part.initialise(x[:, places], responsibilities)
