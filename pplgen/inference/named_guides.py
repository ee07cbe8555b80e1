"""Guides by name: distributions of all shared latents jointly, on the unconstrained scale.

A named guide of a bare model draws all of its continuous latents. That of a story draws the latents that all rows
share; those of rows are drawn by the story's own guide given them. It starts at the story's own guide: with T the
bijection from the reals to the supports (torch's ``biject_to``), and a and U location and scale of draws of that guide
on the unconstrained scale::

    v ~ the named distribution, near Normal(0, 1)        theta = T(a + U v)

so that steps are in units of posterior standard deviations.

References
----------
Kucukelbir et al. (2017), Automatic differentiation variational inference.
Dinh, Sohl-Dickstein and Bengio (2017), Density estimation using Real NVP.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.transforms import AffineTransform, LowerCholeskyAffine
from pyro.infer.autoguide import (
    AutoContinuous,
    AutoDiagonalNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    init_to_sample,
    init_to_value,
)
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import biject_to, constraints

from pplgen.compiler.vectorisation import map_draws
from pplgen.errors import InputError
from pplgen.story.pair import Pair

__all__ = ["GUIDES", "named_guide", "named_pair"]

INITIAL_SCALE = 0.1
"""Initial standard deviations of a bare model's guide, as in Pyro and Stan."""
NUM_DRAWS = 1000
"""Draws of a story's own guide from which a named one starts."""
DRAWS_PER_LATENT = 8
"""Draws for each latent that the start of a correlation needs; with fewer, a named guide starts uncorrelated."""
WIDEST = 5.0
"""Standard deviations beyond which draws of a story's own guide do not count for their location and scale."""
NUM_COUPLINGS, HIDDEN, GAIN = 4, 16, 0.3
"""Number of couplings of a flow; minimum width of their networks, and factor on their outputs."""


class Point(AutoContinuous):
    """A point mass, whose ELBO is the log joint density on the unconstrained scale."""

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        self.loc = nn.Parameter(self._init_loc())

    def get_posterior(self, *args: Any, **kwargs: Any) -> Any:
        """Return the point mass."""
        return dist.Delta(self.loc, event_dim=1)


class Coupling(dist.TransformModule):
    """Affine coupling: entries where ``mask`` is one are unchanged, and determine scale and shift of the others.

    It is the identity at first. The log of a scale is between -2 and 2. Outputs of the network are multiplied by
    ``GAIN``, because a step of Adam moves all of its weights.
    """

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        size = len(mask)
        self.register_buffer("mask", mask)
        self.network = nn.Sequential(nn.Linear(size, width := max(HIDDEN, size)), nn.Tanh(), nn.Linear(width, 2 * size))
        for parameter in self.network[-1].parameters():
            nn.init.zeros_(parameter)
        self.to(mask)

    def _call(self, x: Tensor) -> Tensor:
        log_scale, shift = self._of(x)
        return x * log_scale.exp() + shift

    def _inverse(self, y: Tensor) -> Tensor:
        log_scale, shift = self._of(y)
        return (y - shift) * (-log_scale).exp()

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the sum of the logs of the scales."""
        return self._of(x)[0].sum(-1)

    def _of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return log scale and shift, zero for the unchanged entries."""
        raw, shift = ((1 - self.mask) * part for part in (GAIN * self.network(self.mask * x)).chunk(2, -1))
        return 2 * (raw / 2).tanh(), shift


class Flow(AutoMultivariateNormal):
    """A full-rank normal distribution whose base draws are bent by affine couplings (Dinh et al. 2017)."""

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        if self.latent_dim < 2:
            raise InputError("guide='flow': expected at least two scalar latents; for one, use guide='full-rank'")
        odd = (torch.arange(self.latent_dim) % 2).to(self.loc)
        self.couplings = nn.ModuleList(Coupling(odd if place % 2 else 1 - odd) for place in range(NUM_COUPLINGS))

    def get_posterior(self, *args: Any, **kwargs: Any) -> Any:
        """Return the transformed distribution."""
        return dist.TransformedDistribution(self.get_base_dist(), [*self.couplings, self.get_transform()])


FAMILIES: dict[str, type[AutoContinuous]] = {
    "mean-field": AutoDiagonalNormal,
    "low-rank": AutoLowRankMultivariateNormal,
    "full-rank": AutoMultivariateNormal,
    "flow": Flow,
    "point": Point,
    "laplace": AutoMultivariateNormal,
}
"""Every name: guides that are trained, the point mass that finds a mode, and the normal approximation there."""
GUIDES = ("mean-field", "low-rank", "full-rank", "flow")
"""Names from which a user chooses."""
CORRELATED = ("full-rank", "flow")


class _Scaled:
    """Mixin of an ``AutoContinuous``: v is what it would draw, and the unconstrained latents are ``start + unit v``."""

    start: Tensor
    unit: Tensor
    """Standard deviations, shape ``(P,)``, or a Cholesky factor, shape ``(P, P)``."""

    def get_posterior(self, *args: Any, **kwargs: Any) -> Any:
        """Return the distribution of the unconstrained latents."""
        base: Any = super().get_posterior(*args, **kwargs)  # type: ignore[misc]
        if isinstance(base, dist.Delta):
            return dist.Delta(self.start + self.unit * base.v, event_dim=1)
        if self.unit.ndim == 1:
            return dist.TransformedDistribution(base, [AffineTransform(self.start, self.unit, event_dim=1)])
        return dist.TransformedDistribution(base, [LowerCholeskyAffine(self.start, self.unit)])


class SharedThenRows(nn.Module):
    """A named guide of shared latents, and a story's own guide of the latents of rows given them.

    Parameters
    ----------
    shared
        The named guide.
    rows
        The story's own guide.
    hidden
        Sites of ``rows`` outside the row plate.
    """

    def __init__(self, shared: AutoContinuous, rows: Callable[..., Any], hidden: list[str]) -> None:
        super().__init__()
        self.shared, self._rows, self._hidden = shared, rows, hidden
        self._unused: dict[str, Tensor] = {}

    def forward(self, *data: Any) -> None:
        """Draw all latents."""
        drawn = self.shared(*data)
        with poutine.block(hide=self._hidden), poutine.condition(data=drawn), _Constants(self._unused):
            self._rows(*data)
        store = pyro.get_param_store()
        for name in self._unused.keys() & store.keys():  # a PyroModule stores what it reads
            del store[name]

    def fix_unused(self, pair: Pair) -> None:
        """Make constants of the parameters that only the hidden sites depend on; call it inside ``pair.isolated``."""
        with torch.enable_grad():
            trace = poutine.trace(self).get_trace(*pair.data)
            nodes = [trace.nodes[name] for name in pair.structure.row_latent]
            terms = [torch.as_tensor(trace.log_prob_sum()), *(node["value"].sum() for node in nodes)]
            store = dict(pyro.get_param_store().named_parameters())
            gradients = torch.autograd.grad(sum(terms), list(store.values()), allow_unused=True)
        unused = [name for name, gradient in zip(store, gradients, strict=True) if gradient is None]
        self._unused = {name: pyro.param(name).detach().clone() for name in unused}


class _Constants(Messenger):
    """Give parameters constant values, unseen by handlers outside, and so by optimisers."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_param(self, msg: Any) -> None:
        if msg["name"] in self.values:
            msg["value"], msg["done"], msg["stop"] = self.values[msg["name"]], True, True


def named_pair(pair: Pair, name: str, *, initialise: bool = True) -> Pair:
    """Return a pair with a named guide of its latents, those of a bare model or those shared by a story's rows.

    Parameters
    ----------
    pair
        An untrained pair: of a story, or of a bare model with its automatic guide.
    name
        A key of ``FAMILIES``.
    initialise
        Whether a story's guide starts at its own, which must not yet be trained.

    Raises
    ------
    InputError
        If the pair has no continuous latents of this kind.
    """
    structure, of_story = pair.structure, pair.story is not None
    if name == "mean-field" and not of_story:
        return pair
    names = structure.shared_latent if of_story else structure.latent
    if not names:
        raise InputError(
            f"guide={name!r}: expected latents that all rows share, on which named guides are; "
            f"{type(pair.story).__name__} has none"
        )
    if pair.weights is not None and not of_story and structure.row_latent:
        raise InputError(f"weights: guide={name!r} draws {structure.row_latent[0]!r} of all rows jointly")
    with pair.isolated(), pyro.validation_enabled(False), torch.no_grad():
        own = poutine.util.prune_subsample_sites(poutine.trace(pair.guide).get_trace(*pair.data))
        guide = named_guide(pair, name, names)
        if of_story and initialise:
            _start_at(guide, pair)
    if not structure.row_latent or not of_story:
        return pair.with_guide(guide)
    in_rows = {n for n in own.stochastic_nodes if structure.row_plate in _plates(own.nodes[n])}
    both = SharedThenRows(guide, pair.guide, [n for n in own.stochastic_nodes if n not in in_rows])
    result = pair.with_guide(both)
    with result.isolated():
        both.fix_unused(result)
    return result.with_guide(both)


def named_guide(pair: Pair, name: str, names: tuple[str, ...]) -> AutoContinuous:
    """Return an untrained guide of some latents, set up on the pair's data; call it inside ``pair.isolated``.

    That of a story, and a normal approximation, has ``start`` and ``unit``, zero and one.
    """
    model, family = poutine.block(pair.model, expose=list(names)), FAMILIES[name]
    scaled = pair.story is not None or name == "laplace"
    kind: Any = type(family.__name__, (_Scaled, family), {}) if scaled else family
    options: dict[str, Any] = {} if family is Point else {"init_scale": 1.0 if scaled else INITIAL_SCALE}
    own = poutine.trace(pair.guide).get_trace(*pair.data)
    start = init_to_sample if scaled else init_to_value(values={site: own.nodes[site]["value"] for site in names})
    guide: AutoContinuous = kind(model, init_loc_fn=start, **options)
    guide._setup_prototype(*pair.data)
    for site, node in guide.prototype_trace.nodes.items():
        if site in names and node["fn"].support.is_discrete:
            raise InputError(f"guide={name!r}: latent site {site!r} is discrete; expected continuous latents")
    if scaled:
        P = guide.latent_dim
        full = name == "laplace" or (name in CORRELATED and DRAWS_PER_LATENT * P <= NUM_DRAWS)
        guide.loc.data.zero_()
        guide.register_buffer("start", torch.zeros_like(guide.loc))
        guide.register_buffer("unit", torch.eye(P).to(guide.loc) if full else torch.ones_like(guide.loc))
    return guide


def _start_at(guide: AutoContinuous, pair: Pair) -> None:
    """Set ``start`` and ``unit`` to location and scale of the draws of a story's own guide."""
    sites = {name: biject_to(node["fn"].support) for name, node in guide.prototype_trace.iter_stochastic_nodes()}

    def draw(_: dict[str, Tensor]) -> Tensor:
        trace = poutine.trace(pair.guide).get_trace(*pair.data)
        return torch.cat([transform.inv(trace.nodes[n]["value"]).reshape(-1) for n, transform in sites.items()])

    draws = map_draws(draw, NUM_DRAWS).double()
    draws = torch.where(draws.isfinite(), draws, torch.nan)
    low, centre, high = draws.nanquantile(draws.new_tensor([0.16, 0.5, 0.84]), 0).nan_to_num()
    sds = (high - low) / 2
    sds = torch.where(sds > 0, sds, INITIAL_SCALE)
    draws = draws.nan_to_num().clamp(centre - WIDEST * sds, centre + WIDEST * sds)
    guide.start.copy_(draws.mean(0))
    sds = torch.where(draws.std(0) > 0, draws.std(0), sds)
    if guide.unit.ndim == 1:
        guide.unit.copy_(sds)
        return
    # shrunk, since correlations of few draws are too large
    weight = guide.latent_dim / NUM_DRAWS
    scaled = (draws - draws.mean(0)) / sds
    correlation = (1 - weight) * scaled.mT @ scaled / (NUM_DRAWS - 1) + weight * torch.eye(len(sds)).to(sds)
    guide.unit.copy_(sds[:, None] * torch.linalg.cholesky(correlation))


def _plates(node: Any) -> set[str]:
    """Names of a site's plates."""
    return {frame.name for frame in node["cond_indep_stack"]}
