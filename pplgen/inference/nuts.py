"""NUTS for a pair's model: Pyro's sampler on a traced or compiled potential."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from torch import Tensor
from torch.distributions import biject_to

from pplgen.compiler.graph import require_stateless
from pplgen.compiler.inductor import compile_graph, use_writable_cache, why_not_compiled
from pplgen.compiler.traceable_pyro import NotTraceable, require_equal
from pplgen.compiler.vectorisation import map_draws, traced_function
from pplgen.errors import InputError, first_line
from pplgen.inference.empirical_guide import StoredDraws
from pplgen.inference.log_joint import delta_guide, latent_sites, log_joint_at
from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair

__all__ = ["Chains", "Potential", "require_samplable", "run_nuts"]

TRIES = 100
"""Maximum number of initial draws until one has a finite density."""
SCALE_DRAWS = 200
"""Draws from the guide from which the posterior scales are estimated."""
GRADIENTS_PER_DRAW = 15
"""Expected number of gradient evaluations per draw."""
COMPILE_AFTER = 30.0
"""Expected seconds of gradient evaluations above which the potential is compiled."""
OUTPUTS = ("potential", "gradient")

Report = Callable[[int, int, float, str], None]


@dataclass(frozen=True)
class Chains:
    """Sampler statistics of NUTS."""

    num_chains: int
    num_draws: int
    """Draws per chain."""
    warm_up: int
    """Warm-up steps per chain, in which step size and mass matrix are adapted."""
    divergences: int
    """Number of divergent transitions."""
    acceptance: float
    """Mean acceptance probability."""


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

    def __call__(self, z: dict[str, Tensor]) -> Tensor:
        """Return the differentiable potential, in the form that Pyro's samplers call."""
        return _PrecomputedGradient.apply(z["u"], self.call)

    def constrained(self, u: Tensor) -> dict[str, Tensor]:
        """Return latents by name at vectors of shape ``(..., P)``."""
        return self._constrained(u)[0]

    def unconstrained(self, values: dict[str, Tensor]) -> Tensor:
        """Concatenate latents to one vector, shape ``(P,)``."""
        return torch.cat([self._transforms[name].inv(values[name]).reshape(-1) for name in self.sites]) / self.scale

    def set_scale(self) -> None:
        """Set ``scale`` to the guide's standard deviations: a story's guide is initialised near the posterior."""

        def draw(_: dict[str, Tensor]) -> Tensor:
            trace = poutine.trace(self.pair.guide).get_trace(*self.pair.data)
            return self.unconstrained({name: trace.nodes[name]["value"] for name in self.sites})

        sds = map_draws(draw, SCALE_DRAWS).std(0)
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


def run_nuts(
    pairs: list[Pair],
    *,
    seeds: list[int],
    num_draws: int,
    warm_up: int,
    compiler: str,
    report: Report | None,
) -> tuple[Pair, Chains, str]:
    """Sample from the posterior by Pyro's NUTS, chains in sequence (Hoffman and Gelman 2014).

    Parameters
    ----------
    pairs
        One pair per chain, which is initialised at a draw of its guide.
    seeds
        Seed of each chain.
    num_draws, warm_up
        Draws and warm-up steps per chain.
    compiler
        ``"off"`` for Pyro's own potential, ``"graph"`` for a traced one, ``"inductor"`` for a compiled one, ``"auto"``
        for a compiled one if the expected time exceeds ``COMPILE_AFTER``, else a traced one.
    report
        Called with chain, step, steps per second, and execution path.

    Returns
    -------
    tuple
        The first pair, whose guide holds the draws; sampler statistics; and the execution path.

    Raises
    ------
    InputError
        If the model has parameters to be learned, or discrete latents that cannot be summed out.
    """
    first = pairs[0]
    require_samplable(first, "nuts")
    use_writable_cache()
    with first.isolated(), pyro.validation_enabled(False), seeded(seeds[0]):
        potential = Potential(first)
        if first.story is not None:
            potential.set_scale()
    starts = []
    for pair, seed in zip(pairs, seeds, strict=True):
        with pair.isolated(), pyro.validation_enabled(False), seeded(seed):
            starts.append(_start(pair, potential))
    drawn, divergences, accepted = [], 0, []
    with first.isolated(), pyro.validation_enabled(False):
        with seeded(seeds[0]):
            _prepare(potential, starts[0], len(pairs) * (num_draws + warm_up), compiler)
        for chain, (start, seed) in enumerate(zip(starts, seeds, strict=True)):
            started = time.perf_counter()

            def hook(kernel: Any, _: Any, stage: str, i: int, chain: int = chain, started: float = started) -> None:
                step = i + 1 + (0 if stage.startswith("W") else warm_up)
                if report and step % 20 == 0:
                    report(chain, step, step / (time.perf_counter() - started), potential.path)

            with seeded(seed):
                kernel = NUTS(potential_fn=potential)
                sampler = MCMC(
                    kernel,
                    num_samples=num_draws,
                    warmup_steps=warm_up,
                    initial_params={"u": start},
                    disable_progbar=True,
                    hook_fn=hook,
                )
                sampler.run()
            drawn.append(sampler.get_samples()["u"])
            diagnostics = sampler._diagnostics[0]
            divergences += len(diagnostics["divergences"])
            accepted.append(diagnostics["acceptance rate"])
        with torch.no_grad():
            draws = potential.constrained(torch.stack(drawn))
        use_stored_draws(first, draws)
    return first, Chains(len(pairs), num_draws, warm_up, divergences, float(np.mean(accepted))), potential.path


def use_stored_draws(pair: Pair, draws: dict[str, Tensor]) -> None:
    """Replace a pair's guide by draws of shape ``(num_chains, num_draws, ...)``; call it inside ``pair.isolated``."""
    pair.guide = StoredDraws(latent_sites(pair, pair.structure.latent), draws)


def require_samplable(pair: Pair, method: str) -> None:
    """Raise ``InputError`` unless the model has only continuous latents, or ones to be summed out, and full plates."""
    structure = pair.structure
    with pair.isolated(), torch.no_grad():
        trace = poutine.trace(pair.model).get_trace(*pair.data)
    if learned := sorted(name for name, node in trace.nodes.items() if node["type"] == "param"):
        raise InputError(
            f"method={method!r} is of latents, but the model has parameters to be learned, such as {learned[0]!r}"
        )
    if structure.guide_enumerated:
        raise InputError(
            f"method={method!r}: {structure.guide_enumerated[0]!r} is enumerated in the guide; expected in the model"
        )
    for name in structure.latent:
        if trace.nodes[name]["fn"].support.is_discrete:
            raise InputError(
                f"method={method!r}: latent site {name!r} is discrete and drawn by the guide; expected to be summed out"
            )
    for name, node in trace.nodes.items():
        if node["type"] == "sample" and poutine.util.site_is_subsample(node):
            frame = node["fn"]
            if getattr(frame, "subsample_size", None) not in (None, frame.size):
                raise InputError(f"method={method!r} needs all rows in each step, but plate {name!r} subsamples them")


def _start(pair: Pair, potential: Potential) -> Tensor:
    """Draw from a guide until the posterior density is finite."""
    for _ in range(TRIES):
        with torch.no_grad():
            trace = poutine.trace(pair.guide).get_trace(*pair.data)
            u = potential.unconstrained({name: trace.nodes[name]["value"] for name in potential.sites})
        value, gradient = potential.evaluate(u) if u.isfinite().all() else (u.new_tensor(math.nan), u)
        if value.isfinite() and gradient.isfinite().all():
            return u
    raise InputError(f"none of {TRIES} draws of the guide has a finite posterior density; check data and priors")


def _prepare(potential: Potential, u: Tensor, num_steps: int, compiler: str) -> None:
    """Trace and compile the potential as requested."""
    if compiler == "off":
        return
    potential.trace(u)
    started = time.perf_counter()
    for _ in range(20):
        potential.call(u)
    expected = (time.perf_counter() - started) / 20 * num_steps * GRADIENTS_PER_DRAW
    if compiler == "inductor" or (compiler == "auto" and expected > COMPILE_AFTER):
        potential.compile(u)
