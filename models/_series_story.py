"""Base classes of stories of series whose parameters have a normal guide, also with regimes that are summed out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pplgen.models._guides.parameters import Parameters, plain_known
from pplgen.models._starts.regime_scales import RegimeScales, emission_options
from torch import Tensor

from pplgen.story.base import InputError, check_count, check_positive
from pplgen.story.state_space import StateSpaceStory, series_lengths


class SeriesStory(StateSpaceStory):
    """Base class of stories of series; a subclass sets ``theta``, the guide of its parameters."""

    theta: Parameters

    @torch.no_grad()
    def initialise(self, y: Tensor, labels: Tensor | None = None, weights: Tensor | None = None) -> None:
        """Set unspecified priors from the series, and the guide to Laplace's approximation, searched from ``start``."""
        weights = y.new_ones(len(y)) if weights is None else weights.to(y.dtype)
        self.num_steps.fill_(y.shape[1])
        self.observe_missing(y)
        self.theta.initialise(self.start(y, weights))
        self.theta.laplace_start(self.model, y, weights)

    def start(self, y: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """Set unspecified priors, and return likely values of the parameters, given series and their weights."""
        raise NotImplementedError


class RegimeStory(SeriesStory):
    """Base class of stories of series with K regimes, the path of regimes summed out.

    Parameters
    ----------
    kind
        Kind of emissions, as for ``emission_options``.
    num_regimes, num_features
        Number of regimes K, and of data columns D.
    priors
        Options of the emissions, as for ``emission_options``.
    known
        Values of fixed parameters, by name.
    concentration
        Prior concentration of each transition.
    **config
        Further options, checked.
    """

    order = 0
    """Number of first steps of each series that have no density."""

    def __init__(
        self,
        kind: str,
        num_regimes: int,
        num_features: int,
        priors: Mapping[str, Any],
        known: Mapping[str, Any] | None,
        concentration: float,
        **config: Any,
    ) -> None:
        K, D = check_count("num_regimes", num_regimes), check_count("num_features", num_features)
        options = emission_options(kind, K, D, **priors) | config
        options["concentration"] = check_positive("concentration", concentration)
        super().__init__(num_regimes=K, num_features=D, known=plain_known(known), **options)
        self.K, self.D = K, D
        self.emission = RegimeScales(kind, K, D, options)

    def check_training_data(self, x: Tensor) -> None:
        """Raise ``InputError`` for fewer steps with a density than regimes."""
        super().check_training_data(x)
        steps, fewest = int((series_lengths(x) - self.order).clamp_min(0).sum()), max(self.K, 2)
        if steps < fewest:
            after = f" after the first {self.order}" if self.order else ""
            raise InputError(f"{steps} steps{after} are too few for {self.K} regimes; give at least {fewest}")

    @property
    def constants(self) -> dict[str, Tensor]:
        """Prior constants that the emissions use: m and w, shape ``(K, D)``, and s, ``(D,)``."""
        return self.emission.constants
