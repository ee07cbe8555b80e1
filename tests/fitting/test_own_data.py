"""What people bring to ``fit`` and take away: names, precision, scales, identifiers, names like formulas."""

import io
import math

import numpy as np
import pandas as pd
import pytest
import torch
from pplgen.models import GaussianMixture
from scipy import stats

import pplgen
from pplgen.cli.main import app
from pplgen.errors import DataWarning, InputError
from pplgen.inference.model_arguments import bare_arguments
from pplgen.plots.fit import plot_fit

QUICK = {"progress": False, "compile": "off", "steps": 3}


def two_groups(num_rows=60):
    rng = np.random.default_rng(0)
    return np.concatenate([rng.normal(size=(num_rows // 2, 2)), rng.normal(5, 1, size=(num_rows // 2, 2))])


@pytest.fixture(scope="module")
def named():
    """A fit with names, and its rows."""
    rows = pd.DataFrame(two_groups() * [1.0, 100.0], columns=["short", "long"])
    return pplgen.fit(GaussianMixture(2, 2), rows, **QUICK), rows


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow", "dictionary", "records"])
def test_columns_are_matched_by_name(named, library):
    """In another order, and beside others, rows have the same densities."""
    fit, rows = named
    other = rows.assign(extra="text")[["extra", "long", "short"]]
    if library == "polars":
        other = pytest.importorskip("polars").DataFrame({name: other[name].to_numpy() for name in other})
    elif library == "pyarrow":
        other = pytest.importorskip("pyarrow").table({name: other[name].to_numpy() for name in other})
    elif library in ("dictionary", "records"):
        other = other.to_dict("list" if library == "dictionary" else "records")
    torch.testing.assert_close(fit.log_likelihood(other), fit.log_likelihood(rows), rtol=0, atol=0)


def test_names_that_differ_are_refused_and_absent_ones_warned_of(named):
    fit, rows = named
    with pytest.raises(InputError, match="there is no column 'short'; expected the training columns short, long"):
        fit.log_likelihood(rows.rename(columns={"short": "brief"}))
    with pytest.warns(DataWarning, match="the rows have no column names, but the fit has: .* in the order short, long"):
        by_position = fit.log_likelihood(rows.to_numpy())
    torch.testing.assert_close(by_position, fit.log_likelihood(rows), rtol=0, atol=0)
    unnamed = pplgen.fit(GaussianMixture(2, 2), rows.to_numpy(), **QUICK)
    with pytest.warns(DataWarning, match="the fit has no column names: columns are taken in the order short, long"):
        unnamed.log_likelihood(rows)


def test_small_changes_of_large_numbers_stay():
    """Seconds since 1970: float32 has a step of 128 there, float64 one of 2.4e-7."""
    seconds = 1.7e9 + np.random.default_rng(0).normal(size=200)
    with pytest.warns(
        DataWarning, match="varies too little .* for torch.float32; the table is read with dtype='float64'"
    ):
        fit = pplgen.fit(GaussianMixture(1, 1), seconds, compile="graph", progress=False)
    assert fit.pair.dtype == torch.float64
    density = stats.norm(seconds.mean(), seconds.std()).logpdf(seconds)
    # the predictive density averages over a posterior that is 1 / 200 wide: it differs by less than .05 nats of a row
    np.testing.assert_allclose(fit.log_likelihood(seconds).numpy(), density, atol=0.1)
    with pytest.warns(DataWarning, match="read it with dtype='float64'"):
        assert pplgen.load_data(seconds, dtype="float32").values.dtype == torch.float32


@pytest.mark.parametrize("scale", [1e-60, 1e-27, 1e27, 1e60])
def test_a_fit_in_other_units_is_the_same(scale):
    """The ELBO of x s is that of x minus the number of entries times log s, exactly; float64 rounds at 1e-13."""
    x = two_groups()
    plain = pplgen.fit(GaussianMixture(2, 2), x, dtype="float64", **QUICK)
    with pytest.warns(DataWarning, match="has a range of .*, outside that of a fit in torch.float32"):
        scaled = pplgen.fit(GaussianMixture(2, 2), x * scale, **QUICK)
    assert scaled.elbo + x.size * math.log(scale) == pytest.approx(plain.elbo, abs=1e-6)


@pytest.mark.parametrize("scale", [1e-300, 1e-100, 1e100, 1e300])
def test_scales_that_no_type_can_square_are_refused(scale):
    with pytest.raises(
        InputError, match=r"column 'x0' has a range of .*; expected one from 1e-75 to 1e\+75 in torch.float64"
    ):
        pplgen.fit(GaussianMixture(2, 2), two_groups() * scale, **QUICK)
    with pytest.raises(InputError, match=r"expected one from 1e-09 to 1e\+09 in torch.float32: .* dtype='float64'"):
        pplgen.fit(GaussianMixture(2, 2), two_groups() * 1e-20, dtype="float32", **QUICK)


def test_types_are_named(tmp_path):
    fit = pplgen.fit(GaussianMixture(2, 2), two_groups(), dtype="float64", **QUICK)
    assert fit.sample(2).dtype == torch.float64
    fit.save(tmp_path / "run")
    assert pplgen.load(tmp_path / "run", two_groups()).pair.dtype == torch.float64
    assert pplgen.load(tmp_path / "run", dtype="float32").pair.dtype == torch.float32
    with pytest.raises(InputError, match="dtype='float16': expected one of float32, float64"):
        pplgen.fit(GaussianMixture(2, 2), two_groups(), dtype="float16")


def test_masked_arguments_of_bare_pairs():
    """NaN where a mask is; refused where there is no NaN, or where the model would not see the mask."""
    masked = np.ma.masked_equal([1.0, -999.0], -999.0)
    np.testing.assert_array_equal(bare_arguments(masked, None)[0].numpy(), [1.0, np.nan])
    with pytest.raises(InputError, match="a masked array of int64 has no missing value"):
        bare_arguments(masked.astype("int64"), None)
    with pytest.raises(InputError, match="a masked array within a container would lose its mask"):
        bare_arguments({"y": masked}, None)
    assert bare_arguments(np.ones(2), None, dtype=torch.float64)[0].dtype == torch.float64
    with pytest.warns(DataWarning, match="the array varies too little around its mean for torch.float32"):
        bare_arguments(1.7e9 + np.arange(3.0), None)


@pytest.mark.parametrize("mark", [-999.0, 9999.0])
def test_numbers_that_mark_missing_values_are_named(mark):
    x = two_groups()
    x[3, 1] = x[9, 1] = mark
    with pytest.warns(DataWarning, match=f"column 'x1': {mark:g} occurs 2 times, and other values are from "):
        pplgen.fit(GaussianMixture(2, 2), x, **QUICK)
    ages = np.random.default_rng(0).integers(20, 99, size=(60, 1)).astype(float)
    ages[0] = 99.0
    pplgen.fit(GaussianMixture(1, 1), ages, **QUICK)  # 99 is no wonder there


def test_labels_counted_from_one_are_told():
    with pytest.warns(DataWarning, match="labels: they are counted from 0, and these are 1 to 2; subtract 1"):
        pplgen.load_data(np.ones((4, 2)), labels=[1, 2, 1, 2])


def test_complete_rows_need_no_imputation(named):
    fit, rows = named
    drawn = fit.impute(rows[:5], draws=3)
    assert torch.equal(drawn, torch.tensor(rows[:5].to_numpy(), dtype=torch.float32).expand(3, 5, 2))
    assert fit.impute(rows.where(rows > rows.quantile(0.1)), draws=3).isfinite().all()


def test_names_with_dollars_are_drawn_as_they_stand():
    x = pd.DataFrame(two_groups(), columns=["$/unit_$", "$\\frac$"])
    fit = pplgen.fit(GaussianMixture(2, 2), x, **QUICK)
    figure = plot_fit(fit, fit.to_datatree(50))
    figure.savefig(io.BytesIO(), format="svg")
    labels = {axes.get_xlabel() for axes in figure.axes} | {axes.get_ylabel() for axes in figure.axes}
    assert r"\$/unit_\$" in labels


def test_anomalies_of_any_story_with_a_density(named):
    """A row far away is flagged, of those that calibrate at most a tenth; the score is minus the log density."""
    fit, rows = named
    far = pd.concat([rows[:5], pd.DataFrame({"short": [90.0], "long": [-9e3]})])
    table = pplgen.load_data(far.assign(name=list("abcdef")), id="name")
    scores = fit.anomaly(table, held_out=rows, rate=0.1, seed=0)
    assert bool(scores["flagged"][-1])
    assert scores["name"].values.tolist() == list("abcdef")
    expected = -fit.log_likelihood(far, draws=200, seed=0).double()
    np.testing.assert_allclose(scores["score"].values, expected.numpy(), rtol=1e-6)


TABLE = "name,long,when,short\noak,100,1 May,1\nash,,2 May,2\nelm,300,3 May,\n"


@pytest.fixture
def run(named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named[0].save("run")
    named[1].to_csv("held.csv", index=False)
    (tmp_path / "new.csv").write_text(TABLE)
    return tmp_path


def command(line, capsys):
    app(line.split(), standalone_mode=False)
    printed = capsys.readouterr()
    return pd.read_csv(io.StringIO(printed.out)), printed.err


def test_identifiers_stand_beside_their_rows(run, capsys):
    for line in ("predict run new.csv --id name", "anomaly run new.csv --held-out held.csv --rate .1 --id name"):
        if "anomaly" in line:
            (run / "held.csv").write_text("name," + (run / "held.csv").read_text().replace("\n", "\n-,")[:-2])
        table, told = command(line, capsys)
        assert list(table.columns[:2]) == ["row", "name"]
        assert table["name"].tolist() == ["oak", "ash", "elm"]
    assert "scores of the 60 held-out rows, in nats: median " in told
    with pytest.raises(InputError, match="id='nme': expected one of the columns name, long, when, short; did you mean"):
        command("predict run new.csv --id nme", capsys)


def test_impute_returns_the_whole_table(run, capsys):
    table, _ = command("impute run new.csv -n 2", capsys)
    given = pd.read_csv(io.StringIO(TABLE))
    assert list(table.columns) == ["draw", *given.columns]
    for _, one in table.groupby("draw"):
        whole = one.drop(columns="draw").reset_index(drop=True)
        assert whole.notna().all(axis=None)
        pd.testing.assert_frame_equal(whole.where(given.notna()), given, check_dtype=False)


def test_series_keep_their_names(tmp_path):
    long = pd.DataFrame({"who": ["b", "b", "a", "a"], "y": [1.0, 2.0, 3.0, 4.0]})
    table = pplgen.load_series(long, by="who")
    assert table.carried["who"].tolist() == ["b", "a"]
    long.to_csv(tmp_path / "long.csv", index=False)
    assert pplgen.load_series(tmp_path / "long.csv", by="who").carried["who"].tolist() == ["b", "a"]
