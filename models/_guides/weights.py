"""The guide's weights of components."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor


def weights_guide(concentration: Tensor) -> dist.Dirichlet:
    """Return the Dirichlet distribution of weights, concentrations of shape ``(K,)``.

    One component's weight is 1 whatever its concentration, and torch's gradient of the draw is NaN now and then.
    """
    return dist.Dirichlet(concentration if len(concentration) > 1 else concentration.detach())
