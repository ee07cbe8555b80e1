"""Claims about series with Markov regimes, marginalised exactly."""

from __future__ import annotations

import functools
from functools import partial

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Categorical, MultivariateNormal, Normal, Poisson, biject_to

from pplgen.exact.hmm import forward_backward, log_normaliser
from pplgen.fitting.fit import fit
from pplgen.models import GaussianHMM, MarkovSwitchingAR
from pplgen.posterior.datatree import group_of
from pplgen.story.dynamics import MarkovChain
from pplgen.verification.claim import Claim
from pplgen.verification.data_sources import Sources, needs
from pplgen.verification.densities import density, from_prior, over_all_paths
from pplgen.verification.known_hierarchies import HMM_EXAMPLE, POSTERIORDB

__all__ = ["CLAIMS"]

KINDS = ("diag", "full", "poisson", "categorical")


def _emissions(kind: str, theta: dict[str, Tensor], y: Tensor) -> Tensor:
    """Emission log densities of one series by torch's distributions, shape ``(T, K)``."""
    steps = y[:, None]
    if kind == "diag":
        return Normal(theta["mu"], theta["sigma"]).log_prob(steps).sum(-1)
    if kind == "full":
        return MultivariateNormal(theta["mu"], theta["Sigma"]).log_prob(steps)
    if kind == "poisson":
        return Poisson(theta["rate"]).log_prob(steps).sum(-1)
    return Categorical(theta["probability"]).log_prob(steps).sum(-1)


def _all_paths_of_hmm(kind: str, sources: Sources) -> float:
    story = GaussianHMM(2, 2, emission=kind, num_categories=3 if kind == "categorical" else None).double()
    y, theta = story.simulate(1, 8).double(), from_prior(story)
    exact = over_all_paths(_emissions(kind, theta, y[0]), MarkovChain(theta["pi"].log(), theta["P"].log()))
    return float(density(story, theta, y) - exact)


def _recursions(sources: Sources) -> float:
    """Log normaliser of random potentials minus the sum over paths, larger of sequential and parallel recursion."""
    log_emission, log_initial, log_transition = (torch.randn(*size).double() for size in ((6, 3), (3,), (3, 3)))
    chain = MarkovChain(log_initial, log_transition)
    exact = over_all_paths(log_emission, chain)
    found = forward_backward(log_emission, chain).log_normaliser, log_normaliser(log_emission, chain)
    return max(abs(float(each - exact)) for each in found)


def _all_paths_of_autoregression(sources: Sources) -> float:
    """Log density of six steps under Hamilton's model, two lags, minus the sum over all 64 paths."""
    story = MarkovSwitchingAR(2, 2).double()
    theta, y = from_prior(story), torch.randn(6, dtype=torch.float64)
    P, mu = theta["P"], theta["mu"]
    stationary = torch.stack([P[1, 0], P[0, 1]]) / (P[1, 0] + P[0, 1])
    weights = []
    for path in torch.cartesian_prod(*[torch.arange(2)] * 6):
        residual = y - mu[path]
        mean = mu[path[2:]] + theta["phi"][0] * residual[1:-1] + theta["phi"][1] * residual[:-2]
        transitions = P.log()[path[:-1], path[1:]].sum()
        emissions = Normal(mean, theta["sigma"]).log_prob(y[2:]).sum()
        weights.append(stationary.log()[path[0]] + transitions + emissions)
    return float(density(story, theta, y[None, :, None]) - torch.stack(weights).logsumexp(0))


def _statsmodels_autoregression(sources: Sources) -> float:
    """Log density of sixty steps under Hamilton's model with four lags, minus statsmodels'."""
    needs("statsmodels", "data")
    from statsmodels.tsa.regime_switching.markov_autoregression import MarkovAutoregression

    story = MarkovSwitchingAR(2, 4).double()
    theta, y = from_prior(story), 0.3 * torch.randn(60, dtype=torch.float64).cumsum(0)
    theta["phi"] = 0.3 * torch.randn(4, dtype=torch.float64)
    theirs = MarkovAutoregression(y.numpy(), k_regimes=2, order=4, switching_ar=False)
    values = [theta["P"][:, 0], theta["mu"], theta["sigma"].square().reshape(1), theta["phi"]]
    return float(density(story, theta, y[None, :, None])) - float(theirs.loglike(torch.cat(values).numpy()))


@functools.cache
def _hamilton(sources: Sources) -> tuple[float, Tensor]:
    """Maximum log-likelihood of Hamilton's model, and smoothed recession probabilities at the maximum."""
    y = sources.growth()[None]
    story = MarkovSwitchingAR(2, 4).double()
    story.initialise(y)
    supports = {name: biject_to(support) for name, support in story.theta.supports.items()}
    start = {name: value.detach() for name, value in story.theta.guide_mean().items()}
    u = {name: supports[name].inv(value).clone().requires_grad_() for name, value in start.items()}
    optimiser = torch.optim.LBFGS(list(u.values()), max_iter=200, line_search_fn="strong_wolfe", tolerance_change=1e-12)

    def values() -> dict[str, Tensor]:
        return {name: supports[name](value) for name, value in u.items()}

    def loss() -> Tensor:
        optimiser.zero_grad()
        total = -density(story, values(), y).sum()
        total.backward()
        return total

    optimiser.step(loss)
    with torch.no_grad():
        chain, log_emission, regimes = poutine.condition(story.state_space, data=values())(y)
        smoothed = forward_backward(log_emission, chain).smoothed[0, 4:]
        return float(density(story, values(), y)), smoothed[:, regimes == values()["mu"].argmin()].sum(-1)


def _hamilton_maximum(sources: Sources) -> float:
    return _hamilton(sources)[0]


def _recessions(sources: Sources) -> float:
    """Area under the ROC curve of the smoothed recession probabilities."""
    flag, probability = sources.recessions()[4:], _hamilton(sources)[1]
    return float((probability[flag][:, None] > probability[~flag]).double().mean())


@functools.cache
def _hmm_example(sources: Sources) -> dict[str, Tensor]:
    """Posterior draws of the fit to posteriordb's series."""
    y = sources.posteriordb("hmm_example")[None, :, None]
    known = {"pi": 0.5, "sigma": 1.0}
    story = GaussianHMM(2, 1, known=known, prior_mean=[[3.0], [10.0]], prior_mean_scale=1.0)
    found = fit(story, y, restarts=2, steps=800, compile="graph", progress=False)
    posterior = group_of(found.to_datatree(4000, groups=["posterior"]), "posterior")
    P, mu = (torch.tensor(posterior[name].values[0]) for name in ("P", "mu"))
    return {"A11": P[:, 0, 0], "A21": P[:, 1, 0], "mu1": mu[:, 0, 0], "mu2": mu[:, 1, 0]}


def _hmm_mean(name: str, sources: Sources) -> float:
    return float(_hmm_example(sources)[name].mean())


SUM = "the sum over all paths, by definition"
ROUNDING = "float64 rounding of sums over all paths"

CLAIMS = (
    Claim(
        "hmm-recursions",
        "exact.hmm",
        "log normaliser of random potentials minus the sum over all paths, larger of two recursions (nats)",
        0.0,
        1e-10,
        ROUNDING,
        SUM,
        _recursions,
    ),
    *(
        Claim(
            f"hmm-{kind}",
            "gaussian-hmm",
            f"log density of eight steps with {kind} emissions, minus the sum over 256 paths (nats)",
            0.0,
            1e-9,
            ROUNDING,
            SUM,
            partial(_all_paths_of_hmm, kind),
        )
        for kind in KINDS
    ),
    *(
        Claim(
            f"hmm-example-{name.lower()}",
            "gaussian-hmm",
            f"posterior mean of {name} in posteriordb's hmm_example",
            mean,
            0.15 * sd,
            ".15 posterior standard deviations for the guide; Monte Carlo error of 4,000 draws is .016",
            POSTERIORDB,
            partial(_hmm_mean, name),
            slow=True,
        )
        for name, (mean, sd) in HMM_EXAMPLE.items()
    ),
    Claim(
        "switching-ar-paths",
        "markov-switching-ar",
        "log density of six steps with two lags, minus the sum over 64 paths (nats)",
        0.0,
        1e-9,
        ROUNDING,
        SUM,
        _all_paths_of_autoregression,
    ),
    Claim(
        "switching-ar-statsmodels",
        "markov-switching-ar",
        "log density of sixty steps with four lags, minus statsmodels' (nats)",
        0.0,
        1e-8,
        "float64 rounding of the recursion",
        "statsmodels' MarkovAutoregression",
        _statsmodels_autoregression,
    ),
    Claim(
        "hamilton-maximum",
        "markov-switching-ar",
        "maximum of the log-likelihood of US growth, two regimes and four lags (nats)",
        -181.26339,
        1e-4,
        "published to five decimals; the optimiser's last step gains less than 1e-9",
        "Hamilton (1989); statsmodels",
        _hamilton_maximum,
    ),
    Claim(
        "hamilton-recessions",
        "markov-switching-ar",
        "area under the ROC curve of smoothed recession probabilities at the maximum, for the NBER's dates",
        1.0,
        0.1,
        "the dates were set by judgement, and from other series too",
        "National Bureau of Economic Research",
        _recessions,
    ),
)
