"""Simulation-based calibration as one batched program, compared with a loop of ``pyro.infer.SVI``.

200 data sets of a linear regression (30 rows, 3 features), 2,000 steps of a full-rank guide each: wall time of the
whole calibration, including simulation, tracing, compiling and ranking. The loop is timed on ten data sets, steps only,
and extrapolated to 200. Then a Gaussian mixture: 200 data sets of 200 rows, 2,000 steps, components matched.
"""

from __future__ import annotations

import time

import pyro
import pyro.distributions as dist
import torch
from harness import report
from pplgen.models import GaussianMixture
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal

import pplgen

DATASETS, STEPS, LOOPED = 200, 2000, 10
X = torch.randn(30, 3, generator=torch.Generator().manual_seed(1))


def regression(x: torch.Tensor, y: torch.Tensor) -> None:
    """Linear regression of y on x with unit noise variance."""
    beta = pyro.sample("beta", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ beta, 1.0), obs=y)


def looped() -> float:
    """Fit ten data sets one by one in plain Pyro; return seconds per data set."""
    seconds = []
    for seed in range(LOOPED):
        pyro.set_rng_seed(seed)
        pyro.clear_param_store()
        y = poutine.trace(poutine.uncondition(regression)).get_trace(X, torch.zeros(30)).nodes["y"]["value"]
        svi = SVI(regression, AutoMultivariateNormal(regression), pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
        started = time.perf_counter()
        for _ in range(STEPS):
            svi.step(X, y)
        seconds.append(time.perf_counter() - started)
    return sum(seconds) / LOOPED


def main() -> None:
    """Time both, and the calibration of a mixture."""
    started = time.perf_counter()
    batched = pplgen.calibrate(
        regression, (X, torch.zeros(30)), AutoMultivariateNormal(regression), num_datasets=DATASETS, steps=STEPS
    )
    ours = time.perf_counter() - started
    each = looped()
    report(
        f"Calibration of a regression, {DATASETS} data sets, {STEPS:,} steps",
        ("seconds", "ratio", "passed"),
        {
            f"pplgen.calibrate, total ({batched.path})": (f"{ours:.1f}", "1", str(batched.passed)),
            f"a loop of pyro.infer.SVI, extrapolated from {LOOPED}": (
                f"{each * DATASETS:.0f}",
                f"{each * DATASETS / ours:.0f}",
                "",
            ),
        },
        {"ours": ours, "looped, each": each, "p": batched.p_values.tolist()},
    )
    started = time.perf_counter()
    mixture = pplgen.calibrate(GaussianMixture(2, 2), num_datasets=DATASETS, num_rows=200, steps=STEPS)
    seconds = time.perf_counter() - started
    report(
        f"Calibration of a Gaussian mixture, {DATASETS} data sets of 200 rows, {STEPS:,} steps",
        ("seconds", "smallest p (Holm)", "passed"),
        {
            f"pplgen.calibrate, total ({mixture.path})": (
                f"{seconds:.1f}",
                f"{mixture.p_values.min():.2g}",
                str(mixture.passed),
            )
        },
        {"seconds": seconds, "p": dict(zip(mixture.quantities, mixture.p_values.tolist(), strict=True))},
    )


if __name__ == "__main__":
    main()
