"""Claims about the engine: traced graphs, batches and compiled steps reproduce Pyro's numbers."""

from __future__ import annotations

import functools
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoDelta
from torch import Tensor

from pplgen.compiler.graph import Graph, trace
from pplgen.compiler.inductor import why_not_compiled
from pplgen.inference.engine import Engine, State
from pplgen.inference.optimisers import Optimiser
from pplgen.models import VAE, GaussianMixture
from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair
from pplgen.verification.claim import Claim
from pplgen.verification.data_sources import NotAvailable, Sources

__all__ = ["CLAIMS"]

LEARNING_RATE = 0.05


def _mixture(x: Tensor) -> Pair:
    return Pair.of_story(GaussianMixture(3, 2).double(), x)


def _autoencoder() -> Pair:
    return Pair.of_story(VAE(8, 3, hidden=(6,)).double(), torch.rand(40, 8, dtype=torch.float64).round())


def _pair(name: str, sources: Sources) -> Pair:
    return _mixture(sources.faithful()) if name == "mixture" else _autoencoder()


@functools.cache
def _relative_differences(name: str, sources: Sources) -> tuple[float, float]:
    """Largest relative differences of loss and gradient between the traced graph and Pyro, with the same seed."""
    pair = _pair(name, sources)
    bound = TraceEnum_ELBO(max_plate_nesting=1) if name == "mixture" else Trace_ELBO()
    with pair.isolated(), pyro.validation_enabled(False):
        graph = trace(pair, pair.elbo(), pair.data)
        for parameter in pyro.get_param_store()._params.values():
            parameter.data.add_(0.05 * torch.randn_like(parameter))
        parameters = [parameter for _, parameter in sorted(pyro.get_param_store().named_parameters())]
        with seeded(7):
            theirs = float(bound.loss_and_grads(pair.model, pair.guide, *pair.data))
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        expected = torch.cat([each.reshape(-1) for each in gradients])
        with seeded(7), torch.no_grad():
            vector = graph.pack(pair.snapshot())
            loss, gradient = graph.loss_and_gradient(vector, *graph.buffers, *pair.data)
    return float(loss) / theirs - 1, float((gradient - expected).abs().max() / expected.abs().max())


def _loss(name: str, sources: Sources) -> float:
    return _relative_differences(name, sources)[0]


def _gradient(name: str, sources: Sources) -> float:
    return _relative_differences(name, sources)[1]


def _map_model(x: Tensor) -> None:
    """Model of a mixture with enumerated components, for MAP estimation, so that nothing is random."""
    mu = pyro.sample("mu", dist.Normal(torch.zeros(3, 2).double(), 100.0).to_event(2))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.ones(3).double()), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(mu[z], torch.tensor([1.0, 10.0]).double()).to_event(1), obs=x)


def _map_pair(x: Tensor) -> Pair:
    return Pair(_map_model, AutoDelta(pyro.poutine.block(_map_model, hide=["z"])), (x,))


def _start(pair: Pair, restarts: int) -> tuple[Graph, State]:
    """Trace a pair, and initialise several restarts near its parameters."""
    graph = trace(pair, pair.elbo(), pair.data)
    vectors = graph.pack(pair.snapshot()).repeat(restarts, 1)
    return graph, State.start(vectors + 0.1 * torch.randn_like(vectors))


def _adam(sources: Sources) -> float:
    """Largest relative difference of thirty losses between the engine and ``svi.step``."""
    pair = _map_pair(sources.faithful())
    with pair.isolated(), pyro.validation_enabled(False):
        graph = trace(pair, pair.elbo(), pair.data)
        state = State.start(graph.pack(pair.snapshot())[None])
        _, losses = Engine(graph, state, pair.data).run(state, torch.full((1, 1), LEARNING_RATE).double(), 30)
        svi = pyro.infer.SVI(
            pair.model, pair.guide, Optimiser(LEARNING_RATE).for_pyro(), TraceEnum_ELBO(max_plate_nesting=1)
        )
        theirs = torch.tensor([svi.step(*pair.data) for _ in range(30)], dtype=torch.float64)
    return float((losses[:, 0] / theirs - 1).abs().max())


def _batch(sources: Sources) -> float:
    """Largest parameter difference after fifty steps: three restarts as one program and each separately."""
    pair = _map_pair(sources.faithful())
    rates = torch.full((3, 1), LEARNING_RATE).double()
    with pair.isolated():
        graph, state = _start(pair, 3)
        together, _ = Engine(graph, state, pair.data).run(state, rates, 50)
        separate = []
        for vector in state.vectors:
            single = State.start(vector[None])
            separate.append(Engine(graph, single, pair.data).run(single, rates[:1], 50)[0].vectors)
    return float((together.vectors - torch.cat(separate)).abs().max())


def _compiled(sources: Sources) -> float:
    """Largest relative difference of five losses of two restarts between compiled steps and the graph."""
    if reason := why_not_compiled():
        raise NotAvailable(reason)
    pair = _mixture(sources.faithful())
    rates = torch.full((2, 1), LEARNING_RATE).double()
    with pair.isolated():
        graph, state = _start(pair, 2)
        engine = Engine(graph, state, pair.data)
        with seeded(1):
            _, expected = engine.run(state, rates, 5)
        engine.compile(rates)
        with seeded(1):
            _, losses = engine.run(state, rates, 5)
    return float((losses / expected - 1).abs().max())


DESCRIPTIONS = {
    "mixture": ("a mixture with enumerated components", "TraceEnum_ELBO"),
    "autoencoder": ("an autoencoder", "Trace_ELBO"),
}
ROUNDING = "float64 rounding of the same operations in a different order"

CLAIMS = (
    *(
        Claim(
            f"graph-{what}-{name}",
            "engine",
            f"largest relative difference between the {what} of {words} on the traced graph and Pyro's",
            0.0,
            1e-10,
            ROUNDING,
            f"pyro.infer.{theirs}",
            partial(measure, name),
        )
        for name, (words, theirs) in DESCRIPTIONS.items()
        for what, measure in (("loss", _loss), ("gradient", _gradient))
    ),
    Claim(
        "graph-steps",
        "engine",
        "largest relative difference of thirty losses of a mixture from those of Pyro's SVI with Adam",
        0.0,
        1e-8,
        f"{ROUNDING}, over thirty steps",
        "pyro.infer.SVI",
        _adam,
    ),
    Claim(
        "restarts-apart",
        "engine",
        "largest parameter difference after fifty steps between three restarts as one program and each separately",
        0.0,
        1e-8,
        f"{ROUNDING}, over fifty steps",
        "the same program for one restart",
        _batch,
    ),
    Claim(
        "compiled-steps",
        "engine",
        "largest relative difference of five losses of two restarts between compiled steps and the graph",
        0.0,
        1e-10,
        ROUNDING,
        "the traced graph",
        _compiled,
        slow=True,
    ),
)
