"""The negative log joint density of a pair's latents on the unconstrained scale, with its gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import biject_to

from pplgen.compiler.graph import require_stateless
from pplgen.compiler.inductor import compile_graph, why_not_compiled
from pplgen.compiler.traceable_pyro import NotTraceable, require_equal
from pplgen.compiler.vectorisation import MAX_ENTRIES, largest_result, map_draws, traced_function
from pplgen.errors import first_line
from pplgen.inference.log_joint import delta_guide, latent_sites, log_joint_at
from pplgen.story.pair import Pair

__all__ = ["Potential"]

SCALE_DRAWS = 200
"""Draws from the guide from which the posterior scales are estimated."""
OUTPUTS = ("potential", "gradient")


class Potential:
    """``-log p(x, theta) |d theta / d u|`` in nats at unconstrained latents u, one vector, with its gradient.

    Parameters
    ----------
    pair
        Pair whose model is evaluated on its data, discrete latents summed out.
    """

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.sites = latent_sites(pair, pair.structure.latent)
        self._transforms = {name: biject_to(site.support) for name, site in self.sites.items()}
        with torch.no_grad():
            inverse = {name: self._transforms[name].inv(site.value) for name, site in self.sites.items()}
        self._shapes = {name: value.shape for name, value in inverse.items()}
        self.scale = torch.ones(())
        """Scale of the entries of u, shape ``(P,)``, or a scalar."""
        self.call: Callable[[Tensor], tuple[Tensor, Tensor]] = self.evaluate
        self.path = "plain Pyro"

    def evaluate(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate potential and gradient in plain Pyro."""
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            values, log_jacobian = self._constrained(u)
            potential = -(log_joint_at(self.pair, delta_guide(self.sites, values), self.pair.data) + log_jacobian)
            (gradient,) = torch.autograd.grad(potential, u)
        return potential.detach(), gradient

    def trace(self, u: Tensor) -> None:
        """Use a traced graph, validated against Pyro at two points; if tracing fails, record why in ``path``."""
        try:
            with require_stateless(self.pair):
                graph = traced_function(self.evaluate, [u])
            for _ in range(2):
                elsewhere = u + 0.1 * torch.randn_like(u)
                for what, ours, theirs in zip(OUTPUTS, graph(elsewhere), self.evaluate(elsewhere), strict=True):
                    require_equal(what, ours, theirs)
        except NotTraceable as reason:
            self.path = f"plain Pyro: {reason}"
        except Exception as error:
            self.path = f"plain Pyro: tracing failed: {type(error).__name__}: {first_line(error)}"
        else:
            self.call, self.path = graph, "the traced graph"

    def compile(self, u: Tensor) -> None:
        """Compile the traced graph, if there is one, and validate it against the graph."""
        if self.call == self.evaluate or why_not_compiled():
            return
        try:
            compiled = compile_graph(self.call, (u,))
            elsewhere = u + 0.1 * torch.randn_like(u)
            for what, ours, theirs in zip(OUTPUTS, compiled(elsewhere), self.call(elsewhere), strict=True):
                require_equal(f"compiled {what}", ours, theirs, "the graph's")
        except Exception as error:
            self.path = f"the traced graph: compilation failed: {type(error).__name__}: {first_line(error)}"
        else:
            self.call, self.path = compiled, "the compiled graph"

    @property
    def dtype(self) -> torch.dtype:
        """Type of the vectors."""
        return next(iter(self.sites.values())).value.dtype

    def at_vectors(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return potentials and gradients at vectors, shape ``(number, P)``; the traced graph takes all at once."""
        if self.path == "the traced graph":
            size = max(1, MAX_ENTRIES // largest_result(self.call))
            return torch.func.vmap(self.call, chunk_size=size)(u)
        values, gradients = zip(*(self.call(each) for each in u), strict=True)
        return torch.stack(values), torch.stack(gradients)

    def __call__(self, z: dict[str, Tensor]) -> Tensor:
        """Return the differentiable potential, in the form that Pyro's samplers call."""
        return _PrecomputedGradient.apply(z["u"], self.call)

    def constrained(self, u: Tensor) -> dict[str, Tensor]:
        """Return latents by name at vectors of shape ``(..., P)``."""
        return self._constrained(u)[0]

    def unconstrained(self, values: dict[str, Tensor]) -> Tensor:
        """Concatenate latents to one vector, shape ``(P,)``."""
        return torch.cat([self._transforms[name].inv(values[name]).reshape(-1) for name in self.sites]) / self.scale

    def guide_vectors(self, number: int) -> Tensor:
        """Draw vectors from the guide, shape ``(number, P)``."""

        def draw(_: dict[str, Tensor]) -> Tensor:
            trace = poutine.trace(self.pair.guide).get_trace(*self.pair.data)
            return self.unconstrained({name: trace.nodes[name]["value"] for name in self.sites})

        vectors: Tensor = map_draws(draw, number)
        return vectors

    def set_scale(self) -> None:
        """Set ``scale`` to the guide's standard deviations: a story's guide is initialised near the posterior."""
        sds = self.guide_vectors(SCALE_DRAWS).std(0)
        self.scale = torch.where(sds > 0, sds, 1.0)

    def _constrained(self, u: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return latents and the log Jacobian determinant of the transforms, up to the constant of ``scale``."""
        values, log_jacobian = {}, u.new_zeros(())
        parts = (self.scale * u).split([shape.numel() for shape in self._shapes.values()], dim=-1)
        for (name, shape), part in zip(self._shapes.items(), parts, strict=True):
            unconstrained, transform = part.reshape((*u.shape[:-1], *shape)), self._transforms[name]
            values[name] = transform(unconstrained)
            if u.ndim == 1:
                log_jacobian = log_jacobian + transform.log_abs_det_jacobian(unconstrained, values[name]).sum()
        return values, log_jacobian


class _PrecomputedGradient(torch.autograd.Function):
    """A function that returns its value and its gradient."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, call: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        with torch.no_grad():
            value, gradient = call(u)
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return grads[0] * gradient, None
