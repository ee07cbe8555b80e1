"""Claims about linear latent-variable stories, and about independent pixels."""

from __future__ import annotations

import functools
import math
from functools import partial
from typing import Any

import torch
from scipy.linalg import subspace_angles
from torch import Tensor

from pplgen.exact.ppca import FactorParameters, em_factor_analysis, factor_posterior, ppca
from pplgen.fitting.fit import fit
from pplgen.fitting.result import Fit
from pplgen.models import PPCA, VAE, Autoencoder, FactorAnalysis
from pplgen.story.latent import LatentStory
from pplgen.story.pair import Pair
from pplgen.verification.claim import Claim, Estimate
from pplgen.verification.data_sources import Sources

__all__ = ["CLAIMS"]

PPCA_WINE, FACTORS_WINE = -2875.63626, -2747.19105
KINDS: dict[str, type[LatentStory]] = {"ppca": PPCA, "factor-analysis": FactorAnalysis}


def _closed_form(sources: Sources) -> float:
    return float(ppca(sources.wine(), 2)[1])


def _by_em(sources: Sources) -> float:
    return float(em_factor_analysis(sources.wine(), 2).log_likelihoods[-1])


def _scikit_learns_factors(sources: Sources) -> float:
    """Maximum log-likelihood by EM minus scikit-learn's."""
    x = sources.wine()
    from sklearn.decomposition import FactorAnalysis as Theirs

    theirs = Theirs(2, tol=1e-8, max_iter=10_000).fit(x.numpy())
    return _by_em(sources) - len(x) * float(theirs.score(x.numpy()))


@functools.cache
def _on_wine(kind: str, sources: Sources) -> Fit:
    story = Autoencoder(13, 2, hidden=()) if kind == "autoencoder" else KINDS[kind](13, 2)
    return fit(story, sources.wine(), compile="graph", progress=False)


def _own_story(found: Fit) -> Any:
    """Return the trained story, untyped, as its networks are not part of the contract."""
    return found.story


def _elbo(kind: str, sources: Sources) -> float:
    return _on_wine(kind, sources).elbo


def _linear_vae(sources: Sources) -> Estimate:
    story = VAE(13, 2, hidden=(), likelihood="normal", noise="shared")
    found = fit(story, sources.wine(), compile="graph", progress=False)
    return Estimate(found.elbo, found.best.elbo_error)


def _angle(loadings: Tensor, sources: Sources) -> float:
    """Largest principal angle between the loadings and scikit-learn's first two axes, in degrees."""
    from sklearn.decomposition import PCA

    axes = PCA(2).fit(sources.wine().numpy()).components_.T
    return math.degrees(subspace_angles(loadings.detach().numpy(), axes).max())


def _axes_of_ppca(sources: Sources) -> float:
    return _angle(_own_story(_on_wine("ppca", sources)).constants["W"], sources)


def _axes_of_autoencoder(sources: Sources) -> float:
    return _angle(_own_story(_on_wine("autoencoder", sources)).decoder.body[0].weight, sources)


def _squared_error(sources: Sources) -> float:
    """Mean squared reconstruction error of the autoencoder minus that of the discarded eigenvalues."""
    x, found = sources.wine(), _on_wine("autoencoder", sources)
    story = _own_story(found)
    with found.pair.isolated(), torch.no_grad():
        error = (story.decode(story.encode(x).mean).mean - x).square().mean()
    return float(error) - float(torch.linalg.eigvalsh(x.T @ x / len(x))[:-2].sum()) / x.shape[1]


def _with_missing(kind: str, sources: Sources) -> float:
    """Draw of an untrained story's ELBO, with missing entries, minus the log-likelihood by conditional normals."""
    x = torch.randn(60, 3).double() @ torch.randn(3, 8).double()
    x[::3, 0] = x[::2, 3:5] = x[-2, 1:] = math.nan
    story = KINDS[kind](8, 2).double()
    story.observe_missing(x)
    story.initialise(x)
    W, mu, sigma = story.constants.values()
    exact = factor_posterior(x, FactorParameters(W, mu, sigma.square())).log_likelihoods.sum()
    pair = Pair.of_story(story, x, initialise=False)
    with pair.isolated():
        return -float(pair.elbo().loss(pair.model, pair.guide, x)) - float(exact)


def _pixels(sources: Sources) -> float:
    """Log-likelihood per test image, each pixel an independent Bernoulli fitted to the training images."""
    p = sources.pixels("train").mean(0).clamp(1e-6, 1 - 1e-6)
    x = sources.pixels("test")
    return float((x @ p.log() + (1 - x) @ (-p).log1p()).mean())


STANDARD = "standardised wines, two latent dimensions"
CLAIMS = (
    Claim(
        "wine-ppca",
        "exact.ppca",
        f"maximum log-likelihood of pPCA, {STANDARD} (nats)",
        PPCA_WINE,
        1e-4,
        "published to five decimals",
        "a reference value, by the closed form of Tipping and Bishop (1999)",
        _closed_form,
    ),
    Claim(
        "wine-factors",
        "exact.ppca",
        f"maximum log-likelihood of factor analysis, {STANDARD} (nats)",
        FACTORS_WINE,
        1e-4,
        "published to five decimals; EM stops within a hundred steps of 1e-9 nats per row",
        "a reference value, by maximum likelihood (Rubin and Thayer 1982)",
        _by_em,
    ),
    Claim(
        "wine-factors-scikit-learn",
        "exact.ppca",
        "maximum log-likelihood of factor analysis by EM, minus scikit-learn's (nats)",
        0.0,
        1e-4,
        "convergence tolerance of EM",
        "sklearn.decomposition.FactorAnalysis",
        _scikit_learns_factors,
    ),
    *(
        Claim(
            f"gaps-{kind}",
            kind,
            "a draw of the ELBO of sixty rows with missing entries, minus their log-likelihood (nats)",
            0.0,
            1e-8,
            "float64 rounding: the guide is the posterior",
            "conditional normals",
            partial(_with_missing, kind),
        )
        for kind in KINDS
    ),
    *(
        Claim(
            f"wine-{kind}-fit",
            kind,
            f"ELBO of the fit to {STANDARD} (nats)",
            maximum,
            1e-3,
            "remaining gain at the plateau",
            "the maximum of the likelihood",
            partial(_elbo, kind),
            slow=True,
        )
        for kind, maximum in (("ppca", PPCA_WINE), ("factor-analysis", FACTORS_WINE))
    ),
    Claim(
        "wine-ppca-axes",
        "ppca",
        "largest angle between the fit's loadings and the principal axes (degrees)",
        0.0,
        0.1,
        "angle equivalent to a thousandth of a nat of the ELBO",
        "sklearn.decomposition.PCA",
        _axes_of_ppca,
        slow=True,
    ),
    Claim(
        "wine-autoencoder-axes",
        "autoencoder",
        "largest angle between a linear decoder and the principal axes (degrees)",
        0.0,
        0.1,
        "angle equivalent to a thousandth of a nat of the ELBO",
        "sklearn.decomposition.PCA",
        _axes_of_autoencoder,
        slow=True,
    ),
    Claim(
        "wine-autoencoder-error",
        "autoencoder",
        "mean squared error of linear reconstructions, minus that of the discarded eigenvalues",
        0.0,
        1e-5,
        "squared error of the axes",
        "eigenvalues of the covariance (Baldi and Hornik 1989)",
        _squared_error,
        slow=True,
    ),
    Claim(
        "wine-linear-vae",
        "vae",
        f"ELBO of a linear VAE with shared noise, {STANDARD} (nats)",
        PPCA_WINE,
        1.78,
        "gradient noise, .01 per row",
        "the maximum of pPCA (Lucas et al. 2019)",
        _linear_vae,
        slow=True,
    ),
    Claim(
        "mnist-independent-pixels",
        "static binarised MNIST",
        "log-likelihood of a test image, all pixels independent (nats)",
        -205.793,
        1e-2,
        "published to three decimals; pixel probabilities are clamped to at least 1e-6",
        "a reference value, by maximum likelihood",
        _pixels,
    ),
)
