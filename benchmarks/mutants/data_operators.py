"""Operators that change the data, so that a model that was right is wrong: what it does not describe."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mutants.pair_under_test import DoesNotApply, Subject

__all__ = ["DATA_OPERATORS"]


def _real(
    change: Callable[[Tensor, Tensor], Tensor], adds: str, kinds: tuple[str, ...] = ("real",)
) -> Callable[[Subject], Subject]:
    """Return an operator on real observations, given them and their standard deviation by column.

    It applies to pairs that do not describe what it ``adds``.
    """

    def operator(subject: Subject) -> Subject:
        if subject.kind not in kinds or adds in subject.describes:
            raise DoesNotApply(subject.kind)
        y = subject.y
        table = y.reshape(-1, y.shape[-1]) if y.ndim > 1 else y[:, None]
        changed = change(table, table.std(0))
        return subject.with_y(changed.reshape(y.shape))

    return operator


def _counts(change: Callable[[Tensor], Tensor]) -> Callable[[Subject], Subject]:
    def operator(subject: Subject) -> Subject:
        if subject.kind != "counts":
            raise DoesNotApply(subject.kind)
        return subject.with_y(change(subject.y).round().clamp_min(0))

    return operator


def with_outliers(y: Tensor, sd: Tensor) -> Tensor:
    """Move one row in thirty by eight standard deviations."""
    changed = y.clone()
    rows = torch.randperm(len(y))[: max(2, len(y) // 30)]
    changed[rows] += 8 * sd
    return changed


def autocorrelated(y: Tensor, sd: Tensor) -> Tensor:
    """Add errors that are correlated from row to row, .8 at lag one, and leave the variance as it is."""
    error = torch.zeros_like(y)
    noise = torch.randn_like(y)
    for row in range(1, len(y)):
        error[row] = 0.8 * error[row - 1] + 0.6 * noise[row]
    return (y + sd * error - y.mean(0)) * sd / (y + sd * error).std(0) + y.mean(0)


def with_season(y: Tensor, sd: Tensor) -> Tensor:
    """Add a wave of seven rows as large as the standard deviation."""
    wave = torch.sin(2 * torch.pi * torch.arange(len(y)) / 7)
    return y + 1.5 * sd * wave[:, None]


def with_trend(y: Tensor, sd: Tensor) -> Tensor:
    """Add a trend of three standard deviations over the rows."""
    return y + 1.5 * sd * torch.linspace(-1, 1, len(y))[:, None]


def skewed(y: Tensor, sd: Tensor) -> Tensor:
    """Bend the distribution, so that it has a long upper tail."""
    return y.mean(0) + sd * (torch.expm1(0.9 * (y - y.mean(0)) / sd)) / 0.9


def heavy_tailed(y: Tensor, sd: Tensor) -> Tensor:
    """Add errors of Student's distribution with 1.5 degrees of freedom."""
    return y + 0.5 * sd * torch.distributions.StudentT(1.5).sample(y.shape)


def two_populations(y: Tensor, sd: Tensor) -> Tensor:
    """Move each row up or down by two standard deviations at random."""
    signs = torch.randint(2, (len(y), 1)) * 2.0 - 1
    return y + 2 * sd * signs


def cut_off(y: Tensor, sd: Tensor) -> Tensor:
    """Replace what is above the 70 % quantile by it."""
    return torch.minimum(y, y.quantile(0.7, dim=0))


def with_repeated_rows(subject: Subject) -> Subject:
    """Repeat all rows, so that each is counted twice."""
    if subject.kind not in ("real", "positive") or subject.is_story or subject.ordered:
        raise DoesNotApply(subject.kind)
    number = len(subject.y)
    if any(not isinstance(each, Tensor) or each.shape[:1] != (number,) for each in subject.data):
        raise DoesNotApply("some arguments have no row axis")
    for place, value in enumerate(subject.data):
        subject = subject.with_data(place, torch.cat([value, value]))
    return subject


def _by_covariate(change: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Subject], Subject]:
    def operator(subject: Subject) -> Subject:
        if subject.covariates is None or subject.kind not in ("real", "counts"):
            raise DoesNotApply("there are no covariates of real observations")
        y = change(subject.y, subject.data[subject.covariates][:, 0])
        return subject.with_y(y if subject.kind == "real" else y.round().clamp_min(0))

    return operator


def bent(y: Tensor, x: Tensor) -> Tensor:
    """Add a term quadratic in the first covariate."""
    return y + y.std() * (x.square() - 1)


def fanned(y: Tensor, x: Tensor) -> Tensor:
    """Add errors whose standard deviation grows with the first covariate."""
    return y + y.std() * torch.exp(0.8 * x) / 1.5 * torch.randn_like(y)


DATA_OPERATORS: dict[str, Callable[[Subject], Subject]] = {
    "outliers": _real(with_outliers, "outliers"),
    "autocorrelated rows": _real(autocorrelated, "order"),
    "season": _real(with_season, "season"),
    "trend": _real(with_trend, "order"),
    "skewness": _real(skewed, "shape", ("real", "positive")),
    "heavy tails": _real(heavy_tailed, "shape"),
    "two populations": _real(two_populations, "shape"),
    "values cut off": _real(cut_off, "shape", ("real", "positive")),
    "rows counted twice": with_repeated_rows,
    "overdispersed counts": _counts(lambda y: y * torch.exp(0.7 * torch.randn(y.shape) - 0.25)),
    "underdispersed counts": _counts(lambda y: y.mean() + 0.4 * (y - y.mean())),
    "zeros in excess": _counts(lambda y: y * (torch.rand(y.shape) > 0.3)),
    "a quadratic term ignored": _by_covariate(bent),
    "errors grow with a covariate": _by_covariate(fanned),
}
