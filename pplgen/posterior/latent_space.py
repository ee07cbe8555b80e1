"""Walks through latent space: encodings as a dataset, interpolation between rows, traversal of each dimension."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pplgen.errors import InputError
from pplgen.posterior.latent_variables import decode_latents, decoder_input_size, draw_latents, encode_rows
from pplgen.story.latent import LatentStory

__all__ = ["encodings", "interpolate", "latent_tensor", "traverse"]

MASS = 0.9
"""Probability between the first and the last step of a traversal."""
PRIOR_DRAWS = 10_000
"""Draws of the prior from which its quantiles are estimated."""


def encodings(story: LatentStory, x: Tensor) -> xr.Dataset:
    """Return mean ``z`` and standard deviation ``z_sd`` of each row, and class probabilities ``y`` where it has any."""
    mean, sd = (value.cpu().numpy() for value in encode_rows(story, x))
    k = story.num_latents
    variables = {"z": (("row", "latent"), mean[:, :k]), "z_sd": (("row", "latent"), sd[:, :k])}
    if mean.shape[-1] > k:
        variables["y"] = (("row", "class"), mean[:, k:])
    dataset = xr.Dataset(variables)
    return dataset.assign_coords({axis: range(size) for axis, size in dataset.sizes.items()})


def latent_tensor(story: LatentStory, z: Any) -> Tensor:
    """Return latent variables in any kind of array as a tensor for the decoder, or raise ``InputError``."""
    values = z
    if isinstance(z, xr.Dataset):
        values = np.concatenate([z[name].values for name in ("z", "y") if name in z], axis=-1)
    like = next(iter(story.parameters()))
    try:
        latents = torch.as_tensor(values if isinstance(values, Tensor) else np.asarray(values)).to(like)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"decode: {type(z).__name__} is no array of latent variables") from None
    size = decoder_input_size(story)
    if latents.ndim < 1 or latents.shape[-1] != size or not latents.isfinite().all():
        expected = f"finite values of shape (..., {size})"
        raise InputError(f"decode: latent variables of shape {tuple(latents.shape)}; expected {expected}")
    return latents


def interpolate(story: LatentStory, a: Tensor, b: Tensor, num: int) -> Tensor:
    """Decode ``num`` steps from latent means ``a`` to ``b``, shape ``(num, num_rows, num_features)``.

    Raises
    ------
    InputError
        Where the two are not equally many.
    """
    if len(a) != len(b):
        raise InputError(f"interpolate: {len(a)} rows and {len(b)}; expected as many in both")
    fraction = torch.linspace(0, 1, num).to(a)[:, None, None]
    return decode_latents(story, torch.lerp(a, b, fraction))


def traverse(
    story: LatentStory, x: Tensor | None, base: Callable[[], Tensor] | None, num: int, columns: Sequence[str]
) -> xr.Dataset:
    """Move one latent dimension at a time, the others fixed, and decode each step.

    Parameters
    ----------
    story
        A trained story.
    x
        Rows whose aggregate posterior gives the quantiles, shape ``(num_rows, num_features)``; ``None`` for the prior.
    base
        Returns the latent mean at which the other dimensions are fixed, shape ``(num_latents,)``; ``None`` for their
        medians.
    num
        Steps, at quantiles from .05 to .95.
    columns
        Names of the features.

    Returns
    -------
    xarray.Dataset
        As of ``Fit.traverse``.
    """
    levels = np.linspace((1 - MASS) / 2, (1 + MASS) / 2, num).round(6)
    drawn = story.prior().sample(torch.Size([PRIOR_DRAWS])) if x is None else draw_latents(story, x)
    # NumPy's, because torch's refuses many rows
    quantiles = np.quantile(drawn.cpu().numpy(), [0.5, *levels], axis=0)
    fixed, *steps = torch.as_tensor(quantiles).to(drawn)
    places = torch.stack(steps, -1)[: story.num_latents]
    fixed[story.num_latents :] = drawn[:, story.num_latents :].mean(0)  # probabilities of a class
    if base is not None:
        fixed = base()
    on_simplex = bool((drawn >= 0).all() and torch.allclose(drawn.sum(-1), torch.ones_like(drawn[:, 0])))
    fixed = fixed / fixed.sum() if on_simplex else fixed  # medians sum to less than one
    latents = fixed.expand(len(places), num, -1).clone()
    for dimension, values in enumerate(places):
        if on_simplex:
            others = 1 - fixed[dimension].clamp(max=1 - 1e-6)
            latents[dimension] *= ((1 - values) / others)[:, None]
        latents[dimension, :, dimension] = values
    decoded = decode_latents(story, latents).cpu()
    axes = ("latent", "quantile", "feature")
    coords = {"latent": range(len(places)), "quantile": levels, "feature": [*columns]}
    variables = {"x": (axes, decoded.numpy()), "z": (axes[:2], places.cpu().numpy())}
    return xr.Dataset(variables, coords={name: values for name, values in coords.items() if len(values)})
