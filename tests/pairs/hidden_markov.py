"""Hidden Markov models of notes in songs, as in Pyro's examples, as small pairs; the states are summed out."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, TraceTMC_ELBO
from pyro.infer import autoguide as auto
from torch import nn
from torch.distributions import constraints

STATES, TONES = 3, 4
LENGTHS = torch.tensor([4, 3, 4])
SUMMED_OUT = {"enumerate": "parallel"}


def songs():
    """Which tones sound at each time, shape ``(songs, times, tones)``."""
    generator = torch.Generator().manual_seed(1)
    return torch.bernoulli(torch.full((len(LENGTHS), 4, TONES), 0.4), generator=generator)


def positive(name, value):
    return pyro.param(name, torch.as_tensor(value), constraint=constraints.positive)


def transition_prior(size, name="transition"):
    return pyro.sample(name, dist.Dirichlet(0.9 * torch.eye(size) + 0.1).to_event(1))


def emission_prior(*shape, name="emission"):
    return pyro.sample(name, dist.Beta(0.5, 1.0).expand([*shape, TONES]).to_event(len(shape) + 1))


def mode(model, nesting=2):
    """A point estimate of the probabilities, and the bound with states summed out."""
    guide = auto.AutoDelta(poutine.block(model, expose=["transition", "emission"]))
    return model, guide, (songs(), LENGTHS), TraceEnum_ELBO(max_plate_nesting=nesting)


def one_song_after_the_other():
    """Sequential plate over songs, a Python loop of each song's length."""

    def model(y, lengths):
        transition, emission = transition_prior(STATES), emission_prior(STATES)
        tones = pyro.plate("tones", TONES, dim=-1)
        for song in pyro.plate("songs", len(y)):
            state = 0
            for t in pyro.markov(range(int(lengths[song]))):
                state = pyro.sample(f"state_{song}_{t}", dist.Categorical(transition[state]), infer=SUMMED_OUT)
                with tones:
                    pyro.sample(f"y_{song}_{t}", dist.Bernoulli(emission[state.squeeze(-1)]), obs=y[song, t])

    return mode(model, nesting=1)


def vectorised_over_songs():
    """All songs at once; those that have ended are masked."""

    def model(y, lengths):
        assert lengths.max() <= y.shape[1]
        transition, emission = transition_prior(STATES), emission_prior(STATES)
        tones = pyro.plate("tones", TONES, dim=-1)
        with pyro.plate("songs", len(y), dim=-2):
            state = 0
            for t in pyro.markov(range(int(lengths.max()))):
                with poutine.mask(mask=(t < lengths)[:, None]):
                    state = pyro.sample(f"state_{t}", dist.Categorical(transition[state]), infer=SUMMED_OUT)
                    with tones:
                        pyro.sample(f"y_{t}", dist.Bernoulli(emission[state.squeeze(-1)]), obs=y[:, t])

    return mode(model)


def depends_on_the_last_tone():
    """The tones of a time depend on its state and on the tones before."""

    def model(y, lengths):
        transition, emission = transition_prior(STATES), emission_prior(STATES, 2)
        tones = pyro.plate("tones", TONES, dim=-1)
        every = torch.arange(TONES)
        with pyro.plate("songs", len(y), dim=-2):
            state, before = 0, torch.zeros(len(y), TONES, dtype=torch.long)
            for t in pyro.markov(range(y.shape[1])):
                with poutine.mask(mask=(t < lengths)[:, None]):
                    state = pyro.sample(f"state_{t}", dist.Categorical(transition[state]), infer=SUMMED_OUT)
                    with tones:
                        pyro.sample(f"y_{t}", dist.Bernoulli(emission[state, before, every]), obs=y[:, t])
                before = y[:, t].long()

    return mode(model)


def factorial(coupled):
    """Two chains of states; coupled, the second chain's next state depends on the first's too."""

    def model(y, lengths):
        slow = transition_prior(2, "transition")
        fast = pyro.sample("fast", dist.Dirichlet(torch.ones(2, 2, 2)).to_event(2))
        emission = emission_prior(2, 2)
        tones = pyro.plate("tones", TONES, dim=-1)
        with pyro.plate("songs", len(y), dim=-2):
            a = b = torch.tensor(0)
            for t in pyro.markov(range(y.shape[1])):
                with poutine.mask(mask=(t < lengths)[:, None]):
                    a = pyro.sample(f"a_{t}", dist.Categorical(slow[a]), infer=SUMMED_OUT)
                    b = pyro.sample(f"b_{t}", dist.Categorical(fast[a if coupled else 0 * b, b]), infer=SUMMED_OUT)
                    with tones:
                        rates = emission[a.squeeze(-1), b.squeeze(-1)]
                        pyro.sample(f"y_{t}", dist.Bernoulli(rates), obs=y[:, t])

    guide = auto.AutoDelta(poutine.block(model, expose=["transition", "fast", "emission"]))
    return model, guide, (songs(), LENGTHS), TraceEnum_ELBO(max_plate_nesting=2)


class Tones(nn.Module):
    """Logits of the tones from a state, which may be enumerated, and the tones before."""

    def __init__(self, hidden=5):
        super().__init__()
        self.state, self.tones = nn.Linear(STATES, hidden), nn.Linear(TONES, hidden)
        self.out = nn.Linear(hidden, TONES)

    def forward(self, state, before):
        one_hot = nn.functional.one_hot(state, STATES).float()
        return self.out(torch.tanh(self.state(one_hot) + self.tones(before)))


def neural():
    network = Tones()

    def model(y, lengths):
        pyro.module("network", network)
        transition = transition_prior(STATES)
        with pyro.plate("songs", len(y), dim=-2):
            state, before = torch.tensor(0), torch.zeros(len(y), 1, TONES)
            for t in pyro.markov(range(y.shape[1])):
                with poutine.mask(mask=(t < lengths)[:, None]):
                    state = pyro.sample(f"state_{t}", dist.Categorical(transition[state]), infer=SUMMED_OUT)
                    logits = network(state.expand(torch.broadcast_shapes(state.shape, (len(y), 1))), before)
                    with pyro.plate(f"tones_{t}", TONES, dim=-1):
                        pyro.sample(f"y_{t}", dist.Bernoulli(logits=logits.squeeze(-2)), obs=y[:, t])
                before = y[:, t, None]

    guide = auto.AutoDelta(poutine.block(model, expose=["transition"]))
    return model, guide, (songs(), LENGTHS), TraceEnum_ELBO(max_plate_nesting=2)


def second_order():
    """The next state depends on the last two; a history of two keeps enumeration from growing."""

    def model(y, lengths):
        rows = pyro.sample("transition", dist.Dirichlet(torch.ones(2, 2, 2)).to_event(2))
        emission = emission_prior(2)
        tones = pyro.plate("tones", TONES, dim=-1)
        with pyro.plate("songs", len(y), dim=-2):
            last = state = torch.tensor(0)
            for t in pyro.markov(range(y.shape[1]), history=2):
                with poutine.mask(mask=(t < lengths)[:, None]):
                    following = pyro.sample(f"state_{t}", dist.Categorical(rows[last, state]), infer=SUMMED_OUT)
                    last, state = state, following
                    with tones:
                        pyro.sample(f"y_{t}", dist.Bernoulli(emission[state.squeeze(-1)]), obs=y[:, t])

    return mode(model)


def tensor_monte_carlo():
    """States are drawn in parallel from the guide instead of being enumerated."""
    parallel = {"enumerate": "parallel", "expand": False, "num_samples": 3}

    def model(y):
        rate = pyro.param("rate", torch.tensor(0.7), constraint=constraints.unit_interval)
        state = torch.tensor(0.0)
        for t in pyro.markov(range(len(y))):
            state = pyro.sample(f"state_{t}", dist.Normal(rate * state, 1.0), infer=parallel)
            pyro.sample(f"y_{t}", dist.Normal(state, 0.5), obs=y[t])

    def guide(y):
        for t in pyro.markov(range(len(y))):
            loc = pyro.param(f"loc_{t}", torch.tensor(0.1 * t))
            pyro.sample(f"state_{t}", dist.Normal(loc, positive(f"scale_{t}", 0.6)), infer=parallel)

    y = torch.tensor([0.3, 0.5, 1.0, 0.2])
    return model, guide, (y,), TraceTMC_ELBO(max_plate_nesting=0)


def marginalised_by_the_distribution():
    """``DiscreteHMM`` sums over time in parallel, with learned probabilities and normal emissions."""

    def model(y):
        rows = pyro.sample("rows", dist.Dirichlet(torch.ones(STATES, STATES) + torch.eye(STATES)).to_event(1))
        locs = pyro.sample("locs", dist.Normal(torch.tensor([-1.0, 0.0, 1.0]), 1.0).to_event(1))
        initial = pyro.param("initial", torch.full((STATES,), 1.0 / STATES), constraint=constraints.simplex)
        emission = dist.Normal(locs, positive("noise", 0.5))
        with pyro.plate("series", len(y)):
            pyro.sample("y", dist.DiscreteHMM(initial.log(), rows.log(), emission, duration=y.shape[-1]), obs=y)

    generator = torch.Generator().manual_seed(0)
    y = torch.tensor([-1.0, -1, 0, 0, 1, 1]) + 0.3 * torch.randn(5, 6, generator=generator)
    return model, auto.AutoNormal(model), (y,), None


def captures():
    """Animals by occasions: first marked, then seen again or not."""
    generator = torch.Generator().manual_seed(3)
    seen = torch.bernoulli(torch.full((12, 5), 0.5), generator=generator)
    seen[torch.arange(12), torch.arange(12) % 3] = 1.0
    return seen


def survive(seen, rates):
    """Cormack-Jolly-Seber: animals survive and are seen again with probabilities ``rates(t)`` on occasion t."""
    alive, marked = torch.ones(len(seen)), torch.zeros(len(seen), dtype=torch.bool)
    with pyro.plate("animals", len(seen), dim=-1):
        for t in pyro.markov(range(seen.shape[1])):
            phi, p = rates(t)
            with poutine.mask(mask=marked):
                alive = pyro.sample(f"alive_{t}", dist.Bernoulli(alive * phi), infer=SUMMED_OUT)
                pyro.sample(f"seen_{t}", dist.Bernoulli(alive * p), obs=seen[:, t])
            marked = marked | seen[:, t].bool()


def of_captures(model, guide):
    return model, guide, (captures(),), TraceEnum_ELBO(max_plate_nesting=1)


def constant_survival():
    def model(seen):
        phi, p = (pyro.sample(name, dist.Uniform(0.0, 1.0)) for name in ("phi", "p"))
        survive(seen, lambda t: (phi, p))

    return of_captures(model, auto.AutoDiagonalNormal(poutine.block(model, expose=["phi", "p"])))


def survival_by_occasion():
    def model(seen):
        phi = pyro.sample("phi", dist.Uniform(0.0, 1.0).expand([seen.shape[1]]).to_event(1))
        p = pyro.sample("p", dist.Uniform(0.0, 1.0))
        survive(seen, lambda t: (phi[t], p))

    return of_captures(model, auto.AutoNormal(poutine.block(model, expose=["phi", "p"])))


def survival_with_random_effects():
    def model(seen):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.5))
        scale = pyro.sample("scale", dist.Uniform(0.0, 5.0))
        effects = pyro.sample("effects", dist.Normal(loc, scale).expand([seen.shape[1]]).to_event(1))
        p = pyro.sample("p", dist.Uniform(0.0, 1.0))
        survive(seen, lambda t: (effects[t].sigmoid(), p))

    return of_captures(model, None)


PAIRS = {
    "HMM, one song after the other": one_song_after_the_other,
    "HMM, all songs at once": vectorised_over_songs,
    "HMM with tones before": depends_on_the_last_tone,
    "factorial HMM": lambda: factorial(coupled=False),
    "coupled HMM": lambda: factorial(coupled=True),
    "neural HMM": neural,
    "second-order HMM": second_order,
    "HMM, marginal distribution": marginalised_by_the_distribution,
    "tensor Monte Carlo": tensor_monte_carlo,
    "capture-recapture, constant": constant_survival,
    "capture-recapture by occasion": survival_by_occasion,
    "capture-recapture, random effects": survival_with_random_effects,
}
REFUSED = {}
