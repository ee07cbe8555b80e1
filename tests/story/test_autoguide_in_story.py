"""An autoguide of Pyro as part of a story's guide: for the sites that all rows share, beside what it says of rows."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

import pplgen
from pplgen.story import Story, pyro_method


class NoisyMeans(Story):
    """A latent mean for each row, with a guide of its own; the shared mean has an autoguide."""

    def __init__(self, num_features=1):
        super().__init__(num_features=num_features)
        self.dims = {"mu": (), "z": ("row",), "x": ("row", "feature")}
        self.register_buffer("zero", torch.zeros(()))
        self.shared = AutoNormal(poutine.block(self.model, expose=["mu"]))
        self.shared(None)

    @pyro_method
    def model(self, x=None, num_rows=1):
        mu = pyro.sample("mu", dist.Normal(self.zero, 10.0))
        with pyro.plate("data", num_rows if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            return pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).to_event(1), obs=x)

    @pyro_method
    def guide(self, x=None, num_rows=1):
        mu = self.shared(None)["mu"]
        if x is not None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal((mu + x[:, 0]) / 2, 0.5**0.5))


class TwoKinds(Story):
    """Rows of two kinds, summed out; the fraction of the first and the distance have an autoguide."""

    def __init__(self, num_features=1):
        super().__init__(num_features=num_features)
        self.dims = {"w": (), "d": (), "z": ("row", "kind"), "x": ("row", "feature")}
        self.register_buffer("one", torch.ones(()))
        self.shared = AutoMultivariateNormal(poutine.block(self.model, expose=["w", "d"]))
        self.shared(None)

    @pyro_method
    def model(self, x=None, num_rows=1):
        w = pyro.sample("w", dist.Beta(self.one, 1.0))
        d = pyro.sample("d", dist.Normal(3 * self.one, 1.0))
        with pyro.plate("data", num_rows if x is None else len(x)):
            z = pyro.sample("z", dist.Bernoulli(w), infer={"enumerate": "parallel"})
            return pyro.sample("x", dist.Normal((d * z).unsqueeze(-1), 1.0).to_event(1), obs=x)

    @pyro_method
    def guide(self, x=None, num_rows=1):
        self.shared(None)


@pytest.fixture(scope="module")
def rows():
    return 2 + 1.5 * torch.randn(40, 1, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("compiled", ["off", "graph"])
def test_shared_sites_beside_latents_of_rows(compiled, rows, tmp_path):
    """The guide's family holds the posterior, x_i ~ Normal(mu, sqrt 2), so the ELBO is the log evidence."""
    fit = pplgen.fit(NoisyMeans(), rows, steps=1500, compile=compiled, progress=False)
    precision = 1 / 100 + 40 / 2
    draws = fit.to_datatree(draws=4000, groups=["posterior"])["posterior"]["mu"].values
    # optimisation within .15 of the posterior sd .22; four Monte Carlo errors of a mean and a sd of 4,000 draws are .07
    assert draws.mean() == pytest.approx(rows.sum().item() / 2 / precision, abs=0.22 * precision**-0.5)
    assert draws.std() == pytest.approx(precision**-0.5, rel=0.2)
    covariance, zero = 2 * torch.eye(40, dtype=torch.float64) + 100, torch.zeros(40, dtype=torch.float64)
    evidence = torch.distributions.MultivariateNormal(zero, covariance).log_prob(rows[:, 0].double())
    # the KL divergence of a normal that is off by .15 sd in mean and width is .03
    assert fit.elbo == pytest.approx(evidence.item(), abs=0.03 + 4 * fit.best.elbo_error)
    fit.save(tmp_path / "run")
    assert pplgen.load(tmp_path / "run", rows, story=NoisyMeans).elbo == fit.elbo
    assert fit.story.simulate(5).shape == (5, 1)


def test_shared_sites_where_latents_of_rows_are_summed_out():
    """Against a grid over both parameters."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(80, 1, generator=generator) + 3.0 * (torch.rand(80, 1, generator=generator) < 0.4)
    w = torch.linspace(0.001, 0.999, 400, dtype=torch.float64)[:, None]
    d = torch.linspace(1, 5, 400, dtype=torch.float64)[None]
    normal = torch.distributions.Normal(0.0, 1.0)
    joint = normal.log_prob(d - 3)
    for value in x[:, 0].double():
        joint = joint + torch.logaddexp(w.log() + normal.log_prob(value - d), torch.log1p(-w) + normal.log_prob(value))
    evidence = joint.flatten().logsumexp(0) + math.log((w[1, 0] - w[0, 0]) * (d[0, 1] - d[0, 0]))
    mass = (joint - joint.flatten().logsumexp(0)).exp()
    fit = pplgen.fit(TwoKinds(), x, compile="graph", progress=False)
    assert fit.path.startswith("the traced graph")
    # a normal on the unconstrained scale has a KL divergence of some hundredths of a nat here
    assert evidence - 0.1 < fit.elbo < evidence + 4 * fit.best.elbo_error
    posterior = fit.to_datatree(draws=4000, groups=["posterior"])["posterior"]
    for name, axis in (("w", w), ("d", d)):
        mean = (mass * axis).sum().item()
        sd = ((mass * axis.square()).sum().item() - mean**2) ** 0.5
        # .1 of an sd for the guide's shape; four Monte Carlo errors of 4,000 draws are .06 of an sd
        assert posterior[name].values.mean() == pytest.approx(mean, abs=0.16 * sd)
        assert posterior[name].values.std() == pytest.approx(sd, rel=0.15)


def test_plain_svi_trains_it(rows):
    pyro.set_rng_seed(0)
    story = NoisyMeans()
    svi = SVI(story.model, story.guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    losses = [svi.step(rows) for _ in range(200)]
    assert losses[-1] < losses[0]
