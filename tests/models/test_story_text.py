"""A story is its own text: sites are literals in its own file, and their densities are public or there too."""

import ast
import builtins
import inspect
import re
import sys
import textwrap

import pyro
import pytest
import torch
from pplgen.models._guides.mixture_weights import weights_guide
from pyro import poutine
from pyro.nn import pyro_method

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
        story, binary = kind(**options), torch.arange(48) % 2.0
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


PUBLIC = ("builtins", "functools", "math", "pyro", "torch", "typing", "pplgen.distributions", "pplgen.story")
"""Packages whose functions and classes a model may call, besides its own methods, and attributes that stories set."""


def path_of(node):
    """Return the names of a dotted expression, ``["self", "decode"]``, or none where it starts with something else."""
    if isinstance(node, ast.Attribute):
        path = path_of(node.value)
        return path and [*path, node.attr]
    return [node.id] if isinstance(node, ast.Name) else []


def private_parts(kind, name="model"):
    """What a story's method, and those of its own class that it calls, take from elsewhere than ``PUBLIC``."""
    function = inspect.unwrap(vars(kind)[name])
    definition = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    nodes = [node for statement in definition.body for node in ast.walk(statement)]
    local = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    local |= {node.arg for node in ast.walk(definition) if isinstance(node, ast.arg)}
    found = set()
    for used in {node.id for node in nodes if isinstance(node, ast.Name)} - local:
        value = function.__globals__[used] if used in function.__globals__ else getattr(builtins, used)
        origin = getattr(value, "__module__", None) or getattr(value, "__name__", function.__module__)
        if origin != function.__module__ and not origin.startswith(PUBLIC):
            found.add(used)
    stories = "".join(inspect.getsource(base) for base in kind.__mro__ if base.__name__ in dir(models))
    calls = [path_of(node.func) for node in nodes if isinstance(node, ast.Call)]
    for method in {path[1] for path in calls if path[:1] == ["self"]}:
        if method in vars(kind):
            found |= private_parts(kind, method)
        elif not re.search(rf"\bself\.{method}\b[^=(]* = |register_buffer\(\"{method}\"", stories):
            found.add(f"self.{method}")
    return found


@pytest.mark.parametrize("name", OPTIONS)
def test_densities_of_the_model_are_public_or_in_the_storys_file(name):
    assert private_parts(getattr(models, name)) == set()


class Hidden(models.VAE):
    """A story with a density that is neither public nor in its file, and a prior inherited from another file."""

    @pyro_method
    def model(self, x=None, num_rows=1):
        with pyro.plate("data", num_rows):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.decode(z), obs=x)

    @pyro_method
    def decode(self, z):
        return weights_guide(self.decoder(z))


def test_a_hidden_density_is_found():
    assert private_parts(Hidden) == {"weights_guide", "self.prior"}
