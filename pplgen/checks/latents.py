"""Checks of latent-variable stories: posterior collapse, and the gaps of their amortised guide."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import biject_to

from pplgen.checks.check import Check, Verdict, not_applicable
from pplgen.checks.inputs import CheckInputs
from pplgen.posterior.latent_variables import decoder_input_size, encode_rows, moments
from pplgen.posterior.row_likelihood import latent_densities
from pplgen.story.latent import LatentStory

__all__ = ["active_units", "amortisation_gap", "row_gap"]

ACTIVE = 0.01
"""Variance over rows of the posterior mean, relative to the prior variance, above which a dimension is active."""
GAP = 1.0
"""Largest accepted gap between the importance-weighted bound and the ELBO, in nats per row."""
GAP_ROWS, GAP_DRAWS = 1000, 200
"""Rows over which the gap is averaged, and latent draws of each."""
REFITTED, STEPS, PARTICLES, RATE = 32, 300, 10, 0.05
"""Rows that get a separate guide; its steps of Adam, draws per step, and learning rate."""
MAX_AMORTISATION = 0.05
"""Largest accepted amortisation gap, as a fraction of the ELBO."""
CREMER = "Cremer et al. 2018"


def active_units(inputs: CheckInputs) -> Check:
    """Count the latent dimensions whose posterior mean depends on the row; the others have collapsed to the prior.

    Dimension d is active if ``Var_x E_q[z_d | x]`` exceeds .01 times its variance under the prior, which for a standard
    normal prior is the definition of Burda, Grosse and Salakhutdinov (2016), section 5.2.
    """
    name, source = "active units", "Burda et al. 2016"
    story = inputs.story
    if not isinstance(story, LatentStory) or inputs.num_rows < 2:
        return not_applicable(name, source, "it needs a latent-variable story and at least two rows")
    threshold = ACTIVE * moments(story.prior())[1].square()[: story.num_latents]
    means = encode_rows(story, inputs.rows[0])[0][:, : story.num_latents]
    active = means.var(0) > torch.where(threshold.isfinite(), threshold, ACTIVE)
    count, total = int(active.sum()), story.num_latents
    verdict = Verdict.PASS if count == total else Verdict.WARN if count else Verdict.FAIL
    collapsed = ", ".join(str(d) for d in (~active).nonzero().flatten().tolist())
    remedies = {
        Verdict.PASS: "",
        Verdict.WARN: f"dimensions {collapsed} have collapsed to the prior: set num_latents={count}, or use KL warm-up",
        Verdict.FAIL: "all dimensions have collapsed to the prior: use KL warm-up, free bits, or a weaker decoder",
    }
    return Check(name, count, total, source, verdict, remedies[verdict])


def row_gap(inputs: CheckInputs) -> Check:
    """Importance-weighted bound with ``GAP_DRAWS`` draws minus the ELBO, in nats per row.

    It approaches ``KL(q(z | x), p(z | x))`` from below (Cremer, Li and Duvenaud 2018). The threshold of one nat is a
    convention of this package: at that distance the guide's density is off by a factor of e on average.
    """
    name = "ELBO gap (nats per row)"
    if reason := _why_no_elbo(inputs):
        return not_applicable(name, CREMER, reason)
    weights = latent_densities(inputs.pair, inputs.subset_of_rows(GAP_ROWS), GAP_DRAWS)
    value = torch.cat([_gap(each) for each in weights]).mean().item()
    if value <= GAP:
        return Check(name, value, GAP, CREMER, Verdict.PASS)
    remedy = "the guide is far from the posterior: score by log_likelihood, not the ELBO; guide='full' "
    return Check(
        name, value, GAP, CREMER, Verdict.WARN, remedy + "or 'flow', if the story supports them, is more flexible"
    )


def amortisation_gap(inputs: CheckInputs) -> Check:
    """ELBO gained by refitting a normal guide to each row, as a fraction of the ELBO, averaged over some rows.

    The inference gap has two parts: the approximation gap ``log p(x) - ELBO(q*)`` of the variational family, and the
    amortisation gap ``ELBO(q*) - ELBO(q)``, as the encoder does not return the best member q* for each row.
    """
    name = "amortisation gap (fraction of the ELBO)"
    story = inputs.story
    if reason := _why_no_elbo(inputs):
        return not_applicable(name, CREMER, reason)
    assert isinstance(story, LatentStory), "other stories have a reason not to apply"
    if decoder_input_size(story) != story.num_latents:
        return not_applicable(name, CREMER, "the latents include a class, which has no normal guide")
    own, refitted, weighted = _refit(story, inputs.subset_of_rows(REFITTED)[0])
    gain = (refitted - own).clamp_min(0).mean().item()
    approximation = (weighted - torch.maximum(refitted, own)).mean().item()
    value = gain / max(abs(own.mean().item()), 1e-12)
    parts = f"amortisation {gain:.3g}, approximation {approximation:.3g} nats per row"
    if value <= MAX_AMORTISATION:
        return Check(name, value, MAX_AMORTISATION, CREMER, Verdict.PASS, parts)
    remedy = f"{parts}: the encoder does not find the best guide of each row; train longer, or widen the encoder"
    return Check(name, value, MAX_AMORTISATION, CREMER, Verdict.WARN, remedy)


def _refit(story: LatentStory, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return each row's ELBO of the encoder, ELBO of the best normal guide, and importance-weighted bound."""
    prior, q = story.prior(), story.encode(x)
    transform = biject_to(getattr(prior.support, "base_constraint", prior.support))  # as for mixtures

    def ratio(z: Tensor, log_q: Tensor) -> Tensor:
        likelihood = story.decode(z)
        return prior.log_prob(z) + likelihood.log_prob(x) - log_q

    draws = q.sample(torch.Size([GAP_DRAWS]))
    own = ratio(draws, q.log_prob(draws))
    unconstrained = transform.inv(draws)
    loc, log_scale = unconstrained.mean(0), unconstrained.std(0).clamp_min(1e-4).log()
    with torch.enable_grad():
        parameters = [value.detach().clone().requires_grad_() for value in (loc, log_scale)]
        optimiser = torch.optim.Adam(parameters, lr=RATE)

        def log_ratio(num_draws: int) -> Tensor:
            normal = torch.distributions.Normal(parameters[0], parameters[1].exp())
            u = normal.rsample(torch.Size([num_draws]))
            z = transform(u)
            log_det = transform.log_abs_det_jacobian(u, z)
            log_det = log_det.sum(-1) if log_det.ndim == u.ndim else log_det
            return ratio(z, normal.log_prob(u).sum(-1) - log_det)

        for step in range(STEPS):
            optimiser.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
            gradients = torch.autograd.grad(-log_ratio(PARTICLES).mean(0).sum(), parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimiser.step()
    with torch.no_grad():
        best = log_ratio(GAP_DRAWS)
    weighted = torch.maximum(own.logsumexp(0), best.logsumexp(0)) - math.log(GAP_DRAWS)
    return own.mean(0), best.mean(0), weighted


def _why_no_elbo(inputs: CheckInputs) -> str | None:
    """Why the story has no per-row ELBO; ``None`` if it has."""
    story = inputs.story
    if not isinstance(story, LatentStory):
        return "it needs a latent-variable story"
    if not inputs.num_rows:
        return inputs.why_no_training_rows
    if not bool((encode_rows(story, inputs.rows[0][:1])[1][:, : story.num_latents] > 0).all()):
        return "the guide is a point mass, which gives no ELBO"
    return None


def _gap(weights: Tensor) -> Tensor:
    """Importance-weighted bound minus ELBO of each row, from log weights of shape ``(num_draws, num_rows)``."""
    return weights.logsumexp(0) - math.log(len(weights)) - weights.mean(0)
