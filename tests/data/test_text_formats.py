"""Text and files as people write them: headers, separators, numbers with thousands, other suffixes, what is no file."""

import gzip
import io
import os
import sys

import numpy as np
import pandas as pd
import pytest

from pplgen.data.delimited import read_cells
from pplgen.data.paths import table_name
from pplgen.data.table import load_data
from pplgen.errors import DataWarning, InputError

ROWS = [[1.5, 2.0], [3.0, 4.5]]


def write(tmp_path, text, name="table.csv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("index", [True, False])
def test_a_frame_without_names_keeps_its_rows(tmp_path, index):
    """What pandas writes for it: 0, 1, 2 as names, and with the index a counter beside the rows."""
    rows = np.random.default_rng(0).normal(size=(50, 3))
    path = tmp_path / "unnamed.csv"
    pd.DataFrame(rows).to_csv(path, index=index)
    with pytest.warns(DataWarning) as told:
        table = load_data(path)
    messages = [str(each.message) for each in told]
    assert "is read as column names; header=False (--no-header) reads it as a row" in messages[0]
    assert ["only counts the rows" in each for each in messages[1:]] == [True] * index
    assert table.columns == ("0", "1", "2")
    np.testing.assert_allclose(table.values.numpy(), rows, rtol=1e-6)


def test_few_integers_may_be_a_row(tmp_path):
    path = write(tmp_path, "0,1\n1,0\n1,1\n")
    with pytest.warns(DataWarning, match="the first line, '0,1', is read as a row; header=True"):
        assert len(load_data(path)) == 3
    with pytest.warns(DataWarning, match="is read as column names"):
        assert len(load_data(write(tmp_path, "0,1,2,3\n1,0,0,5\n"))) == 1


@pytest.mark.parametrize(("header", "columns", "rows"), [(True, ("7", "8"), 1), (False, ("x0", "x1"), 2)])
def test_the_user_knows_best(tmp_path, header, columns, rows):
    table = load_data(write(tmp_path, "7,8\n1,2\n"), header=header)
    assert (table.columns, len(table)) == (columns, rows)
    np.save(tmp_path / "rows.npy", np.ones((2, 2)))
    with pytest.raises(InputError, match=r"header=.*: only text and \.xlsx files may lack a header, not \.npy"):
        load_data(tmp_path / "rows.npy", header=header)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("bars.csv", "a|b\n1.5|2\n3|4.5\n"),
        ("bars.psv", "a|b\n1.5|2\n3|4.5\n"),
        ("spaces.txt", "  a    b\n1.5    2\n  3  4.5  \n"),
        ("tabs.txt", "a\tb\n1.5\t2\n3\t4.5\n"),
        ("commas.dat", "a, b\n1.5, 2\n3, 4.5\n"),
        ("around.csv", " a ,b  \n1.5,2\n3,4.5\n"),
        ("ends.csv", "a,b,\n1.5,2,\n3,4.5,\n"),
        ("ends_below.csv", "a,b\n1.5,2,\n3,4.5,\n"),
    ],
)
def test_other_separators_and_ends(tmp_path, name, text):
    table = load_data(write(tmp_path, text, name))
    assert table.columns == ("a", "b")
    assert table.values.tolist() == ROWS


def test_row_names_of_r(tmp_path):
    with pytest.warns(DataWarning, match="only counts the rows"):
        table = load_data(write(tmp_path, '"a" "b"\n"1" 1.5 2\n"2" 3 4.5\n', "r.txt"))
    assert table.values.tolist() == ROWS
    path = write(tmp_path, 'a b\n"oak" 1.5 2\n"ash" 3 4.5\n', "named.txt")
    assert load_data(path, ignore=[""]).values.tolist() == ROWS


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ('a,b\n"1,234",2\n"12,345,678.5",3\n', [1234.0, 12345678.5]),
        ("a;b\n1.234,5;2\n1,5;3\n", [1234.5, 1.5]),
        ("a;b\n1 234,5;2\n1\u00a0000;3\n", [1234.5, 1000.0]),
        ("a\tb\n1'234.5\t2\n7\t3\n", [1234.5, 7.0]),
    ],
)
def test_thousands(tmp_path, text, numbers):
    with pytest.warns(DataWarning, match=r"column 'a': .* is read as \d+[.,]?\d*, without its separators of thousands"):
        table = load_data(write(tmp_path, text), dtype="float64")
    assert table.values[:, 0].tolist() == numbers


def test_a_comma_that_separates_thousands_in_one_cell_only_is_refused(tmp_path):
    with pytest.raises(InputError, match="column 'a', row 2: '1,5' is not a number"):
        load_data(write(tmp_path, 'a\n1\n"1,5"\n2\n'))


def frame():
    return pd.DataFrame(ROWS, columns=["a", "b"])


def test_further_suffixes(tmp_path):
    pytest.importorskip("pyarrow")
    pytest.importorskip("openpyxl")
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"a,b\n1.5,2\n3,4.5\n"))
    frame().to_parquet(tmp_path / "t.pq")
    frame().to_feather(tmp_path / "t.feather")
    frame().to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    frame().to_excel(tmp_path / "t.xlsx", index=False)
    for suffix in (".csv.gz", ".pq", ".feather", ".jsonl", ".xlsx"):
        table = load_data(tmp_path / f"t{suffix}")
        assert (table.name, table.columns) == ("t", ("a", "b"))
        assert table.values.tolist() == ROWS


def test_sheets(tmp_path):
    pytest.importorskip("openpyxl")
    path = tmp_path / "t.xlsx"
    with pd.ExcelWriter(path) as book:
        frame().assign(c=[None, "NA"], d=[True, False]).to_excel(book, sheet_name="first", index=False)
        frame().to_excel(book, sheet_name="second", index=False)
    with pytest.warns(DataWarning, match="has 2 sheets with content; the first is read"):
        table = load_data(path)
    assert table.columns == ("a", "b", "c", "d")
    assert table.values.isnan().sum(0).tolist() == [0, 0, 2, 0]


def test_the_standard_input_and_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a,b\n1.5,2\n3,4.5\n")))
    table = load_data("-")
    assert (table.name, table.values.tolist()) == ("stdin", ROWS)
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, "a,b\n1.5,2\n3,4.5\n")
    assert load_data("~/table.csv").values.tolist() == ROWS


def test_what_is_no_file(tmp_path):
    (tmp_path / "link.csv").symlink_to("nowhere.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.csv").mkdir()
    for name, sentence in {
        "link.csv": "a link to 'nowhere.csv', which does not exist",
        "pipe.csv": "this is a pipe; expected a file; '-' reads the standard input",
        "folder.csv": "this is a folder; expected a file$",
    }.items():
        with pytest.raises(InputError, match=sentence):
            load_data(tmp_path / name)
    with pytest.raises(InputError, match="this is a device"):
        load_data("/dev/null")


def test_damaged_files(tmp_path):
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"a,b\n1.5,2\n3,4.5\n")[:-9])
    (tmp_path / "t.jsonl").write_text('{"a": 1}\n{"a": \n')
    (tmp_path / "t.xlsx").write_bytes(b"PK\x03\x04nothing")
    (tmp_path / "t.feather").write_bytes(b"ARROW1nothing")
    pytest.importorskip("pyarrow")
    pytest.importorskip("openpyxl")
    for name, kind in {
        "t.csv.gz": "a complete gzip file",
        "t.jsonl": "one JSON object in each line",
        "t.xlsx": "an Excel workbook",
        "t.feather": "an Arrow file",
    }.items():
        with pytest.raises(InputError, match=f"not {kind}"):
            load_data(tmp_path / name)


def test_damaged_notes_of_pandas_and_odd_dates(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    dates = arrow.array([2**62, 0], arrow.timestamp("us"))
    zone = arrow.array([0, 1], arrow.timestamp("us", "Nowhere/Land"))
    table = arrow.table({"a": [1.5, 3.0], "b": [2.0, 4.5], "far": dates, "zone": zone})
    for note in (b"{}", b"[]", b"{", b'{"index_columns": 3}', b"\xff"):
        parquet.write_table(table.replace_schema_metadata({b"pandas": note}), tmp_path / "t.parquet")
        assert load_data(tmp_path / "t.parquet", only=["a", "b"]).values.tolist() == ROWS
    for name in ("far", "zone"):
        with pytest.raises(InputError, match=rf"column '{name}'.*--ignore {name}"):
            load_data(tmp_path / "t.parquet", only=[name])


@pytest.mark.parametrize(("name", "stem"), [("a.csv", "a"), ("a.csv.gz", "a"), ("a.b.csv", "a.b"), ("a", "a")])
def test_names(tmp_path, name, stem):
    assert table_name(tmp_path / name) == stem


def test_separators_that_are_told_by_the_first_lines():
    assert read_cells("a b,c\n1,2\n", "t", ",;\t| ", None)[1] == ","
    assert read_cells("2020-01-01 00:00,5\n2020-01-01 01:00,6\n", "t", ",;\t| ", True)[1] == ","
