"""What ``load_data`` takes from memory, as the table of ``docs/guides/own_data.md`` says, line by line."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from scipy import sparse

from pplgen.data.table import load_data
from pplgen.errors import InputError

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "own_data.md"
NAN = float("nan")
ROWS = [[1.0, 3.0], [NAN, 4.0]]
"""Rows of the columns b and a, whose one missing entry each case marks in its own way."""


def frame(kind, cell, **options):
    return lambda: kind({"b": [1, cell], "a": [3, 4]}, **options)


def polars(build):
    return lambda: build(pytest.importorskip("polars"))


def arrow(build):
    return lambda: build(pytest.importorskip("pyarrow"))


def masked(kind):
    return np.ma.masked_equal(np.array([[1, 3], [-999, 4]], kind), -999)


def structured():
    return np.array([(1, 3), (NAN, 4)], [("b", "f8"), ("a", "f8")])


TAKEN = {
    "pandas `DataFrame`": {
        "NaN": frame(pd.DataFrame, NAN),
        "`None`": frame(pd.DataFrame, None),
        "`pd.NA`": frame(pd.DataFrame, pd.NA, dtype="Int64"),
        "null of PyArrow": frame(pd.DataFrame, None, dtype="int64[pyarrow]"),
    },
    "polars `DataFrame`, `LazyFrame`": {
        "NaN": polars(lambda pl: pl.DataFrame({"b": [1, NAN], "a": [3, 4]}, strict=False)),
        "null": polars(lambda pl: pl.LazyFrame({"b": [1, None], "a": [3, 4]})),
    },
    "PyArrow `Table`": {
        "NaN": arrow(lambda pa: pa.table({"b": [1, NAN], "a": [3, 4]})),
        "null": arrow(lambda pa: pa.table({"b": [1, None], "a": [3, 4]})),
    },
    "xarray `Dataset` of one dimension": {
        "NaN": lambda: xr.Dataset({"b": ("row", [1, NAN]), "a": ("row", [3, 4])}),
    },
    "xarray `DataArray`, coordinates of its last dimension": {
        "NaN": lambda: xr.DataArray(np.array(ROWS), dims=("row", "feature"), coords={"feature": ["b", "a"]}),
    },
    "dictionary of columns": {
        "NaN": lambda: {"b": np.array([1, NAN]), "a": torch.tensor([3, 4])},
        "`None`": lambda: {"b": [1, None], "a": (3, 4)},
        "masked": lambda: {"b": masked(int)[:, 0], "a": [3, 4]},
    },
    "list of dictionaries, one for each row": {
        "`None`": lambda: [{"b": 1, "a": 3}, {"b": None, "a": 4}],
        "an absent name": lambda: [{"b": 1, "a": 3}, {"a": 4}],
    },
    "structured array": {"NaN": structured},
    "NumPy array": {
        "NaN": lambda: np.array(ROWS),
        "`None`": lambda: np.array([[1, 3], [None, 4]], dtype=object),
        "masked": lambda: masked(float),
    },
    "PyTorch tensor": {"NaN": lambda: torch.tensor(ROWS)},
    "lists": {
        "NaN": lambda: ROWS,
        "`None`": lambda: [[1, 3], [None, 4]],
        "masked": lambda: list(masked(int)),
    },
}
REFUSED = {
    "sparse matrix of SciPy": (lambda: sparse.eye(2).tocsr(), r"expected a dense array, such as matrix\.toarray\(\)"),
    "sparse tensor": (lambda: torch.eye(2).to_sparse(), r"expected a dense one, such as tensor\.to_dense\(\)"),
    "array of images, of three axes or more": (
        lambda: np.ones((5, 4, 4)),
        r"shape \(5, 4, 4\); expected .*; flatten each row, array\.reshape\(len\(array\), -1\)",
    ),
    "complex numbers, text, dates": (lambda: np.ones((2, 2), complex), "values of type complex128; expected numbers"),
    "xarray `Dataset` of several dimensions": (
        lambda: xr.Dataset({"x": (("row", "feature"), np.ones((2, 2))), "y": ("row", [1, 2])}),
        r"variables x \(row, feature\), y \(row\); expected variables along one dimension",
    ),
    "columns of different lengths": (
        lambda: {"a": [1, 2], "b": [1]},
        "the columns differ in length: 'a' has 2 rows, 'b' has 1 rows",
    ),
}


def lines(heading):
    """Return the cells of the guide's table below a heading of columns."""
    text = GUIDE.read_text(encoding="utf-8").splitlines()
    start = text.index(heading) + 2
    end = next(i for i in range(start, len(text)) if not text[i].startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text[start:end]]


def test_the_guide_lists_what_is_taken():
    written = lines("| in memory | missing | names |")
    unnamed = [kind for kind, cases in TAKEN.items() if load_data(next(iter(cases.values()))()).columns == ("x0", "x1")]
    measured = [[kind, ", ".join(cases), "x0, x1, ..." if kind in unnamed else "kept"] for kind, cases in TAKEN.items()]
    assert written == measured
    assert [line[0] for line in lines("| refused | because |")] == list(REFUSED)


@pytest.mark.parametrize(("kind", "marker"), [(kind, marker) for kind, cases in TAKEN.items() for marker in cases])
def test_what_is_taken(kind, marker):
    table = load_data(TAKEN[kind][marker]())
    np.testing.assert_array_equal(table.values.numpy(), ROWS)
    assert table.columns in (("b", "a"), ("x0", "x1"))


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused(kind):
    build, sentence = REFUSED[kind]
    with pytest.raises(InputError, match=sentence):
        load_data(build())


@pytest.mark.parametrize(
    "build", [lambda: pd.Series([1, 2], name="flow"), polars(lambda pl: pl.Series("flow", [1, 2]))]
)
def test_a_named_series_is_a_named_column(build):
    assert load_data(build()).columns == ("flow",)
    assert load_data(pd.Series([1, 2])).columns == ("x0",)
    assert load_data(xr.DataArray([1, 2], name="flow")).columns == ("flow",)


def test_masks_hold_in_labels_weights_and_series():
    x = np.arange(4.0)
    labels = np.ma.masked_equal([0, 1, 9, 1], 9)
    assert load_data(x, labels=labels).labels.tolist() == [0, 1, -1, 1]
    with pytest.raises(InputError, match="weights, row 3: nan: expected a finite number"):
        load_data(x, weights=np.ma.masked_equal([1.0, 1.0, 9.0, 1.0], 9))
