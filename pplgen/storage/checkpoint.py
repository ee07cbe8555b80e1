"""Checkpoints of a fit: the latest and the previous one, written atomically; a killed fit resumes from the latest."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pplgen.errors import DataWarning, InputError
from pplgen.storage import atomic

__all__ = [
    "DEFAULT_INTERVAL",
    "NAME",
    "PREVIOUS",
    "Checkpoint",
    "CheckpointOptions",
    "content_digest",
    "exists",
    "remove",
]

NAME = "checkpoint.safetensors"
PREVIOUS = "checkpoint-before.safetensors"
"""The previous checkpoint, in case ``NAME`` cannot be read."""
DEFAULT_INTERVAL = 10.0
"""Default minimum time between two checkpoints, in seconds."""
FORMAT = 2
"""Version of the file layout; other versions are refused."""


class CheckpointOptions(NamedTuple):
    """Directory and frequency of checkpoints."""

    directory: Path
    interval: float = DEFAULT_INTERVAL
    """Minimum time between two checkpoints, in seconds."""


class Checkpoint:
    """Checkpoint files of one fit.

    Parameters
    ----------
    options
        Directory and frequency of the checkpoints.
    fit
        Digest that identifies the fit, from ``content_digest``.
    device
        Device on which random numbers are drawn.

    Raises
    ------
    InputError
        Where the directory cannot be written.
    """

    def __init__(self, options: CheckpointOptions, fit: str, device: torch.device) -> None:
        directory, self.interval = options
        self.path, self.fit, self.device = directory / NAME, fit, device
        self._previous: Path | None = self.path.with_name(PREVIOUS)
        self._saved_at = time.monotonic()
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=directory):
                pass
        except OSError as error:
            raise InputError(f"{str(directory)!r} cannot be written: {error.strerror}") from None
        atomic.remove_unfinished(directory, NAME)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Load tensors and metadata and restore the random state; ``None`` where there is no checkpoint.

        If the latest checkpoint cannot be read, the previous one is loaded with a ``DataWarning``.

        Raises
        ------
        InputError
            Where no checkpoint can be read, or it is from another fit or layout version.
        """
        failures = []
        for path in (self.path, self.path.with_name(PREVIOUS)):
            if not path.exists():
                continue
            try:
                tensors, metadata = _read(path)
            except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
                failures.append(f"{str(path)!r} cannot be read as a checkpoint: {error}")
                continue
            self._check_identity(metadata, path)
            if failures:
                warnings.warn(f"{failures[0]}; the fit resumes from the previous checkpoint", DataWarning, stacklevel=2)
                self._previous = None  # the readable checkpoint must not be replaced by the unreadable one
            torch.set_rng_state(tensors.pop("generator"))
            if self.device.type == "cuda" and "cuda_generator" in tensors:
                torch.cuda.set_rng_state(tensors.pop("cuda_generator"), self.device)
            return tensors, metadata["facts"]
        if failures:
            raise InputError(f"{failures[0]}; remove the file to start over")
        return None

    def due(self) -> bool:
        """Whether the interval since the last checkpoint has passed."""
        return time.monotonic() - self._saved_at >= self.interval

    def save(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Save tensors, metadata and the random state.

        If the file cannot be written, this is a ``DataWarning``: the fit continues and earlier checkpoints are kept.
        """
        content = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        content["generator"] = torch.get_rng_state()
        if self.device.type == "cuda":
            content["cuda_generator"] = torch.cuda.get_rng_state(self.device)
        text = json.dumps({"format": FORMAT, "fit": self.fit, "facts": metadata})
        try:
            file_content = save(content, metadata={"facts": text, "digest": _digest(text, content)})
            atomic.write_bytes(self.path, file_content, previous=self._previous)
            self._previous = self.path.with_name(PREVIOUS)
        except OSError as error:
            kept = "; the previous checkpoint is kept" if exists(self.path.parent) else ""
            message = f"{str(self.path)!r} cannot be written: {error.strerror or error}{kept}"
            warnings.warn(message, DataWarning, stacklevel=2)
        self._saved_at = time.monotonic()

    def _check_identity(self, metadata: Any, path: Path) -> None:
        """Raise ``InputError`` for a checkpoint of another fit or layout version."""
        if metadata.get("format") != FORMAT:
            raise InputError(f"{str(path)!r} was written by another version of pplgen; remove the file to start over")
        if metadata.get("fit") != self.fit:
            raise InputError(
                f"{str(path)!r} is of another fit: its data, story, seed or options differ; "
                "give the same ones, or remove the file to start over"
            )


def exists(directory: Path) -> bool:
    """Whether a directory contains a checkpoint."""
    return any(os.path.isfile(directory / name) for name in (NAME, PREVIOUS))


def remove(directory: Path) -> None:
    """Remove the checkpoints of a directory."""
    for name in (PREVIOUS, NAME):
        (directory / name).unlink(missing_ok=True)


def content_digest(options: Mapping[str, Any], tensors: Iterable[Tensor]) -> str:
    """SHA-256 of options and tensors, such as those that determine a fit: its data and initial parameters."""
    digest = hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode())
    for value in tensors:
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint and verify its digest."""
    if not path.is_file():
        raise OSError("it is not a file")
    with safe_open(path, framework="pt") as file:
        text, digest = file.metadata()["facts"], file.metadata()["digest"]
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if digest != _digest(text, tensors):
        raise ValueError("its content does not match its digest")
    metadata = json.loads(text)
    if not isinstance(metadata, dict):
        raise ValueError("its metadata are not a JSON object")
    return tensors, metadata


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the digest of a checkpoint's metadata and tensors."""
    return content_digest({"facts": text, "names": sorted(tensors)}, (tensors[name] for name in sorted(tensors)))
