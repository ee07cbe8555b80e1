"""Public data sets' files, downloaded once: from one mirror or the next, held against a checksum, kept in a cache."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import secrets
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pplgen.errors import InputError

__all__ = ["CACHE", "MIRROR", "PublicFile", "cache_directory", "public_files"]

CACHE = "PPLGEN_CACHE"
"""Environment variable: the directory in which downloaded files are kept."""
MIRROR = "PPLGEN_MIRROR"
"""Environment variable: where to download from in place of ``MIRRORS``; an http, https or file address."""
MIRRORS = ("https://ossci-datasets.s3.amazonaws.com", "https://storage.googleapis.com/cvdf-datasets")
"""Addresses below which a data set's name is a folder."""
READ_TIMEOUT, TOTAL_TIMEOUT = 30.0, 600.0
"""Seconds without any byte, and for a whole file, after which a mirror is given up."""
_PIECE = 2**16


@dataclass(frozen=True)
class PublicFile:
    """A published file."""

    name: str
    size: int
    """In bytes."""
    sha256: str
    """In hexadecimal."""

    def mismatch(self, content: bytes) -> str | None:
        """Say how ``content`` differs from what was published; ``None`` where it does not."""
        if len(content) != self.size:
            return f"it holds {len(content):,} bytes, where {self.size:,} were published"
        if hashlib.sha256(content).hexdigest() != self.sha256:
            return "its SHA-256 is not the one that was published"
        return None


def cache_directory(given: str | Path | None = None) -> Path:
    """Return where downloaded files are kept: ``given``, else ``PPLGEN_CACHE``, else the platform's place for such."""
    if given is not None:
        return Path(given)
    if chosen := os.environ.get(CACHE):
        return Path(chosen)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "pplgen"


def public_files(data_set: str, files: Sequence[PublicFile], cache: str | Path | None = None) -> list[bytes]:
    """Return the content of a data set's files, from the cache or else from the first mirror that has them.

    Parameters
    ----------
    data_set
        The name of a folder, below the cache and below each mirror.
    files
        What to return.
    cache
        As ``cache_directory`` takes it.

    Raises
    ------
    InputError
        Where a file cannot be downloaded or kept, or the one in the cache is not the published one.
    """
    folder = cache_directory(cache) / data_set
    return [_from_cache(folder, file) or _downloaded(data_set, folder, file, files) for file in files]


def _from_cache(folder: Path, file: PublicFile) -> bytes | None:
    """Read a file that is there already."""
    path = folder / file.name
    try:
        content = path.read_bytes() if path.is_file() else None
    except OSError as error:
        raise InputError(f"{str(path)!r}: cannot be read: {error.strerror}") from None
    if content is not None and (fault := file.mismatch(content)):
        raise InputError(f"{str(path)!r}: {fault}; delete it, and it is downloaded again")
    return content


def _downloaded(data_set: str, folder: Path, file: PublicFile, files: Sequence[PublicFile]) -> bytes:
    """Download a file and keep it."""
    unfinished = folder / f".unfinished-{secrets.token_hex(8)}-{file.name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        unfinished.touch()
        content = _from_mirrors(data_set, folder, file, files)
        unfinished.write_bytes(content)
        os.replace(unfinished, folder / file.name)
    except OSError as error:
        raise InputError(
            f"{str(folder)!r}: downloads cannot be kept there: {error.strerror or error}; "
            f"name another directory in {CACHE}"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
    return content


def _from_mirrors(data_set: str, folder: Path, file: PublicFile, files: Sequence[PublicFile]) -> bytes:
    """Try one mirror after the other."""
    given = os.environ.get(MIRROR)
    reasons = []
    for base in [given] if given else MIRRORS:
        address = f"{base.rstrip('/')}/{data_set}/{file.name}"
        try:
            content = _read(address, file)
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or str(error) or type(error).__name__
            reasons.append(f"{address} ({reason})")
            continue
        if (fault := file.mismatch(content)) is None:
            return content
        reasons.append(f"{address} ({fault})")
    names = " and ".join(each.name for each in files)
    raise InputError(
        f"data set {data_set!r} could not be downloaded from {' or '.join(reasons)}: put {names} into {str(folder)!r}"
    )


def _read(address: str, file: PublicFile) -> bytes:
    """Read an address, at most a byte more than was published."""
    if not address.startswith(("http://", "https://", "file://")):
        raise ValueError("expected an http, https or file address")
    if sys.stderr.isatty():
        print(f"downloading {address}, {file.size / 1e6:.1f} MB", file=sys.stderr)
    content = bytearray()
    ends = time.monotonic() + TOTAL_TIMEOUT
    with urllib.request.urlopen(address, timeout=READ_TIMEOUT) as response:
        while len(content) <= file.size and (piece := response.read(min(_PIECE, file.size + 1 - len(content)))):
            content += piece
            if time.monotonic() > ends:
                raise TimeoutError(f"not finished after {TOTAL_TIMEOUT:g} seconds")
    if len(content) > file.size:
        raise ValueError(f"it is longer than the {file.size:,} bytes that were published")
    return bytes(content)
