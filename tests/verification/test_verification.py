"""``pplgen verify``: what holds, what fails, what is not run, and that the documentation lists what the code claims."""

import json
import math
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from pplgen import models
from pplgen.cli.main import main
from pplgen.verification import data_sources, latents, record, run_claims
from pplgen.verification.claim import Claim, Estimate, Outcome, Result, measure
from pplgen.verification.data_sources import Sources

EVERY = [claim for claims in run_claims.FAMILIES.values() for claim in claims]
PAGE = Path(__file__).parents[2] / "docs" / "verified.md"
QUICK = ("faithful-full-2", "evidence-full", "nile-diffuse", "hmm-diag", "growth-enumerated", "wine-ppca", "bound-gap")
TWO = Claim("two", "arithmetic", "one and one", 2.0, 1e-9, "rounding", "Peano", lambda _: 1.0 + 1.0)


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["pplgen", "verify", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code


def only(monkeypatch, *claims):
    monkeypatch.setattr(run_claims, "FAMILIES", {"numbers": claims})


def rows_of(page):
    """Cells of every claim's row of a page."""
    lines = [line for line in page.splitlines() if line.startswith("| ") and "`" in line]
    return [tuple(line.strip("| ").split(" | ")) for line in lines]


def test_quick_claims_hold(monkeypatch, capsys, tmp_path):
    page, results = tmp_path / "verified.md", tmp_path / "verified.json"
    assert run(monkeypatch, *QUICK, "--markdown", page, "--json", results) == 0
    printed = capsys.readouterr().out
    assert "7 claims: 7 holds" in printed
    assert "-633.46456" in printed
    entries = {entry["claim"]: entry for entry in json.loads(results.read_text())}
    assert set(entries) == set(QUICK)
    for entry in entries.values():
        assert entry["verdict"] == "holds"
        assert abs(entry["measured"] - entry["claimed"]) <= entry["tolerance"]
        assert "torch" in entry["versions"]
    assert entries["nile-diffuse"]["measured"] != entries["nile-diffuse"]["claimed"], "more digits than are published"
    assert {cells[0].rpartition("`")[0].rpartition("`")[2] for cells in rows_of(page.read_text())} == set(QUICK)


@pytest.mark.parametrize("name", ["faithful-full-2", "evidence-full", "nile-diffuse", "growth-enumerated", "wine-ppca"])
def test_an_altered_value_fails(monkeypatch, capsys, name):
    """By twice its tolerance."""
    (claim,) = (claim for claim in EVERY if claim.name == name)
    only(monkeypatch, replace(claim, claimed=claim.claimed + 2 * claim.tolerance))
    assert run(monkeypatch) == 1
    printed = capsys.readouterr().out
    assert "1 claims: 1 fails" in printed
    assert claim.what in printed


def test_what_is_raised_is_a_failure_with_its_message(monkeypatch, capsys):
    def breaks(_):
        raise RuntimeError("the filter ran dry\nand more")

    only(monkeypatch, TWO, replace(TWO, name="dry", measure=breaks))
    assert run(monkeypatch) == 1
    printed = capsys.readouterr()
    assert "RuntimeError: the filter ran dry" in printed.out
    assert "Traceback" not in printed.out + printed.err
    assert "2 claims: 1 fails, 1 holds" in printed.out


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_fails(value):
    assert measure(replace(TWO, measure=lambda _: value), Sources()).outcome is Outcome.FAILS
    assert measure(replace(TWO, measure=lambda _: Estimate(2.0, value)), Sources()).outcome is Outcome.FAILS


def test_estimates_may_be_off_by_four_standard_errors():
    for off, outcome in ((0.39, Outcome.HOLDS), (0.41, Outcome.FAILS)):
        claim = replace(TWO, measure=partial(lambda off, _: Estimate(2 + off, 0.1), off))
        assert measure(claim, Sources()).outcome is outcome


def test_absent_data_and_packages_are_counted_and_no_failure(monkeypatch, capsys):
    monkeypatch.setattr(data_sources, "find_spec", lambda name: None)
    assert run(monkeypatch, "wine-ppca", "growth-kim", "bound-gap", "schools-mu") == 0
    printed = capsys.readouterr().out
    assert "1 not run: needs sklearn: pip install 'pplgen[data]'" in printed
    assert "1 not run: needs series/hamilton_rgnp.csv: --data FOLDER" in printed
    assert "1 not run: slow: --all" in printed
    assert "4 claims: 1 holds, 3 not run" in printed


def test_a_folder_brings_its_data(reference_data):
    for name in ("growth-kim", "hamilton-maximum"):
        (claim,) = (claim for claim in EVERY if claim.name == name)
        assert measure(claim, Sources(reference_data)).outcome is Outcome.HOLDS
    absent = measure(claim, Sources(reference_data / "posteriordb"))
    assert absent.note == "needs series/hamilton_rgnp.csv, which is not in the folder of --data"


def test_mistakes_are_said_before_anything_runs(monkeypatch, capsys, tmp_path):
    for arguments, sentence in (
        (["nile-difuse"], "did you mean 'nile-diffuse'"),
        (["--data", tmp_path / "nowhere"], "expected a folder"),
        (["--markdown", PAGE], "exists already; give --force or the name of a new file"),
        (["--json", tmp_path, "--force"], "is not a file and cannot be replaced"),
    ):
        assert run(monkeypatch, *arguments) == 2
        assert sentence in capsys.readouterr().err


def test_claims_are_chosen_by_story_family_or_name():
    assert [claim.name for claims in run_claims.select(["factor-analysis"]).values() for claim in claims] == [
        "gaps-factor-analysis",
        "wine-factor-analysis-fit",
    ]
    assert run_claims.select(["latents", "wine-ppca"]) == {"latents": latents.CLAIMS}
    assert set(run_claims.select(["nile-diffuse", "bound-gap"])) == {"series", "trust"}


def test_every_claim_is_named_once_and_says_where_its_number_comes_from():
    assert len({claim.name for claim in EVERY}) == len(EVERY)
    for claim in EVERY:
        assert claim.name == claim.name.lower()
        assert math.isfinite(claim.claimed)
        assert 0 <= claim.tolerance < math.inf
        assert claim.what
        assert claim.basis
        assert claim.source


def test_every_story_is_claimed_about():
    assert {entry.name for entry in models.collection()} <= {claim.subject for claim in EVERY}


def test_the_documentation_lists_the_claims_of_the_code():
    """Whatever was measured, or on what machine."""
    page = PAGE.read_text(encoding="utf-8")
    listed = [(what, about, claimed, basis, source) for what, about, claimed, _, _, _, basis, source in rows_of(page)]
    assert listed == [record.fixed_cells(claim) for claim in EVERY]
    assert page.startswith(record.INTRODUCTION)
    assert "| fails" not in page


def test_the_record_that_is_shipped_is_of_these_claims():
    entries = json.loads((Path(record.__file__).parent / "recorded.json").read_text(encoding="utf-8"))
    assert [entry["claim"] for entry in entries] == [claim.name for claim in EVERY]
    assert [entry["claimed"] for entry in entries] == [claim.claimed for claim in EVERY]
    assert not [entry["claim"] for entry in entries if entry["verdict"] == "fails" or entry["note"].startswith("slow")]


@pytest.mark.parametrize(
    ("claimed", "measured", "allowed", "expected"),
    [
        (-633.46456, -633.4645612, 1e-4, "-633.464561"),
        (0.0, 2.345e-13, 1e-8, "2.3e-13"),
        (3.0, 3.0, 0.0, "3"),
        (-205.793, -205.7922, 12.0, "-205.8"),
        (1.0, math.nan, math.nan, ""),
    ],
)
def test_digits_are_those_that_matter(claimed, measured, allowed, expected):
    result = Result(replace(TWO, claimed=claimed), Outcome.HOLDS, measured, allowed)
    assert record.numbers(result)[1] == expected


def test_tables_are_well_formed():
    results = {"numbers": [measure(TWO, Sources()), Result(replace(TWO, what="a | b"), Outcome.NOT_RUN, note="slow")]}
    lines = record.as_markdown(results).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert {line.replace(r"\|", "").count("|") for line in table} == {len(record.HEADINGS) + 1}
    assert lines[lines.index(table[0]) - 2] == "## Numbers"
