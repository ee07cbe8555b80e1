"""Series of any kind become one tensor with NaN past their ends, and one sentence says what is wrong."""

import numpy as np
import pandas as pd
import pytest
import torch

import pplgen
from pplgen.errors import InputError

LONG = pd.DataFrame({"who": [2, 2, 1, 2, 1], "a": [1.0, 2.0, 10.0, np.nan, 20.0], "b": [5.0, 6.0, 50.0, 7.0, 60.0]})


def test_one_series():
    for source in (LONG[["a", "b"]], LONG[["a", "b"]].to_numpy(), np.arange(4.0)):
        table = pplgen.load_series(source)
        assert table.values.ndim == 3
        assert len(table) == 1
        assert table.values.shape[1] == len(source)
    assert pplgen.load_series(LONG[["a", "b"]]).columns == ("a", "b")


def test_a_column_tells_series_apart(tmp_path):
    LONG.to_csv(tmp_path / "long.csv", index=False)
    for source in (LONG, tmp_path / "long.csv"):
        table = pplgen.load_series(source, by="who")
        assert table.columns == ("a", "b")
        expected = [[[1, 5], [2, 6], [np.nan, 7]], [[10, 50], [20, 60], [np.nan, np.nan]]]
        np.testing.assert_array_equal(table.values, np.array(expected))


def test_several_series():
    whole = pplgen.load_series(np.arange(12.0).reshape(2, 3, 2))
    assert whole.values.shape == (2, 3, 2)
    again = pplgen.load_series(whole, dtype=torch.float64)
    assert again.values.dtype == torch.float64
    uneven = pplgen.load_series([LONG[["a", "b"]], LONG[["a", "b"]][:2]], weights=[1, 0.5])
    assert uneven.values.shape == (2, 5, 2)
    assert uneven.values[1, 2:].isnan().all()
    assert uneven.weights.tolist() == [1, 0.5]


@pytest.mark.parametrize(
    ("source", "options", "sentence"),
    [
        (LONG, {"by": "whom"}, "by='whom': expected one of the columns who, a, b"),
        (LONG.replace({"who": {1: np.nan}}), {"by": "who"}, "column 'who', row 3: the value is missing"),
        (LONG[["who"]], {"by": "who"}, "no data column is left besides 'who'"),
        ([LONG[["a"]], LONG[["b"]]], {}, "series 2 has the columns b; expected those of the first, a"),
        ([np.ones((3, 1)), np.array([[np.inf]])], {}, "series 2: column 'x0', row 1: inf is not a finite number"),
        (np.ones((0, 3, 1)), {}, r"the array is empty, with shape \(0, 3, 1\)"),
    ],
)
def test_mistakes(source, options, sentence):
    with pytest.raises(InputError, match=sentence):
        pplgen.load_series(source, **options)


def test_text_tells_series_apart_and_files_are_series(tmp_path):
    frame = pd.DataFrame({"bee": ["b", "b", "a"], "x": [1.0, 2.0, 3.0]})
    table = pplgen.load_series(frame, by="bee")
    np.testing.assert_array_equal(table.values[..., 0], [[1.0, 2.0], [3.0, np.nan]])
    paths = []
    for name, length in (("one", 2), ("two", 3)):
        paths.append(tmp_path / f"{name}.csv")
        pd.DataFrame({"x": range(length)}).to_csv(paths[-1], index=False)
    assert pplgen.load_series(paths).values.shape == (2, 3, 1)


def test_weights_of_steps_are_refused():
    with pytest.raises(InputError, match="give weights, one for each series"):
        pplgen.load_series(pplgen.load_data(np.ones((3, 2)), weights=[1, 2, 3]))


def test_columns_of_series_are_chosen(tmp_path):
    path = tmp_path / "long.csv"
    path.write_text("who,day,flow\n1,Mon,2\n1,Tue,3\n2,Mon,4\n")
    for options in ({"only": ["flow"]}, {"ignore": ["day"]}):
        table = pplgen.load_series(path, by="who", **options)
        assert table.columns == ("flow",)
        assert table.values.shape == (2, 2, 1)
        assert pplgen.load_series(table, only=["flow"]).columns == ("flow",)
    path.write_text("who,flow\nzoe,2\nann,4\nzoe,3\n")
    assert pplgen.load_series(path, by="who").values[..., 0].tolist()[0] == [2, 3]
    cube = np.arange(12.0).reshape(2, 3, 2)
    assert pplgen.load_series(cube, only=["x1"]).values[0, :, 0].tolist() == [1, 3, 5]
