"""A fit that was killed continues, and ends where it would have ended."""

import functools
import shutil
import signal
import sys
from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pplgen.models import PPCA, GaussianMixture
from safetensors.torch import load_file

import pplgen
from pplgen import InputError
from pplgen.cli.main import main
from pplgen.inference import engine
from pplgen.inference import train as train_module
from pplgen.inference.batched_restarts import _Run
from pplgen.inference.training_result import StopReason
from pplgen.storage import checkpoint, run_folder

mixture = functools.partial(GaussianMixture, 2, 2, covariance="spherical")
OPTIONS = {"steps": 400, "restarts": 2, "compile": "graph", "optimiser": "adam"}


class KilledError(Exception):
    """Stands for the end of a process."""


@pytest.fixture(scope="module")
def rows():
    return torch.randn(300, 2, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def undisturbed(rows):
    """The fit that nobody kills."""
    return pplgen.fit(mixture(), rows, progress=False, **OPTIONS)


@pytest.fixture(scope="module")
def interrupted(rows, tmp_path_factory):
    """Folder of a fit that was killed at step 300, with checkpoints of steps 200 and 100."""
    folder = tmp_path_factory.mktemp("interrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint.Checkpoint, "due", lambda self: True)
        killed_at(300, mixture(), rows, checkpoint=folder, **OPTIONS)
    return folder


@pytest.fixture
def often(monkeypatch):
    """Keep a checkpoint after every window of steps."""
    monkeypatch.setattr(checkpoint.Checkpoint, "due", lambda self: True)


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
    story, options = mixture(), {**OPTIONS, "steps": 200, "batch_size": batch_size}
    expected = pplgen.fit(story, rows, progress=False, **options)
    killed_at(200, story, rows, checkpoint=tmp_path, **options)
    assert (tmp_path / checkpoint.NAME).exists()
    steps = []
    again = pplgen.fit(story, rows, checkpoint=tmp_path, progress=lambda update: steps.append(update.step), **options)
    assert min(steps) > 100  # the kill at 200 came before that window's checkpoint
    for run, other in zip(again.runs, expected.runs, strict=True):
        np.testing.assert_array_equal(run.history, other.history)
        assert run.elbo == other.elbo
    steps.clear()
    ended = pplgen.fit(story, rows, checkpoint=tmp_path, progress=lambda update: steps.append(update.step), **options)
    assert (steps, ended.elbo) == ([], again.elbo)
    if batch_size is None:
        longer = pplgen.fit(story, rows, checkpoint=tmp_path, progress=False, **{**options, "steps": 300})
        assert len(longer.best.history) == 300


def test_compiling_leaves_the_random_numbers_alone(tmp_path, rows, often, monkeypatch):
    def mean(x):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 10.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0).to_event(1), obs=x)

    monkeypatch.setattr(engine, "NODES_PER_CALL", 200)  # fewer steps a call are sooner compiled
    options = {"steps": 200, "compile": "inductor", "optimiser": "adam"}
    expected = pplgen.fit(mean, rows, progress=False, **options)
    killed_at(200, mean, rows, checkpoint=tmp_path, **options)
    again = pplgen.fit(mean, rows, checkpoint=tmp_path, progress=False, **options)
    assert again.path == expected.path
    np.testing.assert_array_equal(again.best.history, expected.best.history)


def test_a_streamed_fit_continues(tmp_path, rows, often, monkeypatch):
    monkeypatch.setattr("pplgen.data.blocks.BLOCK_VALUES", 60)  # ten blocks of thirty rows
    np.save(tmp_path / "rows.npy", rows.numpy())
    story, options = mixture(), {**OPTIONS, "steps": 200, "batch_size": 100}
    stream = pplgen.stream_data(tmp_path / "rows.npy")
    expected = pplgen.fit(story, stream, progress=False, **options)
    killed_at(200, story, stream, checkpoint=tmp_path, **options)
    again = pplgen.fit(story, stream, checkpoint=tmp_path, progress=False, **options)
    np.testing.assert_array_equal(again.best.history, expected.best.history)


def test_a_checkpoint_of_another_fit_is_refused(tmp_path, rows, interrupted):
    shutil.copytree(interrupted, tmp_path, dirs_exist_ok=True)
    before = (tmp_path / checkpoint.NAME).read_bytes()
    (tmp_path / f".unfinished-0-{checkpoint.NAME}").write_text("of a killed process")
    with pytest.raises(InputError, match="is of another fit"):
        pplgen.fit(mixture(), rows, seed=1, checkpoint=tmp_path, progress=False, **OPTIONS)
    with pytest.raises(InputError, match="is of another fit"):
        pplgen.fit(mixture(concentration=2.0), rows, checkpoint=tmp_path, progress=False, **OPTIONS)
    assert (tmp_path / checkpoint.NAME).read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {checkpoint.NAME, checkpoint.PREVIOUS}


def spoil(path, content):
    """Put other content into a file, or flip a bit of its last number, or cut it short."""
    old = path.read_bytes()
    spoilt = {"cut": old[:-100], "flipped": old[:-1] + bytes([old[-1] ^ 1])}
    path.write_bytes(spoilt.get(content, b"not a checkpoint"))


@pytest.mark.parametrize("content", ["cut", "flipped", "other"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, rows, undisturbed, interrupted, often, content):
    story = mixture()
    shutil.copytree(interrupted, tmp_path, dirs_exist_ok=True)
    newest, before = tmp_path / checkpoint.NAME, tmp_path / checkpoint.PREVIOUS
    assert [len(load_file(path)["history0"]) for path in (newest, before)] == [200, 100]
    spoil(newest, content)
    steps = []
    with pytest.warns(pplgen.errors.DataWarning, match="cannot be read .* resumes from the previous checkpoint"):
        again = pplgen.fit(
            story, rows, checkpoint=tmp_path, progress=lambda update: steps.append(update.step), **OPTIONS
        )
    assert min(steps) == 200
    np.testing.assert_array_equal(again.best.history, undisturbed.best.history)
    for path in (newest, before):
        spoil(path, content)
    with pytest.raises(InputError, match=r"cannot be read as a checkpoint: .*; remove the file to start over"):
        pplgen.fit(story, rows, checkpoint=tmp_path, progress=False, **OPTIONS)


def test_what_cannot_be_read_never_takes_the_place_of_what_can(tmp_path, rows, interrupted, often):
    story = mixture()
    shutil.copytree(interrupted, tmp_path, dirs_exist_ok=True)
    spoil(tmp_path / checkpoint.NAME, "cut")
    with pytest.warns(pplgen.errors.DataWarning, match="resumes from the previous checkpoint"):
        killed_at(300, story, rows, checkpoint=tmp_path, **OPTIONS)
    lengths = [len(load_file(tmp_path / name)["history0"]) for name in (checkpoint.NAME, checkpoint.PREVIOUS)]
    assert lengths == [200, 100]


def test_a_checkpoint_of_another_layout_is_refused(tmp_path, rows, often, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 1)
    killed_at(200, mixture(), rows, checkpoint=tmp_path, **OPTIONS)
    monkeypatch.undo()
    with pytest.raises(InputError, match="was written by another version of pplgen"):
        pplgen.fit(mixture(), rows, checkpoint=tmp_path, progress=False, **OPTIONS)


def test_how_often_is_an_option(tmp_path, rows):
    for seconds, kept in ((1e-6, True), (1e6, False)):
        folder = tmp_path / str(kept)
        killed_at(200, mixture(), rows, checkpoint=folder, checkpoint_every=seconds, **OPTIONS)
        assert checkpoint.exists(folder) == kept
    with pytest.raises(InputError, match="checkpoint_every=0: expected a positive"):
        pplgen.fit(mixture(), rows, checkpoint=tmp_path, checkpoint_every=0)


def test_places_and_paths_that_keep_none(tmp_path, rows):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        pplgen.fit(mixture(), rows, checkpoint=tmp_path / "file", progress=False, **OPTIONS)
    with pytest.raises(InputError, match="checkpoint: not supported by plain Pyro, compile='off'"):
        pplgen.fit(mixture(), rows, checkpoint=tmp_path, compile="off")


def test_a_command_that_cannot_fit_leaves_no_folder(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise InputError("the numbers break down")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pplgen.inference.batched_restarts.Engine.run", fail)
    options = ["--compile", "graph", "--steps", "200", "--out", "new/run"]
    monkeypatch.setattr(sys, "argv", ["pplgen", "fit", "gaussian-mixture", "faithful", *options])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "the numbers break down" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_killed_command_resumes(tmp_path, monkeypatch, capsys):
    """It ends after the second checkpoint; --resume goes on from there and writes the run."""
    run = tmp_path / "run"
    options = ["--steps", "400", "--compile", "graph", "--batch-size", "100", "--draws", "20"]
    options += ["--checkpoint-every", "1e-6", "--covariance", "spherical"]
    command = ["pplgen", "fit", "gaussian-mixture", "faithful", "--out", str(run), *options]
    save = checkpoint.Checkpoint.save

    def save_and_die(self, *arguments):
        save(self, *arguments)
        if (run / checkpoint.PREVIOUS).exists():
            raise KilledError

    monkeypatch.setattr(sys, "argv", command)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoint, "save", save_and_die)
        with pytest.raises(KilledError):
            main()
    assert not (run / "header.json").exists()
    assert len(load_file(run / checkpoint.PREVIOUS)["history0"]) == 100
    # with another seed it is another fit, so what is resumed is what was kept
    for more, sentence in (
        ([], "holds an interrupted run; continue it with --resume"),
        (["--resume", "--seed", "1"], "is of another fit"),
    ):
        monkeypatch.setattr(sys, "argv", [*command, *more])
        with pytest.raises(SystemExit, match="2"):
            main()
        assert sentence in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*command, "--resume"])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert "ELBO" in capsys.readouterr().out
    assert len(pplgen.load(run).best.history) == 400
    assert not checkpoint.exists(run)


COMMAND = [
    "pplgen",
    "fit",
    "ppca",
    "faithful",
    "--latents",
    "1",
    "--compile",
    "graph",
    "--steps",
    "200",
    "--draws",
    "10",
]
COMMAND += ["--optimiser", "adam", "--out", "run"]


def ended(monkeypatch, capsys, *arguments, code=130):
    """Run the command and return what it says to stderr."""
    monkeypatch.setattr(sys, "argv", [*COMMAND, *arguments])
    with pytest.raises(SystemExit, match=f"^{code}$"):
        main()
    return capsys.readouterr().err


def interrupt_at(patch, step):
    """Send the process what Ctrl-C sends, before the window that follows a step."""
    take = _Run._take_window

    def take_or_stop(run):
        if run.training.taken == step:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a launcher in this process leaves its own
            signal.raise_signal(signal.SIGINT)
        take(run)

    patch.setattr(_Run, "_take_window", take_or_stop)


def test_an_interrupted_command_writes_nothing_unless_told_and_resumes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    ended(monkeypatch, capsys, code=0)
    whole = (run / run_folder.TENSORS).read_bytes()
    shutil.rmtree(run)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 0)
        assert "interrupted before the fit was finished" in ended(monkeypatch, capsys)
    assert not checkpoint.exists(run), "no step was taken"
    for arguments, sentence in (
        ([], "interrupted; nothing was written; a checkpoint remains, for --resume"),
        (["--accept-partial", "--force"], "the fit up to then was written; a checkpoint remains, for --resume"),
    ):
        with monkeypatch.context() as patch:
            interrupt_at(patch, 100)
            assert sentence in ended(monkeypatch, capsys, *arguments)
        assert checkpoint.exists(run)
        assert (run / run_folder.HEADER).exists() == bool(arguments)
    partial = pplgen.load(run)
    assert partial.stop.name == "INTERRUPTED"
    assert "--accept-partial" not in partial.origin["command"]
    assert len(partial.best.history) == 100
    ended(monkeypatch, capsys, "--resume", code=0)
    assert (run / run_folder.TENSORS).read_bytes() == whole
    assert not checkpoint.exists(run)


def test_what_needs_all_fits_has_no_result_from_an_interrupted_one(rows, monkeypatch):
    fitted = pplgen.fit(PPCA(2, 1), rows, steps=100, compile="graph", progress=False)
    alone = {"optimiser": "adam", "steps": 200, "compile": "graph"}
    for needs_all in (
        lambda: pplgen.compare({"one": PPCA(2, 1), "two": fitted}, rows, **alone),
        lambda: pplgen.k_fold(fitted, folds=2, **alone),
    ):
        with monkeypatch.context() as patch:
            interrupt_at(patch, 100)
            with pytest.raises(KeyboardInterrupt):
                needs_all()
    train = train_module.train
    monkeypatch.setattr(train_module, "train", lambda *a, **k: replace(train(*a, **k), stop=StopReason.INTERRUPTED))
    with pytest.raises(KeyboardInterrupt):
        pplgen.k_fold(fitted, folds=2, optimiser="adam", steps=2, compile="off")


def test_an_interrupt_at_the_end_keeps_the_checkpoint(tmp_path, monkeypatch, capsys):
    def interrupted(run):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pplgen.inference.batched_restarts._Run._results", interrupted)
    command = COMMAND
    assert "interrupted before the fit was finished" in ended(monkeypatch, capsys)
    assert checkpoint.exists(tmp_path / "run")
    monkeypatch.setattr(sys, "argv", [*command, "--resume", "--method", "nuts"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "no checkpoint is saved with these options" in capsys.readouterr().err
    assert checkpoint.exists(tmp_path / "run")
