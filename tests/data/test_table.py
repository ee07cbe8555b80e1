"""Tables from every source, and one sentence for every mistake."""

from csv import field_size_limit

import numpy as np
import pandas as pd
import pytest
import torch

from pplgen.data.fingerprint import Fingerprint
from pplgen.data.table import Table, load_data, named_data_sets
from pplgen.data.training_checks import check_training_table
from pplgen.errors import DataWarning, InputError


def csv(tmp_path, text, name="table.csv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_faithful_equals_the_published_table(reference_data):
    published = pd.read_csv(reference_data / "faithful.csv")[["eruptions", "waiting"]]
    table = load_data("faithful", dtype=torch.float64)
    assert table.columns == ("eruptions", "waiting")
    np.testing.assert_array_equal(table.values.numpy(), published.to_numpy())


@pytest.mark.parametrize(
    ("name", "shape"),
    {
        "faithful": (272, 2),
        "digits": (1797, 64),
        "digits-unit": (1797, 64),
        "wine": (178, 13),
        "iris": (150, 4),
        "breast_cancer": (569, 30),
        "nile": (100, 1),
    }.items(),
)
def test_named_data_sets(name, shape):
    pytest.importorskip("sklearn")
    pytest.importorskip("statsmodels")
    assert name in named_data_sets()
    table = load_data(name)
    assert tuple(table.values.shape) == shape
    assert len(table.columns) == shape[1]
    assert table.values.dtype == torch.get_default_dtype()


def test_nile_is_the_known_series(reference_data):
    pytest.importorskip("statsmodels")
    published = pd.read_csv(reference_data / "series" / "nile.csv").iloc[:, -1].to_numpy(dtype="float64")
    np.testing.assert_array_equal(load_data("nile", dtype=torch.float64).values[:, 0].numpy(), published)


def test_every_source_gives_the_same_table(tmp_path):
    pytest.importorskip("pyarrow")
    matrix = np.array([[1.5, 2.0], [np.nan, -3.0], [0.25, 1e6]])
    frame = pd.DataFrame(matrix, columns=["a", "b"])
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_csv(tmp_path / "t.tsv", index=False, sep="\t")
    frame.to_parquet(tmp_path / "t.parquet")
    np.save(tmp_path / "t.npy", matrix)
    np.savez(tmp_path / "t.npz", x=matrix, other=np.ones(2))
    named = [frame, tmp_path / "t.csv", str(tmp_path / "t.tsv"), tmp_path / "t.parquet"]
    unnamed = [matrix, torch.tensor(matrix), tmp_path / "t.npy", tmp_path / "t.npz"]
    for sources, columns in ((named, ("a", "b")), (unnamed, ("x0", "x1"))):
        tables = [load_data(source, dtype=torch.float64) for source in sources]
        assert {table.columns for table in tables} == {columns}
        assert len({table.fingerprint for table in tables}) == 1
        for table in tables:
            np.testing.assert_array_equal(table.values.numpy(), matrix)
    assert load_data(Table(torch.ones(2, 1), ("a",), "t")).columns == ("a",)


def test_types():
    assert load_data(np.ones((2, 2))).values.dtype == torch.float32
    assert load_data(torch.ones(2, 2, dtype=torch.float64)).values.dtype == torch.float64
    assert load_data(np.ones((2, 2), dtype=int)).values.dtype == torch.float32
    assert load_data([[1, 2], [3, 4]]).values.shape == (2, 2)
    assert load_data(np.ones(5)).values.shape == (5, 1)
    assert load_data(torch.ones(2, 2, dtype=torch.bfloat16)).values.dtype == torch.float32


def test_fingerprint_sees_values_and_names():
    table = load_data(np.arange(4.0).reshape(2, 2))
    other = load_data(np.array([[0.0, 1.0], [2.0, 3.5]]))
    renamed = Table(table.values, ("a", "b"), table.name)
    assert len({table.fingerprint, other.fingerprint, renamed.fingerprint}) == 3


def test_headerless_text_keeps_its_first_row(tmp_path):
    table = load_data(csv(tmp_path, "1,2\n3,4\n"))
    assert table.columns == ("x0", "x1")
    assert table.values.tolist() == [[1, 2], [3, 4]]
    assert load_data(csv(tmp_path, "1,,3\n4,5,6\n")).values.shape == (2, 3)
    with pytest.warns(DataWarning, match="the first line, 'a,2019', is read as column names"):
        assert load_data(csv(tmp_path, "a,2019\n4,5\n")).columns == ("a", "2019")


def test_empty_cells_are_missing(tmp_path):
    values = load_data(csv(tmp_path, "a,b\n1,\n ,2\n")).values
    assert values.isnan().tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize(
    "word", ["NA", "N/A", "n/a", "NaN", "nan", "-nan", "null", "NULL", ".", " NA ", "#N/A", "<NA>"]
)
def test_usual_words_for_missing_are_read(tmp_path, word):
    values = load_data(csv(tmp_path, f"a,b\n1,{word}\n3,2\n")).values
    assert values.isnan().tolist() == [[False, True], [False, False]]
    assert load_data(pd.DataFrame({"a": ["1", word]})).values.isnan().tolist() == [[False], [True]]
    headerless = load_data(csv(tmp_path, f"{word},1\n3,2\n"))
    assert headerless.columns == ("x0", "x1")
    assert len(headerless) == 2


@pytest.mark.parametrize("word", ["None", "none", "missing", "-", "?", "x"])
def test_other_words_are_not(tmp_path, word):
    with pytest.raises(InputError, match=r"column 'b', row 2: .* is not a number"):
        load_data(csv(tmp_path, f"a,b\n1,2\n1,{word}\n"))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_empty_lines_of_one_column_are_gaps(tmp_path, end):
    """A series keeps its steps; lines below the last value are none."""
    path = tmp_path / "flow.csv"
    path.write_bytes(end.join(["", "flow", "1", "", "  ", "4", "", ""]).encode())
    np.testing.assert_array_equal(load_data(path).values[:, 0].numpy(), [1, np.nan, np.nan, 4])
    path.write_bytes(end.join(["1", "", "3", ""]).encode())
    np.testing.assert_array_equal(load_data(path).values[:, 0].numpy(), [1, np.nan, 3])


def test_empty_lines_between_cells_are_skipped(tmp_path):
    assert load_data(csv(tmp_path, "\na,b\n\n1,2\n\n3,4\n\n")).values.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("text", "columns", "rows"),
    [
        ("a;b\n1;2\n3;4\n", "ab", [[1, 2], [3, 4]]),
        ("a\tb\n1\t2\n3\t4\n", "ab", [[1, 2], [3, 4]]),
        ("a;b\n1,5;-,25\n3,;4e1\n", "ab", [[1.5, -0.25], [3, 40]]),
        ("a;b\n1.5;2.25\n", "ab", [[1.5, 2.25]]),
        ("length, mm;width, mm\n1,5;2,5\n", ("length, mm", "width, mm"), [[1.5, 2.5]]),
        ('"a";"b"\n"1,5";"2"\n', "ab", [[1.5, 2]]),
        ("1,5;2,5;3,5\n4,5;5,5;6,5\n", ("x0", "x1", "x2"), [[1.5, 2.5, 3.5], [4.5, 5.5, 6.5]]),
        ("1,2\n3,4\n", ("x0", "x1"), [[1, 2], [3, 4]]),
        ("a; in mm,b\n1,2\n", ("a; in mm", "b"), [[1, 2]]),
        ("level; in mm\n1\n2\n", ("level; in mm",), [[1], [2]]),
        ("a\tb\n1,250\t0,5\n", "ab", [[1.25, 0.5]]),
    ],
)
def test_what_separates_cells_is_told_by_the_first_lines(tmp_path, text, columns, rows):
    table = load_data(csv(tmp_path, text))
    assert table.columns == tuple(columns)
    assert table.values.tolist() == rows


def test_decimal_commas_in_tsv_and_beside_text_that_is_left_out(tmp_path):
    assert load_data(csv(tmp_path, "flow\n1,5\n\n2,5\n", "flow.tsv")).values[:, 0].isnan().tolist() == [0, 1, 0]
    path = csv(tmp_path, "day;flow\n01.05;1,5\n02.05;2,5\n")
    assert load_data(path, ignore=["day"]).values[:, 0].tolist() == [1.5, 2.5]
    with pytest.raises(InputError, match=r"'1,5' in column 'flow' and '01\.05' in column 'day'; expected decimal"):
        load_data(path)


def test_a_long_line_is_one_cell_to_other_separators(tmp_path):
    """Longer than the largest cell that Python's reader takes."""
    names = [f"column_{i}_" + "a" * 1000 for i in range(200)]
    assert len(",".join(names)) > field_size_limit()
    text = ",".join(names) + "\n" + ",".join(["1.5"] * len(names)) + "\n"
    assert load_data(csv(tmp_path, text)).values.shape == (1, 200)


def test_row_counter_is_left_out_with_a_word(tmp_path):
    with pytest.warns(DataWarning, match="column 'rownames' only counts the rows"):
        table = load_data(csv(tmp_path, "rownames,a,b\n1,5,6\n2,7,9\n"))
    assert table.columns == ("a", "b")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "eruptions,waiting\n3,1\n2,about 80\n",
            r"column 'waiting', row 2: 'about 80' is not a number; leave it empty, or write NA, for missing",
        ),
        ("a,b\n1,2\n1,1_000\n", r"column 'b', row 2: '1_000' is not a number"),
        ("a,b\n1,2\n1,inf\n", r"column 'b', row 2: inf is not a finite number"),
        ("a,b\n1,2\n-1e400,2\n", r"column 'a', row 2: -inf is not a finite number"),
        ("a,b\n1,2\n1,2,3\n", r"row 2: the number of cells is 3; expected 2, separated by commas"),
        ("a;b\n1;2\n1;2;3\n", r"row 2: the number of cells is 3; expected 2, separated by semicolons"),
        ("a\tb\n1\t2\n1,5\n", r"row 2: the number of cells is 1; expected 2, separated by tabs"),
        ("a\tb\n1\t2,500\n", r"column 'b' \('2,500' in row 1\) does not hold numbers"),
        ("a,b\n1,2\n1\n", r"row 2: the number of cells is 1; expected 2, separated"),
        ("", r"the file is empty"),
        ("\n\n", r"the file is empty"),
        ("a,b\n", r"the data are empty, with shape \(0, 2\)"),
        ("a,a\n1,2\n", r"column 'a' appears more than once"),
    ],
)
def test_bad_text(tmp_path, text, sentence):
    with pytest.raises(InputError, match=sentence):
        load_data(csv(tmp_path, text))


def test_bad_files(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "two.npz", a=np.ones(2), b=np.ones(2))
    np.save(tmp_path / "text.npy", np.array(["a", "b"]))
    np.save(tmp_path / "cube.npy", np.ones((2, 2, 2)))
    np.save(tmp_path / "wide.npy", np.ones((0, 2**62), dtype=bool))  # which would name so many columns
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04nonsense")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x81")
    (tmp_path / "broken.parquet").write_bytes(b"nonsense")
    expected = {
        "objects.npy": "not a plain numeric NumPy file",
        "two.npz": "contains the arrays a, b; expected exactly one, or one named x",
        "text.npy": "expected numbers",
        "cube.npy": r"shape \(2, 2, 2\); expected \(num_rows, num_features\)",
        "wide.npy": r"the data are empty, with shape \(0, 4611686018427387904\)",
        "broken.npz": "not a plain numeric NumPy file",
        "binary.csv": "not delimited text in UTF-8",
        "broken.parquet": "not a Parquet file",
    }
    pytest.importorskip("pyarrow")
    for name, sentence in expected.items():
        with pytest.raises(InputError, match=sentence):
            load_data(tmp_path / name)


def test_missing_file_suggests_near_names(tmp_path):
    csv(tmp_path, "a\n1\n", "measurements.csv")
    with pytest.raises(InputError, match=r"there is no such file; .*did you mean '.*measurements\.csv'\?"):
        load_data(tmp_path / "measurement.csv")
    with pytest.raises(InputError, match="did you mean 'faithful'"):
        load_data("faithfull")
    with pytest.raises(InputError, match=r"cannot read files that end in '\.doc'"):
        load_data(csv(tmp_path, "1", "a.doc"))


def test_frames_with_text_and_nulls():
    frame = pd.DataFrame({"a": pd.array([1, None], dtype="Int64"), "b": [True, False]})
    assert load_data(frame).values.isnan().tolist() == [[False, False], [True, False]]
    with pytest.raises(InputError, match=r"column 'when' \('2020-01-01 00:00:00' in row 1\) does not hold numbers"):
        load_data(pd.DataFrame({"when": pd.to_datetime(["2020-01-01"])}))


def test_arrays_that_are_no_tables():
    with pytest.raises(InputError, match="its rows differ in length"):
        load_data([[1, 2], [3]])
    with pytest.raises(InputError, match="inf is not a finite number"):
        load_data(Table(torch.tensor([[torch.inf], [1.0]]), ("a",), "t"))
    with pytest.raises(InputError, match=r"column 'a' \('1j' in row 1\) does not hold numbers"):
        load_data(pd.DataFrame({"a": [1j, 2j]}))


TREES = "tree,day,girth,height,kind\noak,1 May,3.5,20,0\nash,2 May,2.5,18,1\noak,3 May,,25,\n"


def test_columns_are_chosen_by_name(tmp_path):
    path = csv(tmp_path, TREES)
    for given in (path, pd.read_csv(path)):
        assert load_data(given, ignore=["tree", "day", "kind"]).columns == ("girth", "height")
        table = load_data(given, only=["height", "girth"], target="kind")
        assert table.columns == ("height", "girth")
        assert table.values[:2].tolist() == [[20, 3.5], [18, 2.5]]
        assert table.target.tolist() == [0, 1, -1]
        assert load_data(given, ignore=["tree", "day"], labels="kind").columns == ("girth", "height")
    assert load_data("faithful", only=["waiting"]).columns == ("waiting",)
    assert load_data("iris", ignore=["sepal length (cm)"], labels="target").values.shape == (150, 3)
    assert load_data(load_data("faithful"), ignore=["waiting"]).columns == ("eruptions",)
    assert load_data(np.ones((2, 3)), ignore=["x1"]).columns == ("x0", "x2")


def test_labels_may_be_words(tmp_path):
    path = csv(tmp_path, "a,kind\n1,oak\n2, ash\n3,NA\n4,oak\n")
    for given in (path, pd.read_csv(path), pd.read_csv(path, skipinitialspace=True, dtype={"kind": "category"})):
        table = load_data(given, labels="kind")
        assert table.labels.tolist() == [1, 0, -1, 1]
        assert table.label_names == ("ash", "oak")
        assert table.columns == ("a",)
        assert load_data(table).label_names == ("ash", "oak")
        assert load_data(table, labels=[0, 1, 1, 0]).label_names is None
        assert load_data(given, target="kind").target.tolist() == [1, 0, -1, 1]
    with pytest.raises(InputError, match=r"column 'kind' \('oak' in row 1\) does not hold numbers"):
        load_data(path, weights="kind")
    assert load_data(csv(tmp_path, "a,kind\n1,0\n2,1\n"), labels="kind").label_names is None
    with pytest.raises(InputError, match="column 'kind', row 3: 'x' is not a number"):
        load_data(csv(tmp_path, "a,kind\n1,0\n2,1\n3,x\n"), labels="kind")


def test_a_row_counter_that_is_asked_for_stays(tmp_path):
    path = csv(tmp_path, "rownames,a\n1,5\n2,7\n")
    assert load_data(path, only=["rownames", "a"]).columns == ("rownames", "a")
    assert load_data(path, ignore=["rownames"]).columns == ("a",)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"only": ["girt"]}, "only='girt': expected some of the columns tree, .*; did you mean 'girth'"),
        ({"ignore": ["when"]}, "ignore='when': expected some of the columns tree, day, girth, height, kind"),
        ({"ignore": "tree"}, r"ignore='tree': expected a list of columns, such as ignore=\['tree'\]"),
        ({"ignore": ["tree", "day", "girth", "height", "kind"]}, "no data column is left of tree, day"),
        ({"only": ["girth", "girth"]}, "column 'girth' appears more than once"),
        (
            {},
            r"columns 'tree' \('oak' in row 1\) and 'day' \('1 May' in row 1\) do not hold numbers; leave them "
            r"out with --ignore tree,day \(in Python ignore=\['tree', 'day'\]\), or encode categories as 0, 1, 2, \."
            r"\.\.",
        ),
    ],
)
def test_mistakes_with_columns(tmp_path, options, sentence):
    with pytest.raises(InputError, match=sentence):
        load_data(csv(tmp_path, TREES), **options)


def test_many_columns_of_text_are_named_in_one_sentence(tmp_path):
    names = [f"c{i}" for i in range(9)]
    text = ",".join(names) + "\n" + ",".join("wxyzwxyzw") + "\n"
    with pytest.raises(InputError, match=r"'c4' \('w' in row 1\) and 4 others do not .* --ignore c0,c1,.*,c8 "):
        load_data(csv(tmp_path, text))


def test_columns_that_lose_their_spread_are_told():
    seconds = np.array([[1.6e9 + i] for i in range(50)])
    with pytest.warns(DataWarning, match=r"column 'x0' varies too little around its mean for torch\.float32"):
        load_data(seconds)
    load_data(seconds, dtype=torch.float64)


def test_too_little_to_learn_from():
    with pytest.raises(InputError, match="1 row is too few to train on"):
        check_training_table(load_data([[1.0, 2.0]]))
    with pytest.raises(InputError, match="column 'x1' has no observed value"):
        check_training_table(load_data([[1.0, np.nan], [2.0, np.nan]]))
    with pytest.warns(DataWarning, match=r"column 'x1' is constant \(3\)"):
        check_training_table(load_data([[1.0, 3.0], [2.0, 3.0]]))


def test_classes_are_kept_beside_the_data(tmp_path):
    frame = pd.DataFrame({"a": [1.0, 2.0, 3.0], "kind": [0, 2, None]})
    table = load_data(frame, target="kind")
    assert table.columns == ("a",)
    assert table.target.tolist() == [0, 2, -1]
    assert table.labels is None
    assert load_data(table).target is table.target
    assert load_data(table, target=[1, 1, 1]).target.tolist() == [1, 1, 1]
    assert torch.equal(load_data(table, labels="target").labels, table.target)
    assert load_data("iris", labels="target").labels.bincount().tolist() == [50, 50, 50]
    assert table.fingerprint == load_data(frame[["a"]]).fingerprint, "no story sees them"
    with pytest.raises(InputError, match=r"target, row 1: 0\.5: expected 0, 1, 2, \.\.\., or nothing"):
        load_data(frame, target=[0.5, 1, 1])
    with pytest.raises(InputError, match="target='c': expected one of the columns a, kind"):
        load_data(frame, target="c")


@pytest.mark.parametrize(("name", "sizes"), [("iris", [50, 50, 50]), ("wine", [59, 71, 48])])
def test_named_data_sets_have_their_classes(name, sizes):
    pytest.importorskip("sklearn")
    assert load_data(name).target.bincount().tolist() == sizes
    assert load_data("faithful").target is None


def test_a_table_in_its_own_type_is_not_copied():
    values = torch.rand(5000, 3)
    assert load_data(Table(values, ("a", "b", "c"), "t")).values.data_ptr() == values.data_ptr()
    pieces = Fingerprint(("a", "b", "c"), (5000, 3))
    for piece in values.split(7):
        pieces.add(piece)
    assert str(pieces) == Table(values, ("a", "b", "c"), "t").fingerprint
