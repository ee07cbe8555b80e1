"""Networks in models and guides, as in Pyro's tutorials, as small pairs."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.distributions import transforms
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer import autoguide as auto
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn
from torch.distributions import constraints


def images(rows=16, pixels=5):
    """Binary pixels of two kinds of pictures, and the kind."""
    generator = torch.Generator().manual_seed(6)
    kind = torch.arange(rows) % 2
    logits = torch.where(kind[:, None] == 0, torch.linspace(-2, 2, pixels), torch.linspace(2, -2, pixels))
    return torch.bernoulli(logits.sigmoid(), generator=generator), kind


def curve(rows=20):
    x = torch.linspace(-1.0, 1.0, rows)[:, None]
    return x, (3 * x[:, 0]).sin() + 0.1 * torch.randn(rows, generator=torch.Generator().manual_seed(7))


def network(inputs, outputs, hidden=6):
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Softplus(), nn.Linear(hidden, outputs))


class Layer(PyroModule[nn.Linear]):
    """A linear layer with normal weights."""

    def __init__(self, inputs, outputs, scale):
        super().__init__(inputs, outputs)
        self.weight = PyroSample(dist.Normal(0.0, scale).expand([outputs, inputs]).to_event(2))
        self.bias = PyroSample(dist.Normal(0.0, scale).expand([outputs]).to_event(1))


class BayesianNetwork(PyroModule):
    """Nested modules whose weights are latent; the noise level is one too."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out = Layer(1, 4, 1.0), Layer(4, 1, 0.5)
        self.noise = PyroSample(dist.Gamma(2.0, 8.0))

    def forward(self, x, y):
        mean = self.out(torch.tanh(self.hidden(x))).squeeze(-1)
        sigma = self.noise
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, sigma), obs=y)


def bayesian_network():
    model = BayesianNetwork()
    return model, auto.AutoDiagonalNormal(model), curve(), Trace_ELBO()


class PriorsFromLatents(PyroModule):
    """Module attributes whose prior depends on another latent attribute, and a learned one."""

    def __init__(self):
        super().__init__()
        self.scale = PyroSample(dist.LogNormal(0.0, 0.5))
        self.slope = PyroSample(lambda self: dist.Normal(0.0, self.scale))
        self.noise = PyroParam(lambda: torch.tensor(0.5), constraint=constraints.positive)

    def forward(self, x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Laplace(self.slope * x[:, 0], self.noise), obs=y)


def latents_as_attributes():
    model = PriorsFromLatents()
    return model, auto.AutoStructured(model, conditionals="normal", dependencies="linear"), curve(), Trace_ELBO()


class Autoencoder(nn.Module):
    """A variational autoencoder of binary pixels."""

    def __init__(self):
        super().__init__()
        self.decoder, self.encoder = network(2, 5), network(5, 4)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def autoencoder():
    module = Autoencoder()
    return module.model, module.guide, images()[:1], TraceMeanField_ELBO()


def importance_weighted_autoencoder():
    bound = RenyiELBO(alpha=0.0, num_particles=5, vectorize_particles=True, max_plate_nesting=1)
    return *autoencoder()[:3], bound


def semi_supervised(labelled):
    """Pixels from a class and a style; an unlabelled class is enumerated in the guide."""
    decoder, encoder, classifier = network(2 + 1, 5), network(5 + 2, 2), network(5, 2)

    def model(x, kind):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            style = pyro.sample("style", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            which = pyro.sample("kind", dist.OneHotCategorical(torch.ones(2) / 2), obs=kind)
            both = torch.cat([which.expand(*style.shape[:-1], -1), style], -1)
            pyro.sample("x", dist.Bernoulli(logits=decoder(both)).to_event(1), obs=x)

    def guide(x, kind):
        pyro.module("encoder", encoder)
        pyro.module("classifier", classifier)
        with pyro.plate("data", len(x)):
            which = kind
            if which is None:
                probabilities = classifier(x).softmax(-1)
                which = pyro.sample("kind", dist.OneHotCategorical(probabilities), infer={"enumerate": "parallel"})
            rows = torch.broadcast_shapes(which.shape[:-1], x.shape[:-1])  # enumerated values have one for all rows
            both = torch.cat([x.expand(*rows, -1), which.expand(*rows, -1)], -1)
            loc, log_scale = encoder(both).chunk(2, -1)
            pyro.sample("style", dist.Normal(loc, log_scale.exp()).to_event(1))

    x, kind = images()
    known = nn.functional.one_hot(kind, 2).float() if labelled else None
    return model, guide, (x, known), TraceEnum_ELBO(max_plate_nesting=1)


def conditional_autoencoder():
    """The lower pixels given the upper ones, whose network sets the prior of the latent."""
    prior, encoder, decoder = network(2, 2), network(5, 2), network(3, 3)

    def model(upper, lower):
        pyro.module("prior", prior)
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(upper)):
            loc, log_scale = prior(upper).chunk(2, -1)
            z = pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))
            logits = decoder(torch.cat([upper, z], -1))
            pyro.sample("lower", dist.Bernoulli(logits=logits).to_event(1), obs=lower)

    def guide(upper, lower):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(upper)):
            loc, log_scale = encoder(torch.cat([upper, lower], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    x = images()[0]
    return model, guide, (x[:, :2], x[:, 2:]), Trace_ELBO()


class DeepMarkov(PyroModule):
    """Latent states whose transition is a gated network; the guide reads each series backwards."""

    def __init__(self, states=2, hidden=4):
        super().__init__()
        self.gate, self.proposal = network(states, states), network(states, states)
        self.scale, self.emission = nn.Linear(states, states), network(states, 3)
        self.rnn = nn.RNN(3, hidden, batch_first=True)
        self.combine = nn.Linear(states + hidden, 2 * states)
        self.start, self.q_start = nn.Parameter(torch.zeros(states)), nn.Parameter(torch.zeros(states))
        self.h_start = nn.Parameter(torch.zeros(1, 1, hidden))

    def model(self, y, backwards, lengths):
        pyro.module("deep", self)
        with pyro.plate("series", len(y)):
            z = self.start
            for t in pyro.markov(range(int(lengths.max()))):
                gate, proposal = self.gate(z).sigmoid(), self.proposal(z)
                scale = nn.functional.softplus(self.scale(proposal.relu()))
                with poutine.mask(mask=t < lengths):
                    loc = (1 - gate) * z + gate * proposal
                    z = pyro.sample(f"z_{t}", dist.Normal(loc, scale).to_event(1))
                    pyro.sample(f"y_{t}", dist.Bernoulli(logits=self.emission(z)).to_event(1), obs=y[:, t])

    def guide(self, y, backwards, lengths):
        pyro.module("deep", self)
        packed = nn.utils.rnn.pack_padded_sequence(backwards, lengths, batch_first=True)
        output, _ = self.rnn(packed, self.h_start.expand(-1, len(y), -1).contiguous())
        padded, _ = nn.utils.rnn.pad_packed_sequence(output, batch_first=True)
        last = torch.arange(padded.shape[1])
        order = (lengths[:, None] - 1 - last).clamp(min=0)  # reversed again, within each length
        states = padded.gather(1, order[..., None].expand_as(padded))
        with pyro.plate("series", len(y)):
            z = self.q_start.expand(len(y), -1)
            for t in pyro.markov(range(int(lengths.max()))):
                with poutine.mask(mask=t < lengths):
                    loc, log_scale = self.combine(torch.cat([z, states[:, t]], -1)).chunk(2, -1)
                    z = pyro.sample(f"z_{t}", dist.Normal(loc, log_scale.exp()).to_event(1))


def deep_markov():
    module = DeepMarkov()
    lengths = torch.tensor([5, 5, 4, 2])
    y = torch.bernoulli(torch.full((4, 5, 3), 0.4), generator=torch.Generator().manual_seed(8))
    order = (lengths[:, None] - 1 - torch.arange(5)).clamp(min=0)
    backwards = y.gather(1, order[..., None].expand_as(y))
    return module.model, module.guide, (y, backwards, lengths), Trace_ELBO()


def normal_pair(y):
    loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(loc, scale))
        pyro.sample("y", dist.Normal(z, 0.3), obs=y)


def flow_guide():
    """Inverse autoregressive flow for the latents of rows, after an encoder."""
    encoder, flow = network(5, 4), transforms.affine_autoregressive(2, hidden_dims=[6])
    module = Autoencoder()

    def guide(x):
        pyro.module("encoder", encoder)
        pyro.module("flow", flow)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            base = dist.Normal(loc, log_scale.exp()).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, [flow]))

    return module.model, guide, images()[:1], TraceGraph_ELBO()


def density_by_a_flow():
    """A normalising flow is the likelihood itself; a mean is the only latent."""
    flow = transforms.affine_coupling(2, hidden_dims=[5])

    def model(x):
        pyro.module("flow", flow)
        center = pyro.sample("center", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            base = dist.Normal(center, 1.0).to_event(1).expand([len(x)])
            density = dist.TransformedDistribution(base, [flow])
            density.clear_cache()  # of the inverse at the parameters of the step before
            pyro.sample("x", density, obs=x)

    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(9))
    return model, auto.AutoIAFNormal(model, hidden_dim=[4]), (x,), Trace_ELBO()


class Grouped(EasyGuide):
    """One joint normal for the shared latents, and one per row."""

    def guide(self, y):
        group = self.group(match="loc|scale")
        group.sample("shared", dist.Normal(pyro.param("q_loc", torch.zeros(2)), 0.2).to_event(1))
        with self.plate("data", len(y)):
            self.map_estimate("z")


def easy_guide():
    y = curve()[1]
    return normal_pair, Grouped(normal_pair), (y,), Trace_ELBO()


def list_with_an_encoder():
    """A list of an automatic guide for what rows share and an amortised one for the rows."""
    encoder = network(1, 2)

    def rows(y):
        pyro.module("encoder", encoder)
        loc, log_scale = encoder(y[:, None]).unbind(-1)
        with pyro.plate("data", len(y)):
            return {"z": pyro.sample("z", dist.Normal(loc, log_scale.exp()))}

    guide = auto.AutoGuideList(normal_pair)
    guide.append(auto.AutoMultivariateNormal(poutine.block(normal_pair, expose=["loc", "scale"])))
    guide.append(poutine.block(rows, hide=["data"]))  # the list itself opens the plate
    return normal_pair, guide, (curve()[1],), Trace_ELBO()


PAIRS = {
    "Bayesian neural network": bayesian_network,
    "latents as attributes": latents_as_attributes,
    "autoencoder of pixels": autoencoder,
    "importance-weighted autoencoder": importance_weighted_autoencoder,
    "semi-supervised, labelled": lambda: semi_supervised(labelled=True),
    "semi-supervised, unlabelled": lambda: semi_supervised(labelled=False),
    "conditional autoencoder": conditional_autoencoder,
    "deep Markov model": deep_markov,
    "inverse autoregressive flow": flow_guide,
    "density by a flow": density_by_a_flow,
    "EasyGuide": easy_guide,
    "list of guides with an encoder": list_with_an_encoder,
}
REFUSED = {}
