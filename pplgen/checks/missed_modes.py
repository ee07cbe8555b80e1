"""Check of modes that the guide misses: those of other restarts, and those that none of them found."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pplgen.checks.check import Check, Verdict, not_applicable
from pplgen.checks.inputs import SAMPLED, CheckInputs
from pplgen.errors import InputError
from pplgen.inference.iterates import unflatten
from pplgen.posterior.draws import draw_posterior
from pplgen.posterior.evidence import importance_estimate
from pplgen.posterior.exchangeability import exchangeable
from pplgen.posterior.mirror_modes import are_mirrored, differ
from pplgen.posterior.mode_search import search_modes
from pplgen.posterior.relabelling import Axes, match_components

__all__ = ["missed_modes"]

NEAR = 10.0
"""Nats below the best ELBO within which a maximum counts as a mode; beyond, its mass is below exp(-10)."""
MISSED = 0.05
"""Largest accepted posterior mass of missed modes."""
DRAWS = 200
"""Guide draws of each mode, whose means and standard deviations are compared."""
WEIGHTED_DRAWS = 1000
"""Guide draws of each mode for its mass."""
Parameters = dict[str, Tensor]


class _Candidate(NamedTuple):
    """A maximum of the ELBO."""

    start: str
    """The move that led there; empty for a restart."""
    parameters: Parameters
    elbo: float


def missed_modes(inputs: CheckInputs) -> Check:
    """Posterior mass of modes that the guide misses, of other restarts or none, components relabelled.

    Components of a mixture are merged, split and emptied, and the ELBO maximised from there. The mass of a mode is
    estimated by importance sampling from the guide there; two are different if the mean of some parameter differs by
    five standard deviations, and no symmetry of the model exchanges them. k-hat cannot detect a missed mode.
    """
    name, source = "posterior mass at missed modes", "Yao et al. 2022; Ueda et al. 2000; threshold ours"
    if inputs.sampled:
        return not_applicable(name, source, SAMPLED)
    if not inputs.structure.shared_latent or inputs.point_latent:
        return not_applicable(name, source, "it needs shared latents whose guide has a density")
    restarts = _restarts(inputs)
    found: list[_Candidate] = []
    try:
        if inputs.is_training:
            found = [_Candidate(*mode) for mode in search_modes(inputs.pair)]
        reason = ""
    except InputError as error:
        reason = str(error)
    if len(restarts) < 2 and not found:
        reason = reason or inputs.why_no_training_rows or "no move leads to a maximum"
        return not_applicable(name, source, f"it needs restarts whose final parameters were stored; {reason}")
    modes, mirrored = _distinct(inputs, restarts, found)
    masses = np.exp([mass - modes[0][1] for _, mass in modes])
    value = float(1 - masses[0] / masses.sum())
    note = f"{mirrored} modes are mirror images by a symmetry of the model, of which the guide shows one"
    if value <= MISSED:
        return Check(name, value, MISSED, source, Verdict.PASS, note if mirrored else "")
    largest = 1 + int(np.argmax(masses[1:]))
    start = modes[largest][0].start
    if start:
        what = f"a mode that no restart found has {masses[largest] / masses.sum():.2f} of the posterior mass; it is "
        remedy = f"{what}reached from the fit with {start}: use other numbers of components, more restarts, or NUTS"
    else:
        what = f"{len(modes)} modes among {len(inputs.runs)} restarts, the guide covers one: "
        remedy = f"{what}make the model identify it, weight the restarts by pplgen.stack(fit), or sample by NUTS"
    return Check(name, value, MISSED, source, Verdict.FAIL, remedy)


def _restarts(inputs: CheckInputs) -> list[_Candidate]:
    """Return the fit and its restarts whose ELBOs are near, the fit first."""
    pair, runs = inputs.pair, inputs.runs
    current = pair.snapshot()
    elbo = runs[0].elbo if runs else float("nan")
    others = [run for run in runs[1:] if len(run.final) and runs[0].elbo - run.elbo < NEAR]
    return [
        _Candidate("", current, elbo),
        *(_Candidate("", unflatten(torch.from_numpy(run.final), current), run.elbo) for run in others),
    ]


def _distinct(
    inputs: CheckInputs, restarts: list[_Candidate], found: list[_Candidate]
) -> tuple[list[tuple[_Candidate, float]], int]:
    """Return the different modes with their log masses, the fit's first, and the number of mirror images.

    The pair's parameters are restored afterwards.
    """
    pair = inputs.pair
    current = pair.snapshot()
    modes: list[tuple[_Candidate, float]] = []
    draws: list[Parameters] = []
    mirrored = 0
    try:
        for candidate in (*restarts, *found):
            pair.restore(candidate.parameters)
            own = draw_posterior(pair, DRAWS, scored=False).named(pair.structure.latent)
            if not draws:
                axes = exchangeable(pair, {name: own[name] for name in pair.structure.shared_latent})
            own = match_components(own, draws[0], axes, together=True) if draws else own
            if any(not _differ(inputs, own, other) for other in draws):
                continue
            mass = _log_mass(inputs, candidate, axes)
            if modes and mass < modes[0][1] - NEAR:
                continue
            if any(are_mirrored(pair, other, own) for other in draws):
                mirrored += 1
                continue
            modes.append((candidate, mass))
            draws.append(own)
    finally:
        pair.restore(current)
    return modes, mirrored


def _log_mass(inputs: CheckInputs, candidate: _Candidate, axes: Axes) -> float:
    """Return the log mass of a mode at its parameters in nats, by importance sampling, or else its ELBO."""
    if inputs.structure.row_latent or not inputs.is_training or inputs.pair.weights is not None:
        return candidate.elbo
    estimate = importance_estimate(inputs.pair, WEIGHTED_DRAWS, axes)
    return estimate.value if np.isfinite(estimate.value) else candidate.elbo


def _differ(inputs: CheckInputs, first: Parameters, second: Parameters) -> bool:
    """Whether draws of latents that all rows share are at different modes."""
    return any(differ(first[name], second[name]) for name in inputs.structure.shared_latent)
