"""The likelihood of a hidden Markov model with its gradient, and one optimisation step of the whole story.

T = 1,000 steps, D = 1 feature, K = 3 regimes with normal emissions; single precision throughout.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro
import numpyro.infer.util
import pyro.distributions as dist
import torch
from contenders import engine_contender
from dynamax.hidden_markov_model import hmm_filter
from harness import compare
from pplgen.models import GaussianHMM
from torch.fx.experimental.proxy_tensor import make_fx

from pplgen.compiler.inductor import compile_graph
from pplgen.distributions.hidden_markov import log_normaliser
from pplgen.story.pair import Pair

T, K = 1_000, 3
STEPS = 50


def truth() -> tuple[torch.Tensor, ...]:
    """Return log pi, log P, means and a series."""
    torch.manual_seed(0)
    P = torch.full((K, K), 0.05) + 0.85 * torch.eye(K)
    mu = torch.tensor([-2.0, 0.0, 2.0])
    story = GaussianHMM(K, 1, known={"P": P, "pi": 1 / K, "mu": mu[:, None], "sigma": 1.0})
    return torch.full((K,), 1 / K).log(), P.log(), mu, story.simulate(1, T)[0, :, 0]


def repeated(step, *arguments) -> object:
    """Return a contender that calls a function repeatedly, after one warm-up call."""
    step(*arguments)

    def run() -> int:
        for _ in range(STEPS):
            step(*arguments)
        return STEPS

    return run


def with_gradient(density, *arguments: torch.Tensor):
    """Return a function of leaf tensors: the density and its gradient."""

    def value_and_gradient(*values: torch.Tensor):
        leaves = [value.detach().requires_grad_() for value in values]
        total = density(*leaves)
        return total.detach(), *torch.autograd.grad(total, leaves)

    return value_and_gradient


def ours(*arguments: torch.Tensor, compiled: bool, cpp_wrapper: bool = False):
    """Return the log normaliser of the chain as a contender, traced and compiled as in the engine."""
    *leaves, y = arguments

    def density(log_pi, log_P, mu):
        return log_normaliser(log_pi, log_P, dist.Normal(mu, 1.0, validate_args=False).log_prob(y[:, None]))

    graph = make_fx(with_gradient(density))(*leaves)
    call = compile_graph(graph, tuple(leaves), cpp_wrapper=cpp_wrapper) if compiled else graph
    return repeated(torch.no_grad()(call), *leaves)


def pyros(*arguments: torch.Tensor):
    """Return Pyro's parallel scan as a contender."""
    *leaves, y = arguments

    def density(log_pi, log_P, mu):
        # Pyro's initial state precedes the first step
        first = (log_pi - torch.logsumexp(log_pi, 0)).expand(K)
        return dist.DiscreteHMM(first, log_P, dist.Normal(mu, 1.0, validate_args=False), validate_args=False).log_prob(
            y
        )

    return repeated(with_gradient(density), *leaves)


def jaxs(*arguments: torch.Tensor):
    """Return Dynamax's filter, and NumPyro's forward algorithm as in its example of an HMM, jitted."""
    log_pi, log_P, mu, y = (jnp.asarray(value.numpy()) for value in arguments)

    def dynamax(log_pi, log_P, mu):
        log_likelihoods = jax.scipy.stats.norm.logpdf(y[:, None], mu, 1.0)
        return hmm_filter(jnp.exp(log_pi), jnp.exp(log_P), log_likelihoods).marginal_loglik

    def model(log_pi, log_P, mu):
        log_likelihoods = numpyro.distributions.Normal(mu, 1.0).log_prob(y[:, None])

        def forward(alpha, log_likelihood):
            return jax.nn.logsumexp(alpha[:, None] + log_P, 0) + log_likelihood, None

        alpha, _ = jax.lax.scan(forward, log_pi + log_likelihoods[0], log_likelihoods[1:])
        numpyro.factor("y", jax.nn.logsumexp(alpha))

    def numpyros(log_pi, log_P, mu):
        return numpyro.infer.util.log_density(model, (log_pi, log_P, mu), {}, {})[0]

    def contender(density):
        step = jax.jit(jax.value_and_grad(density, argnums=(0, 1, 2)))
        return repeated(lambda *values: jax.block_until_ready(step(*values)), log_pi, log_P, mu)

    return {"Dynamax, jitted": contender(dynamax), "NumPyro, lax.scan, jitted": contender(numpyros)}


def main() -> None:
    """Run both comparisons."""
    arguments = truth()
    compare(
        f"Likelihood of a hidden Markov model with gradient, T = {T:,}, K = {K}",
        {
            "pplgen, compiled, wrapper in C++": ours(*arguments, compiled=True, cpp_wrapper=True),
            "pplgen, compiled": ours(*arguments, compiled=True),
            "pplgen, traced graph": ours(*arguments, compiled=False),
            "Pyro DiscreteHMM": pyros(*arguments),
            **jaxs(*arguments),
        },
    )
    story = GaussianHMM(K, 1)
    y = arguments[-1][None, :, None]
    story.initialise(y)
    pair = Pair(story.model, story.guide, (y,))

    def engine(restarts: int, *, compiled: bool):
        return engine_contender(pair, pair.elbo(), rate=0.01, restarts=restarts, steps=10, compiled=compiled)

    compare(
        f"Step of the story GaussianHMM, T = {T:,}, K = {K}",
        {
            "pplgen, compiled, 1 restart": engine(1, compiled=True),
            "pplgen, compiled, 10 restarts": engine(10, compiled=True),
            "pplgen, traced graph, 1 restart": engine(1, compiled=False),
        },
    )


if __name__ == "__main__":
    main()
