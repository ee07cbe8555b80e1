"""Ranking stories by predictive density, and Schwarz's criterion."""

import sys

import arviz_stats
import numpy as np
import pytest
import torch
from pplgen.models import GaussianMixture

import pplgen
from pplgen.cli import main as cli
from pplgen.errors import InputError
from pplgen.fitting.compare import bic


@pytest.fixture(scope="module")
def one_fit():
    return pplgen.fit(GaussianMixture(1, 2), "faithful", progress=False)


def test_two_components_beat_one_on_old_faithful(faithful_fit, one_fit):
    ranked = pplgen.compare({"one": one_fit, "two": faithful_fit}, draws=500, with_bic=True)
    assert list(ranked.index) == ["two", "one"]
    two = arviz_stats.loo(faithful_fit.to_datatree(500))
    # another 500 draws: the estimates of elpd differ by less than .5
    assert ranked.loc["two", "elpd"] == pytest.approx(two.elpd, abs=0.5)
    assert 100 < ranked.loc["one", "elpd_diff"] < 200
    assert 0 < ranked.loc["one", "dse"] < 30
    # mclust's criterion of the best two components, with its sign turned: 2322.192
    assert ranked.loc["two", "bic"] == pytest.approx(2322.192, abs=2.0)


def test_schwarz_counts_free_parameters(one_fit, faithful):
    """One normal component has 5; at the posterior mean the likelihood is within .5 of its maximum, -1289.797."""
    least = 2 * 1289.79675 + 5 * np.log(272)
    assert least < bic(one_fit) < least + 1.0


def test_stories_are_fitted_here():
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    ranked = pplgen.compare(
        {"a": GaussianMixture(1, 2), "b": GaussianMixture(1, 2, covariance="diag")},
        x,
        draws=200,
        steps=300,
        progress=False,
    )
    assert set(ranked.index) == {"a", "b"}
    assert "bic" not in ranked


def test_what_cannot_be_compared(faithful_fit):
    with pytest.raises(InputError, match="1 candidates: expected at least two"):
        pplgen.compare({"only": faithful_fit})
    with pytest.raises(InputError, match="candidate 'b' is not fitted yet: expected data"):
        pplgen.compare({"a": faithful_fit, "b": GaussianMixture(1, 2)})
    other = pplgen.fit(GaussianMixture(1, 2), torch.randn(20, 2), steps=5, progress=False)
    with pytest.raises(InputError, match="'a' and 'b' were fitted to different data"):
        pplgen.compare({"a": faithful_fit, "b": other})


def test_on_the_command_line(tmp_path, monkeypatch, capsys):
    rows = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "rows.npy", rows.numpy())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")  # names are folded where there is less room
    first, second = "gaussian-mixture:components=1", "gaussian-mixture:components=1;covariance=tied"
    monkeypatch.setattr(sys, "argv", ["pplgen", "compare", "rows.npy", first, second, "--bic"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr().out
    assert not ended.value.code
    assert "2 candidates on rows, 40 rows" in printed
    assert first in printed
    assert "bic" in printed


@pytest.mark.parametrize(
    ("candidate", "sentence"),
    [
        ("gausian-mixture", "story 'gausian-mixture': expected one of"),
        ("gaussian-mixture:colour=red", "option 'colour': expected name=value with one of components"),
        ("gaussian-mixture:components=many", "components=many: expected a value of type int"),
    ],
)
def test_mistakes_on_the_command_line(monkeypatch, capsys, candidate, sentence):
    monkeypatch.setattr(sys, "argv", ["pplgen", "compare", "faithful", candidate, candidate])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err
