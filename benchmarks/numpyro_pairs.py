"""The benchmarks' models in NumPyro, if installed: its jitted update, and steps in one compiled scan."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["autoencoder", "mixture"]

Contenders = dict[str, Callable[[], int]]


def mixture(x: np.ndarray, num_components: int, *, rate: float, steps: int) -> Contenders:
    """Return the Gaussian mixture with diagonal covariances, its index summed out, guide ``AutoNormal``."""
    if _missing():
        return {}
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import Trace_ELBO
    from numpyro.infer.autoguide import AutoNormal

    K, D = num_components, x.shape[1]

    def model(x: Any) -> None:
        weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(K)))
        with numpyro.plate("components", K):
            mu = numpyro.sample("mu", dist.Normal(jnp.zeros(D), 3.0).to_event(1))
            sigma = numpyro.sample("sigma", dist.LogNormal(jnp.zeros(D), 1.0).to_event(1))
        components = dist.Normal(mu, sigma).to_event(1)
        with numpyro.plate("data", len(x)):
            numpyro.sample("x", dist.MixtureSameFamily(dist.Categorical(weights), components), obs=x)

    return _scan(model, AutoNormal(model), Trace_ELBO(), x, rate=rate, steps=steps)


def autoencoder(x: np.ndarray, sizes: list[int], *, rate: float, steps: int) -> Contenders:
    """Return the variational autoencoder with ReLU layers and analytic KL divergence."""
    if _missing():
        return {}
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import TraceMeanField_ELBO

    *hidden, latent = sizes

    def network(name: str, widths: list[int], value: Any) -> Any:
        for index, (a, b) in enumerate(itertools.pairwise(widths)):
            key = jax.random.PRNGKey(index)
            weight = numpyro.param(f"{name}.{index}.weight", jax.random.normal(key, (a, b)) / a**0.5)
            value = value @ weight + numpyro.param(f"{name}.{index}.bias", jnp.zeros(b))
            value = jax.nn.relu(value) if index < len(widths) - 2 else value
        return value

    def model(x: Any) -> None:
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(latent), 1.0).to_event(1))
            logits = network("decoder", [latent, *reversed(hidden)], z)
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x: Any) -> None:
        with numpyro.plate("data", len(x)):
            loc, log_scale = jnp.split(network("encoder", [*hidden, 2 * latent], x), 2, -1)
            numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))

    return _scan(model, guide, TraceMeanField_ELBO(), x, rate=rate, steps=steps)


def _missing() -> bool:
    if importlib.util.find_spec("numpyro") is None:
        print("NumPyro is skipped: it is not installed (pip install numpyro)")
        return True
    return False


def _scan(model: Any, guide: Any, bound: Any, x: np.ndarray, *, rate: float, steps: int) -> Contenders:
    """Return contenders: ``steps`` updates compiled as one scan, and single jitted updates."""
    import jax
    import jax.numpy as jnp
    import numpyro

    data = jnp.asarray(x)
    svi = numpyro.infer.SVI(model, guide, numpyro.optim.Adam(rate), bound)
    several = jax.jit(
        lambda state, data: jax.lax.scan(lambda carry, _: svi.update(carry, data), state, None, length=steps)
    )
    single = jax.jit(svi.update)
    states = {"scan": svi.init(jax.random.PRNGKey(0), data)}
    states["single"] = states["scan"]

    def scanned() -> int:
        states["scan"], _ = jax.block_until_ready(several(states["scan"], data))
        return steps

    def one_by_one() -> int:
        for _ in range(steps):
            states["single"], _ = single(states["single"], data)
        jax.block_until_ready(states["single"])
        return steps

    scanned(), one_by_one()
    return {f"NumPyro {numpyro.__version__}, steps in one scan": scanned, "NumPyro, jitted update": one_by_one}
