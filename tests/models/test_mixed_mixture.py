"""Columns of mixed kinds against closed forms and EM."""

import math

import numpy as np
import pytest
import torch
from pplgen.models import MixedMixture

import pplgen
from pplgen.errors import InputError
from pplgen.exact.conjugate import dirichlet_evidence, gamma_poisson_evidence, shared_variance_evidence
from pplgen.story.pair import Pair

GENERATOR = torch.Generator().manual_seed(0)
N = 120
ROWS = {
    "normal": torch.randn(N, 2, generator=GENERATOR).double() * 3 + 5,
    "poisson": torch.poisson(torch.full((N, 2), 4.0), generator=GENERATOR).double(),
    "binary": (torch.rand(N, 2, generator=GENERATOR) < 0.3).double(),
    "categorical3": torch.randint(3, (N, 2), generator=GENERATOR).double(),
}


def evidence(kind, x):
    """Log evidence of one component in nats, of what is seen: a product over columns."""
    return sum(column_evidence(kind, column[column.isfinite()]).item() for column in x.T)


def column_evidence(kind, x):
    if kind == "normal":
        return shared_variance_evidence(x[:, None], m=x.mean()[None], kappa=0.01, nu=3, psi=x.var(correction=0))
    if kind == "poisson":
        return gamma_poisson_evidence(x, shape=1.0, rate=1 / x.mean())
    return dirichlet_evidence((x[:, None] == torch.arange(2 if kind == "binary" else 3)).double().sum(0))


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("kind", ROWS)
def test_one_component_is_conjugate_and_the_guide_starts_exact(kind, missing):
    """With K = 1 every draw of log p - log q is the evidence, with entries missing or not."""
    x = ROWS[kind].clone()
    if missing:
        x[torch.rand(x.shape, generator=GENERATOR) < 0.2] = torch.nan
    story = MixedMixture(1, 2, columns=kind).double()
    story.initialise(x)
    pair = Pair(story.model, story.guide, (x,))
    with pair.isolated():
        ratios = [-pair.elbo().loss(pair.model, pair.guide, x) for _ in range(3)]
    assert ratios == pytest.approx([evidence(kind, x)] * 3, rel=1e-8)


@pytest.fixture(scope="module")
def mixed():
    """Two components that a count, a measurement, an answer and a category tell apart together."""
    generator = torch.Generator().manual_seed(2)
    z = torch.arange(300) % 3 == 0
    count = torch.poisson(torch.where(z, 2.0, 8.0), generator=generator)
    measured = torch.where(z, 0.0, 3.0) + torch.randn(300, generator=generator)
    answer = (torch.rand(300, generator=generator) < torch.where(z, 0.9, 0.2)).float()
    category = torch.where(torch.rand(300, generator=generator) < 0.8, torch.where(z, 2, 0), 1).float()
    return torch.stack([count, measured, answer, category], 1), z


COLUMNS = "poisson, normal, binary, categorical3"


@pytest.fixture(scope="module")
def mixed_fit(mixed):
    return pplgen.fit(MixedMixture(2, 4, columns=COLUMNS), mixed[0], progress=False)


def test_mixed_columns_find_their_components(mixed, mixed_fit):
    _, z = mixed
    assert "graph" in mixed_fit.path
    posterior = mixed_fit.to_datatree(draws=400)["posterior"]
    rates = posterior["poisson_rate"].mean(("chain", "draw")).values.ravel()
    first = int(rates.argmin())
    # four standard errors of means of 100 and of 200 counts, sqrt(2 / 100) and sqrt(8 / 200), and a tenth more for rows
    # of which it is not sure where they belong
    assert rates[first] == pytest.approx(2.0, abs=0.62)
    assert rates[1 - first] == pytest.approx(8.0, abs=0.88)
    yes = posterior["binary_probability"].mean(("chain", "draw")).values.ravel()
    # four standard errors of a share of 100, .03, and .01 for the prior
    assert yes[first] == pytest.approx(0.9, abs=0.13)
    assert posterior["categorical3_probability"].dims[2:] == (
        "component",
        "categorical3_feature",
        "categorical3_category",
    )
    label = mixed_fit.latents()["z"].values.argmax(1) == first
    assert (label == z.numpy()).mean() > 0.97
    assert mixed_fit.sample(50).shape == (50, 4)
    assert set(mixed_fit.sample(50)[:, 3].unique().tolist()) <= {0.0, 1.0, 2.0}


def test_missing_entries_are_drawn_from_the_right_kind(mixed, mixed_fit):
    rows = torch.tensor([[torch.nan, 0.0, 1.0, 2.0], [2.0, 0.0, torch.nan, torch.nan]])
    drawn = mixed_fit.impute(rows, draws=400)
    # of 400 counts with the rate that was learned: four standard errors
    rate = mixed_fit.to_datatree(400, groups=["posterior"])["posterior"]["poisson_rate"].mean(("chain", "draw")).min()
    assert drawn[:, 0, 0].mean().item() == pytest.approx(float(rate), abs=4 * (float(rate) / 400) ** 0.5 + 0.02)
    assert set(drawn[:, 1, 2].unique().tolist()) <= {0.0, 1.0}
    assert (drawn[:, 1, 3] != 0).double().mean() > 0.9


def test_latent_classes_reach_the_maximum_likelihood():
    """Ten answers, two classes: the likelihood at the posterior mean against EM in plain torch, ten random starts."""
    generator = torch.Generator().manual_seed(4)
    chance = torch.where(torch.arange(2)[:, None] == 0, 0.25, 0.75).expand(2, 10)
    z = torch.randint(2, (400,), generator=generator)
    x = (torch.rand(400, 10, generator=generator) < chance[z]).double()

    def log_likelihood(weights, p):
        return weights.log() + x @ p.log().T + (1 - x) @ (1 - p).log().T

    best = -math.inf
    for _ in range(10):
        weights, p = torch.full((2,), 0.5).double(), torch.rand(2, 10, generator=generator).double() * 0.6 + 0.2
        for _ in range(300):
            r = log_likelihood(weights, p).softmax(1)
            weights, p = r.mean(0), r.T @ x / r.sum(0)[:, None]
        best = max(best, log_likelihood(weights, p).logsumexp(1).sum().item())
    fit = pplgen.fit(MixedMixture(2, 10, columns="binary"), x.float(), progress=False)
    posterior = fit.to_datatree(draws=1000, groups=["posterior"])["posterior"]
    mean = [torch.tensor(posterior[n].values[0].mean(0)).double() for n in ("weights", "binary_probability")]
    ours = log_likelihood(*mean).logsumexp(1).sum().item()
    assert best - 1.5 < ours <= best + 1e-6  # 21 parameters shrunk by flat priors worth two answers each


def test_outliers_pull_students_less():
    x = torch.cat([torch.randn(200, 1, generator=torch.Generator().manual_seed(0)), torch.full((10, 1), 40.0)])
    means = {}
    for kind in ("normal", "student"):
        fit = pplgen.fit(MixedMixture(1, 1, columns=kind), x, steps=2000, progress=False)
        posterior = fit.to_datatree(draws=400, groups=["posterior"])["posterior"]
        means[kind] = abs(float(posterior[f"{kind}_mu"].mean()))
    assert means["normal"] > 1.0
    # four standard errors of 200 rows, each 200^(-1/2) and a twentieth more for Student's location; ten outliers at a
    # distance of 40 pull by less than a hundredth
    assert means["student"] < 0.31


@pytest.mark.parametrize(
    ("columns", "entry", "sentence"),
    [
        ("binary", 2.0, "column 2, row 3: 2 is not a valid entry of a column of kind 'binary'; expected 0 or 1"),
        ("poisson", -1.0, "row 3: -1 is not a valid entry of a column of kind 'poisson'; expected 0, 1, 2"),
        (
            "categorical3",
            3.0,
            "row 3: 3 is not a valid entry of a column of kind 'categorical3'; expected a whole number below",
        ),
    ],
)
def test_entries_of_another_kind_are_named(columns, entry, sentence):
    x = torch.zeros(10, 2)
    x[0] = 1.0
    x[2, 1] = entry
    with pytest.raises(InputError, match=sentence):
        pplgen.fit(MixedMixture(2, 2, columns=columns), x, progress=False)


def test_bad_kinds():
    with pytest.raises(InputError, match="columns: 'round': expected one of normal, student, poisson, binary, or"):
        MixedMixture(2, 2, columns="round")
    with pytest.raises(InputError, match="expected one kind, or one for each of 3 columns"):
        MixedMixture(2, 3, columns="normal,normal")
    assert MixedMixture(2, 2, columns="binary").config["columns"] == "binary,binary"


def test_simulated_rows_are_of_their_kinds():
    story = MixedMixture(3, 4, columns=COLUMNS)
    x = story.simulate(200)
    story.check_data(x)
    assert np.isfinite(x.numpy()).all()
