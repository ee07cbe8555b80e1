"""The README's code runs, its links exist, and its table agrees with the stories' cards."""

import re
import shlex
import sys
from pathlib import Path

import pytest

import pplgen
from pplgen import checks, models
from pplgen.cli.main import main
from pplgen.cli.show import calibration_word

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_every_block_is_run():
    """The shell blocks, which install the package, are run by .ci/run."""
    assert re.findall(r"^```(\w+)$", README, flags=re.MULTILINE) == ["sh", "sh", "console", "python"]


def test_python_example_runs(capsys):
    (block,) = blocks("python")
    assert len([line for line in block.splitlines() if line.strip()]) <= 15
    exec(compile(block, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "elpd_loo" in printed
    assert "GaussianMixture on faithful" in printed


def test_commands_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = pplgen.load_data("faithful").values[::4]
    for name, some in (("geyser.csv", rows), ("new.csv", rows[:3])):
        lines = ["eruptions,waiting", *(f"{a:.3f},{b:.0f}" for a, b in some.tolist())]
        Path(name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    (block,) = blocks("console")
    # whether and where fits end is for other tests
    for name, fewer in (("DRAWS", 1000), ("WEIGHTED_DRAWS", 100)):
        monkeypatch.setattr(checks.inputs, name, fewer)
    for line in block.splitlines():
        assert line.startswith("$ ")
        words = shlex.split(line[2:], comments=True)
        briefly = ["--steps", "100", "--compile", "graph", "--optimiser", "adam", "--draws", "200"]
        monkeypatch.setattr(sys, "argv", words + (briefly if words[1] == "fit" else []))
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0, capsys.readouterr().err
    assert Path("runs/gaussian-mixture-geyser/report.html").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "mu_k | Sigma_k ~ Normal(m, Sigma_k / kappa)" in printed


@pytest.mark.parametrize("entry", models.collection(), ids=lambda entry: entry.name)
def test_the_table_agrees_with_the_cards(entry):
    card = models.cards()[entry.name]
    link = f"[`{entry.name}`](models/{entry.name.replace('-', '_')}.py)"
    calibrated = calibration_word(models.calibrations().get(entry.name))
    row = f"| {link} | {card.rows} | {card.validated_against} | {calibrated} |"
    assert row in README.splitlines()


@pytest.mark.parametrize("target", re.findall(r"\]\((?!http)([^)]+)\)", README))
def test_links_exist(target):
    assert (ROOT / target).exists()
