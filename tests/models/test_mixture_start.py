"""Starts: the best of several among many rows, and merged and split clusters."""

import numpy as np
import pytest
import torch
from pplgen.models import GaussianMixture
from pplgen.models._starts.mixture_start import _split_and_merge
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

import pplgen
from pplgen.exact.em import GaussianMixtureParameters, e_step
from pplgen.story.isolation import seeded

K, D, N = 6, 3, 12_000


@pytest.fixture(scope="module")
def truth():
    """Six components that overlap a little, four standard deviations apart: their best maximum is clearly the best."""
    scales = torch.tensor([1.2, 0.9, 0.6])
    factors = torch.stack([scales.roll(k).diag() + 0.3 * torch.ones(D, D).tril(-1) for k in range(K)])
    centres = 3 * torch.cat([torch.eye(D), -torch.eye(D)])
    return MixtureSameFamily(
        Categorical(torch.arange(1.0, K + 1)), MultivariateNormal(centres, factors @ factors.mT + 0.1 * torch.eye(D))
    )


@pytest.fixture(scope="module")
def rows(truth):
    with seeded(1):
        return truth.sample((N,))


@pytest.mark.parametrize("seed", range(3))
def test_one_start_is_as_good_as_the_truth(truth, rows, seed):
    """Before any step, the log density at the guide's centre is at least that of the true parameters, which are not the
    maximum; a start in another local maximum would be lower by .05 nats per row and more."""
    story = GaussianMixture(K, D)
    with seeded(seed):
        story.initialise(rows)
    mu, L = story.components.mean()
    started = GaussianMixtureParameters(story.q_weights / story.q_weights.sum(), mu, L @ L.mT)
    ours = e_step(rows.double(), GaussianMixtureParameters(*(part.detach().double() for part in started)))[1] / N
    # the prior and EM's last gain, .001, may cost a little
    assert ours.item() > truth.log_prob(rows).mean().item() - 0.003


def test_labels_and_weights_are_heeded_among_many_rows():
    """Labelled rows of two far groups name the components, and rows without weight do not count."""
    z = (torch.arange(N) % 2).long()
    x = torch.randn(N, 2, generator=torch.Generator().manual_seed(0)) + 8.0 * z[:, None]
    x[::10] = 100.0
    weights = torch.ones(N)
    weights[::10] = 0.0
    labels = torch.full((N,), -1)
    labels[1:100:2], labels[2:100:2] = 0, 1
    labels[::10] = -1
    story = GaussianMixture(2, 2)
    with seeded(0):
        story.initialise(x, labels, weights)
    # 5,400 rows each, less the tenth without weight among the even ones: deviations of the means near .014
    torch.testing.assert_close(story.components.q_location.value[:, 0], torch.tensor([8.0, 0.0]), atol=0.06, rtol=0)


@pytest.mark.parametrize("seed", range(3))
def test_a_few_labels_name_the_components(seed):
    """Eight labelled rows among sixty thousand."""
    z = (torch.arange(60_000) % 2).long()
    x = torch.randn(60_000, 1, generator=torch.Generator().manual_seed(0)) + 8.0 * z[:, None]
    labels = torch.full_like(z, -1)
    labels[:8] = 1 - z[:8]
    story = GaussianMixture(2, 1)
    with seeded(seed):
        story.initialise(x, labels)
    torch.testing.assert_close(story.components.q_location.value[:, 0], torch.tensor([8.0, 0.0]), atol=0.05, rtol=0)


def test_of_restarts_that_agree_the_refined_one_is_returned():
    """Thirty rows each at distance 3, which have one column: the best optimum is over as many draws as it needs."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(60, 1, generator=generator) + 3.0 * (torch.arange(60) % 2)[:, None]
    fit = pplgen.fit(GaussianMixture(2, 1), x, restarts=4, compile="graph", progress=False)
    assert fit.best.optimum.monte_carlo_error < 0.03
    assert fit.best.optimum.num_draws > min(run.optimum.num_draws for run in fit.runs if run.optimum)
    (missed,) = (check for check in fit.diagnose() if check.name == "posterior mass at missed modes")
    assert np.isfinite(missed.value)


def test_many_rows_with_gaps_start_and_fit(rows):
    x = rows.clone()
    x[torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.1] = torch.nan
    fit = pplgen.fit(GaussianMixture(K, D), x, batch_size=500, steps=120, progress=False)
    assert fit.story.missing
    assert torch.isfinite(torch.tensor(fit.elbo))


@pytest.fixture(scope="module")
def overlapping():
    """Thirty rows around 0 and thirty around 3; not shifted with the tests' seeds, since the modes are close."""
    generator = np.random.Generator(np.random.PCG64(1))
    draws = [generator.normal(mean, 1, (30, 1)) for mean in (0, 3)]
    return torch.tensor(np.concatenate(draws), dtype=torch.float32)


@pytest.mark.parametrize("seed", range(10))
def test_a_component_stays_empty_where_that_is_the_better_mode(overlapping, seed):
    """The narrow default prior prefers one wide component, by about 2.5 nats; Fraley and Raftery's wide one two."""
    sizes = {}
    for name, scale in {"narrow": None, "wide": overlapping.std().item()}.items():
        story = GaussianMixture(2, 1, prior_scale=scale)
        with seeded(seed):
            story.initialise(overlapping)
        sizes[name] = sorted(story.q_weights.tolist())
    assert sizes["narrow"] == pytest.approx([1, 61], abs=0.01)
    assert 25 < sizes["wide"][0] < 37


def test_clusters_that_share_a_group_are_exchanged_for_a_split():
    """K-means may leave two groups in one cluster, and halve a third."""
    groups = torch.arange(4).repeat_interleave(50)
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)) + 8.0 * groups[:, None]
    halves = torch.where((groups == 3) & (torch.arange(200) % 2 == 0), 2, (groups - 1).clamp(min=0) + (groups == 3))
    story = GaussianMixture(4, 2)
    scaled = story.components.learn_scales(x)[1]
    clusters = torch.nn.functional.one_hot(halves, 4).float()
    with torch.no_grad():
        found = _split_and_merge(story.components, 1.0, clusters, x, scaled, torch.ones(200))
    torch.testing.assert_close(found, torch.nn.functional.one_hot(groups, 4).float())


def test_the_fit_of_overlapping_groups_finds_the_better_mode(overlapping):
    """The bounds of the modes are -135.5 and -138.2, their standard errors .1."""
    fit = pplgen.fit(GaussianMixture(2, 1), overlapping, compile="graph", progress=False)
    assert fit.elbo > -136.5
