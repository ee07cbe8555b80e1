r"""Bounds of the log likelihood by name, as estimators of the gradient are compared.

``sampled``         all terms from draws of the guide, eq. 6 of Kingma and Welling (2014)
``analytic``        the divergence of the guide from the prior in closed form where Pyro knows one, eq. 7 and 10
``score-function``  ``sampled``, with gradients that do not go through the draws (Williams 1992)
``importance``      the importance-weighted bound of each row (Burda, Grosse and Salakhutdinov 2016)

References
----------
Burda, Grosse and Salakhutdinov (2016), Importance weighted autoencoders.
Kingma and Welling (2014), Auto-Encoding Variational Bayes.
Kingma et al. (2016), Improved variational inference with inverse autoregressive flow.
Williams (1992), Simple statistical gradient-following algorithms for connectionist reinforcement learning.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.infer import ELBO, TraceMeanField_ELBO

from pplgen.data.transforms import redraw_pixels
from pplgen.errors import InputError, first_line
from pplgen.inference.estimators import (
    Detaching,
    FreeBits_ELBO,
    ImportanceWeighted_ELBO,
    ScoreFunction_ELBO,
    divergences,
    entries_of,
)
from pplgen.inference.minibatches import Augment
from pplgen.story.base import check_choice, check_count, check_positive
from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair, select_rows
from pplgen.story.structure import Structure, number_of_rows

__all__ = ["AUGMENTATIONS", "BOUNDS", "augmentation", "bound_of", "check_warm_up"]

BOUNDS = ("sampled", "analytic", "score-function", "importance")
AUGMENTATIONS: dict[str, Augment] = {"bernoulli": redraw_pixels}


def bound_of(
    pair: Pair,
    elbo: str | ELBO | None,
    num_particles: int = 1,
    free_bits: float | None = None,
    batch_size: int | None = None,
) -> ELBO:
    """Return the bound that a name stands for, for this pair.

    Parameters
    ----------
    pair
        What is bounded.
    elbo
        One of ``BOUNDS``; ``None`` for ``sampled``; one of Pyro's own is returned as it is.
    num_particles
        Draws of the guide: over how many each gradient is averaged, and how many the importance-weighted bound weighs.
    free_bits
        Nats of each entry of a row's latents below which divergence costs nothing, see ``FreeBits_ELBO``.
    batch_size
        Rows of a step, where these are not all.

    Raises
    ------
    InputError
        Where the bound is not defined for the pair.
    """
    check_count("num_particles", num_particles)
    if free_bits is not None:
        check_positive("free_bits", free_bits)
        if elbo != "analytic":
            raise InputError(f"free_bits={free_bits!r}: expected elbo='analytic' beside it, which computes divergences")
    if isinstance(elbo, ELBO):
        if num_particles != 1:
            raise InputError(f"num_particles={num_particles}: {type(elbo).__name__}(num_particles=...) has its own")
        return elbo
    name = "sampled" if elbo is None else check_choice("elbo", elbo, BOUNDS)
    bound = _named(pair, name, num_particles, free_bits, batch_size)
    if num_particles > 1:
        try:
            with torch.no_grad():
                _on_some_rows(pair, batch_size, lambda data: bound.loss(pair.model, pair.guide, *data))
        except (RuntimeError, ValueError, IndexError) as error:
            what = f"num_particles={num_particles}: model and guide do not take several draws at once"
            raise InputError(f"{what}: {first_line(error)}") from None
    return bound


def check_warm_up(pair: Pair, warm_up: int, steps: int) -> None:
    """Raise ``InputError`` where the terms of the pair's codes cannot be weighed for so many of the steps."""
    check_count("warm_up", warm_up, minimum=0)
    if warm_up and pair.kl_weight is None:
        name = type(pair.story).__name__ if pair.story else "a bare pair"
        raise InputError(f"warm_up={warm_up}: {name} has no codes whose terms can be weighed; a LatentStory has")
    if warm_up > steps:
        raise InputError(f"warm_up={warm_up}: expected at most the {steps} steps of the fit")


def augmentation(augment: Any) -> Augment | None:
    """Return the function that a name stands for; a function stands for itself."""
    if augment is None or callable(augment):
        return augment
    return AUGMENTATIONS[check_choice("augment", augment, AUGMENTATIONS)]


def _named(pair: Pair, name: str, num_particles: int, free_bits: float | None, batch_size: int | None) -> ELBO:
    """Build a bound after checking that the pair has what it takes."""
    if name == "sampled":
        return pair.elbo(num_particles)
    structure = pair.structure
    if name != "importance" and structure.enumerates:
        which = next(map(repr, structure.enumerated), "one of the guide's")
        raise InputError(f"elbo={name!r}: a discrete latent, {which}, is summed out, which 'sampled' can")
    wrap = Detaching() if name == "score-function" else contextlib.nullcontext()
    guide, model = _on_some_rows(pair, batch_size, lambda data: _sites(pair, wrap, data))
    if name == "score-function":
        _require_scores(guide)
    else:
        _require_draws(name, guide)
    if name == "importance":
        _require_rows(structure, guide)
        return ImportanceWeighted_ELBO(structure, num_particles)
    options: dict[str, Any] = {
        "num_particles": num_particles,
        "vectorize_particles": num_particles > 1,
        "max_plate_nesting": structure.plate_depth,
    }
    if free_bits is None:
        return ScoreFunction_ELBO(**options) if name == "score-function" else TraceMeanField_ELBO(**options)
    if not structure.row_latent:
        raise InputError(f"free_bits={free_bits!r}: the pair has no latents of single rows")
    for site in structure.row_latent:
        divergences(site, guide[site], model[site])
    return FreeBits_ELBO(structure.row_latent, free_bits, **options)


def _on_some_rows(pair: Pair, batch_size: int | None, run: Callable[[tuple[Any, ...]], Any]) -> Any:
    """Run something on as many rows as a step has; on all of them where the guide knows no fewer."""
    num_rows = number_of_rows(pair.data)
    with seeded(0), pair.isolated():
        if num_rows and batch_size is not None and batch_size < num_rows:
            with contextlib.suppress(RuntimeError, ValueError, IndexError):
                return run(tuple(select_rows(value, slice(batch_size), num_rows) for value in pair.data))
        return run(pair.data)


def _sites(pair: Pair, wrap: Any, data: tuple[Any, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the guide draws, and the model's sites given that."""
    with wrap:
        guide = poutine.trace(pair.guide).get_trace(*data)
    model = poutine.trace(poutine.replay(pair.model, guide)).get_trace(*data)
    guide = poutine.util.prune_subsample_sites(guide)
    return {name: guide.nodes[name] for name in guide.stochastic_nodes}, dict(model.nodes)


def _require_draws(bound: str, guide: dict[str, Any]) -> None:
    """Refuse draws through which no gradient goes."""
    for name, node in guide.items():
        if not node["fn"].has_rsample and not node["infer"].get("enumerate"):
            kind = type(entries_of(node["fn"])).__name__
            can = "'sampled' and 'score-function' can"
            raise InputError(f"elbo={bound!r}: the guide's {kind} of {name!r} is not reparameterised; {can}")


def _require_scores(guide: dict[str, Any]) -> None:
    """Refuse a guide whose density has no gradient."""
    for name, node in guide.items():
        if isinstance(entries_of(node["fn"]), Delta) and node["value"].requires_grad:
            raise InputError(f"elbo='score-function': the guide puts {name!r} at a point, whose density has no score")


def _require_rows(structure: Structure, guide: dict[str, Any]) -> None:
    """Refuse what cannot be weighed row by row."""
    why = structure.why_no_row_densities()
    if why is None and structure.guide_enumerated:
        why = "the guide sums out a discrete latent itself, which leaves no draws to weigh"
    if why is None and not structure.row_latent:
        why = "the guide draws no latents of single rows"
    if why is None:
        plates = {name: {frame.name for frame in node["cond_indep_stack"]} for name, node in guide.items()}
        terms = (*structure.observed, *structure.factors)
        shared = [name for name, around in plates.items() if structure.row_plate not in around]
        shared += [name for name in terms if name not in structure.per_row]
        why = f"all rows share {shared[0]!r}, and draws are weighed row by row" if shared else None
    if why is not None:
        raise InputError(f"elbo='importance': {why}")
