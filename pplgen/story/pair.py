"""A model and a guide with parameters of their own, kept apart from Pyro's global state."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO
from torch import Tensor, nn

from pplgen.errors import InputError
from pplgen.story.base import Story
from pplgen.story.conditioning import ConditionedRows, labelled_site
from pplgen.story.isolation import CloneInitialValues, copy_pair, modules_of, overwrite, seeded
from pplgen.story.marginal import WeightedEnum_ELBO
from pplgen.story.structure import Structure, inspect_traces, number_of_rows, with_auto_normal

__all__ = ["Pair", "check_shapes", "select_rows"]

FEW = 1000
"""Rows of a stream that a pair keeps at hand."""


class RowSource(Protocol):
    """Rows that stay in their file and come in batches, such as ``pplgen.data.streams.RowStream``."""

    name: str
    columns: tuple[str, ...]

    def __len__(self) -> int: ...

    def shard_sizes(self, size: int) -> tuple[int, ...]:
        """Return how many rows each of several processes reads."""

    def shard(self, rank: int, size: int) -> RowSource:
        """Return the rows of one of several processes."""

    def batches(self, batch_size: int, *, seed: int, skip: int = 0) -> Iterator[Tensor]:
        """Yield batches of rows."""


class RowSample(Protocol):
    """What one pass over a source has found, such as ``pplgen.data.streams.Survey``."""

    @property
    def sample(self) -> Tensor:
        """Some of the rows."""

    @property
    def missing(self) -> bool:
        """Whether any entry is missing."""

    @property
    def fingerprint(self) -> str:
        """Digest of all rows."""


class Pair:
    """A model and a guide with parameters of their own.

    Modules and stories are deep-copied; parameters that live in Pyro's store, or in modules that a function closes
    over, are swapped in by ``isolated`` and out again after it, so that no parameter of the caller's changes. (Running
    statistics of a module that a function closes over do: give such a module as part of a module guide instead.)

    Parameters
    ----------
    model
        A callable of ``*data`` with Pyro primitives.
    guide
        Likewise, over the model's continuous latents; ``None`` for ``AutoNormal``, the model's discrete latents then
        being summed out.
    data
        Arguments of both.
    device
        Where the copied modules go; ``None`` to leave them where they are.
    own
        Whether the parts are the pair's already and need no copying.

    Attributes
    ----------
    structure : Structure
        Sites and plates, from a first run on the data.
    num_arguments : int
        How many of ``data`` model and guide take; labels and weights of rows follow where there are any.
    source : RowSource or None
        The rows, where these come in batches from a file; ``data`` holds a few of them then.
    fingerprint : str
        That of the rows of ``source``, empty without one.
    columns : tuple of str
        Names of the columns of the rows, where they have any.
    story : Story or None
        The pair's own copy of the story that it was made of, ``None`` for a bare pair.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any] | None,
        data: tuple[Any, ...],
        device: torch.device | None = None,
        *,
        own: bool = False,
    ) -> None:
        self.data = data
        self.num_arguments = len(data)
        self.source: RowSource | None = None
        self.fingerprint = ""
        self.columns: tuple[str, ...] = ()
        self._labelled: str | None = None
        self.story: Story | None = None
        self._store: dict[str, Any] = {"params": {}, "constraints": {}}
        self._borrowed: dict[nn.Parameter, Tensor] = {}
        floating = (value.dtype for value in data if isinstance(value, Tensor) and value.is_floating_point())
        self._dtype = next(floating, torch.get_default_dtype())
        parts: tuple[Any, Any] = (model, guide) if own else copy_pair(model, guide)
        self.model, self.guide = parts
        for module in modules_of(self.model, self.guide):
            module.to(device)
        with self._own_store(), torch.no_grad():
            if self.guide is None:
                self.model, self.guide = with_auto_normal(self.model, data)
            guide_trace = poutine.trace(self.guide).get_trace(*data)
            model_trace = poutine.trace(poutine.replay(self.model, guide_trace)).get_trace(*data)
            stored = [value for _, value in pyro.get_param_store().named_parameters()]
        self.structure: Structure = inspect_traces(guide_trace, model_trace, data)
        owned = {id(parameter) for module in modules_of(self.model, self.guide) for parameter in module.parameters()}
        for parameter in stored:
            if isinstance(parameter, nn.Parameter) and id(parameter) not in owned:
                self._borrowed[parameter] = parameter.detach().clone()

    @classmethod
    def of_story(
        cls,
        story: Story,
        x: Tensor,
        labels: Tensor | None = None,
        weights: Tensor | None = None,
        *,
        initialise: bool = True,
    ) -> Pair:
        """Copy a story to the device and type of ``x``, start it near ``x`` unless told otherwise, and pair it up."""
        copied = _copy(story, x)
        if initialise:
            facts = {"labels": labels, "weights": weights}
            copied.initialise(x, **{what: known for what, known in facts.items() if known is not None})
        pair = cls(copied.model, copied.guide, (x,), own=True)
        pair.story = copied
        pair.condition_on(labels, weights)
        return pair

    @classmethod
    def of_stream(cls, story: Story, source: RowSource, survey: RowSample, device: torch.device | None) -> Pair:
        """Copy a story and start it near a sample of rows; a few of them are the pair's data, all come in batches."""
        x = survey.sample.to(device)
        copied = _copy(story, x)
        if survey.missing:
            copied.observe_missing(torch.full_like(x[:1], torch.nan))
        copied.initialise(x, weights=x.new_full((len(x),), len(source) / len(x)))
        pair = cls(copied.model, copied.guide, (x[:FEW],), own=True)
        pair.story, pair.source, pair.fingerprint = copied, source, survey.fingerprint
        return pair

    def condition_on(self, labels: Tensor | None, weights: Tensor | None) -> None:
        """Add what is known of rows to ``data``, where model and guide heed it from here on.

        Parameters
        ----------
        labels
            Value of each row's discrete latent, -1 where it is not known, shape ``(num_rows,)``.
        weights
            How much each row counts, shape ``(num_rows,)``.

        Raises
        ------
        InputError
            Where the model has no row plate, or the labels fit none of its latents.
        """
        if labels is None and weights is None:
            return
        if reason := self.structure.why_no_row_densities():
            raise InputError(f"labels or weights: {reason}")
        if weights is not None and self.structure.guide_enumerated:
            raise InputError("weights: the guide sums out a discrete latent itself, which weights of rows cannot scale")
        if labels is not None and not (self.story and self.story.takes_labels):
            with self.isolated():
                self._labelled = labelled_site(self.model, self.structure, self.data, labels)
        self.model, self.guide = self.conditioned(self.model), self.conditioned(self.guide)
        self.data = (*self.data, labels, weights)

    @property
    def num_rows(self) -> int:
        """How many rows there are to learn from; zero where the data have none."""
        return len(self.source) if self.source is not None else number_of_rows(self.data) or 0

    @property
    def labels(self) -> Tensor | None:
        """What is known of the discrete latent of rows of ``data``, -1 where nothing is; ``None`` where nothing is."""
        return self.data[-2] if len(self.data) > self.num_arguments else None

    @property
    def weights(self) -> Tensor | None:
        """How much each row of ``data`` counts, shape ``(num_rows,)``; ``None`` where all count alike."""
        return self.data[-1] if len(self.data) > self.num_arguments else None

    def conditioned(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Let a function of the model's arguments heed labels and weights where ``data`` holds them."""
        return ConditionedRows(function, self.num_arguments, str(self.structure.row_plate), self._labelled)

    @contextlib.contextmanager
    def isolated(self) -> Iterator[None]:
        """Give the pair its own parameter store, and its own values for the modules that it only borrows.

        Inside, torch's default floating-point type is that of the data, as Pyro's sums over discrete latents need.
        """
        with self._own_store():
            lent = {parameter: parameter.detach().clone() for parameter in self._borrowed}
            overwrite(self._borrowed)
            try:
                yield
            finally:
                self._borrowed = {parameter: parameter.detach().clone() for parameter in lent}
                overwrite(lent)

    def elbo(self, num_particles: int = 1) -> ELBO:
        """Return the bound that suits the pair: discrete latents summed out where there are any.

        Draws of the guide, ``num_particles`` of them, are side by side.
        """
        if self.weights is not None and self.structure.enumerates:
            return WeightedEnum_ELBO(self.structure, num_particles)
        kind = TraceEnum_ELBO if self.structure.enumerates else Trace_ELBO
        return kind(
            num_particles=num_particles,
            vectorize_particles=num_particles > 1,
            max_plate_nesting=self.structure.plate_depth,
        )

    @property
    def kl_weight(self) -> Tensor | None:
        """The buffer of the story that weighs the terms of its codes, ``None`` where it has none."""
        held = getattr(self.story, "kl_weight", None)
        return held if isinstance(held, Tensor) else None

    def snapshot(self) -> dict[str, Tensor]:
        """Copy the unconstrained parameters by name, on their device; call it inside ``isolated``."""
        return {name: value.detach().clone() for name, value in pyro.get_param_store().named_parameters()}

    def restore(self, values: dict[str, Tensor]) -> None:
        """Set the unconstrained parameters from a ``snapshot``; call it inside ``isolated``.

        Raises
        ------
        InputError
            Where names or shapes are not those of this pair.
        """
        parameters = dict(pyro.get_param_store().named_parameters())
        check_shapes("parameter", values, parameters)
        for name, parameter in parameters.items():
            parameter.data.copy_(values[name])

    @torch.no_grad()
    def check_amortised(self) -> None:
        """Raise ``InputError`` where the guide knows only the rows it was made for; call it inside ``isolated``.

        Such a guide (``AutoNormal``, for one) holds parameters of its own for each row: given one row less, it fails or
        draws as many latents as before.
        """
        rows, names = number_of_rows(self.data), self.structure.row_latent
        if not names or rows is None or rows < 2:
            return
        fewer = tuple(select_rows(value, slice(rows - 1), rows) for value in self.data)
        try:
            with seeded(0):
                trace = poutine.trace(self.guide).get_trace(*fewer)
            fixed = [name for name in names if self._rows_drawn(trace.nodes[name]) != rows - 1]
        except (RuntimeError, ValueError, IndexError):
            fixed = list(names)
        if fixed:
            raise InputError(
                f"the guide draws {fixed[0]!r} from parameters of its own for each training row, so it knows no other "
                "rows; give a guide that computes them from the data"
            )

    def _rows_drawn(self, node: Any) -> int:
        """How many rows a site of the guide has drawn."""
        dim = next(frame.dim for frame in node["cond_indep_stack"] if frame.name == self.structure.row_plate)
        shape = torch.broadcast_shapes(node["fn"].batch_shape, (1,) * -dim)
        return int(shape[dim])

    @contextlib.contextmanager
    def _own_store(self) -> Iterator[None]:
        """Swap in the pair's parameter store and floating-point type, and Pyro's way of keeping parameters in it."""
        default = torch.get_default_dtype()
        with (
            pyro.get_param_store().scope(self._store),
            pyro.settings.context(module_local_params=False),
            CloneInitialValues(),
        ):
            torch.set_default_dtype(self._dtype)
            try:
                yield
            finally:
                torch.set_default_dtype(default)


def _copy(story: Story, x: Tensor) -> Story:
    """Copy a story to the device and type of rows, and let it notice them."""
    copied: Story = copy_pair(story, None)[0]
    copied.to(device=x.device, dtype=x.dtype)
    copied.observe_missing(x)
    return copied


def check_shapes(kind: str, given: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raise ``InputError`` where names or shapes differ, naming the first one that does."""
    ours, theirs = ({name: tuple(value.shape) for name, value in part.items()} for part in (given, expected))
    if ours != theirs:
        name = min(set(ours.items()) ^ set(theirs.items()))[0]
        found, wanted = ours.get(name, "none"), theirs.get(name, "none")
        raise InputError(f"{kind} {name!r} has shape {found}, where {wanted} was expected")


def select_rows(value: Any, chosen: Tensor | slice, rows: int) -> Any:
    """Take the chosen rows of an argument that has one entry per row; leave any other argument as it is."""
    per_row = isinstance(value, Tensor) and value.ndim and len(value) == rows
    return value[chosen] if per_row else value
