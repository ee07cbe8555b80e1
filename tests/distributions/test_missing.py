"""Missing entries are integrated out and drawn exactly."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pplgen.models import GaussianMixture

import pplgen
from pplgen.distributions.missing import Blockwise, MarginalIndependent, MarginalNormal
from pplgen.exact.em import GaussianMixtureParameters, em
from pplgen.exact.em_missing import e_step_missing, em_missing

NAN = torch.nan
SIGMA = torch.tensor([[2.0, 0.6, -0.4], [0.6, 1.0, 0.3], [-0.4, 0.3, 1.5]], dtype=torch.float64)
MU = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def holes(x, share, seed=0):
    """Remove entries at random."""
    gap = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < share
    return torch.where(gap, torch.nan, x)


@pytest.mark.parametrize("seen", [[0, 1, 2], [0, 2], [1], []])
def test_the_density_of_a_row_is_that_of_what_is_seen(seen):
    row = torch.full((3,), NAN, dtype=torch.float64)
    row[seen] = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)[seen]
    ours = MarginalNormal(MU, scale_tril=torch.linalg.cholesky(SIGMA)).log_prob(row)
    block = torch.distributions.MultivariateNormal(MU[seen], SIGMA[seen][:, seen]) if seen else None
    expected = block.log_prob(row[seen]) if block else torch.zeros((), dtype=torch.float64)
    torch.testing.assert_close(ours, expected)
    columns = MarginalIndependent(dist.Normal(MU, SIGMA.diagonal().sqrt()))
    apart = torch.distributions.Normal(MU, SIGMA.diagonal().sqrt()).log_prob(row.nan_to_num())[seen].sum()
    torch.testing.assert_close(columns.log_prob(row), apart)


def test_gradients_are_finite_where_entries_are_missing():
    L = torch.linalg.cholesky(SIGMA).requires_grad_()
    mu = MU.clone().requires_grad_()
    row = torch.tensor([0.3, NAN, 2.0], dtype=torch.float64)
    for density in (MarginalNormal(mu, scale_tril=L), MarginalIndependent(dist.Normal(mu, L.diagonal()))):
        gradients = torch.autograd.grad(density.log_prob(row), (mu, L))
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert gradients[0][1] == 0 or isinstance(density, MarginalNormal)


def test_missing_entries_are_drawn_from_their_conditional():
    row = torch.tensor([0.3, NAN, 2.0], dtype=torch.float64)
    torch.manual_seed(0)
    normal = MarginalNormal(MU.expand(20_000, 3), scale_tril=torch.linalg.cholesky(SIGMA))
    drawn = normal.complete(row.expand(20_000, 3))
    assert (drawn[:, [0, 2]] == row[[0, 2]]).all()
    slope = SIGMA[1, [0, 2]] @ torch.linalg.inv(SIGMA[[0, 2]][:, [0, 2]])
    mean = MU[1] + slope @ (row[[0, 2]] - MU[[0, 2]])
    variance = SIGMA[1, 1] - slope @ SIGMA[[0, 2], 1]
    # four standard errors of 20,000 draws
    assert abs(drawn[:, 1].mean() - mean) < 4 * (variance / 20_000).sqrt()
    assert drawn[:, 1].var().item() == pytest.approx(variance.item(), rel=4 * (2 / 20_000) ** 0.5)


@pytest.fixture(scope="module")
def gappy():
    """A thousand rows of two correlated components without 30 % of their entries, held-out rows, and all there was."""
    generator = torch.Generator().manual_seed(3)
    L = torch.linalg.cholesky(torch.stack([SIGMA, SIGMA.flip(0, 1)]))
    z = torch.randint(2, (2000,), generator=generator)
    noise = torch.randn(2000, 3, generator=generator, dtype=torch.float64)
    x = torch.stack([MU, MU + 4.0])[z] + (L[z] @ noise[..., None]).squeeze(-1)
    return holes(x[:1000], 0.3), holes(x[1000:], 0.3, seed=1), x[:1000]


@pytest.fixture(scope="module")
def gappy_fit(gappy):
    return pplgen.fit(GaussianMixture(2, 3), gappy[0].float(), compile="graph", progress=False)


def posterior_mean(fit):
    tree = fit.to_datatree(draws=500, groups=["posterior"])
    names = ("weights", "mu", "Sigma")
    return GaussianMixtureParameters(
        *(torch.tensor(tree["posterior"][n].mean(("chain", "draw")).values, dtype=torch.float64) for n in names)
    )


def test_a_fit_with_missing_entries_equals_exact_em_and_beats_filling_in(gappy, gappy_fit):
    """The log-likelihood of what was seen at the posterior mean is within 2 nats in 1,000 rows of the maximum."""
    training, held_out, _ = gappy
    assert "graph" in gappy_fit.path
    exact = em_missing(training, 2, num_starts=1)
    ours = e_step_missing(training, posterior_mean(gappy_fit)).log_likelihoods.sum()
    assert exact.log_likelihoods[-1] - 2.0 < ours <= exact.log_likelihoods[-1]
    filled = torch.where(training.isnan(), training.nanmean(dim=0), training)
    naive = e_step_missing(held_out, em(filled, 2).parameters).log_likelihoods.sum()
    scored = gappy_fit.log_likelihood(held_out.float()).sum().item()
    assert scored > naive.item() + 10
    assert scored == pytest.approx(e_step_missing(held_out, exact.parameters).log_likelihoods.sum().item(), abs=5.0)


def test_imputed_entries_have_the_moments_of_exact_em(gappy, gappy_fit):
    training, _, complete = gappy
    drawn = gappy_fit.impute(draws=400).double()
    gap = training.isnan()
    assert drawn.shape == (400, 1000, 3)
    torch.testing.assert_close(drawn[:, ~gap], training[~gap].expand(400, -1), rtol=1e-6, atol=1e-6)
    expected = e_step_missing(training, posterior_mean(gappy_fit))
    centre = torch.einsum("nk,nkd->nd", expected.responsibilities, expected.completed)
    # 400 draws of entries with a standard deviation near one, and the parameters' own uncertainty
    assert (drawn.mean(0)[gap] - centre[gap]).abs().mean() < 0.1
    inside = (complete >= drawn.quantile(0.05, 0)) & (complete <= drawn.quantile(0.95, 0))
    share = (
        inside[gap].double().mean().item()
    )  # 90 % intervals cover the removed values: 900 entries, 4 standard errors
    assert share == pytest.approx(0.9, abs=4 * np.sqrt(0.09 / int(gap.sum())))


def test_new_rows_may_have_gaps_where_the_training_rows_had_none(faithful_fit):
    rows = {"eruptions": [NAN, 2.0, NAN, 2.0], "waiting": [80.0, NAN, NAN, 54.0]}
    scored = faithful_fit.log_likelihood(rows)
    assert scored.isfinite().all()
    assert scored[2].item() == pytest.approx(0.0, abs=1e-5)
    assert faithful_fit.latents(rows)["z"].values[1, 0] > 0.99
    assert abs(faithful_fit.impute(rows, draws=200)[:, 1, 1].mean().item() - 54.5) < 3.0


def test_a_bare_pair_does_not_say_how_to_impute():
    import pyro

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    fit = pplgen.fit(model, torch.zeros(5), steps=2, compile="off", progress=False)
    with pytest.raises(pplgen.InputError, match="impute: expected a Story with a method 'complete'"):
        fit.impute()


def test_blocks_are_completed_given_their_own_observed_entries():
    L = torch.tensor([[1.0, 0.0], [1.0, 1e-3]]).double()
    row = Blockwise(
        [
            ([2, 0], MarginalNormal(torch.zeros(2).double(), scale_tril=L)),
            ([1], MarginalIndependent(dist.Normal(torch.full((1,), 5.0).double(), 1e-3))),
        ]
    )
    x = torch.tensor([[torch.nan, 7.0, 3.0], [1.0, torch.nan, torch.nan]]).double()
    expected = torch.tensor([[3.0, 7.0, 3.0], [1.0, 5.0, 1.0]]).double()
    torch.testing.assert_close(row.expand((2,)).complete(x), expected, rtol=0, atol=1e-2)  # sd of .001
    assert row.sample((4,)).shape == (4, 3)
    observed = torch.tensor([3.0, 7.0, 3.0]).double()
    blocks = [part.log_prob(observed[indices]) for indices, part in row.parts]
    torch.testing.assert_close(row.log_prob(observed), sum(blocks))
