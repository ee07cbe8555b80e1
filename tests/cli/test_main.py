"""The command line: what it prints, what it writes, and one sentence for every mistake."""

import contextlib
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import warnings
from types import SimpleNamespace
from unittest import mock

import pandas as pd
import pytest
import xarray as xr
from pplgen.models import collection

from pplgen.cli.main import main
from pplgen.fitting.load import load
from pplgen.story.signature import constructor_options, parse_options, parse_value

TWO_COLUMNS = "a,b\n" + "\n".join(f"{i % 7 + (i % 2) * 10},{i % 5}" for i in range(30)) + "\n"


def pplgen(*arguments, cwd, code=0):
    """Run a command in this process, and return its output."""
    out, err, ended = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "argv", ["pplgen", *map(str, arguments)]),
        mock.patch.dict(os.environ, {"COLUMNS": "120"}),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("default")
        try:
            main()
        except SystemExit as error:
            ended = error.code
    assert ended == code, err.getvalue()
    return SimpleNamespace(stdout=out.getvalue(), stderr=err.getvalue())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short fit of a user's own file, through the command line."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "own.csv").write_text(TWO_COLUMNS)
    arguments = ("--components", 2, "--steps", 60, "--draws", 20, "--prior-scale", "3,2")
    done = pplgen("fit", "gaussian-mixture", "own.csv", *arguments, cwd=folder)
    return folder, done


def test_a_fit_prints_its_summary_and_no_warnings(run):
    _, done = run
    assert "GaussianMixture on own, 30 rows" in done.stdout
    assert "mu[1, b]" in done.stdout
    assert "maximum number of steps was reached" in done.stdout
    assert "Written to runs/gaussian-mixture-own" in done.stdout
    assert done.stderr == ""


def test_a_run_directory_holds_parameters_header_posterior_and_picture(run):
    folder, _ = run
    directory = folder / "runs" / "gaussian-mixture-own"
    assert {"parameters.safetensors", "header.json", "posterior.nc", "fit.png"} <= {p.name for p in directory.iterdir()}
    header = json.loads((directory / "header.json").read_text())
    assert header["config"]["prior_scale"] == [3.0, 2.0]
    assert header["columns"] == ["a", "b"]
    assert (directory / "fit.png").read_bytes().startswith(b"\x89PNG")
    with xr.open_datatree(directory / "posterior.nc", engine="h5netcdf") as tree:
        assert tree["posterior"].sizes["draw"] == 20


def test_check_compares_all_files_with_their_digests(run, tmp_path):
    shutil.copytree(run[0] / "runs" / "gaussian-mixture-own", tmp_path / "run")
    draws = bytearray((tmp_path / "run" / "posterior.nc").read_bytes())
    draws[len(draws) // 2] ^= 1
    (tmp_path / "run" / "posterior.nc").write_bytes(draws)
    for command in ("check", "report"):
        done = pplgen(command, "run", cwd=tmp_path, code=2)
        assert "posterior.nc' is not the file that its header describes; restore it, or fit again" in done.stderr


def test_sample_and_predict_write_tables(run):
    folder, _ = run
    printed = pplgen("sample", "runs/gaussian-mixture-own", "-n", 4, cwd=folder).stdout.splitlines()
    assert printed[0] == "a,b"
    assert len(printed) == 5
    pplgen("predict", "runs/gaussian-mixture-own", "own.csv", "--out", "scores.csv", cwd=folder)
    scores = pd.read_csv(folder / "scores.csv")
    done = pplgen("predict", "runs/gaussian-mixture-own", "own.csv", "--out", "own.csv", cwd=folder, code=2)
    assert "'own.csv' exists already; give the name of a new file" in done.stderr
    assert (folder / "own.csv").read_text() == TWO_COLUMNS
    assert list(scores.columns) == ["row", "log_density", "component", "component_0", "component_1"]
    assert len(scores) == 30
    assert (scores["component_0"] + scores["component_1"] - 1).abs().max() < 1e-4
    assert (scores["component"] == (scores["component_1"] > 0.5)).all()


@pytest.fixture
def typed(tmp_path, monkeypatch, capsys):
    """Run the command line in this process, in a folder of its own, and return what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(line, code=0):
        monkeypatch.setattr(sys, "argv", ["pplgen", *shlex.split(line)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert ended.value.code == code, printed.err
        return printed

    return run


def test_columns_are_chosen_once_and_found_again_by_name(tmp_path, typed):
    """New rows may have other columns, text among them, in any order."""
    rows = [f"{i % 7 + (i % 2) * 10},tree {i},{i % 5},May" for i in range(30)]
    (tmp_path / "own.csv").write_text("\n".join(["a,tree,b,month", *rows]) + "\n")
    (tmp_path / "new.csv").write_text("month,b,remark,a\nMay,1,good,3\nJune,NA,,4\n")
    (tmp_path / "plain.csv").write_text("a,b\n3,1\n4,\n")
    (tmp_path / "less.csv").write_text("a,month\n3,May\n")
    fit, run = "fit gaussian-mixture own.csv --steps 30 --draws 10 --compile off", "runs/gaussian-mixture-own"
    typed(f"{fit} --ignore 'tree, month'")
    assert json.loads((tmp_path / run / "header.json").read_text())["columns"] == ["a", "b"]
    typed(f"{fit} --only b,a --out other")
    assert json.loads((tmp_path / "other" / "header.json").read_text())["columns"] == ["b", "a"]
    assert typed(f"predict {run} new.csv").out == typed(f"predict {run} plain.csv").out
    assert load(run, "own.csv").has_rows
    done = typed(f"predict {run} less.csv", code=2)
    assert done.err == "pplgen: there is no column 'b'; expected the training columns a, b\n"
    assert "leave them out with --ignore tree,month" in typed(f"{fit} --force", code=2).err
    done = typed("fit gaussian-mixture own.npy --stream --only a --force", code=2)
    assert done.err == "pplgen: --only: a stream reads all columns; write a file with only those to be fitted\n"


def test_labels_that_are_words_name_the_components(tmp_path, typed):
    rows = [f"{i % 7 + (i % 2) * 10},{('oak', 'ash')[i % 2] if i < 20 else ''},{i % 5}" for i in range(30)]
    (tmp_path / "own.csv").write_text("\n".join(["a,kind,b", *rows]) + "\n")
    (tmp_path / "new.csv").write_text("b,a\n2,3\n2,13\n")
    run = "runs/gaussian-mixture-own"
    typed("fit gaussian-mixture own.csv --labels kind --components 3 --steps 200 --draws 10 --compile off")
    assert json.loads((tmp_path / run / "header.json").read_text())["data"]["label_names"] == ["ash", "oak"]
    header, *scores = typed(f"predict {run} new.csv").out.splitlines()
    assert header == "row,log_density,component,component_ash,component_oak,component_2"
    assert [line.split(",")[2] for line in scores] == ["oak", "ash"]
    assert load(run, "own.csv", labels="kind").table.label_names == ("ash", "oak")


def test_list_names_every_story(tmp_path):
    printed = pplgen("list", cwd=tmp_path).stdout
    assert len(printed.splitlines()) == len(collection())
    assert "\ngaussian-mixture           Mixture of K Gaussians, the component" in printed


def test_help_shows_the_storys_options_without_importing_torch(tmp_path):
    text = pplgen("fit", "gaussian-mixture", "--help", cwd=tmp_path).stdout
    for expected in ("--components", "Number of components K", "--concentration", "--force", "--restarts"):
        assert expected in text
    assert "--num-features" not in text, "it is read from the data"
    for arguments in (["--help"], ["fit", "gaussian-mixture", "--help"], ["list"]):
        program = (
            f"import sys; sys.argv = ['pplgen', *{arguments!r}]\n"
            "from pplgen.cli.main import main\n"
            "try:\n    main()\nfinally:\n    assert not {'torch', 'pyro', 'arviz_base', 'pandas'} & set(sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert "AssertionError" not in done.stderr
        assert done.returncode == 0


def test_no_arguments_show_the_help(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pplgen"])
    with pytest.raises(SystemExit):
        main()
    printed = capsys.readouterr()
    assert len((printed.out + printed.err).splitlines()) > 10


@pytest.mark.parametrize("command", ["sample", "predict", "forecast", "encode", "traverse"])
def test_an_unwritable_output_file_is_reported_before_anything_is_read(tmp_path, monkeypatch, capsys, command):
    """The run is not even looked for."""
    (tmp_path / "old.csv").write_text("a\n")
    monkeypatch.chdir(tmp_path)
    data = [] if command in ("sample", "traverse") else ["faithful"]
    for out, sentence in (
        ("old.csv", "'old.csv' exists already; give the name of a new file"),
        ("nowhere/new.csv", "'nowhere/new.csv' cannot be written: No such file or directory"),
        ("old.csv/new.csv", "'old.csv/new.csv' cannot be written: Not a directory"),
    ):
        monkeypatch.setattr(sys, "argv", ["pplgen", command, "no-run", *data, "--out", out])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        assert capsys.readouterr().err == f"pplgen: {sentence}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["old.csv"]


def test_an_existing_run_is_not_overwritten_without_force(run):
    folder, _ = run
    header = folder / "runs" / "gaussian-mixture-own" / "header.json"
    before = header.read_bytes()
    done = pplgen("fit", "gaussian-mixture", "own.csv", cwd=folder, code=2)
    assert "already contains a run; give --force" in done.stderr
    assert header.read_bytes() == before
    pplgen("fit", "gaussian-mixture", "own.csv", "--steps", 3, "--draws", 2, "--force", cwd=folder)
    assert json.loads(header.read_text())["config"]["prior_scale"] is None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("fit gausian-mixture faithful", "No such command 'gausian-mixture'. Did you mean 'gaussian-mixture'"),
        (
            "fit mine.py:GrossErrors own.csv",
            "'mine.py:GrossErrors': expected the name of a story that pplgen ships; for your own, use Python: story = "
            "GrossErrors(...), pplgen.fit(story, 'data.csv').save('runs/own'); predict, report and others then accept "
            "--story mine.py:GrossErrors",
        ),
        ("calibrate mine.py:A", "for your own, use Python: story = A(...), pplgen.calibrate(story)"),
        ("fit gaussian-mixture faithfull", "did you mean 'faithful'?"),
        ("fit gaussian-mixture faithful --componets 3", "No such option: --componets"),
        ("fit gaussian-mixture faithful --components 0", "num_components=0: expected a whole number of at least 1"),
        ("fit gaussian-mixture faithful --components two", "Invalid value for '--components'"),
        ("fit gaussian-mixture faithful --components 300", "272 rows are too few for 300 components"),
        ("fit gaussian-mixture faithful --prior-scale a", "expected a number, or several separated by commas"),
        ("fit gaussian-mixture faithful --prior-mean 1,2,3", "one for each of 2 features"),
        ("fit gaussian-mixture faithful --steps 0", "steps=0: expected a whole number"),
        ("fit gaussian-mixture", "Missing argument 'DATA'"),
        ("fit gaussian-mixture text.csv", "column 'b', row 2: 'about 4' is not a number; leave it empty, or write NA"),
        (
            "fit gaussian-mixture words.csv",
            "column 'b' ('x' in row 1) does not hold numbers; leave it out with --ignore b",
        ),
        ("fit gaussian-mixture words.csv --only c", "only='c': expected some of the columns a, b"),
        ("fit gaussian-mixture infinite.csv", "column 'b', row 1: inf is not a finite number"),
        ("fit gaussian-mixture ragged.csv", "row 2: the number of cells is 3; expected 2, separated by"),
        ("fit gaussian-mixture empty.csv", "the file is empty"),
        ("fit gaussian-mixture single.csv", "1 row is too few to train on"),
        ("fit vae digits --hidden 20,x", "--hidden 20,x: expected whole numbers separated by commas"),
        ("fit vae faithful --encoder mine", "No such option: --encoder"),
        ("fit vae faithful", "row 1, column 1: 3.6 is not a pixel value; expected a number from 0 to 1"),
        ("sample nowhere --seed -1", "Invalid value for '--seed'"),
        ("fit gaussian-mixture faithful --device meta", "device='meta' is not available here"),
        ("sample nowhere", "'nowhere' contains no run: there is no header.json"),
        ("predict nowhere faithful", "'nowhere' contains no run"),
        ("unknown", "No such command 'unknown'"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(tmp_path, monkeypatch, capsys, arguments, sentence):
    files = {
        "text": "a,b\n1,2\n3,about 4\n",
        "words": "a,b\n1,x\n3,y\n",
        "infinite": "a,b\n1,inf\n3,4\n",
        "ragged": "a,b\n1,2\n3,4,5\n",
        "empty": "",
        "single": "a,b\n1,2\n",
    }
    for name, text in files.items():
        (tmp_path / f"{name}.csv").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pplgen", *arguments.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert sentence in printed.err
    assert printed.err.startswith("pplgen: ")
    assert len(printed.err.splitlines()) == 1
    assert printed.out == ""
    assert not (tmp_path / "runs").exists(), "nothing is left behind"


def test_a_warning_that_the_user_can_act_on_is_echoed(tmp_path):
    (tmp_path / "own.csv").write_text("a,b\n" + "\n".join(f"{i},7" for i in range(20)))
    done = pplgen("fit", "gaussian-mixture", "own.csv", "--steps", 3, "--draws", 2, cwd=tmp_path)
    assert done.stderr.splitlines() == [
        "pplgen: column 'b' is constant (7): it carries no information; consider leaving it out"
    ]


def test_options_come_from_the_constructor():
    (entry,) = (entry for entry in collection() if entry.name == "gaussian-mixture")
    options = {option.name: option for option in constructor_options(entry.definition, entry.base)}
    assert options["num_components"].flags == ("--components", "--num-components")
    assert options["num_components"].kind is int
    assert options["mean_precision"].default == 0.01
    assert all(option.help for option in options.values())


def test_widths_of_layers_are_numbers_with_commas():
    (entry,) = (entry for entry in collection() if entry.name == "vae")
    options = {option.name: option for option in constructor_options(entry.definition, entry.base)}
    assert not {"encoder", "decoder"} & set(options), "no text stands for a module"
    hidden = options["hidden"]
    assert [parse_value(hidden, text) for text in ("200,100", "50", "", hidden.typed_default)] == [
        [200, 100],
        [50],
        [],
        [200],
    ]
    assert parse_options("hidden=20,10;latents=3", tuple(options.values())) == {"hidden": [20, 10], "num_latents": 3}
    assert "``" not in options["activation"].help


def test_pictures_are_fitted_by_the_name_of_their_data_set(tmp_path):
    pytest.importorskip("sklearn")
    options = ("--hidden", "10,5", "--steps", 20, "--draws", 5)
    done = pplgen("fit", "vae", "digits-unit", *options, cwd=tmp_path)
    assert done.stderr == "", "constant margins of images cause no warning"
    assert done.stdout.startswith("VAE on digits-unit, 1,797 rows\nELBO -")
    header = json.loads((tmp_path / "runs" / "vae-digits-unit" / "header.json").read_text())
    assert header["config"]["hidden"] == [10, 5]
    assert header["columns"][:2] == ["pixel_0_0", "pixel_0_1"]


def test_version(tmp_path):
    import pplgen as package

    assert pplgen("--version", cwd=tmp_path).stdout.strip() == package.__version__


@pytest.fixture(scope="module")
def series_run(tmp_path_factory):
    """A fit of two series, of 40 and 30 steps, one column telling them apart."""
    folder = tmp_path_factory.mktemp("series")
    own = pd.DataFrame({"who": [1] * 40 + [2] * 30, "flow": [(i // 8 % 2) * 5 + i % 3 / 3 for i in range(70)]})
    own.loc[[5, 50], "flow"] = None
    own.to_csv(folder / "long.csv", index=False)
    options = ("--series", "who", "--steps", 20, "--draws", 10, "--known", '{"P": [[0.9, 0.1], [0.2, 0.8]]}')
    done = pplgen("fit", "gaussian-hmm", "long.csv", *options, cwd=folder)
    return folder, done


def test_series_are_fitted_from_a_long_table(series_run):
    folder, done = series_run
    assert done.stderr == ""
    assert "GaussianHMM on long, 2 series" in done.stdout
    header = json.loads((folder / "runs" / "gaussian-hmm-long" / "header.json").read_text())
    assert header["config"]["known"] == {"P": [[0.9, 0.1], [0.2, 0.8]]}
    assert header["columns"] == ["flow"]


def test_series_are_sampled_predicted_and_forecast_in_long_form(series_run):
    folder, _ = series_run
    run = "runs/gaussian-hmm-long"
    pplgen("sample", run, "-n", 3, "--out", "new.csv", cwd=folder)
    new = pd.read_csv(folder / "new.csv")
    assert list(new.columns) == ["series", "flow"]
    assert new.groupby("series").size().tolist() == [40, 40, 40]
    pplgen("predict", run, "long.csv", "--series", "who", "--out", "states.csv", cwd=folder)
    states = pd.read_csv(folder / "states.csv")
    names = ["flow_mean", "flow_sd", "flow_lower", "flow_upper"]
    assert list(states.columns) == ["series", "who", "step", "log_density", "regime", "regime_0", "regime_1", *names]
    assert states.groupby("series")["step"].max().tolist() == [40, 30]
    assert ((states["regime_1"] > 0.5) == (states["regime"] == 1)).all()
    pplgen("forecast", run, "long.csv", "--series", "who", "--horizon", 3, "--out", "ahead.csv", cwd=folder)
    ahead = pd.read_csv(folder / "ahead.csv")
    assert ahead["step"].tolist() == [41, 42, 43, 31, 32, 33]
    assert set(names) < set(ahead.columns)
    assert ahead.notna().all(axis=None)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("fit gaussian-hmm long.csv --series when --out other", "by='when': expected one of the columns who, flow"),
        (
            "fit gaussian-hmm long.csv --stream --out other",
            "--stream: GaussianHMM is a story for series and does not accept this option",
        ),
        ("fit gaussian-mixture faithful --series a", "--series a: GaussianMixture is not a story for series"),
        ("fit gaussian-hmm long.csv --known [1]", "--known [1]: expected a JSON object"),
        ("predict runs/gaussian-hmm-long long.csv --series when", "by='when'"),
        ("compare long.csv gaussian-hmm", "1 candidates: expected at least two to compare"),
    ],
)
def test_mistakes_with_series(series_run, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(series_run[0])
    monkeypatch.setattr(sys, "argv", ["pplgen", *arguments.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert sentence in printed.err
    assert len(printed.err.splitlines()) == 1


def test_a_forecast_is_of_what_is_seen_and_has_states_where_asked_for(tmp_path, typed):
    """Dates of a column are left out, and steps are counted."""
    lines = [f"2020-01-{i + 1:02d},{i % 5 + i / 10}" for i in range(31)]
    (tmp_path / "own.csv").write_text("\n".join(["day,flow", *lines]) + "\n")
    options = "--form autoregression --order 3 --steps 30 --draws 10 --compile off"
    typed(f"fit linear-gaussian-ssm own.csv --ignore day {options}")
    asked = "forecast runs/linear-gaussian-ssm-own own.csv --horizon 2"
    header, *rows = typed(asked).out.splitlines()
    assert header == "step,flow_mean,flow_sd,flow_lower,flow_upper"
    assert [row.split(",")[0] for row in rows] == ["32", "33"]
    longer = typed(f"{asked} --states").out.splitlines()
    assert longer[0].startswith(f"{header},state_0_mean")
    assert longer[1].startswith(rows[0])


def test_rows_have_no_forecast(run):
    folder, _ = run
    done = pplgen("forecast", "runs/gaussian-mixture-own", "own.csv", cwd=folder, code=2)
    assert "forecast: expected a state space story, not GaussianMixture" in done.stderr
    done = pplgen("predict", "runs/gaussian-mixture-own", "own.csv", "--series", "a", cwd=folder, code=2)
    assert "--series a: GaussianMixture is not a story for series" in done.stderr
