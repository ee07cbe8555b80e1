"""Files downloaded once: from mirrors on the loopback and in folders, and one sentence where that fails."""

import gzip
import hashlib
import http.server
import struct
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import pplgen
from pplgen.data import downloads
from pplgen.data.downloads import PublicFile, cache_directory, public_files
from pplgen.data.mnist import SPLITS, parse_idx
from pplgen.errors import InputError

PICTURES = np.arange(5 * 3 * 4, dtype=np.uint8).reshape(5, 3, 4) * 4
DIGITS = np.array([3, 1, 4, 1, 5], dtype=np.uint8)


def idx(array, *, kind=8, shape=None):
    """An idx file by its description: two zeros, type, number of axes, lengths, entries."""
    shape = array.shape if shape is None else shape
    header = bytes([0, 0, kind, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
    return gzip.compress(header + array.tobytes(), mtime=0)


def published(name, content):
    return PublicFile(name, len(content), hashlib.sha256(content).hexdigest())


CONTENT = {"pictures.gz": idx(PICTURES), "digits.gz": idx(DIGITS)}
FILES = tuple(published(name, content) for name, content in CONTENT.items())


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of its own, and a small MNIST."""
    monkeypatch.setenv("PPLGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(SPLITS, "train", FILES)
    return tmp_path / "cache" / "mnist"


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A folder to download from."""
    folder = tmp_path / "mirror" / "mnist"
    folder.mkdir(parents=True)
    for name, content in CONTENT.items():
        (folder / name).write_bytes(content)
    monkeypatch.setenv("PPLGEN_MIRROR", (tmp_path / "mirror").as_uri())
    return folder


class Answers(http.server.BaseHTTPRequestHandler):
    """Serves ``CONTENT``, or what a test has put in its place; counts."""

    changed: dict = {}  # noqa: RUF012
    asked: list = []  # noqa: RUF012

    def do_GET(self):
        name = self.path.rpartition("/")[2]
        self.asked.append(self.path)
        content = self.changed.get(name, CONTENT.get(name))
        self.send_response(404 if content is None else 200)
        if content is not None:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write((content or b"")[: self.changed.get("sent")])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    """A web server of one's own."""
    monkeypatch.setattr(Answers, "changed", {})
    monkeypatch.setattr(Answers, "asked", [])
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("PPLGEN_MIRROR", f"http://127.0.0.1:{running.server_port}")
        yield Answers
        running.shutdown()


def test_pictures_and_classes_by_name(cache, server):
    table = pplgen.load_data("mnist", dtype=torch.float64)
    np.testing.assert_array_equal(table.values * 255, PICTURES.reshape(5, 12))
    assert table.columns[:5] == ("pixel_0_0", "pixel_0_1", "pixel_0_2", "pixel_0_3", "pixel_1_0")
    assert table.target.tolist() == DIGITS.tolist()
    assert table.labels is None
    assert table.name == "mnist"
    assert server.asked == ["/mnist/pictures.gz", "/mnist/digits.gz"]
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == CONTENT, "nothing unfinished is left"


def test_what_is_cached_is_not_asked_for_again(cache, server, monkeypatch):
    first = pplgen.load_data("mnist")
    monkeypatch.setenv("PPLGEN_MIRROR", "http://127.0.0.1:9")
    assert torch.equal(pplgen.load_data("mnist").values, first.values)
    assert len(server.asked) == 2


def test_a_folder_is_a_mirror_and_an_argument_a_cache(tmp_path, cache, mirror):
    table = pplgen.load_data("mnist", cache=tmp_path / "elsewhere")
    assert table.values.dtype == torch.float32
    assert table.values.max() == pytest.approx(PICTURES.max() / 255)
    assert (tmp_path / "elsewhere" / "mnist" / "digits.gz").is_file()
    assert not cache.exists()


def test_the_second_mirror_helps_where_the_first_does_not(cache, mirror, monkeypatch):
    monkeypatch.setattr(downloads, "MIRRORS", ("http://127.0.0.1:9", mirror.parent.as_uri()))
    monkeypatch.delenv("PPLGEN_MIRROR")
    assert public_files("mnist", FILES) == list(CONTENT.values())


def refused(match):
    with pytest.raises(InputError, match=match) as raised:
        pplgen.load_data("mnist")
    assert "\n" not in str(raised.value)


def test_offline_it_says_what_to_put_where(cache, monkeypatch):
    monkeypatch.setenv("PPLGEN_MIRROR", "http://127.0.0.1:9")
    refused(rf"'mnist' could not be downloaded from http://127.0.0.1:9/mnist/.*; place .* and digits.gz in '{cache}'")


@pytest.mark.parametrize(
    ("changed", "reason"),
    {
        "another file of the same length": (
            {"pictures.gz": CONTENT["pictures.gz"][::-1]},
            "SHA-256 differs from that of the published file",
        ),
        "cut short": ({"pictures.gz": CONTENT["pictures.gz"][:20]}, "it has 20 bytes; the published file has"),
        "broken off": ({"sent": 30}, "it has 30 bytes; the published file has"),
        "too large": ({"pictures.gz": bytes(10_000)}, "longer than the published .* bytes"),
        "an error page": ({"pictures.gz": None}, "Not Found"),
    }.values(),
)
def test_a_mirror_that_sends_something_else(cache, server, changed, reason):
    server.changed.update(changed)
    refused(reason)
    assert list(cache.iterdir()) == [], "nothing wrong is kept"


def test_a_mirror_that_falls_silent_or_never_ends(cache, server, monkeypatch):
    monkeypatch.setattr(downloads, "TOTAL_TIMEOUT", -1.0)
    refused("not finished after")
    silent = threading.Event()
    monkeypatch.setattr(Answers, "do_GET", lambda self: silent.wait(5))
    monkeypatch.setattr(downloads, "READ_TIMEOUT", 0.05)
    refused("timed out")
    silent.set()


@pytest.mark.parametrize("address", ["ftp://127.0.0.1", "/data", "http://["])
def test_an_address_that_is_none(cache, monkeypatch, address):
    monkeypatch.setenv("PPLGEN_MIRROR", address)
    refused("could not be downloaded")


def test_a_wrong_file_in_the_cache_is_named(cache, mirror):
    cache.mkdir(parents=True)
    (cache / "digits.gz").write_bytes(b"")
    refused(rf"'{cache / 'digits.gz'}': it has 0 bytes; .* delete it to download it again")


def test_a_cache_that_cannot_be_written(tmp_path, cache, mirror):
    (tmp_path / "cache").write_text("a file")
    refused("downloads cannot be saved there: .*; set PPLGEN_CACHE to another directory")


NO_IDX = {
    "no gzip": (b"\x00\x00\x08\x01", "not a complete gzip file"),
    "gzip cut short": (CONTENT["pictures.gz"][:-12], "not a complete gzip file"),
    "no idx": (gzip.compress(b"<html>"), "starts with 3c 68 74 6d; expected an idx file"),
    "empty": (gzip.compress(b""), "expected an idx file"),
    "of floats": (idx(DIGITS, kind=13), "expected an idx file of unsigned bytes"),
    "header cut short": (gzip.compress(bytes([0, 0, 8, 2, 0, 0])), "idx header of shape"),
    "absurd": (idx(DIGITS, shape=(2**31, 2**31)), "axes, 1,073,741,824 entries at most"),
    "too few": (idx(DIGITS, shape=(6,)), r"5 entries; expected 6 for shape \(6,\)"),
    "too many": (idx(DIGITS, shape=(4,)), r"more than 4 entries; expected 4 for shape \(4,\)"),
}


@pytest.mark.parametrize(("content", "sentence"), NO_IDX.values(), ids=NO_IDX)
def test_idx_files_must_match_their_header(content, sentence):
    with pytest.raises(InputError, match=sentence):
        parse_idx(content, "file.gz")


def test_pictures_and_classes_belong_together(cache, mirror, monkeypatch):
    content = idx(DIGITS[:4])
    (mirror / "digits.gz").write_bytes(content)
    monkeypatch.setitem(SPLITS, "train", (FILES[0], published("digits.gz", content)))
    refused("expected images and one digit per image")


@pytest.mark.parametrize(
    ("platform", "expected"),
    [("linux", "/home/u/.cache/pplgen"), ("darwin", "/home/u/Library/Caches/pplgen"), ("win32", "/local/pplgen")],
)
def test_the_platforms_place(monkeypatch, platform, expected):
    for name in ("PPLGEN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/u")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    monkeypatch.setattr(sys, "platform", platform)
    assert cache_directory() == Path(expected)
    monkeypatch.setenv("PPLGEN_CACHE", "/chosen")
    assert cache_directory() == Path("/chosen")
    assert cache_directory("given") == Path("given")


def test_the_published_files(reference_data, tmp_path, monkeypatch):
    """MNIST itself: numbers of digits as its authors count them, grey values as in the files."""
    if not (reference_data / "mnist").is_dir():
        pytest.skip("MNIST is not among the reference data")
    monkeypatch.setenv("PPLGEN_MIRROR", reference_data.as_uri())
    monkeypatch.setenv("PPLGEN_CACHE", str(tmp_path))
    table = pplgen.load_data("mnist-test")
    assert tuple(table.values.shape) == (10_000, 784)
    assert table.target.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert table.values.min() == 0
    assert table.values.max() == 1
    for files in SPLITS.values():
        for file in files:
            assert file.mismatch((reference_data / "mnist" / file.name).read_bytes()) is None
    assert {path.name for path in (tmp_path / "mnist").iterdir()} == {file.name for file in SPLITS["test"]}
