"""The result of a check: value, threshold, source, verdict and remedy."""

from __future__ import annotations

import enum
import math
import textwrap
import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import SupportsIndex, overload

import numpy as np

from pplgen.errors import InputError, near_names

__all__ = ["RENAMED", "Check", "Checks", "ParetoShapes", "Verdict", "not_applicable", "override_note"]


LINE = 100
"""Characters per line of printed remedies."""


class Verdict(enum.StrEnum):
    """Outcome of a check."""

    PASS = "pass"
    WARN = "warn"
    FAIL = "fail"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True)
class ParetoShapes:
    """Pareto k of the importance weights of each row.

    Attributes
    ----------
    rows : numpy.ndarray
        Row numbers, counted from 1, shape ``(num_rows,)``.
    k : numpy.ndarray
        Pareto k of each row, infinite where no tail can be fitted, shape ``(num_rows,)``.
    limit : float
        Threshold of k.
    """

    rows: np.ndarray
    k: np.ndarray
    limit: float

    @property
    def high(self) -> np.ndarray:
        """Whether each row's k exceeds the threshold, shape ``(num_rows,)``."""
        return self.k > self.limit

    def __str__(self) -> str:
        counts = f"{self.high.sum():,} of {len(self.k):,} rows"
        return f"{counts}, worst {self.k.max():.2f}" if self.high.any() else counts


@dataclass(frozen=True)
class Check:
    """A diagnostic with its threshold and verdict.

    Attributes
    ----------
    name : str
        Name of the diagnostic, with its unit.
    value : float
        Its value; NaN if the check does not apply.
    threshold : float
        The value that it is compared with.
    source : str
        Reference for definition and threshold.
    verdict : Verdict
        ``pass``, ``warn``, ``fail`` or ``not applicable``.
    remedy : str
        Finding and recommended action, or why the check does not apply; empty or a note if it passed.
    shapes : ParetoShapes or None
        Pareto k of each row, for checks of per-row importance weights.
    """

    name: str
    value: float
    threshold: float
    source: str
    verdict: Verdict
    remedy: str = ""
    shapes: ParetoShapes | None = field(default=None, compare=False, repr=False)

    @property
    def applies(self) -> bool:
        """Whether the check applies to the fit."""
        return self.verdict is not Verdict.NOT_APPLICABLE


RENAMED = {
    "draws that are not finite (share)": "non-finite draws (fraction)",
    "times that each row counts": "plate scaling factor",
    "times the run was infinite or NaN": "non-finite ELBO or gradient (count)",
    "posterior at modes that are missed (share)": "posterior mass at missed modes",
    "rows with k-hat above 0.7 (share)": "rows with k-hat above 0.7 (fraction)",
    "bound gap (nats)": "ELBO gap (nats)",
    "bound gap (nats per row)": "ELBO gap (nats per row)",
    "mean moved by importance weights (sd)": "mean shift under importance weighting (sd)",
    "columns beyond the prior predictive (share)": "columns outside the prior predictive (fraction)",
    "posterior predictive p (smallest, Holm)": "posterior predictive p-value (smallest, Holm)",
    "rows with LOO Pareto k above its limit (share)": "rows with LOO Pareto k above the threshold (fraction)",
    "LOO-PIT uniform, p (smallest, Holm)": "LOO-PIT uniformity p-value (smallest, Holm)",
    "components that repeat another": "duplicate components",
    "draws with switched labels (share)": "label-switched draws (fraction)",
    "amortisation gap (share of the ELBO)": "amortisation gap (fraction of the ELBO)",
    "divergent draws (share)": "divergent transitions (fraction)",
    "R-hat of parameters, last half of the run": "ELBO change over the last half of the run (nats)",
}
"""Former names of checks and their current names. ``Checks`` accepts the former ones with a warning for one release."""


class Checks(tuple[Check, ...]):
    """Checks in the order of their table, also indexed by name: ``checks["ELBO gap (nats)"]``; ``print`` shows them."""

    __slots__ = ()

    @overload
    def __getitem__(self, key: SupportsIndex | str) -> Check: ...

    @overload
    def __getitem__(self, key: slice) -> Checks: ...

    def __getitem__(self, key: SupportsIndex | slice | str) -> Check | Checks:
        if isinstance(key, slice):
            return Checks(super().__getitem__(key))
        if not isinstance(key, str):
            return super().__getitem__(key)
        by_name = {check.name: check for check in reversed(self)}
        current = RENAMED.get(key, key)
        if key not in by_name and current in by_name:
            message = f"check {key!r} has been renamed {current!r}; the former name will be removed in the next release"
            warnings.warn(message, FutureWarning, stacklevel=2)
            return by_name[current]
        if key not in by_name:
            names = [check.name for check in self]
            raise InputError(f"check {key!r}: expected one of {', '.join(names)}{near_names(key, names)}")
        return by_name[key]

    def __str__(self) -> str:
        """Return one line for each check, with its remedy below it; those that do not apply come last."""
        width = max((len(check.name) for check in self if check.applies), default=0)
        lines = [f"{'check':<{width}}  verdict       value  threshold"] if width else []
        for check in sorted(self, key=lambda check: not check.applies):
            if not check.applies:
                lines += textwrap.wrap(f"{check.name}: not applicable, {check.remedy}", LINE, subsequent_indent="  ")
                continue
            lines.append(f"{check.name:<{width}}  {check.verdict:<7} {check.value:>11.4g} {check.threshold:>10.4g}")
            lines += textwrap.wrap(check.remedy, LINE, initial_indent="  ", subsequent_indent="  ")
        return "\n".join(lines)

    def __repr__(self) -> str:
        counts = Counter(check.verdict for check in self)
        return f"<Checks: {', '.join(f'{counts[verdict]} {verdict}' for verdict in Verdict if counts[verdict])}>"


def override_note(verdict: Verdict, value: float, threshold: float, reason: str) -> str:
    """Return a note, or the start of a remedy: why the verdict does not follow from value and threshold."""
    return f"{verdict}, though {'within' if value <= threshold else 'above'} the threshold: {reason}"


def not_applicable(name: str, source: str, reason: str) -> Check:
    """Return a check that does not apply."""
    return Check(name, math.nan, math.nan, source, Verdict.NOT_APPLICABLE, reason)
