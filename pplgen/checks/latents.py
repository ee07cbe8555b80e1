"""Checks of codes: whether they say anything of the rows, and what their guide costs."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import biject_to

from pplgen.checks.check import Check, Verdict, beside
from pplgen.checks.inputs import CheckInputs
from pplgen.posterior.latent_variables import decoder_input_size, encode_rows, moments
from pplgen.posterior.likelihood import latent_densities
from pplgen.story.latent import LatentStory

__all__ = ["active_units", "amortisation_gap", "row_gap"]

ACTIVE = 0.01
"""Variance over rows of a code entry's mean, relative to the prior's, above which the entry is active."""
GAP = 1.0
"""Nats per row by which the bound may fall short of the importance-weighted one."""
GAP_ROWS, GAP_DRAWS = 1000, 200
"""Rows of which the gap is a mean, and codes of each."""
REFITTED, STEPS, PARTICLES, RATE = 32, 300, 10, 0.05
"""Rows whose codes get a guide of their own, its steps of Adam, draws in each, and the learning rate."""
SHARE = 0.05
"""Share of the ELBO that amortisation may cost."""
CREMER = "Cremer et al. 2018"


def active_units(inputs: CheckInputs) -> Check:
    """Count the entries of a code whose posterior mean depends on the row; the others have collapsed to the prior.

    Entry d is active where ``Var_x E_q[z_d | x]`` exceeds .01 times its variance under the prior, which for a standard
    normal prior is the definition of Burda, Grosse and Salakhutdinov (2016), section 5.2.
    """
    name, source = "active units", "Burda et al. 2016"
    story = inputs.story
    if not isinstance(story, LatentStory) or inputs.num_rows < 2:
        return beside(name, source, "it takes a latent-variable story and two rows at hand")
    least = ACTIVE * moments(story.prior())[1].square()[: story.num_latents]
    means = encode_rows(story, inputs.rows[0])[0][:, : story.num_latents]
    active = means.var(0) > torch.where(least.isfinite(), least, ACTIVE)
    count, total = int(active.sum()), story.num_latents
    verdict = Verdict.PASS if count == total else Verdict.WARN if count else Verdict.FAIL
    which = ", ".join(str(d) for d in (~active).nonzero().flatten().tolist())
    remedies = {
        Verdict.PASS: "",
        Verdict.WARN: f"code entries {which} say nothing of the rows: take num_latents={count}, or warm the KL up",
        Verdict.FAIL: "the codes say nothing of the rows: warm the KL up, give free bits, or take a weaker decoder",
    }
    return Check(name, count, total, source, verdict, remedies[verdict])


def row_gap(inputs: CheckInputs) -> Check:
    """Importance-weighted bound of ``GAP_DRAWS`` codes minus the ELBO, nats per row: what the guide's shape costs.

    It approaches ``KL(q(z | x), p(z | x))`` from below (Cremer, Li and Duvenaud 2018). That one nat is much is a
    convention of this package: at that distance a density of the guide is off by a factor of e on average.
    """
    name = "bound gap (nats per row)"
    if reason := _why_not(inputs):
        return beside(name, CREMER, reason)
    weights = latent_densities(inputs.pair, inputs.some_rows(GAP_ROWS), GAP_DRAWS)
    value = torch.cat([_gap(each) for each in weights]).mean().item()
    if value <= GAP:
        return Check(name, value, GAP, CREMER, Verdict.PASS)
    remedy = "the guide is far from the posterior of the codes: score by log_likelihood, not by the ELBO; guide='full' "
    return Check(name, value, GAP, CREMER, Verdict.WARN, remedy + "or 'flow', where the story has them, comes closer")


def amortisation_gap(inputs: CheckInputs) -> Check:
    """Compute what a row gains from a normal guide of its own, as a share of its ELBO, over some rows.

    The gap of the bound has two parts: ``log p(x) - ELBO(q*)``, for the family is not that of the posterior, and
    ``ELBO(q*) - ELBO(q)``, for the encoder does not find the best member q* for each row.
    """
    name = "amortisation gap (share of the ELBO)"
    story = inputs.story
    if reason := _why_not(inputs):
        return beside(name, CREMER, reason)
    assert isinstance(story, LatentStory), "others have a reason"
    if decoder_input_size(story) != story.num_latents:
        return beside(name, CREMER, "the codes have a class beside them, of which no normal is a guide")
    own, refitted, weighted = _refit(story, inputs.some_rows(REFITTED)[0])
    gain = (refitted - own).clamp_min(0).mean().item()
    approximation = (weighted - torch.maximum(refitted, own)).mean().item()
    value = gain / max(abs(own.mean().item()), 1e-12)
    parts = f"amortisation {gain:.3g}, approximation {approximation:.3g} nats per row"
    if value <= SHARE:
        return Check(name, value, SHARE, CREMER, Verdict.PASS, parts)
    remedy = f"{parts}: the encoder does not find the best code; train longer, or widen the encoder"
    return Check(name, value, SHARE, CREMER, Verdict.WARN, remedy)


def _refit(story: LatentStory, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the ELBO of the encoder, that of the best normal, and the importance-weighted bound of each row."""
    prior, q = story.prior(), story.encode(x)
    transform = biject_to(getattr(prior.support, "base_constraint", prior.support))  # as of mixtures

    def ratio(z: Tensor, log_q: Tensor) -> Tensor:
        seen = story.decode(z)
        return prior.log_prob(z) + seen.log_prob(x) - log_q

    draws = q.sample(torch.Size([GAP_DRAWS]))
    own = ratio(draws, q.log_prob(draws))
    start = transform.inv(draws)
    centre, scale = start.mean(0), start.std(0).clamp_min(1e-4).log()
    with torch.enable_grad():
        parameters = [value.detach().clone().requires_grad_() for value in (centre, scale)]
        optimiser = torch.optim.Adam(parameters, lr=RATE)

        def drawn(number: int) -> Tensor:
            normal = torch.distributions.Normal(parameters[0], parameters[1].exp())
            u = normal.rsample(torch.Size([number]))
            z = transform(u)
            change = transform.log_abs_det_jacobian(u, z)
            change = change.sum(-1) if change.ndim == u.ndim else change
            return ratio(z, normal.log_prob(u).sum(-1) - change)

        for step in range(STEPS):
            optimiser.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
            gradients = torch.autograd.grad(-drawn(PARTICLES).mean(0).sum(), parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimiser.step()
    with torch.no_grad():
        best = drawn(GAP_DRAWS)
    count = math.log(GAP_DRAWS)
    weighted = torch.maximum(own.logsumexp(0), best.logsumexp(0)) - count
    return own.mean(0), best.mean(0), weighted


def _why_not(inputs: CheckInputs) -> str | None:
    """Say why codes have no bound of their own; ``None`` where they do."""
    story = inputs.story
    if not isinstance(story, LatentStory):
        return "it takes a latent-variable story"
    if not inputs.num_rows:
        return inputs.why_no_training_rows
    if not bool((encode_rows(story, inputs.rows[0][:1])[1][:, : story.num_latents] > 0).all()):
        return "the guide is a point, which bounds no density"
    return None


def _gap(weights: Tensor) -> Tensor:
    """Return the importance-weighted bound minus the plain one of each row, from weights ``(draws, rows)``."""
    return weights.logsumexp(0) - math.log(len(weights)) - weights.mean(0)
