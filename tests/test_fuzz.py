"""Files and arguments made at random: each is read, or refused in one sentence; nothing hangs, nothing is left behind.

``HYPOTHESIS_PROFILE=nightly`` tries many more; see ``conftest.py``.
"""

import contextlib
import io
import json
import shutil
import signal
import struct
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pplgen.models import GaussianMixture

import pplgen
from pplgen import InputError
from pplgen.cli.main import main
from pplgen.errors import DataWarning
from pplgen.fitting.posterior_file import read_draws
from pplgen.storage import checkpoint, run_folder
from pplgen.storage.header import with_digest

PATIENCE = {signal.ITIMER_PROF: 60, signal.ITIMER_REAL: 600}
"""Seconds of computing, and by the clock of a machine that does other things too, after which a case hangs."""


@contextlib.contextmanager
def soon():
    """Fail where something does not end."""

    def stop(number, _):
        raise TimeoutError(f"not done before {signal.Signals(number).name}")

    before = {number: signal.signal(number, stop) for number in (signal.SIGPROF, signal.SIGALRM)}
    for clock, seconds in PATIENCE.items():
        signal.setitimer(clock, seconds)
    try:
        yield
    finally:
        for clock in PATIENCE:
            signal.setitimer(clock, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def refused_or_read():
    """Let a sentence pass, and nothing else that is raised."""
    with soon(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        said = "a sentence"
        try:
            yield
        except InputError as error:
            said = str(error)
        assert said.strip()
        assert len(said.splitlines()) == 1, said


@contextlib.contextmanager
def only_file(name, content):
    """Yield the path of a file in a folder of its own, where nothing may join it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        yield path
        assert [each.name for each in Path(folder).iterdir()] == [name]


def check_rows(table):
    assert table.values.shape[1] == len(table.columns)
    assert not table.values.isinf().any()


ODD_CELLS = ["", " ", "1", "-2.5", "1e308", "1e309", "1e-400", "nan", "inf", "n/a", "1_0", "\u0663", "0x10", '"', '""']
ODD_CELLS += ['"1"', '"a,b"', '"\n"', "\r", "\0", "'", "=1+1", "<b>", "True", "1,5", "\ufeff", "x" * 200, "9" * 400]
CELLS = st.sampled_from(ODD_CELLS) | st.floats().map(str) | st.text(max_size=4)


@st.composite
def delimited(draw):
    """Draw text that is a table, more or less."""
    delimiter, end = draw(st.sampled_from(",\t;|")), draw(st.sampled_from(["\n", "\r\n", "\r", "\n\n"]))
    width = draw(st.integers(1, 4))
    lines = draw(st.lists(st.lists(CELLS, min_size=width, max_size=width), max_size=6))
    ragged = draw(st.lists(st.lists(CELLS, max_size=5), max_size=1))
    encoding = draw(st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16"]))
    return end.join(delimiter.join(line) for line in [*lines, *ragged]).encode(encoding, "surrogatepass")


@given(st.binary(max_size=200) | delimited(), st.sampled_from(["rows.csv", "rows.tsv"]))
def test_delimited_text(content, name):
    with only_file(name, content) as path, refused_or_read():
        check_rows(pplgen.load_data(path))


def numpy_files():
    """Return files as NumPy writes them, plain ones and others."""
    plain = np.arange(6.0).reshape(3, 2)
    arrays = [plain, plain.astype(">f4"), np.asfortranarray(plain), plain[:, 0], plain > 2, plain[:0], plain[..., None]]
    arrays += [plain.astype(complex), np.array(["a"]), np.zeros(2, [("a", "f8")]), np.array([{}], dtype=object)]
    files = []
    for array in arrays:
        files.append(io.BytesIO())
        np.save(files[-1], array, allow_pickle=True)
    for save, given_arrays in ((np.savez, {"x": plain}), (np.savez_compressed, {"a": plain}), (np.savez, {})):
        files.append(io.BytesIO())
        save(files[-1], **given_arrays)
    return [file.getvalue() for file in files]


CHANGES = st.lists(
    st.tuples(st.floats(0, 1), st.sampled_from(["flip", "cut", "drop", "insert"]), st.binary(min_size=1, max_size=4)),
    max_size=3,
)


def changed(content, changes):
    """Apply changes, each at a part of the content."""
    for place, kind, piece in changes:
        at = int(place * len(content))
        rest = content[at:]
        if kind == "flip":
            rest = piece + rest[len(piece) :]
        elif kind == "cut":
            rest = b""
        else:
            rest = piece + rest if kind == "insert" else rest[len(piece) :]
        content = content[:at] + rest
    return content


SIZES = st.sampled_from([-1, 0, 1, 2, 3, 2**31, 2**40, 2**62, 2**70])


@st.composite
def declared(draw):
    """Draw an npy file whose header says something of its own."""
    shape = tuple(draw(st.lists(SIZES, max_size=3)))
    kinds = ["<f8", "<f4", ">i2", "|b1", "|O", "|V8", "<U3", "<c16", "<M8[s]", "f8,f8", "x", "", "<f2", [("a", "<f8")]]
    header = {"descr": draw(st.sampled_from(kinds)), "fortran_order": draw(st.booleans()), "shape": shape}
    text = draw(st.just(repr(header)) | st.text(max_size=20) | st.just("__import__('os').getcwd()"))
    written = text.encode("latin-1", "replace") + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(written)) + written + draw(st.binary(max_size=48))


FILES = st.sampled_from(numpy_files())


@given(st.builds(changed, FILES, CHANGES) | declared() | st.binary(max_size=60), st.sampled_from(["npy", "npz"]))
def test_arrays(content, suffix):
    with only_file(f"rows.{suffix}", content) as path:
        with refused_or_read():
            check_rows(pplgen.load_data(path))
        with refused_or_read():
            for block in pplgen.stream_data(path).blocks():
                assert block.ndim == 2


def table_files():
    """Return a small table as it is written in other formats, by suffix; those of absent packages are left out."""
    frame = pd.DataFrame({"a": [1.5, None, 3.0], "b": [1, 2, 3], "c": pd.to_datetime(["2020-01-01"] * 3)})
    writers = {
        ".parquet": lambda file: frame.set_index("b").to_parquet(file),
        ".feather": frame.to_feather,
        ".xlsx": lambda file: frame.to_excel(file, index=False),
        ".jsonl": lambda file: frame[["a", "b"]].to_json(file, orient="records", lines=True),
        ".csv.gz": lambda file: frame.to_csv(file, compression="gzip"),
    }
    files = {}
    for suffix, write in writers.items():
        file = io.BytesIO()
        with contextlib.suppress(ImportError):
            write(file)
            files[suffix] = file.getvalue()
    return files


TABLE_FILES = table_files()


@given(suffix=st.sampled_from(sorted(TABLE_FILES)), changes=CHANGES, only=st.booleans())
def test_tables_of_other_formats(suffix, changes, only):
    with only_file(f"rows{suffix}", changed(TABLE_FILES[suffix], changes)) as path:
        with refused_or_read():
            check_rows(pplgen.load_data(path, only=["a", "b"] if only else None))
        if suffix == ".parquet":
            with refused_or_read():
                for block in pplgen.stream_data(path).blocks():
                    assert block.ndim == 2


@pytest.fixture(scope="module")
def draws(run):
    """The draws of a run as the command line saves them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / run_folder.DRAWS
        pplgen.load(run).to_datatree(2, groups=["posterior"]).to_netcdf(path, engine="h5netcdf")
        return path.read_bytes()


@given(changes=CHANGES)
def test_draws(draws, changes):
    with only_file(run_folder.DRAWS, changed(draws, changes)) as path, refused_or_read():
        read_draws(path.parent)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a few rows, and a checkpoint."""
    folder = tmp_path_factory.mktemp("fuzz") / "run"
    rows = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    pplgen.fit(GaussianMixture(2, 2), rows, steps=5, compile="off", progress=False).save(folder)
    kept = checkpoint.Checkpoint(checkpoint.CheckpointOptions(folder), "fit", torch.device("cpu"))
    kept.save({"a": torch.arange(6.0)}, {"taken": 100})
    assert pplgen.load(folder).sample(1).isfinite().all(), "what is changed below can be read as it is"
    return folder


@contextlib.contextmanager
def copy_of(run, **files):
    """Yield a copy of a run with other files in it, whose names must stay the same."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "run"
        shutil.copytree(run, copy)
        for name, content in files.items():
            (
                copy / {"header": run_folder.HEADER, "tensors": run_folder.TENSORS, "kept": checkpoint.NAME}[name]
            ).write_bytes(content)
        before = {path.name for path in copy.iterdir()}
        yield copy
        assert {path.name for path in copy.iterdir()} == before


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-3, 40)
    | st.just(10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
)
VALUES = st.recursive(
    LEAVES, lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=5), each, max_size=3)
)


def places(value, path=()):
    """Return where something stands in JSON."""
    yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in parts:
        yield from places(each, (*path, key))


def edited(facts, place, value, kind):
    """Put a value into a place of JSON, or beside it, or remove what stands there."""
    facts = json.loads(json.dumps(facts))
    if not place:
        return value
    holder = facts
    for key in place[:-1]:
        holder = holder[key]
    if kind == "remove":
        del holder[place[-1]]
    elif kind == "add" and isinstance(holder, dict):
        holder[str(value)[:8]] = value
    else:
        holder[place[-1]] = value
    return facts


EDITS = st.tuples(st.integers(0, 10**6), VALUES, st.sampled_from(["replace", "replace", "remove", "add"]))


@given(edit=EDITS, reseal=st.booleans(), changes=CHANGES)
def test_headers(run, edit, reseal, changes):
    """A header that says something else is refused unless it is sealed anew, and loads or is refused then."""
    facts = json.loads((run / run_folder.HEADER).read_text())
    where = list(places(facts))
    number, value, kind = edit
    told = edited(facts, where[number % len(where)], value, kind)
    if reseal and isinstance(told, dict):
        told = with_digest(told)
    content = json.dumps(told).encode()
    if not reseal:
        content = changed(content, changes)
    with copy_of(run, header=content) as copy, refused_or_read():
        fit = pplgen.load(copy)
        json.dumps(fit.facts)
        assert repr(fit)
        assert reseal or {**fit.origin, "columns": list(fit.columns)} == facts


@st.composite
def tensor_files(draw, base):
    """Draw a file that was changed, or whose header says something else of the same bytes."""
    if draw(st.booleans()):
        return changed(base, draw(CHANGES))
    size = struct.unpack("<Q", base[:8])[0]
    facts, rest = json.loads(base[8 : 8 + size]), base[8 + size :]
    where = list(places(facts))
    number, value, kind = draw(EDITS)
    text = json.dumps(edited(facts, where[number % len(where)], value, kind)).encode()
    length = draw(st.just(len(text)) | st.sampled_from([0, 2**20, 2**63]))
    return struct.pack("<Q", length) + text + rest


@given(data=st.data())
def test_tensors(run, data):
    tensors = data.draw(tensor_files((run / run_folder.TENSORS).read_bytes()))
    kept = data.draw(tensor_files((run / checkpoint.NAME).read_bytes()))
    header = json.loads((run / run_folder.HEADER).read_text())
    with copy_of(run, tensors=tensors, kept=kept) as copy:
        with refused_or_read():
            pplgen.load(copy)
        digest = {"parameters_sha256": run_folder._digest(copy / run_folder.TENSORS)}
        (copy / run_folder.HEADER).write_text(json.dumps(with_digest(header | digest)))
        with refused_or_read():
            fit = pplgen.load(copy)
            assert all(value.isfinite().all() for value in fit.story.parameters())
        with refused_or_read():
            checkpoint.Checkpoint(checkpoint.CheckpointOptions(copy), "fit", torch.device("cpu")).load()


NUMBERS = [
    "-1",
    "0",
    "1",
    "2",
    "3",
    "x",
    "",
    "nan",
    "inf",
    "1e400",
    "1_0",
    "\u0663",
    "9" * 30,
    "1.5",
    "1,2",
    "-",
    "None",
]
FEW = ["-1", "0", "1", "2", "x", "", "nan", "1.5"]
DATA = [
    "own.csv",
    "text.csv",
    "rows.npy",
    "pickle.npy",
    "nothing.csv",
    "folder",
    "run",
    "",
    ".",
    "faithfull",
    "x" * 300,
]
RUNS = ["run", "broken", "folder", "own.csv", "nowhere", "", "x" * 300]
OUTS = ["new", "own.csv", "run", "folder", "", "own.csv/below", "a/b", "x" * 300]
JUNK = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), max_size=5)
VALUES_OF = {
    "--components": NUMBERS,
    "--prior-scale": NUMBERS,
    "--covariance": ["full", "diagonal", "x", ""],
    "--seed": NUMBERS,
    "--learning-rate": NUMBERS,
    "--clip": NUMBERS,
    "--decay": NUMBERS,
    "--restarts": FEW,
    "--patience": NUMBERS,
    "--batch-size": NUMBERS,
    "--device": ["cpu", "meta", "x", ""],
    "--elbo": ["sampled", "analytic", "importance", "x"],
    "--particles": FEW,
    "--free-bits": NUMBERS,
    "--warm-up": FEW,
    "--augment": ["bernoulli", "x"],
    "--compile": ["graph", "off", "x"],
    "--method": ["svi", "x"],
    "--only": ["a", "b,a", "x", "", ",", '"a', "a,a"],
    "--ignore": ["a", "a,b", "x", "", ",,"],
    "--id": ["a", "x", "", "a,a"],
    "--dtype": ["float64", "float16", ""],
    "--labels": ["a", "b", "target", "x", ""],
    "--weights": ["a", "b", "x"],
    "--series": ["a", "x"],
    "--checkpoint-every": NUMBERS,
    "--known": ['{"P": 1}', "[1]", "{", "{}"],
    "-n": FEW,
    "--num": FEW,
    "--horizon": FEW,
    "--rate": NUMBERS,
    "--story": ["own.csv:A", "mine.py:A", "x", "run:A", "torch:Tensor"],
    "--against": ["run", "nowhere"],
    "--held-out": DATA,
    "--out": OUTS,
}
FLAGS = ["--header", "--no-header", "--force", "--resume", "--stream", "--help", "--bic", "--nothing"]
OPTION = st.one_of(
    st.sampled_from(sorted(VALUES_OF)).flatmap(lambda flag: st.tuples(st.just(flag), st.sampled_from(VALUES_OF[flag]))),
    st.sampled_from(FLAGS).map(lambda flag: (flag,)),
    JUNK.map(lambda word: (word,)),
)
STORIES = ["gaussian-mixture", "gaussian-mixture", "ppca", "gaussian-hmm", "vae", "mine.py:A", ".py", "nothing", ""]
WITH_RUN = ["sample", "traverse", "check", "report"]
WITH_ROWS = ["predict", "forecast", "encode", "reconstruct", "impute", "anomaly", "interpolate"]


@st.composite
def command_lines(draw):
    """Draw what somebody might type."""
    kind = draw(st.sampled_from(["fit", "fit", "run", "rows", "compare", "calibrate", "junk"]))
    options = [word for words in draw(st.lists(OPTION, max_size=3)) for word in words]
    if kind == "fit":
        short = [
            "--steps",
            draw(st.sampled_from(["1", "3", "0", "x"])),
            "--draws",
            draw(st.sampled_from(["2", "1", "x"])),
        ]
        return ["fit", draw(st.sampled_from(STORIES)), draw(st.sampled_from(DATA)), *options, *short]
    if kind == "run":
        return [draw(st.sampled_from(WITH_RUN)), draw(st.sampled_from(RUNS)), *options]
    if kind == "rows":
        return [draw(st.sampled_from(WITH_ROWS)), draw(st.sampled_from(RUNS)), draw(st.sampled_from(DATA)), *options]
    if kind == "compare":
        names = ["nothing", "gaussian-mixture:x", "gaussian-mixture:components=0", ":", "vae:hidden=x"]
        return ["compare", draw(st.sampled_from(DATA)), draw(st.sampled_from(names)), *options]
    if kind == "calibrate":
        return ["calibrate", draw(st.sampled_from(STORIES)), *options, "-n", "x"]
    return draw(st.lists(JUNK | st.sampled_from([*WITH_RUN, "list", "--version", "fit"]), max_size=3))


@pytest.fixture(scope="module")
def desk(run, tmp_path_factory):
    """A folder with what the arguments name."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "own.csv").write_text("a,b\n" + "".join(f"{i % 7},{i % 5}\n" for i in range(20)))
    (folder / "text.csv").write_text("a,b\n1,2\n3,about 4\n")
    np.save(folder / "rows.npy", np.random.default_rng(0).normal(size=(20, 2)))
    np.save(folder / "pickle.npy", np.array([{}], dtype=object), allow_pickle=True)
    (folder / "folder").mkdir()
    shutil.copytree(run, folder / "run")
    shutil.copytree(run, folder / "broken")
    (folder / "broken" / run_folder.TENSORS).write_bytes(b"cut")
    return folder


def everything(folder):
    """Return all that a folder holds."""
    return {str(path.relative_to(folder)): path.is_dir() or path.read_bytes() for path in folder.rglob("*")}


@given(arguments=command_lines())
def test_command_lines(desk, arguments):
    out, err = io.StringIO(), io.StringIO()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        here = Path(folder) / "desk"
        shutil.copytree(desk, here)
        patch.chdir(here)
        patch.setattr(sys, "argv", ["pplgen", *arguments])
        patch.setenv("COLUMNS", "200")
        before = everything(here)
        with soon(), warnings.catch_warnings(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            warnings.simplefilter("default")
            with pytest.raises(SystemExit) as ended:
                main()
        after = everything(here)
    lines = err.getvalue().splitlines()
    assert ended.value.code in ((0, 1, 2) if arguments[:1] == ["check"] else (0, 2)), lines
    assert not [name for name in after if ".unfinished" in name]
    if ended.value.code == 2:
        assert after == before, "a refusal leaves nothing behind"
        assert all(line.startswith("pplgen: ") for line in lines) or "Usage:" in err.getvalue(), lines
    else:
        assert {name for name in before if name not in after} <= {f"run/{checkpoint.NAME}"}
    assert "Traceback" not in err.getvalue()
