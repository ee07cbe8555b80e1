"""The variational autoencoder against quadrature and closed forms."""

import math

import pytest
import torch
from pplgen.models import VAE

import pplgen
from pplgen.story.pair import Pair


@pytest.mark.parametrize("likelihood", ["bernoulli", "continuous-bernoulli", "normal", "categorical"])
def test_importance_weighted_density_is_the_integral_over_the_code(likelihood):
    """With one entry to a code, p(x) is an integral on the line, here by the trapezoidal rule."""
    torch.manual_seed(0)
    story = VAE(4, 1, hidden=(5,), likelihood=likelihood).double()
    x = story.simulate(20)
    x[0, 1] = math.nan
    story.observe_missing(x)
    fit = pplgen.fit(story, x, steps=200, progress=False)
    with fit.pair.isolated(), torch.no_grad():
        z = torch.linspace(-12, 12, 4001, dtype=x.dtype)
        grid = z[:, None, None].expand(-1, len(x), 1)
        trained = fit.story
        joint = trained.prior().log_prob(grid) + trained.decode(grid).log_prob(x)
        exact = joint.logsumexp(0) + math.log(z[1] - z[0])
    found = fit.log_likelihood(x, draws=4000)
    # four standard errors of the importance weights
    assert ((found - exact).abs() < 4 * found.standard_error + 1e-6).all()


def test_trains_on_the_graph():
    """Every guide family and prior has a faithful graph."""
    torch.manual_seed(0)
    x = torch.rand(40, 8).round()
    for options in ({"guide": "full"}, {"guide": "dirichlet"}, {"prior": "vamp"}, {"prior": "mixture"}):
        fit = pplgen.fit(VAE(8, 3, hidden=(6,), **options), x, steps=100, compile="graph", progress=False)
        assert fit.path == "the traced graph"
        assert isinstance(fit.pair, Pair)


@pytest.mark.parametrize("prior", ["normal", "vamp"])
def test_seeds_start_apart_and_repeat_themselves(prior):
    """What the constructor drew does not matter: networks are drawn from the seed of the restart."""
    x = torch.rand(30, 8).round()
    stories = [VAE(8, 2, hidden=(5,), prior=prior) for _ in range(3)]
    fits = [pplgen.fit(story, x, steps=30, seed=s, progress=False) for story, s in zip(stories, (1, 1, 2), strict=True)]
    weights = [fit.story.encoder.body[0].weight for fit in fits]
    assert torch.equal(weights[0], weights[1])
    assert not torch.allclose(weights[0], weights[2], atol=0.05)


def test_own_networks_start_as_they_are():
    own = torch.nn.Linear(8, 4)
    x = torch.rand(30, 8).round()
    story = VAE(8, 2, encoder=own)
    story.initialise(x)
    assert torch.equal(story.encoder.body.weight, own.weight)
    assert not story.encoder.of_gaps.weight.any()


def three_columns():
    """Columns driven by one latent: noise that grows with it, a wave and a parabola."""
    z = torch.randn(3000)
    x = [2 * z + 0.1 * torch.randn(3000) * z.exp(), torch.sin(2 * z) + 0.1 * torch.randn(3000)]
    return torch.stack([*x, z.square() + 0.3 * torch.randn(3000)], 1)


def test_noise_of_each_entry_is_no_worse_than_shared_noise():
    # without warm-up of the noise two columns are neglected: -5 nats a row by feature and -4.2 by entry, in most seeds
    torch.manual_seed(0)
    x = three_columns()
    options = {"batch_size": 100, "steps": 1000, "learning_rate": 0.01, "seed": 0, "compile": "graph"}
    bounds = {}
    for noise in ("shared", "feature", "entry"):
        story = VAE(3, 1, hidden=(32,), activation="tanh", likelihood="normal", noise=noise)
        fit = pplgen.fit(story, x[:2000], progress=False, **options)
        bounds[noise] = fit.elbo / 2000
        unexplained = (fit.reconstruct(x[2000:]) - x[2000:]).var(0) / x[2000:].var(0)
        assert (unexplained < 0.3).all()
    assert bounds["feature"] > bounds["shared"] - 0.1
    assert bounds["entry"] > bounds["feature"] - 0.1


@pytest.mark.parametrize("compiler", ["graph", "off"])
def test_noise_has_its_own_weight_after_a_fit(compiler):
    torch.manual_seed(0)
    story = VAE(3, 1, hidden=(4,), likelihood="normal", noise="entry")
    fit = pplgen.fit(story, three_columns()[:50], steps=20, compile=compiler, progress=False)
    assert fit.story.warm_up_weight == 1
    assert VAE(3, 1, likelihood="normal", noise="shared").warm_up_weight is None
    assert "own_noise" not in fit.story.seen.state_dict()
