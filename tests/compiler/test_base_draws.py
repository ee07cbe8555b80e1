"""The random numbers of a graph as inputs."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from scipy import special

from pplgen.compiler.base_draws import NotReparameterised, lift_random_numbers
from pplgen.compiler.graph import tensors_of, trace
from pplgen.compiler.guide_score import trace_guide_score
from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair

Y = torch.linspace(-1.0, 2.0, 7)


def model(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def guide(y):
    loc, scale = pyro.param("loc", torch.tensor(0.3)), pyro.param("scale", torch.tensor(0.5), constraints.positive)
    pyro.sample("mu", dist.Normal(loc, scale))


def lifted(model, guide, data):
    pair = Pair(model, guide, data)
    with seeded(0), pair.isolated():
        graph = trace(pair, pair.elbo(), pair.data)
        score = trace_guide_score(pair, graph, pair.data)
    inputs = tensors_of(pair.data)
    return graph, lift_random_numbers(graph, inputs), score and lift_random_numbers(score, inputs), inputs


def test_a_loss_is_that_of_its_base_draws():
    _, elbo, score, inputs = lifted(model, guide, (Y,))
    assert (elbo.num_normals, elbo.num_uniforms) == (1, 0)
    vector, z = torch.tensor([0.7, math.log(0.4)], dtype=torch.float64), torch.tensor([-1.3], dtype=torch.float64)
    none = torch.zeros(0, dtype=torch.float64)
    loss, gradient = elbo.module(vector, z, none, *(value.double() for value in inputs))
    vector.requires_grad_()
    mu = vector[0] + vector[1].exp() * z[0]
    normal = torch.distributions.Normal
    expected = normal(vector[0], vector[1].exp()).log_prob(mu) - normal(0.0, 3.0).log_prob(mu)
    expected = expected - normal(mu, 1.0).log_prob(Y.double()).sum()
    (expected_gradient,) = torch.autograd.grad(expected, vector)
    # float64, with constants of the model in float32
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-6, atol=1e-6)
    # the score of a normal at a draw that stands still: z / sigma, and z^2 - 1 in log sigma
    _, gradient = score.module(vector.detach(), z, none, *(value.double() for value in inputs))
    torch.testing.assert_close(gradient, torch.tensor([-1.3 / 0.4, 1.3**2 - 1], dtype=torch.float64), rtol=1e-6, atol=0)


def gamma_pair():
    def model(y):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        p = pyro.sample("p", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(rate * p[0], 1.0), obs=y)

    def guide(y):
        a = pyro.param("a", torch.tensor(1.5), constraints.positive)
        pyro.sample("rate", dist.Gamma(a, 2.0))
        pyro.sample("p", dist.Dirichlet(pyro.param("b", torch.tensor([0.7, 1.0, 4.0]), constraints.positive)))

    return model, guide


def test_gamma_and_dirichlet_draws_move_smoothly_with_their_parameters():
    _, elbo, _, inputs = lifted(*gamma_pair(), (Y,))
    assert (elbo.num_normals, elbo.num_uniforms) == (0, 4)
    uniforms = torch.tensor([0.3, 0.9, 0.02, 0.6], dtype=torch.float64)
    none, inputs = torch.zeros(0, dtype=torch.float64), [value.double() for value in inputs]
    vector = torch.tensor([0.2, -0.3, 0.4, 1.0], dtype=torch.float64)
    _, gradient = elbo.module(vector, none, uniforms, *inputs)
    for index, step in enumerate(1e-5 * torch.eye(4, dtype=torch.float64)):
        after, before = (elbo.module(vector + sign * step, none, uniforms, *inputs)[0] for sign in (1, -1))
        # central differences of second order
        assert gradient[index].item() == pytest.approx((after - before).item() / 2e-5, rel=1e-6, abs=1e-7)


def test_gamma_quantiles_and_their_derivatives():
    a = torch.tensor([0.05, 0.5, 1.0, 7.0, 300.0], dtype=torch.float64)
    u = torch.tensor([0.9, 0.2, 0.5, 0.999, 0.01], dtype=torch.float64)
    x = torch.ops.pplgen.gamma_quantile(a, u)
    torch.testing.assert_close(torch.special.gammainc(a, x), u, rtol=1e-9, atol=1e-12)
    # central differences of scipy's quantiles, whose own error is about 1e-9
    after, before = (
        torch.as_tensor(special.gammaincinv((a * (1 + step)).numpy(), u.numpy())) for step in (1e-5, -1e-5)
    )
    found = torch.ops.pplgen.gamma_quantile_grad(a, x)
    torch.testing.assert_close(found, (after - before) / (2e-5 * a), rtol=1e-7, atol=0)
    # torch's own derivative is accurate to about 5e-4
    torch.testing.assert_close(found, torch._standard_gamma_grad(a, x), rtol=2e-3, atol=0)
    both = torch.func.vmap(torch.ops.pplgen.gamma_quantile, in_dims=(None, 0))(a, torch.stack([u, 1 - u]))
    torch.testing.assert_close(both[0], x)
    # a line search may try an infinite concentration: NaN, and no warning
    infinite = torch.full((1,), math.inf, dtype=torch.float64)
    assert not torch.ops.pplgen.gamma_quantile_grad(infinite, u[:1]).isfinite().any()


def test_a_discrete_draw_is_not_lifted():
    def model(y):
        z = pyro.sample("z", dist.Bernoulli(0.3))
        pyro.sample("y", dist.Normal(z, 1.0).expand(y.shape).to_event(1), obs=y)

    def guide(y):
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.2))))

    with pytest.raises(NotReparameterised, match="bernoulli"):
        lifted(model, guide, (Y,))
