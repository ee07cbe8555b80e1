"""Claims about checks, NUTS, leave-one-out and calibration."""

from __future__ import annotations

import functools
import math
from functools import partial

import arviz_stats
import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import Tensor

from pplgen.calibration.calibrate import calibrate
from pplgen.calibration.result import Calibration
from pplgen.checks import importance_weights
from pplgen.checks.inputs import CheckInputs
from pplgen.checks.registry import Verdict
from pplgen.fitting.fit import fit
from pplgen.posterior.importance_sampling import weighted_draws
from pplgen.posterior.leave_one_out import leave_one_out
from pplgen.story.pair import Pair
from pplgen.verification.claim import Claim, Estimate
from pplgen.verification.data_sources import Sources
from pplgen.verification.known_hierarchies import POSTERIORDB, eight_schools

__all__ = ["CLAIMS"]

ROWS = 20


def _centred(y: Tensor, sigma: Tensor) -> None:
    mu, tau = pyro.sample("mu", dist.Normal(0.0, 5.0)), pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


@functools.cache
def _chains(sources: Sources) -> dict[str, Estimate]:
    """Posterior means of mu and tau by NUTS, with Monte Carlo standard errors."""
    found = fit(eight_schools, sources.schools(), method="nuts", steps=1000, restarts=2, progress=False)
    tree = found.to_datatree(groups=["posterior"])
    table = arviz_stats.summary(tree, var_names=["mu", "tau"], round_to="none").astype(float)
    return {name: Estimate(table.loc[name, "mean"], table.loc[name, "mcse_mean"]) for name in ("mu", "tau")}


def _school_mean(name: str, sources: Sources) -> Estimate:
    return _chains(sources)[name]


def _khat(centred: bool, sources: Sources) -> float:
    """k-hat of a mean-field fit to the eight schools."""
    model = _centred if centred else eight_schools
    found = fit(model, sources.schools(), compile="graph", progress=False)
    with found.pair.isolated(), torch.no_grad():
        return importance_weights.khat(CheckInputs(found.pair)).value


def _known_mean(width: float) -> tuple[Pair, Tensor]:
    """Return a conjugate normal mean whose guide has ``width`` times the posterior sd, and the rows."""
    x = torch.randn(ROWS, dtype=torch.float64)
    precision = 0.01 + ROWS

    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(torch.zeros((), dtype=x.dtype), 10.0))
        with pyro.plate("data", ROWS):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("mu", dist.Normal(x.sum() / precision, width * precision**-0.5))

    return Pair(model, guide, (x,)), x


def _loo_error(width: float, sources: Sources) -> float:
    """PSIS-LOO of twenty rows with a guide of the wrong width, minus the exact leave-one-out log density."""
    pair, x = _known_mean(width)
    precision = 0.01 + ROWS - 1
    exact = dist.Normal((x.sum() - x) / precision, (1 + 1 / precision) ** 0.5).log_prob(x).sum()
    with pair.isolated():
        return float(leave_one_out(weighted_draws(pair, 4000)).elpd) - float(exact)


def _gap(sources: Sources) -> float:
    """ELBO gap of a guide with 1.5 times the posterior sd."""
    pair, _ = _known_mean(1.5)
    with pair.isolated(), torch.no_grad():
        return importance_weights.elbo_gap(CheckInputs(pair)).value


def _features() -> Tensor:
    """Two features of thirty rows on an ellipse, with mean 0, variance 1 and correlation .95."""
    angle = 2 * math.pi * torch.arange(30) / 30
    x = 2**0.5 * torch.stack([angle.cos(), angle.sin()], 1)
    return torch.stack([x[:, 0], 0.95 * x[:, 0] + (1 - 0.95**2) ** 0.5 * x[:, 1]], 1)


def _regression(x: Tensor, y: Tensor) -> None:
    beta = pyro.sample("beta", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ beta, 1.0), obs=y)


@functools.cache
def _calibrated(mean_field: bool) -> Calibration:
    guide = AutoNormal(_regression) if mean_field else AutoMultivariateNormal(_regression)
    data = _features(), torch.zeros(30)
    return calibrate(_regression, data, guide, num_datasets=100, steps=1500, learning_rate=0.1, progress=False)


def _failing(mean_field: bool, sources: Sources) -> float:
    """Count the coefficients whose ranks are not uniform."""
    found = _calibrated(mean_field)
    verdicts = zip(found.quantities, found.checks(), strict=True)
    return float(sum(check.verdict is Verdict.FAIL for name, check in verdicts if name.startswith("beta")))


def _coverage(mean_field: bool, sources: Sources) -> float:
    """Fraction of data sets whose 90 % interval covers the first coefficient."""
    return float(_calibrated(mean_field).coverage[0.9]["beta[0]"])


def _expected_coverage() -> float:
    """Coverage of a 90 % interval with the standard deviation of the optimal mean-field guide."""
    precision = _features().T @ _features() + torch.eye(2)
    sd_ratio = float((precision[0, 0] * torch.linalg.inv(precision)[0, 0]) ** -0.5)
    return round(math.erf(1.6448536 * sd_ratio / math.sqrt(2)), 4)  # the last digits depend on the machine


CLAIMS = (
    *(
        Claim(
            f"schools-{name}",
            "nuts",
            f"posterior mean of {name}, eight schools",
            mean,
            0.13,
            "four standard errors of the reference: 10,000 draws with sd near 3.3",
            POSTERIORDB,
            partial(_school_mean, name),
            slow=True,
        )
        for name, mean in (("mu", 4.4105), ("tau", 3.6021))
    ),
    *(
        Claim(
            f"khat-{'centred' if centred else 'non-centred'}",
            "checks",
            f"k-hat of a mean-field fit to the eight schools, {'' if centred else 'non-'}centred",
            value,
            allowed,
            "k-hat of 10,000 draws has an sd of about .1 near 1, and less below",
            "Yao et al. (2018), figure 2",
            partial(_khat, centred),
            slow=True,
        )
        for centred, value, allowed in ((True, 0.85, 0.25), (False, 0.55, 0.15))
    ),
    Claim(
        "loo-conjugate",
        "checks",
        "PSIS-LOO of twenty rows with a guide of 1.5 times the posterior sd, minus the exact value (nats)",
        0.0,
        0.1,
        "sums of twenty terms with errors of about .003 nats each, of the same sign",
        "closed form of a conjugate mean",
        partial(_loo_error, 1.5),
    ),
    Claim(
        "bound-gap",
        "checks",
        "ELBO gap of a guide with 1.5 times the posterior sd (nats)",
        (1.5**2 - 1) / 2 - math.log(1.5),
        0.018,
        "four standard errors of 40,000 draws with an sd of .88",
        "KL(N(0, 1.5), N(0, 1))",
        _gap,
    ),
    Claim(
        "calibration-exact",
        "calibration",
        "coefficients of a conjugate regression that fail with the exact posterior, of two",
        0.0,
        0.0,
        "a count",
        "simulation-based calibration (Talts et al. 2018)",
        partial(_failing, False),
        slow=True,
    ),
    Claim(
        "calibration-mean-field",
        "calibration",
        "coefficients of the same regression that fail with a mean-field guide, of two",
        2.0,
        0.0,
        "a count",
        "simulation-based calibration (Talts et al. 2018)",
        partial(_failing, True),
        slow=True,
    ),
    Claim(
        "coverage-exact",
        "calibration",
        "coverage of the first coefficient's 90 % interval with the exact posterior",
        0.9,
        0.12,
        "four standard errors of a fraction of 100 data sets",
        "nominal coverage",
        partial(_coverage, False),
        slow=True,
    ),
    Claim(
        "coverage-mean-field",
        "calibration",
        "coverage of the first coefficient's 90 % interval with a mean-field guide",
        _expected_coverage(),
        0.2,
        "four standard errors of a fraction of 100 data sets",
        "closed form: the factors have the conditional standard deviations (Turner and Sahani 2011)",
        partial(_coverage, True),
        slow=True,
    ),
)
