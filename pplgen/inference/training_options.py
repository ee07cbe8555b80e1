"""Training options: optimiser, objective, minibatches, number of steps, checkpoints."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.infer import ELBO
from pyro.optim.clipped_adam import ClippedAdam

from pplgen.distributed.ranks import SINGLE_PROCESS, Ranks
from pplgen.distributed.sharding import Shard
from pplgen.inference.convergence import DECAY, WINDOW
from pplgen.inference.minibatches import Augment, batching, is_full_batch
from pplgen.storage.checkpoint import CheckpointOptions
from pplgen.story.conditioning import RowScale
from pplgen.story.pair import Pair

__all__ = ["Adam", "Batching", "Objective", "TrainingOptions"]


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma and Ba 2015), with the clipping and decay of Pyro's ``ClippedAdam``."""

    learning_rate: float
    """Initial learning rate."""
    clip: float | None = None
    """Clip gradient entries at this absolute value; ``None``: off."""
    decay: float = 1.0
    """Factor on the learning rate per step."""
    patience: int = WINDOW
    """Steps per average of the ELBO when plateaus are detected."""
    alone: bool = False
    """Whether L-BFGS over fixed draws does not follow where it applies."""

    def for_pyro(self) -> Any:
        """Return a Pyro scheduler, whose ``step()`` lowers the learning rate at a plateau."""
        arguments: dict[str, Any] = {"lr": self.learning_rate}
        optimiser: Any = torch.optim.Adam
        if self.clip is not None or self.decay != 1.0:
            optimiser = ClippedAdam
            arguments |= {"clip_norm": math.inf if self.clip is None else self.clip, "lrd": self.decay}
        return pyro.optim.ExponentialLR({"optimizer": optimiser, "optim_args": arguments, "gamma": DECAY})


@dataclass(frozen=True)
class Objective:
    """Objective to maximise."""

    elbo: ELBO | None = None
    """ELBO; ``None`` for the pair's default."""
    warm_up: int = 0
    """Steps of KL warm-up: the weight of the latent variables' KL terms, a pair's ``kl_weight``, rises to one."""

    def of(self, pair: Pair) -> ELBO:
        """Return the ELBO of a pair."""
        return self.elbo or pair.elbo()


@dataclass(frozen=True)
class Batching:
    """Rows of each step."""

    batch_size: int | None = None
    """Rows per step, drawn without replacement in each epoch; ``None`` for all."""
    augment: Augment | None = None
    """Random transformation of the rows of each step."""

    def of(
        self, pair: Pair, *, seed: int, skip: int = 0, shard: Shard | None = None
    ) -> tuple[Iterator[tuple[Any, ...]], RowScale | None]:
        """Return an iterator over arguments after the first ``skip`` steps, and the handler that scales a batch."""
        return batching(pair, self.batch_size, seed=seed, skip=skip, augment=self.augment, shard=shard)

    def is_constant(self, pair: Pair) -> bool:
        """Whether every step uses the same rows: all of them, without augmentation."""
        return self.augment is None and is_full_batch(pair, self.batch_size)


@dataclass(frozen=True)
class TrainingOptions:
    """Options with which pairs are trained."""

    steps: int
    """Maximum number of steps of each restart."""
    optimiser: Adam
    objective: Objective = Objective()
    batching: Batching = Batching()
    compiler: str = "auto"
    """``"inductor"``: compile at once; ``"graph"``: never; ``"auto"``: once it pays off; ``"off"``: plain Pyro."""
    checkpoint: CheckpointOptions | None = None
    """Directory and interval of checkpoints; ``None``: none are written."""
    ranks: Ranks = SINGLE_PROCESS
    """Processes that share the rows and take the same steps."""
