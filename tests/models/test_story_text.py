"""A story is its own text: the sites of model and guide are literals in its own file."""

import inspect
import re
import sys

import pytest
import torch
from pyro import poutine

from pplgen import models
from pplgen.story.pair import Pair
from pplgen.story.structure import plates_of_site, sample_sites

LATENT = [{"num_features": 4, "num_latents": 2}]
GAUSSIAN = [{"num_features": 4, "covariance": kind} for kind in ("full", "tied", "diag", "spherical")]
OPTIONS = {
    "Autoencoder": LATENT,
    "DirichletProcessMixture": GAUSSIAN,
    "FactorAnalysis": LATENT,
    "GaussianHMM": [
        *({"emission": emission} for emission in ("diag", "full", "poisson")),
        {"emission": "categorical", "num_categories": 3},
        {"known": {"mu": 0.0, "pi": 0.5}},
    ],
    "GaussianMixture": GAUSSIAN,
    "LinearGaussianSSM": [
        {},
        {"known": {"C": 1.0}},
        *({"form": form} for form in ("level", "trend", "autoregression")),
    ],
    "MarkovSwitchingAR": [{}, {"order": 0}, {"switching_coefficients": True, "known": {"sigma": 1.0}}],
    "MixedMixture": [
        {"num_features": 4, "columns": "categorical2,normal,categorical4,student"},
        {"num_features": 4, "columns": "binary,poisson,normal,binary"},
        {"num_features": 4, "columns": "categorical2"},
    ],
    "MixtureVAE": [{"num_components": 4, "num_features": 4}],
    "PPCA": LATENT,
    "SemiSupervisedVAE": [{"num_features": 4, "num_classes": 2}],
    "SwitchingLDS": [
        *({"recurrent": each, "covariance": covariance} for each in (True, False) for covariance in ("full", "diag")),
        {"switching_emission": True, "known": {"q": 0.3}},
    ],
    "VAE": LATENT,
}
"""Stories whose model has all sites in its text, with options under which each of them occurs."""


def literals(function):
    """Patterns of the sites' names in the source of a function, in order; an f-string's braces match anything."""
    calls = re.findall(r'pyro\.(?:sample|deterministic)\(\s*(f?)"([^"]+)"', inspect.getsource(inspect.unwrap(function)))
    return [re.sub(r"\\{.*?\\}", ".+", re.escape(name)) if f else re.escape(name) for f, name in calls]


def places(sites, patterns):
    """Return the index of each site's pattern; sites in another order than the patterns have none."""
    found, place = [], 0
    for site in sites:
        rest = [i for i in range(place, len(patterns)) if re.fullmatch(patterns[i], site)]
        assert rest, f"{site!r} is not a literal of this text, or not in its order: {patterns}"
        place = rest[0]
        found.append(place)
    return found


@pytest.mark.parametrize("name", OPTIONS)
def test_the_sites_are_literals_of_the_storys_file(name):
    kind = getattr(models, name)
    text, guide_text, occur = literals(kind.model), literals(kind.guide), set()
    for function in (kind.model, kind.guide):
        assert inspect.getsourcefile(inspect.unwrap(function)) == sys.modules[kind.__module__].__file__
    for options in OPTIONS[name]:
        normal = {"likelihood": "normal"} if "likelihood" in inspect.signature(kind).parameters else {}
        story, binary = kind(**options, **normal), torch.arange(48) % 2.0
        shape = (2, -1, story.num_features) if kind.takes_series else (12, 4)
        pair = Pair.of_story(story, binary.reshape(shape))
        with pair.isolated(), torch.no_grad():
            guide = poutine.trace(pair.guide).get_trace(*pair.data)
            model = poutine.trace(poutine.replay(pair.model, guide)).get_trace(*pair.data)
        occur |= set(places(sample_sites(model), text))
        # a guide module may draw parameters that all rows share, but no site of rows
        of_rows = [site for site, node in sample_sites(guide).items() if "data" in plates_of_site(node)]
        places(of_rows, guide_text)
        assert all(any(re.fullmatch(pattern, site) for site in guide.nodes) for pattern in guide_text)
    assert occur == set(range(len(text)))
