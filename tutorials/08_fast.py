# %% [markdown]
# # Performance: how a Pyro pair is compiled
#
# A step of Pyro's SVI is mostly Python overhead: effect handlers for each `sample`, shape checks, dozens of small
# kernels called one by one. The computation itself is a few hundred operations that are the same at every step. This
# tutorial shows how `pplgen.fit` uses that: it *traces* the pair once into a graph of tensor operations, *validates*
# the graph against Pyro, *batches* it over restarts, and *compiles* it. And it shows what happens if that is not
# possible.
#
# It prints ratios of times, and asserts none: they depend on the hardware and its load. It does assert that all paths
# compute the same result. It takes about two minutes, most of it compiling; with `PPLGEN_SMOKE=1` in the environment
# nothing is compiled, and it takes half a minute.

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
# covariances (a cultivar may have more than one component), in plain Pyro without anything from this package. The
# guide's locations are initialised at random.

# %%
wine = pplgen.load_data("wine")
x = (wine.values - wine.values.mean(0)) / wine.values.std(0)
cultivar = wine.target.numpy()  # not used by any fit
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
    """Draw the global parameters; the component is summed out."""
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
# `pplgen.compiler.graph.trace` runs the pair's ELBO and its backward pass once and records each tensor operation.
# Handlers, constraints, plates and enumeration are gone; only arithmetic and random numbers remain. (`fit` does this
# automatically. Here we do it explicitly, to inspect the graph.)

# %%
fit = pplgen.fit(model, x, guide, steps=1, progress=False)
with fit.pair.isolated():
    graph = trace(fit.pair, fit.pair.elbo(), fit.pair.data)
operations = [node for node in graph.module.graph.nodes if node.op == "call_function"]
print(f"{len(operations)} operations, {sum(shape.numel() for shape in graph.shapes)} parameters; the first lines:")
print("\n".join(line.split("  #")[0].rstrip()[:110] for line in graph.module.code.strip().splitlines()[1:9]))

# %% [markdown]
# ## Validate
#
# A trace may be wrong for other inputs than those recorded. So `trace` returns only after the graph has reproduced
# Pyro's loss and gradients, at other parameters and on resampled rows, with the same random numbers. Here is that
# comparison again, explicitly.

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
# starts with the graph and compiles if the run is long enough to amortise it. Only steps of Adam are taken here
# (`optimiser="adam"`), not the quasi-Newton steps with which such a fit ends by default. We measure the time between
# the first and the last progress report, so that tracing and compiling are excluded.


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
        optimiser="adam",
        progress=lambda at: reports.append((at.step, time.perf_counter())),
        **options,
    )
    (first, start), (last, end) = reports[0], reports[-1]
    return run, 1e3 * (end - start) / (last - first)


paths = {"off": 200, "graph": 600} if SMOKE else {"off": 600, "graph": 1000, "inductor": 3000}
one = {name: timed(name, steps) for name, steps in paths.items()}
fastest = min(milliseconds for _, milliseconds in one.values())
for name, (run, milliseconds) in one.items():
    print(f"{name:9s} {milliseconds / fastest:6.1f} times as slow as the fastest; {run.path}")

# %% [markdown]
# ## Many restarts, one program
#
# A mixture's ELBO has many local maxima, and the result depends on the initialisation. The usual remedy is restarts.
# Since the graph is a pure function of the parameters, restarts are a batch axis: `restarts=64` maps the graph over 64
# starts, each with separate random numbers, and many small operations become as many larger ones.

# %%
many, milliseconds = timed(
    "graph" if SMOKE else "inductor", 400 if SMOKE else 2500, restarts=RESTARTS, learning_rate=0.05
)
print(f"{RESTARTS} restarts: {milliseconds / one['off'][1]:.2f} times the cost of one plain Pyro step ({many.path})")


def clusters(run):
    """Assign each wine to its most probable component."""
    return run.latents(draws=200)["z"].values.argmax(-1)


def purity(components):
    """Return the fraction of wines of the most common cultivar of their component."""
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
left.set(xlabel="step", ylabel="ELBO (nats), mean of 20", title=f"{RESTARTS} restarts of one pair; the best in orange")
left.set_ylim(finals.min() - 100, finals.max() + 30)
right.hist(finals, bins=24, color=COLOURS[0])
right.axvline(finals.max(), color=COLOURS[1], lw=1.5)
right.set(xlabel="final ELBO (nats)", ylabel="restarts", title="Final ELBOs")
plt.show()
print(f"{many.num_agreeing} of {len(finals)} restarts end within a nat of the best; the worst {many.spread:.0f} below")
print(f"{100 * agreement:.0f} % of wines are of the most common cultivar of their component")

# %% [markdown]
# A single start would have been any of these lines. (Lines that step up together show a cut of the learning rate at a
# plateau.) `fit.diagnose()` therefore has a check of how many restarts reach the best ELBO: if it is one of 64, there
# may be a better maximum that none has reached.
#
# The same mechanism is used elsewhere. `pplgen.calibrate` is a few hundred fits to simulated data sets, one per batch
# element; posterior draws and densities are batched likewise.
#
# ## What cannot be traced
#
# A graph has no control flow. A pair that branches on a value, or that counts its calls, or that draws from NumPy, is
# not the same function at every step, and cannot be traced. Then `fit` falls back to plain Pyro, slower but correct,
# and `fit.path` gives the reason.

# %%
calls = []


def branches(x):
    """Branch on a value."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    scale = 1.0 if mu > 0 else 2.0
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, scale), obs=x)


def counts(x):
    """Depend on the number of calls."""
    calls.append(1)
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0 + 1.0 / len(calls)), obs=x)


def draws_from_numpy(x):
    """Draw random numbers outside torch."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, float(np.random.default_rng().uniform(1, 2))), obs=x)


def chooses(x):
    """Select inside the graph: both values are computed."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    scale = torch.where(mu > 0, 1.0, 2.0)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, scale), obs=x)


paths_taken = {}
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
    for pair in (branches, counts, draws_from_numpy, chooses):
        paths_taken[pair.__name__] = pplgen.fit(pair, x[:, 0], steps=100, compile="graph", progress=False).path
for name, path in paths_taken.items():
    print(f"{name}: {path}")

# %% [markdown]
# The last is a fix of the first: `torch.where` in place of `if`. Control flow may depend on shapes, which are the same
# at every step, but not on values.
#
# ## On a GPU
#
# The same code runs on a GPU; select it by `device`. Data and parameters are moved, the graph is traced there, and
# `"inductor"` compiles kernels for it. On small data such as these wines a GPU is slower than a CPU; it pays off with
# many restarts, wide networks or many rows. If this page was built without a GPU, the next lines say so.

# %%
if torch.cuda.is_available():
    on_gpu = pplgen.fit(
        model, x, guide, device="cuda", restarts=RESTARTS, steps=800, learning_rate=0.05, progress=False
    )
    print(f"best ELBO on the GPU {on_gpu.elbo:.1f} nats, on the CPU {many.elbo:.1f}")
else:
    print("no GPU here; with one: pplgen.fit(model, x, guide, device='cuda')")

# %% [markdown]
# On the command line that is `pplgen fit STORY DATA --device cuda`. Several processes, on CPUs or GPUs, share a fit if
# started by torchrun:
#
# ```sh
# torchrun --nproc-per-node=4 -m pplgen fit vae pictures.npy --batch-size 512 --shard rows
# torchrun --nproc-per-node=4 -m pplgen fit gaussian-mixture rows.csv --restarts 256 --shard restarts
# ```
#
# With `rows`, each process has a shard of the rows and all take each step together (data parallelism); with `restarts`,
# each has a shard of the restarts, and the best of all is returned.
#
# ## Rules of thumb
#
# - Keep the default of `compile`. `"auto"` traces if a run is longer than a hundred steps, and compiles if it expects
#   more than half a minute.
# - Use restarts. Sixteen together cost less than sixteen times one.
# - When something is slow, print `fit.path` first.
# - For many rows, use `batch_size=`, and `pplgen.stream_data(path)` if they do not fit into memory.
#
# ## What we claimed
#
# Times are not asserted; that all paths compute the same result is.

# %%
assert abs(by_pyro - float(by_graph)) < 1e-4 * abs(by_pyro)  # single precision
assert one["off"][0].path.startswith("plain Pyro")
assert one["graph"][0].path == "the traced graph"
assert SMOKE or one["inductor"][0].path == "the compiled graph" or "no C++ compiler" in one["inductor"][0].path
assert len(finals) == RESTARTS
assert many.spread > 10  # nats: some starts end at another maximum
assert many.elbo >= max(run.elbo for run in many.runs)
assert agreement > 0.85
assert all(paths_taken[name].startswith("plain Pyro") for name in ("branches", "counts", "draws_from_numpy"))
assert paths_taken["chooses"].startswith("the traced graph")
