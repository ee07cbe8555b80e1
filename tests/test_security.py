"""Files that were made to run code, or to read other files, are refused, and the code does not run."""

import io
import json
import os
import pickle
import sys
import zipfile

import h5py
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pplgen.models import GaussianMixture

import pplgen
from pplgen import InputError
from pplgen.fitting.load import load_with_draws
from pplgen.fitting.posterior_file import read_draws
from pplgen.report.page import PAGE
from pplgen.storage import checkpoint, run_folder
from pplgen.storage.header import with_digest

QUICK = {"steps": 5, "compile": "off", "progress": False}


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.fixture
def mark(tmp_path):
    """The folder that a payload makes; it is not there."""
    yield tmp_path / "it-ran"
    assert not (tmp_path / "it-ran").exists(), "code in a file has run"


@pytest.fixture
def pickles(mark):
    """What carries the payload, by the way that it is packed."""
    held = np.array([Payload(mark)], dtype=object)
    npy, npz, pt, header = io.BytesIO(), io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(npy, held, allow_pickle=True)
    np.savez(npz, x=held)
    torch.save({"x": Payload(mark)}, pt)
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    raw = pickle.dumps(Payload(mark))
    npy_by_hand = b"\x93NUMPY\x01\x00" + header.getvalue()[8:] + raw
    return {"pickle": raw, "npy": npy.getvalue(), "npz": npz.getvalue(), "pt": pt.getvalue(), "hand": npy_by_hand}


PACKED = ["pickle", "npy", "npz", "pt", "hand"]


def test_the_payload_would_run(tmp_path):
    """Otherwise the tests below could not fail."""
    pickle.loads(pickle.dumps(Payload(tmp_path / "pickled")))
    held = io.BytesIO()
    np.save(held, np.array([Payload(tmp_path / "array")], dtype=object), allow_pickle=True)
    held.seek(0)
    np.load(held, allow_pickle=True)
    assert (tmp_path / "pickled").is_dir()
    assert (tmp_path / "array").is_dir()


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("suffix", ["npy", "npz", "csv", "tsv", "parquet", "pt", "pkl", "safetensors"])
def test_data(pickles, tmp_path, packed, suffix):
    path = tmp_path / f"rows.{suffix}"
    path.write_bytes(pickles[packed])
    with pytest.raises(InputError, match="rows"):
        pplgen.load_data(path)
    with pytest.raises(InputError, match="rows"):
        pplgen.stream_data(path)


def test_an_archive_beside_a_plain_array(pickles, tmp_path):
    with zipfile.ZipFile(tmp_path / "rows.npz", "w") as archive:
        plain = io.BytesIO()
        np.save(plain, np.ones((3, 2)))
        archive.writestr("x.npy", plain.getvalue())
        archive.writestr("y.npy", pickles["npy"])
        archive.writestr("../../outside.npy", plain.getvalue())
    assert pplgen.load_data(tmp_path / "rows.npz").values.shape == (3, 2)
    assert {path.name for path in tmp_path.iterdir()} == {"rows.npz"}, "names in an archive are no paths"


@pytest.fixture(scope="module")
def fit():
    return pplgen.fit(GaussianMixture(2, 2), "faithful", **QUICK)


@pytest.fixture
def run(fit, tmp_path):
    fit.save(tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("packed", PACKED)
def test_parameters(pickles, run, packed):
    (run / run_folder.TENSORS).write_bytes(pickles[packed])
    header = json.loads((run / run_folder.HEADER).read_text())
    digest = {"parameters_sha256": run_folder._digest(run / run_folder.TENSORS)}
    (run / run_folder.HEADER).write_text(json.dumps(with_digest(header | digest)))
    with pytest.raises(InputError, match=r"parameters.safetensors' cannot be read"):
        pplgen.load(run)


@pytest.mark.parametrize("packed", PACKED)
def test_headers_and_draws_and_checkpoints(pickles, run, tmp_path, packed):
    (run / run_folder.DRAWS).write_bytes(pickles[packed])
    with pytest.raises(InputError, match=r"posterior.nc' cannot be read"):
        load_with_draws(run)
    (run / run_folder.HEADER).write_bytes(pickles[packed])
    with pytest.raises(InputError, match="cannot be read as a header"):
        pplgen.load(run)
    for name in (checkpoint.NAME, checkpoint.PREVIOUS):
        (tmp_path / name).write_bytes(pickles[packed])
    with pytest.raises(InputError, match="cannot be read as a checkpoint"):
        checkpoint.Checkpoint(checkpoint.CheckpointOptions(tmp_path), "fit", torch.device("cpu")).load()


@pytest.mark.parametrize("story", ["os:mkdir", "builtins:eval", "pplgen.models.gaussian_mixture:torch", "evil:Story"])
def test_a_header_names_nothing_that_runs(run, mark, tmp_path, monkeypatch, story):
    (tmp_path / "evil.py").write_text(f"import os; os.mkdir({str(mark)!r})\nfrom pplgen.story.base import Story")
    (run / "evil.py").write_text((tmp_path / "evil.py").read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    header = json.loads((run / run_folder.HEADER).read_text())
    told = {"story": story, "config": {"path": str(mark)}}
    (run / run_folder.HEADER).write_text(json.dumps(with_digest(header | told)))
    with pytest.raises(InputError, match=r"no other code that a run names is executed|is not a Story"):
        pplgen.load(run)


def test_draws_refer_to_no_other_file(run, tmp_path):
    """HDF5 would read another file's bytes as data, or follow a link into it."""
    secret = tmp_path / "secret"
    secret.write_bytes(np.arange(4.0).tobytes())
    with h5py.File(tmp_path / "other.nc", "w") as other:
        other["x"] = [1.0]
    layout = h5py.VirtualLayout((1,), "f8")
    layout[:] = h5py.VirtualSource(tmp_path / "other.nc", "x", (1,))

    def outside(file):
        file.create_dataset("posterior/x", (4,), "f8", external=[(str(secret), 0, 32)])

    ways = {
        "is stored in another file": outside,
        "stored in another": lambda file: file.create_virtual_dataset("x", layout),
        "is a link": lambda file: file.__setitem__("posterior", h5py.ExternalLink(str(tmp_path / "other.nc"), "/")),
    }
    for sentence, way in ways.items():
        with h5py.File(run / run_folder.DRAWS, "w") as file:
            way(file)
        with pytest.raises(InputError, match=sentence):
            read_draws(run)


HOSTILE = "\"><script>alert('1')</script><img src=x onerror=alert(2)>"


def hostile_model(x):
    """<script>alert(3)</script> ``<b>`` </pre>."""
    mu = pyro.sample("mu<script>", dist.Normal(0.0, 5.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def test_a_report_shows_every_string_as_text(run, fit, tmp_path):
    header = json.loads((run / run_folder.HEADER).read_text())
    told = {
        "command": f"pplgen fit {HOSTILE}",
        "path": HOSTILE,
        "created": HOSTILE,
        "versions": {HOSTILE: HOSTILE},
        "options": {"elbo": HOSTILE},
        "columns": [HOSTILE, "b'\"&"],
        "data": header["data"] | {"name": HOSTILE, "fingerprint": HOSTILE},
    }
    (run / run_folder.HEADER).write_text(json.dumps(with_digest(header | told)))
    hostile = pplgen.load(run)
    hostile.story.config["<script>"] = "</code><script>"
    pages = [hostile.report(tmp_path / "story")]
    hostile_model.__name__ = "<script>alert(4)</script>"
    pair = pplgen.fit(hostile_model, torch.ones(5), **QUICK)
    pages.append(pair.report(tmp_path / "pair", tree=pair.to_datatree(20)))
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert "<script" not in text
        assert "<img src=x" not in text
        assert "&lt;script&gt;alert(" in text
    assert pages[0].name == PAGE


def test_control_characters_do_not_reach_the_terminal(capsys):
    table = pplgen.Table(torch.randn(9, 2), ("a\x1b]0;title\x07", "b\x1b[2J"), "c\x1b[31m")
    pplgen.fit(GaussianMixture(1, 2), table, **QUICK).summary(draws=5)
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "\x07" not in printed
    assert "b?[2J" in printed


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_in_a_run_is_not_written_through(run, fit, tmp_path):
    (tmp_path / "mine").write_text("mine")
    (run / PAGE).symlink_to(tmp_path / "mine")
    (run / f".unfinished-{PAGE}").symlink_to(tmp_path / "mine")
    fit.report(run, tree=fit.to_datatree(10))
    fit.save(run, force=True)
    assert (tmp_path / "mine").read_text() == "mine"
