"""The README's Python runs and its names exist."""

import re
from pathlib import Path

import pytest

from pplgen import models

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_example_runs(capsys):
    block = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)[0]
    assert len([line for line in block.splitlines() if line.strip()]) <= 15
    exec(compile(block, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "elpd_loo" in printed
    assert "GaussianMixture on faithful" in printed


def test_every_story_is_in_the_table():
    for entry in models.collection():
        assert f"[`{entry.name}`]" in README


@pytest.mark.parametrize("target", re.findall(r"\]\((?!http)([^)]+)\)", README))
def test_links_lead_somewhere(target):
    assert (ROOT / target).exists()
