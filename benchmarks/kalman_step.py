"""Log-likelihood of a linear Gaussian state space model with its gradient: D = 4 states, E = 2 features, one thread.

The engine's step includes the Adam update; Dynamax, if installed, computes value and gradient only.
"""

from __future__ import annotations

import os
from collections.abc import Callable

# before JAX is imported
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import pyro
import pyro.distributions as dist
import torch
from contenders import engine_contender, svi_contender
from harness import compare
from pyro.infer import Trace_ELBO
from torch.distributions import constraints

from pplgen.distributions.linear_gaussian import LinearGaussianSeries
from pplgen.story.dynamics import LinearGaussian
from pplgen.story.pair import Pair

D, E = 4, 2
SIZES = ((100, 1), (1_000, 1), (10_000, 1), (100, 64), (1_000, 64))
"""Steps and series."""


def start() -> dict[str, torch.Tensor]:
    """Return initial parameters; standard deviations are one."""
    generator = torch.Generator().manual_seed(0)
    A = 0.9 * torch.linalg.qr(torch.randn(D, D, generator=generator))[0]
    C = torch.randn(E, D, generator=generator)
    return {"m0": torch.zeros(D), "A": A, "b": torch.zeros(D), "C": C, "d": torch.zeros(E)}


def learned() -> LinearGaussian:
    """Declare the parameters in Pyro and return the state space model."""
    theta = {name: pyro.param(name, value) for name, value in start().items()}
    q = pyro.param("q", torch.ones(D), constraint=constraints.positive)
    r = pyro.param("r", torch.ones(E), constraint=constraints.positive)
    Q, R = torch.diag_embed(q.square()), torch.diag_embed(r.square())
    return LinearGaussian(theta["m0"], torch.eye(D), theta["A"], theta["b"], Q, theta["C"], theta["d"], R)


def model(y: torch.Tensor) -> None:
    """Condition on series with pplgen's distribution."""
    p = learned()
    with pyro.plate("data", len(y)):
        pyro.sample("y", LinearGaussianSeries(p, y.shape[1], missing=False), obs=y)


def pyros_model(y: torch.Tensor) -> None:
    """Condition on series with Pyro's ``GaussianHMM``."""
    m0, S0, A, b, Q, C, d, R = learned()
    # Pyro's chain has a transition before the first observation: one more step of noise
    parts = (
        dist.MultivariateNormal(m0, S0),
        A.mT,
        dist.MultivariateNormal(b, Q),
        C.mT,
        dist.MultivariateNormal(d, R),
    )
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.GaussianHMM(*parts, duration=y.shape[1]), obs=y)


def guide(y: torch.Tensor) -> None:
    """Guide without latent variables."""


def dynamax(y: torch.Tensor) -> dict[str, Callable[[], int]]:
    """Return Dynamax's sequential filter, jitted, if installed."""
    try:
        import jax
        import jax.numpy as jnp
        from dynamax.linear_gaussian_ssm.inference import lgssm_filter, make_lgssm_params
    except ImportError:
        return {}
    theta = {name: jnp.asarray(value.numpy()) for name, value in start().items()}
    theta |= {"q": jnp.ones(D), "r": jnp.ones(E)}
    series = jnp.asarray(y.numpy())

    def log_likelihood(p):
        parameters = make_lgssm_params(
            p["m0"],
            jnp.eye(D),
            p["A"],
            jnp.diag(p["q"] ** 2),
            p["C"],
            jnp.diag(p["r"] ** 2),
            dynamics_bias=p["b"],
            emissions_bias=p["d"],
        )
        if len(series) == 1:
            return lgssm_filter(parameters, series[0]).marginal_loglik
        return jax.vmap(lambda one: lgssm_filter(parameters, one).marginal_loglik)(series).sum()

    function = jax.jit(jax.value_and_grad(log_likelihood))

    def run() -> int:
        jax.block_until_ready(function(theta))
        return 1

    run()
    return {"Dynamax, jitted": run}


def main() -> None:
    """Run the comparison at every size."""
    torch.set_num_threads(1)
    for T, B in SIZES:
        torch.manual_seed(0)
        y = torch.randn(B, T, E)

        def ours(y: torch.Tensor, *, compiled: bool) -> Callable[[], int]:
            pair = Pair(model, guide, (y,))
            return engine_contender(pair, Trace_ELBO(), rate=1e-4, restarts=1, steps=3, compiled=compiled)

        compare(
            f"Kalman log-likelihood with gradient, T = {T:,}, {B} series, D = {D}, E = {E}",
            {
                "pplgen, compiled": ours(y, compiled=True),
                "pplgen, traced graph": ours(y, compiled=False),
                "Pyro's GaussianHMM, svi.step": svi_contender(
                    pyros_model, guide, Trace_ELBO(), y, rate=1e-4, steps=1, validate=False
                ),
                **dynamax(y),
            },
        )


if __name__ == "__main__":
    main()
