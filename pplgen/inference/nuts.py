"""NUTS on a pair's model: its potential as a graph, and Pyro's sampler on top of it."""

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

from pplgen.compiler.tracing import NotTraceable, require_equal
from pplgen.compiler.vectorised import map_draws, traced_function
from pplgen.errors import InputError, first_line
from pplgen.inference.engine import compile_graph, why_not_compiled
from pplgen.inference.log_joint import given_latents, joint_at, sites_of
from pplgen.inference.stored_draws import StoredDraws
from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair

__all__ = ["Chains", "Potential", "run_nuts"]

TRIES = 100
"""Starts that are tried until one has a finite density."""
SCALING = 200
"""Draws of the guide that say how wide the posterior is, roughly."""
EVALUATIONS = 15
"""Gradients that a draw is expected to take."""
REPAYS = 30.0
"""Seconds of gradients from which on compiling is expected to pay."""

Report = Callable[[int, int, float, str], None]


@dataclass(frozen=True)
class Chains:
    """How NUTS went."""

    num_chains: int
    num_draws: int
    """Draws of each chain."""
    warm_up: int
    """Steps of each chain before, in which step size and masses are adapted."""
    divergences: int
    """Draws whose trajectory left the level of its energy."""
    acceptance: float
    """Mean probability of acceptance."""


class Potential:
    """``-log p(x, theta) |d theta / d u|`` in nats at unconstrained latents u, one vector, with its gradient.

    Parameters
    ----------
    pair
        Its model is evaluated on the pair's data, discrete latents summed out.
    """

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.sites = sites_of(pair, pair.structure.latent)
        self._transforms = {name: biject_to(site.support) for name, site in self.sites.items()}
        with torch.no_grad():
            inverse = {name: self._transforms[name].inv(site.value) for name, site in self.sites.items()}
        self._shapes = {name: value.shape for name, value in inverse.items()}
        self.scale = torch.ones(())
        """Unit of the entries of u, shape ``(P,)`` or none."""
        self.call: Callable[[Tensor], tuple[Tensor, Tensor]] = self.evaluate
        self.path = "plain Pyro"

    def evaluate(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Let Pyro evaluate potential and gradient."""
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            values, log_slope = self._constrained(u)
            potential = -(joint_at(self.pair, given_latents(self.sites, values), self.pair.data) + log_slope)
            (gradient,) = torch.autograd.grad(potential, u)
        return potential.detach(), gradient

    def trace(self, u: Tensor) -> None:
        """Take a graph in place of Pyro, after it was compared with it at two points; where there is none, say why."""
        try:
            graph = traced_function(self.evaluate, [u])
            for _ in range(2):
                elsewhere = u + 0.1 * torch.randn_like(u)
                for what, ours, theirs in zip(
                    ("potential", "gradient"), graph(elsewhere), self.evaluate(elsewhere), strict=True
                ):
                    require_equal(what, ours, theirs)
        except NotTraceable as reason:
            self.path = f"plain Pyro, for {reason}"
        except Exception as error:
            self.path = f"plain Pyro, for tracing stopped: {type(error).__name__}: {first_line(error)}"
        else:
            self.call, self.path = graph, "the traced graph"

    def compile(self, u: Tensor) -> None:
        """Compile the graph, where there is one, and compare it once more."""
        if self.call == self.evaluate or why_not_compiled():
            return
        try:
            compiled = compile_graph(self.call, (u,))
            elsewhere = u + 0.1 * torch.randn_like(u)
            for what, ours, theirs in zip(
                ("potential", "gradient"), compiled(elsewhere), self.call(elsewhere), strict=True
            ):
                require_equal(f"compiled {what}", ours, theirs, "the graph's")
        except Exception as error:
            self.path = f"the traced graph, for the compiler stopped: {type(error).__name__}: {first_line(error)}"
        else:
            self.call, self.path = compiled, "the compiled graph"

    def __call__(self, z: dict[str, Tensor]) -> Tensor:
        """Return the potential as Pyro's samplers take it, differentiable."""
        value: Tensor = _Given.apply(z["u"], self.call)
        return value

    def constrained(self, u: Tensor) -> dict[str, Tensor]:
        """Return latents by name at vectors of shape ``(..., P)``."""
        return self._constrained(u)[0]

    def unconstrained(self, values: dict[str, Tensor]) -> Tensor:
        """Lay latents out as one vector, shape ``(P,)``."""
        return torch.cat([self._transforms[name].inv(values[name]).reshape(-1) for name in self.sites]) / self.scale

    def learn_scale(self) -> None:
        """Take the deviations of the guide's draws as units: a story's starts near the posterior."""

        def draw(_: dict[str, Tensor]) -> Tensor:
            trace = poutine.trace(self.pair.guide).get_trace(*self.pair.data)
            return self.unconstrained({name: trace.nodes[name]["value"] for name in self.sites})

        deviations = map_draws(draw, SCALING).std(0)
        self.scale = torch.where(deviations > 0, deviations, 1.0)

    def _constrained(self, u: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return latents and the logarithm of the transforms' slope, up to the units, which are constants."""
        values, log_slope = {}, u.new_zeros(())
        parts = (self.scale * u).split([shape.numel() for shape in self._shapes.values()], dim=-1)
        for (name, shape), part in zip(self._shapes.items(), parts, strict=True):
            own, transform = part.reshape((*u.shape[:-1], *shape)), self._transforms[name]
            values[name] = transform(own)
            if u.ndim == 1:
                log_slope = log_slope + transform.log_abs_det_jacobian(own, values[name]).sum()
        return values, log_slope


class _Given(torch.autograd.Function):
    """A value whose gradient comes with it."""

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
    """Sample from the posterior by Pyro's NUTS, one chain after the other (Hoffman and Gelman 2014).

    Parameters
    ----------
    pairs
        One for each chain, which starts at a draw of its guide.
    seeds
        Of each chain.
    num_draws, warm_up
        Draws of each chain, and steps of adaptation before.
    compiler
        ``"off"`` for Pyro's own potential, ``"graph"`` for a traced one, ``"inductor"`` for one that is compiled, and
        ``"auto"`` for the latter where it repays.
    report
        Called with the chain, its step, steps per second, and what is going on.

    Returns
    -------
    tuple
        The first pair, whose guide replays the draws; how it went; and what ran.

    Raises
    ------
    InputError
        Where the model has parameters to be learned, or discrete latents that cannot be summed out.
    """
    first = pairs[0]
    _require_samplable(first)
    with first.isolated(), pyro.validation_enabled(False), seeded(seeds[0]):
        potential = Potential(first)
        if first.story is not None:
            potential.learn_scale()
    starts = []
    for pair, seed in zip(pairs, seeds, strict=True):
        with pair.isolated(), pyro.validation_enabled(False), seeded(seed):
            starts.append(_start(pair, potential))
    drawn, divergences, accepted = [], 0, []
    with first.isolated(), pyro.validation_enabled(False):
        with seeded(seeds[0]):
            _prepare(potential, starts[0], len(pairs) * (num_draws + warm_up), compiler)
        for chain, (start, seed) in enumerate(zip(starts, seeds, strict=True)):
            began = time.perf_counter()

            def hook(kernel: Any, _: Any, stage: str, i: int, chain: int = chain, began: float = began) -> None:
                step = i + 1 + (0 if stage.startswith("W") else warm_up)
                if report and step % 20 == 0:
                    report(chain, step, step / (time.perf_counter() - began), potential.path)

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
            told = sampler._diagnostics[0]
            divergences += len(told["divergences"])
            accepted.append(told["acceptance rate"])
        with torch.no_grad():
            draws = potential.constrained(torch.stack(drawn))
        replay(first, draws)
    return first, Chains(len(pairs), num_draws, warm_up, divergences, float(np.mean(accepted))), potential.path


def replay(pair: Pair, draws: dict[str, Tensor]) -> None:
    """Let draws, shape ``(num_chains, num_draws, ...)`` each, be a pair's guide; call it inside ``pair.isolated``."""
    pair.guide = StoredDraws(sites_of(pair, pair.structure.latent), draws)


def _require_samplable(pair: Pair) -> None:
    """Refuse models that have more to be found than the posterior of continuous latents."""
    structure = pair.structure
    with pair.isolated(), torch.no_grad():
        trace = poutine.trace(pair.model).get_trace(*pair.data)
    if learned := sorted(name for name, node in trace.nodes.items() if node["type"] == "param"):
        raise InputError(
            f"method='nuts' samples latents, and the model has parameters to be learned, such as {learned[0]!r}"
        )
    if structure.guide_enumerated:
        raise InputError(f"method='nuts': the guide sums out {structure.guide_enumerated[0]!r}, which the model should")
    for name in structure.latent:
        if trace.nodes[name]["fn"].support.is_discrete:
            raise InputError(
                f"method='nuts': latent site {name!r} is discrete, and the guide draws it; leave it to be summed out"
            )
    for name, node in trace.nodes.items():
        if node["type"] == "sample" and poutine.util.site_is_subsample(node):
            frame = node["fn"]
            if getattr(frame, "subsample_size", None) not in (None, frame.size):
                raise InputError(f"method='nuts' needs all rows in each step, and plate {name!r} takes some of them")


def _start(pair: Pair, potential: Potential) -> Tensor:
    """Draw from a guide until the posterior's density there is finite."""
    for _ in range(TRIES):
        with torch.no_grad():
            trace = poutine.trace(pair.guide).get_trace(*pair.data)
            u = potential.unconstrained({name: trace.nodes[name]["value"] for name in potential.sites})
        value, gradient = potential.evaluate(u) if u.isfinite().all() else (u.new_tensor(math.nan), u)
        if value.isfinite() and gradient.isfinite().all():
            return u
    raise InputError(f"none of {TRIES} draws of the guide has a finite posterior density; check data and priors")


def _prepare(potential: Potential, u: Tensor, num_steps: int, compiler: str) -> None:
    """Trace and compile as is asked for, or as repays."""
    if compiler == "off":
        return
    potential.trace(u)
    began = time.perf_counter()
    for _ in range(20):
        potential.call(u)
    expected = (time.perf_counter() - began) / 20 * num_steps * EVALUATIONS
    if compiler == "inductor" or (compiler == "auto" and expected > REPAYS):
        potential.compile(u)
