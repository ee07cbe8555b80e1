"""Download public data sets once, with mirrors, checksums and a cache."""

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
"""Environment variable: directory of downloaded files."""
MIRROR = "PPLGEN_MIRROR"
"""Environment variable: an http, https or file URL to use instead of ``MIRRORS``."""
MIRRORS = ("https://ossci-datasets.s3.amazonaws.com", "https://storage.googleapis.com/cvdf-datasets")
"""Base URLs; each data set is a folder below."""
READ_TIMEOUT, TOTAL_TIMEOUT = 30.0, 600.0
"""Seconds without data, and per file, after which a mirror is abandoned."""
_CHUNK_SIZE = 2**16


@dataclass(frozen=True)
class PublicFile:
    """A published file."""

    name: str
    size: int
    """In bytes."""
    sha256: str
    """In hexadecimal."""

    def mismatch(self, content: bytes) -> str | None:
        """Describe how ``content`` differs from the published file; ``None`` where it is identical."""
        if len(content) != self.size:
            return f"it has {len(content):,} bytes; the published file has {self.size:,}"
        if hashlib.sha256(content).hexdigest() != self.sha256:
            return "its SHA-256 differs from that of the published file"
        return None


def cache_directory(directory: str | Path | None = None) -> Path:
    """Return the cache directory: ``directory``, else ``PPLGEN_CACHE``, else the platform's cache directory."""
    if directory is not None:
        return Path(directory)
    if from_environment := os.environ.get(CACHE):
        return Path(from_environment)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "pplgen"


def public_files(data_set: str, files: Sequence[PublicFile], cache: str | Path | None = None) -> list[bytes]:
    """Return the content of a data set's files, from the cache or the first mirror that has them.

    Parameters
    ----------
    data_set
        Folder name below the cache and below each mirror.
    files
        Files to return.
    cache
        Argument of ``cache_directory``.

    Raises
    ------
    InputError
        Where a file cannot be downloaded or saved, or the cached file is not the published one.
    """
    folder = cache_directory(cache) / data_set
    return [_from_cache(folder, file) or _download(data_set, folder, file, files) for file in files]


def _from_cache(folder: Path, file: PublicFile) -> bytes | None:
    """Read a cached file; ``None`` where there is none."""
    path = folder / file.name
    try:
        content = path.read_bytes() if path.is_file() else None
    except OSError as error:
        raise InputError(f"{str(path)!r}: cannot be read: {error.strerror}") from None
    if content is not None and (mismatch := file.mismatch(content)):
        raise InputError(f"{str(path)!r}: {mismatch}; delete it to download it again")
    return content


def _download(data_set: str, folder: Path, file: PublicFile, files: Sequence[PublicFile]) -> bytes:
    """Download a file and save it in the cache."""
    unfinished = folder / f".unfinished-{secrets.token_hex(8)}-{file.name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        unfinished.touch()
        content = _from_mirrors(data_set, folder, file, files)
        unfinished.write_bytes(content)
        os.replace(unfinished, folder / file.name)
    except OSError as error:
        raise InputError(
            f"{str(folder)!r}: downloads cannot be saved there: {error.strerror or error}; "
            f"set {CACHE} to another directory"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
    return content


def _from_mirrors(data_set: str, folder: Path, file: PublicFile, files: Sequence[PublicFile]) -> bytes:
    """Try the mirrors in turn."""
    mirror = os.environ.get(MIRROR)
    reasons = []
    for base in [mirror] if mirror else MIRRORS:
        address = f"{base.rstrip('/')}/{data_set}/{file.name}"
        try:
            content = _read(address, file)
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or str(error) or type(error).__name__
            reasons.append(f"{address} ({reason})")
            continue
        if (mismatch := file.mismatch(content)) is None:
            return content
        reasons.append(f"{address} ({mismatch})")
    names = " and ".join(each.name for each in files)
    raise InputError(
        f"data set {data_set!r} could not be downloaded from {' or '.join(reasons)}; place {names} in {str(folder)!r}"
    )


def _read(address: str, file: PublicFile) -> bytes:
    """Read a URL, at most one byte more than the published size."""
    if not address.startswith(("http://", "https://", "file://")):
        raise ValueError("expected an http, https or file URL")
    if sys.stderr.isatty():
        print(f"downloading {address}, {file.size / 1e6:.1f} MB", file=sys.stderr)
    content = bytearray()
    deadline = time.monotonic() + TOTAL_TIMEOUT
    with urllib.request.urlopen(address, timeout=READ_TIMEOUT) as response:
        while len(content) <= file.size and (chunk := response.read(min(_CHUNK_SIZE, file.size + 1 - len(content)))):
            content += chunk
            if time.monotonic() > deadline:
                raise TimeoutError(f"not finished after {TOTAL_TIMEOUT:g} seconds")
    if len(content) > file.size:
        raise ValueError(f"it is longer than the published {file.size:,} bytes")
    return bytes(content)
