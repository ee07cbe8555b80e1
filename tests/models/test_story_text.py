"""A story is its own text: the sites of model and guide are literals in its own file."""

import inspect
import re
import sys

import pytest
import torch
from pyro import poutine

from pplgen import models
from pplgen.story.pair import Pair
from pplgen.story.structure import sample_sites

OWN_TEXT = ("Autoencoder", "FactorAnalysis", "MixtureVAE", "PPCA", "SemiSupervisedVAE", "VAE")


def literals(function):
    """Names of the sites in the source of a function, in order."""
    return re.findall(r'pyro\.sample\(\s*"(\w+)"', inspect.getsource(function))


@pytest.mark.parametrize("name", OWN_TEXT)
def test_the_sites_are_literals_of_the_storys_file(name):
    kind = getattr(models, name)
    story = kind(4, 2, likelihood="normal") if "likelihood" in inspect.signature(kind).parameters else kind(4, 2)
    pair = Pair.of_story(story, torch.randn(12, 4))
    with pair.isolated(), torch.no_grad():
        guide = poutine.trace(pair.guide).get_trace(*pair.data)
        model = poutine.trace(poutine.replay(pair.model, guide)).get_trace(*pair.data)
    for trace, function in ((model, kind.model), (guide, kind.guide)):
        assert inspect.getsourcefile(inspect.unwrap(function)) == sys.modules[kind.__module__].__file__
        assert list(sample_sites(trace)) == literals(function)
