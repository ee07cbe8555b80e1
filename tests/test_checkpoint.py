"""A fit that was killed continues, and ends where it would have ended."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from pplgen.models import GaussianMixture
from safetensors.torch import load_file

import pplgen
from pplgen import InputError, checkpoint

OPTIONS = {"steps": 500, "restarts": 2, "compile": "graph"}


class KilledError(Exception):
    """Stands for the end of a process."""


@pytest.fixture
def rows():
    return torch.randn(300, 2, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def often(monkeypatch):
    """Keep a checkpoint after every window of steps."""
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)


def killed_at(step, *arguments, **options):
    """Fit, and die after so many steps."""

    def progress(update):
        if update.step >= step:
            raise KilledError

    with pytest.raises(KilledError):
        pplgen.fit(*arguments, progress=progress, **options)


@pytest.mark.parametrize(("batch_size", "dtype"), [(None, torch.float64), (100, torch.float32)])
def test_a_killed_fit_ends_where_it_would_have(tmp_path, rows, often, batch_size, dtype):
    rows = rows.to(dtype)
    story, options = GaussianMixture(2, 2), {**OPTIONS, "batch_size": batch_size}
    expected = pplgen.fit(story, rows, progress=False, **options)
    killed_at(300, story, rows, checkpoint=tmp_path, **options)
    assert (tmp_path / checkpoint.NAME).exists()
    steps = []
    again = pplgen.fit(story, rows, checkpoint=tmp_path, progress=lambda update: steps.append(update.step), **options)
    assert min(steps) > 200  # the kill at 300 came before that window's checkpoint
    for run, other in zip(again.runs, expected.runs, strict=True):
        np.testing.assert_array_equal(run.history, other.history)
        assert run.elbo == other.elbo
    steps.clear()
    ended = pplgen.fit(story, rows, checkpoint=tmp_path, progress=lambda update: steps.append(update.step), **options)
    assert (steps, ended.elbo) == ([], again.elbo)
    longer = pplgen.fit(story, rows, checkpoint=tmp_path, progress=False, **{**options, "steps": 600})
    assert len(longer.best.history) == 600


def test_compiling_leaves_the_random_numbers_alone(tmp_path, rows, often):
    story, options = GaussianMixture(2, 2), {"steps": 400, "compile": "inductor"}
    expected = pplgen.fit(story, rows, progress=False, **options)
    killed_at(300, story, rows, checkpoint=tmp_path, **options)
    again = pplgen.fit(story, rows, checkpoint=tmp_path, progress=False, **options)
    np.testing.assert_array_equal(again.best.history, expected.best.history)


def test_a_streamed_fit_continues(tmp_path, rows, often, monkeypatch):
    monkeypatch.setattr("pplgen.blocks.BLOCK_VALUES", 60)  # ten blocks of thirty rows
    np.save(tmp_path / "rows.npy", rows.numpy())
    story, options = GaussianMixture(2, 2), {**OPTIONS, "batch_size": 100}
    stream = pplgen.stream_data(tmp_path / "rows.npy")
    expected = pplgen.fit(story, stream, progress=False, **options)
    killed_at(300, story, stream, checkpoint=tmp_path, **options)
    again = pplgen.fit(story, stream, checkpoint=tmp_path, progress=False, **options)
    np.testing.assert_array_equal(again.best.history, expected.best.history)


def test_a_checkpoint_of_another_fit_is_refused(tmp_path, rows, often):
    killed_at(300, GaussianMixture(2, 2), rows, checkpoint=tmp_path, **OPTIONS)
    before = (tmp_path / checkpoint.NAME).read_bytes()
    with pytest.raises(InputError, match="is of another fit"):
        pplgen.fit(GaussianMixture(2, 2), rows, seed=1, checkpoint=tmp_path, progress=False, **OPTIONS)
    with pytest.raises(InputError, match="is of another fit"):
        pplgen.fit(GaussianMixture(2, 2, concentration=2.0), rows, checkpoint=tmp_path, progress=False, **OPTIONS)
    assert (tmp_path / checkpoint.NAME).read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_a_damaged_checkpoint_is_one_sentence(tmp_path, rows, often, content):
    killed_at(300, GaussianMixture(2, 2), rows, checkpoint=tmp_path, **OPTIONS)
    path = tmp_path / checkpoint.NAME
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    with pytest.raises(InputError, match="cannot be read as a checkpoint"):
        pplgen.fit(GaussianMixture(2, 2), rows, checkpoint=tmp_path, progress=False, **OPTIONS)


def test_an_unwritable_directory_is_one_sentence(tmp_path, rows, often):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        pplgen.fit(GaussianMixture(2, 2), rows, checkpoint=tmp_path / "file", progress=False, **OPTIONS)
    checkpoint_path = tmp_path / "full"
    (checkpoint_path / f".unfinished-{checkpoint.NAME}").mkdir(parents=True)
    with pytest.warns(pplgen.errors.DataWarning, match="cannot be written"):
        fit = pplgen.fit(GaussianMixture(2, 2), rows, checkpoint=checkpoint_path, progress=False, **OPTIONS)
    assert len(fit.best.history) == 500
    with pytest.raises(InputError, match="compile='off' runs plain Pyro, which keeps none"):
        pplgen.fit(GaussianMixture(2, 2), rows, checkpoint=tmp_path, compile="off")


def test_a_killed_command_resumes(tmp_path):
    """SIGKILL after the first checkpoint; --resume goes on from there and writes the run."""
    code = "import pplgen.checkpoint as c; c.SECONDS = 0.0; from pplgen.cli import main; main()"
    run = tmp_path / "run"
    options = ["--steps", "3000", "--compile", "graph", "--batch-size", "100", "--draws", "20"]
    command = [sys.executable, "-c", code, "fit", "gaussian-mixture", "faithful", "--out", str(run), *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (run / checkpoint.NAME).exists() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (run / "header.json").exists()
    assert len(load_file(run / checkpoint.NAME)["history0"]) >= 100
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert "holds a killed run; continue it with --resume" in again.stderr
    # with another seed it is another fit, so what is resumed is what was kept
    other = subprocess.run([*command, "--resume", "--seed", "1"], capture_output=True, text=True, check=False)
    assert "is of another fit" in other.stderr
    resumed = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=True)
    assert "ELBO" in resumed.stdout
    whole = pplgen.fit(GaussianMixture(2, 2), "faithful", steps=3000, compile="graph", batch_size=100, progress=False)
    assert pplgen.load(run).elbo == whole.elbo
    assert not (run / checkpoint.NAME).exists()
