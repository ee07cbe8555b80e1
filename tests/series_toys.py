"""Three small stories of series, one of each kind, written as plainly as can be."""

import pyro
import pyro.distributions as dist
import torch
from pplgen.models._guides.parameters import Parameters, fix_known

from pplgen.distributions.hidden_markov import HiddenMarkovSeries
from pplgen.distributions.missing import MarginalIndependent, MarginalNormal
from pplgen.exact.hmm import log_normaliser
from pplgen.story.base import pyro_method
from pplgen.story.dynamics import HiddenMarkov, LinearGaussian, MarkovChain, SwitchingLinearGaussian
from pplgen.story.shared_sites import row_distribution, shared_sites, shared_values
from pplgen.story.state_space import StateSpaceStory, series_lengths


class LevelSeries(dist.TorchDistribution):
    """Series of ``Level``: the joint normal distribution of all steps, without any filter."""

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, q, r, num_steps, batch=()):
        self.q, self.r, self.num_steps = q, r, num_steps
        super().__init__(torch.Size(batch), torch.Size([num_steps, 1]), validate_args=False)
        steps = torch.arange(num_steps)
        moves = (0.9 ** (steps[:, None] - steps).clamp_min(0).to(q)).tril()
        variances = torch.cat([torch.ones_like(q)[None], q.square().expand(num_steps - 1)])
        self.state_covariance = moves * variances @ moves.T
        self.joint = MarginalNormal(
            torch.zeros(num_steps).to(q), self.state_covariance + r.square() * torch.eye(num_steps)
        )

    def expand(self, batch_shape, _instance=None):
        return LevelSeries(self.q, self.r, self.num_steps, batch_shape)

    def log_prob(self, value):
        return self.joint.log_prob(value.squeeze(-1))

    def sample(self, sample_shape=()):
        return self.joint.expand(self.batch_shape).sample(sample_shape).unsqueeze(-1)


class Level(StateSpaceStory):
    """A level that reverts to zero, seen through noise: ``x_t = .9 x_{t-1} + q e_t``, ``y_t = x_t + r f_t``."""

    def __init__(self, num_features=1, *, known=None):
        super().__init__(num_features, known=known)
        self.theta = Parameters(shared_sites(self.model), known)
        self.dims = {"y": ("series", "time", "feature")}

    @pyro_method
    def state_space(self, y):
        theta = shared_values(self.model, y) | self.theta.known_values
        one = torch.ones_like(theta["q"]).reshape(1)
        q, r = (theta[name].square().reshape(1, 1) for name in "qr")
        return LinearGaussian(0 * one, one.reshape(1, 1), 0.9 * one[None], 0 * one, q, one[None], 0 * one, r)

    @pyro_method
    @fix_known
    def model(self, y=None, num_rows=1):
        one = self.num_steps.new_ones((), dtype=torch.get_default_dtype())
        q = pyro.sample("q", dist.LogNormal(0 * one, one))
        r = pyro.sample("r", dist.LogNormal(0 * one, one))
        series = LevelSeries(q, r, int(self.num_steps) if y is None else y.shape[1])
        with pyro.plate("data", num_rows if y is None else len(y)):
            return pyro.sample("y", series, obs=y)

    @pyro_method
    def guide(self, y=None, num_rows=1):
        self.theta.draw_guide()

    @torch.no_grad()
    def initialise(self, y, labels=None, weights=None):
        self.num_steps.fill_(y.shape[1])
        self.theta.initialise({"q": torch.ones(()), "r": torch.ones(())})
        self.theta.laplace_start(self.model, y)


class Coin(StateSpaceStory):
    """Two regimes with means of their own and noise of deviation 1."""

    def __init__(self, num_features=1, *, known=None):
        super().__init__(num_features, known=known)
        self.theta = Parameters(shared_sites(self.model), known)
        self.dims = {
            "P": ("regime", "next_regime"),
            "mu": ("regime", "feature"),
            "y": ("series", "time", "feature"),
        }

    @pyro_method
    @fix_known
    def model(self, y=None, num_rows=1):
        one = self.num_steps.new_ones(2, dtype=torch.get_default_dtype())
        P = pyro.sample("P", dist.Dirichlet(one.expand(2, 2) + 4 * torch.eye(2)).to_event(1))
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0 * one[:, None]).to_event(2))
        emission = MarginalIndependent(dist.Normal(mu, 1.0))
        num_steps = int(self.num_steps) if y is None else y.shape[1]
        series = HiddenMarkovSeries(torch.full((2,), 0.5).log(), P.log(), emission, num_steps)
        with pyro.plate("data", num_rows if y is None else len(y)):
            return pyro.sample("y", series, obs=y)

    @pyro_method
    def guide(self, y=None, num_rows=1):
        self.theta.draw_guide()

    @pyro_method
    def state_space(self, y):
        series = row_distribution(self.model, y)
        chain = MarkovChain(series.log_initial, series.log_transition)
        return HiddenMarkov(chain, series.log_emission(y), torch.arange(2))

    @pyro_method
    def fill(self, y, regimes):
        return row_distribution(self.model, y).complete(y, regimes)

    @torch.no_grad()
    def initialise(self, y, labels=None, weights=None):
        self.num_steps.fill_(y.shape[1])
        stay = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
        low, high = y[~y.isnan()].quantile(torch.tensor([0.2, 0.8]))
        self.theta.initialise({"P": stay, "mu": torch.stack([low, high])[:, None]})
        self.theta.laplace_start(self.model, y)


class Drift(StateSpaceStory):
    """A state that drifts up or down, seen through noise; the guide is exact for neither.

    ``recurrent``: the chance to drift down grows with the state.
    """

    def __init__(self, num_features=1, *, known=None, recurrent=False, width=0.5):
        super().__init__(num_features, known=known, recurrent=recurrent, width=width)
        self.recurrent, self.width = recurrent, width
        self.theta = Parameters(shared_sites(self.model), known)
        self.dims = {"b": ("regime",), "x": ("series", "time", "state"), "y": ("series", "time", "feature")}

    def _description(self, theta):
        one = torch.ones_like(theta["b"][:1])
        P = torch.tensor([[0.8, 0.2], [0.3, 0.7]]).to(one)
        moves = 0.9 * one[None], theta["b"][:, None], 0.3 * one[None]
        return SwitchingLinearGaussian(
            torch.tensor([0.6, 0.4]).to(one), P, 0 * one, one[None], *moves, one[None], 0 * one, 0.25 * one[None]
        )

    @pyro_method
    def state_space(self, y):
        return self._description(self._values())

    @pyro_method
    def log_transition(self, x):
        P = self.state_space(None).P
        if not self.recurrent:
            return P.log()
        tilt = torch.stack([-x[..., 0], x[..., 0]], -1).unsqueeze(-2)
        return (P.log() + tilt).log_softmax(-1)

    def _chain(self, theta, x):
        model = self._description(theta)
        expected = 0.9 * x[..., :-1, :] + model.b.mT  # a column for each regime
        moved = dist.Normal(expected, 0.3**0.5).log_prob(x[..., 1:, :])
        first = dist.Normal(0.0, 1.0).log_prob(x[..., :1, :]).expand(*x.shape[:-2], 1, 2)
        links = model.P.log()
        if self.recurrent:
            tilt = torch.stack([-x[..., :-1, 0], x[..., :-1, 0]], -1).unsqueeze(-2)
            links = (links + tilt).log_softmax(-1)
        return HiddenMarkov(MarkovChain(model.pi.log(), links), torch.cat([first, moved], -2), torch.arange(2))

    @pyro_method
    def regimes_given(self, y, x):
        return self._chain(self._values(), x)

    def _values(self):
        return shared_values(self.model) | self.theta.known_values

    @pyro_method
    @fix_known
    def model(self, y=None, num_rows=1):
        one = self.num_steps.new_ones((), dtype=torch.get_default_dtype())
        theta = {"b": pyro.sample("b", dist.Normal(torch.stack([one, -one]), 0.3).to_event(1))}
        num_steps = int(self.num_steps) if y is None else y.shape[1]
        with pyro.plate("data", num_rows if y is None else len(y)):
            x = pyro.sample("x", DriftPath(self, theta, num_steps))
            return pyro.sample("y", MarginalIndependent(dist.Normal(x, 0.5)).to_event(1), obs=y)

    @pyro_method
    def guide(self, y=None, num_rows=1):
        self.theta.draw_guide()
        if y is not None:
            with pyro.plate("data", len(y)):
                loc = torch.where(y.isnan(), 0.0, y)
                pyro.sample("x", dist.Normal(loc, self.width).to_event(2))

    @torch.no_grad()
    def initialise(self, y, labels=None, weights=None):
        self.num_steps.fill_(y.shape[1])
        self.theta.initialise({"b": torch.tensor([1.0, -1.0])})


class DriftPath(dist.TorchDistribution):
    """Paths of ``Drift``, regimes summed out."""

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, story, theta, num_steps, batch=()):
        self.story, self.theta, self.num_steps = story, theta, num_steps
        super().__init__(torch.Size(batch), torch.Size([num_steps, 1]), validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return DriftPath(self.story, self.theta, self.num_steps, batch_shape)

    def log_prob(self, value):
        chain = self.story._chain(self.theta, value)
        return log_normaliser(chain.log_emission, chain.chain)

    def sample(self, sample_shape=()):
        b = self.theta["b"]
        shape = (*sample_shape, *self.batch_shape)
        s = dist.Categorical(torch.tensor([0.6, 0.4])).sample(shape)
        x, steps = torch.randn(shape), []
        for _ in range(self.num_steps):
            steps.append(x)
            P = torch.tensor([[0.8, 0.2], [0.3, 0.7]]).log()[s]
            if self.story.recurrent:
                P = P + torch.stack([-x, x], -1)
            s = dist.Categorical(logits=P).sample()
            x = 0.9 * x + b[s] + 0.3**0.5 * torch.randn(shape)
        return torch.stack(steps, -1).unsqueeze(-1)


def ended(y):
    """Whether each step is past the end of its series."""
    return torch.arange(y.shape[1]) >= series_lengths(y)[:, None]
