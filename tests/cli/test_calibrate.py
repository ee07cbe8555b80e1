"""``pplgen calibrate STORY`` and ``pplgen fit --method nuts`` as a user runs them."""

import sys

import pytest

import pplgen
from pplgen.cli.main import main

SHORT = ("-n", "20", "--num-rows", "50", "--components", "1", "--covariance", "spherical")


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["pplgen", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code


def test_calibrate_prints_and_draws(monkeypatch, capsys, tmp_path):
    figure = tmp_path / "ranks.svg"
    assert run(monkeypatch, "calibrate", "gaussian-mixture", *SHORT, "--steps", 600, "--out", figure) == 0
    assert "20 data sets, 199 draws each" in capsys.readouterr().out
    assert figure.read_text().startswith("<?xml")
    assert run(monkeypatch, "calibrate", "gaussian-mixture", *SHORT, "--out", figure) == 2
    assert "exists already" in capsys.readouterr().err


def test_calibrate_exits_with_one_where_it_fails(monkeypatch, capsys):
    # in one dimension three components overlap, for which a mean-field guide is too narrow
    options = ("-n", "40", "--num-rows", "150", "--components", "3", "--features", "1", "--steps", "100")
    assert run(monkeypatch, "calibrate", "gaussian-mixture", *options) == 1
    assert "fail" in capsys.readouterr().out


def test_calibrate_around_the_posterior(monkeypatch, capsys):
    options = ("-n", "20", "--components", "1", "--covariance", "spherical", "--posterior")
    assert run(monkeypatch, "calibrate", "gaussian-mixture", *options) == 2
    assert "--posterior: expected --data DATA" in capsys.readouterr().err
    assert run(monkeypatch, "calibrate", "gaussian-mixture", *options, "--data", "faithful") == 0
    assert "20 data sets, 199 draws each" in capsys.readouterr().out


def test_fit_by_nuts_writes_chains(monkeypatch, capsys, tmp_path):
    options = ("--method", "nuts", "--steps", "20", "--restarts", "2", "--components", "1", "--covariance", "spherical")
    assert run(monkeypatch, "fit", "gaussian-mixture", "faithful", *options, "--out", tmp_path / "run") == 0
    assert "2 chains of 20 draws after 20 of warm-up" in capsys.readouterr().out
    assert pplgen.load(tmp_path / "run").draws.num_chains == 2
    assert (tmp_path / "run" / "fit.png").exists()
