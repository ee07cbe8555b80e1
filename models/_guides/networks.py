"""Networks of encoders and decoders: dense, convolutional for square pictures, or a user's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pplgen.models._guides.layers import ACTIVATIONS, PictureDecoder, PictureEncoder, dense, picture_side
from torch import Tensor, nn

from pplgen.story.base import InputError, check_choice, check_count

KINDS = ("dense", "convolutional")


def check_network(network: str, hidden: Sequence[int], activation: str, num_features: int) -> dict[str, object]:
    """Return the options of a network as they are kept, or raise ``InputError``."""
    if isinstance(hidden, str) or not isinstance(hidden, Sequence):
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
        made = PictureEncoder(hidden, activation, num_inputs, num_features, num_outputs) if picture else None
        self.body = own or made or dense((num_inputs, *hidden, num_outputs), activation)
        self.of_gaps = nn.Linear(num_features, num_inputs, bias=False)
        nn.init.zeros_(self.of_gaps.weight)
        self.kept = [self.of_gaps, *(() if own is None else own.modules())]
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
        self.kept = [] if own is None else list(own.modules())
        if own is not None:
            require_width("decoder", own, num_latents, num_outputs)

    def forward(self, z: Tensor) -> Tensor:
        """Decode codes, shape ``(..., num_latents)``."""
        outputs: Tensor = self.body(z) + self.offset
        return outputs

    def begin(self, outputs: Tensor) -> None:
        """Start near these outputs, whatever the code."""
        self.offset.copy_(outputs)


def redraw(*parts: nn.Module) -> None:
    """Draw the weights of layers anew, so that restarts start apart; a user's own networks start as they are."""
    modules = [module for part in parts for module in part.modules()]
    kept = {id(layer) for module in modules for layer in getattr(module, "kept", ())}
    for module in modules:
        reset: Any = getattr(module, "reset_parameters", None)
        if reset is not None and id(module) not in kept:
            reset()


def require_width(name: str, module: nn.Module, num_inputs: int, num_outputs: int) -> None:
    """Refuse a network that does not take and return rows of these widths."""
    try:
        with torch.no_grad():
            shape = tuple(module(torch.zeros(2, num_inputs)).shape)
    except RuntimeError as error:
        raise InputError(f"{name}: it refuses rows of {num_inputs} numbers: {str(error).splitlines()[0]}") from None
    if shape != (2, num_outputs):
        raise InputError(f"{name}: two rows of {num_inputs} give shape {shape}; expected (2, {num_outputs})")
