"""Methods of a fit by a latent-variable story."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pyro
import torch
import xarray as xr
from torch import Tensor

from pplgen.errors import InputError
from pplgen.posterior import latent_space
from pplgen.posterior.fitted_pair import FittedPair
from pplgen.posterior.latent_variables import decode_latents, encode_rows
from pplgen.story.base import check_choice, check_count
from pplgen.story.latent import LatentStory

__all__ = ["LatentMethods"]


class LatentMethods(FittedPair):
    """Methods of a fit whose rows are decoded from continuous latent variables; for others each raises ``InputError``.

    ``x`` is any input of ``load_data``, ``None`` for the training rows; NaN is missing.
    """

    def encode(self, x: Any = None, *, seed: int | None = None) -> xr.Dataset:
        """Return mean ``z`` and standard deviation ``z_sd`` of each row's latent variables, ``(row, latent)``.

        Moments of the guide, in closed form if its family has one. ``fit.encode(x)["z"].values`` is an array of
        features for another model; ``fit.decode(fit.encode(x))`` decodes them. A story with classes also returns their
        probabilities ``y``, dimensions ``(row, class)``.
        """
        with self._latent_story("encode", seed) as story:
            return self._with_identifiers(latent_space.encodings(story, self._rows(x)[0]), x)

    def decode(self, z: Any) -> Tensor:
        """Return the mean of a row given latent variables, ``(..., num_features)`` for ``z`` of ``(..., num_latents)``.

        ``z`` is a tensor, an array, nested lists, or the result of ``encode``, of which the means are decoded. For a
        story with classes the latent dimensions are followed by a number for each class, such as its probability.
        """
        with self._latent_story("decode", None) as story:
            return decode_latents(story, latent_space.latent_tensor(story, z)).cpu()

    def reconstruct(self, x: Any = None, *, seed: int | None = None) -> Tensor:
        """Decode the mean latent variables of each row, shape ``(num_rows, num_features)``; fills in missing entries.

        The result is the mean of every entry given the latent mean, observed or not. ``impute`` leaves observed entries
        as they are and draws the others from their predictive distribution.
        """
        with self._latent_story("reconstruct", seed) as story:
            return decode_latents(story, encode_rows(story, self._rows(x)[0])[0]).cpu()

    def interpolate(self, a: Any, b: Any, num: int = 9, *, seed: int | None = None) -> Tensor:
        """Decode points on the line segments between the mean latent variables of rows ``a`` and rows ``b``.

        Parameters
        ----------
        a, b
            One row each, shape ``(num_features,)``, or equal numbers of rows.
        num
            Number of points, both ends included.
        seed
            Random seed, for guides whose means have no closed form.

        Returns
        -------
        Tensor
            Shape ``(num, num_features)``, or ``(num, num_rows, num_features)`` for several rows.
        """
        check_count("num", num, minimum=2)
        with self._latent_story("interpolate", seed) as story:
            means = [self._latent_mean(story, row) for row in (a, b)]
            steps = latent_space.interpolate(story, means[0], means[1], num).cpu()
        return steps[:, 0] if _is_single(a) and _is_single(b) else steps

    def traverse(self, base: Any = None, *, num: int = 9, over: str = "prior", seed: int | None = None) -> xr.Dataset:
        """Move one latent dimension at a time, the others fixed, and decode each step.

        Parameters
        ----------
        base
            Row, shape ``(num_features,)``, at whose latent mean the others are fixed; ``None``: at their medians.
        num
            Number of steps, at quantiles of the dimension from .05 to .95.
        over
            Distribution of the quantiles: the ``prior``, or the aggregate ``posterior`` of all training rows.
        seed
            Random seed of the draws from which the quantiles are estimated.

        Returns
        -------
        xarray.Dataset
            ``x``, the mean of a row at each step, dimensions ``(latent, quantile, feature)``, and ``z``, the value of
            the dimension, dimensions ``(latent, quantile)``. On the simplex the other dimensions are rescaled.
        """
        check_choice("over", over, ("prior", "posterior"))
        check_count("num", num, minimum=2)
        with self._latent_story("traverse", seed) as story:
            x = None if over == "prior" else self._rows(None)[0]
            mean = None if base is None else lambda: self._latent_mean(story, base)[0]
            return latent_space.traverse(story, x, mean, num, self.columns)

    def _latent_mean(self, story: LatentStory, x: Any) -> Tensor:
        """Return the mean latent variables of a row or of rows, shape ``(num_rows, num_latents)``."""
        if _is_single(x):
            x = x.to_frame().T if isinstance(x, pd.Series) else np.asarray(x)[None]
        return encode_rows(story, self._rows(x)[0])[0]

    @contextlib.contextmanager
    def _latent_story(self, method: str, seed: int | None) -> Iterator[LatentStory]:
        """Yield the latent-variable story, ready to compute with, or raise ``InputError``."""
        story = self.pair.story
        if not isinstance(story, LatentStory):
            name = type(story).__name__ if story else "a bare pair"
            raise InputError(f"{method}: {name} has no per-row latent variables; expected a latent-variable story")
        with self._ready(seed), torch.no_grad(), pyro.validation_enabled(False):
            yield story


def _is_single(x: Any) -> bool:
    """Whether ``x`` is one row."""
    return np.ndim(x) == 1 and not isinstance(x, str)
