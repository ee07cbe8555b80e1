"""The header of a run: its schema, and a digest that detects changes."""

from __future__ import annotations

import hashlib
import json
import reprlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pplgen.errors import InputError

__all__ = ["DIGEST_KEY", "FORMAT", "read_header", "with_digest"]

FORMAT = 2
"""Version of the layout of a run; other versions are refused."""
DIGEST_KEY = "header_sha256"
"""Key of the digest of all other entries."""
MAX_BYTES = 2**26
"""Maximum size of a header, in bytes."""


class Kind(NamedTuple):
    """Type of a value: its description in messages, and a test for it."""

    description: str
    is_valid: Callable[[Any], bool]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    # an integer may be too large for a float
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_list_of_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _is_options(value: Any) -> bool:
    """Whether all keys are valid argument names, since a report shows them as code."""
    return isinstance(value, dict) and all(name.isidentifier() for name in value)


TEXT = Kind("a string", _is_text)
COUNT = Kind("a whole number of at least 0", _is_count)
NUMBER = Kind("a finite number", _is_number)
TEXTS = Kind("a list of strings", _is_list_of_strings)
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
OBJECTS = Kind("a list of objects", lambda value: isinstance(value, list) and all(isinstance(e, dict) for e in value))
OPTIONS = Kind("an object whose keys are argument names", _is_options)
DTYPE = Kind("'float32' or 'float64'", lambda value: value in ("float32", "float64"))

REQUIRED = {
    "story": TEXT,
    "config": OBJECT,
    "columns": TEXTS,
    "seed": COUNT,
    "path": TEXT,
    "data": OBJECT,
    "options": OPTIONS,
    "created": TEXT,
    "versions": OBJECT,
    "parameters_sha256": TEXT,
    DIGEST_KEY: TEXT,
}
STORY = {"dtype": DTYPE}
PAIR = {"pair": OBJECT, "arguments_sha256": TEXT}
DATA = {"name": TEXT, "num_rows": COUNT, "fingerprint": TEXT, "dtype": DTYPE}
SVI = {"best": COUNT, "num_failed": COUNT, "runs": OBJECTS}
RESTART = {"seed": COUNT, "elbo": NUMBER, "elbo_error": NUMBER, "stop": TEXT}
NUTS = {"chains": OBJECT}
CHAINS = {"num_chains": COUNT, "num_draws": COUNT, "warm_up": COUNT, "divergences": COUNT, "acceptance": NUMBER}
DIGESTS = Kind("an object of strings", lambda value: isinstance(value, dict) and all(map(_is_text, value.values())))
OPTIONAL = {"command": TEXT, "source_sha256": TEXT, "guide": TEXT, "files": DIGESTS}


def with_digest(header: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries with their digest, which replaces an older one."""
    entries = {name: value for name, value in header.items() if name != DIGEST_KEY}
    return {**entries, DIGEST_KEY: _digest(json.loads(json.dumps(entries, allow_nan=False)))}


def read_header(path: Path) -> dict[str, Any]:
    """Read and validate a header.

    Raises
    ------
    FileNotFoundError
        Where there is no header.
    InputError
        Where it is truncated, of another version, lacks an entry, has an entry of the wrong type, or was changed.
    """
    where = repr(str(path))
    try:
        if not path.is_file() and path.exists():
            raise InputError(f"{where} is not a file; expected a run's header")
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{where} has {path.stat().st_size:,} bytes; expected a header of at most {MAX_BYTES:,}")
        header = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
        json.dumps(header, ensure_ascii=False).encode()  # refuses unpaired surrogates
    except FileNotFoundError:
        raise
    except InputError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{where} cannot be read as a header: {error}") from None
    if not isinstance(header, dict):
        raise InputError(f"{where} cannot be read as a header: it is {reprlib.repr(header)}; expected an object")
    _check_format(header.get("format"), where)
    _check_content(header, where)
    entries = {name: value for name, value in header.items() if name != DIGEST_KEY}
    if header[DIGEST_KEY] != _digest(entries):
        raise InputError(f"{where} was changed after it was written; restore the original file, or fit again")
    return header


def _digest(entries: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a header's entries, regardless of order and whitespace."""
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _check_format(version: Any, where: str) -> None:
    """Raise ``InputError`` for another version of the layout."""
    if version == FORMAT and _is_count(version):
        return
    if _is_count(version) and version > FORMAT:
        raise InputError(
            f"{where}: format {version} is of a newer pplgen; this version reads format {FORMAT}; install a newer one"
        )
    raise InputError(f"{where}: format {reprlib.repr(version)}; this version reads format {FORMAT}; fit again")


def _check_content(header: dict[str, Any], where: str) -> None:
    """Check the presence and type of all entries of a header."""
    _require(header, REQUIRED, where)
    _require(header, {name: kind for name, kind in OPTIONAL.items() if name in header}, where)
    if "pair" in header:
        _require(header, PAIR, where)
    else:
        _require(header, STORY, where)
        _require(header["data"], DATA, f"{where}, data")
        optional = {name: TEXTS for name in ("known", "label_names") if name in header["data"]}
        _require(header["data"], optional, f"{where}, data")
    if header.get("method") == "nuts":
        _require(header, NUTS, where)
        _require(header["chains"], CHAINS, f"{where}, chains")
        return
    _require(header, SVI, where)
    for index, run in enumerate(header["runs"]):
        _require(run, RESTART, f"{where}, runs[{index}]")
    if header["best"] >= len(header["runs"]):
        raise InputError(
            f"{where}: 'best' is {header['best']}; expected an index of the {len(header['runs'])} runs, from 0"
        )


def _require(entries: Mapping[str, Any], kinds: Mapping[str, Kind], where: str) -> None:
    """Raise ``InputError`` for the first entry that is missing or of the wrong type."""
    for name, kind in kinds.items():
        if name not in entries:
            raise InputError(f"{where}: {name!r} is missing; expected {kind.description}")
        if not kind.is_valid(entries[name]):
            raise InputError(f"{where}: {name!r} is {reprlib.repr(entries[name])}; expected {kind.description}")
