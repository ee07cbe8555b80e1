"""Rows are those of a plate, along whichever axis of an argument; never simply the length of the first argument."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pplgen
from pplgen.errors import InputError
from pplgen.story.pair import Pair
from pplgen.story.rows import RowAxes

FIT = {"steps": 300, "progress": False, "compile": "graph"}
SERIES = torch.randn(7, 40, generator=torch.Generator().manual_seed(0)) + 2.0
"""Seven steps of forty series, the series along the second axis."""
HEIGHTS = torch.linspace(0.5, 1.5, 40)
WORDS = torch.randint(5, (9, 30), generator=torch.Generator().manual_seed(0))
"""Nine words of thirty documents."""


def series_model(y):
    """Steps are the outer dimension of the data, the inner plate of the model."""
    level = pyro.sample("level", dist.Normal(0.0, 10.0))
    with pyro.plate("series", y.shape[1], dim=-1):
        for t in pyro.markov(range(len(y))):
            pyro.sample(f"y_{t}", dist.Normal(level, 1.0), obs=y[t])


def topic_model(words):
    """Latent Dirichlet allocation, words in rows and documents in columns, as in Pyro's example."""
    with pyro.plate("topics", 2):
        topic = pyro.sample("topic", dist.Dirichlet(torch.ones(5)))
    with pyro.plate("documents", words.shape[1]):
        mixture = pyro.sample("mixture", dist.Dirichlet(torch.ones(2)))
        with pyro.plate("words", words.shape[0]):
            z = pyro.sample("z", dist.Categorical(mixture), infer={"enumerate": "parallel"})
            pyro.sample("word", dist.Categorical(topic[z]), obs=words)


def scaled_model(options, x):
    """The first argument has no rows."""
    mu = pyro.sample("mu", dist.Normal(0.0, options["scale"]))
    with pyro.plate("people", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def regression_model(X, y):
    """Features in rows of the design matrix, observations in columns."""
    with pyro.plate("features", len(X)):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("people", X.shape[1]):
        pyro.sample("y", dist.Normal(w @ X, 1.0), obs=y)


def grouped_model(y):
    """Twelve people in each of three groups; either plate may be meant."""
    with pyro.plate("groups", len(y), dim=-2):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("people", y.shape[1], dim=-1):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


CASES = [
    (series_model, (SERIES,), None, "series", 40, (1,)),
    (topic_model, (WORDS,), None, "documents", 30, (1,)),
    (topic_model, (WORDS,), "words", "words", 9, (0,)),
    (scaled_model, ({"scale": 10.0}, HEIGHTS), None, "people", 40, (None, 0)),
    (regression_model, (SERIES, HEIGHTS), None, "people", 40, (1, 0)),
    (grouped_model, (torch.zeros(3, 12),), None, "groups", 3, (0,)),
    (grouped_model, (torch.zeros(3, 12),), "people", "people", 12, (1,)),
]


@pytest.mark.parametrize(("model", "data", "given", "plate", "number", "axes"), CASES)
def test_the_row_plate_and_its_axes(model, data, given, plate, number, axes):
    pair = Pair(model, None, data, rows=given)
    assert pair.structure.row_plate == plate
    assert pair.num_rows == number
    assert pair.structure.row_axes == RowAxes(axes)


@pytest.mark.parametrize(("model", "data"), [(series_model, (SERIES,)), (regression_model, (SERIES, HEIGHTS))])
def test_densities_are_of_the_plates_rows(model, data):
    """One for each row of the plate, and of new ones: those of some rows are those of the fit to all."""
    fit = pplgen.fit(model, data, **FIT)
    densities = fit.log_likelihood(data, draws=20, seed=0)
    assert densities.shape == (40,)
    some = fit.pair.structure.row_axes.select(data, torch.arange(0, 40, 3))
    torch.testing.assert_close(fit.log_likelihood(some, draws=20, seed=0), densities[::3])


def test_minibatches_and_weights_are_of_the_plates_rows():
    """The posterior of 40 series of 7 steps at known variance: closed form, as for all rows at once.

    A weight of 2 on half of the series counts them twice. Both are within .3 posterior sd and 20 %, the width of a
    minibatch fit's last steps at the learning rate.
    """
    for options, weights in (({"batch_size": 10}, torch.ones(40)), ({}, torch.tensor([0.0, 2.0]).repeat(20))):
        fit = pplgen.fit(
            series_model,
            SERIES,
            steps=4000,
            progress=False,
            weights=None if "batch_size" in options else weights,
            **options,
        )
        precision = 0.01 + 7 * float(weights.sum())
        mean = float((SERIES * weights).sum()) / precision
        level = fit.to_datatree(draws=4000, groups=["posterior"])["posterior"]["level"].values
        assert level.mean() == pytest.approx(mean, abs=0.3 * precision**-0.5)
        assert level.std() == pytest.approx(precision**-0.5, rel=0.2)


def test_labels_are_of_the_plates_rows():
    with pytest.raises(InputError, match="weights: 7 values for 40 rows"):
        pplgen.fit(series_model, SERIES, weights=torch.ones(7), **FIT)


def test_mistakes():
    with pytest.raises(InputError, match="rows='docs': expected a plate around an observed site, among"):
        pplgen.fit(topic_model, WORDS, rows="docs", **FIT)
    with pytest.raises(InputError, match="rows='data': a story's row plate is 'data'"):
        pplgen.fit(pplgen.models.GaussianMixture(2, 2), "faithful", rows="data", **FIT)


def test_a_run_is_loaded_with_its_rows(tmp_path):
    y = torch.randn(3, 12)
    fit = pplgen.fit(grouped_model, y, rows="people", **FIT)
    fit.save(tmp_path / "run")
    loaded = pplgen.load(tmp_path / "run", y, model=grouped_model)
    assert loaded.pair.structure.row_plate == "people"
    np.testing.assert_array_equal(loaded.log_likelihood(draws=5, seed=0), fit.log_likelihood(draws=5, seed=0))
