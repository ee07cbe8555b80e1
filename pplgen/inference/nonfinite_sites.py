"""Diagnose non-finite values of the ELBO or its gradient: the site, matrix and rows in which they arise."""

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
from pplgen.inference.nonfinite_gradients import first_nonfinite_gradient
from pplgen.story.isolation import ignore_nonfinite_warnings
from pplgen.story.pair import Pair
from pplgen.story.structure import unwrap

__all__ = ["TRIES", "explain", "explain_start"]

TRIES = 20
"""Evaluations with new random numbers to reproduce a fault whose random numbers are not known."""
MAX_NAMED = 3
"""Maximum number of rows or columns named in a message."""


def explain(pair: Pair, bound: ELBO, data: tuple[Any, ...], tries: int = 1) -> str | None:
    """Describe the site, matrix and rows that make the ELBO or its gradient infinite or NaN at the current parameters.

    Call it inside ``pair.isolated``, with the generators in the state of the failed evaluation.

    Parameters
    ----------
    pair, bound, data
        Pair and ELBO evaluated, and the arguments of model and guide.
    tries
        Maximum number of evaluations, each with new random numbers, until one shows a fault.

    Returns
    -------
    str or None
        Description of the fault; ``None`` if all is finite. Rows are numbered from 1.
    """
    with warnings.catch_warnings(), pyro.validation_enabled(False), torch.enable_grad():
        warnings.simplefilter("ignore")
        for _ in range(tries):
            try:
                if fault := _Evaluation(pair, bound, data).fault():
                    return fault
            except (RuntimeError, ValueError, NotImplementedError, IndexError, KeyError) as error:
                return f"the evaluation failed with {type(error).__name__}: {first_line(error)}"
    return None


def explain_start(make: Callable[[], Pair]) -> str | None:
    """Describe the non-finite value with which a pair's construction failed at a matrix or an argument check.

    ``None`` if there is none, or the construction fails for another reason.
    """
    try:
        with _CholeskyFailures(), pyro.validation_enabled(False), ignore_nonfinite_warnings():
            pair = make()
    except (RuntimeError, ValueError, ArithmeticError, LookupError):
        return None
    with pair.isolated():
        return explain(pair, pair.elbo(), pair.data)


class _CholeskyFailures(TorchFunctionMode):
    """Replaces the factor of a matrix that is not positive definite by NaN, and records the matrix."""

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


class _Evaluation:
    """One evaluation of an ELBO, inspected site by site in the order of execution: the guide's, then the model's."""

    def __init__(self, pair: Pair, bound: Any, data: tuple[Any, ...]) -> None:
        self.pair, self.data, self.structure = pair, data, pair.structure
        cholesky = _CholeskyFailures()
        with cholesky:
            self.traces = list(bound._get_traces(pair.model, pair.guide, data, {}))
        self.failed = cholesky.failed

    def fault(self) -> str | None:
        """Return the first fault among values, then densities, then gradients."""
        sites = list(self._sites())
        for check in (self._value, self._density, self._gradient):
            for site in sites:
                if fault := check(*site):
                    return fault
        return None

    def _sites(self) -> Iterator[tuple[str, Any, bool]]:
        """Yield name and node of every site with a density, and whether it is the guide's."""
        for model_trace, guide_trace in self.traces:
            for trace, of_guide in ((guide_trace, True), (model_trace, False)):
                for name, node in trace.nodes.items():
                    if node["type"] == "sample" and not node["infer"].get("_deterministic"):
                        yield name, node, of_guide

    def _value(self, name: str, node: Any, of_guide: bool) -> str | None:
        """Check a draw of the guide; data of the model may be NaN, which means missing."""
        bad = ~node["value"].detach().isfinite()
        if not of_guide or node["is_observed"] or not bool(bad.any()):
            return None
        bad_draws = bad.flatten(bad.ndim - node["fn"].event_dim).any(-1) if node["fn"].event_dim else bad
        what = f"the guide's draw of {name!r} is {_kind(node['value'][bad])}{self._where(bad_draws, node)}"
        return self._cause(name, node, what)

    def _density(self, name: str, node: Any, of_guide: bool) -> str | None:
        """Check a log density."""
        density = node["log_prob"].detach()
        impossible = density == -math.inf
        if self.structure.enumerates:
            # a value that is summed out may have zero density, as long as another has not
            for axis in range(density.ndim - self.structure.plate_depth):
                impossible = impossible.all(axis, keepdim=True)
        bad = density.isnan() | (density == math.inf) | impossible
        if not bool(bad.any()):
            return None
        whose = " under the guide" if of_guide else ""
        where = self._where(bad, node) + self._columns(node)
        return self._cause(name, node, f"the log density of {name!r}{whose} is {_kind(density[bad])}{where}")

    def _gradient(self, name: str, node: Any, of_guide: bool) -> str | None:
        """Check the gradient of a log density, and locate the operation at which it becomes non-finite."""
        density = node["log_prob"]
        if not density.requires_grad:
            return None
        parameters = [value for _, value in pyro.get_param_store().named_parameters()]
        gradients = torch.autograd.grad(density.sum(), parameters, retain_graph=True, allow_unused=True)
        if all(each is None or bool(each.isfinite().all()) for each in gradients):
            return None
        whose = " under the guide" if of_guide else ""
        operation, gradient = first_nonfinite_gradient(density.sum(), parameters)
        where = self._where_along(~gradient.isfinite())
        return f"the gradient of the log density of {name!r}{whose} is {_kind(gradient)}, in {operation}{where}"

    def _cause(self, name: str, node: Any, what: str) -> str:
        """Name the argument of the site's distribution at fault, if one is."""
        fn = unwrap(node["fn"])
        kind = type(fn).__name__
        for argument, constraint in fn.arg_constraints.items():
            value = vars(fn).get(argument)
            if not isinstance(value, Tensor):
                continue
            value = value.detach()
            for matrix in self.failed:
                if _equals(value, matrix) or _equals(value, matrix.flip(-2, -1)):
                    return f"{name}: {argument} of {kind} is not positive definite{self._smallest(value, node)}"
            valid = constraint.check(value)
            if not bool(valid.all()):
                if self.failed:
                    matrix = self.failed[-1]
                    which = f"{name}: the matrix whose Cholesky factor is {argument} of {kind}"
                    return f"{which} is not positive definite{self._smallest(matrix, node)}"
                return f"{what}, where {argument} of {kind} is {_describe_invalid(value[~valid])}"
        if self.failed:
            matrix = self.failed[-1]
            which = f"{name}: a matrix of shape {tuple(matrix.shape[-2:])} from which it is computed"
            return f"{which} is not positive definite{self._smallest(matrix, node)}"
        return what

    def _smallest(self, matrices: Tensor, node: Any) -> str:
        """Describe the smallest eigenvalue among matrices without a Cholesky factor, and their rows."""
        bad = torch.linalg.cholesky_ex(matrices)[1] != 0
        broken = matrices[bad].double()
        where = self._where(bad, node)
        if not bool(broken.isfinite().all()):
            return f": some entries are {_kind(broken)}{where}"
        return f", smallest eigenvalue {float(torch.linalg.eigvalsh(broken).min()):.2g}{where}"

    def _where(self, bad: Tensor, node: Any) -> str:
        """Name the rows at fault among a site's batch dimensions; empty outside the row plate."""
        frames = (frame for frame in node["cond_indep_stack"] if frame.name == self.structure.row_plate)
        frame = next(frames, None)
        if frame is None or bad.ndim < -frame.dim or bad.shape[frame.dim] != frame.size:
            return ""
        return self._named(bad.movedim(frame.dim, 0))

    def _columns(self, node: Any) -> str:
        """Name the columns at fault where entries of a row have separate densities; empty if all are."""
        fn = unwrap(node["fn"], MaskedDistribution | ExpandedDistribution)
        if not isinstance(fn, Independent) or fn.reinterpreted_batch_ndims != 1:
            return ""
        entries = fn.base_dist.log_prob(node["value"]).detach()
        bad = (~entries.isfinite()).reshape(-1, entries.shape[-1]).any(0).tolist()
        columns = self.pair.columns if len(self.pair.columns) == len(bad) else range(1, 1 + len(bad))
        names = [str(name) for name, broken in zip(columns, bad, strict=True) if broken]
        return "" if len(names) in (0, len(bad)) else f", column {', '.join(names[:MAX_NAMED])}"

    def _where_along(self, bad: Tensor) -> str:
        """Name the rows along the first axis that is as long as the data; empty if there is none."""
        num_rows = self.structure.row_axes.count(self.data)
        axes = [axis for axis, length in enumerate(bad.shape) if length == num_rows]
        return self._named(bad.movedim(axes[0], 0)) if axes else ""

    def _named(self, bad: Tensor) -> str:
        """Name the rows of a mask along its first axis."""
        places = torch.argwhere(bad.reshape(len(bad), -1).any(1)).reshape(-1).tolist()
        if len(places) == len(bad) > 1:
            return " at every row"
        data_rows = [self._row(place) for place in places[:MAX_NAMED]]
        rows = [place if row is None else row for place, row in zip(places, data_rows, strict=False)]
        named = ", ".join(str(1 + row) for row in rows)
        story = self.pair.story
        word = "series" if story is not None and story.takes_series else "row" if len(places) == 1 else "rows"
        suffix = " of its minibatch" if None in data_rows else ""
        if len(places) <= MAX_NAMED:
            return f" at {word} {named}{suffix}"
        return f" at {len(places):,} {word}, such as {named}{suffix}"

    def _row(self, place: int) -> int | None:
        """Find a row of the arguments in the pair's data; ``None`` if it is not among them."""
        whole, num_rows = self.pair.data, self.pair.num_rows
        if all(own is argument for own, argument in zip(whole, self.data, strict=True)):
            return place
        if self.pair.source is not None:
            return None
        equal = torch.ones(num_rows, dtype=torch.bool)
        for own, argument in zip(whole, self.data, strict=True):
            if isinstance(own, Tensor) and own.ndim and len(own) == num_rows:
                rows, row = own.reshape(num_rows, -1), argument[place].reshape(1, -1)
                equal &= ((rows == row) | (rows.isnan() & row.isnan())).all(1).cpu()
        matches = torch.argwhere(equal)
        return int(matches[0]) if len(matches) else None


def _kind(values: Tensor) -> str:
    """Describe the kind of non-finite values."""
    if bool(values.isnan().any()):
        return "NaN"
    return "infinite" if bool((values == math.inf).any()) else "minus infinity"


def _describe_invalid(values: Tensor) -> str:
    """Describe invalid values of an argument: their kind, or the first of them."""
    if not bool(values.isfinite().all()):
        return _kind(values)
    return f"{float(values[0]):g}" if values.ndim == 1 else "outside its domain"


def _equals(value: Tensor, matrix: Tensor) -> bool:
    """Whether an argument of a distribution equals a matrix up to expansion."""
    with contextlib.suppress(RuntimeError):
        return torch.equal(value, matrix.expand(value.shape))
    return False
