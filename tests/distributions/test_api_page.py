"""The page of the public distributions names all of them, and its pairs fit."""

import math
import re
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

import pplgen
from pplgen import distributions

PAGE = (Path(__file__).parents[2] / "docs" / "api" / "distributions.md").read_text("utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)
SHAPES = [(20, 3), (20, 2), (20, 1), (20, 4), (3, 15, 1)]
MISSING = [True, False, False, True, True]


def test_every_distribution_is_on_its_page():
    assert set(re.findall(r"pplgen\.distributions\.(\w+)", PAGE)) == set(distributions.__all__)


@pytest.mark.parametrize(("code", "shape", "missing"), [*zip(EXAMPLES, SHAPES, MISSING, strict=True)])
def test_examples_fit(code, shape, missing):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if "bernoulli" in code:
        x = (x > 0).float()
    if missing:
        x[0, 1] = math.nan
    names = {"pyro": pyro, "dist": dist, "torch": torch}
    names |= {name: getattr(distributions, name) for name in distributions.__all__}
    exec(compile(code, "distributions.md", "exec"), names)
    fit = pplgen.fit(names["model"], x, steps=100, optimiser="adam", compile="off", progress=False)
    assert math.isfinite(fit.elbo)
