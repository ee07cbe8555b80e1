"""Each deliberately broken fit is caught by the check that should catch it, and its healthy twin passes."""

import importlib.util
import sys
from pathlib import Path

import pytest

from pplgen.checks.registry import CHECKS, Verdict

_SPEC = importlib.util.spec_from_file_location("power", Path(__file__).parent / "power.py")
power = sys.modules["power"] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(power)
DOCUMENT = Path(__file__).parents[2] / "docs" / "checks.md"


@pytest.mark.parametrize("seed", power.SEEDS)
@pytest.mark.parametrize("case", power.CASES, ids=lambda case: case.what)
def test_broken_fits_are_caught_and_healthy_ones_pass(case, seed):
    broken, healthy = case.judged(seed)
    assert case.check in CHECKS or case.check is power.overfitted
    # k-hat estimates of heavy tails may lie on both sides of their threshold, which is a warning
    assert broken.verdict in (Verdict.WARN, Verdict.FAIL), broken
    assert broken.remedy
    assert healthy.verdict is Verdict.PASS, healthy


def test_the_documentation_lists_every_case():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert [case.what for case in power.CASES if f"| {case.what} |" not in text] == []
