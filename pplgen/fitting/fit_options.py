"""Options of ``fit``: validation, and defaults that depend on the story and its rows."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyro.infer import ELBO
from pyro.optim import PyroOptim

from pplgen.data.streams import RowStream
from pplgen.distributed.sharding import check_shardable
from pplgen.errors import InputError
from pplgen.inference.convergence import WINDOW
from pplgen.inference.minibatches import Augment
from pplgen.inference.model_arguments import check_device
from pplgen.inference.named_guides import GUIDES
from pplgen.inference.objectives import augmentation, make_bound, warm_up_steps
from pplgen.inference.optimisers import LearningRate, Optimiser, Rule, Schedule, read_optimiser
from pplgen.inference.quasi_newton_phase import may_use_fixed_draws
from pplgen.inference.restarts_over_ranks import RankRoles
from pplgen.inference.training_options import Batching, Objective, TrainingOptions
from pplgen.storage.checkpoint import CheckpointOptions
from pplgen.story.base import Story, check_choice, check_count, check_positive
from pplgen.story.latent import LatentStory
from pplgen.story.pair import Pair

__all__ = ["FitOptions", "explicit_options"]

DEFAULTS = {"svi": (10_000, 1), "laplace": (10_000, 1), "nuts": (1000, 4)}
"""Default numbers of steps and restarts of each method."""
COMPILERS = ("auto", "inductor", "graph", "off")
STREAMED_ROWS = 10_000
"""Default rows per step of a stream."""
NETWORK_ROWS, MANY_ROWS = 500, 10_000
"""Default rows per step of a latent-variable story; minimum number of rows, unless streamed, for minibatches."""
NOT_RECORDED = frozenset({"seed", "device", "checkpoint", "checkpoint_every", "progress"})
"""Options that do not change the result, and the seed, which is recorded separately."""


@dataclass(frozen=True)
class FitOptions:
    """Validated training options of ``pplgen.fit``."""

    method: str
    seed: int
    steps: int
    restarts: int
    optimiser: str | Mapping[str, Any] | PyroOptim
    learning_rate: LearningRate
    clip: float | None
    decay: float | Schedule
    patience: int | None
    batch_size: int | None
    device: torch.device | None
    elbo: str | ELBO | None
    num_particles: int
    free_bits: float | None
    warm_up: int
    augment: str | Augment | None
    compile: str
    checkpoint: str | Path | None
    checkpoint_every: float
    ranks: RankRoles

    @classmethod
    def of(cls, call: Mapping[str, Any]) -> FitOptions:
        """Validate the keyword arguments of a call.

        Raises
        ------
        InputError
            If an option is invalid, or not supported together with another.
        """
        method = call["method"]
        check_choice("method", method, DEFAULTS)
        chosen = {name: call[name] for name in {field.name for field in fields(cls)} & set(call)}
        for name, default in zip(("steps", "restarts"), DEFAULTS[method], strict=True):
            chosen[name] = default if call[name] is None else call[name]
        check_count("seed", call["seed"], minimum=0)
        chosen["warm_up"] = warm_up_steps(call["warm_up"])
        check_count("steps", chosen["steps"])
        check_count("restarts", chosen["restarts"])
        ranks = RankRoles.of(call["shard"], method, chosen["restarts"], call["checkpoint"])
        if isinstance(call["guide"], str):
            check_choice("guide", call["guide"], GUIDES)
        if method != "svi":
            _refuse_svi_options(call)
        chosen["optimiser"] = read_optimiser(call)
        if call["batch_size"] is not None:
            check_count("batch_size", call["batch_size"])
        check_choice("compile", call["compile"], COMPILERS)
        check_positive("checkpoint_every", call["checkpoint_every"])
        if call["checkpoint"] is not None and call["compile"] == "off":
            raise InputError("checkpoint: not supported by plain Pyro, compile='off'")
        device = None if call["device"] is None else check_device(call["device"])
        return cls(**{**chosen, "device": device, "ranks": ranks})

    @property
    def restart_seeds(self) -> list[int]:
        """Random seeds of the restarts of this process."""
        seeds = np.random.SeedSequence(self.seed).generate_state(self.restarts).tolist()
        return list(seeds[self.ranks.restarts.rank :: self.ranks.restarts.size])

    def training(self, pair: Pair) -> TrainingOptions:
        """Return the training options of all restarts; ``pair`` is one of them."""
        story, num_rows = pair.story, pair.num_rows
        batch_size = self.batch_size or default_batch_size(story, num_rows, streamed=pair.source is not None)
        patience = default_patience(story, num_rows, batch_size) if self.patience is None else self.patience
        check_count("patience", patience, minimum=WINDOW)
        batching = Batching(batch_size, augmentation(self.augment))
        if self.warm_up > self.steps:
            raise InputError(f"warm_up={self.warm_up}: expected at most the {self.steps} steps of the fit")
        low_variance = self.elbo is None and self.method == "svi" and not may_use_fixed_draws(pair, batching)
        bound = make_bound(pair, self.elbo, self.num_particles, self.free_bits, batch_size, low_variance=low_variance)
        if self.ranks.rows.size > 1:
            check_shardable(pair, bound)
        checkpoint = None
        if self.checkpoint is not None:
            checkpoint = CheckpointOptions(Path(self.checkpoint), self.checkpoint_every)
        return TrainingOptions(
            self.steps,
            self._first_order(pair, patience),
            Objective(bound, self.warm_up),
            batching,
            "graph" if self.method == "laplace" else self.compile,
            checkpoint,
            self.ranks.rows,
        )

    def _first_order(self, pair: Pair, patience: int) -> Optimiser:
        """Return the first-order optimiser of a pair's parameters."""
        own = self.optimiser if isinstance(self.optimiser, PyroOptim) else None
        rule = Rule() if own or self.optimiser == "auto" else Rule.of(self.optimiser)
        alone = self.optimiser != "auto" or not isinstance(self.learning_rate, float | int)
        optimiser = Optimiser(self.learning_rate, self.clip, self.decay, patience, rule, alone, own)
        with pair.isolated():
            optimiser.check_names(list(pair.snapshot()))
        return optimiser


def _refuse_svi_options(call: Mapping[str, Any]) -> None:
    """Raise ``InputError`` for options and data that NUTS and Laplace's approximation do not support."""
    laplace = call["method"] == "laplace"
    names = ("clip", "patience", "batch_size", "elbo", "free_bits", "augment", "checkpoint")
    refused = [name for name in (*names, *(("guide",) if laplace else ())) if call[name] is not None]
    if call["optimiser"] != "auto":
        refused.append("optimiser")
    if laplace and call["compile"] == "off":
        refused.append("compile='off'")
    if isinstance(call["data"], RowStream):
        refused.append("stream")
    if isinstance(call["guide"], str):
        refused.append("a guide by name")
    if refused:
        raise InputError(f"{refused[0]}: not supported by method={call['method']!r}")


def default_batch_size(story: Story | None, num_rows: int, *, streamed: bool) -> int | None:
    """Return the default number of rows per step, ``None`` for all rows."""
    if isinstance(story, LatentStory) and (streamed or num_rows > MANY_ROWS):
        return min(NETWORK_ROWS, num_rows)
    return min(STREAMED_ROWS, num_rows) if streamed else None


def default_patience(story: Story | None, num_rows: int, batch_size: int | None) -> int:
    """Return the default number of steps per average of the ELBO when plateaus are detected.

    For minibatches of a latent-variable story one epoch: the ELBO of fewer steps is too noisy to show that its networks
    still improve.
    """
    if batch_size is None or not isinstance(story, LatentStory):
        return WINDOW
    return max(WINDOW, math.ceil(num_rows / batch_size))


def explicit_options(function: Callable[..., Any], call: Mapping[str, Any]) -> dict[str, Any]:
    """Return the non-default options of a call, for the header of a run; ``None`` for values that are not plain."""
    explicit = {}
    for name, parameter in inspect.signature(function).parameters.items():
        value = call[name]
        if isinstance(value, torch.dtype):
            value = str(value).removeprefix("torch.")
        if parameter.kind is parameter.KEYWORD_ONLY and name not in NOT_RECORDED and value is not None:
            plain = value if isinstance(value, (bool, int, float, str)) else None
            if plain is None or plain != parameter.default:
                explicit[name] = plain
    return explicit
