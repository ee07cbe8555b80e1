"""Data of a fit stay as they are: what would write into them is refused before it does, and containers are copied."""

import dataclasses
from collections import namedtuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pplgen
from pplgen.errors import InputError

Y = torch.tensor([0.5, torch.nan, 1.5, 2.0, -1.0])
Named = namedtuple("Named", "y")
FIT = {"steps": 20, "progress": False}


@dataclasses.dataclass
class Record:
    y: object


def mean(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def by_index(y):
    y[y.isnan()] = 0.0


def by_method(y):
    y.nan_to_num_()


def through_a_view(y):
    y[:3].masked_fill_(y[:3].isnan(), 0.0)


def by_output(y):
    torch.nan_to_num(y, out=y)


def without_gradients(y):
    y.data.copy_(y.nan_to_num())


WRITERS = [by_index, by_method, through_a_view, by_output, without_gradients]


WRAPPED = [
    (lambda y: y, lambda data: data),
    (lambda y: ({"y": y},), lambda data: data["y"]),
    (lambda y: [y], lambda data: data[0]),
    (lambda y: (Named(y),), lambda data: data.y),
    (Record, lambda data: data.y),
]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(("wrap", "unwrap"), WRAPPED)
def test_a_model_that_writes_into_its_data_is_refused_before_it_does(write, wrap, unwrap):
    y = Y.clone()

    def model(data):
        write(unwrap(data))
        mean(unwrap(data))

    with pytest.raises(InputError, match=r"the model or guide writes into its data, by the operation '\w+'; expected"):
        pplgen.fit(model, wrap(y), **FIT)
    assert y[1].isnan()


def test_a_guide_that_writes_and_an_array_that_is_written_to():
    array = Y.numpy().copy()

    def guide(y):
        by_index(y)
        pyro.sample("mu", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))

    with pytest.raises(InputError, match="writes into its data"):
        pplgen.fit(mean, array, guide, **FIT)
    assert np.isnan(array[1])


def test_what_a_container_holds_is_not_replaced():
    array, tensor = Y.numpy().copy(), Y.clone()
    given = {"array": array, "inner": [tensor, Record(tensor)]}

    def model(data):
        data["array"][np.isnan(data["array"])] = 0.0
        data["inner"][0] = data["inner"][1].y = data["inner"][0].nan_to_num()
        data["new"] = 1
        mean(torch.as_tensor(data["array"]) + data["inner"][0] + data["inner"][1].y)

    assert pplgen.fit(model, (given,), **FIT).elbo < 0
    assert np.isnan(array[1])
    assert set(given) == {"array", "inner"}
    assert given["inner"][0] is tensor
    assert given["inner"][1].y is tensor


def test_a_copy_may_be_written_to():
    def model(y):
        y = y.clone()
        by_index(y)
        mean(y)

    fit = pplgen.fit(model, Y, compile="graph", **FIT)
    assert fit.path == "the traced graph"
