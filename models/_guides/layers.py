"""Layers of the networks: dense, and small convolutions for square images."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pplgen.story.base import InputError

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
    "elu": nn.ELU,
}
CHANNELS = (16, 32)
"""Channels of the two convolutions."""


def dense(widths: Sequence[int], activation: str) -> nn.Sequential:
    """Return linear layers with activations in between."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


def image_side(num_features: int) -> int:
    """Return the side of a square image that two convolutions can halve, or raise ``InputError``."""
    side = math.isqrt(num_features)
    if side * side != num_features or side % 4:
        raise InputError(
            f"network='convolutional': {num_features} features are not a square image with sides a multiple of 4"
        )
    return side


class ImageEncoder(nn.Module):
    """Two strided convolutions, each halving the image, and dense layers."""

    def __init__(
        self, hidden: Sequence[int], activation: str, num_inputs: int, num_features: int, num_outputs: int
    ) -> None:
        super().__init__()
        self.side = image_side(num_features)
        self.per_pixel = num_inputs // num_features
        first, second = CHANNELS
        self.convolutions = nn.Sequential(
            nn.Conv2d(self.per_pixel, first, 4, stride=2, padding=1),
            ACTIVATIONS[activation](),
            nn.Conv2d(first, second, 4, stride=2, padding=1),
            ACTIVATIONS[activation](),
            nn.Flatten(),
        )
        self.layers = dense((second * (self.side // 4) ** 2, *hidden, num_outputs), activation)

    def forward(self, x: Tensor) -> Tensor:
        """Encode flattened images, channels first, shape ``(..., per_pixel * side^2)``."""
        images = x.reshape(-1, self.per_pixel, self.side, self.side)
        outputs: Tensor = self.layers(self.convolutions(images))
        return outputs.reshape(*x.shape[:-1], outputs.shape[-1])


class ImageDecoder(nn.Module):
    """Dense layers and two transposed convolutions, each doubling the image."""

    def __init__(
        self, hidden: Sequence[int], activation: str, num_inputs: int, num_features: int, per_pixel: int
    ) -> None:
        super().__init__()
        first, second = CHANNELS
        self.side = image_side(num_features)
        self.layers = dense((num_inputs, *reversed(hidden), second * (self.side // 4) ** 2), activation)
        self.convolutions = nn.Sequential(
            ACTIVATIONS[activation](),
            nn.ConvTranspose2d(second, first, 4, stride=2, padding=1),
            ACTIVATIONS[activation](),
            nn.ConvTranspose2d(first, per_pixel, 4, stride=2, padding=1),
        )

    def forward(self, z: Tensor) -> Tensor:
        """Return the outputs of all pixels, channels first, shape ``(..., per_pixel * side^2)``."""
        small = self.layers(z).reshape(-1, CHANNELS[1], self.side // 4, self.side // 4)
        return torch.reshape(self.convolutions(small), (*z.shape[:-1], -1))
