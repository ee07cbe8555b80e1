"""One optimisation step of a Bayesian Gaussian mixture with diagonal covariances, and of many restarts of it.

N = 10,000 rows, D = 8 features, K = 5 components; the restarts at N = 1,000.
"""

from __future__ import annotations

import math

import numpyro_pairs
import pyro
import pyro.distributions as dist
import torch
from contenders import engine_contender, runner, svi_contender
from harness import compare
from pyro.infer import TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal

from pplgen.story.pair import Pair

K, D = 5, 8


def model(x: torch.Tensor) -> None:
    """Generate rows from K components with diagonal covariances."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(K)))
    with pyro.plate("components", K):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(D), 3.0).to_event(1))
        sigma = pyro.sample("sigma", dist.LogNormal(torch.zeros(D), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(mu[z], sigma[z]).to_event(1), obs=x)


def hand_written(x: torch.Tensor, *, products: bool):
    """Return a hand-written step of the same ELBO and guide, including its optimiser, and its initial state.

    ``products`` writes the squared distances as three matrix products, which no compiler does by itself.
    """
    sizes = [K - 1, K * D, K * D]
    P = sum(sizes)

    def loss(q: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        loc, log_scale = q.chunk(2)
        u, mu, log_sigma = (loc + log_scale.exp() * noise).split(sizes)
        mu, log_sigma = mu.reshape(K, D), log_sigma.reshape(K, D)
        # stick-breaking to the simplex, as torch's transform does
        offset = torch.arange(K - 1, 0, -1, dtype=u.dtype).log()
        v = torch.sigmoid(u - offset)
        rest = torch.cumprod(1 - v, 0)
        weights = torch.cat([v, v.new_ones(1)]) * torch.cat([v.new_ones(1), rest])
        jacobian = (-(u - offset) + torch.nn.functional.logsigmoid(u - offset) + weights[:-1].log()).sum()
        if products:
            precision = (-2 * log_sigma).exp()
            quadratic = x.square() @ precision.T - 2 * x @ (mu * precision).T + (mu.square() * precision).sum(1)
        else:
            quadratic = ((x[:, None] - mu) * (-log_sigma).exp()).square().sum(2)
        log_density = -0.5 * quadratic - log_sigma.sum(1) - 0.5 * D * math.log(2 * math.pi)
        likelihood = (weights.log() + log_density).logsumexp(1).sum()
        prior = math.lgamma(K) + jacobian
        prior = prior - (mu.square() / 18 + math.log(3 * math.sqrt(2 * math.pi))).sum()
        prior = prior - (0.5 * log_sigma.square() + 0.5 * math.log(2 * math.pi)).sum()
        entropy = log_scale.sum() + (0.5 * noise.square() + 0.5 * math.log(2 * math.pi)).sum()
        return -(likelihood + prior + entropy)

    def step(q, mean, square, taken):
        noise = torch.randn(P)
        with torch.enable_grad():
            leaf = q.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(loss(leaf, noise), leaf)
        taken = taken + 1
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient * gradient
        q = q - 0.01 * mean / (1 - 0.9**taken) / ((square / (1 - 0.999**taken)).sqrt() + 1e-8)
        return q, mean, square, taken

    start = torch.cat([torch.randn(P) * 0.1, torch.full((P,), -2.0)])
    state = (start, torch.zeros(2 * P), torch.zeros(2 * P), torch.zeros(()))
    return step, state


def rows(number: int) -> torch.Tensor:
    """Draw rows of five well separated components."""
    torch.manual_seed(0)
    return torch.randn(number, D) + 3 * torch.randn(K, D)[torch.randint(K, (number,))]


def plain(x: torch.Tensor, steps: int, validate: bool):
    """Return plain Pyro as a contender."""
    guide = AutoNormal(pyro.poutine.block(model, hide=["z"]))
    return svi_contender(
        model, guide, TraceEnum_ELBO(max_plate_nesting=1), x, rate=0.01, steps=steps, validate=validate
    )


def ours(x: torch.Tensor, restarts: int, steps: int, *, compiled: bool):
    """Return the engine as a contender."""
    pair = Pair(model, None, (x,))
    return engine_contender(pair, pair.elbo(), rate=0.01, restarts=restarts, steps=steps, compiled=compiled)


def main() -> None:
    """Run both comparisons."""
    x = rows(10_000)
    step, state = hand_written(x, products=False)
    by_products, _ = hand_written(x, products=True)
    compare(
        "Gaussian mixture step, diagonal, N = 10,000, D = 8, K = 5",
        {
            "pplgen, compiled": ours(x, 1, 40, compiled=True),
            "pplgen, traced graph": ours(x, 1, 10, compiled=False),
            "hand-written torch, compiled with its optimiser": runner(torch.compile(step), state, 40),
            "the same with matrix products, compiled": runner(torch.compile(by_products), state, 40),
            "hand-written torch, eager": runner(step, state, 20),
            "Pyro svi.step, validation off": plain(x, 5, False),
            "Pyro svi.step, default": plain(x, 5, True),
            **numpyro_pairs.mixture(x.numpy(), K, rate=0.01, steps=40),
        },
    )
    x = rows(1_000)
    compare(
        "Restarts of the mixture in one step, N = 1,000",
        {
            "pplgen, 1 restart": ours(x, 1, 40, compiled=True),
            "pplgen, 64 restarts": ours(x, 64, 10, compiled=True),
            "pplgen, 256 restarts": ours(x, 256, 10, compiled=True),
            "Pyro svi.step, default, 1 restart": plain(x, 5, True),
        },
    )


if __name__ == "__main__":
    main()
