r"""Distributions of codes: what an encoder's outputs mean, and what codes are like before a row is seen.

Each family is reparameterised by one of the three routes of Kingma and Welling (2014), section 2.4:

- location and scale: ``normal``, ``full`` (a normal with all covariances), ``laplace``, ``student-t`` (5 degrees)
- inverse CDF: ``logistic``, ``kumaraswamy``
- composition: ``lognormal``, ``gamma``, ``beta``, ``dirichlet``, and ``flow``: a normal code pushed through
  autoregressive transforms (inverse autoregressive flow, Kingma et al. 2016)

Codes on the whole line have the priors of ``PRIORS``; others the one of their support: Gamma(2, 2), LogNormal(0, 1),
Uniform(0, 1), Dirichlet(1).

References
----------
Kingma and Welling (2014), Auto-Encoding Variational Bayes.
Tomczak and Welling (2018), VAE with a VampPrior.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import torch
from pplgen.models._distributions.normal_mixture import NormalMixture
from torch import Tensor, nn
from torch.nn.functional import softplus

REAL = ("normal", "laplace", "student-t", "logistic", "full", "flow")
BOUNDED = ("lognormal", "gamma", "beta", "kumaraswamy", "dirichlet")
GUIDES = (*REAL, *BOUNDED)
PRIORS = ("normal", "mixture", "vamp")
LEAST = 1e-4
"""Of deviations and concentrations."""


class Codes(nn.Module):
    """The guide's distribution of codes, from the encoder's outputs.

    Parameters
    ----------
    kind
        One of ``GUIDES``.
    num_latents
        Entries of a code.
    """

    def __init__(self, kind: str, num_latents: int) -> None:
        super().__init__()
        self.kind, self.num_latents = kind, num_latents
        if kind == "flow":
            width = max(16, 2 * num_latents)
            self.flow = nn.ModuleList(transforms.affine_autoregressive(num_latents, [width]) for _ in range(2))

    @property
    def num_outputs(self) -> int:
        """Numbers that the encoder puts out for a row."""
        k = self.num_latents
        return {"full": 2 * k + k * k, "dirichlet": k}.get(self.kind, 2 * k)

    def of(self, outputs: Tensor) -> Any:
        """Return the distribution of codes, event shape ``(num_latents,)``."""
        k, kind = self.num_latents, self.kind
        a = outputs[..., :k]
        if kind == "dirichlet":
            return dist.Dirichlet(softplus(a) + 0.1)
        b = softplus(outputs[..., k : 2 * k]) + LEAST
        if kind == "full":
            below = outputs[..., 2 * k :].unflatten(-1, (k, k)).tril(-1)
            return dist.MultivariateNormal(a, scale_tril=torch.diag_embed(b) + below)
        if kind == "flow":
            return dist.TransformedDistribution(dist.Normal(a, b).to_event(1), list(self.flow))
        families: dict[str, Callable[[], Any]] = {
            "normal": lambda: dist.Normal(a, b),
            "laplace": lambda: dist.Laplace(a, b),
            "student-t": lambda: dist.StudentT(5.0, a, b),
            "logistic": lambda: dist.Logistic(a, b),
            "lognormal": lambda: dist.LogNormal(a, b),
            "gamma": lambda: dist.Gamma(softplus(a) + 0.1, b),
            "beta": lambda: dist.Beta(softplus(a) + 0.1, b + 0.1),
            "kumaraswamy": lambda: _kumaraswamy(a, b),
        }
        return families[kind]().to_event(1)


def _kumaraswamy(a: Tensor, b: Tensor) -> Any:
    """Return Kumaraswamy's distribution by its inverse CDF, its last hundred-thousandths cut off.

    So neither draws nor their uniform origins round to 0 or 1 in single precision, where densities are infinite.
    """
    a, b = softplus(a).clamp_max(50.0) + 0.5, b.clamp_max(50.0) + 0.5
    uniform = dist.Uniform(torch.full_like(a, 1e-5), torch.full_like(a, 1 - 1e-5))
    steps = [
        transforms.PowerTransform(1 / b),
        transforms.AffineTransform(torch.ones_like(a), -torch.ones_like(a)),
        transforms.PowerTransform(1 / a),
    ]
    return dist.TransformedDistribution(uniform, steps)


def natural_prior(kind: str, like: Tensor) -> Any:
    """Return the prior of codes of a family whose support is not the whole line; ``like`` has a code's shape."""
    zeros, ones = torch.zeros_like(like), torch.ones_like(like)
    if kind == "dirichlet":
        return dist.Dirichlet(ones)
    if kind == "gamma":
        return dist.Gamma(2 * ones, 2 * ones).to_event(1)
    return (dist.LogNormal(zeros, ones) if kind == "lognormal" else dist.Uniform(zeros, ones)).to_event(1)


class CodePrior(nn.Module):
    """What codes are like before a row is seen: standard normal, or a mixture whose index is summed out.

    Parameters
    ----------
    kind
        ``normal``; ``mixture``: normals with locations, deviations and weights that are learned; ``vamp``: the guide's
        distributions of pseudo-rows that are learned.
    codes
        The guide's family.
    num_inputs
        Numbers that the encoder reads of a row.
    num_components
        Of the mixtures.
    """

    origin: Tensor

    def __init__(self, kind: str, codes: Codes, num_inputs: int, num_components: int) -> None:
        super().__init__()
        self.kind, self.family = kind, codes.kind
        self.register_buffer("origin", torch.zeros(codes.num_latents))
        if codes.kind in BOUNDED or kind == "normal":
            return
        self.logits = nn.Parameter(torch.zeros(num_components))
        if kind == "mixture":
            self.mu = nn.Parameter(torch.empty(num_components, codes.num_latents))
            self.log_sigma = nn.Parameter(torch.zeros(num_components, codes.num_latents))
        else:
            self.pseudo_rows = nn.Parameter(torch.empty(num_components, num_inputs))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw where the components of a mixture are."""
        for name, std in (("mu", 1.0), ("pseudo_rows", 0.5)):
            if hasattr(self, name):
                nn.init.normal_(getattr(self, name), std=std)

    def of(self, encoded: Callable[[Tensor], Any]) -> Any:
        """Return the distribution of a code; ``encoded`` is the guide's of what a network reads."""
        if self.family in BOUNDED:
            return natural_prior(self.family, self.origin)
        if self.kind == "normal":
            return dist.Normal(self.origin, torch.ones_like(self.origin)).to_event(1)
        if self.kind == "mixture":
            return NormalMixture(self.logits, self.mu, self.log_sigma.exp() + LEAST)
        parts = encoded(self.pseudo_rows)
        if self.family == "normal":
            return NormalMixture(self.logits, parts.mean, parts.stddev)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), parts)
