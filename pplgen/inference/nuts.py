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

from pplgen.compiler.inductor import use_writable_cache
from pplgen.errors import InputError
from pplgen.inference.empirical_guide import StoredDraws
from pplgen.inference.log_joint import latent_sites
from pplgen.inference.potential import Potential
from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair

__all__ = ["Chains", "require_samplable", "run_nuts"]

TRIES = 100
"""Maximum number of initial draws until one has a finite density."""
GRADIENTS_PER_DRAW = 15
"""Expected number of gradient evaluations per draw."""
COMPILE_AFTER = 30.0
"""Expected seconds of gradient evaluations above which the potential is compiled."""

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
