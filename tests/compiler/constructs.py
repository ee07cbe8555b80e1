"""Tiny pairs, one for each construct of Pyro that a graph must reproduce or refuse."""

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import (
    JitTrace_ELBO,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.infer import autoguide as auto
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn
from torch.distributions import constraints

torch.manual_seed(0)
Y = torch.randn(12)
X = torch.randn(12, 3)
COUNTS = torch.randint(0, 6, (12,)).float()
BITS = torch.randint(0, 2, (12,)).float()


def normal(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    sigma = pyro.sample("sigma", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, sigma), obs=y)


def functional_guide(y):
    loc = pyro.param("loc", torch.tensor(0.3))
    scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
    pyro.sample("mu", dist.Normal(loc, scale))
    pyro.sample("sigma", dist.LogNormal(pyro.param("log_loc", torch.tensor(0.1)), 0.3))


def strided_guide(y):
    scales = torch.zeros(2, 2)
    scales.view(-1)[::3] += pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
    pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.3)), scales[0, 0]))
    pyro.sample("sigma", dist.LogNormal(pyro.param("log_loc", torch.tensor(0.1)), scales[1, 1]))


def regression(x, y):
    beta = pyro.sample("beta", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ beta, 0.5), obs=y)


def likelihood(make):
    """One positive rate, and rows from ``make(rate)``."""

    def model(y):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", make(rate), obs=y)

    return model


def gamma_guide(y):
    shape = pyro.param("shape", torch.tensor(2.5), constraint=constraints.positive)
    pyro.sample("rate", dist.Gamma(shape, pyro.param("inverse", torch.tensor(1.5), constraint=constraints.positive)))


def beta_bernoulli(y):
    p = pyro.sample("p", dist.Beta(2.0, 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Bernoulli(p), obs=y)


def beta_guide(y):
    a, b = (pyro.param(n, torch.tensor(3.0), constraint=constraints.positive) for n in "ab")
    pyro.sample("p", dist.Beta(a, b))


def mixture(y):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("components", 3):
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


def mixture_guide(y):
    pyro.sample("weights", dist.Dirichlet(pyro.param("alpha", torch.ones(3) * 2, constraint=constraints.positive)))
    with pyro.plate("components", 3):
        loc = pyro.param("loc", torch.tensor([-1.0, 0.0, 1.0]))
        pyro.sample("mu", dist.Normal(loc, pyro.param("scale", torch.ones(3) * 0.3, constraint=constraints.positive)))


def mixture_guide_enumerated(y):
    mixture_guide(y)
    logits = pyro.param("logits", torch.zeros(len(y), 3))
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})


def two_switches(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        a = pyro.sample("a", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        b = pyro.sample("b", dist.Bernoulli(0.2 + 0.5 * a), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(mu + a - 2 * b, 1.0), obs=y)


def half_enumerated_guide(y):
    pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.2)), 0.5))
    p = pyro.param("p", torch.full((len(y),), 0.4), constraint=constraints.unit_interval)
    with pyro.plate("data", len(y)):
        pyro.sample("a", dist.Bernoulli(p), infer={"enumerate": "parallel"})


def score_guide(y):
    p = pyro.param("p", torch.tensor(0.4), constraint=constraints.unit_interval)
    pyro.sample("s", dist.Bernoulli(p))


def score_model(y):
    s = pyro.sample("s", dist.Bernoulli(0.5))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(s, 1.0), obs=y)


def poisson_score_guide(y):
    pyro.sample("n", dist.Poisson(pyro.param("lam", torch.tensor(2.0), constraint=constraints.positive)))


def poisson_score_model(y):
    n = pyro.sample("n", dist.Poisson(3.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(n, 1.0), obs=y)


def local(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(z, 0.5), obs=y)


def subsampled(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(y), subsample_size=5) as index:
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y[index])


def nested(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("columns", 3, dim=-1):
        shift = pyro.sample("shift", dist.Normal(mu, 1.0))
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("x", dist.Normal(shift, 1.0), obs=x)


def masked(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(y)), poutine.mask(mask=y > 0), poutine.scale(scale=2.5):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def correlated(x):
    scale = pyro.sample("scale", dist.HalfCauchy(torch.ones(3)).to_event(1))
    L = pyro.sample("L", dist.LKJCholesky(3, 2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.MultivariateNormal(torch.zeros(3), scale_tril=scale.unsqueeze(-1) * L), obs=x)


def process(x, y):
    length = pyro.sample("length", dist.LogNormal(0.0, 1.0))
    K = (-0.5 * torch.cdist(x, x).square() / length**2).exp() + 0.1 * torch.eye(len(x))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), scale_tril=torch.linalg.cholesky(K)), obs=y)


class VAE(PyroModule):
    """A small autoencoder; the guide is its method."""

    def __init__(self, dropout=0.0, norm=False):
        super().__init__()
        extra = [nn.BatchNorm1d(8)] if norm else [nn.Dropout(dropout)] if dropout else []
        self.encoder = nn.Sequential(nn.Linear(3, 8), *extra, nn.Tanh(), nn.Linear(8, 4))
        self.decoder = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3))

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 0.5).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


class Network(PyroModule):
    """A regression whose weights are latent."""

    def __init__(self):
        super().__init__()
        self.linear = PyroModule[nn.Linear](3, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 3]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 1.0).expand([1]).to_event(1))
        self.noise = PyroParam(torch.tensor(0.7), constraints.positive)

    def forward(self, x, y):
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, self.noise), obs=y)


def shared_encoder():
    """A functional pair that closes over its network."""
    network = nn.Linear(1, 2)

    def model(y):
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 0.5), obs=y)

    def guide(y):
        pyro.module("network", network)
        loc, log_scale = network(y[:, None]).unbind(-1)
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()))

    return model, guide


def branching(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    scale = 1.0 if mu > 0 else 2.0
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, scale), obs=y)


def swallowing(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    try:
        low = bool(mu < 0)
    except Exception:
        low = False
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0 + low), obs=y)


def exported(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0 + float(np.from_dlpack(mu.detach()) > 0)), obs=y)


def keyed(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, {0.0: 1.0}.get(mu.item(), 2.0)), obs=y)


def selecting(y):
    mu = pyro.sample("mu", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu.sum(), 1.0 + len(mu[mu > 0])), obs=y)


def counting():
    """A model that behaves differently each time."""
    calls = [0]

    def model(y):
        calls[0] += 1
        mu = pyro.sample("mu", dist.Normal(float(calls[0]), 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    return model


def baseline_guide(y):
    p = pyro.param("p", torch.tensor(0.4), constraint=constraints.unit_interval)
    pyro.sample("s", dist.Bernoulli(p), infer={"baseline": {"use_decaying_avg_baseline": True}})


def sequential_guide(y):
    p = pyro.param("p", torch.tensor(0.4), constraint=constraints.unit_interval)
    pyro.sample("s", dist.Bernoulli(p), infer={"enumerate": "sequential"})


VECTORISED = {"num_particles": 4, "vectorize_particles": True, "max_plate_nesting": 1}


def faithful():
    """Name to (model, guide, data, bound): what the graph must reproduce."""
    vae, dropped = VAE(), VAE(dropout=0.3)
    network = Network()
    autos = {
        "AutoNormal": auto.AutoNormal,
        "AutoDiagonalNormal": auto.AutoDiagonalNormal,
        "AutoMultivariateNormal": auto.AutoMultivariateNormal,
        "AutoLowRankMultivariateNormal": auto.AutoLowRankMultivariateNormal,
        "AutoDelta": auto.AutoDelta,
        "AutoIAFNormal": auto.AutoIAFNormal,
    }
    rows = {name: (normal, kind(normal), (Y,), Trace_ELBO()) for name, kind in autos.items()}
    return rows | {
        "functional parameters": (normal, functional_guide, (Y,), Trace_ELBO()),
        "mean field bound": (normal, functional_guide, (Y,), TraceMeanField_ELBO()),
        "graph bound": (normal, functional_guide, (Y,), TraceGraph_ELBO()),
        "several particles": (normal, functional_guide, (Y,), Trace_ELBO(num_particles=3)),
        "vectorised particles": (normal, functional_guide, (Y,), Trace_ELBO(**VECTORISED)),
        "importance weighted bound": (normal, functional_guide, (Y,), RenyiELBO(alpha=0, num_particles=3)),
        "two arguments": (regression, auto.AutoNormal(regression), (X, Y), Trace_ELBO()),
        "gamma guide, Poisson": (likelihood(dist.Poisson), gamma_guide, (COUNTS,), Trace_ELBO()),
        "negative binomial": (
            likelihood(lambda rate: dist.NegativeBinomial(rate, 0.4)),
            gamma_guide,
            (COUNTS,),
            Trace_ELBO(),
        ),
        "Student t": (likelihood(lambda rate: dist.StudentT(rate + 2.0)), gamma_guide, (Y,), Trace_ELBO()),
        "zero-inflated": (
            likelihood(lambda rate: dist.ZeroInflatedPoisson(rate=rate, gate=torch.tensor(0.2))),
            gamma_guide,
            (COUNTS,),
            Trace_ELBO(),
        ),
        "beta guide, Bernoulli": (beta_bernoulli, beta_guide, (BITS,), Trace_ELBO()),
        "analytic beta": (beta_bernoulli, beta_guide, (BITS,), TraceMeanField_ELBO()),
        "enumeration in the model": (
            mixture,
            mixture_guide,
            (Y,),
            TraceEnum_ELBO(max_plate_nesting=1),
        ),
        "enumeration in the guide": (mixture, mixture_guide_enumerated, (Y,), TraceEnum_ELBO(max_plate_nesting=1)),
        "enumeration in both": (two_switches, half_enumerated_guide, (Y,), TraceEnum_ELBO(max_plate_nesting=1)),
        "enumeration marked from outside": (
            config_enumerate(mixture),
            mixture_guide,
            (Y,),
            TraceEnum_ELBO(max_plate_nesting=1, num_particles=2),
        ),
        "sequential enumeration": (score_model, sequential_guide, (Y,), TraceEnum_ELBO(max_plate_nesting=1)),
        "score function": (score_model, score_guide, (Y,), Trace_ELBO()),
        "score function of a count": (poisson_score_model, poisson_score_guide, (Y,), Trace_ELBO()),
        "score function, graph bound": (score_model, score_guide, (Y,), TraceGraph_ELBO()),
        "latents of rows": (local, auto.AutoNormal(local), (Y,), Trace_ELBO()),
        "subsampling plate": (subsampled, auto.AutoNormal(subsampled), (Y,), Trace_ELBO()),
        "nested plates": (nested, auto.AutoNormal(nested), (X,), Trace_ELBO()),
        "mask and scale": (masked, auto.AutoNormal(masked), (Y,), Trace_ELBO()),
        "LKJ": (correlated, auto.AutoNormal(correlated), (X,), Trace_ELBO()),
        "Gaussian process": (process, auto.AutoNormal(process), (X, Y), Trace_ELBO()),
        "in-place diagonal": (normal, strided_guide, (Y,), Trace_ELBO()),
        "autoencoder": (vae.model, vae.guide, (X,), Trace_ELBO()),
        "autoencoder, analytic": (vae.model, vae.guide, (X,), TraceMeanField_ELBO()),
        "dropout": (dropped.model, dropped.guide, (X,), Trace_ELBO()),
        "latent network weights": (network, auto.AutoNormal(network), (X, Y), Trace_ELBO()),
        "network in a closure": (*shared_encoder(), (Y,), Trace_ELBO()),
    }


UNBATCHED = {"in-place diagonal"}
"""Traced faithfully, but some operation has no rule for batches: several restarts run in plain Pyro."""


def refused():
    """Name to (model, guide, data, bound, reason): what must not be traced."""
    normed = VAE(norm=True)
    stateful = counting()
    return {
        "branch on a value": (branching, auto.AutoNormal(branching), (Y,), Trace_ELBO(), "branches on values"),
        "state in Python": (stateful, auto.AutoNormal(stateful), (Y,), Trace_ELBO(), "changes 'calls"),
        "swallowed refusal": (swallowing, auto.AutoNormal(swallowing), (Y,), Trace_ELBO(), "branches on values"),
        "value seen by NumPy": (exported, auto.AutoNormal(exported), (Y,), Trace_ELBO(), "branches on values"),
        "value as a key": (keyed, auto.AutoNormal(keyed), (Y,), Trace_ELBO(), "branches on values.*number .constructs"),
        "values as a mask": (selecting, auto.AutoNormal(selecting), (Y,), Trace_ELBO(), "the shape that .* returns"),
        "compiled ELBO": (normal, functional_guide, (Y,), JitTrace_ELBO(), "JitTrace_ELBO is compiled by torch.jit"),
        "buffers": (normed.model, normed.guide, (X,), Trace_ELBO(), "evaluating the pair changes 'encoder.1"),
        "decaying baseline": (score_model, baseline_guide, (Y,), TraceGraph_ELBO(), "changes '__baseline"),
    }
