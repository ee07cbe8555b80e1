"""Likelihoods of rows given a decoder's outputs: independent entries, missing ones integrated out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from pplgen.distributions.continuous_bernoulli import ContinuousBernoulli
from pplgen.distributions.missing import MarginalIndependent
from pplgen.story.base import check_choice

__all__ = ["LIKELIHOODS", "CategoricalValues", "decoder_likelihood"]

LIKELIHOODS = ("bernoulli", "continuous-bernoulli", "normal", "categorical")
"""Kinds of likelihoods."""


class CategoricalValues(dist.Categorical):
    """Categorical distribution of entries stored as real numbers 0, 1, ..., C - 1; its ``mean`` is the mode.

    Parameters
    ----------
    probs, logits
        As for ``torch.distributions.Categorical``: one of them, shape ``(..., C)``.
    """

    def sample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "..."]:
        """Draw values, with the dtype of the logits."""
        return super().sample(torch.Size(sample_shape)).to(self.logits.dtype)

    @property
    def mean(self) -> Float[Tensor, "..."]:
        """Mode of each entry, shape ``batch_shape``."""
        return self.logits.argmax(-1).to(self.logits.dtype)


def decoder_likelihood(
    kind: str,
    outputs: Float[Tensor, "... outputs"],
    num_features: int,
    loc: Float[Tensor, "#features"] | float = 0.0,
    scale: Float[Tensor, "#features"] | float = 1.0,
    sigma: Float[Tensor, "#features"] | None = None,
) -> MarginalIndependent:
    """Return the distribution of rows x of D independent entries given a decoder's outputs a.

    ======================== ================================================================ =================
    kind                     distribution of ``x_j``                                          outputs
    ======================== ================================================================ =================
    ``bernoulli``            ``Bernoulli(sigmoid(a_j))``; for grey values, its cross-entropy  ``(..., D)``
    ``continuous-bernoulli`` ``ContinuousBernoulli(sigmoid(a_j))``                            ``(..., D)``
    ``normal``               ``Normal(loc_j + scale_j a_j, sigma_j)``                         ``(..., D)``
    ``normal``, no ``sigma`` the same with ``sigma_j = scale_j (softplus(a_(D+j)) + .001)``   ``(..., 2 D)``
    ``categorical``          ``Categorical(softmax(a_j, a_(D+j), ..., a_((C-1)D+j)))``        ``(..., C D)``
    ======================== ================================================================ =================

    Missing entries, NaN, are integrated out. Values of categories are real numbers 0, 1, ..., C - 1.

    Parameters
    ----------
    kind
        One of the kinds above.
    outputs
        The decoder's outputs a, of the shape above.
    num_features
        Number of entries D of a row.
    loc, scale
        Location and scale of a normal likelihood's entries, in data units.
    sigma
        Standard deviation of a normal likelihood, in data units.

    Raises
    ------
    InputError
        For another kind.

    References
    ----------
    Loaiza-Ganem and Cunningham (2019), The continuous Bernoulli: fixing a pervasive error in variational autoencoders.
    """
    entries: Any
    if check_choice("likelihood", kind, LIKELIHOODS) == "bernoulli":
        entries = dist.Bernoulli(logits=outputs, validate_args=False)
    elif kind == "continuous-bernoulli":
        entries = ContinuousBernoulli(logits=outputs, validate_args=False)
    elif kind == "categorical":
        entries = CategoricalValues(logits=outputs.unflatten(-1, (-1, num_features)).mT, validate_args=False)
    else:
        a, b = outputs[..., :num_features], outputs[..., num_features:]
        spread = scale * (softplus(b) + 1e-3) if sigma is None else sigma
        entries = dist.Normal(loc + scale * a, spread, validate_args=False)
    return MarginalIndependent(entries)
