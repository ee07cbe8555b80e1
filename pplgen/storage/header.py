"""A run's header: what must be in it, and a seal that tells whether it is as it was written."""

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
"""Version of the layout of a run; another one is refused."""
DIGEST_KEY = "header_sha256"
"""Key of the digest of all others."""
LARGEST = 2**26
"""Bytes of a header at most."""


class Kind(NamedTuple):
    """What a value must be."""

    words: str
    fits: Callable[[Any], bool]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    # a whole number may be too large for a float
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _are_options(value: Any) -> bool:
    """Whether names are those of arguments, for a report shows them as code."""
    return isinstance(value, dict) and all(name.isidentifier() for name in value)


TEXT = Kind("text", lambda value: isinstance(value, str))
COUNT = Kind("a whole number of at least 0", _is_count)
NUMBER = Kind("a finite number", _is_number)
TEXTS = Kind("a list of texts", _are_texts)
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
OBJECTS = Kind("a list of objects", lambda value: isinstance(value, list) and all(isinstance(e, dict) for e in value))
OPTIONS = Kind("an object whose names are those of arguments", _are_options)
TYPE = Kind("'float32' or 'float64'", lambda value: value in ("float32", "float64"))

ALWAYS = {
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
OF_A_STORY = {"dtype": TYPE}
OF_A_PAIR = {"pair": OBJECT, "arguments_sha256": TEXT}
DATA = {"name": TEXT, "num_rows": COUNT, "fingerprint": TEXT, "dtype": TYPE}
TRAINED = {"best": COUNT, "num_failed": COUNT, "runs": OBJECTS}
RUN = {"seed": COUNT, "elbo": NUMBER, "elbo_error": NUMBER, "stop": TEXT}
SAMPLED = {"chains": OBJECT}
CHAINS = {"num_chains": COUNT, "num_draws": COUNT, "warm_up": COUNT, "divergences": COUNT, "acceptance": NUMBER}
OPTIONAL = {"command": TEXT, "source_sha256": TEXT}


def with_digest(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts with the digest of all of them; an older one is left out."""
    told = {name: value for name, value in facts.items() if name != DIGEST_KEY}
    return {**told, DIGEST_KEY: _digest(json.loads(json.dumps(told, allow_nan=False)))}


def read_header(path: Path) -> dict[str, Any]:
    """Read a header back.

    Raises
    ------
    FileNotFoundError
        Where there is none.
    InputError
        Where it is cut short, of another version, lacks something, holds something of another kind, or is not as it
        was written.
    """
    where = repr(str(path))
    try:
        if not path.is_file() and path.exists():
            raise InputError(f"{where} is not a file; expected a run's header")
        if path.stat().st_size > LARGEST:
            raise InputError(f"{where} holds {path.stat().st_size:,} bytes; expected a header of at most {LARGEST:,}")
        header = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
        json.dumps(header, ensure_ascii=False).encode()  # refuses halves of characters
    except FileNotFoundError:
        raise
    except InputError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{where} cannot be read as a header: {error}") from None
    if not isinstance(header, dict):
        raise InputError(f"{where} cannot be read as a header: it holds {reprlib.repr(header)}, where one object was")
    _require_format(header.get("format"), where)
    _require_content(header, where)
    told = {name: value for name, value in header.items() if name != DIGEST_KEY}
    if header[DIGEST_KEY] != _digest(told):
        raise InputError(f"{where} was changed after it was written; bring back the file as it was, or fit again")
    return header


def _digest(facts: Mapping[str, Any]) -> str:
    """SHA-256 of what a header says, whatever its order and spaces."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _require_format(found: Any, where: str) -> None:
    """Refuse another version of the layout."""
    if found == FORMAT and _is_count(found):
        return
    if _is_count(found) and found > FORMAT:
        raise InputError(
            f"{where}: format {found}, of a newer pplgen, where this version reads format {FORMAT}; install a newer one"
        )
    raise InputError(f"{where}: format {reprlib.repr(found)}, where this version reads format {FORMAT}; fit again")


def _require_content(header: dict[str, Any], where: str) -> None:
    """Hold everything in a header against its kind."""
    _require(header, ALWAYS, where)
    _require(header, {name: kind for name, kind in OPTIONAL.items() if name in header}, where)
    if "pair" in header:
        _require(header, OF_A_PAIR, where)
    else:
        _require(header, OF_A_STORY, where)
        _require(header["data"], DATA, f"{where}, data")
        told = {name: TEXTS for name in ("known", "label_names") if name in header["data"]}
        _require(header["data"], told, f"{where}, data")
    if header.get("method") == "nuts":
        _require(header, SAMPLED, where)
        _require(header["chains"], CHAINS, f"{where}, chains")
        return
    _require(header, TRAINED, where)
    for index, run in enumerate(header["runs"]):
        _require(run, RUN, f"{where}, runs[{index}]")
    if header["best"] >= len(header["runs"]):
        raise InputError(f"{where}: 'best' is {header['best']}; expected one of {len(header['runs'])} runs, from 0 on")


def _require(facts: Mapping[str, Any], kinds: Mapping[str, Kind], where: str) -> None:
    """Name the first fact that is missing or of another kind."""
    for name, kind in kinds.items():
        if name not in facts:
            raise InputError(f"{where}: there is no {name!r} in it; expected {kind.words}")
        if not kind.fits(facts[name]):
            raise InputError(f"{where}: {name!r} is {reprlib.repr(facts[name])}; expected {kind.words}")
