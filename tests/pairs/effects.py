"""Handlers around models, reparameterisations, subsampling and bounds, as small pairs."""

import math

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.contrib.autoname import scope
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer import autoguide as auto
from pyro.infer.reparam import DiscreteCosineReparam, HaarReparam, LocScaleReparam, StableReparam, TransformReparam
from pyro.ops.indexing import Vindex
from torch.distributions import constraints

EFFECTS = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12])
ERRORS = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18])


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(13))


def positive(name, value):
    return pyro.param(name, torch.as_tensor(value), constraint=constraints.positive)


def schools(y, errors):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, errors), obs=y)


def schools_centred():
    return schools, auto.AutoMultivariateNormal(schools), (EFFECTS, ERRORS), Trace_ELBO()


def schools_decentred(centred):
    model = poutine.reparam(schools, config={"theta": LocScaleReparam(centred)})
    return model, auto.AutoNormal(model), (EFFECTS, ERRORS), Trace_ELBO()


def transform_reparam():
    """A log-normal hierarchy, sampled as the normal distribution that is transformed."""

    @poutine.reparam(config={"rates": TransformReparam()})
    def model(y):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        with pyro.plate("data", len(y)):
            lognormal = dist.TransformedDistribution(dist.Normal(loc, scale), dist.transforms.ExpTransform())
            rates = pyro.sample("rates", lognormal)
            pyro.sample("y", dist.Poisson(rates), obs=y)

    return model, auto.AutoNormal(model), (torch.tensor([3.0, 1, 0, 5, 2, 2]),), Trace_ELBO()


def wavelets(kind):
    """A random walk whose posterior is closer to independent after an orthogonal transformation."""

    @poutine.reparam(config={"steps": kind(dim=-1)})
    def model(y):
        scale = pyro.sample("scale", dist.LogNormal(-1.0, 0.5))
        steps = pyro.sample("steps", dist.Normal(torch.zeros(len(y)), scale).to_event(1))
        with pyro.plate("times", len(y)):
            pyro.sample("y", dist.Normal(steps.cumsum(-1), 0.3), obs=y)

    return model, auto.AutoNormal(model), (noise(8).cumsum(0),), Trace_ELBO()


def stable_noise():
    """Lévy-stable noise has no density in closed form; auxiliary variables give it one."""

    @poutine.reparam(config={"z": StableReparam()})
    def model(y):
        loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Stable(1.5, 0.0, 1.0, loc))
            pyro.sample("y", dist.Normal(z, 0.2), obs=y)

    return model, auto.AutoNormal(model), (noise(8),), Trace_ELBO()


def weighing():
    """A weight guessed and a measurement of it, given by ``condition`` instead of ``obs``."""

    def scale(guess):
        weight = pyro.sample("weight", dist.Normal(guess, 1.0))
        pyro.sample("measurement", dist.Normal(weight, 0.75))

    def guide(guess):
        pyro.sample("weight", dist.Normal(pyro.param("a", guess.clone()), positive("b", 1.0)))

    model = poutine.condition(scale, data={"measurement": torch.tensor(9.5)})
    return model, guide, (torch.tensor(8.5),), TraceMeanField_ELBO()


def intervention():
    """The cause is set from outside, so that its prior no longer counts; effects are observed."""

    def causal(y):
        confounder = pyro.sample("confounder", dist.Normal(0.0, 1.0))
        cause = pyro.sample("cause", dist.Normal(confounder, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(cause + confounder, 1.0), obs=y)

    model = poutine.do(causal, data={"cause": torch.tensor(2.0)})
    return model, auto.AutoNormal(model), (2.0 + noise(10),), Trace_ELBO()


def lifted():
    """A parameter of the model becomes a latent by ``lift``."""

    def learned(y):
        slope = pyro.param("slope", torch.tensor(0.5))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(slope * torch.arange(len(y)), 1.0), obs=y)

    model = poutine.lift(learned, prior={"slope": dist.Normal(0.0, 1.0)})
    return model, auto.AutoNormal(model), (0.3 * torch.arange(8) + noise(8),), Trace_ELBO()


def partly_observed():
    """Entries that are missing by ``obs_mask`` are latents of their own."""
    y, seen = noise(10), torch.arange(10) % 3 > 0

    def model(y, seen):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y, obs_mask=seen)

    return model, auto.AutoNormal(model), (y, seen), Trace_ELBO()


def tempered():
    """The likelihood counts a half, the prior of outliers is masked, and a penalty is added."""
    y = noise(12)

    def model(y):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            shift = pyro.sample("shift", dist.Laplace(0.0, 0.3).mask(y.abs() > 1.0))
            with poutine.scale(scale=0.5):
                pyro.sample("y", dist.Normal(loc + shift, 1.0), obs=y)
        pyro.factor("penalty", -0.1 * loc**2)

    return model, auto.AutoNormal(model), (y,), Trace_ELBO()


def subsampled_pairs():
    """Minibatches drawn by the plates themselves, the guide's latents of rows with them."""
    y = noise(20)

    def model(y):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y), subsample_size=6):
            batch = pyro.subsample(y, event_dim=0)
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("y", dist.Normal(z, 0.5), obs=batch)

    def create_plates(y):
        return pyro.plate("data", len(y), subsample_size=6)

    return model, auto.AutoNormal(model, create_plates=create_plates), (y,), Trace_ELBO()


def scoped():
    """The same part of a model twice, under names of its own."""

    def slope(x):
        return x * pyro.sample("slope", dist.Normal(0.0, 1.0))

    def model(x, y):
        with scope(prefix="first"):
            first = slope(x[:, 0])
        with scope(prefix="second"):
            second = slope(x[:, 1])
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(first + second, 0.5), obs=y)

    x = noise(15, 2)
    return model, auto.AutoNormal(model), (x, x @ torch.tensor([1.0, -1.0])), Trace_ELBO()


def sampled_label():
    """One label for all rows is drawn and indexes a tensor; its gradient is the score's."""

    def model(y):
        locs = pyro.sample("locs", dist.Normal(torch.tensor([-1.0, 1.0]), 1.0).to_event(1))
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.4, 0.6])))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(locs[z], 1.0), obs=y)

    def guide(y):
        pyro.sample("locs", dist.Normal(pyro.param("q", torch.zeros(2)), 0.5).to_event(1))
        pyro.sample("z", dist.Categorical(logits=pyro.param("logits", torch.tensor([0.1, 0.2]))))

    return model, guide, (noise(6) + 1.0,), TraceGraph_ELBO()


def enumerated_pairs():
    """Two enumerated latents that index one table by ``Vindex``."""

    def model(y):
        table = pyro.sample("table", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
        with pyro.plate("data", len(y)):
            a = pyro.sample("a", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
            b = pyro.sample("b", dist.Categorical(torch.ones(3)), infer={"enumerate": "parallel"})
            pyro.sample("y", dist.Normal(Vindex(table)[a, b], 0.5), obs=y)

    return model, None, (noise(10),), TraceEnum_ELBO(max_plate_nesting=1)


def directions():
    """Angles with von Mises noise around a direction in the plane."""

    def model(angles):
        direction = pyro.sample("direction", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        concentration = pyro.sample("concentration", dist.Gamma(3.0, 1.0))
        loc = torch.atan2(direction[1], direction[0])
        with pyro.plate("data", len(angles)):
            pyro.sample("angles", dist.VonMises(loc, concentration), obs=angles)

    return model, auto.AutoNormal(model), (noise(12) * 0.4 + math.pi / 4,), Trace_ELBO()


def rejected():
    """Whether the effect is positive decides which noise the rows have."""

    def model(y):
        effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            if effect > 0:
                pyro.sample("y", dist.Normal(effect, 1.0), obs=y)
            else:
                pyro.sample("y", dist.Laplace(effect, 1.0), obs=y)

    return model, auto.AutoNormal(model), (noise(6),), Trace_ELBO()


def rejected_by_graph_bound():
    model, guide, data, _ = rejected()
    return model, guide, data, TraceGraph_ELBO()


def unrolled_until_done():
    """A walk that stops where it passes a bound: the number of steps is that of a draw."""

    def model(y):
        speed = pyro.sample("speed", dist.LogNormal(0.0, 0.3))
        level, steps = torch.tensor(0.0), 0
        while level < 3.0 and steps < 20:
            level, steps = level + speed, steps + 1
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(level - 3.0, 1.0), obs=y)

    return model, auto.AutoNormal(model), (noise(6),), Trace_ELBO()


def annealed():
    """A temperature that the model itself lowers at each call."""
    schedule = {"temperature": 2.0}

    def model(y):
        schedule["temperature"] = max(1.0, 0.9 * schedule["temperature"])
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with poutine.scale(scale=1.0 / schedule["temperature"]), pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    return model, auto.AutoNormal(model), (noise(6),), Trace_ELBO()


PAIRS = {
    "eight schools, centred": schools_centred,
    "eight schools, decentred": lambda: schools_decentred(0.0),
    "eight schools, learned centring": lambda: schools_decentred(None),
    "transform reparam": transform_reparam,
    "Haar reparam": lambda: wavelets(HaarReparam),
    "cosine reparam": lambda: wavelets(DiscreteCosineReparam),
    "stable reparam": stable_noise,
    "condition": weighing,
    "do": intervention,
    "lift": lifted,
    "obs_mask": partly_observed,
    "mask, scale and factor": tempered,
    "subsampling plates": subsampled_pairs,
    "scope": scoped,
    "sampled label": sampled_label,
    "Vindex": enumerated_pairs,
    "directions": directions,
}
REFUSED = {
    "branch on a latent": (rejected, "branches on values.*'effect'"),
    "branch on a latent, graph bound": (rejected_by_graph_bound, "branches on values.*'effect'"),
    "loop until a latent": (unrolled_until_done, "branches on values.*'speed'"),
    "annealing in Python": (annealed, "changes .schedule"),
}
