"""The tutorials, shortened: each runs as its reader would run it, and asserts what it says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIALS = sorted((Path(__file__).parents[1] / "tutorials").glob("[0-9]*.py"))


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_runs_and_holds_what_it_says(path, tmp_path):
    environment = {**os.environ, "PPLGEN_SMOKE": "1", "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    environment.pop("DISPLAY", None)  # with a screen, matplotlib warns that Agg shows no window
    command = [sys.executable, "-W", "error", str(path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert not list(tmp_path.iterdir()), "a tutorial leaves nothing behind"
