"""One of two processes that fit together: every case in one go, for importing torch takes longer than any of them.

Run as ``python ranks_at_work.py RANK FOLDER``; what each case finds is written to ``FOLDER/rank-RANK.npz``, and how the
last case ends, in which rank 1 kills itself, to ``FOLDER/end.json``.
"""

import contextlib
import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pplgen.models import GaussianMixture
from pyro.infer import config_enumerate
from torch import nn

import pplgen
from pplgen.compiler.graph import tensors_of, trace
from pplgen.data import blocks
from pplgen.distributed import heartbeat
from pplgen.distributed.ranks import Ranks
from pplgen.distributed.sharding import AveragedELBO, Shard
from pplgen.errors import InputError
from pplgen.inference.minibatches import batching
from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair

EVEN, UNEVEN = (32, 32), (40, 24)
DOUBLE = {"dtype": torch.float64}


def rows(seed=0):
    """Two far groups of 64 rows."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, 3, generator=generator, **DOUBLE)
    return x + 4.0 * (torch.arange(64) % 3 == 0)[:, None]


def functional():
    """Two shared latents, parameters of ``pyro.param``, draws of the guide that all rows share."""

    def model(x):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(3, **DOUBLE), 10.0).to_event(1))
        sigma = pyro.sample("sigma", dist.LogNormal(torch.zeros((), **DOUBLE), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, sigma).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.ones(3, **DOUBLE))
        scale = pyro.param("scale", torch.full((3,), 0.3, **DOUBLE), constraint=dist.constraints.positive)
        pyro.sample("mu", dist.Normal(loc, scale).to_event(1))
        log_sigma = pyro.param("log_sigma", torch.full((), 0.5, **DOUBLE))
        pyro.sample("sigma", dist.LogNormal(log_sigma, 0.1))

    return model, guide, (rows(),)


def point():
    """The same with the guide at a point, so that nothing is random."""
    model, _, data = functional()

    def guide(x):
        pyro.sample("mu", dist.Delta(pyro.param("mu_at", torch.ones(3, **DOUBLE)), event_dim=1))
        at = pyro.param("sigma_at", torch.full((), 2.0, **DOUBLE), constraint=dist.constraints.positive)
        pyro.sample("sigma", dist.Delta(at))

    return model, guide, data


def autoencoder():
    """Codes of rows, whose noise comes with the rows."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    decoder = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    noise = torch.randn(64, 2, **DOUBLE)

    def model(x, noise):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, **DOUBLE), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x, noise):
        pyro.module("encoder", encoder)
        loc, log_scale = encoder(x).chunk(2, -1)
        z = loc + log_scale.exp() * noise
        with pyro.plate("data", len(x)):
            density = dist.Normal(loc, log_scale.exp()).log_prob(z).sum(-1)
            pyro.sample("z", dist.Delta(z, log_density=density, event_dim=1))

    return model, guide, (rows(), noise)


def enumerated():
    """A mixture whose component is summed out, with restarts that end apart."""

    @config_enumerate
    def model(x):
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3, **DOUBLE)))
        with pyro.plate("components", 3):
            mu = pyro.sample("mu", dist.Normal(torch.zeros(3, **DOUBLE), 10.0).to_event(1))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(mu[z], 1.0).to_event(1), obs=x)

    def guide(x):
        start = torch.tensor([0.5, 0.3, 0.2], **DOUBLE)
        at = pyro.param("weights_at", start, constraint=dist.constraints.simplex)
        pyro.sample("weights", dist.Delta(at, event_dim=1))
        with pyro.plate("components", 3):
            centres = pyro.param("mu_at", lambda: 3.0 * torch.randn(3, 3, **DOUBLE))
            pyro.sample("mu", dist.Delta(centres, event_dim=1))

    return model, guide, (rows(),)


def spoilt():
    """The point again, where the noise of row 51, the second rank's, is NaN above a threshold on the way up."""
    _, guide, (x,) = point()
    x = x - x.mean(0) + 2

    def model(x, marked):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(3, **DOUBLE), 10.0).to_event(1))
        sigma = pyro.sample("sigma", dist.LogNormal(torch.zeros((), **DOUBLE), 1.0))
        scale = torch.where(marked & (mu[0] > 1.2), torch.nan, sigma)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, scale.unsqueeze(-1)).to_event(1), obs=x)

    return model, lambda x, marked: guide(x), (x, torch.arange(64) == 50)


PAIRS = {"functional": functional, "autoencoder": autoencoder, "enumerated": enumerated}
WHOLE = {"compile": "graph", "steps": 300, "progress": False, "learning_rate": 0.05}


def gradients(name, shard, ranks):
    """Loss and gradient of a pair away from where it starts, by the graph and by Pyro."""
    with seeded(1):
        pair = Pair(*PAIRS[name]())
    with pair.isolated():
        batches, scale = batching(pair, None, seed=0, shard=shard)
        data, bound = next(batches), pair.elbo()
        graph = trace(pair, bound, data, scale)
        vector = graph.pack(pair.snapshot()) + 0.1
        with seeded(2), torch.no_grad():
            loss, gradient = graph.loss_and_gradient(vector, *graph.buffers, *tensors_of(data))
        pair.restore(graph.unpack(vector))
        averaged = AveragedELBO(bound, ranks)
        with seeded(2), scale or contextlib.nullcontext():
            own = averaged.loss_and_grads(pair.model, pair.guide, *data)
        held = dict(pyro.get_param_store().named_parameters())
        theirs = torch.cat([held[each].grad.reshape(-1) for each in graph.names])
    mean = ranks.mean(torch.cat([loss[None], gradient]))
    return torch.stack([mean, torch.cat([theirs.new_tensor([own]), theirs])]).numpy()


def finals(fit):
    return np.stack([run.final for run in fit.runs])


def fits(**sharing):
    """Whole fits; nothing in them is random but where restarts begin."""
    model, guide, data = point()
    for compile_with, steps in (("graph", 300), ("off", 130)):
        fit = pplgen.fit(model, data, guide, **{**WHOLE, "compile": compile_with, "steps": steps}, **sharing)
        yield f"whole {compile_with}", np.concatenate([fit.runs[0].history, finals(fit)[0], [fit.elbo]])


def optima(**sharing):
    """Where L-BFGS ends over fixed draws that all rows share; Adam's own draws differ with the number of processes."""
    model, guide, data = functional()
    fit = pplgen.fit(model, data, guide, compile="graph", progress=False, **sharing)
    assert fit.best.optimum is not None
    return {"optimum": np.append(fit.best.final, [fit.elbo, fit.best.elbo_error])}


def restarts(**sharing):
    model, guide, data = enumerated()
    fit = pplgen.fit(model, data, guide, restarts=5, seed=3, optimiser="adam", **WHOLE, **sharing)
    with fit.pair.isolated():
        kept = fit.pair.snapshot()["mu_at"].numpy()
    return {"restarts": finals(fit), "elbos": np.array([run.elbo for run in fit.runs]), "kept": kept}


def calibrated():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(3, **DOUBLE), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.zeros(3, **DOUBLE))
        scale = pyro.param("scale", torch.full((3,), 0.2, **DOUBLE), constraint=dist.constraints.positive)
        pyro.sample("mu", dist.Normal(loc, scale).to_event(1))

    found = pplgen.calibrate(model, rows(), guide, num_datasets=11, steps=400, progress=False)
    return {"truths": found.truths, "means": found.means, "deviations": found.deviations}


def streamed(folder, **options):
    """Minibatches of rows that stay in two files, at random in everything."""
    options = {**WHOLE, "steps": 200, "batch_size": 16, **options}
    story = GaussianMixture(2, 3, covariance="spherical")
    return pplgen.fit(story, pplgen.stream_data(folder / "rows", **DOUBLE), **options)


def streams(folder):
    """A fit of a stream, and one that is continued in the middle of an epoch."""
    fit = streamed(folder)
    streamed(folder, steps=100, checkpoint=folder / "kept")
    again = streamed(folder, checkpoint=folder / "kept")
    for name, each in (("streamed", fit), ("resumed", again)):
        yield name, np.append(each.runs[0].history, each.runs[0].final)
        yield f"{name} elbo", np.array([each.elbo, each.best.elbo_error])


def faults():
    """What a fit says of row 51, in plain Pyro and by the graph."""
    model, guide, data = spoilt()
    for compile_with in ("graph", "off"):
        fit = pplgen.fit(model, data, guide, optimiser="adam", **{**WHOLE, "compile": compile_with, "steps": 120})
        yield f"faults {compile_with}", np.array(fit.best.faults)


def drawn(ranks):
    """What is drawn for all rows, the same on all ranks, and what is drawn for single rows."""
    for apart in (False, True):
        ranks.reseed(0, 100, per_rank=apart)
        yield f"drawn {'apart' if apart else 'alike'}", torch.rand(3).numpy()


def agreements(ranks):
    """What fails on one rank fails on all."""

    def mistaken():
        raise InputError("no such rows")

    def of_different_rows():
        model, guide, (x,) = point()
        pplgen.fit(model, x + ranks.rank, guide, **WHOLE)

    def of_different_parameters():
        model, guide, data = (point, functional)[ranks.rank]()
        pplgen.fit(model, data, guide, **WHOLE)

    said = []
    for attempt in (lambda: ranks.on_first_rank(mistaken), of_different_rows, of_different_parameters):
        try:
            attempt()
        except InputError as error:
            said.append(str(error))
    try:
        with ranks.shared_errors():
            if ranks.rank == 1:
                mistaken()
    except InputError as error:
        said.append(str(error))
    return np.array(said)


def shared_by_two(ranks, folder):
    """All cases but the last."""
    found = {}
    for name in PAIRS:
        for sizes in (EVEN, UNEVEN):
            found[f"{name} {sizes}"] = gradients(name, Shard(ranks.rank, sizes), ranks)
    found |= (
        dict(fits())
        | optima()
        | restarts(shard="restarts")
        | calibrated()
        | dict(streams(folder))
        | dict(drawn(ranks))
        | dict(faults())
    )
    found["said"] = agreements(ranks)
    return found


def killed(ranks):
    """Fit until rank 1 kills itself; return what the other one says, and how long that took."""
    model, guide, data = functional()
    calls = [0, 0.0]

    def dying(x):
        calls[:] = calls[0] + 1, time.monotonic()
        if ranks.rank == 1 and calls[0] == 40:
            os.kill(os.getpid(), signal.SIGKILL)
        model(x)

    try:
        pplgen.fit(dying, data, guide, **{**WHOLE, "compile": "off"})
    except heartbeat.RankLost as error:
        return {"error": str(error), "steps": calls[0], "seconds": time.monotonic() - calls[1]}
    return {"error": "none"}


def main(rank, folder):
    torch.set_num_threads(1)
    blocks.BLOCK_VALUES = 24
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    ranks = Ranks.current()
    np.savez(folder / f"rank-{rank}.npz", **shared_by_two(ranks, folder))
    heartbeat.TIMEOUT = 5.0
    (folder / "end.json").write_text(json.dumps(killed(ranks)))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    importlib.import_module("conftest")  # whose seeds are shifted as those of the process that compares
    main(int(sys.argv[1]), Path(sys.argv[2]).resolve())
