"""A fit of rows that stay in their file, against one of the same rows in memory."""

import numpy as np
import pytest
import torch
from pplgen.models import DirichletProcessMixture, GaussianMixture, MixedMixture

import pplgen
from pplgen import InputError
from pplgen.inference.minibatches import batching
from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair


@pytest.fixture(scope="module")
def rows():
    """Two far groups, and a few missing entries."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 3, generator=generator) + 6.0 * (torch.arange(3000) % 3 == 0)[:, None]
    x[::50, 1] = torch.nan
    return x


@pytest.fixture(scope="module")
def path(tmp_path_factory, rows):
    where = tmp_path_factory.mktemp("streams") / "groups.npy"
    np.save(where, rows.numpy())
    return where


@pytest.fixture(scope="module", autouse=True)
def small_pieces():
    """Blocks of three hundred rows, and a sample of a third of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pplgen.data.blocks.BLOCK_VALUES", 900)
        patch.setattr("pplgen.inference.model_arguments.SAMPLE", 1000)
        yield


@pytest.fixture(scope="module")
def streamed(path):
    return pplgen.fit(
        GaussianMixture(2, 3), pplgen.stream_data(path), batch_size=500, steps=600, compile="graph", progress=False
    )


def test_the_file_is_read_in_pieces(streamed, path):
    assert pplgen.stream_data(path).num_blocks == 10
    assert streamed.pair.num_rows == 3000
    n = streamed.story.q_weights.sum().item() - 2
    assert n == pytest.approx(3000, rel=0.2)  # the sample's rows stood for all; steps move this slowly


def test_posterior_is_that_of_rows_in_memory(streamed, rows):
    whole = pplgen.fit(GaussianMixture(2, 3), rows, batch_size=500, steps=600, compile="graph", progress=False)
    ours, theirs = (fit.to_datatree(500, groups=["posterior"])["posterior"] for fit in (streamed, whole))
    # posterior deviations are near .02 and .03; Adam's last rate moves a tenth of one
    np.testing.assert_allclose(ours["mu"].mean("draw"), theirs["mu"].mean("draw"), atol=0.02)
    # 3 % of 500 draws, and the noise of Adam
    np.testing.assert_allclose(ours["mu"].std("draw"), theirs["mu"].std("draw"), rtol=0.3)
    # each bound is estimated on a hundred batches
    assert streamed.elbo == pytest.approx(whole.elbo, abs=4 * np.hypot(streamed.best.elbo_error, whole.best.elbo_error))


def test_one_epoch_of_batches_is_the_whole_bound(path, rows):
    """At the same draw the scaled bounds of an epoch's batches average to that of all rows."""
    stream = pplgen.stream_data(path)
    with seeded(0):
        pair = Pair.of_stream(GaussianMixture(2, 3), stream, stream.survey(3000, seed=0), None)
    whole = Pair.of_story(pair.story, rows, initialise=False)
    batches, scale = batching(pair, 500, seed=3)
    bounds = []
    with pair.isolated():
        for _ in range(6):
            with seeded(1), scale:
                bounds.append(pair.elbo().loss(pair.model, pair.guide, *next(batches)))
    with seeded(1), whole.isolated():
        expected = whole.elbo().loss(whole.model, whole.guide, *whole.data)
    assert np.mean(bounds) == pytest.approx(expected, rel=1e-5)  # float32 sums


def test_rows_are_scored_block_by_block(streamed, path, rows):
    ours = streamed.log_likelihood(pplgen.stream_data(path), draws=20)
    torch.testing.assert_close(ours, streamed.log_likelihood(rows, draws=20))


def test_a_run_of_a_stream_is_saved_and_loaded(streamed, path, rows, tmp_path, capsys):
    streamed.save(tmp_path / "run")
    again = pplgen.load(tmp_path / "run")
    torch.testing.assert_close(again.log_likelihood(rows[:10], draws=20), streamed.log_likelihood(rows[:10], draws=20))
    with_rows = pplgen.load(tmp_path / "run", path)  # the fingerprint is that of the file loaded whole
    assert "log_likelihood" in with_rows.to_datatree(10)
    streamed.summary(draws=10)
    assert "GaussianMixture on groups, 3,000 rows" in capsys.readouterr().out


def test_what_needs_rows_at_hand_says_so(streamed):
    assert set(streamed.to_datatree(10).children) == {"posterior"}
    with pytest.raises(InputError, match="was trained on a stream of rows; load it with its rows"):
        streamed.to_datatree(10, groups=["log_likelihood"])
    with pytest.raises(InputError, match="or give rows"):
        streamed.latents()


def test_quantities_of_all_rows_are_left_out(path):
    fit = pplgen.fit(DirichletProcessMixture(3, 3), pplgen.stream_data(path), steps=5, progress=False)
    assert "num_occupied" not in fit.to_datatree(10)["posterior"]


def test_rows_per_second_are_reported(path):
    seen = []
    stream = pplgen.stream_data(path)
    pplgen.fit(GaussianMixture(2, 3), stream, batch_size=500, steps=120, progress=seen.append)
    assert seen[-1].rows_per_second == pytest.approx(500 * seen[-1].steps_per_second)


def test_entries_that_are_missing_outside_the_sample_are_noticed(tmp_path):
    x = torch.randn(3000, 2, generator=torch.Generator().manual_seed(0))
    x[7, 0] = torch.nan
    np.save(tmp_path / "rows.npy", x.numpy())
    stream = pplgen.stream_data(tmp_path / "rows.npy")
    seed = next(seed for seed in range(9) if not stream.survey(1000, seed=seed).sample.isnan().any())
    fit = pplgen.fit(GaussianMixture(2, 2), stream, seed=seed, batch_size=300, steps=120, progress=False)
    assert fit.story.missing


def test_a_wrong_entry_anywhere_is_found(tmp_path):
    x = (torch.rand(3000, 2, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    x[2500, 1] = 2
    np.save(tmp_path / "rows.npy", x.numpy())
    with pytest.raises(InputError, match=r"rows, counting from row 2251: column 2, row 251: 2 is not a valid entry"):
        pplgen.fit(MixedMixture(2, 2, columns="binary"), pplgen.stream_data(tmp_path / "rows.npy"), progress=False)


def test_wrong_streams(path):
    stream = pplgen.stream_data(path)
    with pytest.raises(InputError, match="labels and weights need rows in memory"):
        pplgen.fit(GaussianMixture(2, 3), stream, weights=[1.0], progress=False)
    with pytest.raises(InputError, match="a stream of rows needs a Story"):
        pplgen.fit(lambda x: None, stream, progress=False)
    with pytest.raises(InputError, match="batch_size=4000: expected between 1 and the 3000 rows"):
        pplgen.fit(GaussianMixture(2, 3), stream, batch_size=4000, progress=False)
    with pytest.raises(InputError, match=r"expects \(num_rows, 2\)"):
        pplgen.fit(GaussianMixture(2, 2), stream, progress=False)
