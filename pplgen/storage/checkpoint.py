"""Where a fit stands, in a file and the one before it, each whole: a killed fit continues from the newer one."""

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
"""The checkpoint before ``NAME``, in case that one cannot be read."""
DEFAULT_INTERVAL = 10.0
"""Between two checkpoints, at least, unless told otherwise."""
FORMAT = 2
"""Version of the layout; another one is refused."""


class CheckpointOptions(NamedTuple):
    """Where checkpoints are kept, and how often."""

    directory: Path
    seconds: float = DEFAULT_INTERVAL
    """Between two of them, at least."""


class Checkpoint:
    """Files that hold where one fit stands.

    Parameters
    ----------
    keeping
        Where the files are, or will be, and how often they are written.
    fit
        What tells this fit from others, by ``content_digest``.
    device
        Where random numbers are drawn.

    Raises
    ------
    InputError
        Where nothing can be written there.
    """

    def __init__(self, keeping: CheckpointOptions, fit: str, device: torch.device) -> None:
        directory, self.seconds = keeping
        self.path, self.fit, self.device = directory / NAME, fit, device
        self._previous: Path | None = self.path.with_name(PREVIOUS)
        self._saved = time.monotonic()
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=directory):
                pass
        except OSError as error:
            raise InputError(f"{str(directory)!r} cannot be written: {error.strerror}") from None
        atomic.remove_unfinished(directory, NAME)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Read tensors and facts back, and put the random generator where it was; ``None`` where there is no file.

        Where the newest file cannot be read, that is a ``DataWarning``, and the one before it is taken.

        Raises
        ------
        InputError
            Where no file can be read, or it is of another fit or layout.
        """
        faults = []
        for path in (self.path, self.path.with_name(PREVIOUS)):
            if not path.exists():
                continue
            try:
                tensors, facts = _read(path)
            except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
                faults.append(f"{str(path)!r} cannot be read as a checkpoint: {error}")
                continue
            self._require_same(facts, path)
            if faults:
                warnings.warn(f"{faults[0]}; the fit continues from the one before it", DataWarning, stacklevel=2)
                self._previous = None  # what cannot be read does not take the place of what can
            torch.set_rng_state(tensors.pop("generator"))
            if self.device.type == "cuda" and "cuda_generator" in tensors:
                torch.cuda.set_rng_state(tensors.pop("cuda_generator"), self.device)
            return tensors, facts["facts"]
        if faults:
            raise InputError(f"{faults[0]}; remove the file to start over")
        return None

    def due(self) -> bool:
        """Whether it is time for the next one."""
        return time.monotonic() - self._saved >= self.seconds

    def save(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write tensors, facts and the state of the random generator.

        A file that cannot be written is a ``DataWarning``, for the fit can go on; those written before stay.
        """
        content = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        content["generator"] = torch.get_rng_state()
        if self.device.type == "cuda":
            content["cuda_generator"] = torch.cuda.get_rng_state(self.device)
        told = json.dumps({"format": FORMAT, "fit": self.fit, "facts": facts})
        try:
            content_and_facts = save(content, metadata={"facts": told, "digest": _digest(told, content)})
            atomic.write_bytes(self.path, content_and_facts, previous=self._previous)
            self._previous = self.path.with_name(PREVIOUS)
        except OSError as error:
            kept = "; the one that was written before is kept" if exists(self.path.parent) else ""
            message = f"{str(self.path)!r} cannot be written: {error.strerror or error}{kept}"
            warnings.warn(message, DataWarning, stacklevel=2)
        self._saved = time.monotonic()

    def _require_same(self, facts: Any, path: Path) -> None:
        """Refuse a checkpoint of another fit, or of another layout."""
        if facts.get("format") != FORMAT:
            raise InputError(f"{str(path)!r} was written by another version of pplgen; remove the file to start over")
        if facts.get("fit") != self.fit:
            raise InputError(
                f"{str(path)!r} is of another fit: its data, story, seed or options differ; "
                "give them again as they were, or remove the file"
            )


def exists(directory: Path) -> bool:
    """Whether a directory holds a checkpoint."""
    return any(os.path.isfile(directory / name) for name in (NAME, PREVIOUS))


def remove(directory: Path) -> None:
    """Remove the checkpoints of a directory."""
    for name in (PREVIOUS, NAME):
        (directory / name).unlink(missing_ok=True)


def content_digest(options: Mapping[str, Any], tensors: Iterable[Tensor]) -> str:
    """Digest of what a fit starts from: what it computes, its options, and its data and starting parameters."""
    digest = hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode())
    for value in tensors:
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what a checkpoint holds, and hold it against its digest."""
    if not path.is_file():
        raise OSError("it is not a file")
    with safe_open(path, framework="pt") as file:
        told, digest = file.metadata()["facts"], file.metadata()["digest"]
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if digest != _digest(told, tensors):
        raise ValueError("its content is not what was written")
    facts = json.loads(told)
    if not isinstance(facts, dict):
        raise ValueError("it tells no facts")
    return tensors, facts


def _digest(told: str, tensors: Mapping[str, Tensor]) -> str:
    """Digest of everything in a checkpoint."""
    return content_digest({"facts": told, "names": sorted(tensors)}, (tensors[name] for name in sorted(tensors)))
