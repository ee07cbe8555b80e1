r"""Global parameters: a normal guide on the unconstrained scale, or known values.

With T the bijection from the reals to the support of each prior (torch's ``biject_to``), the guide is::

    u ~ Normal(a + U b, U L L' U')        theta = T(u)

where b and the lower triangular L are learned. ``laplace_start`` sets a to a mode of the log joint density and U to the
Cholesky factor of the inverse Hessian there (Laplace's approximation), so that optimisation starts at b = 0 and L = 1,
with steps in units of posterior standard deviations for any number of series.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pplgen.models._guides.laplace import laplace
from pyro import poutine
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.distributions import biject_to, constraints

from pplgen.story.base import InputError
from pplgen.story.structure import sample_sites


def fix_known(model: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate the model of a story with ``theta``: parameters with known values are constants without a density."""

    @functools.wraps(model)
    def fixed(self: Any, *arguments: Any, **options: Any) -> Any:
        # the story's constructor runs its model for the sites that theta is made of
        known = self.theta.known_values if hasattr(self, "theta") else {}
        with poutine.block(hide=list(known)), poutine.condition(data=known):
            return model(self, *arguments, **options)

    return fixed


class Parameters(PyroModule):
    """Guide of named parameters, some of which may have known values.

    Parameters
    ----------
    sites
        The story's shared sites, from ``shared_sites(model)``: their names, supports and shapes.
    known
        Known values of some parameters, as numbers or nested lists; a number stands for all entries.
    correlated
        Whether L is lower triangular instead of diagonal.
    initial_scale
        Standard deviation of the guide on the unconstrained scale before ``laplace_start``.
    """

    def __init__(
        self,
        sites: Mapping[str, Any],
        known: Mapping[str, Any] | None = None,
        *,
        correlated: bool = True,
        initial_scale: float = 0.1,
    ) -> None:
        super().__init__()
        priors = {name: site["fn"] for name, site in sites.items()}
        self.known = dict(known or {})
        for name, value in self.known.items():
            if name not in priors:
                raise InputError(
                    f"known: {name!r} is not a parameter of this story; expected some of {', '.join(priors)}"
                )
            self.register_buffer(f"known_{name}", _known_value(name, value, priors[name]))
        self.names = [name for name in priors if name not in self.known]
        self.supports = {name: priors[name].support for name in self.names}
        self.shapes = {
            name: torch.Size(biject_to(support).inverse_shape(priors[name].shape()))
            for name, support in self.supports.items()
        }
        size = sum(shape.numel() for shape in self.shapes.values())
        self.correlated = correlated
        if not self.names:
            return
        self.register_buffer("start", torch.zeros(size))
        self.register_buffer("unit", initial_scale * (torch.eye(size) if correlated else torch.ones(size)))
        self.q_offset = PyroParam(0.1 * torch.randn(size))
        if correlated:
            self.q_tril = PyroParam(torch.eye(size), constraints.lower_cholesky)
        else:
            self.q_scale = PyroParam(torch.ones(size), constraints.positive)

    def draw_guide(self) -> dict[str, Tensor]:
        """Draw the parameters from the guide; known ones are constant."""
        drawn = self.known_values
        if not self.names:
            return drawn
        mean = self._mean
        if self.correlated:
            joint: Any = dist.MultivariateNormal(mean, scale_tril=self.unit @ self.q_tril)
        else:
            joint = dist.Normal(mean, self.unit * self.q_scale).to_event(1)
        u = pyro.sample("unconstrained", joint, infer={"is_auxiliary": True})
        for name, part in self._split(u).items():
            transform = biject_to(self.supports[name])
            value = transform(part)
            density = -transform.log_abs_det_jacobian(part, value)
            density = density.sum() if density.ndim else density
            drawn[name] = pyro.sample(name, dist.Delta(value, log_density=density, event_dim=value.ndim))
        return drawn

    def guide_mean(self) -> dict[str, Tensor]:
        """Return the parameters at the guide's unconstrained mean."""
        if not self.names:
            return self.known_values
        parts = self._split(self._mean)
        learned = {name: biject_to(self.supports[name])(part) for name, part in parts.items()}
        return learned | self.known_values

    def initialise(self, values: Mapping[str, Tensor], scale: float | None = None) -> None:
        """Set the guide's mean to values of the parameters; known ones are ignored.

        ``scale`` is its standard deviation on the unconstrained scale, by default unchanged.
        """
        if not self.names:
            return
        parts = [biject_to(self.supports[name]).inv(values[name]).reshape(-1) for name in self.names]
        self.start.copy_(torch.cat(parts))
        if scale is not None:
            self.unit.copy_(scale * (torch.eye(len(self.start)) if self.correlated else torch.ones(len(self.start))))
        self.q_offset = torch.zeros_like(self.start)

    def laplace_start(
        self, model: Callable[..., Any], y: Tensor, weights: Tensor | None = None, steps: int = 100
    ) -> None:
        """Set the guide to Laplace's approximation: a mode of the log joint density, and the inverse Hessian there.

        Parameters
        ----------
        model
            Pyro model whose latent sites are these parameters.
        y
            Its argument, the rows.
        weights
            Weight of each row, shape ``(num_rows,)``.
        steps
            Maximum number of L-BFGS iterations.
        """
        if not self.names:
            return

        row_weights = y.new_ones(len(y)) if weights is None else weights

        def loss(u: Tensor) -> Tensor:
            total, values = u.new_zeros(()), {}
            for name, part in self._split(u).items():
                transform = biject_to(self.supports[name])
                values[name] = transform(part)
                total = total + transform.log_abs_det_jacobian(part, values[name]).sum()
            with poutine.block():
                trace = poutine.trace(poutine.condition(model, values)).get_trace(y)
            trace.compute_log_prob()
            for site in sample_sites(trace).values():
                total = total + (site["log_prob"] @ row_weights if site["log_prob"].ndim else site["log_prob"])
            return -total

        approximation = laplace(loss, self.start, steps)
        if approximation is None:
            return
        u, inverse, precision = approximation
        self.start.copy_(u)
        self.unit.copy_(torch.linalg.cholesky(inverse) if self.correlated else precision.rsqrt())
        self.q_offset = torch.zeros_like(u)

    def _split(self, u: Tensor) -> dict[str, Tensor]:
        """Split the unconstrained vector by parameter."""
        sizes = [shape.numel() for shape in self.shapes.values()]
        return {
            name: part.reshape(shape) for (name, shape), part in zip(self.shapes.items(), u.split(sizes), strict=True)
        }

    @property
    def _mean(self) -> Tensor:
        """Mean of the guide on the unconstrained scale."""
        return self.start + (self.unit @ self.q_offset if self.correlated else self.unit * self.q_offset)

    @property
    def known_values(self) -> dict[str, Tensor]:
        """Known values by name."""
        return {name: getattr(self, f"known_{name}") for name in self.known}

    def _apply(self, *arguments: Any, **options: Any) -> Any:
        """Move, or change dtype; known values are set again, or float64 would keep the rounding of float32."""
        applied = super()._apply(*arguments, **options)
        for name, value in self.known_values.items():
            value.copy_(torch.as_tensor(self.known[name], dtype=torch.float64))
        return applied


def plain_known(known: Any) -> dict[str, Any] | None:
    """Return known values by name, converted to numbers and nested lists, or raise ``InputError``."""
    if known is not None and not isinstance(known, Mapping):
        raise InputError(f"known={known!r}: expected a mapping from parameter names to values")
    return None if known is None else {name: _plain(value) for name, value in known.items()}


def _plain(value: Any) -> Any:
    """Convert tensors and arrays, and lists of them, to nested lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def _known_value(name: str, raw: Any, prior: Any) -> Tensor:
    """Return a known value in the shape of its prior, or raise ``InputError``."""
    try:
        value = torch.as_tensor(raw, dtype=torch.get_default_dtype())
        value = value.expand(prior.shape()).clone() if value.ndim == 0 else value
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"known: {name!r} is not a number or nested list of numbers") from None
    if value.shape != prior.shape():
        raise InputError(f"known: {name!r} has shape {tuple(value.shape)}; expected {tuple(prior.shape())}")
    if not prior.support.check(value).all():
        raise InputError(f"known: {name!r} has values outside its support, {prior.support}")
    return value
