"""The page of a story on the command line, and the cards behind it."""

import ast
import inspect
import json
import sys
import textwrap

import pytest
from pplgen.models import Entry, calibrations, cards, collection

from pplgen import models
from pplgen.cli import show as show_command
from pplgen.cli.main import main
from pplgen.cli.show import calibration_lines, measured, story_page


def test_every_story_has_a_card_and_every_card_a_story():
    assert set(cards()) == {entry.name for entry in collection()}
    assert set(calibrations()) <= set(cards())


@pytest.mark.parametrize("entry", collection(), ids=lambda entry: entry.name)
def test_a_page_shows_the_card_and_references(entry):
    page = story_page(entry, cards()[entry.name], calibrations().get(entry.name))
    words = " ".join(page.split())
    for text in (cards()[entry.name].use, cards()[entry.name].avoid, cards()[entry.name].validated_against):
        assert " ".join(text.split()) in words
    assert "References\n----------" in page
    assert "~ " in page
    assert max(map(len, page.splitlines())) <= 120


def test_defaults_are_those_of_the_constructor():
    definition = ast.parse(
        "class A:\n def __init__(self, num_rows=3, *, hidden: Sequence[int]=(4, 5), known=None): ..."
    )
    entry = Entry("a", "A", "Rows.", definition.body[0], "x ~ Normal(0, 1)")
    lines = story_page(entry, cards()["vae"], None).splitlines()
    start = lines.index("Defaults")
    assert lines[start + 2 : start + 5] == ["num_rows  3", "hidden    4,5", "known     (unset)"]
    assert lines[-1] == "Nothing is recorded."


@pytest.mark.parametrize(
    ("name", "others"), [("vae", ["prior", "decode", "encode"]), ("ppca", []), ("linear-gaussian-ssm", [])]
)
def test_the_source_is_that_of_model_and_guide_and_what_they_call(name, others, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pplgen", "show", name, "--source"])
    with pytest.raises(SystemExit, match="0"):
        main()
    shown = capsys.readouterr().out
    (kind,) = (getattr(models, entry.class_name) for entry in collection() if entry.name == name)
    texts = []
    for function in (kind.model, kind.guide, *(getattr(kind, other) for other in others)):
        text = textwrap.dedent("".join(inspect.getsourcelines(inspect.unwrap(function))[0]))
        texts.append(text[text.index("def ") :].strip())
    assert shown.strip() == "\n\n".join(texts)


def test_measured_claims_are_shown(monkeypatch, tmp_path):
    claim = {"story": "ppca", "what": "log-likelihood in nats", "claimed": -3.5, "tolerance": 0.01, "verdict": "holds"}
    record = [claim | {"measured": -3.501}, claim | {"measured": None, "verdict": "not run"}, claim | {"story": "vae"}]
    monkeypatch.setattr(show_command, "MEASURED", tmp_path / "recorded.json")
    (tmp_path / "recorded.json").write_text(json.dumps(record), encoding="utf-8")
    page = story_page(collection()[0], cards()["ppca"], None, measured("ppca"))
    assert "- log-likelihood in nats: claimed -3.5, measured -3.5010; holds within 0.01" in page
    assert "- log-likelihood in nats: claimed -3.5; not run" in page
    assert page.count("log-likelihood in nats") == 2


def test_a_failed_calibration_names_what_failed():
    record = {"call": "...", "num_datasets": 9, "num_quantities": 2, "smallest_p": 1e-5, "verdict": "fail"}
    line = calibration_lines(record | {"not_uniform": ["z[0]"]})[-1]
    assert line.startswith("9 data sets, 2 quantities. Ranks uniform: no for z[0].")
    assert line.endswith("1e-05.")
    coverage = {"not_uniform": ["z[0]"], "coverage_of_90": {"z[0]": 0.75}}
    assert calibration_lines(record | coverage)[-1] == "90 % intervals cover the truth in 75 % (z[0])."
    assert calibration_lines({"refused": "it has no prior"}) == ["Not possible: it has no prior"]


def test_the_command_prints_the_page_and_names_what_is_near(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pplgen", "show", "ppca"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert "z_i       ~ Normal(0, I)" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["pplgen", "show", "pca"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "did you mean 'ppca'" in capsys.readouterr().err
