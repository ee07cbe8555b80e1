"""Pairs are kept apart from Pyro's global state and from what the caller owns."""

import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pplgen.models import GaussianMixture
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn

from pplgen.errors import InputError
from pplgen.story.conditioning import RowScale
from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair

ROWS = torch.linspace(-1.0, 2.0, 30)


def normal_model(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def normal_guide(y):
    loc = pyro.param("loc", torch.tensor(0.5))
    scale = pyro.param("scale", torch.tensor(0.3), constraint=dist.constraints.positive)
    pyro.sample("mu", dist.Normal(loc, scale))


def mixture_model(y):
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.Bernoulli(0.4), infer={"enumerate": "parallel"})
        pyro.deterministic("centre", mu[z.long()])
        pyro.sample("y", dist.Normal(mu[z.long()], 1.0), obs=y)


def test_structure_of_a_functional_pair():
    structure = Pair(normal_model, normal_guide, (ROWS,)).structure
    assert structure.plate_depth == 1
    assert structure.row_plate == "data"
    assert structure.latent == ("mu",)
    assert structure.observed == ("y",)
    assert structure.per_row == {"y"}
    assert not structure.enumerated
    assert not structure.enumerates


def test_structure_of_an_enumerated_pair_without_a_guide():
    pair = Pair(mixture_model, None, (ROWS,))
    assert pair.structure.latent == ("mu",)
    assert pair.structure.enumerated == ("z",)
    assert pair.structure.row_plate == "rows", "the only plate as long as the data"
    assert pair.structure.deterministic == (), "it depends on what is summed out"
    assert isinstance(pair.guide, AutoNormal)
    assert isinstance(pair.elbo(), TraceEnum_ELBO)
    assert isinstance(Pair(normal_model, normal_guide, (ROWS,)).elbo(), Trace_ELBO)


def test_unmarked_discrete_latents_are_summed_out_where_no_guide_is_given():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("y", dist.Normal(mu + z, 1.0), obs=y)

    assert Pair(model, None, (ROWS,)).structure.enumerated == ("z",)


def test_parameters_stay_out_of_the_global_store():
    pyro.param("loc", torch.tensor(7.0))
    pair = Pair(normal_model, normal_guide, (ROWS,))
    with pair.isolated():
        assert pyro.param("loc").item() == 0.5
        pyro.get_param_store()["loc"] = torch.tensor(1.5)
    assert list(pyro.get_param_store().keys()) == ["loc"]
    assert pyro.param("loc").item() == 7.0
    with pair.isolated():
        assert pyro.param("loc").item() == 1.5


def test_a_copied_module_and_a_borrowed_one_are_left_as_they_were():
    network = nn.Linear(1, 1)
    before = network.weight.detach().clone()

    def guide(y):
        pyro.module("network", network)
        pyro.sample("mu", dist.Normal(network(y.mean().reshape(1))[0], 1.0))

    pair = Pair(normal_model, guide, (ROWS,))
    with pair.isolated(), torch.no_grad():
        network.weight.add_(1.0)
    torch.testing.assert_close(network.weight, before)
    with pair.isolated():
        torch.testing.assert_close(network.weight, before + 1.0)
    torch.testing.assert_close(network.weight, before)

    automatic = AutoNormal(normal_model)
    owned = Pair(normal_model, automatic, (ROWS,))
    assert owned.guide is not automatic
    assert not list(automatic.parameters()), "the caller's guide was never run"
    automatic(ROWS)
    assert len(list(automatic.parameters())) == 2, "and still works: a location and a scale"


def test_initial_values_are_not_trained_in_place():
    start = torch.tensor(3.0)

    def guide(y):
        pyro.sample("mu", dist.Normal(pyro.param("loc", start), pyro.param("scale", lambda: start)))

    pair = Pair(normal_model, guide, (ROWS,))
    with pair.isolated(), torch.no_grad():
        for _, value in pyro.get_param_store().named_parameters():
            value.add_(1.0)
        assert pyro.param("loc", start).item() == 4.0
    assert start.item() == 3.0
    assert not start.requires_grad


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        (("float64", "float64"), "float64"),
        (("float64", "float32"), "float32"),
        (("float16",), "float32"),
        (("bfloat16",), "float32"),
    ],
)
def test_parameters_have_the_precision_of_data_of_one_kind(dtypes, expected):
    """Of data in half or in several precisions they have torch's default, as in Pyro."""

    def model(*rows):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=sum(each.to(mu.dtype) for each in rows))

    pair = Pair(model, None, tuple(torch.ones(3, dtype=getattr(torch, each)) for each in dtypes))
    with pair.isolated():
        assert {value.dtype for value in pair.snapshot().values()} == {getattr(torch, expected)}


def test_parameters_are_kept_whatever_the_users_setting():
    with pyro.settings.context(module_local_params=True):
        story = GaussianMixture(2, 1)
        pair = Pair.of_story(story, ROWS[:, None])
        with pair.isolated():
            assert len(pair.snapshot()) == len(list(story.parameters()))


def test_rows_that_the_model_subsamples_itself_are_not_rows():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(y), subsample_size=10) as index:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y[index])

    structure = Pair(model, normal_guide, (ROWS,)).structure
    assert structure.row_plate is None
    assert "without subsampling" in structure.why_no_row_densities()


def test_a_plate_as_long_as_the_data_holds_them_only_if_they_are_observed_in_it():
    def model(y):
        with pyro.plate("components", len(y)):
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu, 1.0).to_event(1), obs=y)

    assert Pair(model, None, (ROWS,)).structure.row_plate is None


def test_factors_are_not_observed_data():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        pyro.factor("penalty", -mu.square())
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    structure = Pair(model, normal_guide, (ROWS,)).structure
    assert structure.observed == ("y",)
    assert structure.factors == ("penalty",)


def test_snapshot_and_restore():
    pair = Pair(normal_model, normal_guide, (ROWS,))
    with pair.isolated():
        good = pair.snapshot()
        pyro.get_param_store()["loc"] = torch.tensor(9.0)
        pair.restore(good)
        assert pyro.param("loc").item() == 0.5
        with pytest.raises(InputError, match=r"parameter 'loc' has shape none; expected \(\)"):
            pair.restore({"scale": good["scale"]})


def test_row_scale_makes_a_minibatch_stand_for_all_rows():
    """Averaged over a partition, the scaled bound is the full one; a scaled global site would break it."""
    conditioned = pyro.poutine.condition(normal_model, {"mu": torch.tensor(0.7)})

    def log_joint(y):
        return pyro.poutine.trace(conditioned).get_trace(y).log_prob_sum()

    with RowScale("data", 3.0):
        batches = [log_joint(batch) for batch in ROWS.split(10)]
    torch.testing.assert_close(torch.stack(batches).mean(), log_joint(ROWS))


def test_every_generator_is_put_back():
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    with seeded(5):
        first = torch.rand(1), random.random(), np.random.rand()  # noqa: NPY002
    with seeded(5):
        assert (torch.rand(1), random.random(), np.random.rand()) == first  # noqa: NPY002
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])


def test_pairs_that_cannot_be_fitted():
    def counts(y):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(y)):
            n = pyro.sample("n", dist.Poisson(rate))
            pyro.sample("y", dist.Normal(n, 1.0), obs=y)

    with pytest.raises(InputError, match="latent site 'n' is Poisson, which cannot be enumerated"):
        Pair(counts, None, (ROWS,))
    with pytest.raises(InputError, match="site 'mu' is in the model but not in the guide"):
        Pair(normal_model, lambda y: None, (ROWS,))
    with pytest.raises(InputError, match="no continuous latent site"):
        Pair(lambda y: pyro.sample("y", dist.Normal(0.0, 1.0), obs=y.sum()), None, (ROWS,))
