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


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def with_gap(x):
    x[0, 1] = math.nan
    return x


DATA = [
    with_gap(noise(20, 3)),
    noise(20, 2),
    noise(20, 1),
    (3 * noise(20, 2)).abs().floor(),
    torch.bucketize(noise(20), torch.tensor([-0.5, 0.5])),
    noise(20, 3).sigmoid(),
    with_gap((noise(20, 4) > 0).float()),
    with_gap(noise(3, 15, 1)),
]


def test_every_distribution_is_on_its_page():
    assert set(re.findall(r"pplgen\.distributions\.(\w+)", PAGE)) == set(distributions.__all__)


@pytest.mark.parametrize(("code", "x"), [*zip(EXAMPLES, DATA, strict=True)])
def test_examples_fit(code, x):
    names = {"pyro": pyro, "dist": dist, "torch": torch}
    names |= {name: getattr(distributions, name) for name in distributions.__all__}
    exec(compile(code, "distributions.md", "exec"), names)
    fit = pplgen.fit(names["model"], x, steps=100, optimiser="adam", compile="off", progress=False)
    assert math.isfinite(fit.elbo)
