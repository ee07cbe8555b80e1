"""Files are written whole or not at all, and only what was written is read."""

import json
import os
import stat

import pytest
import torch

from pplgen.errors import InputError
from pplgen.storage import run_folder
from pplgen.storage.header import FORMAT, with_digest

TENSORS = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.tensor(1.5)}
DATA = {"name": "a", "num_rows": 2, "fingerprint": "", "dtype": "float32"}
RUN = {"seed": 3, "elbo": -1.0, "elbo_error": 0.1, "stop": "STEPS"}
HEADER = {
    "story": "pplgen.models.a:A",
    "config": {},
    "columns": ["x0"],
    "seed": 3,
    "path": "",
    "dtype": "float32",
    "data": DATA,
    "options": {},
    "created": "",
    "versions": {},
    "best": 0,
    "num_failed": 0,
    "runs": [RUN],
}


def save(directory, force=False):
    with run_folder.staged(directory, force=force) as folder:
        run_folder.write(folder, TENSORS, HEADER)


def test_round_trip_keeps_values_and_other_files(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    save(tmp_path)
    tensors, header = run_folder.read(tmp_path)
    assert header["seed"] == 3
    for name, value in TENSORS.items():
        assert torch.equal(tensors[name], value)
    assert sorted(path.name for path in tmp_path.iterdir()) == [run_folder.HEADER, "notes.txt", run_folder.TENSORS]
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / run_folder.TENSORS).stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_failure_leaves_nothing_and_loses_nothing(tmp_path):
    def fail(directory, force):
        with pytest.raises(TypeError), run_folder.staged(directory, force=force) as folder:
            run_folder.write(folder, TENSORS, HEADER | {"seed": object()})

    fail(tmp_path / "new", force=False)
    assert not (tmp_path / "new").exists()
    save(tmp_path / "old")
    fail(tmp_path / "old", force=True)
    assert run_folder.read(tmp_path / "old")[1]["seed"] == 3
    assert len(list((tmp_path / "old").iterdir())) == 2


def test_a_full_disk_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="cannot be written: No space left"), run_folder.staged(tmp_path / "run"):
        raise OSError(28, "No space left on device")
    assert not (tmp_path / "run").exists()


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for directory in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=r"is a file|cannot be written"), run_folder.staged(directory):
            pass


def test_damaged_runs(tmp_path):
    with pytest.raises(InputError, match=r"contains no run: there is no header\.json"):
        run_folder.read(tmp_path)
    save(tmp_path)
    content = (tmp_path / run_folder.TENSORS).read_bytes()
    (tmp_path / run_folder.TENSORS).write_bytes(content[:-3])
    with pytest.raises(InputError, match="is not the file that its header describes"):
        run_folder.read(tmp_path)
    (tmp_path / run_folder.TENSORS).unlink()
    with pytest.raises(InputError, match=r"there is no parameters\.safetensors"):
        run_folder.read(tmp_path)
    for text in ("", "[]", "{", "[" * 100_000, '{"format": NaN}', '{"format": "\\ud800"}'):
        (tmp_path / run_folder.TENSORS).write_bytes(content)
        (tmp_path / run_folder.HEADER).write_text(text)
        with pytest.raises(InputError, match="cannot be read as a header"):
            run_folder.read(tmp_path)
    (tmp_path / run_folder.HEADER).unlink()
    os.mkfifo(tmp_path / run_folder.HEADER)  # which would never end
    with pytest.raises(InputError, match="is not a file"):
        run_folder.read(tmp_path)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (FORMAT + 1, "of a newer pplgen; this version reads format .*; install a newer one"),
        (FORMAT - 1, "format .*; this version reads format .*; fit again"),
        (None, "format None"),
        ("2", "format '2'"),
        (True, "format True"),
        (float(FORMAT), "format 2.0"),
    ],
)
def test_other_versions_are_refused(tmp_path, given, sentence):
    save(tmp_path)
    header = json.loads((tmp_path / run_folder.HEADER).read_text())
    (tmp_path / run_folder.HEADER).write_text(json.dumps(with_digest(header | {"format": given})))
    with pytest.raises(InputError, match=sentence):
        run_folder.read(tmp_path)


@pytest.mark.parametrize("key", sorted(HEADER))
def test_every_key_is_required_and_typed(tmp_path, key):
    save(tmp_path)
    header = json.loads((tmp_path / run_folder.HEADER).read_text())
    for wrong in ([["a"]], 1.5, None):
        (tmp_path / run_folder.HEADER).write_text(json.dumps(with_digest(header | {key: wrong})))
        with pytest.raises(InputError, match=f"header.json': '{key}' is .*; expected"):
            run_folder.read(tmp_path)
    del header[key]
    (tmp_path / run_folder.HEADER).write_text(json.dumps(with_digest(header)))
    with pytest.raises(InputError, match=f"'{key}' is missing; expected"):
        run_folder.read(tmp_path)


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        ({"data": {"name": "a"}}, "data: 'num_rows' is missing"),
        ({"data": {**DATA, "num_rows": -1}}, "data: 'num_rows' is -1; expected a whole number of at least 0"),
        ({"data": {**DATA, "known": "labels"}}, "data: 'known' is 'labels'; expected a list of strings"),
        ({"runs": []}, "'best' is 0; expected an index of the 0 runs"),
        ({"runs": [{**RUN, "elbo": "high"}]}, r"runs\[0\]: 'elbo' is 'high'; expected a finite number"),
        ({"method": "nuts"}, "'chains' is missing"),
        ({"method": "nuts", "chains": {}}, "chains: 'num_chains' is missing"),
        ({"options": {"a=1); print(1": 2}}, "expected an object whose keys are argument names"),
        ({"command": ["rm"]}, r"'command' is \['rm'\]; expected a string"),
        ({"pair": "model"}, "'pair' is 'model'; expected an object"),
    ],
)
def test_parts_are_checked_too(tmp_path, part, sentence):
    save(tmp_path)
    header = json.loads((tmp_path / run_folder.HEADER).read_text())
    (tmp_path / run_folder.HEADER).write_text(json.dumps(with_digest(header | part)))
    with pytest.raises(InputError, match=sentence):
        run_folder.read(tmp_path)


def test_a_header_that_was_edited_is_refused(tmp_path):
    save(tmp_path)
    header = json.loads((tmp_path / run_folder.HEADER).read_text())
    (tmp_path / run_folder.HEADER).write_text(json.dumps(header))  # other spaces say the same
    assert run_folder.read(tmp_path)[1]["seed"] == 3
    (tmp_path / run_folder.HEADER).write_text(json.dumps(header | {"seed": 4}))
    with pytest.raises(InputError, match="was changed after it was written; restore the original file"):
        run_folder.read(tmp_path)


def test_what_killed_processes_left_is_removed_and_links_are_not_followed(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "kept").write_text("mine")
    run = tmp_path / "run"
    (run / ".unfinished-abc").mkdir(parents=True)
    (run / ".unfinished-abc" / "fit.png").write_text("half")
    (run / ".unfinished-link").symlink_to(other)
    (run / run_folder.TENSORS).symlink_to(other / "kept")
    save(run)
    assert sorted(path.name for path in run.iterdir()) == [run_folder.HEADER, run_folder.TENSORS]
    assert (other / "kept").read_text() == "mine"
    (run / "table.csv").symlink_to(other / "kept")
    run_folder.write_text(run / "table.csv", "new")
    assert ((other / "kept").read_text(), (run / "table.csv").read_text()) == ("mine", "new")


def test_what_is_no_file_is_not_replaced(tmp_path):
    """A pipe stands for all devices, which a moved file would destroy."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(InputError, match="is not a file and cannot be replaced"):
            run_folder.write_text(tmp_path / name, "text")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "pipe"]
