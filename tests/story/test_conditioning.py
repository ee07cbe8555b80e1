"""Known components and weights of rows, against closed forms, repeated rows and explicit sums."""

import math

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pplgen.models import DirichletProcessMixture, GaussianMixture, MixedMixture
from torch.distributions import constraints

import pplgen
from pplgen import InputError
from pplgen.fitting.compare import bic
from pplgen.story.conditioning import PartlyObserved
from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair


@pytest.fixture(scope="module")
def rows():
    """Two groups that overlap, as float64 rows with the group of each."""
    generator = torch.Generator().manual_seed(0)
    z = torch.arange(120) % 2
    x = torch.randn(120, 2, generator=generator, dtype=torch.float64) + 2.0 * z[:, None]
    return x, z


def started(story, x, labels=None, weights=None):
    """Pair of a story that starts near its rows."""
    with seeded(0):
        return Pair.of_story(story, x, labels, weights)


def losses(pair, num=3):
    """Bounds of a pair at shared random numbers."""
    with seeded(1), pair.isolated():
        return [pair.elbo().loss(pair.model, pair.guide, *pair.data) for _ in range(num)]


def test_labelled_rows_make_the_posterior_exact(rows):
    """With every component known, log p - log q is at all draws the evidence: of the labels, times that of the rows."""
    x, z = rows
    pair = started(GaussianMixture(2, 2), x, labels=z)
    components = torch.nn.functional.one_hot(z).to(x.dtype)
    n = components.sum(0)
    labels = (torch.lgamma(1 + n) - torch.lgamma(torch.ones(2).double())).sum() - math.lgamma(2 + 120) + math.lgamma(2)
    evidence = labels + pair.story.components.evidence(x, components)
    assert losses(pair) == pytest.approx([-evidence.item()] * 3, rel=1e-9)


def test_known_components_enter_the_density_and_the_latents(rows):
    """Row by row: log pi_z N(x | z) where z is known, the sum over components elsewhere."""
    x, z = rows
    labels = torch.where(torch.arange(120) < 30, z, -1)
    fit = pplgen.fit(GaussianMixture(2, 2), x, labels=labels, steps=120, progress=False)
    tree = fit.to_datatree(20, groups=["posterior", "log_likelihood", "constant_data"])
    posterior = {name: torch.tensor(tree["posterior"][name].values[0]) for name in ("weights", "mu", "Sigma")}
    normal = dist.MultivariateNormal(posterior["mu"], posterior["Sigma"])
    joint = posterior["weights"].log() + normal.log_prob(x[:, None, None])
    expected = torch.where(labels[:, None] < 0, joint.logsumexp(-1), joint[torch.arange(120), :, z])
    np.testing.assert_allclose(tree["log_likelihood"]["x"].values[0], expected.T, rtol=1e-6)
    assert tree["constant_data"]["row_labels"].dims == ("row",)
    known = fit.latents().z.values[:30]
    np.testing.assert_array_equal(known, np.eye(2)[z[:30]])
    assert (fit.latents(x).z.values[:30] < 1).all()  # as new rows they have no labels


@pytest.mark.parametrize("story", [GaussianMixture(2, 2), MixedMixture(2, 2), DirichletProcessMixture(3, 2)])
def test_a_weight_is_as_many_rows(rows, story):
    """Whole weights give, at the same draws, the bound of rows that are repeated so often, zero leaving them out."""
    x, _ = rows
    weights = torch.arange(120).remainder(4).double()
    repeated = started(story, x.repeat_interleave(weights.long(), 0))
    weighted = Pair.of_story(repeated.story, x, weights=weights, initialise=False)
    assert losses(weighted) == pytest.approx(losses(repeated), rel=1e-12)


def test_weights_and_labels_start_where_repeated_rows_do(rows):
    x, z = rows
    weights = 1.0 + torch.arange(120).remainder(3).double()
    copies = weights.long()
    weighted = started(GaussianMixture(2, 2), x, z, weights).story.state_dict()
    repeated = started(GaussianMixture(2, 2), x.repeat_interleave(copies, 0), z.repeat_interleave(copies)).story
    for name, value in repeated.state_dict().items():
        torch.testing.assert_close(weighted[name], value)


@pytest.mark.parametrize("compiler", ["graph", "off"])
def test_weights_of_any_pair(compiler):
    """A conjugate normal mean: the posterior's precision is 1 + sum w, its mean sum w y over it."""

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    def guide(y):
        loc = pyro.param("loc", torch.tensor(0.0))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        pyro.sample("mu", dist.Normal(loc, scale))

    y = torch.linspace(-1, 3, 20)
    weights = torch.linspace(0.1, 2.5, 20)
    options = {"learning_rate": 0.05, "steps": 2500, "decay": 0.9975, "progress": False}
    fit = pplgen.fit(model, y, guide, weights=weights, compile=compiler, **options)
    with fit.pair.isolated():
        loc, scale = pyro.param("loc").item(), pyro.param("scale").item()
    precision = 1 + weights.sum().item()
    # Adam at a rate r and gradients with standard deviation 5.2, the root of the precision, has a mean with standard
    # deviation (r / 2 / 5.2)^(1/2), .003 at the last r of 1e-4 and .005 some hundred steps before
    assert loc == pytest.approx((weights * y).sum().item() / precision, abs=0.02)
    assert scale == pytest.approx(precision**-0.5, rel=0.1)


def test_facts_go_through_the_traced_graph_in_minibatches(rows):
    x, z = rows
    labels, weights = torch.where(torch.arange(120) % 3 == 0, z, -1), torch.rand(120).double()
    options = {"labels": labels, "weights": weights, "steps": 150, "progress": False}
    whole = pplgen.fit(GaussianMixture(2, 2), x, **options)
    batches = pplgen.fit(GaussianMixture(2, 2), x, batch_size=40, **options)
    assert "graph" in whole.path
    assert "graph" in batches.path
    assert batches.elbo == pytest.approx(whole.elbo, abs=2 + 4 * batches.best.elbo_error)


def test_labels_of_a_bare_pair(rows):
    x, z = rows

    def model(x):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 5.0).to_event(1))
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(torch.ones(2) / 2))
            pyro.sample("x", dist.Normal(mu[c], 1.0), obs=x)

    fit = pplgen.fit(model, x[:, 0], labels=z, steps=1500, progress=False)
    mean = fit.to_datatree(200, groups=["posterior"])["posterior"]["mu"].values[0].mean(axis=0)
    expected = [x[z == k, 0].mean().item() for k in (0, 1)]
    # posterior deviation 60^(-1/2) = .13; the prior shrinks by .1 %
    np.testing.assert_allclose(mean, expected, atol=0.05)
    with pytest.raises(InputError, match=r"labels, row 2: 2: expected one of 0 to 1, or nothing"):
        pplgen.fit(model, x[:, 0], labels=2 * z, steps=5, progress=False)


def test_imputation_heeds_labels():
    """A row without any entry is drawn from the component that its label names."""
    x = torch.cat([torch.randn(50, 1) - 5, torch.randn(50, 1) + 5])
    x[7] = x[60] = torch.nan
    labels = torch.full((100,), -1)
    labels[7], labels[60] = 0, 1
    labels[:5], labels[-5:] = 0, 1
    fit = pplgen.fit(GaussianMixture(2, 1), x, labels=labels, steps=120, progress=False)
    drawn = fit.impute(draws=100)
    assert (drawn[:, 7] < 0).all()
    assert (drawn[:, 60] > 0).all()


def test_pinned_draws_and_enumerates():
    pinned = PartlyObserved(dist.Categorical(torch.tensor([0.5, 0.3, 0.2])), torch.tensor([-1, 2]))
    assert pinned.sample((100,))[:, 1].unique().tolist() == [2]
    assert len(pinned.sample((100,))[:, 0].unique()) == 3
    values = pinned.enumerate_support()
    assert values.shape == (3, 2)
    expected = torch.tensor([[0.5, 0.0], [0.3, 0.0], [0.2, 0.2]])
    torch.testing.assert_close(pinned.log_prob(values).exp(), expected)


def test_columns_of_the_table_can_be_named(tmp_path, rows):
    x, z = rows
    frame = pd.DataFrame(x.numpy(), columns=["a", "b"])
    frame["kind"], frame["count"] = z.double().numpy(), 1.5
    frame.loc[frame.index % 2 == 0, "kind"] = np.nan
    table = pplgen.load_data(frame, labels="kind", weights="count")
    assert table.columns == ("a", "b")
    assert table.labels[:4].tolist() == [-1, 1, -1, 1]
    fit = pplgen.fit(GaussianMixture(2, 2), table, steps=10, progress=False)
    fit.save(tmp_path / "run")
    again = pplgen.load(tmp_path / "run", frame, labels="kind", weights="count")
    assert torch.equal(again.log_likelihood(draws=10), fit.log_likelihood(draws=10))
    with pytest.raises(InputError, match="the rows of this run had labels: give the same labels"):
        pplgen.load(tmp_path / "run", frame[["a", "b"]])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"labels": [0, 1]}, "labels: 2 values for 120 rows"),
        ({"labels": [0.5] * 120}, r"labels, row 1: 0.5: expected 0, 1, 2, \.\.\., or nothing"),
        ({"labels": [0] * 119 + [2]}, "labels, row 120: 2: expected 0 to 1, or -1 if unknown"),
        ({"labels": "kind"}, "labels='kind': expected one of the columns x0, x1"),
        ({"labels": ["a"] * 120}, "labels: expected one number for each row"),
        ({"weights": [1.0] * 119 + [-1.0]}, "weights, row 120: -1: expected a finite number of at least 0"),
        ({"weights": [0.0] * 120}, "weights: all are 0; at least one must be positive"),
    ],
)
def test_wrong_facts(rows, options, sentence):
    with pytest.raises(InputError, match=sentence):
        pplgen.fit(GaussianMixture(2, 2), rows[0], steps=5, progress=False, **options)


def test_stories_without_labels_say_so(rows):
    with pytest.raises(InputError, match="labels: DirichletProcessMixture does not accept labels"):
        pplgen.fit(DirichletProcessMixture(3, 2), rows[0], labels=rows[1], steps=5, progress=False)


def test_weights_and_a_guide_that_enumerates_are_refused():
    def model(y):
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("y", dist.Normal(2 * z, 1.0), obs=y)

    def guide(y):
        q = pyro.param("q", torch.tensor(0.5), constraint=constraints.unit_interval)
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Bernoulli(q), infer={"enumerate": "parallel"})

    with pytest.raises(InputError, match="weights: the guide enumerates a discrete latent"):
        pplgen.fit(model, torch.randn(3), guide, weights=torch.ones(3), steps=5, progress=False)


def test_weighted_rows_have_a_bic_but_no_loo(rows):
    x, _ = rows
    weighted = pplgen.fit(GaussianMixture(1, 2), x, weights=[2.0] * 120, steps=10, progress=False)
    repeated = pplgen.fit(GaussianMixture(1, 2), torch.cat([x, x]), steps=10, progress=False)
    # the posterior mean is a mean of 1,000 draws
    assert bic(weighted) == pytest.approx(bic(repeated), abs=0.5)
    with pytest.raises(InputError, match="fitted to weighted rows"):
        pplgen.compare({"a": weighted, "b": weighted})


def test_labels_that_are_all_missing_change_nothing(rows):
    x, _ = rows
    pair = started(GaussianMixture(2, 2), x, labels=torch.full((120,), -1))
    free = started(GaussianMixture(2, 2), x)
    assert losses(pair) == pytest.approx(losses(free), rel=1e-12)
