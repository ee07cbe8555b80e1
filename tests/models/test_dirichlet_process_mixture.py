"""The Dirichlet process mixture: its sticks, its clusters, and how many components it occupies."""

import numpy as np
import pytest
import torch
from pplgen.models import DirichletProcessMixture
from pplgen.models._starts.dirichlet_process_start import log_probability
from pyro import poutine

import pplgen
from pplgen.errors import InputError


def test_weights_are_the_broken_stick():
    story = DirichletProcessMixture(5, 2)
    trace = poutine.trace(story.model).get_trace(None, num_rows=3)
    v, weights = trace.nodes["sticks"]["value"], trace.nodes["weights"]["value"]
    rest = 1.0
    for k in range(4):
        assert weights[k].item() == pytest.approx(v[k].item() * rest, rel=1e-5)
        rest *= 1 - v[k].item()
    assert weights[4].item() == pytest.approx(rest, rel=1e-4)


def test_prior_weights_have_the_process_moments():
    """E pi_k = c^(k-1) / (1 + c)^k at a fixed alpha = c; four standard errors of 300 draws."""
    story = DirichletProcessMixture(6, 1)
    held = poutine.condition(story.model, {"alpha": torch.tensor(2.0)})
    torch.manual_seed(0)
    weights = torch.stack([poutine.trace(held).get_trace(None).nodes["weights"]["value"] for _ in range(300)])
    expected = torch.tensor([2.0 ** (k - 1) / 3.0**k for k in range(1, 6)])
    error = weights[:, :5].std(0) / 300**0.5
    assert ((weights[:, :5].mean(0) - expected).abs() < 4 * error).all()


@pytest.fixture(scope="module")
def three_groups():
    """Three separated groups of 60, 90 and 150 rows in three dimensions."""
    generator = torch.Generator().manual_seed(1)
    centres = torch.tensor([[0.0, 0.0, 0.0], [6.0, 0.0, 3.0], [0.0, 7.0, -3.0]])
    z = torch.arange(3).repeat_interleave(torch.tensor([60, 90, 150]))
    return centres[z] + torch.randn(300, 3, generator=generator), z


@pytest.fixture(scope="module")
def three_fit(three_groups):
    return pplgen.fit(
        DirichletProcessMixture(6, 3), three_groups[0], optimiser="adam", steps=500, compile="graph", progress=False
    )


def test_as_many_components_are_occupied_as_there_are_groups(three_groups, three_fit, capsys):
    _, z = three_groups
    tree = three_fit.to_datatree(draws=400)
    occupied = tree["posterior"]["num_occupied"].values.ravel()
    assert occupied.shape == (400,)
    assert (occupied == 3).mean() > 0.8
    weights = np.sort(tree["posterior"]["weights"].mean(("chain", "draw")).values)[::-1]
    np.testing.assert_allclose(weights[:3], [0.5, 0.3, 0.2], atol=0.02)  # 300 rows: a draw of z hardly errs
    assert weights[3:].sum() < 0.03
    label = three_fit.latents()["z"].values.argmax(1)
    for group in range(3):
        assert len(set(label[z.numpy() == group])) == 1
    three_fit.summary(tree=tree)
    assert "num_occupied" in capsys.readouterr().out


def test_missing_entries_are_imputed(three_groups, three_fit):
    rows = three_groups[0][60:65].clone()  # of the second group, which the other columns tell apart
    rows[:, 1] = torch.nan
    drawn = three_fit.impute(rows, draws=300)
    # 1,500 draws around what the ninety rows of the group have: four standard errors are .10 and .07, another .05 is
    # for the prior and the guide
    group = three_groups[0][60:150, 1]
    assert drawn[..., 1].mean().item() == pytest.approx(group.mean().item(), abs=0.15)
    assert drawn[..., 1].std().item() == pytest.approx(group.std().item(), abs=0.12)


def test_clusters_are_compared_by_the_restaurants_probability(three_groups):
    """Splitting a group costs probability, and so does joining two."""
    x, z = three_groups
    story = DirichletProcessMixture(8, 3)
    story.initialise(x)
    split = torch.where((z == 2) & (torch.arange(300) % 2 == 0), 3, z)
    joined = torch.where(z == 2, 1, z)

    def score(clusters):
        return log_probability(story.components, 1.0, x, torch.nn.functional.one_hot(clusters, 8).to(x.dtype))

    right = score(z)
    assert all(score(wrong) < right - 5 for wrong in (split, joined))
    permuted = score((z + 1) % 3)
    assert permuted == pytest.approx(right, abs=0.1)  # float32 sums of 300 rows


def test_the_base_measure_does_not_depend_on_the_truncation():
    """Two far groups: surplus components cost some tenths of a nat, through the guide of the sticks."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(120, 2, generator=generator) + 6.0 * (torch.arange(120) % 2)[:, None]
    options = {"optimiser": "adam", "steps": 300, "learning_rate": 0.05, "decay": 0.99, "compile": "graph"}
    few, many = (pplgen.fit(DirichletProcessMixture(K, 2), x, progress=False, **options).elbo for K in (3, 5))
    assert few == pytest.approx(many, abs=1.5)


def test_bad_sizes():
    with pytest.raises(InputError, match="num_components=1: expected a whole number of at least 2"):
        DirichletProcessMixture(1, 2)
    with pytest.raises(InputError, match="5 rows are too few for 10 components"):
        pplgen.fit(DirichletProcessMixture(10, 2), torch.randn(5, 2), progress=False)
