"""A model and a guide with a private parameter store, isolated from Pyro's global state."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO
from torch import Tensor, nn

from pplgen.errors import InputError
from pplgen.story.base import Story, copy_story
from pplgen.story.conditioning import ConditionedRows, labelled_site
from pplgen.story.inspection import inspect_pair
from pplgen.story.isolation import CloneInitialValues, copy_pair, exclusive, modules_of, overwrite, seeded
from pplgen.story.marginalisation import WeightedEnum_ELBO
from pplgen.story.python_state import reachable_buffers
from pplgen.story.streamed_rows import RowSample, RowSource
from pplgen.story.structure import Structure

__all__ = ["Pair", "check_shapes"]

NUM_EXAMPLE_ROWS = 1000
"""Rows of a stream that are held in memory as the pair's ``data``."""


class Pair:
    """A model and a guide with private parameters.

    Modules and stories are deep-copied. Parameters in Pyro's store, or in modules that a function closes over, are
    swapped in by ``isolated`` and restored on exit, so the caller's parameters never change; nor do buffers of such
    modules, like running statistics.

    Parameters
    ----------
    model
        A callable of ``*data`` with Pyro primitives.
    guide
        Likewise, over the model's continuous latents; ``None`` for ``AutoNormal``, with the model's discrete latents
        summed out.
    data
        Arguments of both.
    device
        Device of the copied modules; ``None`` leaves them on their current device.
    copied
        Whether model and guide are copies already.
    rows
        Name of the row plate; see ``pplgen.story.rows`` for the default.

    Attributes
    ----------
    structure : Structure
        Sites and plates, from a first run on the data.
    num_arguments : int
        Number of arguments of model and guide; in ``data``, labels and weights of rows may follow them.
    source : RowSource or None
        The rows, if they are read in batches from a file; ``data`` then holds a few of them.
    fingerprint : str
        Digest of the rows of ``source``, empty without one.
    columns : tuple of str
        Names of the rows' columns, empty if unnamed.
    story : Story or None
        The pair's copy of the story, ``None`` for a bare pair.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any] | None,
        data: tuple[Any, ...],
        device: torch.device | None = None,
        *,
        copied: bool = False,
        rows: str | None = None,
    ) -> None:
        self.data, self.num_arguments = data, len(data)
        self.source: RowSource | None = None
        self.fingerprint = ""
        self.columns: tuple[str, ...] = ()
        self._labelled_site: str | None = None
        self.kl_weight: Tensor | None = None
        """Scale of the KL terms of some latents, see ``inference/kl_warm_up.py``; ``None`` without."""
        self.story: Story | None = None
        self._store: dict[str, Any] = {"params": {}, "constraints": {}}
        dtypes = {value.dtype for value in data if isinstance(value, Tensor) and value.is_floating_point()}
        self.dtype = next(iter(dtypes)) if dtypes in ({torch.float32}, {torch.float64}) else torch.get_default_dtype()
        parts: tuple[Any, Any] = (model, guide) if copied else copy_pair(model, guide)
        self.model, self.guide = parts
        for module in modules_of(self.model, self.guide):
            module.to(device)
        owned = {id(value) for module in modules_of(*parts) for value in (*module.parameters(), *module.buffers())}
        buffers = [each for each in reachable_buffers(*filter(None, parts)) if id(each) not in owned]
        self._external: dict[Tensor, Tensor] = {buffer: buffer.detach().clone() for buffer in buffers}
        with self._private_store(), torch.no_grad():
            self.structure: Structure
            self.model, self.guide, self.structure = inspect_pair(self.model, self.guide, data, rows)
            stored = dict(pyro.get_param_store().named_parameters()).values()
        overwrite(self._external)
        owned |= {id(parameter) for module in modules_of(self.guide) for parameter in module.parameters()}
        for parameter in stored:
            if isinstance(parameter, nn.Parameter) and id(parameter) not in owned:
                self._external[parameter] = parameter.detach().clone()

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
        """Copy a story to the device and dtype of ``x``, initialise it near ``x`` by default, and make a pair of it."""
        copy = copy_story(story, x)
        if initialise:
            conditions = {"labels": labels, "weights": weights}
            copy.initialise(x, **{name: value for name, value in conditions.items() if value is not None})
        pair = cls(copy.model, copy.guide, (x,), copied=True)
        pair.story = copy
        pair.condition_on(labels, weights)
        return pair

    @classmethod
    def of_stream(cls, story: Story, source: RowSource, survey: RowSample, device: torch.device | None) -> Pair:
        """Copy a story and initialise it near a sample of rows, the first of which are the pair's ``data``."""
        x = survey.sample.to(device)
        copy = copy_story(story, x)
        if survey.missing:
            copy.observe_missing(torch.full_like(x[:1], torch.nan))
        copy.initialise(x, weights=x.new_full((len(x),), len(source) / len(x)))
        pair = cls(copy.model, copy.guide, (x[:NUM_EXAMPLE_ROWS],), copied=True)
        pair.story, pair.source, pair.fingerprint = copy, source, survey.fingerprint
        return pair

    def with_guide(self, guide: Callable[..., Any]) -> Pair:
        """Return a pair of the same model and data with another guide, and only the parameters that the two use."""
        other = Pair(self.model, guide, self.data, copied=True, rows=self.structure.row_plate)
        replaced = ("model", "guide", "structure", "_store", "_external")
        vars(other).update(vars(self) | {name: vars(other)[name] for name in replaced})
        return other

    def condition_on(self, labels: Tensor | None, weights: Tensor | None) -> None:
        """Condition model and guide on labels and weights of rows, which are appended to ``data``.

        Parameters
        ----------
        labels
            Value of each row's discrete latent, -1 if unknown, shape ``(num_rows,)``.
        weights
            Weight of each row's log density, shape ``(num_rows,)``.

        Raises
        ------
        InputError
            If the model has no row plate, or the labels match none of its latents.
        """
        if labels is None and weights is None:
            return
        if reason := self.structure.why_no_row_densities():
            raise InputError(f"labels or weights: {reason}")
        if weights is not None and self.structure.guide_enumerated:
            raise InputError("weights: the guide enumerates a discrete latent, which row weights cannot scale")
        if labels is not None and not (self.story and self.story.takes_labels):
            with self.isolated():
                self._labelled_site = labelled_site(self.model, self.structure, self.data, labels)
        self.model, self.guide = self.conditioned(self.model), self.conditioned(self.guide)
        self.data = (*self.data, labels, weights)

    @property
    def num_rows(self) -> int:
        """Number of training rows; zero if the data have none."""
        return len(self.source) if self.source is not None else self.structure.row_axes.count(self.data) or 0

    @property
    def labels(self) -> Tensor | None:
        """Labels of the rows of ``data``, -1 if unknown; ``None`` without any."""
        return self.data[-2] if len(self.data) > self.num_arguments else None

    @property
    def weights(self) -> Tensor | None:
        """Weights of the rows of ``data``, shape ``(num_rows,)``; ``None`` for equal weights."""
        return self.data[-1] if len(self.data) > self.num_arguments else None

    def conditioned(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Condition a function of the model's arguments on the labels and weights in ``data``."""
        return ConditionedRows(function, self.num_arguments, str(self.structure.row_plate), self._labelled_site)

    @contextlib.contextmanager
    def isolated(self) -> Iterator[None]:
        """Activate the pair's parameter store, and its values of parameters in modules that it does not own.

        Inside, torch's default dtype is that of the data, as Pyro's enumeration requires.
        """
        with self._private_store():
            originals = {parameter: parameter.detach().clone() for parameter in self._external}
            overwrite(self._external)
            try:
                yield
            finally:
                self._external = {parameter: parameter.detach().clone() for parameter in originals}
                overwrite(originals)

    def elbo(self, num_particles: int = 1) -> ELBO:
        """Return the ELBO estimator for the pair, with any discrete latents enumerated.

        The ``num_particles`` draws of the guide are vectorised.
        """
        if self.weights is not None and self.structure.enumerates:
            return WeightedEnum_ELBO(self.structure, num_particles)
        estimator = TraceEnum_ELBO if self.structure.enumerates else Trace_ELBO
        return estimator(
            num_particles=num_particles,
            vectorize_particles=num_particles > 1,
            max_plate_nesting=self.structure.plate_depth,
        )

    def snapshot(self) -> dict[str, Tensor]:
        """Copy the unconstrained parameters by name, on their device; call it inside ``isolated``."""
        return {name: value.detach().clone() for name, value in pyro.get_param_store().named_parameters()}

    def restore(self, values: dict[str, Tensor]) -> None:
        """Set the unconstrained parameters from a ``snapshot``; call it inside ``isolated``.

        Raises
        ------
        InputError
            If names or shapes do not match this pair's.
        """
        parameters = dict(pyro.get_param_store().named_parameters())
        check_shapes("parameter", values, parameters)
        for name, parameter in parameters.items():
            parameter.data.copy_(values[name])

    @torch.no_grad()
    def check_amortised(self) -> None:
        """Raise ``InputError`` if the guide is not amortised over rows; call it inside ``isolated``.

        A guide with parameters per row, such as ``AutoNormal``, fails on data with one row fewer, or draws the same
        number of latents as before.
        """
        rows, names = self.structure.row_axes.count(self.data), self.structure.row_latent
        if not names or rows is None or rows < 2:
            return
        fewer = self.structure.row_axes.select(self.data, slice(rows - 1))
        try:
            with seeded(0):
                trace = poutine.trace(self.guide).get_trace(*fewer)
            fixed = [name for name in names if self._num_rows_drawn(trace.nodes[name]) != rows - 1]
        except (RuntimeError, ValueError, IndexError):
            fixed = list(names)
        if fixed:
            raise InputError(
                f"the guide draws {fixed[0]!r} from separate parameters for each training row, so it does not apply to "
                "new rows; give a guide that computes them from the data"
            )

    def _num_rows_drawn(self, node: Any) -> int:
        """Return the number of rows that a guide site draws."""
        dim = next(frame.dim for frame in node["cond_indep_stack"] if frame.name == self.structure.row_plate)
        shape = torch.broadcast_shapes(node["fn"].batch_shape, (1,) * -dim)
        return int(shape[dim])

    @contextlib.contextmanager
    def _private_store(self) -> Iterator[None]:
        """Activate the pair's parameter store, its dtype, and Pyro's global parameter names."""
        default = torch.get_default_dtype()
        with (
            exclusive(),
            pyro.get_param_store().scope(self._store),
            pyro.settings.context(module_local_params=False),
            CloneInitialValues(),
        ):
            torch.set_default_dtype(self.dtype)
            try:
                yield
            finally:
                torch.set_default_dtype(default)


def check_shapes(kind: str, values: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raise ``InputError`` if names or shapes differ, naming the first that does."""
    ours, theirs = ({name: tuple(value.shape) for name, value in part.items()} for part in (values, expected))
    if ours != theirs:
        name = min(set(ours.items()) ^ set(theirs.items()))[0]
        raise InputError(f"{kind} {name!r} has shape {ours.get(name, 'none')}; expected {theirs.get(name, 'none')}")
