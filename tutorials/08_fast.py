# %% [markdown]
# # Fast: what happens to a Pyro pair
#
# A step of Pyro's SVI is mostly Python: handlers that wrap each `sample`, checks of each shape, dozens of small
# kernels called one by one. The mathematics in between is a few hundred operations that are the same at every step.
# This tutorial shows what `pplgen.fit` makes of that: it *traces* the pair once into a graph of tensor operations,
# *proves* the graph against Pyro, *batches* it over many starts, and *compiles* it. And it shows what happens where
# that cannot be done.
#
# It prints ratios of times, and asserts none: they depend on your machine and on what else it does. What it does
# assert is that all ways compute the same thing. It takes two minutes or so, most of it compiling; with
# `PPLGEN_SMOKE=1` in the environment nothing is compiled, and it takes half a minute.

# %%
import os
import time
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

import pplgen
from pplgen.compiler.graph import trace
from pplgen.plots.palette import COLOURS

SMOKE = os.environ.get("PPLGEN_SMOKE") == "1"
RESTARTS = 16 if SMOKE else 64

# %% [markdown]
# ## A pair
#
# Thirteen measurements of 178 Italian wines, from three cultivars. The pair is a mixture of six normals with diagonal
# covariances (a cultivar may well have more than one kind), as anyone would write it in Pyro: no class, no base
# class, nothing from this package. The guide's locations start at random.

# %%
wine = pplgen.load_data("wine")
x = (wine.values - wine.values.mean(0)) / wine.values.std(0)
cultivar = wine.target.numpy()  # seen by no fit
K, D = 6, x.shape[1]


def model(x):
    """Mix six normals with diagonal covariances."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(K)))
    mu = pyro.sample("mu", dist.Normal(torch.zeros(K, D), 1.0).to_event(2))
    sigma = pyro.sample("sigma", dist.LogNormal(torch.full((K, D), -0.5), 0.5).to_event(2))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(mu[z], sigma[z]).to_event(1), obs=x)


def guide(x):
    """Draw what all rows share; the component is summed out."""
    positive = constraints.positive
    pyro.sample("weights", dist.Dirichlet(pyro.param("q_weights", 20.0 * torch.ones(K), constraint=positive)))
    mean = pyro.param("q_mean", lambda: 0.5 * torch.randn(K, D))
    mean_sd = pyro.param("q_mean_sd", 0.1 * torch.ones(K, D), constraint=positive)
    pyro.sample("mu", dist.Normal(mean, mean_sd).to_event(2))
    log_sigma = pyro.param("q_log_sigma", -0.3 * torch.ones(K, D))
    log_sigma_sd = pyro.param("q_log_sigma_sd", 0.1 * torch.ones(K, D), constraint=positive)
    pyro.sample("sigma", dist.LogNormal(log_sigma, log_sigma_sd).to_event(2))


# %% [markdown]
# ## Trace
#
# `pplgen.compiler.graph.trace` runs the pair's bound and its backward pass once and writes down each tensor operation.
# Handlers, constraints, plates and the sum over components are gone from what is left; there is nothing but
# arithmetic and random numbers. (`fit` does all of this by itself. We do it by hand here in order to look.)

# %%
fit = pplgen.fit(model, x, guide, steps=1, progress=False)
with fit.pair.isolated():
    graph = trace(fit.pair, fit.pair.elbo(), fit.pair.data)
operations = [node for node in graph.module.graph.nodes if node.op == "call_function"]
print(f"{len(operations)} operations, {sum(shape.numel() for shape in graph.shapes)} parameters; the first lines:")
print("\n".join(line.split("  #")[0].rstrip()[:110] for line in graph.module.code.strip().splitlines()[1:9]))

# %% [markdown]
# ## Prove
#
# A trace is a recording, and a recording of the wrong thing plays the wrong thing for ever. So `trace` does not
# return before the graph has given Pyro's own loss and gradients, at other parameters and on resampled rows, with the
# same random numbers. Here is that comparison once more, by hand.

# %%
with fit.pair.isolated():
    seed = 7
    pyro.set_rng_seed(seed)
    by_pyro = fit.pair.elbo().loss(fit.pair.model, fit.pair.guide, x)
    pyro.set_rng_seed(seed)
    by_graph, gradient = graph.loss_and_gradient(graph.pack(fit.pair.snapshot()), *graph.buffers, x)
print(f"loss at seed {seed}: Pyro {by_pyro:.6f}, the graph {float(by_graph):.6f}")

# %% [markdown]
# ## Run
#
# The same fit on the three paths. `compile="off"` is Pyro's own `SVI`, `"graph"` runs the traced graph operation by
# operation, `"inductor"` compiles it, with Adam's step inside and several steps to a call. The default, `"auto"`,
# starts with the graph and compiles where the run is long enough to repay it. We take the clock between the first
# report and the last, so that tracing and compiling do not count.


# %%
def timed(compile, steps, **options):  # noqa: A002
    """Fit, and return the fit and milliseconds per step."""
    reports = []
    run = pplgen.fit(
        model,
        x,
        guide,
        steps=steps,
        compile=compile,
        progress=lambda at: reports.append((at.step, time.perf_counter())),
        **options,
    )
    (first, began), (last, ended) = reports[0], reports[-1]
    return run, 1e3 * (ended - began) / (last - first)


paths = {"off": 200, "graph": 600} if SMOKE else {"off": 600, "graph": 1000, "inductor": 3000}
one = {name: timed(name, steps) for name, steps in paths.items()}
fastest = min(milliseconds for _, milliseconds in one.values())
for name, (run, milliseconds) in one.items():
    print(f"{name:9s} {milliseconds / fastest:6.1f} times the fastest; {run.path}")

# %% [markdown]
# ## Many restarts, one program
#
# A mixture's bound has many maxima, and where a fit ends depends on where it began. The usual remedy is to begin
# often. Since the graph is a pure function of the parameters, many sets of them are one more axis: `restarts=64` maps
# the graph over 64 starts, each with random numbers of its own, and what was many small operations becomes as many
# larger ones.

# %%
many, milliseconds = timed(
    "graph" if SMOKE else "inductor", 800 if SMOKE else 2500, restarts=RESTARTS, learning_rate=0.05
)
print(f"{RESTARTS} restarts: {milliseconds / one['off'][1]:.2f} times a step of plain Pyro for one ({many.path})")


def clusters(run):
    """Assign each wine to its most probable component."""
    return run.latents(draws=200)["z"].values.argmax(-1)


def purity(components):
    """Return the share of wines that are of the commonest cultivar of their component."""
    return sum(np.bincount(cultivar[components == k]).max() for k in np.unique(components)) / len(cultivar)


finals = np.array([run.elbo for run in many.runs])
agreement = purity(clusters(many))

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", width_ratios=(1.4, 1))
best = many.best
for run in many.runs:
    smooth = np.convolve(run.history, np.ones(20) / 20, mode="valid")
    colour, front = (COLOURS[1], 3) if run is best else (COLOURS[0], 2)
    left.plot(
        np.arange(len(smooth)) + 20, smooth, color=colour, lw=1.6 if run is best else 0.6, alpha=0.8, zorder=front
    )
left.set(xlabel="step", ylabel="bound (nats), mean of 20", title=f"{RESTARTS} starts of one pair; the best in orange")
left.set_ylim(finals.min() - 100, finals.max() + 30)
right.hist(finals, bins=24, color=COLOURS[0])
right.axvline(finals.max(), color=COLOURS[1], lw=1.5)
right.set(xlabel="final bound (nats)", ylabel="restarts", title="Where they ended")
plt.show()
print(f"{many.num_agreeing} of {len(finals)} restarts end within a nat of the best; the worst {many.spread:.0f} below")
print(f"{100 * agreement:.0f} % of wines are of the commonest cultivar of their component, which no fit has seen")

# %% [markdown]
# A single start would have been any of these lines. (Where lines step up together, learning rates were cut at a
# plateau.) `fit.diagnose()` therefore has a check of how many restarts reach the best bound: where it is one of 64,
# there may be a better one that none has found.
#
# The same mechanism runs elsewhere under other names. `pplgen.calibrate` is a few hundred fits to simulated data
# sets, each restart having rows of its own; draws for tables and scores are mapped likewise.
#
# ## What cannot be traced
#
# A graph has no `if`. A pair that looks at a value and decides, or that counts its calls, or that draws from NumPy,
# is not the same function at every step, and no recording of it is right. Then `fit` does not guess: it runs plain
# Pyro, slower and right, and `fit.path` says why.

# %%
calls = []


def branches(x):
    """Look at a value, and decide."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    scale = 1.0 if mu > 0 else 2.0
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, scale), obs=x)


def counts(x):
    """Depend on how often it was called."""
    calls.append(1)
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0 + 1.0 / len(calls)), obs=x)


def draws_from_numpy(x):
    """Take random numbers that torch does not know of."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, float(np.random.default_rng().uniform(1, 2))), obs=x)


def chooses(x):
    """Decide inside the graph: both values are computed, and one is taken."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    scale = torch.where(mu > 0, 1.0, 2.0)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, scale), obs=x)


told = {}
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
    for pair in (branches, counts, draws_from_numpy, chooses):
        told[pair.__name__] = pplgen.fit(pair, x[:, 0], steps=100, compile="graph", progress=False).path
for name, path in told.items():
    print(f"{name}: {path}")

# %% [markdown]
# The last is the first one, mended: `torch.where` in place of `if`. That is the whole art of writing pairs that
# trace. Shapes may decide things (they do not change from step to step); values may not.
#
# ## On a GPU
#
# The same code runs there; `device` says where. Data and parameters move, the graph is traced there, and `"inductor"`
# compiles kernels for it. On small data such as these wines a GPU has nothing to do and is slower than a processor;
# it comes into its own with many restarts, wide networks or many rows. Where this page was made without one, the next
# lines say so.

# %%
if torch.cuda.is_available():
    on_gpu = pplgen.fit(
        model, x, guide, device="cuda", restarts=RESTARTS, steps=800, learning_rate=0.05, progress=False
    )
    print(f"best bound on the GPU {on_gpu.elbo:.1f} nats, on the processor {many.elbo:.1f}")
else:
    print("no GPU here: pplgen.fit(model, x, guide, device='cuda') is all that would change")

# %% [markdown]
# On the command line that is `pplgen fit STORY DATA --device cuda`. Several processes, on one machine or several
# GPUs, share a fit when torchrun starts them:
#
# ```sh
# torchrun --nproc-per-node=4 -m pplgen fit vae pictures.npy --batch-size 512 --shard rows
# torchrun --nproc-per-node=4 -m pplgen fit gaussian-mixture rows.csv --restarts 256 --shard restarts
# ```
#
# With `rows`, each process has a part of the rows and all of them take each step together; with `restarts`, each has
# a part of the restarts, and the best of all is kept.
#
# ## Rules of thumb
#
# - Leave `compile` alone. `"auto"` traces where a run is longer than a hundred steps, and compiles where it expects
#   half a minute.
# - Ask for restarts. Sixteen together cost less than sixteen times one.
# - When something is slow, print `fit.path` first.
# - Many rows: `batch_size=`, and `pplgen.stream_data(path)` where they do not fit into memory.
#
# ## What we claimed
#
# No time is asserted. That all paths compute the same is.

# %%
assert abs(by_pyro - float(by_graph)) < 1e-4 * abs(by_pyro)  # single precision
assert one["off"][0].path.startswith("plain Pyro")
assert one["graph"][0].path == "the traced graph"
assert SMOKE or one["inductor"][0].path == "the compiled graph" or "no C++ compiler" in one["inductor"][0].path
assert len(finals) == RESTARTS
assert many.spread > 10  # nats: some starts end at another maximum
assert many.elbo >= max(run.elbo for run in many.runs)
assert agreement > 0.85
assert all(told[name].startswith("plain Pyro") for name in ("branches", "counts", "draws_from_numpy"))
assert told["chooses"] == "the traced graph"
