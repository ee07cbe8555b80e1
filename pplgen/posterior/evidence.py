"""Log evidence, log p(x), of a trained pair: by importance sampling, bridge sampling or annealed importance sampling.

Exchangeable components are integrated over in one order, and the result is for all, see ``labellings``. Modes that are
apart otherwise, and that no draw reaches, are not part of an estimate.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import numpy as np
import pyro
import torch
from pyro.distributions import ImproperUniform
from torch import Tensor

from pplgen.compiler.vectorisation import map_draws
from pplgen.errors import InputError
from pplgen.inference.empirical_guide import StoredDraws
from pplgen.inference.nuts import require_samplable, run_nuts
from pplgen.inference.potential import Potential
from pplgen.posterior.annealing import anneal
from pplgen.posterior.bridge_sampling import bridge_sampling
from pplgen.posterior.draws import draw_posterior, draw_shared, draws_rows_separately
from pplgen.posterior.importance_sampling import INNER_DRAWS, integrate_row_latents
from pplgen.posterior.labellings import Labelling
from pplgen.posterior.model_traces import model_trace
from pplgen.posterior.normal_proposal import NormalProposal
from pplgen.posterior.point_estimates import fitted_constants, point_latents, require_densities
from pplgen.posterior.psis import k_limit, smoothed_weights
from pplgen.posterior.relabelling import Axes
from pplgen.posterior.row_likelihood import IMPORTANCE, LogLikelihood
from pplgen.story.pair import Pair
from pplgen.story.structure import unwrap

__all__ = ["METHODS", "LogEvidence", "estimate_log_evidence", "importance_estimate", "prior_note"]

METHODS = {
    "importance": "importance sampling from the guide",
    "bridge": "bridge sampling",
    "annealed": "annealed importance sampling",
}
"""Names of the methods, and what they do."""
DRAWS = {"importance": 4000, "bridge": 2000, "annealed": 1000}
"""Default numbers of draws."""
MAX_SCORES = 2**24
"""Maximum number of densities of rows in memory when their latents are integrated out."""
MAX_ERROR = 0.5
"""Standard error in nats above which an estimate is unreliable: the error itself is then no longer estimated well."""
CHAINS, WARM_UP = 4, 300
"""Number of chains of NUTS for bridge sampling, and of their adaptation steps."""
WIDTH = 2.0
"""Standard deviations from which chains are annealed, relative to the guide's: wide enough for tails beyond them."""
WHAT = "evidence"
GUIDE_DRAWS = 4000
"""Draws of the guide whose moments are the normal proposal's."""


@dataclass(frozen=True)
class LogEvidence:
    """Estimate of the log evidence, log p(x)."""

    value: float
    """Log evidence in nats."""
    standard_error: float
    """Monte Carlo standard error in nats, by the delta method."""
    pareto_k: float
    """Shape of the tail of the importance weights; NaN for bridge sampling, which needs none."""
    num_draws: int
    """Number of draws, or chains of annealed importance sampling."""
    method: str
    """Key of ``METHODS``."""
    note: str = ""
    """What the number depends on beside model and data."""

    @property
    def problem(self) -> str:
        """Why the estimate is unreliable; empty if it is not."""
        if not (math.isfinite(self.value) and self.standard_error <= MAX_ERROR):
            return f"standard error above {MAX_ERROR:g} nats"
        limit = k_limit(self.num_draws)
        return f"Pareto k above {limit:.2f}" if self.pareto_k > limit else ""

    @property
    def reliable(self) -> bool:
        """Whether the standard error can be believed."""
        return not self.problem

    def __str__(self) -> str:
        k = "" if math.isnan(self.pareto_k) else f", Pareto k {self.pareto_k:.2f}"
        parts = [
            f"log evidence {self.value:.2f} +- {self.standard_error:.2g} nats, by {METHODS[self.method]} "
            f"with {self.num_draws:,} draws{k}"
        ]
        parts += [f"unreliable: {self.problem}"] if self.problem else []
        return "; ".join([*parts, self.note] if self.note else parts)


def estimate_log_evidence(pair: Pair, method: str, num_draws: int | None, seed: int) -> LogEvidence:
    """Estimate the log evidence of a pair's rows; call it inside ``pair.isolated``.

    Parameters
    ----------
    pair
        A trained pair with its training rows.
    method
        ``"importance"``: draws of the guide are weighted by ``p(x, theta) / q(theta)``, latents of rows integrated out.
        ``"bridge"``: between posterior draws, of NUTS, and a normal distribution on the unconstrained scale with the
        moments of half of them. ``"annealed"``: chains from a normal distribution with the guide's moments to the
        posterior.
    num_draws
        Draws of the guide; posterior draws; chains. Default: those of ``DRAWS``, or all stored draws.
    seed
        Random seed of NUTS.

    Raises
    ------
    InputError
        If the model has no evidence: point estimates, an improper prior, subsampled or weighted rows; or if the method
        does not apply.
    """
    _require_evidence(pair)
    sampled = isinstance(pair.guide, StoredDraws)
    if method == "importance" and sampled:
        raise InputError("log_evidence: draws of a sampler have no guide density; expected method='bridge'")
    number = DRAWS[method] if num_draws is None else num_draws
    if method == "importance":
        return importance_estimate(pair, number)
    require_samplable(pair, method)
    return _by_annealing(pair, number) if method == "annealed" else _by_bridge(pair, number, seed)


def prior_note(pair: Pair, what: str) -> str:
    """Note that priors were taken from the data, on which ``what`` then depends; empty if they were given."""
    names = () if pair.story is None else pair.story.priors_from_data
    if not names:
        return ""
    return f"{' and '.join(names)} of the prior were taken from the data, on which this {what} depends"


def _require_evidence(pair: Pair) -> None:
    """Raise ``InputError`` unless all that is unknown has a proper prior and a posterior density."""
    require_densities(pair, "log_evidence")
    if constants := fitted_constants(pair):
        raise InputError(
            f"log_evidence: {next(iter(constants))!r} is a point estimate, over which the evidence does not integrate; "
            "expected a prior for every parameter; pplgen.k_fold and compare score point estimates"
        )
    if points := point_latents(pair):
        raise InputError(f"log_evidence: the guide is a point mass at {points[0]!r}; expected one with a density")
    if pair.structure.subsamples:
        raise InputError("log_evidence: the model subsamples its rows; expected all rows in the plate")
    if pair.weights is not None:
        raise InputError("log_evidence: the fit has weighted rows, which have no evidence")
    nodes = model_trace(pair).nodes
    if improper := [n for n in pair.structure.latent if isinstance(unwrap(nodes[n]["fn"]), ImproperUniform)]:
        raise InputError(f"log_evidence: the prior of {improper[0]!r} is improper; expected one that integrates to 1")


def importance_estimate(pair: Pair, number: int, axes: Axes | None = None) -> LogEvidence:
    """Estimate the log evidence by importance sampling from the guide; call it inside ``pair.isolated``.

    ``axes`` are those of exchangeable components, if known.
    """
    structure = pair.structure
    if structure.row_latent and structure.why_no_row_densities() is None and draws_rows_separately(pair):
        if not structure.shared_latent:
            return _by_rows(pair, number)
        number = max(1, min(number, MAX_SCORES // (INNER_DRAWS * max(1, pair.num_rows))))
        sites, log_ratio, _ = integrate_row_latents(pair, number)
    else:
        drawn = draw_posterior(pair, number)
        sites, log_ratio = drawn.sites, drawn.lp.double() - drawn.log_q.double()
    return _averaged(pair, log_ratio, Labelling(pair, sites, axes), sites, "importance")


def _by_rows(pair: Pair, number: int) -> LogEvidence:
    """Multiply the evidences of rows, which share no latents."""
    number = max(2, min(number, MAX_SCORES // max(1, pair.num_rows)))
    densities = integrate_row_latents(pair, number)[2].double()
    rows = LogLikelihood.from_draws(densities, IMPORTANCE)
    error = float(rows.standard_error.square().sum().sqrt())
    k = float(smoothed_weights(densities)[1].max())
    return LogEvidence(float(rows.as_subclass(Tensor).sum()), error, k, number, "importance", prior_note(pair, WHAT))


def _averaged(
    pair: Pair, log_ratio: Tensor, labelling: Labelling, sites: dict[str, Tensor], method: str
) -> LogEvidence:
    """Average weights ``log p - log q`` of draws in one labelling."""
    inside = labelling.contains(sites) if labelling.axes else torch.ones(len(log_ratio), dtype=torch.bool)
    log_ratio = log_ratio.double().cpu()
    if not bool((inside & log_ratio.isfinite()).any()):
        return LogEvidence(-math.inf, math.inf, math.inf, len(log_ratio), method, prior_note(pair, WHAT))
    weights = torch.where(inside, log_ratio, -math.inf)
    found = LogLikelihood.from_draws(weights[:, None], IMPORTANCE)
    k = float(smoothed_weights(weights[inside][:, None])[1][0])
    value = float(found.as_subclass(Tensor)[0]) + labelling.log_number
    return LogEvidence(value, float(found.standard_error[0]), k, len(weights), method, prior_note(pair, WHAT))


def _by_annealing(pair: Pair, number: int) -> LogEvidence:
    """Anneal chains from a normal distribution with the guide's moments."""
    with pyro.validation_enabled(False):
        potential = Potential(pair)
        stored = isinstance(pair.guide, StoredDraws)
        vectors = _stored_vectors(potential).flatten(0, 1) if stored else potential.guide_vectors(GUIDE_DRAWS)
        labelling = Labelling(pair, potential.constrained(vectors))
        proposal = NormalProposal(potential, vectors, WIDTH)
        potential.trace(vectors[0])
        state, log_weights = anneal(proposal, number)
        sites = potential.constrained(proposal.vectors(state))
    return _averaged(pair, log_weights, labelling, sites, "annealed")


def _by_bridge(pair: Pair, number: int, seed: int) -> LogEvidence:
    """Bridge from a normal distribution with the moments of half of the posterior draws to the other half."""
    stored = isinstance(pair.guide, StoredDraws)
    with pyro.validation_enabled(False):
        labelling = Labelling(pair, pair.guide.draws if stored else draw_shared(pair, GUIDE_DRAWS))
        sampled = pair if stored else _sampled(pair, number, seed)
        potential = Potential(sampled)
        vectors = _stored_vectors(potential, labelling)
        half = vectors.shape[1] // 2
        proposal = NormalProposal(potential, vectors[:, :half].flatten(0, 1))
        potential.trace(vectors[0, 0])
        of_posterior = _log_ratio(proposal, proposal.coordinates(vectors[:, half:].flatten(0, 1)))
        coordinates = torch.randn(len(of_posterior), len(proposal.mean), dtype=torch.float64)
        inside = labelling.contains(potential.constrained(proposal.vectors(coordinates)))
        of_proposal = torch.where(inside, _log_ratio(proposal, coordinates), -math.inf)
    value, error = bridge_sampling(of_posterior, of_proposal, len(vectors))
    note, value = prior_note(pair, WHAT), value + labelling.log_number
    return LogEvidence(value, error, math.nan, len(of_posterior), "bridge", note)


def _sampled(pair: Pair, number: int, seed: int) -> Pair:
    """Return a copy of the pair whose guide stores draws of NUTS; chains start at draws of the pair's guide."""
    chains = [copy.copy(pair)] * CHAINS
    seeds = np.random.SeedSequence(seed).generate_state(CHAINS).tolist()
    each = -(-number // CHAINS)
    with torch.enable_grad():
        return run_nuts(chains, seeds=seeds, num_draws=each, warm_up=WARM_UP, compiler="auto", report=None)[0]


def _stored_vectors(potential: Potential, labelling: Labelling | None = None) -> Tensor:
    """Return stored draws, with their components in one order, as unconstrained vectors ``(chains, draws, P)``."""
    stored: StoredDraws = potential.pair.guide
    draws = stored.draws if labelling is None else labelling.relabelled(stored.draws)
    vectors: Tensor = map_draws(potential.unconstrained, stored.total, draws)
    return vectors.unflatten(0, (stored.num_chains, -1))


def _log_ratio(proposal: NormalProposal, coordinates: Tensor) -> Tensor:
    """Return ``log p - log q`` at coordinates of the proposal, in nats."""
    return (proposal.log_joint(coordinates)[0] - proposal.log_density(coordinates)).cpu()
