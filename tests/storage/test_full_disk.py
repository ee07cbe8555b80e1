"""A full disk loses nothing that was written before, and says so."""

import contextlib
import errno
import functools
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from pplgen.models import GaussianMixture

import pplgen
from pplgen import InputError
from pplgen.cli.main import main
from pplgen.errors import DataWarning
from pplgen.storage import atomic, checkpoint, replacement, run_folder

mixture = functools.partial(GaussianMixture, 2, 2, covariance="spherical")
OPTIONS = {"steps": 400, "compile": "graph", "checkpoint_every": 1e-6, "optimiser": "adam"}


@pytest.fixture(scope="module")
def rows():
    return torch.randn(300, 2, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def whole(rows):
    return pplgen.fit(mixture(), rows, progress=False, **OPTIONS)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 400 kB, which root can make."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root on Linux can make a small file system")
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def fill(disk):
    """Leave no room."""
    with contextlib.suppress(OSError), (disk / "filler").open("wb") as file:
        while True:
            file.write(bytes(1024))
            file.flush()


def test_the_last_checkpoint_survives_a_full_disk(small_disk, rows, whole):
    kept = []

    def progress(update):
        if update.step == 300:
            fill(small_disk)
            kept.extend((small_disk / name).read_bytes() for name in (checkpoint.NAME, checkpoint.PREVIOUS))

    with pytest.warns(DataWarning, match="cannot be written: No space left on device; the previous checkpoint is kept"):
        fit = pplgen.fit(mixture(), rows, checkpoint=small_disk, progress=progress, **OPTIONS)
    assert fit.elbo == whole.elbo
    assert kept == [(small_disk / name).read_bytes() for name in (checkpoint.NAME, checkpoint.PREVIOUS)]
    with pytest.raises(InputError, match="cannot be written: No space left on device"):
        fit.save(small_disk)
    names = {checkpoint.NAME, checkpoint.PREVIOUS, "filler"}
    assert {path.name for path in small_disk.iterdir()} == names, "nothing half-written is left"
    (small_disk / "filler").unlink()
    steps = []
    again = pplgen.fit(
        mixture(), rows, checkpoint=small_disk, progress=lambda update: steps.append(update.step), **OPTIONS
    )
    assert min(steps) == 300  # the checkpoint at 200 was the last before the disk was full
    np.testing.assert_array_equal(again.best.history, whole.best.history)


def test_a_command_says_that_its_fit_is_kept(small_disk, monkeypatch, capsys):
    run = small_disk / "run"
    options = ["--steps", "200", "--compile", "graph", "--checkpoint-every", "1e-6", "--draws", "10"]
    command = ["pplgen", "fit", "gaussian-mixture", "faithful", "--out", str(run), *options]
    monkeypatch.setattr(sys, "argv", command)
    staged = run_folder.staged

    def full(*arguments, **given):
        fill(small_disk)
        return staged(*arguments, **given)

    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "staged", full)
        with pytest.raises(SystemExit) as ended:
            main()
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert "No space left on device; a checkpoint remains, for --resume" in printed.err
    assert not (run / run_folder.HEADER).exists()
    (small_disk / "filler").unlink()
    monkeypatch.setattr(sys, "argv", [*command, "--resume"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert pplgen.load(run, "faithful").has_rows
    assert not checkpoint.exists(run)


class FullFile:
    """A file that takes half of what is written, and no more."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, content):
        self.file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_write_that_stops_halfway_leaves_the_file_before(tmp_path, monkeypatch):
    """The same wherever no file system can be made."""
    atomic.write_bytes(tmp_path / "file", b"old")
    opened = atomic.Path.open
    with monkeypatch.context() as patch:
        patch.setattr(atomic.Path, "open", lambda path, *mode: FullFile(opened(path, *mode)))
        with pytest.raises(OSError, match="No space left"):
            atomic.write_bytes(tmp_path / "file", b"a new one", previous=tmp_path / "before")
        with pytest.raises(InputError, match=r"'.*file' cannot be written: No space left on device"):
            run_folder.write_text(tmp_path / "file", "a new one")
        kept = checkpoint.Checkpoint(checkpoint.CheckpointOptions(tmp_path), "fit", torch.device("cpu"))
        with pytest.warns(DataWarning, match="cannot be written: No space left on device$"):
            kept.save({"a": torch.ones(3)}, {})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"old"}


def test_everything_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    """A checkpoint moves after its content was synced, a run after its files and their folder were."""
    events = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(("sync", os.readlink(f"/proc/self/fd/{fd}"))), sync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append(("move", str(a), str(b))), replace(a, b)))
    if not os.path.exists("/proc/self/fd"):
        pytest.skip("what a descriptor stands for is read from /proc")
    run = tmp_path / "run"
    with run_folder.staged(run) as folder:
        run_folder.write(folder, {"a": torch.ones(3)}, {})
    kept = checkpoint.Checkpoint(checkpoint.CheckpointOptions(run), "fit", torch.device("cpu"))
    kept.save({"a": torch.ones(3)}, {})
    kept.save({"a": torch.ones(3)}, {})
    moved = {}
    for index, (kind, path, *to) in enumerate(events):
        if kind == "move" and checkpoint.PREVIOUS not in to[0]:
            moved[to[0].rpartition("/")[2]] = index
            if f"{run}/{replacement.COMMITTED}/" not in path:
                parts = (run_folder.TENSORS, run_folder.HEADER) if path == str(folder) else ()
                for synced in (path, *(f"{path}/{name}" for name in parts)):
                    assert ("sync", synced) in events[:index]
    assert list(moved) == [replacement.COMMITTED, run_folder.TENSORS, run_folder.HEADER, checkpoint.NAME]
    for index in moved.values():
        assert ("sync", str(run)) in events[index:]
    assert ("sync", str(run)) in events[moved[replacement.COMMITTED] : moved[run_folder.TENSORS]]
