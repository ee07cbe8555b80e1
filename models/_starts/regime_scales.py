"""Prior constants of the parameters of regimes, given as options or set from the columns."""

from __future__ import annotations

from typing import Any

import torch
from pplgen.models._starts.kmeans_plus_plus import PRIOR_SCALE, column_scales
from torch import Tensor, nn

from pplgen.story.base import InputError, check_choice, check_count, check_per_feature

MEAN_SCALE = 2.0
"""Default prior standard deviation w of the means, in standard deviations of the columns."""
MEANS = ("prior_mean", "prior_mean_scale")
OPTIONS = {
    "diag": (*MEANS, "prior_scale"),
    "full": (*MEANS, "prior_scale"),
    "categorical": ("num_categories",),
    "poisson": MEANS,
}
"""Options of each kind of emissions."""


class RegimeScales(nn.Module):
    """Prior means m and standard deviations w of the means, ``(K, D)``, and scale s of the deviations, ``(D,)``.

    Parameters
    ----------
    kind
        Kind of emissions, one of ``OPTIONS``; rates have by default w = m.
    num_regimes, num_features
        K and D.
    options
        Values of ``prior_mean`` m, ``prior_mean_scale`` w and ``prior_scale`` s; those that are None are set from the
        columns.
    """

    m: Tensor
    w: Tensor
    s: Tensor

    def __init__(self, kind: str, num_regimes: int, num_features: int, options: dict[str, Any]) -> None:
        super().__init__()
        self.kind, self.options = kind, options
        self.register_buffer("m", torch.zeros(num_regimes, num_features))
        self.register_buffer("w", torch.ones(num_regimes, num_features))
        self.register_buffer("s", torch.ones(num_features))
        self._set(self.m[0], self.s)

    def learn(self, y: Tensor, weights: Tensor) -> None:
        """Set the constants that are not given from series, ``(num_series, num_steps, D)``, and their weights."""
        self._set(*column_scales(y.flatten(0, 1), weights.repeat_interleave(y.shape[1])))

    @property
    def constants(self) -> dict[str, Tensor]:
        """The constants that priors of this kind use, by the names of their options."""
        named = {"prior_mean": self.m, "prior_mean_scale": self.w, "prior_scale": self.s}
        return {name: value for name, value in named.items() if name in OPTIONS[self.kind]}

    def _set(self, mean: Tensor, sd: Tensor) -> None:
        rates = self.kind == "poisson"
        if rates:
            mean = torch.where(mean > 0, mean, 1.0)
        self.m = self._option("prior_mean", mean.expand(self.m.shape))
        self.w = self._option("prior_mean_scale", self.m if rates else MEAN_SCALE * sd.expand(self.m.shape))
        self.s = self._option("prior_scale", PRIOR_SCALE * sd)

    def _option(self, name: str, default: Tensor) -> Tensor:
        """Return the option, or the default if it is None."""
        value = self.options[name]
        return default.clone() if value is None else default.new_tensor(value)


def emission_options(kind: str, num_regimes: int, num_features: int, **options: Any) -> dict[str, Any]:
    """Return the options of emissions as numbers and lists, or raise ``InputError``."""
    check_choice("emission", kind, OPTIONS)
    positive = kind == "poisson"
    for name in MEANS:
        options[name] = per_regime(
            name, options[name], num_regimes, num_features, positive=positive or name == "prior_mean_scale"
        )
    options["prior_scale"] = check_per_feature("prior_scale", options["prior_scale"], num_features, positive=True)
    for name, value in options.items():
        if value is not None and name not in OPTIONS[kind]:
            raise InputError(f"{name}={value!r}: these emissions accept only {', '.join(OPTIONS[kind])}")
    if kind == "categorical":
        if options["num_categories"] is None:
            raise InputError(
                "num_categories: required by categorical emissions; give the number of categories of a column"
            )
        check_count("num_categories", options["num_categories"], minimum=2)
    return options


def per_regime(name: str, value: Any, K: int, D: int, *, positive: bool = False) -> list[list[float]] | None:
    """Broadcast an option to ``(K, D)`` finite numbers: a scalar, one per feature, or one list per regime.

    With one feature, several numbers are one per regime.
    """
    value = value.tolist() if hasattr(value, "tolist") else value
    if value is None:
        return None
    if D == 1 and isinstance(value, list | tuple) and not any(isinstance(each, list | tuple) for each in value):
        value = [[each] for each in value] if len(value) > 1 else value
    if not (isinstance(value, (list, tuple)) and value and all(isinstance(each, (list, tuple)) for each in value)):
        row = check_per_feature(name, value, D, positive=positive)
        return [row or []] * K
    if len(value) != K:
        raise InputError(f"{name}={value!r}: expected one list for each of {K} regimes")
    return [check_per_feature(name, each, D, positive=positive) or [] for each in value]
