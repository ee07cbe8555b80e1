"""Claims about the engine: graphs, batches and compiled steps are Pyro's numbers."""

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
from pplgen.inference.engine import Engine, State, why_not_compiled
from pplgen.inference.options import Adam
from pplgen.models import VAE, GaussianMixture
from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair
from pplgen.verification.claim import Claim
from pplgen.verification.sources import NotAtHand, Sources

__all__ = ["CLAIMS"]

RATE = 0.05


def _mixture(x: Tensor) -> Pair:
    return Pair.of_story(GaussianMixture(3, 2).double(), x)


def _autoencoder() -> Pair:
    return Pair.of_story(VAE(8, 3, hidden=(6,)).double(), torch.rand(40, 8, dtype=torch.float64).round())


def _pair(name: str, sources: Sources) -> Pair:
    return _mixture(sources.faithful()) if name == "mixture" else _autoencoder()


@functools.cache
def _side_by_side(name: str, sources: Sources) -> tuple[float, float]:
    """Loss and gradients of the traced graph less those of Pyro's bound, largest, relative, with the same seed."""
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
    return _side_by_side(name, sources)[0]


def _gradient(name: str, sources: Sources) -> float:
    return _side_by_side(name, sources)[1]


def _at_a_point(x: Tensor) -> None:
    """Generate a mixture with the component summed out, of which the mode is looked for: nothing is drawn."""
    mu = pyro.sample("mu", dist.Normal(torch.zeros(3, 2).double(), 100.0).to_event(2))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.ones(3).double()), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(mu[z], torch.tensor([1.0, 10.0]).double()).to_event(1), obs=x)


def _mode(x: Tensor) -> Pair:
    return Pair(_at_a_point, AutoDelta(pyro.poutine.block(_at_a_point, hide=["z"])), (x,))


def _start(pair: Pair, restarts: int) -> tuple[Graph, State]:
    """Trace a pair, and start several optimisations near its parameters."""
    graph = trace(pair, pair.elbo(), pair.data)
    vectors = graph.pack(pair.snapshot()).repeat(restarts, 1)
    return graph, State.start(vectors + 0.1 * torch.randn_like(vectors))


def _adam(sources: Sources) -> float:
    """Losses of thirty steps of the engine less those of ``svi.step``, largest, relative."""
    pair = _mode(sources.faithful())
    with pair.isolated(), pyro.validation_enabled(False):
        graph = trace(pair, pair.elbo(), pair.data)
        state = State.start(graph.pack(pair.snapshot())[None])
        _, losses = Engine(graph, state, pair.data).run(state, torch.full((1, 1), RATE).double(), 30)
        svi = pyro.infer.SVI(pair.model, pair.guide, Adam(RATE).for_pyro(), TraceEnum_ELBO(max_plate_nesting=1))
        theirs = torch.tensor([svi.step(*pair.data) for _ in range(30)], dtype=torch.float64)
    return float((losses[:, 0] / theirs - 1).abs().max())


def _batch(sources: Sources) -> float:
    """Parameters of three restarts after fifty steps as one program, less those of each alone, the largest."""
    pair = _mode(sources.faithful())
    rates = torch.full((3, 1), RATE).double()
    with pair.isolated():
        graph, state = _start(pair, 3)
        together, _ = Engine(graph, state, pair.data).run(state, rates, 50)
        apart = []
        for vector in state.vectors:
            single = State.start(vector[None])
            apart.append(Engine(graph, single, pair.data).run(single, rates[:1], 50)[0].vectors)
    return float((together.vectors - torch.cat(apart)).abs().max())


def _compiled(sources: Sources) -> float:
    """Losses of five compiled steps of two restarts less those of the graph, largest, relative."""
    if reason := why_not_compiled():
        raise NotAtHand(reason)
    pair = _mixture(sources.faithful())
    rates = torch.full((2, 1), RATE).double()
    with pair.isolated():
        graph, state = _start(pair, 2)
        engine = Engine(graph, state, pair.data)
        with seeded(1):
            _, expected = engine.run(state, rates, 5)
        engine.compile(rates)
        with seeded(1):
            _, losses = engine.run(state, rates, 5)
    return float((losses / expected - 1).abs().max())


WORDS = {
    "mixture": ("a mixture, components summed out", "TraceEnum_ELBO"),
    "autoencoder": ("an autoencoder", "Trace_ELBO"),
}
ROUNDING = "rounding in double precision, of the same operations in another order"

CLAIMS = (
    *(
        Claim(
            f"graph-{what}-{name}",
            "engine",
            f"{what} of {words} on the traced graph, less Pyro's, largest (share)",
            0.0,
            1e-10,
            ROUNDING,
            f"pyro.infer.{theirs}",
            partial(measure, name),
        )
        for name, (words, theirs) in WORDS.items()
        for what, measure in (("loss", _loss), ("gradient", _gradient))
    ),
    Claim(
        "graph-steps",
        "engine",
        "losses of thirty steps of a mixture, less those of Pyro's SVI with Adam, largest (share)",
        0.0,
        1e-8,
        f"{ROUNDING}, through thirty steps",
        "pyro.infer.SVI",
        _adam,
    ),
    Claim(
        "restarts-apart",
        "engine",
        "parameters of three restarts as one program after fifty steps, less those of each alone, largest",
        0.0,
        1e-8,
        f"{ROUNDING}, through fifty steps",
        "the same program for one restart",
        _batch,
    ),
    Claim(
        "compiled-steps",
        "engine",
        "losses of five compiled steps of two restarts, less those of the graph, largest (share)",
        0.0,
        1e-10,
        ROUNDING,
        "the traced graph",
        _compiled,
        slow=True,
    ),
)
