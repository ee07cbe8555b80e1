"""The pairs of the guide "Change one line": each fits before and after its change, with the density that it names."""

import math
import re
from functools import partial
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import pplgen
from pplgen.exact.hmm import log_normaliser
from pplgen.story.dynamics import MarkovChain
from pplgen.story.isolation import seeded

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "change_one_line.md"
BLOCKS = dict(
    re.findall(r"^## ([^\n]*)\n.*?^```\{code-cell\} python\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)
)
QUICK = {"steps": 20, "optimiser": "adam", "compile": "off"}
CLOSE = {"rtol": 1e-4, "atol": 1e-3}
"""Sums of about a hundred terms in float32."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    fit = pplgen.fit
    monkeypatch.setattr(pplgen, "fit", lambda *data, **options: fit(*data, **{**options, **QUICK}))


def run(code):
    """Run a code block in a new namespace, and return that."""
    names = {}
    with seeded(0):
        exec(compile(code, str(PAGE), "exec"), names)
    return names


def before(code):
    """Return a block before its change: the commented line instead of the next one, without new parameters."""
    code, changes = re.subn(r"^( *)# ([\w, ]* = .*|pyro\.sample.*)\n.*\n", r"\1\2\n", code, flags=re.M)
    assert changes == 1
    return re.sub(r"^.*# new\n", "", code, flags=re.M)


def test_ten_changes_in_the_order_of_the_table():
    table = re.findall(r"^\| \[.*?\]\(#(.*?)\)", PAGE.read_text("utf-8"), re.M)
    assert table == [title.lower().replace(" ", "-") for title in BLOCKS]
    assert len(BLOCKS) == 10


@pytest.mark.parametrize("title", BLOCKS)
def test_a_pair_fits_before_and_after_its_change(title):
    assert math.isfinite(run(BLOCKS[title])["fit"].elbo)
    if title == "Missing entries":
        with pytest.raises(pplgen.InputError, match="outside the support"):
            run(before(BLOCKS[title]))
    else:
        assert math.isfinite(run(before(BLOCKS[title]))["fit"].elbo)


def drawn(title):
    """Return a block's names, and a trace of its model: parameters from the prior, the block's data observed."""
    names = run(BLOCKS[title])
    data = [names[argument] for argument in ("x", "y", "dam") if argument in names["model"].__code__.co_varnames]
    with seeded(1), torch.no_grad():
        trace = poutine.trace(names["model"]).get_trace(*data)
    trace.compute_log_prob()
    return names, trace.nodes


def value(nodes, *sites):
    return [nodes[site]["value"] for site in sites]


def test_negative_binomial():
    names, nodes = drawn("Counts that vary more")
    a, b, y = value(nodes, "a", "b", "y")
    rate = (a + b * names["x"]).exp()
    expected = dist.NegativeBinomial(5.0, probs=rate / (rate + 5.0)).log_prob(y)
    torch.testing.assert_close(nodes["y"]["log_prob"], expected, **CLOSE)


def test_marginal_normal():
    _, nodes = drawn("Missing entries")
    mu, scale, correlation, x = value(nodes, "mu", "scale", "correlation", "x")
    Sigma = scale[:, None] * correlation @ correlation.T * scale
    for row, density in zip(x, nodes["x"]["log_prob"], strict=True):
        seen = row.isfinite()
        marginal = dist.MultivariateNormal(mu[seen], Sigma[seen][:, seen]).log_prob(row[seen]) if seen.any() else 0.0
        torch.testing.assert_close(density, torch.as_tensor(marginal), **CLOSE)


def test_categorical_column():
    _, nodes = drawn("A categorical column")
    mu, z, x = value(nodes, "mu", "z", "x")
    logits = mu[z, 2:].log_softmax(-1)
    expected = dist.Normal(mu[z, :2], 1.0).log_prob(x[:, :2]).sum(-1) + (logits * x[:, 2:]).sum(-1)
    torch.testing.assert_close(nodes["x"]["log_prob"], expected, **CLOSE)


def test_factor_analysers():
    _, nodes = drawn("Factor analysers")
    mu, W, sigma, z, x = value(nodes, "mu", "W", "sigma", "z", "x")
    expected = dist.MultivariateNormal(mu[z], (W @ W.mT + torch.diag(sigma.square()))[z]).log_prob(x)
    torch.testing.assert_close(nodes["x"]["log_prob"], expected, **CLOSE)


def test_stick_breaking():
    names, nodes = drawn("Unknown number of components")
    weights = names["broken"](nodes["sticks"]["value"])
    rest = 1.0
    for stick, weight in zip([*nodes["sticks"]["value"], 1.0], weights, strict=True):
        torch.testing.assert_close(weight, torch.as_tensor(rest * stick))
        rest = rest * (1 - stick)


@pytest.mark.parametrize("title", ["Robust regimes", "Regimes among latent variables"])
def test_hidden_markov_series(title):
    """The sum over paths, by the forward recursion in ``pplgen.exact``."""
    names, nodes = drawn(title)
    if title == "Robust regimes":
        (P, mu), site, step = value(nodes, "P", "mu"), nodes["y"], partial(dist.StudentT, 4.0)
    else:
        P, mu, site, step = names["P"], names["EMISSION"].columns.loc, nodes["z"], dist.Normal
    emission = step(mu, 1.0).log_prob(site["value"].unsqueeze(-2)).sum(-1)
    expected = log_normaliser(emission, MarkovChain(names["INITIAL"], P.log()))
    torch.testing.assert_close(site["log_prob"], expected, **CLOSE)


def test_moving_level():
    """A random walk plus noise around the mean, as one normal distribution of the hundred years."""
    names, nodes = drawn("A level that moves")
    base, effect, q, r, y = value(nodes, "before", "effect", "q", "r", "y")
    time = torch.arange(1.0, 101.0).double()
    covariance = q * torch.minimum(time, time[:, None]) + r * torch.eye(100)
    mean = (base + effect * names["dam"]).squeeze(-1).double()
    expected = dist.MultivariateNormal(mean, covariance).log_prob(y.squeeze(-1).double())
    torch.testing.assert_close(nodes["y"]["log_prob"].double(), expected, **CLOSE)


def test_mixture_prior():
    names, nodes = drawn("Clusters among latent variables")
    mixture = dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2)), dist.Normal(names["mu"], names["sigma"]).to_event(1)
    )
    torch.testing.assert_close(nodes["z"]["log_prob"], mixture.log_prob(nodes["z"]["value"]), **CLOSE)
