"""Weights of a Dirichlet process, truncated."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["stick_breaking"]


def stick_breaking(v: Float[Tensor, "... fractions"]) -> Float[Tensor, "... components"]:
    """Return K weights ``pi_k = v_k (1 - v_1) ... (1 - v_(k-1))`` given the first K - 1 fractions; ``v_K`` is 1.

    With ``v_k ~ Beta(1, alpha)`` they are the weights of a Dirichlet process truncated at K components.

    Parameters
    ----------
    v
        Fractions of the rest of the stick, in (0, 1).

    References
    ----------
    Ishwaran and James (2001), Gibbs sampling methods for stick-breaking priors.
    """
    log_rest = pad(torch.cumsum(torch.log1p(-v), -1), (1, 0))
    return (pad(v.log(), (0, 1)) + log_rest).softmax(-1)
