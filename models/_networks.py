"""Networks that encoders and decoders are made of: dense layers, and small convolutions for square pictures."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pplgen.story import InputError, check_choice, check_count

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
    "elu": nn.ELU,
}
KINDS = ("dense", "convolutional")
CHANNELS = (16, 32)
"""Of the two convolutions of a picture."""


def check_network(network: str, hidden: Sequence[int], activation: str, num_features: int) -> dict[str, object]:
    """Return the options of a network as they are kept, or raise ``InputError``."""
    if isinstance(hidden, str | int):
        raise InputError(f"hidden={hidden!r}: expected the widths of the hidden layers, such as (200, 200)")
    options: dict[str, object] = {
        "network": check_choice("network", network, KINDS),
        "hidden": [check_count("hidden", width) for width in hidden],
        "activation": check_choice("activation", activation, ACTIVATIONS),
    }
    if network == "convolutional":
        picture_side(num_features)
    return options


class EncoderNetwork(nn.Module):
    """From what is read of rows, and which entries are missing, to the outputs of a guide.

    Parameters
    ----------
    network, hidden, activation
        As ``check_network`` takes them.
    num_inputs
        Numbers that are read of a row.
    num_features
        Entries of a row.
    num_outputs
        Numbers that are put out.
    own
        A module to take in place of the network.
    """

    def __init__(
        self,
        network: str,
        hidden: Sequence[int],
        activation: str,
        num_inputs: int,
        num_features: int,
        num_outputs: int,
        own: nn.Module | None = None,
    ) -> None:
        super().__init__()
        picture = network == "convolutional" and own is None
        made = PictureEncoder(hidden, activation, num_inputs, num_outputs) if picture else None
        self.body = own or made or dense((num_inputs, *hidden, num_outputs), activation)
        self.of_gaps = nn.Linear(num_features, num_inputs, bias=False)
        nn.init.zeros_(self.of_gaps.weight)
        if own is not None:
            require_width("encoder", own, num_inputs, num_outputs)

    def forward(self, inputs: Tensor, gaps: Tensor | None = None) -> Tensor:
        """Read rows, shape ``(..., num_inputs)``; ``gaps`` says which entries are missing, where any are."""
        if gaps is not None:
            inputs = inputs + self.of_gaps(gaps.to(inputs.dtype))
        outputs: Tensor = self.body(inputs)
        return outputs


class DecoderNetwork(nn.Module):
    """From codes to the outputs of a likelihood, those of a kind side by side; hidden layers the other way round.

    Parameters
    ----------
    network, hidden, activation
        As ``check_network`` takes them.
    num_latents
        Entries of a code.
    num_features, per_feature
        Entries of a row, and numbers that are put out for each.
    own
        A module to take in place of the network.
    """

    def __init__(
        self,
        network: str,
        hidden: Sequence[int],
        activation: str,
        num_latents: int,
        num_features: int,
        per_feature: int,
        own: nn.Module | None = None,
    ) -> None:
        super().__init__()
        num_outputs = num_features * per_feature
        picture = network == "convolutional" and own is None
        made = PictureDecoder(hidden, activation, num_latents, num_features, per_feature) if picture else None
        self.body = own or made or dense((num_latents, *reversed(hidden), num_outputs), activation)
        self.offset = nn.Parameter(torch.zeros(num_outputs))
        if own is not None:
            require_width("decoder", own, num_latents, num_outputs)

    def forward(self, z: Tensor) -> Tensor:
        """Decode codes, shape ``(..., num_latents)``."""
        outputs: Tensor = self.body(z) + self.offset
        return outputs

    def begin(self, outputs: Tensor) -> None:
        """Start near these outputs, whatever the code."""
        self.offset.copy_(outputs)


def require_width(name: str, module: nn.Module, num_inputs: int, num_outputs: int) -> None:
    """Refuse a network that does not take and return rows of these widths."""
    try:
        with torch.no_grad():
            shape = tuple(module(torch.zeros(2, num_inputs)).shape)
    except RuntimeError as error:
        raise InputError(f"{name}: it refuses rows of {num_inputs} numbers: {str(error).splitlines()[0]}") from None
    if shape != (2, num_outputs):
        raise InputError(f"{name}: two rows of {num_inputs} give shape {shape}; expected (2, {num_outputs})")


def dense(widths: Sequence[int], activation: str) -> nn.Sequential:
    """Return linear layers with an activation between each two."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


def picture_side(num_features: int) -> int:
    """Return the side of a square picture that two convolutions can halve, or raise ``InputError``."""
    side = math.isqrt(num_features)
    if side * side != num_features or side % 4:
        raise InputError(
            f"network='convolutional': {num_features} features are no square picture with sides that are multiples of 4"
        )
    return side


class PictureEncoder(nn.Module):
    """Two convolutions that halve a picture each, and dense layers."""

    def __init__(self, hidden: Sequence[int], activation: str, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.side = picture_side(num_inputs)
        first, second = CHANNELS
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, first, 4, stride=2, padding=1),
            ACTIVATIONS[activation](),
            nn.Conv2d(first, second, 4, stride=2, padding=1),
            ACTIVATIONS[activation](),
            nn.Flatten(),
        )
        self.layers = dense((second * (self.side // 4) ** 2, *hidden, num_outputs), activation)

    def forward(self, x: Tensor) -> Tensor:
        """Read pictures that are laid out as rows, shape ``(..., side^2)``."""
        pictures = x.reshape(-1, 1, self.side, self.side)
        outputs: Tensor = self.layers(self.convolutions(pictures))
        return outputs.reshape(*x.shape[:-1], outputs.shape[-1])


class PictureDecoder(nn.Module):
    """Dense layers, and two transposed convolutions that double a picture each."""

    def __init__(
        self, hidden: Sequence[int], activation: str, num_inputs: int, num_features: int, per_pixel: int
    ) -> None:
        super().__init__()
        first, second = CHANNELS
        self.side = picture_side(num_features)
        self.layers = dense((num_inputs, *reversed(hidden), second * (self.side // 4) ** 2), activation)
        self.convolutions = nn.Sequential(
            ACTIVATIONS[activation](),
            nn.ConvTranspose2d(second, first, 4, stride=2, padding=1),
            ACTIVATIONS[activation](),
            nn.ConvTranspose2d(first, per_pixel, 4, stride=2, padding=1),
        )

    def forward(self, z: Tensor) -> Tensor:
        """Return outputs of every pixel, shape ``(..., per_pixel * side^2)``, those of a kind side by side."""
        small = self.layers(z).reshape(-1, CHANNELS[1], self.side // 4, self.side // 4)
        return torch.reshape(self.convolutions(small), (*z.shape[:-1], -1))
