"""Stories of the collection with data that they describe, at their defaults but for sizes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pplgen.models import (
    PPCA,
    VAE,
    Autoencoder,
    DirichletProcessMixture,
    FactorAnalysis,
    GaussianHMM,
    GaussianMixture,
    LinearGaussianSSM,
    MarkovSwitchingAR,
    MixedMixture,
    MixtureVAE,
    SemiSupervisedVAE,
    SwitchingLDS,
)
from torch import Tensor

from mutants.pair_under_test import Subject
from pplgen.story.base import Story

__all__ = ["QUICK_STORIES", "STORIES"]


def _clusters(number: int = 150) -> tuple[Tensor, Tensor]:
    """Rows of two normal clusters, and which of them each is from."""
    z = (torch.rand(number) < 0.4).long()
    means, scale = torch.tensor([[0.0, 0.0], [4.0, 3.0]]), torch.tensor([[1.0, 0.0], [0.4, 0.8]])
    return means[z] + torch.randn(number, 2) @ scale.T, z


def _regimes(length: int = 150) -> Tensor:
    """Path of two regimes that each last twenty steps on average."""
    path = [0]
    for _ in range(length - 1):
        path.append(1 - path[-1] if float(torch.rand(())) < 0.05 else path[-1])
    return torch.tensor(path)


def _factors(noise: Tensor, number: int = 150) -> Tensor:
    """Rows of five columns with two factors."""
    loadings = torch.tensor([[1.5, 0.0], [1.2, 0.5], [0.8, -0.8], [0.0, 1.2], [-0.5, 1.0]])
    return torch.randn(number, 2) @ loadings.T + noise * torch.randn(number, 5)


def _story(name: str, make: Callable[[], Story], x: Tensor, *describes: str, kind: str = "real") -> Subject:
    return Subject(name, make(), (x,), kind, ordered=x.ndim == 3, describes=frozenset(describes))


def mixture() -> Subject:
    """Two clusters."""
    return _story("GaussianMixture", lambda: GaussianMixture(2, 2), _clusters()[0], "shape")


def mixed_mixture() -> Subject:
    """Binary columns of two classes."""
    z = (torch.rand(200) < 0.4).long()
    p = torch.tensor([[0.1, 0.2, 0.8, 0.9, 0.3], [0.8, 0.9, 0.2, 0.2, 0.7]])
    return _story("MixedMixture", lambda: MixedMixture(2, 5, columns="binary"), torch.bernoulli(p[z]), kind="binary")


def dirichlet_process() -> Subject:
    """Two clusters, for an unknown number."""
    return _story("DirichletProcessMixture", lambda: DirichletProcessMixture(5, 2), _clusters()[0], "shape")


def hidden_markov() -> Subject:
    """Two regimes with different means."""
    z = _regimes()
    y = torch.tensor([0.0, 3.0])[z] + torch.randn(150)
    return _story("GaussianHMM", lambda: GaussianHMM(2, 1), y[None, :, None], "shape")


def switching_autoregression() -> Subject:
    """Two regimes with different means, and autocorrelated errors."""
    z, error = _regimes(), [torch.zeros(())]
    for _ in range(149):
        error.append(0.5 * error[-1] + 0.7 * torch.randn(()))
    y = torch.tensor([0.0, 4.0])[z] + torch.stack(error)
    return _story("MarkovSwitchingAR", lambda: MarkovSwitchingAR(2, 1), y[None, :, None], "shape", "order")


def local_level() -> Subject:
    """Random walk with noise."""
    y = torch.randn(1, 100, 1).cumsum(1) + 1.5 * torch.randn(1, 100, 1)
    return _story("LinearGaussianSSM", LinearGaussianSSM.local_level, y, "order")


def switching_system() -> Subject:
    """Two linear systems of two states, rotations of different speeds."""
    z, x, steps = _regimes(60), torch.randn(2), []
    turns = [0.97 * torch.tensor([[c, -s], [s, c]]) for c, s in ((0.99, 0.14), (0.7, 0.71))]
    for regime in z.tolist():
        x = turns[regime] @ x + 0.3 * torch.randn(2)
        steps.append(x + 0.2 * torch.randn(2))
    return _story("SwitchingLDS", lambda: SwitchingLDS(2, 2, 2), torch.stack(steps)[None], "shape", "order", "season")


def principal_components() -> Subject:
    """Two components and equal noise."""
    return _story("PPCA", lambda: PPCA(5, 2), _factors(torch.full((5,), 0.5)))


def factors() -> Subject:
    """Two factors and different noise."""
    return _story("FactorAnalysis", lambda: FactorAnalysis(5, 2), _factors(torch.tensor([0.3, 0.5, 0.7, 0.4, 0.6])))


def _curve(number: int = 300) -> Tensor:
    """Rows near a curve in three dimensions."""
    z = torch.randn(number)
    return torch.stack([2 * z, z.square() - 1, torch.sin(2 * z)], 1) + 0.3 * torch.randn(number, 3)


def autoencoding() -> Subject:
    """Rows near a curve."""
    return _story("VAE", lambda: VAE(3, 1, hidden=(16,), likelihood="normal"), _curve(), "shape")


def clustered_autoencoding() -> Subject:
    """Rows of two clusters on a line."""
    x, _ = _clusters(300)
    make = lambda: MixtureVAE(2, 1, num_components=2, hidden=(16,), likelihood="normal")  # noqa: E731
    return _story("MixtureVAE", make, x, "shape")


def half_labelled() -> Subject:
    """Rows of two classes, none of them labelled."""
    x, _ = _clusters(300)
    make = lambda: SemiSupervisedVAE(2, 1, num_classes=2, hidden=(16,), likelihood="normal")  # noqa: E731
    return _story("SemiSupervisedVAE", make, x, "shape")


def point_autoencoding() -> Subject:
    """Rows near a line, codes without a posterior."""
    x = torch.randn(300, 1) * torch.tensor([2.0, -1.0, 0.5]) + 0.3 * torch.randn(300, 3)
    return _story("Autoencoder", lambda: Autoencoder(3, 1, hidden=(16,)), x)


STORIES: tuple[Callable[[], Subject], ...] = (
    mixture,
    mixed_mixture,
    dirichlet_process,
    hidden_markov,
    switching_autoregression,
    local_level,
    switching_system,
    principal_components,
    factors,
    autoencoding,
    clustered_autoencoding,
    half_labelled,
    point_autoencoding,
)
"""All stories; each makes one with a data set. Seed torch first."""
QUICK_STORIES = (mixture, mixed_mixture, hidden_markov, switching_autoregression, local_level, factors, autoencoding)
"""Those of which many fits are affordable."""
