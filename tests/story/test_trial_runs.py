"""Which arguments have rows is decided by evaluation, and a minibatch must be able to stand for all rows."""

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

import pplgen
from pplgen.errors import InputError
from pplgen.story.pair import Pair
from pplgen.story.rows import RowAxes

GENERATOR = torch.Generator().manual_seed(0)
Y, C = torch.randn(40, generator=GENERATOR) + 2, torch.randn(40, generator=GENERATOR) + 5
SQUARE = torch.randn(40, 40, generator=GENERATOR)


def two_plates(y, c):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("a", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    with pyro.plate("b", len(c)):
        pyro.sample("c", dist.Normal(mu, 1.0), obs=c)


def three_sources(y, c, scales):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("a", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    with pyro.plate("b", len(c)):
        pyro.sample("c", dist.Normal(mu, scales), obs=c)


def covariate_of_all(y, u):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu + u.mean(), 1.0), obs=y)


def table_of_groups(y, group, level):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu + level[group], 1.0), obs=y)


def indexed(x, y):
    """The usual way in Pyro; with all of ``y`` and some of ``x`` the shapes are right and the rows are not."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)) as index:
        pyro.sample("y", dist.Normal(w * x, 1.0), obs=y[index])


def latent_of_rows(x, y):
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(x, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def columns_are_rows(X, y):
    with pyro.plate("features", len(X)):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("people", X.shape[1]):
        pyro.sample("y", dist.Normal(w @ X, 1.0), obs=y)


def centred(x, y):
    """Statistics of the rows: no choice keeps their densities."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(w * (x - x.mean()), 1.0), obs=y)


GROUP = torch.arange(40).flip(0)
CASES = [
    (two_plates, (Y, C), "a", (0, None)),
    (two_plates, (Y, C), "b", (None, 0)),
    (three_sources, (Y, C, C.abs()), "a", (0, None, None)),
    (covariate_of_all, (Y, C), None, (0, None)),
    (table_of_groups, (Y, GROUP, C), None, (0, 0, None)),
    (indexed, (C, Y), None, (0, 0)),
    (latent_of_rows, (C, Y), None, (0, 0)),
    (columns_are_rows, (SQUARE, Y), "people", (1, 0)),
    (centred, (C, Y), None, (0, 0)),
]


@pytest.mark.parametrize(("model", "data", "rows", "axes"), CASES)
def test_arguments_with_rows(model, data, rows, axes):
    assert Pair(model, None, data, rows=rows).structure.row_axes == RowAxes(axes)


@pytest.mark.parametrize(("model", "rows"), [(two_plates, "a"), (covariate_of_all, None)])
def test_minibatches_estimate_the_bound_of_all_rows(model, rows):
    """At the parameters where the fit starts and stays, ten rows have the ELBO of forty within its standard error."""
    fits = [
        pplgen.fit(
            model,
            (Y, C),
            lambda y, c: pyro.sample("mu", dist.Delta(pyro.param("mu_at", torch.tensor(3.0)))),
            rows=rows,
            steps=400,
            optimiser="adam",
            learning_rate=1e-6,
            batch_size=size,
            progress=False,
        )
        for size in (None, 10)
    ]
    assert fits[1].elbo == pytest.approx(fits[0].elbo, abs=5 * fits[1].best.elbo_error)


def test_buffers_are_those_of_one_evaluation():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(1)

        def forward(self, x, y):
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(y)):
                pyro.sample("y", dist.Normal(w * self.norm(x[:, None])[:, 0], 1.0), obs=y)

    def guide(x, y):
        pyro.sample("w", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))

    assert Pair(Model(), guide, (C, Y)).model.norm.num_batches_tracked == 1


def fixed(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", 40):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def in_both_plates(y):
    two_plates(y, y)


def pairs_of_rows(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("a", len(y), dim=-2), pyro.plate("b", len(y), dim=-1):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y[:, None] - y)


def summed_outside(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    pyro.sample("again", dist.Normal(mu, 1.0).expand([len(y)]).to_event(1), obs=y)


def without_plate(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    for i, each in enumerate(y):
        pyro.sample(f"y_{i}", dist.Normal(mu, 1.0), obs=each)


def unbound(x):
    w = pyro.sample("w", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(w * x, 1.0))


def with_series(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(w * x, 1.0), obs=torch.tensor(y.tolist()))


def with_matrix(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([40]).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(torch.mv(x, w), 1.0), obs=y)


REFUSED = [
    (fixed, Y, None, "a minibatch of 10 rows: the row plate 'data' has 40; expected one of the data's length"),
    (in_both_plates, Y, "a", "but site 'c', outside it, depends on the number of rows too"),
    (pairs_of_rows, Y, "a", "minibatches scale the row plate 'a' to all rows, but plate 'b' depends on the number"),
    (summed_outside, Y, None, "but site 'again', outside it, depends"),
    (without_plate, Y, None, "but site 'y_10', outside it, depends"),
    (poutine.condition(unbound, {"y": Y}), C, None, "a minibatch of 10 rows: the model or guide cannot be evaluated: "),
    (with_series, (C, pd.Series(Y.numpy())), None, "a minibatch of 10 rows: the model or guide cannot be evaluated: "),
    (with_matrix, (SQUARE.to_sparse(), Y), None, "a minibatch of 10 rows: the model or guide cannot be evaluated: "),
]


@pytest.mark.parametrize("path", ["graph", "off"])
@pytest.mark.parametrize(("model", "data", "rows", "message"), REFUSED)
def test_minibatches_that_cannot_stand_for_all_rows_are_refused(model, data, rows, message, path):
    with pytest.raises(InputError, match=message):
        pplgen.fit(model, data, rows=rows, batch_size=10, steps=20, compile=path, progress=False)


def test_a_single_row_does_not_stand_for_a_plate_of_a_fixed_size():
    with pytest.raises(InputError, match="a minibatch of 1 rows: the row plate 'data' has 40"):
        pplgen.fit(fixed, Y, batch_size=1, steps=20, progress=False)


@pytest.mark.parametrize(("data", "kind"), [(({"a": Y},), "dict"), ([Y], "list")])
def test_rows_in_containers_are_not_found(data, kind):
    def model(inside):
        fixed(next(iter(inside.values() if kind == "dict" else inside)))

    with pytest.raises(
        InputError, match=f"batch_size=10: expected rows in a tensor .* are: {kind}; .* arguments of their"
    ):
        pplgen.fit(model, data, batch_size=10, steps=20, progress=False)
