"""SIGKILL at eight moments of a fit, inside checkpoints too: each resume goes on, and the end is the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pplgen.storage import run_folder

KILLING = Path(__file__).parent / "killing.py"


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """What happened, and where."""
    if not hasattr(os, "fork"):
        pytest.skip("lives are forked")
    folder = tmp_path_factory.mktemp("killing")
    done = subprocess.run(
        [sys.executable, KILLING, folder],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), folder


def test_eight_lives_are_killed_and_each_is_resumed(outcome):
    happened, _ = outcome
    assert happened["whole"]["code"] == 0, happened["whole"]["said"]
    lives = happened["lives"]
    assert len(lives) == 8
    for life in lives:
        assert life["killed"], f"{life['how']}: {life['said']}"
        lines = [line for line in life["said"].splitlines() if line.startswith("pplgen:")]
        assert not [line for line in lines if "starts from the beginning" not in line]
    kept = [life["kept"] for life in lives]
    assert kept == sorted(kept), "no life loses what an earlier one kept"
    assert len(set(kept)) > 3, "lives go on from where others ended"
    assert happened["last"]["code"] == 0, happened["last"]["said"]


def test_the_end_is_that_of_the_run_that_nobody_disturbed(outcome):
    _, folder = outcome
    whole, killed = ((folder / name / run_folder.TENSORS).read_bytes() for name in ("whole", "killed"))
    assert whole == killed
    headers = [json.loads((folder / name / run_folder.HEADER).read_text()) for name in ("whole", "killed")]
    assert headers[0]["runs"] == headers[1]["runs"]


def test_nothing_is_left_of_the_killed_lives(outcome):
    _, folder = outcome
    assert {path.name for path in (folder / "killed").iterdir()} == {
        run_folder.TENSORS,
        run_folder.HEADER,
        run_folder.DRAWS,
        "fit.png",
    }
