r"""ELBOs and their gradient estimators by name.

``sampled``         all terms from draws of the guide, eq. 6 of Kingma and Welling (2014)
``analytic``        the KL divergence from guide to prior in closed form where Pyro has one, eq. 7 and 10
``sticking-the-landing``  ``sampled``, without the gradient's score term (Roeder, Wu and Duvenaud 2017)
``score-function``  ``sampled``, with score-function instead of pathwise gradients (Williams 1992)
``importance``      the importance-weighted bound of each row (Burda, Grosse and Salakhutdinov 2016)

References
----------
Burda, Grosse and Salakhutdinov (2016), Importance weighted autoencoders.
Kingma and Welling (2014), Auto-Encoding Variational Bayes.
Kingma et al. (2016), Improved variational inference with inverse autoregressive flow.
Roeder, Wu and Duvenaud (2017), Sticking the landing.
Williams (1992), Simple statistical gradient-following algorithms for connectionist reinforcement learning.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.infer import ELBO, ReweightedWakeSleep, TraceMeanField_ELBO
from torch import Tensor, nn

from pplgen.data.transforms import redraw_pixels
from pplgen.errors import InputError, first_line
from pplgen.inference.estimators import (
    DetachSamples,
    FreeBits_ELBO,
    ImportanceWeighted_ELBO,
    ScoreFunction_ELBO,
    StickingTheLanding_ELBO,
    kl_per_dimension,
    score_term,
)
from pplgen.inference.minibatches import Augment
from pplgen.story.base import check_choice, check_count, check_positive
from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair
from pplgen.story.structure import Structure, unwrap

__all__ = ["AUGMENTATIONS", "BOUNDS", "augmentation", "make_bound"]

BOUNDS = ("sampled", "analytic", "sticking-the-landing", "score-function", "importance")
_ESTIMATORS: dict[str, type[ELBO]] = {
    "analytic": TraceMeanField_ELBO,
    "sticking-the-landing": StickingTheLanding_ELBO,
    "score-function": ScoreFunction_ELBO,
}
AUGMENTATIONS: dict[str, Augment] = {"bernoulli": redraw_pixels}


def make_bound(
    pair: Pair,
    elbo: str | ELBO | None,
    num_particles: int = 1,
    free_bits: float | None = None,
    batch_size: int | None = None,
    *,
    low_variance: bool = False,
) -> ELBO:
    """Return the ELBO of a given name for a pair.

    Parameters
    ----------
    pair
        Pair of the model and guide.
    elbo
        One of ``BOUNDS``; ``None`` for the default; an instance of Pyro's ``ELBO`` is returned unchanged.
    num_particles
        Draws from the guide over which each gradient is averaged; for ``importance``, importance samples per row.
    free_bits
        Free bits per latent dimension, in nats, see ``FreeBits_ELBO``; default: none.
    batch_size
        Rows per step; ``None`` for all.
    low_variance
        Whether the default is ``sticking-the-landing`` if that is defined for the pair, instead of ``sampled``.

    Raises
    ------
    InputError
        If the bound is not defined for the pair.
    """
    check_count("num_particles", num_particles)
    if free_bits is not None:
        check_positive("free_bits", free_bits)
        if elbo != "analytic":
            raise InputError(f"free_bits={free_bits!r}: expected elbo='analytic', which computes KL divergences")
    if isinstance(elbo, ReweightedWakeSleep) or (elbo is not None and not isinstance(elbo, (str, ELBO))):
        raise InputError(
            f"elbo: {type(elbo).__name__} is not one ELBO of model and guide; expected one of {', '.join(BOUNDS)}, or "
            "Pyro's ELBO with a single loss, such as TraceGraph_ELBO()"
        )
    if isinstance(elbo, ELBO):
        if elbo.max_plate_nesting < pair.structure.plate_depth:
            given, expected = elbo.max_plate_nesting, pair.structure.plate_depth
            raise InputError(f"elbo: max_plate_nesting={given}; expected at least {expected}, the depth of the plates")
        if num_particles != 1:
            raise InputError(
                f"num_particles={num_particles}: expected in the constructor, {type(elbo).__name__}(num_particles=...)"
            )
        return elbo
    if elbo is None:
        bound = _default(pair, num_particles, batch_size, low_variance=low_variance)
    else:
        bound = _named(pair, check_choice("elbo", elbo, BOUNDS), num_particles, free_bits, batch_size)
    if num_particles > 1:
        try:
            with torch.no_grad():
                _on_some_rows(pair, batch_size, lambda data: bound.loss(pair.model, pair.guide, *data))
        except (RuntimeError, ValueError, IndexError) as error:
            what = f"num_particles={num_particles}: model and guide do not support several draws at once"
            raise InputError(f"{what}: {first_line(error)}") from None
    return bound


def warm_up_steps(warm_up: int | Mapping[str, int]) -> int:
    """Return the number of steps of KL warm-up, the same for all sites that are named.

    Raises
    ------
    InputError
        If it is not a whole number, or not the same.
    """
    numbers = list(warm_up.values()) if isinstance(warm_up, Mapping) else [warm_up]
    if not numbers or any(number != numbers[0] for number in numbers):
        raise InputError(f"warm_up={warm_up}: expected the same number of steps for all sites, at least one")
    return check_count("warm_up", numbers[0], minimum=0)


def augmentation(augment: Any) -> Augment | None:
    """Return the augmentation of a given name; a function is returned unchanged."""
    if augment is None or callable(augment):
        return augment
    return AUGMENTATIONS[check_choice("augment", augment, AUGMENTATIONS)]


def _default(pair: Pair, num_particles: int, batch_size: int | None, *, low_variance: bool) -> ELBO:
    """Return the default ELBO, see ``make_bound``."""
    if low_variance:
        with contextlib.suppress(InputError):
            return _named(pair, "sticking-the-landing", num_particles, None, batch_size)
    return pair.elbo(num_particles)


def _named(pair: Pair, name: str, num_particles: int, free_bits: float | None, batch_size: int | None) -> ELBO:
    """Build a named ELBO after checking that it is defined for the pair."""
    if name == "sampled":
        return pair.elbo(num_particles)
    structure = pair.structure
    if name != "importance" and structure.enumerates:
        which = next(map(repr, structure.enumerated), "one of the guide's")
        raise InputError(f"elbo={name!r}: a discrete latent, {which}, is summed out; expected elbo='sampled'")
    context = DetachSamples() if name == "score-function" else contextlib.nullcontext()
    guide, model = _on_some_rows(pair, batch_size, lambda data: _sites(pair, context, data))
    if name == "score-function":
        _require_densities(guide)
    else:
        _require_reparameterised(name, guide)
    if name == "sticking-the-landing":
        _require_independent_draws(guide)
    if name == "importance":
        _require_row_guide(structure, guide)
        return ImportanceWeighted_ELBO(structure, num_particles)
    options: dict[str, Any] = {
        "num_particles": num_particles,
        "vectorize_particles": num_particles > 1,
        "max_plate_nesting": structure.plate_depth,
    }
    if free_bits is None:
        return _ESTIMATORS[name](**options)
    if not structure.row_latent:
        raise InputError(f"free_bits={free_bits!r}: the pair has no per-row latents")
    for site in structure.row_latent:
        kl_per_dimension(site, guide[site], model[site])
    return FreeBits_ELBO(structure.row_latent, free_bits, **options)


def _on_some_rows(pair: Pair, batch_size: int | None, run: Callable[[tuple[Any, ...]], Any]) -> Any:
    """Call a function on as many rows as a step has; on all if the guide does not support fewer."""
    num_rows = pair.structure.row_axes.count(pair.data)
    with seeded(0), pair.isolated():
        if num_rows and batch_size is not None and batch_size < num_rows:
            with contextlib.suppress(RuntimeError, ValueError, IndexError):
                return run(pair.structure.row_axes.select(pair.data, slice(batch_size)))
        return run(pair.data)


def _sites(pair: Pair, context: Any, data: tuple[Any, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the guide's latent sites, and the model's sites at their draws."""
    with context:
        guide = poutine.trace(pair.guide).get_trace(*data)
    model = poutine.trace(poutine.replay(pair.model, guide)).get_trace(*data)
    guide = poutine.util.prune_subsample_sites(guide)
    return {name: guide.nodes[name] for name in guide.stochastic_nodes}, dict(model.nodes)


def _require_reparameterised(bound: str, guide: dict[str, Any]) -> None:
    """Raise ``InputError`` unless the guide's draws are reparameterised."""
    for name, node in guide.items():
        if not node["fn"].has_rsample and not node["infer"].get("enumerate"):
            kind = type(unwrap(node["fn"])).__name__
            expected = "expected elbo='sampled' or 'score-function'"
            raise InputError(f"elbo={bound!r}: the guide's {kind} of {name!r} is not reparameterised; {expected}")


def _require_independent_draws(guide: dict[str, Any]) -> None:
    """Raise ``InputError`` unless the distribution of each of the guide's draws is independent of its other draws."""
    draws: dict[str, Tensor] = {}
    for name, node in guide.items():
        if any(isinstance(transform, nn.Module) for transform in getattr(node["fn"], "transforms", ())):
            raise InputError(f"elbo='sticking-the-landing': {name!r} is drawn by a flow; expected elbo='sampled'")
        term = score_term(node)
        if draws and term is not None and term.requires_grad:
            gradients = torch.autograd.grad(term.sum(), list(draws.values()), retain_graph=True, allow_unused=True)
            for other, gradient in zip(draws, gradients, strict=True):
                if gradient is not None:
                    raise InputError(
                        f"elbo='sticking-the-landing': the guide's distribution of {name!r} depends on its draw of "
                        f"{other!r}; expected elbo='sampled'"
                    )
        if node["value"].requires_grad:
            draws[name] = node["value"]


def _require_densities(guide: dict[str, Any]) -> None:
    """Raise ``InputError`` if the guide has trainable ``Delta`` sites, which have no score."""
    for name, node in guide.items():
        if isinstance(unwrap(node["fn"]), Delta) and node["value"].requires_grad:
            raise InputError(f"elbo='score-function': the guide's Delta of {name!r} has no score")


def _require_row_guide(structure: Structure, guide: dict[str, Any]) -> None:
    """Raise ``InputError`` unless model and guide allow importance weights per row."""
    why = structure.why_no_row_densities()
    if why is None and structure.guide_enumerated:
        why = "a discrete latent is enumerated in the guide, so there are no draws to importance-weight"
    if why is None and not structure.row_latent:
        why = "the guide has no per-row latents"
    if why is None:
        plates = {name: {frame.name for frame in node["cond_indep_stack"]} for name, node in guide.items()}
        terms = (*structure.observed, *structure.factors)
        shared = [name for name, around in plates.items() if structure.row_plate not in around]
        shared += [name for name in terms if name not in structure.per_row]
        why = f"all rows share {shared[0]!r}, but draws are importance-weighted row by row" if shared else None
    if why is not None:
        raise InputError(f"elbo='importance': {why}")
