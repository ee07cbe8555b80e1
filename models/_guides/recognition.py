r"""Guides of the path of a switching model's state: a network reads the series, a Gaussian chain is what it says.

``responsibilities``
    The network emits soft regimes r_t(k). The chain is the exact posterior of the model whose dynamics are the regimes'
    own, averaged under r in their natural parameters; it inherits all parameters of the model. Corrections, which start
    at nothing, close most of what is left: how far the dynamics and the observation of each step are to be trusted, as
    factors of their natural parameters, and a shift.
``markov``
    The network emits a chain x_t = F_t x_{t-1} + g_t + N(0, diag(h_t^2)) of its own.
``mean-field``
    Steps are independent, x_t ~ N(g_t, diag(h_t^2)).

References
----------
Johnson, Duvenaud, Wiltschko, Datta and Adams (2016), Composing graphical models with neural networks for structured
representations and fast inference.
"""

from __future__ import annotations

import torch
from pplgen.models._distributions.gaussian_chain import GaussianChain
from pplgen.models._distributions.switching import Dynamics
from pplgen.models._distributions.switching_emission import Emission
from pplgen.models._guides.networks import redraw
from torch import Tensor, nn

KINDS = ("responsibilities", "markov", "mean-field")
DILATIONS = (1, 2, 4, 8)
KERNEL = 5
MOST_TRUST = 2.0
"""Logarithm of the largest factor by which dynamics or observations are trusted more, or less, than the model says."""
SERIES = 16
"""From which the network learns at a time before the fit."""


class Encoder(nn.Module):
    """A residual stack of dilated convolutions over time.

    Parameters
    ----------
    num_features
        Entries of a step; the network is told which are missing.
    num_outputs
        Numbers that it emits at each step.
    width
        Channels.
    """

    def __init__(self, num_features: int, num_outputs: int, width: int = 32) -> None:
        super().__init__()
        self.read = nn.Linear(2 * num_features, width)
        self.mix = nn.ModuleList(nn.Linear(KERNEL * width, width) for _ in DILATIONS)
        self.emit = nn.Linear(width, num_outputs)

    def forward(self, z: Tensor, inside: Tensor) -> Tensor:
        """Read series on a common scale, NaN where missing, shape ``(num_series, T, E)``; ends are like edges."""
        here = inside.unsqueeze(-1).to(z.dtype)
        h = self.read(torch.cat([z.nan_to_num(), (~z.isnan()).to(z.dtype)], -1))
        for layer, dilation in zip(self.mix, DILATIONS, strict=True):
            h = h + layer(_neighbours(nn.functional.gelu(h) * here, dilation))
        outputs: Tensor = self.emit(nn.functional.gelu(h))
        return outputs


class Recognition(nn.Module):
    """The network and what is made of its outputs.

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
        own = 2 * num_states + (num_states**2 if kind == "markov" else 0)
        self.encoder = Encoder(num_features, num_regimes + 2 + num_states if kind == KINDS[0] else own)
        self._begin_corrections()

    def _begin_corrections(self) -> None:
        """Let corrections start at nothing."""
        if self.kind == KINDS[0]:
            for part in (self.encoder.emit.weight, self.encoder.emit.bias):
                torch.nn.init.zeros_(part[self.num_regimes :])

    def forward(self, z: Tensor, y: Tensor, inside: Tensor, dynamics: Dynamics, emission: Emission) -> GaussianChain:
        """Return the distribution of paths of series y, of which z is the standardised form."""
        outputs = self.encoder(z, inside)
        if self.kind == KINDS[0]:
            return responsibilities_chain(outputs, y, inside, dynamics, emission)
        return own_chain(self.kind, outputs, inside, self.num_states)

    def learn(self, z: Tensor, inside: Tensor, regimes: Tensor, steps: int = 60) -> None:
        """Let a network of new weights emit given probabilities of regimes, ``(num_series, T, K)``, by cross-entropy.

        From random soft regimes, which all regimes share alike, the bound alone may never tell them apart.
        """
        redraw(self.encoder)
        self._begin_corrections()
        if self.kind != KINDS[0]:
            return
        optimiser = torch.optim.Adam(self.parameters(), lr=0.01)
        with torch.enable_grad():
            for _ in range(steps):
                chosen = torch.randint(len(z), (min(len(z), SERIES),), device=z.device)
                outputs = self.encoder(z[chosen], inside[chosen])
                logits = outputs[..., : self.num_regimes].log_softmax(-1)
                loss = -(regimes[chosen] * logits).sum(-1)[inside[chosen]].mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()


def responsibilities_chain(
    outputs: Tensor, y: Tensor, inside: Tensor, dynamics: Dynamics, emission: Emission
) -> GaussianChain:
    """Return the posterior of the averaged dynamics given y.

    Parameters
    ----------
    outputs
        Logits of the soft regimes, logarithms of the trust in dynamics and observations, and a shift, shape
        ``(num_series, T, K + 2 + D)``.
    y
        Series, NaN where missing, shape ``(num_series, T, E)``.
    inside
        Steps that belong to the series, shape ``(num_series, T)``.
    dynamics, emission
        Of the model.
    """
    _, _, m0, L0, A, b, L, _ = dynamics
    K, D, _ = A.shape
    soft = outputs[..., :K].softmax(-1)
    trust, shift = (MOST_TRUST * outputs[..., K : K + 2].tanh()).exp(), outputs[..., K + 2 :]
    Lambda = torch.cholesky_inverse(L)
    moves = torch.where(inside.unsqueeze(-1), soft * trust[..., :1], 0.0)[:, 1:]

    def averaged(per_regime: Tensor) -> Tensor:
        return (moves @ per_regime.reshape(K, -1)).unflatten(-1, per_regime.shape[1:])

    onto, pushed = Lambda @ A, (Lambda @ b.unsqueeze(-1)).squeeze(-1)
    back = (A.mT @ pushed.unsqueeze(-1)).squeeze(-1)
    J0 = torch.cholesky_inverse(L0)
    diagonal = _after(averaged(Lambda)) + _before(averaged(A.mT @ onto)) + _at_first(J0, y)
    information = _after(averaged(pushed)) - _before(averaged(back)) + _at_first(J0 @ m0, y)
    J, h = _evidence(soft, y, emission)
    idle = torch.where(inside, 0.0, 1.0)[..., None, None] * torch.eye(D, dtype=y.dtype, device=y.device)
    here, seen = inside.unsqueeze(-1), trust[..., 1:]
    information = information + torch.where(here, h * seen + shift, 0.0)
    return GaussianChain(diagonal + J * seen.unsqueeze(-1) + idle, -averaged(onto), information)


def own_chain(kind: str, outputs: Tensor, inside: Tensor, num_states: int) -> GaussianChain:
    """Return the chain that the network emits by itself, ``markov`` or ``mean-field``."""
    D = num_states
    g, scale = outputs[..., :D], torch.nn.functional.softplus(outputs[..., D : 2 * D]) + 1e-3
    here = inside.unsqueeze(-1)
    g, precision = torch.where(here, g, 0.0), torch.where(here, scale, 1.0).pow(-2)
    diagonal, information = torch.diag_embed(precision), precision * g
    lower = torch.zeros_like(diagonal[:, 1:])
    if kind == "markov":
        F = torch.where(here[:, 1:, None], outputs[:, 1:, 2 * D :].unflatten(-1, (D, D)), 0.0)
        weighted = precision[:, 1:, :, None] * F
        lower = -weighted
        diagonal = diagonal + _before(F.mT @ weighted)
        information = information - _before((weighted.mT @ g[:, 1:, :, None]).squeeze(-1))
    return GaussianChain(diagonal, lower, information)


def _neighbours(h: Tensor, dilation: int) -> Tensor:
    """Lay each step's neighbours at multiples of ``dilation`` beside it: a convolution is a product with these."""
    reach, num_steps = dilation * (KERNEL // 2), h.shape[-2]
    padded = nn.functional.pad(h, (0, 0, reach, reach))
    return torch.cat([padded[..., shift * dilation : shift * dilation + num_steps, :] for shift in range(KERNEL)], -1)


def _evidence(soft: Tensor, y: Tensor, emission: Emission) -> tuple[Tensor, Tensor]:
    """Sum up what each observation says of its state, in natural parameters, averaged under soft regimes."""
    C, d, r = emission
    K, E, D = C.shape
    seen = (~y.isnan()).to(y.dtype)
    precision = r.pow(-2)
    weights = (soft if K > 1 else soft.new_ones(*soft.shape[:-1], 1)).unsqueeze(-1) * seen.unsqueeze(-2) * precision
    squares = (C.unsqueeze(-1) * C.unsqueeze(-2)).reshape(K * E, D * D)
    J = (weights.flatten(-2) @ squares).unflatten(-1, (D, D))
    h = (weights * (torch.nan_to_num(y).unsqueeze(-2) - d)).flatten(-2) @ C.reshape(K * E, D)
    return J, h


def _after(moves: Tensor) -> Tensor:
    """Lay what moves say of the later of their two steps along time: nothing at the first step."""
    return torch.nn.functional.pad(moves, (0, 0) * (moves.ndim - 2) + (1, 0))


def _before(moves: Tensor) -> Tensor:
    """Lay what moves say of the earlier of their two steps along time: nothing at the last step."""
    return torch.nn.functional.pad(moves, (0, 0) * (moves.ndim - 2) + (0, 1))


def _at_first(value: Tensor, y: Tensor) -> Tensor:
    """Lay a value at the first step of each series, zeros elsewhere."""
    return torch.nn.functional.pad(value.expand(len(y), 1, *value.shape), (0, 0) * value.ndim + (0, y.shape[1] - 1))
