"""What a training is told: optimiser, objective, batches, checkpoints, and how far it may go."""

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
    """The optimiser (Kingma and Ba 2015), with the two additions of Pyro's ``ClippedAdam``."""

    learning_rate: float
    """Before the first plateau."""
    clip: float | None = None
    """Largest absolute value of an entry of the gradient; ``None`` for any."""
    decay: float = 1.0
    """Factor of the learning rate at each step."""
    patience: int = WINDOW
    """Steps over which the ELBO is averaged before its trend is judged."""

    def for_pyro(self) -> Any:
        """Return Pyro's optimiser; each ``step()`` of it is a cut at a plateau."""
        arguments: dict[str, Any] = {"lr": self.learning_rate}
        optimiser: Any = torch.optim.Adam
        if self.clip is not None or self.decay != 1.0:
            optimiser = ClippedAdam
            arguments |= {"clip_norm": math.inf if self.clip is None else self.clip, "lrd": self.decay}
        return pyro.optim.ExponentialLR({"optimizer": optimiser, "optim_args": arguments, "gamma": DECAY})


@dataclass(frozen=True)
class Objective:
    """What is maximised."""

    elbo: ELBO | None = None
    """The bound; the pair's own where ``None``."""
    warm_up: int = 0
    """Steps of KL warm-up: the weight of the latent variables' KL terms, a pair's ``kl_weight``, rises to one."""

    def of(self, pair: Pair) -> ELBO:
        """Return the bound of a pair."""
        return self.elbo or pair.elbo()


@dataclass(frozen=True)
class Batching:
    """Which rows a step takes."""

    batch_size: int | None = None
    """Rows per step, drawn without replacement in each pass over the data; ``None`` for all."""
    augment: Augment | None = None
    """Applied to the rows of each step."""

    def of(
        self, pair: Pair, *, seed: int, skip: int = 0, shard: Shard | None = None
    ) -> tuple[Iterator[tuple[Any, ...]], RowScale | None]:
        """Return the arguments of all steps after ``skip`` of them, and the handler that scales a batch to all rows."""
        return batching(pair, self.batch_size, seed=seed, skip=skip, augment=self.augment, shard=shard)

    def is_constant(self, pair: Pair) -> bool:
        """Whether every step takes the same rows: all of them, as they are."""
        return self.augment is None and is_full_batch(pair, self.batch_size)


@dataclass(frozen=True)
class TrainingOptions:
    """How pairs are trained."""

    steps: int
    """At most, for each restart."""
    optimiser: Adam
    objective: Objective = Objective()
    batching: Batching = Batching()
    compiler: str = "auto"
    """``"inductor"`` to compile at once, ``"graph"`` never, ``"auto"`` once it repays, ``"off"`` for plain Pyro."""
    checkpoint: CheckpointOptions | None = None
    """Where checkpoints are written, and how often; ``None`` for nowhere."""
    ranks: Ranks = SINGLE_PROCESS
    """Processes that share the rows; all of them take the same steps."""
