"""Encoder and decoder networks: dense, convolutional for square images, or a user's module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pplgen.models._guides.layers import ACTIVATIONS, ImageDecoder, ImageEncoder, dense, image_side
from torch import Tensor, nn

from pplgen.story.base import InputError, check_choice, check_count

KINDS = ("dense", "convolutional")


def check_network(network: str, hidden: Sequence[int], activation: str, num_features: int) -> dict[str, object]:
    """Return a network's options for a story's config, or raise ``InputError``."""
    if isinstance(hidden, str) or not isinstance(hidden, Sequence):
        raise InputError(f"hidden={hidden!r}: expected the widths of the hidden layers, such as (200, 200)")
    options: dict[str, object] = {
        "network": check_choice("network", network, KINDS),
        "hidden": [check_count("hidden", width) for width in hidden],
        "activation": check_choice("activation", activation, ACTIVATIONS),
    }
    if network == "convolutional":
        image_side(num_features)
    return options


class EncoderNetwork(nn.Module):
    """Encoder network: from a row's inputs and missingness mask to the guide's parameters.

    Parameters
    ----------
    network, hidden, activation
        As for ``check_network``.
    num_inputs
        Number of inputs for a row.
    num_features
        Number of entries of a row.
    num_outputs
        Number of outputs for a row.
    custom
        User's module in place of the network.
    """

    def __init__(
        self,
        network: str,
        hidden: Sequence[int],
        activation: str,
        num_inputs: int,
        num_features: int,
        num_outputs: int,
        custom: nn.Module | None = None,
    ) -> None:
        super().__init__()
        convolutional = network == "convolutional" and custom is None
        network_module = (
            ImageEncoder(hidden, activation, num_inputs, num_features, num_outputs) if convolutional else None
        )
        self.body = custom or network_module or dense((num_inputs, *hidden, num_outputs), activation)
        self.of_gaps = nn.Linear(num_features, num_inputs, bias=False)
        nn.init.zeros_(self.of_gaps.weight)
        self.fixed = [self.of_gaps, *(() if custom is None else custom.modules())]
        if custom is not None:
            check_widths("encoder", custom, num_inputs, num_outputs)

    def forward(self, inputs: Tensor, missing: Tensor | None = None) -> Tensor:
        """Encode inputs, shape ``(..., num_inputs)``; ``missing`` is the mask of missing entries, if any."""
        if missing is not None:
            inputs = inputs + self.of_gaps(missing.to(inputs.dtype))
        outputs: Tensor = self.body(inputs)
        return outputs


class DecoderNetwork(nn.Module):
    """Decoder network: from latent variables to the likelihood's parameters, hidden layers in reverse order.

    Parameters
    ----------
    network, hidden, activation
        As for ``check_network``.
    num_latents
        Number of latent dimensions.
    entries
        Entries of a row: their number ``num_features``, ``per_feature``, the number of outputs for each, and
        ``num_noise``, that of the last outputs that are their noise.
    custom
        User's module in place of the network.
    """

    own_noise: Tensor | None
    """Weight of the noise of entries: at 0 that of all features is the same, at .5 of all rows, at 1 of none."""

    def __init__(
        self,
        network: str,
        hidden: Sequence[int],
        activation: str,
        num_latents: int,
        entries: Any,
        custom: nn.Module | None = None,
    ) -> None:
        super().__init__()
        num_features, per_feature = entries.num_features, entries.per_feature
        num_outputs = num_features * per_feature
        convolutional = network == "convolutional" and custom is None
        network_module = (
            ImageDecoder(hidden, activation, num_latents, num_features, per_feature) if convolutional else None
        )
        self.body = custom or network_module or dense((num_latents, *reversed(hidden), num_outputs), activation)
        self.offset = nn.Parameter(torch.zeros(num_outputs))
        self.num_noise = entries.num_noise
        self.register_buffer("own_noise", torch.ones(()) if self.num_noise else None, persistent=False)
        self.fixed = [] if custom is None else list(custom.modules())
        if custom is not None:
            check_widths("decoder", custom, num_latents, num_outputs)

    def forward(self, z: Tensor) -> Tensor:
        """Decode latent variables, shape ``(..., num_latents)``."""
        outputs: Tensor = self.body(z)
        if self.own_noise is None:
            return outputs + self.offset
        (means, noise), (offset, of_features) = (
            part.tensor_split([-self.num_noise], -1) for part in (outputs, self.offset)
        )
        of_features = torch.lerp(of_features.mean(), of_features, (2 * self.own_noise).clamp(max=1))
        return torch.cat([means + offset, (2 * self.own_noise - 1).clamp(min=0) * noise + of_features], -1)

    def initialise(self, outputs: Tensor) -> None:
        """Set the output bias."""
        self.offset.copy_(outputs)


def reset_networks(*parts: nn.Module) -> None:
    """Reinitialise all weights, so that restarts differ; users' modules are left as they are."""
    modules = [module for part in parts for module in part.modules()]
    fixed = {id(layer) for module in modules for layer in getattr(module, "fixed", ())}
    for module in modules:
        reset: Any = getattr(module, "reset_parameters", None)
        if reset is not None and id(module) not in fixed:
            reset()


def check_widths(name: str, module: nn.Module, num_inputs: int, num_outputs: int) -> None:
    """Raise ``InputError`` for a network that does not map rows of these widths."""
    try:
        with torch.no_grad():
            shape = tuple(module(torch.zeros(2, num_inputs)).shape)
    except RuntimeError as error:
        raise InputError(f"{name}: fails on rows of {num_inputs} numbers: {str(error).splitlines()[0]}") from None
    if shape != (2, num_outputs):
        raise InputError(
            f"{name}: returns shape {shape} for input of shape (2, {num_inputs}); expected (2, {num_outputs})"
        )
