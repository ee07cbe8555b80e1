"""Training options: optimiser, objective, minibatches, number of steps, checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pyro.infer import ELBO

from pplgen.distributed.ranks import SINGLE_PROCESS, Ranks
from pplgen.distributed.sharding import Shard
from pplgen.inference.minibatches import Augment, batching, is_full_batch
from pplgen.inference.optimisers import Optimiser
from pplgen.storage.checkpoint import CheckpointOptions
from pplgen.story.conditioning import RowScale
from pplgen.story.pair import Pair

__all__ = ["Batching", "Objective", "TrainingOptions"]


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

    def steps_per_epoch(self, pair: Pair) -> int:
        """Return the number of steps in which all rows are used once."""
        return -(-pair.num_rows // self.batch_size) if self.batch_size and pair.num_rows else 1

    def is_constant(self, pair: Pair) -> bool:
        """Whether every step uses the same rows: all of them, without augmentation."""
        return self.augment is None and is_full_batch(pair, self.batch_size)


@dataclass(frozen=True)
class TrainingOptions:
    """Options with which pairs are trained."""

    steps: int
    """Maximum number of steps of each restart."""
    optimiser: Optimiser
    objective: Objective = Objective()
    batching: Batching = Batching()
    compiler: str = "auto"
    """``"inductor"``: compile at once; ``"graph"``: never; ``"auto"``: once it pays off; ``"off"``: plain Pyro."""
    checkpoint: CheckpointOptions | None = None
    """Directory and interval of checkpoints; ``None``: none are written."""
    ranks: Ranks = SINGLE_PROCESS
    """Processes that share the rows and take the same steps."""
