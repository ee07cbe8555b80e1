"""One optimisation step of a variational autoencoder, batch 128: 64-64-8 and 784-400-400-20."""

from __future__ import annotations

import copy
import itertools

import numpyro_pairs
import pyro
import pyro.distributions as dist
import torch
from contenders import engine_contender, runner, svi_contender
from harness import compare
from pyro.infer import TraceMeanField_ELBO
from torch import nn
from torch.nn import functional as F

from pplgen.story.pair import Pair

BATCH = 128


class VAE(nn.Module):
    """Bernoulli decoder, Gaussian encoder, ReLU layers."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        *hidden, latent = sizes

        def layers(widths: list[int]) -> nn.Sequential:
            parts: list[nn.Module] = []
            for a, b in itertools.pairwise(widths):
                parts += [nn.Linear(a, b), nn.ReLU()]
            return nn.Sequential(*parts[:-1])

        self.latent = latent
        self.encoder = layers([*hidden, 2 * latent])
        self.decoder = layers([latent, *reversed(hidden)])

    def model(self, x: torch.Tensor) -> None:
        """Model of pixels given latent variables."""
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.latent), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        """Amortised Gaussian guide."""
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def hand_written(vae: VAE, x: torch.Tensor, *, in_batches: bool = False):
    """Return a hand-written step on lists of tensors, including its optimiser, and its initial state.

    With ``in_batches`` the step takes its rows as last argument; otherwise they are ``x``.
    """
    vae = copy.deepcopy(vae)
    names = [name for name, _ in vae.named_parameters()]

    def loss(values: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        parameters = dict(zip(names, values, strict=True))

        def network(prefix: str, module: nn.Sequential, value: torch.Tensor) -> torch.Tensor:
            for index, layer in enumerate(module):
                if isinstance(layer, nn.Linear):
                    value = F.linear(
                        value, parameters[f"{prefix}.{index}.weight"], parameters[f"{prefix}.{index}.bias"]
                    )
                else:
                    value = F.relu(value)
            return value

        loc, log_scale = network("encoder", vae.encoder, x).chunk(2, -1)
        z = loc + log_scale.exp() * torch.randn_like(loc)
        logits = network("decoder", vae.decoder, z)
        divergence = 0.5 * (loc.square() + (2 * log_scale).exp() - 1) - log_scale
        return F.binary_cross_entropy_with_logits(logits, x, reduction="sum") + divergence.sum()

    def step(values, means, squares, taken, batch=None if in_batches else x):
        with torch.enable_grad():
            leaves = [value.detach().requires_grad_() for value in values]
            gradients = torch.autograd.grad(loss(leaves, batch), leaves)
        taken = taken + 1
        means = [0.9 * m + 0.1 * g for m, g in zip(means, gradients, strict=True)]
        squares = [0.999 * s + 0.001 * g * g for s, g in zip(squares, gradients, strict=True)]
        rate, root = 1e-3 / (1 - 0.9**taken), (1 - 0.999**taken)
        moved = [v - rate * m / ((s / root).sqrt() + 1e-8) for v, m, s in zip(values, means, squares, strict=True)]
        return moved, means, squares, taken

    values = [value.detach().clone() for value in vae.parameters()]
    zeros = [torch.zeros_like(value) for value in values]
    return step, (values, zeros, [z.clone() for z in zeros], torch.zeros(()))


def plain(vae: VAE, x: torch.Tensor, steps: int, validate: bool):
    """Return plain Pyro as a contender."""
    return svi_contender(vae.model, vae.guide, TraceMeanField_ELBO(), x, rate=1e-3, steps=steps, validate=validate)


def ours(vae: VAE, x: torch.Tensor, steps: int):
    """Return the compiled engine as a contender."""
    pair = Pair(vae.model, vae.guide, (x,))
    return engine_contender(pair, TraceMeanField_ELBO(), rate=1e-3, restarts=1, steps=steps, compiled=True)


def main() -> None:
    """Run both sizes."""
    for title, sizes in (("64-64-8", [64, 64, 8]), ("784-400-400-20", [784, 400, 400, 20])):
        torch.manual_seed(0)
        x = torch.rand(BATCH, sizes[0]).round()
        vae = VAE(sizes)
        step, state = hand_written(vae, x)
        compare(
            f"Autoencoder step, {title}, batch {BATCH}",
            {
                "pplgen, compiled": ours(vae, x, 40),
                "hand-written torch, compiled with its optimiser": runner(torch.compile(step), state, 40),
                "hand-written torch, eager": runner(step, state, 20),
                "Pyro svi.step, validation off": plain(copy.deepcopy(vae), x, 10, False),
                "Pyro svi.step, default": plain(copy.deepcopy(vae), x, 10, True),
                **numpyro_pairs.autoencoder(x.numpy(), sizes, rate=1e-3, steps=20),
            },
        )


if __name__ == "__main__":
    main()
