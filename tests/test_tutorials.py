"""The tutorials, shortened: each runs as its reader would run it, without a warning, and asserts what it says."""

import runpy
import warnings
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch

TUTORIALS = sorted((Path(__file__).parents[1] / "tutorials").glob("[0-9]*.py"))


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_runs_and_holds_what_it_says(path, tmp_path, monkeypatch, readers_seeds):
    monkeypatch.setenv("PPLGEN_SMOKE", "1")
    monkeypatch.chdir(tmp_path)
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    try:
        with mpl.rc_context(), warnings.catch_warnings():
            mpl.use("Agg")  # which has no window to show figures in, and says so
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", message="FigureCanvasAgg is non-interactive")
            runpy.run_path(str(path), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        plt.close("all")
    assert not list(tmp_path.iterdir()), "a tutorial leaves nothing behind"
