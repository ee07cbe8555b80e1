"""log p(x, theta) of a pair's model at given values of its continuous latents, discrete ones summed out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pplgen.story.pair import Pair

__all__ = ["LatentSite", "delta_guide", "latent_sites", "log_joint_at"]


class LatentSite:
    """A site of the model: its plates, event dimensions and support.

    Attributes
    ----------
    support
        Constraint on its values, from one run of the model.
    """

    def __init__(self, node: Any) -> None:
        self.event_dim = int(node["fn"].event_dim)
        self.support = node["fn"].support
        self.value: Tensor = node["value"]
        self._frames = [frame for frame in node["cond_indep_stack"] if frame.vectorized]

    def axis_of(self, plate: str | None) -> int | None:
        """Return the axis of a plate, counted from the end of a value; ``None`` if the site is outside it."""
        return next((frame.dim - self.event_dim for frame in self._frames if frame.name == plate), None)

    def sample(self, name: str, value: Tensor, plates: dict[str, Any]) -> None:
        """Sample the site from a ``Delta`` inside the model's plates, which are created once and reused."""
        with contextlib.ExitStack() as around:
            for frame in self._frames:
                if frame.name not in plates:
                    plates[frame.name] = pyro.plate(frame.name, frame.size, dim=frame.dim)
                around.enter_context(plates[frame.name])
            pyro.sample(name, dist.Delta(value, event_dim=self.event_dim))


@torch.no_grad()
def latent_sites(pair: Pair, names: Iterable[str]) -> dict[str, LatentSite]:
    """Return sites of the model by name; call it inside ``pair.isolated``."""
    with pyro.validation_enabled(False):
        trace = poutine.trace(pair.model).get_trace(*pair.data)
    return {name: LatentSite(trace.nodes[name]) for name in names}


def delta_guide(sites: Mapping[str, LatentSite], values: Mapping[str, Tensor]) -> Callable[..., None]:
    """Return a guide of ``Delta`` distributions at given values, with log density zero."""

    def guide(*data: Any) -> None:
        plates: dict[str, Any] = {}
        for name, site in sites.items():
            site.sample(name, values[name], plates)

    return guide


def log_joint_at(pair: Pair, guide: Callable[..., None], data: tuple[Any, ...]) -> Tensor:
    """Return log p(x, theta) in nats at the values of a ``delta_guide``, computed by the pair's ELBO."""
    bound: Any = pair.elbo()
    # Pyro's differentiable_loss requires gradients
    loss = bound.differentiable_loss if torch.is_grad_enabled() else bound.loss
    return -torch.as_tensor(loss(pair.model, guide, *data))
