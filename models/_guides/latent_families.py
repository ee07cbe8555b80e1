r"""Variational families of latent variables, and the learned parameters of their priors.

Each family is reparameterised by one of the three routes of Kingma and Welling (2014), section 2.4:

- location and scale: ``normal``, ``full`` (a normal with all covariances), ``laplace``, ``student-t`` (5 degrees)
- inverse CDF: ``logistic``, ``kumaraswamy``
- composition: ``lognormal``, ``gamma``, ``beta``, ``dirichlet``, and ``flow``: a normal pushed forward by
  autoregressive transforms (inverse autoregressive flow, Kingma et al. 2016)

Families on the real line have the priors of ``PRIORS``, others a fixed one, ``pplgen.distributions.standard_prior``.

References
----------
Kingma and Welling (2014), Auto-Encoding Variational Bayes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pplgen.story.base import InputError, check_choice

REAL = ("normal", "laplace", "student-t", "logistic", "full", "flow")
BOUNDED = ("lognormal", "gamma", "beta", "kumaraswamy", "dirichlet")
GUIDES = (*REAL, *BOUNDED)
PRIORS = ("normal", "mixture", "vamp")
MIN_SCALE = 1e-4
"""Smallest standard deviation or concentration."""


class LatentFamily(nn.Module):
    """Variational family of the latent variables, parameterised by the encoder's outputs.

    Parameters
    ----------
    kind
        One of ``GUIDES``.
    num_latents
        Number of latent dimensions.
    """

    def __init__(self, kind: str, num_latents: int) -> None:
        super().__init__()
        self.kind, self.num_latents = check_choice("guide", kind, GUIDES), num_latents
        if kind == "flow":
            width = max(16, 2 * num_latents)
            self.flow = nn.ModuleList(transforms.affine_autoregressive(num_latents, [width]) for _ in range(2))

    @property
    def num_outputs(self) -> int:
        """Number of encoder outputs for a row."""
        k = self.num_latents
        return {"full": 2 * k + k * k, "dirichlet": k}.get(self.kind, 2 * k)

    def distribution(self, outputs: Tensor) -> Any:
        """Return the distribution given the encoder's outputs, event shape ``(num_latents,)``."""
        k, kind = self.num_latents, self.kind
        a = outputs[..., :k]
        if kind == "dirichlet":
            return dist.Dirichlet(softplus(a) + 0.1)
        b = softplus(outputs[..., k : 2 * k]) + MIN_SCALE
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
    """Return the Kumaraswamy distribution by its inverse CDF, truncated at the 1e-5 and 1 - 1e-5 quantiles.

    Otherwise draws round to 0 or 1 in single precision, where densities are infinite.
    """
    a, b = softplus(a).clamp_max(50.0) + 0.5, b.clamp_max(50.0) + 0.5
    uniform = dist.Uniform(torch.full_like(a, 1e-5), torch.full_like(a, 1 - 1e-5))
    steps = [
        transforms.PowerTransform(1 / b),
        transforms.AffineTransform(torch.ones_like(a), -torch.ones_like(a)),
        transforms.PowerTransform(1 / a),
    ]
    return dist.TransformedDistribution(uniform, steps)


class LatentPrior(nn.Module):
    """Learned parameters of a prior of the latent variables: those of a mixture of K components, if it is one.

    Parameters
    ----------
    kind
        ``normal``: none; ``mixture``: log weights ``logits``, means ``mu`` and standard deviations ``tau``; ``vamp``:
        ``logits``, and encoder inputs ``pseudo_rows``.
    family
        Variational family of the guide.
    num_inputs
        Number of encoder inputs for a row.
    num_components
        Number of components of a mixture.
    """

    origin: Tensor

    def __init__(self, kind: str, family: LatentFamily, num_inputs: int, num_components: int) -> None:
        super().__init__()
        self.kind = check_choice("prior", kind, PRIORS)
        if family.kind in BOUNDED and kind != "normal":
            bounded = f"guide={family.kind!r} has bounded support and a fixed prior"
            raise InputError(f"prior={kind!r}: {bounded}; expected 'normal'")
        self.register_buffer("origin", torch.zeros(family.num_latents))
        if kind == "normal":
            return
        self.logits = nn.Parameter(torch.zeros(num_components))
        if kind == "mixture":
            self.mu = nn.Parameter(torch.empty(num_components, family.num_latents))
            self.log_sigma = nn.Parameter(torch.zeros(num_components, family.num_latents))
        else:
            self.pseudo_rows = nn.Parameter(torch.empty(num_components, num_inputs))
        self.reset_parameters()

    @property
    def tau(self) -> Tensor:
        """Standard deviations of a mixture's components, shape ``(K, num_latents)``."""
        return self.log_sigma.exp() + MIN_SCALE

    def reset_parameters(self) -> None:
        """Draw the locations of a mixture's components."""
        for name, std in (("mu", 1.0), ("pseudo_rows", 0.5)):
            if hasattr(self, name):
                nn.init.normal_(getattr(self, name), std=std)
