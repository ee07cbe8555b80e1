r"""Guides of the path of a switching model's state: recognition networks that output Gaussian chains.

``responsibilities``
    The network outputs soft regimes r_t(k). The chain is the exact posterior of the model whose dynamics are those of
    the regimes, averaged under r in natural parameters; it shares all parameters of the model. Corrections, zero at
    first, reduce the remaining gap: factors of the natural parameters of the dynamics and the observation of each
    step, and a shift.
``markov``
    The network outputs a chain x_t = F_t x_{t-1} + g_t + N(0, diag(h_t^2)).
``mean-field``
    Steps are independent, x_t ~ N(g_t, diag(h_t^2)).

References
----------
Johnson, Duvenaud, Wiltschko, Datta and Adams (2016), Composing graphical models with neural networks for structured
representations and fast inference.
"""

from __future__ import annotations

import torch
from pplgen.models._guides.networks import reset_networks
from torch import Tensor, nn

from pplgen.distributions.gaussian_chain import GaussianChain
from pplgen.distributions.switching_observations import Emission
from pplgen.distributions.switching_path import Dynamics

KINDS = ("responsibilities", "markov", "mean-field")
DILATIONS = (1, 2, 4, 8)
KERNEL = 5
MAX_LOG_SCALING = 2.0
"""Largest log factor by which corrections scale the natural parameters of dynamics and observations."""
BATCH_SIZE = 16
"""Series in a batch of pretraining."""


class Encoder(nn.Module):
    """Residual stack of dilated convolutions over time.

    Parameters
    ----------
    num_features
        Number of entries of a step; the missingness mask is a further input.
    num_outputs
        Number of outputs for each step.
    width
        Number of channels.
    """

    def __init__(self, num_features: int, num_outputs: int, width: int = 32) -> None:
        super().__init__()
        self.read = nn.Linear(2 * num_features, width)
        self.mix = nn.ModuleList(nn.Linear(KERNEL * width, width) for _ in DILATIONS)
        self.emit = nn.Linear(width, num_outputs)

    def forward(self, z: Tensor, inside: Tensor) -> Tensor:
        """Encode standardised series, NaN where missing, ``(num_series, T, E)``; steps past the end are zero-padded."""
        mask = inside.unsqueeze(-1).to(z.dtype)
        h = self.read(torch.cat([z.nan_to_num(), (~z.isnan()).to(z.dtype)], -1))
        for layer, dilation in zip(self.mix, DILATIONS, strict=True):
            h = h + layer(_neighbours(nn.functional.gelu(h) * mask, dilation))
        outputs: Tensor = self.emit(nn.functional.gelu(h))
        return outputs


class Recognition(nn.Module):
    """Amortised guide of paths: the network, and the Gaussian chain of its outputs.

    Parameters
    ----------
    kind
        One of ``KINDS``.
    num_regimes, num_states, num_features
        K, D and E.
    """

    def __init__(self, kind: str, num_regimes: int, num_states: int, num_features: int) -> None:
        super().__init__()
        self.kind, self.num_regimes, self.num_states = kind, num_regimes, num_states
        num_outputs = 2 * num_states + (num_states**2 if kind == "markov" else 0)
        self.encoder = Encoder(num_features, num_regimes + 2 + num_states if kind == KINDS[0] else num_outputs)
        self._zero_corrections()

    def _zero_corrections(self) -> None:
        """Set the weights of the corrections to zero."""
        if self.kind == KINDS[0]:
            for part in (self.encoder.emit.weight, self.encoder.emit.bias):
                torch.nn.init.zeros_(part[self.num_regimes :])

    def forward(self, z: Tensor, y: Tensor, inside: Tensor, dynamics: Dynamics, emission: Emission) -> GaussianChain:
        """Return the distribution of paths given series y, with z the standardised series."""
        outputs = self.encoder(z, inside)
        if self.kind == KINDS[0]:
            return responsibilities_chain(outputs, y, inside, dynamics, emission)
        return encoded_chain(self.kind, outputs, inside, self.num_states)

    def pretrain(self, z: Tensor, inside: Tensor, regimes: Tensor, steps: int = 60) -> None:
        """Reset the network and train it by cross-entropy to output regime probabilities, ``(num_series, T, K)``.

        From random soft regimes, nearly equal for all steps, the ELBO alone may never separate the regimes.
        """
        reset_networks(self.encoder)
        self._zero_corrections()
        if self.kind != KINDS[0]:
            return
        optimiser = torch.optim.Adam(self.parameters(), lr=0.01)
        with torch.enable_grad():
            for _ in range(steps):
                chosen = torch.randint(len(z), (min(len(z), BATCH_SIZE),), device=z.device)
                outputs = self.encoder(z[chosen], inside[chosen])
                logits = outputs[..., : self.num_regimes].log_softmax(-1)
                loss = -(regimes[chosen] * logits).sum(-1)[inside[chosen]].mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()


def responsibilities_chain(
    outputs: Tensor, y: Tensor, inside: Tensor, dynamics: Dynamics, emission: Emission
) -> GaussianChain:
    """Return the posterior of paths given y under the averaged dynamics.

    Parameters
    ----------
    outputs
        Logits of the soft regimes, raw scale corrections of dynamics and observations, and a shift, shape
        ``(num_series, T, K + 2 + D)``.
    y
        Series, NaN where missing, shape ``(num_series, T, E)``.
    inside
        Steps that belong to the series, shape ``(num_series, T)``.
    dynamics, emission
        Parameters of the model.
    """
    m0, A, b = dynamics.m0, dynamics.A, dynamics.b
    K, D, _ = A.shape
    soft = outputs[..., :K].softmax(-1)
    scaling, shift = (MAX_LOG_SCALING * outputs[..., K : K + 2].tanh()).exp(), outputs[..., K + 2 :]
    Lambda = torch.cholesky_inverse(dynamics.L)
    weights = torch.where(inside.unsqueeze(-1), soft * scaling[..., :1], 0.0)[:, 1:]

    def averaged(per_regime: Tensor) -> Tensor:
        return (weights @ per_regime.reshape(K, -1)).unflatten(-1, per_regime.shape[1:])

    Lambda_A, Lambda_b = Lambda @ A, (Lambda @ b.unsqueeze(-1)).squeeze(-1)
    A_Lambda_b = (A.mT @ Lambda_b.unsqueeze(-1)).squeeze(-1)
    J0 = torch.diag_embed(dynamics.s0.pow(-2))
    diagonal = _at_later_step(averaged(Lambda)) + _at_earlier_step(averaged(A.mT @ Lambda_A)) + _at_first_step(J0, y)
    information = (
        _at_later_step(averaged(Lambda_b)) - _at_earlier_step(averaged(A_Lambda_b)) + _at_first_step(J0 @ m0, y)
    )
    J, h = _emission_potentials(soft, y, emission)
    padding = torch.where(inside, 0.0, 1.0)[..., None, None] * torch.eye(D, dtype=y.dtype, device=y.device)
    mask, factor = inside.unsqueeze(-1), scaling[..., 1:]
    information = information + torch.where(mask, h * factor + shift, 0.0)
    return GaussianChain(diagonal + J * factor.unsqueeze(-1) + padding, -averaged(Lambda_A), information)


def encoded_chain(kind: str, outputs: Tensor, inside: Tensor, num_states: int) -> GaussianChain:
    """Return the chain parameterised by the network alone, ``markov`` or ``mean-field``."""
    D = num_states
    g, scale = outputs[..., :D], torch.nn.functional.softplus(outputs[..., D : 2 * D]) + 1e-3
    mask = inside.unsqueeze(-1)
    g, precision = torch.where(mask, g, 0.0), torch.where(mask, scale, 1.0).pow(-2)
    diagonal, information = torch.diag_embed(precision), precision * g
    lower = torch.zeros_like(diagonal[:, 1:])
    if kind == "markov":
        F = torch.where(mask[:, 1:, None], outputs[:, 1:, 2 * D :].unflatten(-1, (D, D)), 0.0)
        weighted = precision[:, 1:, :, None] * F
        lower = -weighted
        diagonal = diagonal + _at_earlier_step(F.mT @ weighted)
        information = information - _at_earlier_step((weighted.mT @ g[:, 1:, :, None]).squeeze(-1))
    return GaussianChain(diagonal, lower, information)


def _neighbours(h: Tensor, dilation: int) -> Tensor:
    """Concatenate each step's neighbours at multiples of ``dilation``, for a convolution as a matrix product."""
    reach, num_steps = dilation * (KERNEL // 2), h.shape[-2]
    padded = nn.functional.pad(h, (0, 0, reach, reach))
    return torch.cat([padded[..., shift * dilation : shift * dilation + num_steps, :] for shift in range(KERNEL)], -1)


def _emission_potentials(soft: Tensor, y: Tensor, emission: Emission) -> tuple[Tensor, Tensor]:
    """Return the natural parameters of each state's emission likelihood, averaged under soft regimes."""
    C, d, r = emission.each()
    K, E, D = C.shape
    observed = (~y.isnan()).to(y.dtype)
    precision = r.pow(-2)
    weights = (soft if K > 1 else soft.new_ones(*soft.shape[:-1], 1)).unsqueeze(-1) * observed.unsqueeze(-2) * precision
    squares = (C.unsqueeze(-1) * C.unsqueeze(-2)).reshape(K * E, D * D)
    J = (weights.flatten(-2) @ squares).unflatten(-1, (D, D))
    h = (weights * (torch.nan_to_num(y).unsqueeze(-2) - d)).flatten(-2) @ C.reshape(K * E, D)
    return J, h


def _at_later_step(terms: Tensor) -> Tensor:
    """Align terms of transitions with their later step: zero at the first step."""
    return torch.nn.functional.pad(terms, (0, 0) * (terms.ndim - 2) + (1, 0))


def _at_earlier_step(terms: Tensor) -> Tensor:
    """Align terms of transitions with their earlier step: zero at the last step."""
    return torch.nn.functional.pad(terms, (0, 0) * (terms.ndim - 2) + (0, 1))


def _at_first_step(value: Tensor, y: Tensor) -> Tensor:
    """Place a value at the first step of each series, zeros elsewhere."""
    return torch.nn.functional.pad(value.expand(len(y), 1, *value.shape), (0, 0) * value.ndim + (0, y.shape[1] - 1))
