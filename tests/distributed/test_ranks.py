"""Two processes that share rows, restarts or data sets, held against one; and what becomes of them when one dies."""

import importlib.util
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pplgen.models import GaussianMixture
from pyro.infer import RenyiELBO
from torch.distributed.run import main as torchrun

import pplgen
from pplgen import InputError
from pplgen.distributed import heartbeat
from pplgen.distributed.heartbeat import Heartbeat
from pplgen.distributed.ranks import SINGLE_PROCESS
from pplgen.distributed.sharding import Shard, check_shardable
from pplgen.errors import DataWarning
from pplgen.inference.minibatches import batching
from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair

WORK = Path(__file__).parent / "ranks_at_work.py"
_SPEC = importlib.util.spec_from_file_location("ranks_at_work", WORK)
at_work = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(at_work)

QUIET = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Rows in two files, of 40 and 24 rows, in blocks of eight."""
    folder = tmp_path_factory.mktemp("ranks") / "rows"
    folder.mkdir()
    x = at_work.rows().float()
    np.save(folder / "part-0.npy", x[:40].numpy())
    np.save(folder / "part-1.npy", x[40:].numpy())
    (folder / "notes.txt").write_text("no rows")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pplgen.data.blocks.BLOCK_VALUES", 24)
        yield folder, x


@pytest.fixture(scope="module")
def two(files):
    """What each of two processes found in all cases, and how the surviving one ended."""
    folder = files[0].parent
    command = [sys.executable, str(WORK)]
    both = [subprocess.Popen([*command, str(rank), str(folder)], env=QUIET) for rank in range(2)]
    codes = [process.wait(timeout=500) for process in both]
    found = []
    for rank in range(2):
        with np.load(folder / f"rank-{rank}.npz") as file:
            found.append(dict(file))
    return found, codes, json.loads((folder / "end.json").read_text())


@pytest.mark.parametrize("sizes", [at_work.EVEN, at_work.UNEVEN], ids=["32 and 32", "40 and 24"])
@pytest.mark.parametrize("name", at_work.PAIRS)
def test_gradients_are_one_process_s(two, name, sizes):
    expected = at_work.gradients(name, None, SINGLE_PROCESS)
    for found in two[0]:
        ours = found[f"{name} {sizes}"]
        # the graph and Pyro, loss first; in float64 sums of other order differ by some 1e-15
        np.testing.assert_allclose(ours, expected, rtol=1e-10, atol=1e-10 * abs(expected).max())
        assert len(expected[0]) > 5


@pytest.mark.parametrize("path", ["graph", "off"])
def test_a_fit_is_one_process_s(two, path):
    """Full batches and a guide at a point: nothing is random, and roundings grow little in 300 steps of Adam."""
    expected = dict(at_work.fits())[f"whole {path}"]
    for found in two[0]:
        np.testing.assert_allclose(found[f"whole {path}"], expected, rtol=1e-8)


def test_an_optimum_is_one_process_s(two):
    expected = at_work.optima()["optimum"]
    for found in two[0]:
        # L-BFGS ends at a gradient norm of .001 posterior standard deviations, of which the largest is .27
        np.testing.assert_allclose(found["optimum"][:-2], expected[:-2], atol=4 * 0.001 * 0.27)
        assert found["optimum"][-2] == pytest.approx(expected[-2], abs=4 * np.hypot(found["optimum"][-1], expected[-1]))


@pytest.mark.parametrize("path", ["graph", "off"])
def test_what_breaks_down_on_one_rank_is_said_by_all(two, path):
    with pytest.warns(DataWarning, match="at row 51"):
        expected = dict(at_work.faults())[f"faults {path}"]
    assert "the log density of 'x' is NaN at row 51, where scale of Normal is NaN" in expected[0]
    for found in two[0]:
        assert found[f"faults {path}"].tolist() == expected.tolist()


def test_shared_restarts_are_one_process_s(two):
    """Their starts are random, and nothing after; they end apart, so that the best is one of them."""
    expected = at_work.restarts()
    assert np.ptp(expected["elbos"]) > 1e-3
    for found in two[0]:
        for what, values in expected.items():
            np.testing.assert_allclose(found[what], values, rtol=1e-6, atol=1e-6)


def test_calibrated_data_sets_are_one_process_s(two):
    """The same data sets in another order, and posteriors of which draws tell the mean to a fourteenth of them."""
    expected = at_work.calibrated()
    own, other = two[0]
    np.testing.assert_array_equal(own["means"], other["means"])
    order = [np.argmin(abs(own["truths"][:, 0] - truth)) for truth in expected["truths"][:, 0]]
    assert sorted(order) == list(range(11))
    np.testing.assert_allclose(own["truths"][order][:, :3], expected["truths"][:, :3])
    apart = (own["means"][order] - expected["means"])[:, :3] / expected["deviations"][:, :3]
    assert abs(apart).max() < 1.0  # 199 draws twice, .1; the rest is Adam's noise at its last rate


def test_ranks_draw_and_end_alike(two):
    (own, other), _, _ = two
    for name in ("streamed", "resumed", "drawn alike"):
        np.testing.assert_array_equal(own[name], other[name])
    assert (own["drawn apart"] != other["drawn apart"]).all()


def test_a_killed_fit_of_shards_ends_where_it_would_have_ended(two):
    np.testing.assert_array_equal(two[0][0]["resumed"], two[0][0]["streamed"])


def test_a_random_fit_ends_where_one_process_does(two, files):
    alone = at_work.streamed(files[0].parent)
    elbo, error = two[0][0]["streamed elbo"]
    # the bound at two runs' ends, on a hundred batches each; Adam at its first rate is within two nats of an optimum
    assert elbo == pytest.approx(alone.elbo, abs=4 * np.hypot(error, alone.best.elbo_error) + 2.0)


def test_mistakes_are_everyones(two):
    for found in two[0]:
        call = "call fit with the same arguments on all ranks"
        different = [f"ranks have different {what}; {call}" for what in ("data", "parameters")]
        assert list(found["said"]) == ["no such rows", *different, "rank 1: no such rows"]


def test_killing_a_rank_ends_the_other_with_a_sentence(two):
    _, codes, end = two
    assert codes == [0, -9]
    assert end["error"] == "rank 1 has sent no heartbeat for 5 seconds, so the run ends"
    assert end["steps"] >= 39
    assert end["seconds"] < 60


@pytest.fixture
def store(tmp_path):
    return torch.distributed.FileStore(str(tmp_path / "store"), 2)


@pytest.fixture
def hurried(monkeypatch):
    """A second is a twentieth of one; processes that would be ended are noted."""
    ended = threading.Event()
    monkeypatch.setattr(heartbeat, "INTERVAL", 0.05)
    monkeypatch.setattr(heartbeat, "TIMEOUT", 1.0)
    monkeypatch.setattr(heartbeat, "GRACE", 0.5)
    monkeypatch.setattr(heartbeat.os, "_exit", lambda code: ended.set())
    return ended


def test_a_rank_that_stops_tells_why(store, hurried):
    watches = [Heartbeat(store, "w", rank, 2) for rank in range(2)]
    watches[1].stop("ValueError: a bad row")
    assert watches[0].failure() == "rank 1 stopped: ValueError: a bad row"
    watches[0].stop("lost")
    assert not hurried.is_set()


def test_ranks_that_end_in_order_are_not_missed(store, hurried):
    watches = [Heartbeat(store, "w", rank, 2) for rank in range(2)]
    watches[1].stop()
    assert watches[0].failure() == ""
    watches[0].stop()


def test_a_process_that_waits_for_a_lost_rank_is_ended(store, hurried, capsys):
    watch = Heartbeat(store, "w", 0, 2)
    assert hurried.wait(20)
    watch.stop()
    assert "pplgen: rank 1 has not joined for 1 seconds, so the run ends" in capsys.readouterr().err


def test_torchrun_writes_one_run(tmp_path, monkeypatch, capfd):
    """Started from this process, which has imported torch already."""
    table = "a,b\n" + "\n".join(f"{i % 7 + (i % 2) * 10},{i % 5}" for i in range(31)) + "\n"
    (tmp_path / "own.csv").write_text(table)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    options = ["--steps", "120", "--draws", "10", "--compile", "graph", "--covariance", "spherical"]
    launch = ["--standalone", "--nproc-per-node=2", "-m", "pplgen"]
    torchrun([*launch, "fit", "gaussian-mixture", "own.csv", *options])
    assert capfd.readouterr().out.count("GaussianMixture on own, 31 rows") == 1
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["gaussian-mixture-own"]
    assert not list((tmp_path / "runs").rglob("*unfinished*"))
    fit = pplgen.load(tmp_path / "runs" / "gaussian-mixture-own", tmp_path / "own.csv")
    assert fit.path == "the traced graph, then L-BFGS; 2 ranks shared the rows"
    assert fit.log_likelihood(draws=10).shape == (31,)


def test_files_are_one_stream(files):
    folder, x = files
    for path in (folder, str(folder / "part-*.npy")):
        stream = pplgen.stream_data(path)
        assert (stream.name, len(stream), stream.num_blocks) == (folder.name, 64, 8)
        assert torch.equal(torch.cat(list(stream.blocks())), x)
    assert stream.survey(9, seed=0).fingerprint == pplgen.load_data(x.numpy()).fingerprint


def test_blocks_are_dealt_out(files):
    stream = pplgen.stream_data(files[0])
    for size in (2, 3):
        shards = [stream.shard(rank, size) for rank in range(size)]
        assert stream.shard_sizes(size) == tuple(map(len, shards))
        assert max(map(len, shards)) - min(map(len, shards)) <= 8
        seen = torch.cat([block for shard in shards for block in shard.blocks()])
        assert torch.equal(seen.sort(0).values, files[1].sort(0).values)
    with pytest.raises(InputError, match="has 8 blocks of rows for 9 ranks"):
        stream.shard(0, 9)


def test_shards_shuffle_reproducibly_and_continue(files):
    shard = pplgen.stream_data(files[0]).shard(1, 3)
    first, again, rest = (shard.batches(5, seed=2, skip=skip) for skip in (0, 0, 4))
    batches = [next(first) for _ in range(9)]
    assert all(torch.equal(batch, next(again)) for batch in batches)
    assert all(torch.equal(batch, next(rest)) for batch in batches[4:])


def test_errors_name_the_row_in_all_files(files, tmp_path):
    x = files[1].clone()
    x[50, 1] = torch.inf
    np.save(tmp_path / "a.npy", x[:40].numpy())
    np.save(tmp_path / "b.npy", x[40:].numpy())
    stream = pplgen.stream_data(tmp_path).shard(0, 2)
    with pytest.raises(InputError, match="column 'x1', row 51: inf"):
        list(stream.blocks())


def test_wrong_files(files, tmp_path):
    with pytest.raises(InputError, match="no NumPy"):
        pplgen.stream_data(tmp_path)
    np.save(tmp_path / "a.npy", np.ones((5, 2)))
    np.save(tmp_path / "b.npy", np.ones((5, 3)))
    with pytest.raises(InputError, match=r"b.npy' has columns x0, x1, x2, but .*a.npy' has x0, x1"):
        pplgen.stream_data(tmp_path)


@pytest.mark.parametrize("batch_size", [64, 16])
@pytest.mark.parametrize("streamed", [False, True])
def test_an_epoch_over_shards_is_the_whole_bound(files, streamed, batch_size):
    """At the same draw the scaled bounds of all shards' batches average to that of all rows, shards being uneven."""
    folder, x = files
    stream = pplgen.stream_data(folder)
    with seeded(0):
        whole = Pair.of_story(GaussianMixture(2, 3), x)
        pair = Pair.of_stream(whole.story, stream, stream.survey(64, seed=0), None) if streamed else whole
    sizes = stream.shard_sizes(2) if streamed else at_work.UNEVEN
    bounds = []
    for rank in range(2):
        shard = Shard(rank, sizes)
        for _ in range(num_batches := 64 // batch_size):
            batches, scale = batching(pair, batch_size, seed=3, shard=shard)
        own = []
        for _ in range(num_batches):
            with pair.isolated(), seeded(1), scale:
                batch = next(batches)
                own.append(pair.elbo().loss(pair.model, pair.guide, *batch))
        assert len(batch[0]) == shard.local_batch_size(batch_size)
        bounds.append(np.mean(own))
    with seeded(1), pair.isolated():
        expected = pair.elbo().loss(pair.model, pair.guide, x)
    assert np.mean(bounds) == pytest.approx(expected, rel=1e-5)  # float32 sums


def test_parts_of_a_batch_are_in_proportion():
    shards = [Shard(rank, (40, 24, 7)) for rank in range(3)]
    assert [shard.rows for shard in shards] == [slice(0, 40), slice(40, 64), slice(64, 71)]
    for batch_size in range(3, 72):
        shares = [shard.local_batch_size(batch_size) for shard in shards]
        assert sum(shares) == batch_size
        assert all(1 <= share <= own for share, own in zip(shares, (40, 24, 7), strict=True))
        assert all(abs(share - batch_size * own / 71) < 1 for share, own in zip(shares, (40, 24, 7), strict=True))
    with pytest.raises(InputError, match="batch_size=2: expected at least one row for each of 3 ranks"):
        shards[0].local_batch_size(2)


def test_what_ranks_cannot_share_is_refused():
    model, guide, data = at_work.functional()

    def outside(x):
        model(x)
        pyro.factor("extra", x.sum())

    def constant(x):
        model(x)
        pyro.factor("extra", torch.ones(()))

    def without_plate(x):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(mu, 1.0).expand([64, 3]).to_event(2), obs=x)

    pair = Pair(constant, guide, data)
    check_shardable(pair, pair.elbo())
    with pytest.raises(InputError, match="RenyiELBO is not a sum over rows"):
        check_shardable(pair, RenyiELBO(num_particles=2))
    for wrong, own_guide, sentence in (
        (outside, guide, "site 'extra' depends on the rows outside"),
        (without_plate, None, "no full plate"),
        (at_work.autoencoder()[0], None, "separate parameters for each training row"),
    ):
        rows = at_work.autoencoder()[2] if own_guide is None and wrong is not without_plate else data
        pair = Pair(wrong, own_guide, rows)
        with pytest.raises(InputError, match=sentence):
            check_shardable(pair, pair.elbo())


def test_wrong_sharing():
    with pytest.raises(InputError, match="shard='columns': expected one of rows, restarts"):
        pplgen.fit(GaussianMixture(2, 2), "faithful", shard="columns")
