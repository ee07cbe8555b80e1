"""A run is replaced whole: a process killed at any moment leaves the old one or the new one, and so do two writers."""

import contextlib
import json
import os
import shutil

import h5py
import numpy as np
import pytest
import torch

from pplgen.errors import InputError
from pplgen.fitting.posterior_file import read_draws
from pplgen.storage import atomic, replacement, run_folder
from tests.storage.test_run_folder import HEADER


class Killed(BaseException):
    """Stands for the end of a process."""


def save(directory, seed, *, others=()):
    with run_folder.staged(directory, force=True) as folder:
        run_folder.write(folder, {"a": torch.full((2,), float(seed))}, HEADER | {"seed": seed})
        for name in others:
            (folder / name).write_text(f"{name} of {seed}")


def state(directory):
    """Return what a run consists of: its seed, its tensor, and its other files."""
    tensors, header = run_folder.read(directory)
    run_folder.verify(directory, header)
    contents = {name: (directory / name).read_text() for name in OTHERS if (directory / name).exists()}
    return header["seed"], tensors["a"].tolist(), contents


OTHERS = (run_folder.DRAWS, "fit.png", "report.html")
OLD = (3, [3.0, 3.0], {name: f"{name} of 3" for name in OTHERS})
NEW = (4, [4.0, 4.0], {run_folder.DRAWS: f"{run_folder.DRAWS} of 4"})


@contextlib.contextmanager
def killed_at(number):
    """Kill the process at the so-manieth change of a folder; a dead process cleans nothing up."""
    with pytest.MonkeyPatch.context() as patch:
        made = []

        def change(call):
            def change_or_die(*arguments, **options):
                made.append(call)
                if len(made) >= number:
                    raise Killed
                return call(*arguments, **options)

            return change_or_die

        for module, name in ((os, "replace"), (os, "unlink"), (shutil, "rmtree"), (atomic, "sync")):
            patch.setattr(module, name, change(getattr(module, name)))
        patch.setattr(atomic, "remove_empty", lambda folders: None)
        try:
            yield
        except Killed:
            pass
        else:
            made.clear()
    killed_at.died = bool(made)


def test_a_run_is_replaced_whole_or_not_at_all(tmp_path):
    seen = []
    for number in range(1, 40):
        run = tmp_path / str(number)
        save(run, 3, others=OTHERS)
        (run / "notes.txt").write_text("mine")
        with killed_at(number):
            save(run, 4, others=[run_folder.DRAWS])
        seen.append(state(run))
        assert seen[-1] in (OLD, NEW)
        assert not (run / replacement.COMMITTED).exists()
        save(run, 5)
        assert {path.name for path in run.iterdir()} == {run_folder.TENSORS, run_folder.HEADER, "notes.txt"}
        if not killed_at.died:
            break
    assert seen.index(NEW) > 3, "some die before it"
    assert seen == [OLD] * seen.index(NEW) + [NEW] * (len(seen) - seen.index(NEW)), "one moment decides"
    assert len(seen) - seen.index(NEW) > 3, "others die after it"
    assert not killed_at.died


def test_two_writers_do_not_mix(tmp_path):
    pytest.importorskip("fcntl")
    save(tmp_path, 3)
    with run_folder.staged(tmp_path, force=True) as folder:
        run_folder.write(folder, {"a": torch.zeros(2)}, HEADER)
        with pytest.raises(InputError, match="is being written by another process; give another directory"):
            save(tmp_path, 4)
    assert run_folder.read(tmp_path)[0]["a"].tolist() == [0, 0]
    save(tmp_path, 5)
    assert state(tmp_path) == (5, [5.0, 5.0], {})


def test_a_link_is_not_taken_for_new_files(tmp_path):
    save(tmp_path / "run", 3)
    save(tmp_path / "other", 4)
    (tmp_path / "run" / replacement.COMMITTED).symlink_to(tmp_path / "other")
    assert run_folder.read(tmp_path / "run")[1]["seed"] == 3
    assert run_folder.read(tmp_path / "other")[1]["seed"] == 4


def test_a_changed_bit_of_any_file_is_noticed(tmp_path):
    rng = np.random.default_rng(0)
    save(tmp_path, 3, others=OTHERS)
    header = json.loads((tmp_path / run_folder.HEADER).read_text())
    assert set(header["files"]) == set(OTHERS)
    for name in OTHERS:
        whole = (tmp_path / name).read_bytes()
        for place in rng.integers(len(whole), size=5):
            changed = bytearray(whole)
            changed[place] ^= 1 << rng.integers(8)
            (tmp_path / name).write_bytes(changed)
            with pytest.raises(InputError, match=f"{name}' is not the file that its header describes"):
                run_folder.verify(tmp_path, header)
        (tmp_path / name).unlink()
        run_folder.verify(tmp_path, header)


def test_draws_of_groups_in_circles_are_refused(tmp_path):
    def circle(file):
        file.create_group("posterior")["again"] = file["/"]

    def nested(file):
        file.create_group("/".join(["a"] * 3000))

    for build in (circle, nested):
        with h5py.File(tmp_path / run_folder.DRAWS, "w") as file:
            build(file)
        with pytest.raises(InputError, match="is a group in itself, or one of more than 50"):
            read_draws(tmp_path)
