"""Files are written whole or not at all, and only what was written is read."""

import json
import os
import stat

import pytest
import torch

from pplgen import store
from pplgen.errors import InputError

TENSORS = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.tensor(1.5)}


def save(directory, force=False):
    with store.staged(directory, force=force) as folder:
        store.write(folder, TENSORS, {"seed": 3})


def test_round_trip_keeps_values_and_other_files(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    save(tmp_path)
    tensors, header = store.read(tmp_path)
    assert header["seed"] == 3
    for name, value in TENSORS.items():
        assert torch.equal(tensors[name], value)
    assert sorted(path.name for path in tmp_path.iterdir()) == [store.HEADER, "notes.txt", store.TENSORS]
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / store.TENSORS).stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_failure_leaves_nothing_and_loses_nothing(tmp_path):
    def fail(directory, force):
        with pytest.raises(TypeError), store.staged(directory, force=force) as folder:
            store.write(folder, TENSORS, {"seed": object()})

    fail(tmp_path / "new", force=False)
    assert not (tmp_path / "new").exists()
    save(tmp_path / "old")
    fail(tmp_path / "old", force=True)
    assert store.read(tmp_path / "old")[1]["seed"] == 3
    assert len(list((tmp_path / "old").iterdir())) == 2


def test_a_full_disk_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="cannot be written: No space left"), store.staged(tmp_path / "run"):
        raise OSError(28, "No space left on device")
    assert not (tmp_path / "run").exists()


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for directory in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=r"is a file|cannot be written"), store.staged(directory):
            pass


def test_damaged_runs(tmp_path):
    with pytest.raises(InputError, match=r"holds no run: there is no header\.json"):
        store.read(tmp_path)
    save(tmp_path)
    content = (tmp_path / store.TENSORS).read_bytes()
    (tmp_path / store.TENSORS).write_bytes(content[:-3])
    with pytest.raises(InputError, match="is not the file that its header describes"):
        store.read(tmp_path)
    (tmp_path / store.TENSORS).unlink()
    with pytest.raises(InputError, match=r"there is no parameters\.safetensors"):
        store.read(tmp_path)
    for text in ("", "[]", "{", json.dumps({"format": 99})):
        (tmp_path / store.TENSORS).write_bytes(content)
        (tmp_path / store.HEADER).write_text(text)
        with pytest.raises(InputError, match=r"cannot be read as a header|where this version reads format"):
            store.read(tmp_path)


def test_what_is_no_file_is_not_replaced(tmp_path):
    """A pipe stands for all devices, which a moved file would destroy."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(InputError, match="is no file that could be replaced"):
            store.write_whole(tmp_path / name, "text")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "pipe"]
