"""Guide of mixture weights."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor


def weights_guide(concentration: Tensor) -> dist.Dirichlet:
    """Return the Dirichlet guide of weights, with concentrations of shape ``(K,)``.

    The weight of a single component is always 1, and torch's gradient of its draw is sometimes NaN.
    """
    return dist.Dirichlet(concentration if len(concentration) > 1 else concentration.detach())
