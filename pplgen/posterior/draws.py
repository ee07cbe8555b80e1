"""Draws from a trained guide and their log densities, discrete latents summed out."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pplgen.compiler.vectorisation import map_draws
from pplgen.errors import InputError, first_line
from pplgen.inference.empirical_guide import StoredDraws
from pplgen.posterior.model_traces import enumerated_trace
from pplgen.story.conditioning import unconditioned
from pplgen.story.marginalisation import sum_out
from pplgen.story.pair import Pair
from pplgen.story.structure import Structure, unwrap

__all__ = [
    "Draws",
    "RowDensities",
    "draw_posterior",
    "draw_predictive",
    "draw_prior",
    "draw_shared",
    "draws_rows_separately",
    "row_densities",
    "shared_densities",
]


@dataclass(frozen=True)
class Draws:
    """Draws from the guide on the pair's data."""

    sites: dict[str, Tensor]
    """Latent and deterministic sites, shape ``(num_draws, ...)`` each."""
    lp: Tensor
    """log p(x, theta) in nats, discrete latents summed out, shape ``(num_draws,)``."""
    log_q: Tensor
    """log q(theta) in nats, shape ``(num_draws,)``."""

    def named(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return the named sites."""
        return {name: self.sites[name] for name in names}


@dataclass(frozen=True)
class RowDensities:
    """Log densities and posteriors of each row at draws of the latents."""

    log_likelihood: Tensor
    """log p(x_i | theta) in nats, ``(num_draws, num_rows)``; NaN where the guide draws latents of all rows jointly."""
    probabilities: dict[str, Tensor]
    """p(z_i = k | x_i, theta) of enumerated sites with one value per row (the guide's, where it enumerates them);
    the last axis is that of the values."""
    drawn: dict[str, Tensor]
    """Per-row latents that were drawn from the guide, shape ``(num_draws, num_rows, ...)`` each."""


def draw_posterior(
    pair: Pair,
    num_draws: int,
    *,
    scored: bool = True,
    exclude: Collection[str] = frozenset(),
    max_looped: int | None = None,
) -> Draws:
    """Draw the latents from the guide on the pair's data; call it inside ``pair.isolated``.

    Stored draws are thinned evenly. Sites in ``exclude`` are not returned. Without ``scored`` the densities are zero,
    which saves most of the time. ``max_looped`` is that of ``map_draws``.
    """
    bound = pair.elbo()
    names = tuple(name for name in pair.structure.latent + pair.structure.deterministic if name not in exclude)
    if not (names or scored):
        return Draws({}, torch.zeros(num_draws), torch.zeros(num_draws))
    stored = pair.guide if isinstance(pair.guide, StoredDraws) else None

    def draw(chosen: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        with stored.replaying(chosen["draw"]) if stored else contextlib.nullcontext():
            guide_trace = poutine.trace(pair.guide).get_trace(*pair.data)
            if not scored:
                model_trace = poutine.trace(poutine.replay(pair.model, guide_trace)).get_trace(*pair.data)
                return _values(model_trace, names, pair.structure), torch.zeros(()), torch.zeros(())
            for name in pair.structure.guide_enumerated:  # drawn here, so not weighted by its probability
                guide_trace.nodes[name]["infer"] = {**guide_trace.nodes[name]["infer"], "enumerate": None}
            total = torch.as_tensor(guide_trace.log_prob_sum())
            # excluding training terms added by pyro.factor
            log_q = torch.as_tensor(guide_trace.log_prob_sum(lambda _, site: not site["is_observed"]))
            # one particle of the ELBO at these draws is log p - log q, summed as Pyro sums it
            ratio = -torch.as_tensor(bound.loss(pair.model, poutine.replay(pair.guide, guide_trace), *pair.data))
            model_trace = poutine.trace(poutine.replay(pair.model, guide_trace)).get_trace(*pair.data)
            return _values(model_trace, names, pair.structure), total + ratio, log_q

    thinned = {"draw": stored.thinned_indices(num_draws)} if stored else None
    sites, lp, log_q = map_draws(draw, num_draws, thinned, max_looped=max_looped)
    return Draws(sites, lp.cpu(), log_q.cpu())


def draw_shared(pair: Pair, num_draws: int) -> dict[str, Tensor]:
    """Draw the latents that all rows share from the guide; call it inside ``pair.isolated``."""
    names = pair.structure.shared_latent
    return map_draws(lambda _: _values(poutine.trace(pair.guide).get_trace(*pair.data), names), num_draws)


def shared_densities(pair: Pair, num_draws: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Draw the latents that all rows share from the guide, with log densities; call it inside ``pair.isolated``.

    Returns
    -------
    latents : dict
        As returned by ``draw_shared``.
    log_p, log_q : Tensor
        Log densities of prior and guide in nats, shape ``(num_draws,)``.
    """
    structure = pair.structure

    def draw(_: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        guide_trace = poutine.trace(pair.guide).get_trace(*pair.data)
        model_trace = poutine.trace(poutine.replay(pair.model, guide_trace)).get_trace(*pair.data)
        shared = [
            n for n in guide_trace.stochastic_nodes if _row_frame(guide_trace.nodes[n], structure.row_plate) is None
        ]
        log_p, log_q = (
            trace.log_prob_sum(lambda name, _, names=names: name in names)
            for trace, names in ((model_trace, structure.shared_latent), (guide_trace, shared))
        )
        return _values(guide_trace, structure.shared_latent), torch.as_tensor(log_p), torch.as_tensor(log_q)

    return map_draws(draw, num_draws)


def draw_prior(
    pair: Pair, num_draws: int, *, exclude: Collection[str] = frozenset()
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Draw latents and observed sites from the model; call it inside ``pair.isolated``.

    Returns
    -------
    tuple of dict
        Latent and deterministic sites, and observed sites, shape ``(num_draws, ...)`` each, without ``exclude``.
    """
    model = unconditioned(pair.model)
    latent, observed = (
        tuple(name for name in names if name not in exclude)
        for names in (pair.structure.latent + pair.structure.deterministic, pair.structure.observed)
    )

    def draw(_: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        trace = poutine.trace(model).get_trace(*pair.data)
        return _values(trace, latent), _values(trace, observed)

    return map_draws(draw, num_draws)


def draw_predictive(pair: Pair, draws: Draws) -> dict[str, Tensor]:
    """Replicate the observed sites at each draw; call it inside ``pair.isolated``."""
    model = unconditioned(pair.model)

    def replicate(latent: Mapping[str, Tensor]) -> dict[str, Tensor]:
        trace = poutine.trace(poutine.condition(model, latent)).get_trace(*pair.data)
        return _values(trace, pair.structure.observed)

    return map_draws(replicate, len(draws.lp), draws.named(pair.structure.latent))


def row_densities(
    pair: Pair,
    latents: Mapping[str, Tensor],
    num_draws: int,
    data: tuple[Any, ...],
    *,
    max_looped: int | None = None,
) -> RowDensities:
    """Log density of each row of ``data`` (training or new) at each draw; call it inside ``pair.isolated``.

    Parameters
    ----------
    pair
        A pair whose model has a row plate.
    latents
        Draws, shape ``(num_draws, ...)`` each. Per-row latents that are left out are drawn from the guide on ``data``,
        and the density is then the importance-weighted estimate p(x_i, z_i | theta) / q(z_i | x_i, theta), unbiased
        for p(x_i | theta).
    num_draws
        Number of draws.
    data
        Arguments of model and guide.
    max_looped
        As for ``map_draws``.

    Raises
    ------
    InputError
        If the model has no row plate, or sums out a latent that all rows share; or if the guide draws per-row latents
        of all rows jointly.
    """
    if reason := pair.structure.why_no_row_densities():
        raise InputError(reason)
    if (left_out := [n for n in pair.structure.row_latent if n not in latents]) and not draws_rows_separately(pair):
        raise InputError(
            f"the guide draws {left_out[0]!r} of all rows jointly, so that rows have no separate densities; "
            "expected a guide that draws it within the row plate, such as AutoNormal"
        )
    try:
        scored = map_draws(lambda each: _score_rows(pair, each, data), num_draws, latents, max_looped=max_looped)
        return RowDensities(*scored)
    except RuntimeError as error:
        if data is pair.data:
            raise
        raise InputError(
            "the model cannot be evaluated on these rows; one that is conditioned on its training data, such as by "
            f"pyro.condition, has no density of others: {first_line(error)}"
        ) from error


@torch.no_grad()
def draws_rows_separately(pair: Pair) -> bool:
    """Whether the guide draws per-row latents within the row plate, unlike joint automatic guides."""
    trace = poutine.util.prune_subsample_sites(poutine.trace(pair.guide).get_trace(*pair.data))
    frames = {n: _row_frame(trace.nodes[n], pair.structure.row_plate) for n in trace.stochastic_nodes}
    auxiliary = set(frames) - set(pair.structure.latent)
    rows = [n for n in pair.structure.row_latent if n in frames]
    computed = any(isinstance(unwrap(trace.nodes[n]["fn"]), Delta) for n in rows)
    return not (computed and auxiliary and not any(frames[name] for name in auxiliary))


def _score_rows(
    pair: Pair, latent: Mapping[str, Tensor], data: tuple[Any, ...]
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Return the fields of ``RowDensities`` at one draw."""
    structure = pair.structure
    row_plate = str(structure.row_plate)
    left_out = [name for name in structure.latent if name not in latent]
    drawn, log_q, probabilities = _draw_rows(pair, latent, left_out, data)
    model_trace = enumerated_trace(pair, {**latent, **drawn}, data)
    terms = (*structure.observed, *structure.factors, *structure.enumerated, *left_out)
    scored = [name for name in terms if name in structure.per_row]
    nodes = [model_trace.nodes[name] for name in scored]
    num_rows = next(f.size for node in nodes for f in node["cond_indep_stack"] if f.name == row_plate)
    log_likelihood = sum_out(model_trace, scored, row_plate).reshape(num_rows)
    for name in structure.enumerated:
        if len([frame for frame in model_trace.nodes[name]["cond_indep_stack"] if frame.vectorized]) > 1:
            continue  # several values per row, which have no single probability vector
        values = model_trace.nodes[name]["infer"]["_enumerate_symbol"]
        joint = sum_out(model_trace, scored, row_plate, keep=values).reshape(num_rows, -1)
        probabilities[name] = (joint - log_likelihood[:, None]).exp()
    return log_likelihood - log_q, probabilities, {n: v for n, v in drawn.items() if n not in probabilities}


def _draw_rows(
    pair: Pair, latent: Mapping[str, Tensor], names: list[str], data: tuple[Any, ...]
) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
    """Draw per-row latents from the guide on ``data``, with log densities summed per row.

    Enumerated sites are drawn as well; the probabilities of their values are returned, shape ``(num_rows, values)``.
    """
    log_q, probabilities = torch.zeros(()), dict[str, Tensor]()
    if not names:
        return {}, log_q, probabilities
    whole = poutine.trace(poutine.condition(pair.guide, latent)).get_trace(*data)
    trace = poutine.util.prune_subsample_sites(whole)
    trace.compute_log_prob()
    rows = {name: _row_frame(trace.nodes[name], pair.structure.row_plate) for name in trace.stochastic_nodes}
    # automatic guides draw unconstrained values at auxiliary sites
    auxiliary = [name for name, frame in rows.items() if frame and name not in names]
    for name in [*names, *auxiliary]:
        dim = rows[name].dim
        # masked but not scaled, like the model's terms
        log_prob = scale_and_mask(trace.nodes[name]["unscaled_log_prob"], mask=trace.nodes[name]["mask"])
        others = [d for d in range(-log_prob.ndim, 0) if d != dim]
        log_q = log_q + (log_prob.sum(others) if others else log_prob)
        if name in pair.structure.guide_enumerated and not others:
            fn = trace.nodes[name]["fn"]
            probabilities[name] = fn.log_prob(fn.enumerate_support()).exp().T
    return {name: trace.nodes[name]["value"] for name in names}, log_q, probabilities


def _row_frame(node: Any, row_plate: str | None) -> Any:
    """Return the frame of the row plate around a site, ``None`` outside it."""
    return next((frame for frame in node["cond_indep_stack"] if frame.name == row_plate), None)


def _values(trace: poutine.Trace, names: tuple[str, ...], structure: Structure | None = None) -> dict[str, Tensor]:
    """Values of the named sites; with a ``structure``, its latents must be all that the trace has."""
    changing = [name for name in names if name not in trace.nodes]
    if changing := changing + (structure.unknown_latents(trace) if structure else []):
        raise InputError(f"{changing[0]!r} is not a site of every run of the model, so its draws cannot be stacked")
    return {name: trace.nodes[name]["value"] for name in names}
