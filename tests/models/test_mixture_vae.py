"""The autoencoder with clusters against quadrature, and clusters that are known."""

import math

import pytest
import torch
from pplgen.models import MixtureVAE
from sklearn.metrics import adjusted_rand_score

import pplgen
from pplgen.errors import InputError
from pplgen.inference.kl_warm_up import weigh_kl
from pplgen.story.pair import Pair


@pytest.mark.parametrize("kl_weight", [1.0, 0.5])
def test_bound_is_an_integral_over_the_code_and_a_sum_over_the_component(kl_weight):
    """With one entry to a code it is an integral on the line, here by the trapezoidal rule."""
    torch.manual_seed(0)
    story = MixtureVAE(4, 1, num_components=3, hidden=(5,), likelihood="bernoulli").double()
    x = story.simulate(20)
    x[0, 1] = math.nan
    pair = Pair.of_story(story, x)
    weigh_kl(pair, 1)
    pair.kl_weight.fill_(kl_weight)
    with pair.isolated(), torch.no_grad():
        z = torch.linspace(-12, 12, 8001, dtype=x.dtype)
        step = z[1] - z[0]
        grid = z[:, None, None].expand(-1, len(x), 1)
        before, trained = pair.story.code_prior, pair.story
        component = torch.distributions.Normal(before.mu[:, 0], before.log_sigma[:, 0].exp() + 1e-4)
        joint = before.logits.log_softmax(0) + component.log_prob(z[:, None])
        seen, log_q = trained.decode(grid).log_prob(x), trained.encode(x).log_prob(grid)
        divergence = log_q - joint.logsumexp(1)[:, None]
        exact = (log_q.exp() * (seen - kl_weight * divergence)).sum() * step
        probabilities = (log_q.exp()[..., None] * joint.softmax(1)[:, None, :]).sum(0) * step
        bounds = torch.tensor([-pair.elbo().loss(pair.model, pair.guide, x) for _ in range(500)])
    # four standard errors of the draws
    assert abs(bounds.mean() - exact) < 4 * bounds.std() / 500**0.5
    if kl_weight == 1:
        fit = pplgen.Fit(pair, (), table=None, seed=0)
        # at most half a deviation of a probability, of 500 draws
        assert abs(fit.latents(x)["y"].values - probabilities.numpy()).max() < 4 * 0.5 / 500**0.5


@pytest.fixture(scope="module")
def crescents():
    """Three crescents apart from each other, each bent around its neighbours' tips."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(450) % 3
    turn = y * 2 * math.pi / 3
    angle = (torch.rand(450, generator=generator) - 0.5) * 1.2 * math.pi + turn
    radius = 1 + 0.05 * torch.randn(450, generator=generator)
    centre = 2.2 * torch.stack([turn.cos(), turn.sin()], 1)
    return centre + radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1), y


def test_finds_clusters_and_heeds_labels(crescents):
    """Clusters that touch nowhere are all found; labels name them, and no column needs to be complete."""
    x, y = crescents
    story = MixtureVAE(2, 2, num_components=3, hidden=(32,), likelihood="normal")
    options = {"batch_size": 100, "learning_rate": 3e-3, "progress": False, "compile": "graph"}
    fit = pplgen.fit(story, x, steps=300, **options)
    assert fit.path == "the traced graph"
    found = fit.latents(x, draws=20)["y"]
    assert found.dims == ("row", "component")
    assert adjusted_rand_score(y, found.values.argmax(-1)) > 0.95
    gaps = x.clone()
    gaps[::5, 0] = math.nan
    labels = torch.where(torch.arange(450) < 9, (y + 1) % 3, -1)
    named = pplgen.fit(story, gaps, labels=labels, steps=300, **options)
    assert (named.latents(draws=2)["y"].values[:9].argmax(-1) == labels[:9].numpy()).all()
    whole = ~gaps.isnan().any(1)
    right = named.latents(x[whole], draws=20)["y"].values.argmax(-1) == ((y + 1) % 3)[whole].numpy()
    assert right.mean() > 0.95
    with named.pair.isolated(), torch.no_grad():
        again = named.story.decode(named.story.encode(x).mean).mean
    assert (again - x).square().mean() < 0.1 * x.var(0).mean()  # the mean alone would be one
    assert named.impute(draws=2)[:, whole].eq(x[whole]).all()


def test_mistakes_are_told(crescents):
    x, y = crescents
    story = MixtureVAE(2, 2, num_components=3, hidden=(8,), likelihood="normal")
    with pytest.raises(InputError, match="labels, row 4: 3: expected 0 to 2, or -1 if unknown"):
        pplgen.fit(story, x, labels=torch.where(torch.arange(450) == 3, 3, y), steps=2, progress=False)
    with pytest.raises(InputError, match="guide='gamma': expected one of normal, laplace"):
        MixtureVAE(2, 2, guide="gamma")
    with pytest.raises(InputError, match="2 rows are too few for 3 components"):
        pplgen.fit(story, x[:2], steps=2, progress=False)
    assert type(story)(**story.config).config == story.config
