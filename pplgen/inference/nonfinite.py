"""Where the mathematics broke down: at which site, in which matrix, for which rows."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from pyro.infer import ELBO
from torch import Tensor
from torch.distributions import Independent
from torch.overrides import TorchFunctionMode

from pplgen.errors import first_line
from pplgen.inference.backward import first_bad
from pplgen.story.isolation import ignore_nonfinite_warnings
from pplgen.story.pair import Pair
from pplgen.story.structure import number_of_rows

__all__ = ["LOWERED", "MAX_NON_FINITE", "NOT_LOOKED_AT", "TRIES", "explain", "explain_start", "non_finite_message"]

MAX_NON_FINITE = 3
"""Times that a run may meet what is not finite; it stops at the last."""
LOWERED = 0.1
"""Factor on the learning rate at each time before."""
TRIES = 20
"""Evaluations, with random numbers of their own, that look for what those of a step are not known to have met."""
NAMED = 3
"""Rows that are named at most."""
NOT_LOOKED_AT = "the ELBO or its gradient was not finite in the steps up to here"
UNKNOWN = "the ELBO or its gradient was not finite, and is when the step is taken again"


def non_finite_message(what: str | None, step: int, number: int, kept: int, rate: float) -> str:
    """Say in a sentence what was met in a step for the ``number``-th time, and what becomes of it.

    ``kept`` is the step of the last good state, ``rate`` the learning rate from there on.
    """
    what, of = what or UNKNOWN, f"fault {number} of {MAX_NON_FINITE}"
    if number < MAX_NON_FINITE:
        return f"step {step}: {what}; on from step {kept} with learning rate {rate:.2g} ({of})"
    return f"step {step}: {what}; it ends at step {kept} ({of})"


def explain(pair: Pair, bound: ELBO, data: tuple[Any, ...], tries: int = 1) -> str | None:
    """Say which site, matrix and rows make the bound or its gradient infinite or NaN, where the pair stands now.

    Call it inside ``pair.isolated``, with the generators as they were: the bound draws the same again.

    Parameters
    ----------
    pair, bound, data
        What was evaluated, and the arguments of model and guide.
    tries
        Evaluations, each with random numbers of its own, until one shows a fault.

    Returns
    -------
    str or None
        What is not finite, in words; ``None`` where all is. Rows are counted from 1.
    """
    with warnings.catch_warnings(), pyro.validation_enabled(False), torch.enable_grad():
        warnings.simplefilter("ignore")
        for _ in range(tries):
            try:
                if found := _Look(pair, bound, data).fault():
                    return found
            except (RuntimeError, ValueError, NotImplementedError, IndexError, KeyError) as error:
                return f"evaluating it stopped with {type(error).__name__}: {first_line(error)}"
    return None


def explain_start(make: Callable[[], Pair]) -> str | None:
    """Say what is not finite where a pair starts, whose making stopped at a matrix or at an argument's check.

    ``None`` where nothing is, or making it stops at something else.
    """
    try:
        with _Factors(), pyro.validation_enabled(False), ignore_nonfinite_warnings():
            pair = make()
    except (RuntimeError, ValueError, NotImplementedError, IndexError, KeyError):
        return None
    with pair.isolated():
        return explain(pair, pair.elbo(), pair.data)


class _Factors(TorchFunctionMode):
    """Lets a Cholesky factor that does not exist be NaN, and keeps the matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.failed: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.linalg.cholesky:
            return func(*args, **(kwargs or {}))
        factor, info = torch.linalg.cholesky_ex(*args, **(kwargs or {}))
        if bool(info.any()):
            self.failed.append(args[0].detach())
        return torch.where(info[..., None, None] == 0, factor, math.nan)


class _Look:
    """One evaluation of a bound, to be looked at site by site: the guide's first, in the order of the run."""

    def __init__(self, pair: Pair, bound: Any, data: tuple[Any, ...]) -> None:
        self.pair, self.data, self.structure = pair, data, pair.structure
        factors = _Factors()
        with factors:
            self.traces = list(bound._get_traces(pair.model, pair.guide, data, {}))
        self.failed = factors.failed

    def fault(self) -> str | None:
        """Return the first fault of a value or a density, or else of a gradient."""
        sites = list(self._sites())
        for look in (self._value, self._density, self._gradient):
            for site in sites:
                if found := look(*site):
                    return found
        return None

    def _sites(self) -> Iterator[tuple[str, Any, bool]]:
        """Yield name and node of every site that has a density, and whether it is the guide's."""
        for model_trace, guide_trace in self.traces:
            for trace, of_guide in ((guide_trace, True), (model_trace, False)):
                for name, node in trace.nodes.items():
                    if node["type"] == "sample" and not node["infer"].get("_deterministic"):
                        yield name, node, of_guide

    def _value(self, name: str, node: Any, of_guide: bool) -> str | None:
        """Look at what the guide has drawn; data of the model may well be NaN, which is missing."""
        bad = ~node["value"].detach().isfinite()
        if not of_guide or node["is_observed"] or not bool(bad.any()):
            return None
        bad_draws = bad.flatten(bad.ndim - node["fn"].event_dim).any(-1) if node["fn"].event_dim else bad
        what = f"the guide's draw of {name!r} is {_kind(node['value'][bad])}{self._where(bad_draws, node)}"
        return self._cause(name, node, what)

    def _density(self, name: str, node: Any, of_guide: bool) -> str | None:
        """Look at a log density."""
        density = node["log_prob"].detach()
        impossible = density == -math.inf
        if self.structure.enumerates:
            # a value that is summed out may be impossible, as long as another is not
            for axis in range(density.ndim - self.structure.plate_depth):
                impossible = impossible.all(axis, keepdim=True)
        bad = density.isnan() | (density == math.inf) | impossible
        if not bool(bad.any()):
            return None
        whose = " under the guide" if of_guide else ""
        where = self._where(bad, node) + self._columns(node)
        return self._cause(name, node, f"the log density of {name!r}{whose} is {_kind(density[bad])}{where}")

    def _gradient(self, name: str, node: Any, of_guide: bool) -> str | None:
        """Look at the gradient of a log density, and for the operation in which it goes wrong."""
        density = node["log_prob"]
        if not density.requires_grad:
            return None
        parameters = [value for _, value in pyro.get_param_store().named_parameters()]
        gradients = torch.autograd.grad(density.sum(), parameters, retain_graph=True, allow_unused=True)
        if all(each is None or bool(each.isfinite().all()) for each in gradients):
            return None
        whose = " under the guide" if of_guide else ""
        operation, gradient = first_bad(density.sum(), parameters)
        where = self._where_along(~gradient.isfinite())
        return f"the gradient of the log density of {name!r}{whose} is {_kind(gradient)}, in {operation}{where}"

    def _cause(self, name: str, node: Any, what: str) -> str:
        """Say which argument of the site's distribution is at fault, where one is."""
        fn = node["fn"]
        while isinstance(fn, Independent | MaskedDistribution | ExpandedDistribution):
            fn = fn.base_dist
        kind = type(fn).__name__
        for argument, constraint in fn.arg_constraints.items():
            value = vars(fn).get(argument)
            if not isinstance(value, Tensor):
                continue
            value = value.detach()
            for matrix in self.failed:
                if _holds(value, matrix) or _holds(value, matrix.flip(-2, -1)):
                    return f"{name}: {argument} of {kind} is not positive definite{self._smallest(value, node)}"
            fine = constraint.check(value)
            if not bool(fine.all()):
                if self.failed:
                    matrix = self.failed[-1]
                    of = f"{name}: the matrix whose Cholesky factor is {argument} of {kind}"
                    return f"{of} is not positive definite{self._smallest(matrix, node)}"
                return f"{what}, where {argument} of {kind} is {_shown(value[~fine])}"
        if self.failed:
            matrix = self.failed[-1]
            of = f"{name}: a matrix of shape {tuple(matrix.shape[-2:])} that it is computed from"
            return f"{of} is not positive definite{self._smallest(matrix, node)}"
        return what

    def _smallest(self, matrices: Tensor, node: Any) -> str:
        """Tell the smallest eigenvalue among matrices that have no Cholesky factor, and where they are."""
        bad = torch.linalg.cholesky_ex(matrices)[1] != 0
        broken = matrices[bad].double()
        where = self._where(bad, node)
        if not bool(broken.isfinite().all()):
            return f", for it has entries that are {_kind(broken)}{where}"
        return f", smallest eigenvalue {float(torch.linalg.eigvalsh(broken).min()):.2g}{where}"

    def _where(self, bad: Tensor, node: Any) -> str:
        """Name the rows among the batch dimensions of a site; nothing where it is in no row plate, or all are bad."""
        frames = (frame for frame in node["cond_indep_stack"] if frame.name == self.structure.row_plate)
        frame = next(frames, None)
        if frame is None or bad.ndim < -frame.dim or bad.shape[frame.dim] != frame.size:
            return ""
        return self._named(bad.movedim(frame.dim, 0))

    def _columns(self, node: Any) -> str:
        """Name the columns at fault where a row's entries have densities of their own; nothing where all are."""
        fn = node["fn"]
        while isinstance(fn, MaskedDistribution | ExpandedDistribution):
            fn = fn.base_dist
        if not isinstance(fn, Independent) or fn.reinterpreted_batch_ndims != 1:
            return ""
        entries = fn.base_dist.log_prob(node["value"]).detach()
        bad = (~entries.isfinite()).reshape(-1, entries.shape[-1]).any(0).tolist()
        known = self.pair.columns if len(self.pair.columns) == len(bad) else range(1, 1 + len(bad))
        found = [str(name) for name, broken in zip(known, bad, strict=True) if broken]
        return "" if len(found) in (0, len(bad)) else f", column {', '.join(found[:NAMED])}"

    def _where_along(self, bad: Tensor) -> str:
        """Name the rows along the first axis that is as long as the data; nothing without any."""
        num_rows = number_of_rows(self.data)
        axes = [axis for axis, length in enumerate(bad.shape) if length == num_rows]
        return self._named(bad.movedim(axes[0], 0)) if axes else ""

    def _named(self, bad: Tensor) -> str:
        """Name the rows of a mask whose first axis they are."""
        places = torch.argwhere(bad.reshape(len(bad), -1).any(1)).reshape(-1).tolist()
        if len(places) == len(bad) > 1:
            return " at every row"
        known = [self._row(place) for place in places[:NAMED]]
        rows = [place if row is None else row for place, row in zip(places, known, strict=False)]
        named = ", ".join(str(1 + row) for row in rows)
        story = self.pair.story
        word = "series" if story is not None and story.takes_series else "row" if len(places) == 1 else "rows"
        of = " of its minibatch" if None in known else ""
        return f" at {word} {named}{of}" if len(places) <= NAMED else f" at {len(places):,} {word}, such as {named}{of}"

    def _row(self, place: int) -> int | None:
        """Find a row of the arguments among the pair's data; ``None`` where these are others."""
        whole, num_rows = self.pair.data, self.pair.num_rows
        if all(own is given for own, given in zip(whole, self.data, strict=True)):
            return place
        if self.pair.source is not None:
            return None
        alike = torch.ones(num_rows, dtype=torch.bool)
        for own, given in zip(whole, self.data, strict=True):
            if isinstance(own, Tensor) and own.ndim and len(own) == num_rows:
                rows, row = own.reshape(num_rows, -1), given[place].reshape(1, -1)
                alike &= ((rows == row) | (rows.isnan() & row.isnan())).all(1).cpu()
        found = torch.argwhere(alike)
        return int(found[0]) if len(found) else None


def _kind(values: Tensor) -> str:
    """Say in a word or two what of values is not finite."""
    if bool(values.isnan().any()):
        return "NaN"
    return "infinite" if bool((values == math.inf).any()) else "minus infinity"


def _shown(values: Tensor) -> str:
    """Say what is wrong with the values of an argument, in a word or by the first of them."""
    if not bool(values.isfinite().all()):
        return _kind(values)
    return f"{float(values[0]):g}" if values.ndim == 1 else "outside its domain"


def _holds(value: Tensor, matrix: Tensor) -> bool:
    """Whether an argument of a distribution is a matrix, repeated or not."""
    with contextlib.suppress(RuntimeError):
        return torch.equal(value, matrix.expand(value.shape))
    return False
