"""Claims about linear Gaussian state space models."""

from __future__ import annotations

import functools
import math
from functools import partial
from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from pplgen.exact.kalman import kalman_filter
from pplgen.exact.kalman_scan import diffuse_log_likelihood
from pplgen.fitting.fit import fit
from pplgen.models import LinearGaussianSSM
from pplgen.posterior.datatree import group_of
from pplgen.story.dynamics import LinearGaussian
from pplgen.verification.claim import Claim
from pplgen.verification.data_sources import Sources, needs
from pplgen.verification.densities import density, from_prior

__all__ = ["CLAIMS"]

LEVEL, NOISE = 1469.1, 15099.0
"""Maximum likelihood variances of the Nile's level and of its observation noise."""
INITIAL = {"m0": 1000.0, "s0": 1000.0}


def _diffuse(sources: Sources) -> float:
    y = sources.nile()
    one = torch.ones(1, 1, dtype=y.dtype)
    level = LinearGaussian(0 * one[0], one, one, 0 * one[0], LEVEL * one, one, 0 * one[0], NOISE * one)
    return float(diffuse_log_likelihood(y, level))


def _wide_start(sources: Sources) -> float:
    known = {**INITIAL, "q": math.sqrt(LEVEL), "r": math.sqrt(NOISE)}
    return float(density(LinearGaussianSSM.local_level(known=known).double(), {}, sources.nile()[None]))


def _joint(p: LinearGaussian, num_steps: int) -> MultivariateNormal:
    """Return the joint normal of all observations of a series, by definition."""
    mean, rows = [p.m0], [[p.S0]]
    for _ in range(1, num_steps):
        mean.append(p.A @ mean[-1] + p.b)
        row = [p.A @ block for block in rows[-1]]
        rows.append([*row, row[-1] @ p.A.T + p.Q])
    blocks = [[rows[max(t, s)][min(t, s)] for s in range(num_steps)] for t in range(num_steps)]
    states = torch.cat([torch.cat([b if t >= s else b.T for s, b in enumerate(r)], 1) for t, r in enumerate(blocks)])
    loading = torch.block_diag(*[p.C] * num_steps)
    noise = torch.block_diag(*[p.R] * num_steps)
    return MultivariateNormal(loading @ torch.cat(mean) + p.d.repeat(num_steps), loading @ states @ loading.T + noise)


def _dense(sources: Sources) -> float:
    """Log density of nine steps with missing entries, the story's minus the joint normal's."""
    story = LinearGaussianSSM(3, 2).double()
    y = story.simulate(1, 9).double()
    y[0, 0, 0] = y[0, 3] = torch.nan
    theta = from_prior(story)
    with poutine.condition(data=theta):
        joint = _joint(story.state_space(y), 9)
    observed = ~y.flatten().isnan()
    marginal = MultivariateNormal(joint.mean[observed], joint.covariance_matrix[observed][:, observed])
    return float(density(story, theta, y) - marginal.log_prob(y.flatten()[observed]))


def _trend(sources: Sources) -> float:
    """Log density of the Nile under a local linear trend, the story's minus statsmodels'."""
    y = sources.nile()
    from statsmodels.tsa.statespace.structural import UnobservedComponents

    theirs = UnobservedComponents(y[:, 0].numpy(), "local linear trend")
    theirs.ssm.initialize_known(np.array([1000.0, 0.0]), np.diag([300.0**2, 20.0**2]))
    theirs.loglikelihood_burn = 0
    known = {"m0": [1000.0, 0.0], "s0": [300.0, 20.0], "q": [40.0, 3.0], "r": 120.0}
    ours = density(LinearGaussianSSM.local_linear_trend(known=known).double(), {}, y[None])
    return float(ours) - float(theirs.loglike([120.0**2, 40.0**2, 3.0**2]))


@functools.cache
def _level_posterior(sources: Sources) -> tuple[dict[str, Tensor], dict[str, tuple[float, float]]]:
    """Draws of log q and log r of the Nile's level, and their exact means and standard deviations on a grid."""
    y = sources.nile()
    story = LinearGaussianSSM.local_level(known=INITIAL)
    found = fit(story, y[None].float(), restarts=4, steps=400, compile="graph", progress=False)
    posterior = group_of(found.to_datatree(4000, groups=["posterior"]), "posterior")
    draws = {name: torch.tensor(posterior[name].values).log().flatten() for name in ("q", "r")}
    step = torch.linspace(-3.2, 1.6, 80, dtype=torch.float64)
    log_q, log_r = torch.meshgrid(math.log(60.0) + step, math.log(120.0) + step / 4, indexing="ij")
    one = torch.eye(1, dtype=torch.float64)
    Q, R = ((2 * each).exp().reshape(-1, 1, 1, 1) for each in (log_q, log_r))
    grid = LinearGaussian(1000.0 * one[0], 1e6 * one, one, 0 * one[0], Q, one, 0 * one[0], R)
    trained: Any = found.story
    scale = trained.scale.double().log()
    prior = Normal(scale + math.log(0.3), 1.0).log_prob(log_q) + Normal(scale + math.log(0.5), 1.0).log_prob(log_r)
    joint = kalman_filter(y[None], grid).log_likelihood.reshape(log_q.shape) + prior
    weight = joint.flatten().softmax(0).reshape(log_q.shape)
    exact = {}
    for name, value in (("q", log_q), ("r", log_r)):
        mean = (weight * value).sum()
        exact[name] = float(mean), float(((weight * (value - mean).square()).sum()).sqrt())
    return draws, exact


def _shift(name: str, sources: Sources) -> float:
    """Difference of the guide's mean from the grid's, in posterior standard deviations."""
    draws, exact = _level_posterior(sources)
    mean, sd = exact[name]
    return (float(draws[name].mean()) - mean) / sd


def _sd_ratio(name: str, sources: Sources) -> float:
    """Ratio of the guide's standard deviation to the grid's."""
    draws, exact = _level_posterior(sources)
    return float(draws[name].std()) / exact[name][1]


def _statsmodels_filter(sources: Sources) -> float:
    """Log-likelihood of a random model with missing entries by the Kalman filter, minus statsmodels'."""
    needs("statsmodels", "data")
    from statsmodels.tsa.statespace.kalman_filter import KalmanFilter

    def covariance(size: int) -> Tensor:
        root = torch.randn(size, size, dtype=torch.float64)
        return root @ root.T / size + 0.1 * torch.eye(size, dtype=torch.float64)

    draw = functools.partial(torch.randn, dtype=torch.float64)
    p = LinearGaussian(
        draw(3), covariance(3), 0.5 * draw(3, 3), draw(3), covariance(3), draw(2, 3), draw(2), covariance(2)
    )
    y = draw(40, 2)
    y[3:5, 0] = y[10] = torch.nan
    m0, S0, A, b, Q, C, d, R = (part.numpy() for part in p)
    theirs = KalmanFilter(
        2, 3, transition=A, state_cov=Q, selection=np.eye(3), state_intercept=b[:, None], design=C, obs_cov=R
    )
    theirs["obs_intercept"] = d[:, None]
    theirs.bind(y.numpy())
    theirs.initialize_known(m0, S0)
    return float(kalman_filter(y, p).log_likelihood) - float(theirs.loglike())


ROUNDING = "float64 rounding of some dozens of solves"
STORY = "linear-gaussian-ssm"

CLAIMS = (
    Claim(
        "nile-diffuse",
        "exact.kalman_scan",
        "log-likelihood of the Nile's level with exact diffuse initialisation (nats)",
        -633.46456,
        1e-4,
        "published to five decimals",
        "a reference value, at the variances of Durbin and Koopman (2012), section 2.10",
        _diffuse,
    ),
    Claim(
        "nile-wide-start",
        STORY,
        "log-likelihood of the Nile's level, initial state N(1000, 10^6) (nats)",
        -640.38054,
        1e-4,
        "published to five decimals",
        "a reference value, at the variances of Durbin and Koopman (2012), section 2.10",
        _wide_start,
    ),
    Claim(
        "ssm-joint",
        STORY,
        "log density of a random model's series with missing entries, minus the joint normal's (nats)",
        0.0,
        1e-8,
        ROUNDING,
        "the joint normal of nine steps, by definition",
        _dense,
    ),
    Claim(
        "kalman-statsmodels",
        "exact.kalman",
        "log-likelihood of a random model's series with missing entries, minus statsmodels' (nats)",
        0.0,
        1e-8,
        ROUNDING,
        "statsmodels.tsa.statespace.KalmanFilter",
        _statsmodels_filter,
    ),
    Claim(
        "trend-statsmodels",
        STORY,
        "log density of the Nile under a local linear trend, minus statsmodels' (nats)",
        0.0,
        1e-8,
        ROUNDING,
        "statsmodels' UnobservedComponents",
        _trend,
    ),
    *(
        Claim(
            f"nile-{name}-mean",
            STORY,
            f"posterior mean of log {name} of the Nile's level, guide minus grid (posterior sd)",
            0.0,
            0.1,
            "Monte Carlo error of 4,000 draws is .016; the rest is the normal guide's",
            "a grid over both standard deviations",
            partial(_shift, name),
            slow=True,
        )
        for name in ("q", "r")
    ),
    *(
        Claim(
            f"nile-{name}-deviation",
            STORY,
            f"posterior sd of log {name} of the Nile's level, ratio of guide to grid",
            1.0,
            0.1,
            "Monte Carlo error of 4,000 draws is .011; the rest is the normal guide's",
            "a grid over both standard deviations",
            partial(_sd_ratio, name),
            slow=True,
        )
        for name in ("q", "r")
    ),
)
