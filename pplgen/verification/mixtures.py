"""Claims about mixtures."""

from __future__ import annotations

import functools
import math
from functools import partial

import torch
from pyro import poutine
from torch import Tensor

from pplgen.exact.em import GaussianMixtureParameters, e_step, em, em_from_starts, m_step
from pplgen.exact.em_missing import e_step_missing, em_missing
from pplgen.fitting.fit import fit
from pplgen.fitting.result import Fit
from pplgen.models import DirichletProcessMixture, GaussianMixture, MixedMixture
from pplgen.posterior.datatree import group_of
from pplgen.verification.claim import Claim, Estimate
from pplgen.verification.data_sources import Sources, needs

__all__ = ["CLAIMS"]

FULL = {1: -1289.79675, 2: -1130.26396, 3: -1114.43987}
TIED = {2: -1140.18676, 3: -1126.31593}
FIVE_DECIMALS = "published to five decimals; EM's last steps gain less than 1e-9 nats per row"
MAXIMUM = "a reference value, by maximum likelihood"
ROUNDING = "float64 rounding of sums"


def _maximum(num_components: int, sources: Sources) -> float:
    """Maximum log-likelihood of Old Faithful by EM."""
    return float(em(sources.faithful(), num_components, num_starts=30).log_likelihoods[-1])


def _tied_maximum(num_components: int, sources: Sources) -> float:
    """Maximum log-likelihood by EM with a tied covariance, averaged over components in the M-step."""
    x = sources.faithful()

    def maximise(responsibilities: Tensor) -> GaussianMixtureParameters:
        weights, mu, Sigma = m_step(x, responsibilities)
        return GaussianMixtureParameters(weights, mu, torch.einsum("k,kde->de", weights, Sigma).expand_as(Sigma))

    def initialise() -> GaussianMixtureParameters:
        centres = x[torch.randperm(len(x))[:num_components]]
        nearest = torch.cdist(x / x.std(0), centres / x.std(0)).argmin(1)
        return maximise(torch.eye(num_components, dtype=x.dtype)[nearest])

    starts = [initialise() for _ in range(10)]
    best = em_from_starts(
        starts, lambda parameters: e_step(x, parameters), maximise, max_iterations=5000, tolerance=1e-9 * len(x)
    )
    return float(best.log_likelihoods[-1])


def _bic(sources: Sources) -> float:
    """Bayesian information criterion with mclust's sign: 11 parameters, 272 rows."""
    return 2 * _maximum(2, sources) - 11 * math.log(len(sources.faithful()))


def _posterior_mean(found: Fit) -> GaussianMixtureParameters:
    """Posterior means of weights, locations and covariances."""
    posterior = group_of(found.to_datatree(1000, groups=["posterior"]), "posterior")
    mean = {name: torch.tensor(posterior[name].mean(("chain", "draw")).values).double() for name in posterior}
    K, D = mean["mu"].shape
    return GaussianMixtureParameters(mean["weights"], mean["mu"], mean["Sigma"].expand(K, D, D))


def _at_the_posterior_mean(num_components: int, covariance: str, sources: Sources) -> float:
    story = GaussianMixture(num_components, 2, covariance=covariance)
    found = fit(story, "faithful", restarts=4, steps=3000, compile="graph", progress=False)
    return float(e_step(sources.faithful(), _posterior_mean(found))[1])


def _latent_classes(sources: Sources) -> float:
    """Log-likelihood of ten binary items in two latent classes at the posterior mean, minus EM's maximum."""
    probability = torch.tensor([[0.25], [0.75]]).expand(2, 10)
    x = torch.bernoulli(probability[torch.randint(2, (400,))]).double()

    def log_joint(weights: Tensor, p: Tensor) -> Tensor:
        return weights.log() + x @ p.log().T + (1 - x) @ (1 - p).log().T

    def expect(parameters: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        joint = log_joint(*parameters)
        return joint.softmax(1), joint.logsumexp(1).sum()

    def maximise(responsibilities: Tensor) -> tuple[Tensor, Tensor]:
        return responsibilities.mean(0), responsibilities.T @ x / responsibilities.sum(0)[:, None]

    starts = [maximise(torch.rand(400, 2).double().softmax(1)) for _ in range(10)]
    best = em_from_starts(starts, expect, maximise, max_iterations=1000, tolerance=1e-7)
    found = fit(MixedMixture(2, 10, columns="binary"), x.float(), compile="graph", progress=False)
    posterior = group_of(found.to_datatree(1000, groups=["posterior"]), "posterior")
    mean = [torch.tensor(posterior[name].values[0].mean(0)).double() for name in ("weights", "binary_probability")]
    return float(log_joint(*mean).logsumexp(1).sum() - best.log_likelihoods[-1])


def _scikit_learns(sources: Sources) -> float:
    """Log-likelihood of Old Faithful by scikit-learn at its maximum, minus that of our E-step."""
    needs("sklearn", "data")
    from sklearn.mixture import GaussianMixture as Theirs

    x = sources.faithful()
    theirs = Theirs(2, random_state=0).fit(x.numpy())
    parameters = GaussianMixtureParameters(*map(torch.tensor, (theirs.weights_, theirs.means_, theirs.covariances_)))
    return float(theirs.score_samples(x.numpy()).sum() - float(e_step(x, parameters)[1]))


@functools.cache
def _missing() -> Tensor:
    """Old Faithful without the waiting times of every third eruption."""
    x = Sources().faithful().clone()
    x[::3, 1] = torch.nan
    return x


def _factored_likelihood(sources: Sources) -> float:
    """Largest relative difference of EM's moments, with one incomplete column, from Anderson's closed form.

    The first column's moments are those of all rows; the second follows from its regression on the first in complete
    rows.
    """
    x = _missing()
    complete = x[~x[:, 1].isnan()]
    mean, variance = x[:, 0].mean(), x[:, 0].var(correction=0)
    moments = complete.T.cov(correction=0)
    slope = moments[0, 1] / moments[0, 0]
    residual = moments[1, 1] - slope * moments[0, 1]
    covariance = slope * variance
    exact = torch.stack([variance, covariance, covariance, residual + slope.square() * variance]).reshape(2, 2)
    exact_mean = torch.stack([mean, complete[:, 1].mean() + slope * (mean - complete[:, 0].mean())])
    found = em_missing(x, 1, num_starts=1, tolerance=1e-14).parameters
    differences = [(found.Sigma[0] - exact) / exact, (found.mu[0] - exact_mean) / exact_mean]
    return max(float(each.abs().max()) for each in differences)


def _with_missing(sources: Sources) -> float:
    """Log-likelihood of observed entries at the posterior mean, minus exact EM's maximum."""
    x = _missing()
    best = em_missing(x, 2, num_starts=3).log_likelihoods[-1]
    found = fit(GaussianMixture(2, 2), x.float(), compile="graph", progress=False)
    return float(e_step_missing(x, _posterior_mean(found)).log_likelihoods.sum() - best)


def _second_weight(sources: Sources) -> Estimate:
    """Prior mean of the second weight given alpha = 2."""
    conditioned = poutine.condition(DirichletProcessMixture(6, 1).model, {"alpha": torch.tensor(2.0)})
    weights = torch.stack(
        [poutine.trace(conditioned).get_trace(None).nodes["weights"]["value"][1] for _ in range(2000)]
    )
    return Estimate(float(weights.mean()), float(weights.std()) / len(weights) ** 0.5)


def _occupied(sources: Sources) -> float:
    """Median number of occupied components for three well-separated groups."""
    centres = torch.tensor([[0.0, 0.0, 0.0], [6.0, 0.0, 3.0], [0.0, 7.0, -3.0]])
    x = centres[torch.arange(3).repeat_interleave(torch.tensor([60, 90, 150]))] + torch.randn(300, 3)
    found = fit(DirichletProcessMixture(8, 3), x, compile="graph", progress=False)
    return float(group_of(found.to_datatree(400), "posterior")["num_occupied"].median())


SHRUNK = "shrinkage by the prior; Monte Carlo error of the draws is .05"

CLAIMS = (
    *(
        Claim(
            f"faithful-full-{K}",
            "exact.em",
            f"maximum of Old Faithful's log-likelihood, {K} full covariance{'s' if K > 1 else ''} (nats)",
            value,
            1e-3,
            FIVE_DECIMALS,
            MAXIMUM,
            partial(_maximum, K),
        )
        for K, value in FULL.items()
    ),
    *(
        Claim(
            f"faithful-tied-{K}",
            "exact.em",
            f"maximum of Old Faithful's log-likelihood, {K} components with a tied full covariance (nats)",
            value,
            1e-3,
            FIVE_DECIMALS,
            MAXIMUM,
            partial(_tied_maximum, K),
        )
        for K, value in TIED.items()
    ),
    Claim(
        "faithful-bic",
        "exact.em",
        "BIC of Old Faithful, two full covariances, with mclust's sign",
        -2322.192,
        1e-2,
        "published to three decimals, twice the maximum's error",
        "a reference value, by maximum likelihood",
        _bic,
    ),
    Claim(
        "faithful-scikit-learn",
        "exact.em",
        "log-likelihood at scikit-learn's maximum, scikit-learn's minus ours (nats)",
        0.0,
        1e-8,
        ROUNDING,
        "sklearn.mixture.GaussianMixture",
        _scikit_learns,
    ),
    *(
        Claim(
            f"faithful-posterior-{covariance}-{K}",
            "gaussian-mixture",
            f"log-likelihood of Old Faithful at the posterior mean, {K} component{'s' if K > 1 else ''}, "
            f"{covariance} (nats)",
            value,
            1.0 if K < 3 else 1.5,
            SHRUNK,
            MAXIMUM,
            partial(_at_the_posterior_mean, K, covariance),
            slow=True,
        )
        for covariance, values in (("full", FULL), ("tied", TIED))
        for K, value in values.items()
        # with three full covariances the best mode of the posterior has a nearly empty component
        if (covariance, K) != ("full", 3)
    ),
    Claim(
        "missing-closed-form",
        "exact.em_missing",
        "largest relative difference of EM's moments, with one incomplete column, from the closed form",
        0.0,
        1e-6,
        "EM's last step gains less than 1e-14 nats per row: moments are accurate to its square root",
        "factored likelihood (Anderson 1957)",
        _factored_likelihood,
    ),
    Claim(
        "missing-posterior",
        "gaussian-mixture",
        "log-likelihood of incomplete Old Faithful at the posterior mean, minus exact EM's maximum (nats)",
        0.0,
        1.0,
        SHRUNK,
        "exact EM (Ghahramani and Jordan 1994)",
        _with_missing,
        slow=True,
    ),
    Claim(
        "stick-breaking",
        "dirichlet-process-mixture",
        "prior mean of the second weight, alpha = 2",
        2 / 9,
        0.0,
        "Monte Carlo error of 2,000 draws only",
        "alpha^(k - 1) / (1 + alpha)^k",
        _second_weight,
    ),
    Claim(
        "known-groups",
        "dirichlet-process-mixture",
        "median number of occupied components for three well-separated groups",
        3.0,
        0.0,
        "a count",
        "the simulated number of groups",
        _occupied,
        slow=True,
    ),
    Claim(
        "latent-classes",
        "mixed-mixture",
        "log-likelihood of ten binary items in two classes at the posterior mean, minus EM's maximum (nats)",
        0.0,
        1.5,
        "21 parameters, shrunk by flat priors with a sample size of two each",
        "EM in plain torch",
        _latent_classes,
        slow=True,
    ),
)
