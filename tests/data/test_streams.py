"""Rows read block by block, held against the whole array in memory."""

import importlib
import pickle
import sys
import warnings
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pplgen.data.streams import POOL_BLOCKS, stream_data
from pplgen.data.table import load_data
from pplgen.errors import DataWarning, InputError

NUM_ROWS = 2_050
NUM_COLUMNS = 4
BLOCK_ROWS = 100
"""Rows of a small block; 2,050 rows are 21 of them, the last half full, in three pools."""


@pytest.fixture
def small_blocks(monkeypatch):
    # the test modules are imported by path, and so is what they patch
    blocks = importlib.import_module("pplgen.data.blocks")
    monkeypatch.setattr(blocks, "BLOCK_VALUES", BLOCK_ROWS * NUM_COLUMNS)


@pytest.fixture
def matrix():
    """Columns of different scales, the first counting the rows, some entries missing."""
    rng = np.random.default_rng(0)
    values = rng.normal([0, 5, -3, 1e3], [1, 2, 1e-1, 10], size=(NUM_ROWS, NUM_COLUMNS))
    values[rng.random(values.shape) < 0.05] = np.nan
    values[:, 0] = np.arange(NUM_ROWS)
    return values


@pytest.fixture
def npy(tmp_path, matrix, small_blocks):
    np.save(tmp_path / "t.npy", matrix)
    return tmp_path / "t.npy"


def parquet(path, frame, **options):
    pytest.importorskip("pyarrow")
    frame.to_parquet(path, **options)
    return path


def rows_of(batches):
    """Numbers of the rows in each batch, from the column that counts them."""
    return [batch[:, 0].long().tolist() for batch in batches]


def test_blocks_in_file_order_are_the_array(npy, matrix):
    stream = stream_data(npy, dtype=torch.float64)
    assert (stream.name, stream.columns, len(stream)) == ("t", ("x0", "x1", "x2", "x3"), NUM_ROWS)
    assert stream.num_blocks == 21
    blocks = list(stream.blocks())
    assert [len(block) for block in blocks] == [BLOCK_ROWS] * 20 + [50]
    np.testing.assert_array_equal(torch.cat(blocks).numpy(), matrix)
    np.testing.assert_array_equal(stream.block(-1).numpy(), matrix[-50:])
    with pytest.raises(IndexError):
        stream.block(21)


@pytest.mark.parametrize("batch_size", [1, 64, 205, 1_000, NUM_ROWS])
def test_an_epoch_is_a_permutation_of_the_rows(npy, matrix, batch_size):
    stream = stream_data(npy, dtype=torch.float64)
    per_epoch = NUM_ROWS // batch_size
    batches = list(islice(stream.batches(batch_size, seed=3), 2 * per_epoch))
    assert all(batch.shape == (batch_size, NUM_COLUMNS) for batch in batches)
    epochs = [list(chain(*rows_of(part))) for part in (batches[:per_epoch], batches[per_epoch:])]
    for rows in epochs:
        assert len(set(rows)) == len(rows) == per_epoch * batch_size
    assert epochs[0] != epochs[1]
    np.testing.assert_array_equal(torch.cat(batches[:per_epoch]).numpy(), matrix[epochs[0]])


def test_batches_mix_the_blocks_of_a_pool(npy):
    first = next(stream_data(npy).batches(POOL_BLOCKS * BLOCK_ROWS // 4, seed=0))
    assert len({row // BLOCK_ROWS for row in rows_of([first])[0]}) == POOL_BLOCKS
    epoch = islice(stream_data(npy).batches(10, seed=0), 205)
    assert all(rows != sorted(rows) for rows in rows_of(epoch))


def test_batches_depend_on_the_seed_alone(npy):
    stream = stream_data(npy)
    first = rows_of(islice(stream.batches(64, seed=1), 40))
    torch.manual_seed(5)
    again = stream.batches(64, seed=1)
    assert rows_of([next(again)]) == first[:1]
    other = rows_of(islice(stream.batches(64, seed=-1), 40))
    assert rows_of(islice(again, 39)) == first[1:]
    assert other != first
    state = torch.get_rng_state()
    next(stream.batches(64, seed=1))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("batch_size", [7, 300, 900, NUM_ROWS])
def test_skipping_continues_the_same_batches(npy, batch_size):
    stream = stream_data(npy)
    per_epoch = NUM_ROWS // batch_size
    expected = rows_of(islice(stream.batches(batch_size, seed=2), 3 * per_epoch))
    for skip in {1, per_epoch - 1, per_epoch, per_epoch + 1, 2 * per_epoch}:
        rest = rows_of(islice(stream.batches(batch_size, seed=2, skip=skip), 3 * per_epoch - skip))
        assert rest == expected[skip:]


def test_skipped_pools_are_not_read(npy):
    stream = stream_data(npy)
    read, count = stream._read, []
    stream._read = lambda index: count.append(index) or read(index)
    next(stream.batches(10, seed=2, skip=5 * 205 + 170))
    assert len(count) <= POOL_BLOCKS


def test_survey_equals_numpy_on_the_whole_array(npy, matrix):
    survey = stream_data(npy, dtype=torch.float64).survey(100, seed=0)
    assert survey.missing
    np.testing.assert_array_equal(survey.count.numpy(), (~np.isnan(matrix)).sum(axis=0))
    # sums of 2,050 terms, each right to 1e-16 of the largest
    np.testing.assert_allclose(survey.mean.numpy(), np.nanmean(matrix, axis=0), rtol=1e-13)
    np.testing.assert_allclose(survey.std.numpy(), np.nanstd(matrix, axis=0), rtol=1e-10)
    np.testing.assert_array_equal(survey.min.numpy(), np.nanmin(matrix, axis=0))
    np.testing.assert_array_equal(survey.max.numpy(), np.nanmax(matrix, axis=0))
    rows = survey.sample[:, 0].long()
    assert len(rows.unique()) == 100
    np.testing.assert_array_equal(survey.sample.numpy(), matrix[rows])


def test_a_large_mean_does_not_drown_the_spread(tmp_path, small_blocks):
    values = 1e9 + np.random.default_rng(0).normal(size=(NUM_ROWS, NUM_COLUMNS))
    np.save(tmp_path / "t.npy", values)
    std = stream_data(tmp_path / "t.npy", dtype=torch.float64).survey(1, seed=0).std
    # means of pieces are rounded by 1e9 * 1e-16 = 1e-7; a mean square less a squared mean, by 1e18 * 1e-16 = 100
    np.testing.assert_allclose(std.numpy(), values.std(axis=0), rtol=1e-7)


def test_samples_are_uniform(npy):
    stream = stream_data(npy)
    size, draws = 205, 40
    samples = [stream.survey(size, seed=seed).sample for seed in range(draws)]
    assert not torch.equal(samples[0], samples[1])
    assert torch.equal(stream.survey(size, seed=0).sample.nan_to_num(), samples[0].nan_to_num())
    counts = np.bincount(torch.cat(samples)[:, 0].long() * 10 // NUM_ROWS, minlength=10)
    # a tenth of the rows is in a sample of a tenth 20.5 times on average; the binomial error, an upper bound without
    # replacement, is sqrt(40 * 205 * 0.1 * 0.9) = 27, and four of them miss one of ten counts once in 1,600 runs
    expected = size * draws / 10
    assert np.abs(counts - expected).max() < 4 * np.sqrt(expected * 0.9)


def test_a_sample_of_more_rows_than_there_are_is_all_of_them(npy, matrix):
    sample = stream_data(npy, dtype=torch.float64).survey(10 * NUM_ROWS, seed=0).sample
    np.testing.assert_array_equal(sample.numpy(), matrix)


@pytest.mark.parametrize("kind", ["float32", "float64", "float16", ">f4", "int16", "uint8", "bool"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.filterwarnings("ignore::pplgen.errors.DataWarning")
def test_every_array_is_what_load_data_reads(tmp_path, small_blocks, kind, order):
    values = np.random.default_rng(0).integers(0, 100, size=(450, NUM_COLUMNS)).astype(kind)
    path = tmp_path / "t.npy"
    np.save(path, np.asarray(values, order=order))
    for dtype in (torch.float32, torch.float64):
        table, stream = load_data(path, dtype=dtype), stream_data(path, dtype=dtype)
        assert stream.num_blocks == 5
        assert torch.equal(torch.cat(list(stream.blocks())), table.values)
        survey = stream.survey(450, seed=0)
        assert survey.fingerprint == table.fingerprint
        assert not survey.missing


def test_one_axis_is_one_column(tmp_path, small_blocks):
    np.save(tmp_path / "t.npy", np.arange(10.0))
    stream = stream_data(str(tmp_path / "t.npy"))
    assert stream.block(0).shape == (10, 1)
    assert stream.dtype == stream.block(0).dtype == torch.get_default_dtype()


def test_both_formats_give_the_same(npy, matrix):
    frame = pd.DataFrame(matrix, columns=["x0", "x1", "x2", "x3"])
    path = parquet(npy.with_suffix(".parquet"), frame, row_group_size=BLOCK_ROWS)
    one, other = (stream_data(source) for source in (npy, path))
    assert one.columns == other.columns
    assert one.num_blocks == other.num_blocks
    for mine, theirs in zip(*(islice(stream.batches(64, seed=0), 70) for stream in (one, other)), strict=True):
        np.testing.assert_array_equal(mine.numpy(), theirs.numpy())
    surveys = [stream.survey(50, seed=0) for stream in (one, other)]
    assert surveys[0].fingerprint == surveys[1].fingerprint == load_data(path).fingerprint
    np.testing.assert_array_equal(surveys[0].sample.numpy(), surveys[1].sample.numpy())


def test_large_row_groups_are_read_in_slices(tmp_path, matrix, small_blocks):
    frame = pd.DataFrame(matrix, columns=list("abcd"))
    path = parquet(tmp_path / "t.parquet", frame, row_group_size=1_000)
    stream = stream_data(path, dtype=torch.float64)
    assert [len(block) for block in stream.blocks()] == [400, 400, 200, 400, 400, 200, 50]
    np.testing.assert_array_equal(torch.cat(list(stream.blocks())).numpy(), matrix)
    np.testing.assert_array_equal(stream.block(4).numpy(), matrix[1_400:1_800])


def test_parquet_of_many_types(tmp_path, small_blocks):
    arrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    decimals = arrow.array([1, None, 3], arrow.int64()).cast(arrow.decimal128(30, 2))
    table = arrow.table(
        {
            "large": arrow.array([2**60, None, -3]),
            "a": arrow.array([0.1, None, np.nan]),
            "a.b": arrow.array([1, 2, 3], arrow.float32()),
            "half": arrow.array(np.array([1, 2, 3], "float16")),
            "flag": arrow.array([True, None, False]),
            "money": decimals,
            "empty": arrow.nulls(3),
        }
    )
    path = tmp_path / "t.parquet"
    arrow.parquet.write_table(table, path)
    stream = stream_data(path, dtype=torch.float64)
    assert stream.columns == ("large", "a", "a.b", "half", "flag", "money", "empty")
    loaded = load_data(path, dtype=torch.float64)
    np.testing.assert_array_equal(stream.block(0).numpy(), loaded.values.numpy())


def test_labels_of_rows_are_no_column(tmp_path, matrix, small_blocks):
    frame = pd.DataFrame(matrix, columns=list("abcd"))
    shuffled = frame.sample(frac=1, random_state=0)
    path = parquet(tmp_path / "shuffled.parquet", shuffled)
    assert stream_data(path).columns == tuple("abcd")
    assert stream_data(path).survey(1, seed=0).fingerprint == load_data(path).fingerprint
    frame.insert(0, "rownames", np.arange(1, NUM_ROWS + 1))
    with pytest.warns(DataWarning, match="column 'rownames' only counts the rows"):
        assert stream_data(parquet(tmp_path / "named.parquet", frame)).columns == tuple("abcd")


def test_infinities_are_found_by_column_and_row(npy, matrix):
    matrix[1_234, 2] = np.inf
    np.save(npy, matrix)
    frame = pd.DataFrame(matrix, columns=["x0", "x1", "x2", "x3"])
    path = parquet(npy.with_suffix(".parquet"), frame, row_group_size=1_000)
    sentence = "column 'x2', row 1235: inf is not a finite number in torch.float32"
    for stream in (stream_data(npy), stream_data(path)):
        stream.block(0)
        for read in (
            lambda stream: list(stream.blocks()),
            lambda stream: stream.survey(1, seed=0),
            lambda stream: list(islice(stream.batches(NUM_ROWS, seed=0), 1)),
        ):
            with pytest.raises(InputError, match=sentence):
                read(stream)
    matrix[1_234, 2] = -1e39
    np.save(npy, matrix)
    with pytest.raises(InputError, match=r"row 1235: -1e\+39 is not a finite number in torch\.float32"):
        stream_data(npy).block(12)
    stream_data(npy, dtype=torch.float64).block(12)


def test_training_checks(tmp_path, small_blocks):
    def survey(values, **options):
        np.save(tmp_path / "t.npy", values)
        return stream_data(tmp_path / "t.npy", **options).survey(10, seed=0)

    count = np.arange(500.0)
    with pytest.raises(InputError, match="t: 1 row is too few to train on"):
        survey(np.ones((1, 2)))
    with pytest.raises(InputError, match="column 'x1' has no observed value in 500 rows"):
        survey(np.column_stack([count, np.full(500, np.nan)]))
    with pytest.warns(DataWarning, match=r"column 'x1' is constant \(3\)"):
        survey(np.column_stack([count, np.where(count % 2, 3, np.nan)]))
    with pytest.warns(DataWarning, match=r"column 'x0' varies too little around its mean for torch\.float32"):
        survey(1.6e9 + count)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        survey(1.6e9 + count, dtype=torch.float64)


def test_arguments_out_of_range(npy):
    stream = stream_data(npy)
    for batch_size in (0, NUM_ROWS + 1):
        with pytest.raises(InputError, match=f"batch_size={batch_size}: expected between 1 and the 2050 rows of t"):
            stream.batches(batch_size, seed=0)
    with pytest.raises(InputError, match="skip=-1: expected 0 or more"):
        stream.batches(10, seed=0, skip=-1)
    with pytest.raises(InputError, match="sample_size=0: expected at least 1"):
        stream.survey(0, seed=0)


def test_bad_files(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    write = importlib.import_module("pyarrow.parquet").write_table
    np.save(tmp_path / "objects.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    (tmp_path / "pickled.npy").write_bytes(pickle.dumps([1.0]))
    (tmp_path / "nothing.npy").touch()
    np.save(tmp_path / "text.npy", np.array(["a", "b"]))
    np.save(tmp_path / "cube.npy", np.ones((2, 2, 2)))
    np.save(tmp_path / "rowless.npy", np.ones((0, 2)))
    np.save(tmp_path / "whole.npy", np.ones((9, 2)))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "whole.npy").read_bytes()[:-8])
    (tmp_path / "broken.parquet").write_bytes(b"nonsense")
    write(arrow.table({"city": ["Rome"], "a": [1.0]}), tmp_path / "city.parquet")
    write(arrow.table([[1.0], [2.0]], names=["a", "a"]), tmp_path / "twice.parquet")
    write(arrow.table({"a": arrow.array([], arrow.float64())}), tmp_path / "rowless.parquet")
    (tmp_path / "t.csv").write_text("a\n1\n")
    expected = {
        "objects.npy": "not a plain numeric NumPy file",
        "pickled.npy": "not a plain numeric NumPy file",
        "nothing.npy": "not a plain numeric NumPy file",
        "cut.npy": "not a plain numeric NumPy file",
        "text.npy": "values of type <U1; expected numbers",
        "cube.npy": r"shape \(2, 2, 2\); expected \(num_rows, num_features\)",
        "rowless.npy": r"rowless: the data are empty, with shape \(0, 2\)",
        "broken.parquet": "not a Parquet file",
        "city.parquet": "column 'city': values of type string; expected numbers",
        "twice.parquet": "column 'a' appears more than once",
        "rowless.parquet": r"rowless: the data are empty, with shape \(0, 1\)",
        "t.csv": r"t\.csv' cannot be streamed; expected a NumPy \(\.npy\) or Parquet \(\.parquet\) file",
        "wholes.npy": r"there is no such file; expected a file; did you mean '[^']*whole\.npy'",
    }
    for name, sentence in expected.items():
        with pytest.raises(InputError, match=sentence):
            stream_data(tmp_path / name)
    with pytest.raises(InputError, match="a value of type ndarray cannot be streamed"):
        stream_data(np.ones((2, 2)))
    with pytest.raises(InputError, match="'faithful' cannot be streamed"):
        stream_data("faithful")


def test_parquet_without_its_package(tmp_path, monkeypatch):
    (tmp_path / "t.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"needs pyarrow: pip install 'pplgen\[data\]'"):
        stream_data(tmp_path / "t.parquet")


def resident():
    """Bytes of memory that belong to the process alone; pages of mapped files do not."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("RssAnon:")[2].split()[0])


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is read from /proc")
def test_memory_stays_near_that_of_a_pool(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.import_module("pplgen.data.blocks"), "BLOCK_VALUES", 1 << 18)
    pool = POOL_BLOCKS * (1 << 18) * 4
    num_rows = 10 * pool // 64
    mapped = np.lib.format.open_memmap(tmp_path / "t.npy", "w+", "float32", (num_rows, 16))
    mapped[:] = np.arange(16, dtype="float32")
    mapped[::2] = 0
    mapped.flush()
    del mapped
    stream = stream_data(tmp_path / "t.npy")
    read, peak = stream._read, []
    stream._read = lambda index: peak.append(resident()) or read(index)
    before = resident()
    for _ in islice(stream.batches(1_000, seed=0), num_rows // 1_000):
        pass
    with pytest.warns(DataWarning, match="column 'x0' is constant"):
        stream.survey(1_000, seed=0)
    assert len(peak) == 160
    # a pool, its order, a block or two, and what the allocator keeps, which other tests decide; the file is ten pools
    assert max(peak) - before < 4 * pool
