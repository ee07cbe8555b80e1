"""The contract of a story, tested on every story of the collection, and the checks that constructors use."""

import inspect
import json
import math
import statistics
import subprocess
import sys
import warnings

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from pyro.poutine.util import site_is_subsample

import pplgen.story
from pplgen import models
from pplgen.errors import InputError
from pplgen.story.base import Story, check_count, check_per_feature, check_positive

STORIES = [entry.class_name for entry in models.collection()]
NUM_ROWS = 40


@pytest.fixture(params=STORIES)
def story(request):
    return getattr(models, request.param)()


@pytest.fixture
def rows(story):
    """Rows from the prior; a linear system drawn from it may explode, and is brought back to a sane scale."""
    rows = story.simulate(NUM_ROWS)
    return rows / rows.std() if rows.abs().max() > 1e6 else rows


@pytest.fixture
def bound(story):
    """Pyro's bound that suits: discrete sites are enumerated, or there are none."""
    nodes = poutine.trace(story.model).get_trace(None, num_rows=2).nodes.values()
    enumerates = any(node["type"] == "sample" and node["infer"].get("enumerate") for node in nodes)
    return TraceEnum_ELBO(max_plate_nesting=1) if enumerates else Trace_ELBO()


def test_collection_is_not_empty():
    assert "GaussianMixture" in STORIES
    assert set(STORIES) <= set(dir(models))


def test_config_rebuilds_an_untrained_twin(story):
    twin = type(story)(**json.loads(json.dumps(story.config)))
    assert twin.config == story.config
    assert set(twin.state_dict()) == set(story.state_dict())


def test_simulates_rows_from_none(story):
    rows = story.simulate(NUM_ROWS)
    assert rows.shape[0] == NUM_ROWS
    assert rows.isfinite().all()


def test_guide_covers_the_continuous_latents_and_nothing_else(story, rows):
    guide = poutine.trace(story.guide).get_trace(rows)
    model = poutine.trace(poutine.replay(story.model, guide)).get_trace(rows)
    latent = {name for name in model.stochastic_nodes if not site_is_subsample(model.nodes[name])}
    enumerated = {name for name in latent if model.nodes[name]["infer"].get("enumerate") == "parallel"}
    drawn = {name for name in guide.stochastic_nodes if not guide.nodes[name]["infer"].get("enumerate")}
    assert drawn & latent == latent - enumerated
    for name in latent - enumerated:
        assert guide.nodes[name]["value"].shape == model.nodes[name]["value"].shape
        assert guide.nodes[name]["fn"].event_shape == model.nodes[name]["fn"].event_shape


def test_dims_name_every_axis_of_every_site(story, rows):
    guide = poutine.trace(story.guide).get_trace(rows)
    model = poutine.trace(poutine.replay(story.model, guide)).get_trace(rows)
    for name, node in model.nodes.items():
        if node["type"] == "sample" and not site_is_subsample(node):
            categories = node["infer"].get("enumerate") == "parallel"
            assert len(story.dims[name]) == node["value"].ndim + categories, name
    for name, value in story.constants.items():
        assert len(story.dims[name]) == value.ndim, name


def test_rows_live_in_the_data_plate(story, rows):
    trace = poutine.trace(story.model).get_trace(rows)
    frames = {f for node in trace.nodes.values() if node["type"] == "sample" for f in node["cond_indep_stack"]}
    assert {f.size for f in frames if f.name == "data"} == {NUM_ROWS}


def test_log_density_is_finite_before_and_after_initialise(story, rows, bound):
    assert math.isfinite(bound.loss(story.model, story.guide, rows))
    story.initialise(rows)
    pyro.clear_param_store()
    assert math.isfinite(bound.loss(story.model, story.guide, rows))


def test_a_start_depends_on_rows_and_seed_not_on_when_the_story_was_made(story, rows):
    twin = type(story)(**story.config)  # whose weights were drawn later
    for each in (story, twin):
        torch.manual_seed(1)
        each.initialise(rows)
    for name, value in story.state_dict().items():
        torch.testing.assert_close(twin.state_dict()[name], value, rtol=0, atol=0, msg=name)


def test_trains_under_plain_pyro(story, rows, bound):
    """No help from the toolkit: Pyro's own SVI finds the parameters and improves the bound."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svi = SVI(story.model, story.guide, pyro.optim.Adam({"lr": 0.02}), bound)
        before = statistics.median(svi.evaluate_loss(rows) for _ in range(20))
        for _ in range(60):
            svi.step(rows)
        after = statistics.median(svi.evaluate_loss(rows) for _ in range(20))
    assert after < before
    assert len(list(pyro.get_param_store().keys())) == len(list(story.parameters()))


def test_refuses_rows_of_another_width(story, rows):
    with pytest.raises(InputError, match="expects"):
        story.check_data(torch.cat([rows, rows], dim=-1))


def test_options_must_be_plain_values():
    class Odd(Story):
        def __init__(self, scale):
            super().__init__(scale=scale)

    assert Odd(1.5).config == {"scale": 1.5}
    assert str(inspect.signature(Odd)) == "(scale)"
    with pytest.raises(InputError, match="Odd: options must be plain"):
        Odd(math.inf)
    with pytest.raises(InputError, match="Odd: options must be plain"):
        Odd(object())


def test_public_names_are_imported_lazily():
    """``import pplgen.story`` imports no torch; each public name is then the one of its module."""
    script = "import sys, pplgen.story; assert 'torch' not in sys.modules; from pplgen.story import Story, check_count"
    subprocess.run([sys.executable, "-c", script], check=True)
    assert pplgen.story.Story is Story
    assert {"LatentStory", "Pair", "StateSpaceStory", "Story"} <= set(pplgen.story.__all__) <= set(dir(pplgen.story))
    assert all(getattr(pplgen.story, name).__name__ == name for name in pplgen.story.__all__)
    with pytest.raises(AttributeError, match=r"module 'pplgen\.story' has no attribute 'Tale'"):
        pplgen.story.Tale  # noqa: B018


def test_a_story_that_overrides_notice_is_warned_of_and_works():
    """``notice`` was the name of ``observe_missing``; either may extend the other along a chain of subclasses."""
    calls = []
    with pytest.warns(FutureWarning, match=r"^Former\.notice: .*renamed to observe_missing") as warned:

        class Former(pplgen.story.LatentStory):
            def notice(self, x):
                super().notice(x)
                calls.append("former")

    assert warned[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")

        class Current(Former):
            def observe_missing(self, x):
                super().observe_missing(x)
                calls.append("current")

        class Neither(Current):
            pass

    with pytest.warns(FutureWarning, match=r"^Mixed\.notice"):

        class Mixed(Neither):
            def notice(self, x):
                super().notice(x)
                calls.append("mixed")

    former, mixed = Former(2, 1), Mixed(2, 1)
    former.observe_missing(torch.zeros(1, 2))
    assert calls == ["former"]
    assert not former.has_missing
    mixed.observe_missing(torch.full((1, 2), torch.nan))
    assert calls == ["former", "former", "current", "mixed"]
    assert mixed.has_missing


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "3", None])
def test_counts(value):
    assert check_count("k", 3) == 3
    with pytest.raises(InputError, match=r"^k=.*expected a whole number of at least 1$"):
        check_count("k", value)


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, True, "3", None])
def test_positive_numbers(value):
    assert check_positive("a", 3) == 3.0
    with pytest.raises(InputError, match=r"^a=.*positive, finite"):
        check_positive("a", value)


def test_one_number_per_feature():
    assert check_per_feature("m", None, 2) is None
    assert check_per_feature("m", 1, 2) == [1.0, 1.0]
    assert check_per_feature("m", [1, 2.5], 2) == [1.0, 2.5]
    for value in ("ab", [1, "b"], [1, math.nan]):
        with pytest.raises(InputError, match="finite number"):
            check_per_feature("m", value, 2)
    with pytest.raises(InputError, match="one for each of 2 features"):
        check_per_feature("m", [1, 2, 3], 2)
    with pytest.raises(InputError, match="positive"):
        check_per_feature("m", [1, 0], 2, positive=True)
