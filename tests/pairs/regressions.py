"""Regressions and hierarchies of Pyro's examples and tutorials, as small pairs."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer import autoguide as auto
from torch.distributions import constraints


def design(rows=30, columns=2, dtype=torch.float32):
    """Covariates, noise, and a linear predictor of them."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(rows, columns, generator=generator, dtype=dtype)
    return x, torch.randn(rows, generator=generator, dtype=dtype), x @ torch.linspace(1.0, -0.5, columns, dtype=dtype)


def positive(name, value):
    return pyro.param(name, torch.as_tensor(value), constraint=constraints.positive)


def linear():
    x, noise, predictor = design()

    def model(x, y):
        intercept = pyro.sample("intercept", dist.Normal(0.0, 5.0))
        slopes = pyro.sample("slopes", dist.Normal(0.0, 2.0).expand([x.shape[1]]).to_event(1))
        sigma = pyro.sample("sigma", dist.HalfNormal(2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(intercept + x @ slopes, sigma), obs=y)

    return model, None, (x, 1.0 + predictor + 0.4 * noise), None


def logistic():
    x, noise, predictor = design(dtype=torch.float64)

    def model(x, y):
        slopes = pyro.sample("slopes", dist.Normal(x.new_zeros(x.shape[1]), 2.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=x @ slopes), obs=y)

    y = (predictor + noise > 0).double()
    return model, auto.AutoMultivariateNormal(model), (x, y), Trace_ELBO()


def poisson_with_exposure():
    x, _, predictor = design()
    exposure = torch.linspace(0.5, 3.0, len(x))

    def model(x, exposure, counts):
        intercept = pyro.sample("intercept", dist.Normal(0.0, 2.0))
        slopes = pyro.sample("slopes", dist.Laplace(torch.zeros(x.shape[1]), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("counts", dist.Poisson(exposure * (intercept + x @ slopes).exp()), obs=counts)

    counts = (exposure * predictor.exp()).round()
    return model, auto.AutoLowRankMultivariateNormal(model, rank=2), (x, exposure, counts), Trace_ELBO()


def robust():
    """A hand-written guide, three particles."""
    x, noise, predictor = design(columns=1)

    def model(x, y):
        slope = pyro.sample("slope", dist.Cauchy(0.0, 1.0))
        freedom = pyro.sample("freedom", dist.Gamma(2.0, 0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.StudentT(1.0 + freedom, slope * x[:, 0], 0.5), obs=y)

    def guide(x, y):
        pyro.sample("slope", dist.StudentT(5.0, pyro.param("loc", torch.tensor(0.5)), positive("scale", 0.2)))
        pyro.sample("freedom", dist.Gamma(positive("shape", 3.0), positive("rate", 0.3)))

    y = predictor + 0.3 * noise
    y[3] = 8.0
    return model, guide, (x, y), Trace_ELBO(num_particles=3)


def horseshoe():
    x, noise, predictor = design(columns=4)

    def model(x, y):
        tau = pyro.sample("tau", dist.HalfCauchy(1.0))
        with pyro.plate("coefficients", x.shape[1]):
            local = pyro.sample("local", dist.HalfCauchy(1.0))
            beta = pyro.sample("beta", dist.Normal(0.0, tau * local))
        sigma = pyro.sample("sigma", dist.InverseGamma(2.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)

    return model, auto.AutoNormal(model, init_scale=0.05), (x, predictor + 0.5 * noise), TraceMeanField_ELBO()


def multinomial():
    x, noise, predictor = design()

    def model(x, y):
        with pyro.plate("classes", 2):
            slopes = pyro.sample("slopes", dist.Normal(torch.zeros(x.shape[1]), 1.5).to_event(1))
        logits = torch.nn.functional.pad(x @ slopes.T, (1, 0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    y = torch.bucketize(predictor + 0.3 * noise, torch.tensor([-0.5, 0.7]))
    return model, auto.AutoDiagonalNormal(model), (x, y), Trace_ELBO()


def ordinal():
    """Cutpoints are ordered by the transformation of their prior."""
    x, noise, predictor = design()

    def model(x, y):
        slopes = pyro.sample("slopes", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
        base = dist.Normal(torch.tensor([-1.0, 0.0, 0.5]), 1.0).to_event(1)
        cutpoints = pyro.sample("cutpoints", dist.TransformedDistribution(base, dist.transforms.OrderedTransform()))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.OrderedLogistic(x @ slopes, cutpoints), obs=y)

    y = torch.bucketize(predictor + 0.5 * noise, torch.tensor([-1.0, 0.0, 1.0]))
    return model, auto.AutoNormal(model), (x, y), Trace_ELBO()


def zero_inflated():
    x, noise, predictor = design()

    def model(x, counts):
        slopes = pyro.sample("slopes", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
        gate = pyro.sample("gate", dist.Beta(2.0, 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("counts", dist.ZeroInflatedPoisson(rate=(1.0 + x @ slopes).exp(), gate=gate), obs=counts)

    counts = torch.where(noise > 0.5, 0.0, (1.0 + predictor).exp().round())
    return model, auto.AutoNormal(model), (x, counts), TraceGraph_ELBO()


def overdispersed_counts():
    x, noise, predictor = design()

    def model(x, counts):
        slopes = pyro.sample("slopes", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
        concentration = pyro.sample("concentration", dist.LogNormal(0.0, 1.0))
        mean = (1.0 + x @ slopes).exp()
        with pyro.plate("data", len(x)):
            pyro.sample("counts", dist.GammaPoisson(concentration, concentration / mean), obs=counts)

    counts = (1.0 + predictor + noise).exp().round()
    return model, auto.AutoMultivariateNormal(model), (x, counts), RenyiELBO(alpha=0.5, num_particles=4)


def censored_survival():
    """Deaths have a density, survivors the log probability of outliving their last visit, added by a factor."""
    x, noise, predictor = design()

    def model(x, time, died):
        slopes = pyro.sample("slopes", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
        shape = pyro.sample("shape", dist.LogNormal(0.0, 0.5))
        scale = (x @ slopes).exp()
        with pyro.plate("data", len(x)):
            with poutine.mask(mask=died):
                pyro.sample("time", dist.Weibull(scale, shape), obs=time)
            with poutine.mask(mask=~died):
                pyro.factor("outlived", -((time / scale) ** shape))

    time = (predictor + 0.3 * noise).exp()
    return model, auto.AutoNormal(model), (x, time.clamp(max=2.0), time < 2.0), Trace_ELBO()


def crossed_effects():
    """Ratings of items by raters: two crossed plates of effects, indexed by the rows."""
    rater, item = torch.arange(40) % 5, torch.arange(40) // 10
    y = 0.3 * rater - 0.4 * item + design(40)[1] * 0.2

    def model(rater, item, y):
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        spread = pyro.sample("spread", dist.HalfNormal(1.0).expand([3]).to_event(1))
        with pyro.plate("raters", 5):
            of_rater = pyro.sample("of_rater", dist.Normal(0.0, spread[0]))
        with pyro.plate("items", 4):
            of_item = pyro.sample("of_item", dist.Normal(0.0, spread[1]))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean + of_rater[rater] + of_item[item], spread[2]), obs=y)

    return model, auto.AutoNormal(model), (rater, item, y), Trace_ELBO()


def responses(persons=12, items=5):
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(persons, 1, generator=generator) - torch.linspace(-1.0, 1.0, items)
    return torch.bernoulli(logits.sigmoid(), generator=generator)


def one_parameter_items():
    """The Rasch model: nested plates over persons and items."""

    def model(y):
        people, items = pyro.plate("people", y.shape[0], dim=-2), pyro.plate("items", y.shape[1], dim=-1)
        with people:
            ability = pyro.sample("ability", dist.Normal(0.0, 1.0))
        with items:
            difficulty = pyro.sample("difficulty", dist.Normal(0.0, 2.0))
        with people, items:
            pyro.sample("y", dist.Bernoulli(logits=ability - difficulty), obs=y)

    return model, auto.AutoNormal(model), (responses(),), Trace_ELBO()


def two_parameter_items():
    """Discriminations too; a list of guides, one for the shared hyperparameters."""

    def model(y):
        people, items = pyro.plate("people", y.shape[0], dim=-2), pyro.plate("items", y.shape[1], dim=-1)
        spread = pyro.sample("spread", dist.LogNormal(0.0, 0.5))
        with people:
            ability = pyro.sample("ability", dist.Normal(0.0, 1.0))
        with items:
            difficulty = pyro.sample("difficulty", dist.Normal(0.0, spread))
            slope = pyro.sample("slope", dist.LogNormal(0.0, 0.5))
        with people, items:
            pyro.sample("y", dist.Bernoulli(logits=slope * (ability - difficulty)), obs=y)

    guide = auto.AutoGuideList(model)
    guide.append(auto.AutoDelta(poutine.block(model, expose=["spread"])))
    guide.append(auto.AutoNormal(poutine.block(model, hide=["spread"])))
    return model, guide, (responses(),), Trace_ELBO()


AT_BATS = torch.full((10,), 45.0)
HITS = torch.tensor([18.0, 17, 16, 15, 14, 13, 12, 11, 10, 7])


def batting_partially_pooled():
    """A beta prior whose concentration is heavy-tailed."""

    def model(at_bats, hits):
        mean = pyro.sample("mean", dist.Uniform(0.0, 1.0))
        size = pyro.sample("size", dist.Pareto(1.0, 1.5))
        with pyro.plate("players", len(hits)):
            skill = pyro.sample("skill", dist.Beta(mean * size, (1 - mean) * size))
            pyro.sample("hits", dist.Binomial(at_bats, skill), obs=hits)

    return model, auto.AutoNormal(model), (AT_BATS, HITS), Trace_ELBO()


def batting_on_the_logit_scale():
    def model(at_bats, hits):
        loc = pyro.sample("loc", dist.Normal(-1.0, 1.0))
        scale = pyro.sample("scale", dist.HalfCauchy(1.0))
        with pyro.plate("players", len(hits)):
            alpha = pyro.sample("alpha", dist.Normal(loc, scale))
            pyro.sample("hits", dist.Binomial(at_bats, logits=alpha), obs=hits)

    return model, auto.AutoMultivariateNormal(model), (AT_BATS, HITS), Trace_ELBO(num_particles=2)


def varying_slopes():
    """Intercept and slope of each group are correlated, by an LKJ prior."""
    x, noise, predictor = design(columns=1)
    group = torch.arange(len(x)) % 4

    def model(x, group, y):
        center = pyro.sample("center", dist.Normal(torch.zeros(2), 2.0).to_event(1))
        scales = pyro.sample("scales", dist.HalfNormal(torch.ones(2)).to_event(1))
        factor = pyro.sample("factor", dist.LKJCholesky(2, 2.0))
        with pyro.plate("groups", 4):
            effects = pyro.sample("effects", dist.MultivariateNormal(center, scale_tril=scales.diag() @ factor))
        mean = effects[group, 0] + effects[group, 1] * x[:, 0]
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, 0.5), obs=y)

    y = predictor + 0.3 * group + 0.3 * noise
    return model, auto.AutoNormal(model), (x, group, y), Trace_ELBO()


PAIRS = {
    "linear regression": linear,
    "logistic regression": logistic,
    "Poisson regression with exposure": poisson_with_exposure,
    "robust regression": robust,
    "horseshoe regression": horseshoe,
    "multinomial regression": multinomial,
    "ordinal regression": ordinal,
    "zero-inflated counts": zero_inflated,
    "overdispersed counts": overdispersed_counts,
    "censored survival": censored_survival,
    "crossed effects": crossed_effects,
    "item response, one parameter": one_parameter_items,
    "item response, two parameters": two_parameter_items,
    "batting averages, beta": batting_partially_pooled,
    "batting averages, logit": batting_on_the_logit_scale,
    "varying slopes": varying_slopes,
}
REFUSED = {}
