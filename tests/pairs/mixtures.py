"""Mixtures, topics and other models with discrete latents, as small pairs."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, config_enumerate
from pyro.infer import autoguide as auto
from torch import nn
from torch.distributions import constraints
from torch.nn import functional

SUMMED_OUT = {"enumerate": "parallel"}


def generator():
    return torch.Generator().manual_seed(4)


def positive(name, value):
    return pyro.param(name, torch.as_tensor(value), constraint=constraints.positive)


def two_groups(rows=24):
    centers = torch.tensor([[-2.0, 0.0], [2.0, 1.0]])[torch.arange(rows) % 2]
    return centers + 0.7 * torch.randn(rows, 2, generator=generator())


def gaussian_mixture(x):
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 2.0)))
    with pyro.plate("components", 2):
        locs = pyro.sample("locs", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        scales = pyro.sample("scales", dist.LogNormal(torch.zeros(2), 0.5).to_event(1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer=SUMMED_OUT)
        pyro.sample("x", dist.Normal(locs[z], scales[z]).to_event(1), obs=x)


def map_mixture():
    """Point estimates of all that is continuous, the labels summed out."""
    model = poutine.block(gaussian_mixture, hide=["z"])
    start = {"locs": torch.tensor([[-1.0, 0.0], [1.0, 0.0]])}
    guide = auto.AutoDelta(model, init_loc_fn=auto.initialization.init_to_value(values=start))
    return gaussian_mixture, guide, (two_groups(),), TraceEnum_ELBO(max_plate_nesting=1)


def mixture_with_classifier():
    """A network computes the probabilities of each row's label."""
    network = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 2))
    shared = auto.AutoNormal(poutine.block(gaussian_mixture, hide=["z", "x"]))

    def guide(x):
        pyro.module("network", network)
        shared(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=network(x)), infer=SUMMED_OUT)

    return gaussian_mixture, guide, (two_groups(),), TraceEnum_ELBO(max_plate_nesting=1)


def stick(fractions):
    """Lengths of the pieces of a stick that is broken at these fractions of what is left."""
    left = (1 - fractions).cumprod(-1)
    return functional.pad(fractions, (0, 1), value=1.0) * functional.pad(left, (1, 0), value=1.0)


def stick_breaking():
    """A truncated Dirichlet process; the guide enumerates the labels."""

    def model(x):
        alpha = pyro.sample("alpha", dist.Gamma(2.0, 1.0))
        with pyro.plate("sticks", 3):
            fractions = pyro.sample("fractions", dist.Beta(1.0, alpha))
        with pyro.plate("components", 4):
            locs = pyro.sample("locs", dist.MultivariateNormal(torch.zeros(2), 9.0 * torch.eye(2)))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(stick(fractions)))
            pyro.sample("x", dist.MultivariateNormal(locs[z], torch.eye(2)), obs=x)

    def guide(x):
        pyro.sample("alpha", dist.Gamma(positive("shape", 2.0), positive("rate", 1.0)))
        with pyro.plate("sticks", 3):
            pyro.sample("fractions", dist.Beta(positive("a", torch.ones(3)), positive("b", torch.full((3,), 2.0))))
        with pyro.plate("components", 4):
            start = pyro.param("centers", lambda: torch.randn(4, 2))
            pyro.sample("locs", dist.MultivariateNormal(start, 0.1 * torch.eye(2)))
        probabilities = pyro.param("assignment", torch.full((len(x), 4), 0.25), constraint=constraints.simplex)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(probabilities))

    model, guide = config_enumerate(model), config_enumerate(guide)
    return model, guide, (two_groups(),), TraceEnum_ELBO(max_plate_nesting=1)


VOCABULARY, TOPICS = 8, 2


def corpus(documents=6, words=7):
    return torch.randint(0, VOCABULARY, (words, documents), generator=generator())


def topics():
    """Words by documents; topic weights of a document come from a network of its word counts."""
    network = nn.Sequential(nn.Linear(VOCABULARY, 6), nn.Softplus(), nn.Linear(6, TOPICS), nn.Softmax(-1))

    def model(words):
        with pyro.plate("topics", TOPICS):
            share = pyro.sample("share", dist.Gamma(1.0 / TOPICS, 1.0))
            of_words = pyro.sample("of_words", dist.Dirichlet(torch.ones(VOCABULARY) / VOCABULARY))
        with pyro.plate("documents", words.shape[1]):
            of_topics = pyro.sample("of_topics", dist.Dirichlet(share))
            with pyro.plate("words", words.shape[0]):
                topic = pyro.sample("topic", dist.Categorical(of_topics), infer=SUMMED_OUT)
                pyro.sample("word", dist.Categorical(of_words[topic]), obs=words)

    def guide(words):
        pyro.module("network", network)
        share = positive("share_loc", torch.ones(TOPICS))
        of_words = positive("word_counts", torch.full((TOPICS, VOCABULARY), 0.5) + 0.1 * torch.eye(TOPICS, VOCABULARY))
        with pyro.plate("topics", TOPICS):
            pyro.sample("share", dist.Gamma(5.0 * share, 5.0))
            pyro.sample("of_words", dist.Dirichlet(of_words))
        with pyro.plate("documents", words.shape[1]):
            counts = torch.zeros(VOCABULARY, words.shape[1]).scatter_add(0, words, torch.ones(words.shape))
            pyro.sample("of_topics", dist.Dirichlet(0.1 + 5.0 * network(counts.T)))

    return model, guide, (corpus(),), TraceEnum_ELBO(max_plate_nesting=2)


def point_topics():
    """Topic weights as point masses; each document has its own length, given by a mask."""
    network = nn.Linear(VOCABULARY, TOPICS)

    def model(words, present):
        with pyro.plate("topics", TOPICS):
            of_words = pyro.sample("of_words", dist.Dirichlet(torch.ones(VOCABULARY)))
        with pyro.plate("documents", words.shape[1]):
            of_topics = pyro.sample("of_topics", dist.Dirichlet(torch.ones(TOPICS)))
            with pyro.plate("words", words.shape[0]), poutine.mask(mask=present):
                topic = pyro.sample("topic", dist.Categorical(of_topics), infer=SUMMED_OUT)
                pyro.sample("word", dist.Categorical(of_words[topic]), obs=words)

    def guide(words, present):
        pyro.module("network", network)
        start = torch.linspace(1.0, 3.0, TOPICS * VOCABULARY).reshape(TOPICS, VOCABULARY)  # equal topics stay equal
        start = start.sin().exp() / start.sin().exp().sum(-1, keepdim=True)
        with pyro.plate("topics", TOPICS):
            pyro.sample("of_words", dist.Delta(pyro.param("q", start, constraint=constraints.simplex), event_dim=1))
        with pyro.plate("documents", words.shape[1]):
            counts = (functional.one_hot(words, VOCABULARY) * present[..., None]).sum(0).float()
            pyro.sample("of_topics", dist.Delta(network(counts).softmax(-1), event_dim=1))

    words = corpus()
    present = torch.arange(len(words))[:, None] < torch.tensor([7, 6, 5, 4, 7, 3])
    return model, guide, (words, present), TraceEnum_ELBO(max_plate_nesting=2)


def deep_exponential_family():
    """Two layers of sparse gamma factors, with gamma guides."""
    counts = torch.poisson(torch.rand(8, 5, generator=generator()) * 4, generator=generator())

    def model(x):
        with pyro.plate("top_weights", 2, dim=-2), pyro.plate("middle", 3, dim=-1):
            w_top = pyro.sample("w_top", dist.Gamma(0.3, 0.3))
        with pyro.plate("middle_weights", 3, dim=-2), pyro.plate("pixels", 5, dim=-1):
            w_bottom = pyro.sample("w_bottom", dist.Gamma(0.3, 0.3))
        with pyro.plate("data", len(x)):
            z_top = pyro.sample("z_top", dist.Gamma(0.5 * torch.ones(2), 0.5).to_event(1))
            z_middle = pyro.sample("z_middle", dist.Gamma(0.5, 0.5 / (z_top @ w_top)).to_event(1))
            pyro.sample("x", dist.Poisson(z_middle @ w_bottom).to_event(1), obs=x)

    def gamma(name, *shape):
        """A gamma guide in terms of its shape and mean."""
        alpha = functional.softplus(pyro.param(f"{name}_alpha", torch.full(shape, 1.0)))
        mean = functional.softplus(pyro.param(f"{name}_mean", torch.full(shape, 0.5)))
        return dist.Gamma(alpha, alpha / mean)

    def guide(x):
        with pyro.plate("top_weights", 2, dim=-2), pyro.plate("middle", 3, dim=-1):
            pyro.sample("w_top", gamma("w_top", 2, 3))
        with pyro.plate("middle_weights", 3, dim=-2), pyro.plate("pixels", 5, dim=-1):
            pyro.sample("w_bottom", gamma("w_bottom", 3, 5))
        with pyro.plate("data", len(x)):
            pyro.sample("z_top", gamma("z_top", len(x), 2).to_event(1))
            pyro.sample("z_middle", gamma("z_middle", len(x), 3).to_event(1))

    return model, guide, (counts,), Trace_ELBO()


def custom_family():
    """The same family in one layer, its guide of softplus-transformed normals, the KL divergence sampled."""
    counts = torch.poisson(torch.rand(8, 4, generator=generator()) * 4, generator=generator())

    def model(x):
        with pyro.plate("factors", 2, dim=-2), pyro.plate("pixels", 4, dim=-1):
            w = pyro.sample("w", dist.Gamma(0.3, 0.3))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(torch.full((2,), 0.5), 0.5).to_event(1))
            pyro.sample("x", dist.Poisson(z @ w).to_event(1), obs=x)

    def softplus_normal(name, *shape):
        loc = pyro.param(f"{name}_loc", torch.full(shape, 0.3))
        return dist.TransformedDistribution(
            dist.Normal(loc, positive(f"{name}_scale", torch.full(shape, 0.2))), [dist.transforms.SoftplusTransform()]
        )

    def guide(x):
        with pyro.plate("factors", 2, dim=-2), pyro.plate("pixels", 4, dim=-1):
            pyro.sample("w", softplus_normal("w", 2, 4))
        with pyro.plate("data", len(x)):
            pyro.sample("z", softplus_normal("z", len(x), 2).to_event(1))

    return model, guide, (counts,), TraceMeanField_ELBO()


def mixture_of_experts():
    """Rows choose among two regressions by a gate that depends on their covariate."""
    x = torch.linspace(-2.0, 2.0, 24)

    def model(x, y):
        gate = pyro.sample("gate", dist.Normal(0.0, 2.0))
        with pyro.plate("experts", 2):
            slope = pyro.sample("slope", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(x)):
            expert = pyro.sample("expert", dist.Bernoulli(logits=gate * x), infer=SUMMED_OUT)
            pyro.sample("y", dist.Normal(slope[expert.long()] * x, 0.3), obs=y)

    return model, None, (x, x.abs() + 0.1 * torch.randn(24, generator=generator())), None


def annotators():
    """True classes of items, from labels by annotators with confusion matrices (Dawid and Skene)."""
    truth = torch.arange(12) % 3
    wrong = torch.rand(12, 4, generator=generator()) < 0.2
    labels = torch.where(wrong, (truth[:, None] + 1) % 3, truth[:, None])

    def model(labels):
        frequencies = pyro.sample("frequencies", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("annotators", labels.shape[1], dim=-1):
            prior = torch.ones(3, 3) + 2.0 * torch.eye(3)
            confusion = pyro.sample("confusion", dist.Dirichlet(prior).to_event(1))
        with pyro.plate("items", len(labels), dim=-2):
            kind = pyro.sample("kind", dist.Categorical(frequencies), infer=SUMMED_OUT)
            with pyro.plate("raters", labels.shape[1], dim=-1):
                rows = confusion[torch.arange(labels.shape[1]), kind]
                pyro.sample("label", dist.Categorical(rows), obs=labels)

    return model, None, (labels,), TraceEnum_ELBO(max_plate_nesting=2)


def marginal_mixture():
    """The labels are summed out by the distribution itself."""

    def model(x):
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
        locs = pyro.sample("locs", dist.Normal(torch.tensor([-2.0, 0.0, 2.0]), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            components = dist.Normal(locs, torch.ones(3))
            pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(weights), components), obs=x)

    return model, auto.AutoNormal(model), (two_groups()[:, 0],), Trace_ELBO()


PAIRS = {
    "mixture, point estimates": map_mixture,
    "mixture with a classifier": mixture_with_classifier,
    "Dirichlet process by stick breaking": stick_breaking,
    "latent Dirichlet allocation": topics,
    "topics of masked documents": point_topics,
    "deep exponential family": deep_exponential_family,
    "exponential family, transformed guide": custom_family,
    "mixture of experts": mixture_of_experts,
    "annotators": annotators,
    "marginal mixture": marginal_mixture,
}
REFUSED = {}
