"""A story is its own text: the sites of model and guide are literals in its own file."""

import inspect
import itertools
import re
import sys

import pytest
import torch
from pyro import poutine

from pplgen import models
from pplgen.story.pair import Pair
from pplgen.story.structure import sample_sites

OWN_TEXT = {
    **{name: [{}] for name in ("FactorAnalysis", "PPCA")},
    **{name: [{"likelihood": "normal"}] for name in ("Autoencoder", "MixtureVAE", "SemiSupervisedVAE", "VAE")},
    "GaussianHMM": [
        *({"emission": emission} for emission in ("diag", "full", "poisson")),
        {"emission": "categorical", "num_categories": 3},
        {"known": {"mu": 0.0, "pi": 0.5}},
    ],
    "LinearGaussianSSM": [
        {},
        {"known": {"C": 1.0}},
        *({"form": form} for form in ("level", "trend", "autoregression")),
    ],
    "MarkovSwitchingAR": [{}, {"order": 0}, {"switching_coefficients": True, "known": {"sigma": 1.0}}],
    "SwitchingLDS": [
        *({"recurrent": each, "covariance": covariance} for each in (True, False) for covariance in ("full", "diag")),
        {"switching_emission": True, "known": {"q": 0.3}},
    ],
}
"""Sets of options of each story under which every site of its text occurs."""


def literals(function):
    """Names of the sites in the source of a function, in order; those of f-strings as patterns."""
    found = re.findall(r'pyro\.sample\(\s*(f?)"([^"]+)"', inspect.getsource(inspect.unwrap(function)))
    return [re.sub(r"\{[^}]*\}", r"\\w+", name) if formatted else name for formatted, name in found]


def used(sites, patterns):
    """The patterns that sites match, in order, or a failure where there is none."""
    rest = iter(patterns)
    current, matched = None, []
    for site in sites:
        if current is None or "\\" not in current or not re.fullmatch(current, site):  # an f-string names many sites
            current = next((each for each in rest if re.fullmatch(each, site)), None)
            assert current is not None, f"{site} has no literal, or not in this order: {patterns}"
            matched.append(current)
    return matched


@pytest.mark.parametrize("name", OWN_TEXT)
def test_the_sites_are_literals_of_the_storys_file(name):
    """What all rows share is a line of the model, and in the guide may be drawn by a module."""
    kind, seen = getattr(models, name), []
    for options in OWN_TEXT[name]:
        story = kind(**options) if kind.takes_series else kind(4, 2, **options)
        x = torch.randint(0, 3, (3, 6, story.num_features)).float() if kind.takes_series else torch.randn(12, 4)
        pair = Pair.of_story(story, x)
        with pair.isolated(), torch.no_grad():
            guide = poutine.trace(pair.guide).get_trace(*pair.data)
            model = poutine.trace(poutine.replay(pair.model, guide)).get_trace(*pair.data)
        rows = {name: site for name, site in sample_sites(guide).items() if site["cond_indep_stack"]}
        seen += used(sample_sites(model), literals(kind.model)) + used(rows, literals(kind.guide))
    for function in (kind.model, kind.guide):
        assert inspect.getsourcefile(inspect.unwrap(function)) == sys.modules[kind.__module__].__file__
    assert set(seen) == {*itertools.chain(literals(kind.model), literals(kind.guide))}, "a literal that never occurs"
