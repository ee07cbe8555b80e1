"""The semi-supervised autoencoder against its equations by hand, quadrature, and labels that were hidden."""

import contextlib
import itertools
import math

import pytest
import torch
from pplgen.models import SemiSupervisedVAE
from pyro import poutine
from pyro.infer import TraceEnum_ELBO

import pplgen
from pplgen.errors import DataWarning, InputError
from pplgen.inference.minibatches import batching
from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair


@pytest.fixture
def small():
    """A story of three classes and codes of two entries, with rows of which every second is labelled."""
    torch.manual_seed(0)
    story = SemiSupervisedVAE(
        4, 2, num_classes=3, hidden=(6, 5), likelihood="normal", probabilities=[0.5, 0.25, 0.25]
    ).double()
    x = torch.randn(10, 4).double()
    x[3, 1] = x[4, 2] = torch.nan
    labels = torch.where(torch.arange(10) % 2 == 0, torch.arange(10) % 3, -1)
    story.observe_missing(x)
    story.initialise(x, labels)
    return story, x, labels


def by_hand(story, x, codes):
    """Return L(x, y) of every class and log q(y | x), shape (num_rows, 3) each, at codes of each class."""
    gaps = x.isnan()
    inputs = torch.where(gaps, 0.0, (x - story.seen.m) / story.seen.s)
    log_q = story.classifier(inputs, gaps).log_softmax(-1)
    each = []
    for c in range(3):
        outputs = story.encoder(inputs, torch.full((len(x),), c), gaps)
        mean, deviation = outputs[:, :2], torch.nn.functional.softplus(outputs[:, 2:]) + 1e-4
        z = codes[c]
        decoded = story.decoder(torch.cat([z, torch.eye(3, dtype=x.dtype)[c].expand(len(x), 3)], -1))
        seen = torch.distributions.Normal(story.seen.m + story.seen.s * decoded, story.seen.sigma)
        likelihood = torch.where(gaps, 0.0, seen.log_prob(x.nan_to_num())).sum(-1)
        prior = -0.5 * z.square().sum(-1) - math.log(2 * math.pi)
        posterior = torch.distributions.Normal(mean, deviation).log_prob(z).sum(-1)
        each.append(likelihood + prior - posterior + math.log([0.5, 0.25, 0.25][c]))
    return torch.stack(each, -1), log_q


@pytest.mark.parametrize("batch_size", [None, 5])
def test_bound_is_the_sum_over_classes_by_hand(small, batch_size):
    """J of the docstring at given draws, of all rows and of a minibatch; equal up to rounding."""
    story, x, labels = small
    pair = Pair.of_story(story, x, labels)
    with pair.isolated(), torch.no_grad():
        batches, scale = batching(pair, batch_size, seed=0)
        x, labels, _ = batch = next(batches)
        scales = torch.ones(len(x)) if scale is None else scale.scale
        with seeded(1):
            codes = (
                poutine.trace(poutine.enum(pair.guide, first_available_dim=-2)).get_trace(*batch).nodes["z"]["value"]
            )
        with seeded(1), scale or contextlib.nullcontext():
            found = -TraceEnum_ELBO(max_plate_nesting=1).loss(pair.model, pair.guide, *batch)
        L, log_q = by_hand(pair.story, x, codes)
    U = (log_q.exp() * (L - log_q)).sum(-1)
    of_label = torch.arange(len(x)), labels.clamp_min(0)
    J = torch.where(labels >= 0, L[of_label] + 0.1 * 10 / 5 * log_q[of_label], U)
    assert found == pytest.approx((scales * J).sum().item(), rel=1e-10)


def test_batches_hold_both_kinds_and_count_for_all_rows(small):
    """Over a pass, the scaled rows of a kind are as many as there are; a fifth of a batch has labels, at least."""
    story, _, _ = small
    x, labels = torch.randn(200, 4).double(), torch.full((200,), -1)
    labels[:6] = torch.arange(6) % 3
    pair = Pair.of_story(story, x, labels)
    with pair.isolated():
        batches, scale = batching(pair, 20, seed=0)
        for _, known, _ in itertools.islice(batches, 5):
            assert (known >= 0).sum() == 4
            assert scale.scale[known >= 0].sum() == pytest.approx(6)
            assert scale.scale[known < 0].sum() == pytest.approx(194)
        again, _ = batching(pair, 20, seed=0, skip=3)
        assert torch.equal(next(again)[1], list(itertools.islice(batching(pair, 20, seed=0)[0], 4))[3][1])


def test_code_and_class_are_one_distribution(small):
    """Densities integrate to one over codes and classes, and draws have the mean and variance that it says."""
    story, x, _ = small
    with torch.no_grad():
        q = story.encode(x[:1])
        axis = torch.linspace(-9, 9, 361).double()
        grid = torch.cartesian_prod(axis, axis)
        values = torch.cat([grid.repeat(3, 1), torch.eye(3).double().repeat_interleave(len(grid), 0)], -1)
        mass = q.log_prob(values.unsqueeze(1)).exp().sum() * (axis[1] - axis[0]) ** 2
        torch.manual_seed(0)
        drawn = q.sample((20_000,))
    assert mass.item() == pytest.approx(1, abs=1e-4)  # a deviation may be as short as few steps of the grid
    # four standard errors of the mean, and of the variance of what is at most normal
    assert ((drawn.mean(0) - q.mean).abs() < 4 * (q.variance / 20_000).sqrt() + 1e-9).all()
    torch.testing.assert_close(drawn.var(0), q.variance, rtol=4 * (2 / 20_000) ** 0.5, atol=1e-3)


def test_density_of_rows_is_the_integral_over_code_and_class():
    """With one entry to a code, p(x) is a sum of integrals on the line, here by the trapezoidal rule."""
    torch.manual_seed(0)
    story = SemiSupervisedVAE(4, 1, num_classes=3, hidden=(5,), likelihood="bernoulli").double()
    x, labels = story.simulate(30), torch.arange(30) % 4 - 1
    x[0, 1] = math.nan
    fit = pplgen.fit(story, x, labels=labels, steps=90, batch_size=15, progress=False)
    with fit.pair.isolated(), torch.no_grad():
        z = torch.linspace(-12, 12, 4001, dtype=x.dtype)
        code = torch.cat([z[:, None].repeat(3, 1), torch.eye(3).double().repeat_interleave(len(z), 0)], -1)
        code = code[:, None, :].expand(-1, len(x), -1)
        joint = fit.story.prior().log_prob(code) + fit.story.decode(code).log_prob(x)
        joint = joint.unflatten(0, (3, -1)).logsumexp(1) + math.log(z[1] - z[0])
    found = fit.log_likelihood(x, draws=4000)
    # four standard errors of the importance weights
    assert ((found - joint.logsumexp(0)).abs() < 4 * found.standard_error + 1e-6).all()
    known = labels >= 0
    own = fit.log_likelihood(draws=4000)  # the fit's rows have their classes: log p(x, y)
    expected = torch.where(known, joint.T[torch.arange(30), labels.clamp_min(0)], joint.logsumexp(0))
    assert ((own - expected).abs() < 4 * own.standard_error + 1e-6).all()


@pytest.fixture(scope="module")
def rings():
    """Three classes on arcs that no line tells apart, in six columns; thirty of 600 rows are labelled."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(600) % 3
    angle = torch.rand(600, generator=generator) * math.pi
    arc = torch.stack([angle.cos(), angle.sin() + y * 1.0], 1)
    x = torch.cat([arc, arc @ torch.tensor([[0.5, -1.0], [1.0, 0.3]]), arc.square()], 1)
    x = x + 0.05 * torch.randn(x.shape, generator=generator)
    return x, y, torch.where(torch.arange(600) < 30, y, -1)


@pytest.fixture(scope="module")
def rings_fit(rings):
    x, _, labels = rings
    networks = {"hidden": (32,), "activation": "tanh", "likelihood": "normal"}
    story = SemiSupervisedVAE(6, 1, num_classes=3, classification=1.0, **networks)
    return pplgen.fit(
        story, x, labels=labels, steps=700, batch_size=100, learning_rate=5e-3, progress=False, compile="graph"
    )


def test_rows_without_labels_are_classified(rings, rings_fit):
    x, y, _ = rings
    assert rings_fit.path == "the traced graph"
    latents = rings_fit.latents(x, draws=2)
    assert latents["y"].dims == ("row", "class")
    hidden = latents["y"].values.argmax(-1)[30:] == y[30:].numpy()
    assert hidden.mean() > 0.95  # classes touch nowhere


def test_latents_of_known_rows_are_certain_and_draws_have_names(rings, rings_fit):
    x, _, labels = rings
    known = rings_fit.latents(draws=2)["y"].values[:30]
    assert (known == torch.eye(3).numpy()[labels[:30]]).all()
    tree = rings_fit.to_datatree(20)
    assert tree["posterior"]["y"].dims == ("chain", "draw", "row")
    assert (tree["posterior"]["y"].values[0, :, :30] == labels[:30].numpy()).all()
    ratio = (tree["sample_stats"]["lp"] - tree["sample_stats"]["log_q"]).values
    told = rings_fit.elbo - ratio.mean()  # beside the bound, J has the term that teaches the classifier
    with rings_fit.pair.isolated(), torch.no_grad():
        classes = rings_fit.story.encode(x[:30]).classes.log_prob(labels[:30])
    # four standard errors of both bounds
    error = 4 * float(rings_fit.best.elbo_error**2 + ratio.var() / 20) ** 0.5
    assert told == pytest.approx(600 / 30 * classes.sum().item(), abs=error)


def test_reconstructs_and_imputes(rings, rings_fit):
    x, _, _ = rings
    with rings_fit.pair.isolated(), torch.no_grad():
        story = rings_fit.story
        again = story.decode(story.encode(x).mean).mean
    assert (again - x).square().mean() < 0.1 * x.var(0).mean()  # the mean alone would be one
    gaps = x[:50].clone()
    gaps[:, 2] = math.nan
    errors = rings_fit.impute(gaps, draws=20).mean(0)[:, 2] - x[:50, 2]
    assert errors.square().mean() < 0.2 * x[:, 2].var()


def test_saves_and_loads(tmp_path, rings, rings_fit):
    x, _, labels = rings
    rings_fit.save(tmp_path / "run")
    again = pplgen.load(tmp_path / "run", x, labels=labels)
    torch.testing.assert_close(again.log_likelihood(draws=5), rings_fit.log_likelihood(draws=5))


def test_trains_without_labels_and_with_all(rings):
    x, y, _ = rings
    story = SemiSupervisedVAE(6, 1, num_classes=3, hidden=(8,), likelihood="normal")
    for labels in (torch.full((600,), -1), y):
        fit = pplgen.fit(story, x, labels=labels, steps=20, batch_size=50, progress=False)
        assert math.isfinite(fit.elbo)


def test_mistakes_are_told(rings):
    x, y, _ = rings
    story = SemiSupervisedVAE(6, 1, num_classes=3, hidden=(8,), likelihood="normal")
    with pytest.raises(InputError, match="labels, row 3: 3: expected 0 to 2, or -1 if unknown"):
        pplgen.fit(story, x, labels=torch.where(y == 2, 3, y), steps=2, progress=False)
    with pytest.warns(DataWarning, match="no row is labelled as class 0, 2"):
        pplgen.fit(story, x, labels=torch.where(y == 1, 1, -1), steps=2, progress=False)
    with pytest.raises(InputError, match="weights: the guide enumerates a discrete latent"):
        pplgen.fit(story, x, weights=torch.ones(600), steps=2, progress=False)
    with pytest.raises(InputError, match="sum to one"):
        SemiSupervisedVAE(6, 1, num_classes=2, probabilities=[0.5, 0.6])
