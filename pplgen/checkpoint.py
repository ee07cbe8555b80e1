"""Where a fit stands, in one file that is replaced whole: a killed fit continues from it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pplgen.errors import DataWarning, InputError

__all__ = ["NAME", "Checkpoint", "identity"]

NAME = "checkpoint.safetensors"
SECONDS = 10.0
"""Between two checkpoints, at least."""


class Checkpoint:
    """A file that holds where one fit stands.

    Parameters
    ----------
    directory
        Where the file is, or will be.
    fit
        What tells this fit from others, by ``identity``.
    device
        Where random numbers are drawn.

    Raises
    ------
    InputError
        Where nothing can be written there.
    """

    def __init__(self, directory: Path, fit: str, device: torch.device) -> None:
        self.path, self.fit, self.device = directory / NAME, fit, device
        self._saved = time.monotonic()
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=directory):
                pass
        except OSError as error:
            raise InputError(f"{str(directory)!r} cannot be written: {error.strerror}") from None

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Read tensors and facts back, and put the random generator where it was; ``None`` where there is no file.

        Raises
        ------
        InputError
            Where the file cannot be read, or is of another fit.
        """
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                facts = json.loads(file.metadata()["facts"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{str(self.path)!r} cannot be read as a checkpoint: {error}") from None
        if facts["fit"] != self.fit:
            raise InputError(
                f"{str(self.path)!r} is of another fit: its data, story, seed or options differ; "
                "give them again as they were, or remove the file"
            )
        torch.set_rng_state(tensors.pop("generator"))
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors.pop("cuda_generator"), self.device)
        return tensors, facts

    def due(self) -> bool:
        """Whether it is time for the next one."""
        return time.monotonic() - self._saved >= SECONDS

    def save(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write tensors, facts and the state of the random generator.

        A file that cannot be written is a ``DataWarning``, for the fit can go on; an older one stays as it was.
        """
        held = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        unfinished = self.path.with_name(f".unfinished-{NAME}")
        try:
            content = {**held, "generator": torch.get_rng_state()}
            if self.device.type == "cuda":
                content["cuda_generator"] = torch.cuda.get_rng_state(self.device)
            save_file(content, unfinished, metadata={"facts": json.dumps({**facts, "fit": self.fit})})
            os.replace(unfinished, self.path)
        except (OSError, SafetensorError) as error:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
            warnings.warn(f"{str(self.path)!r} cannot be written: {error}", DataWarning, stacklevel=2)
        self._saved = time.monotonic()


def identity(options: Mapping[str, Any], tensors: Iterable[Tensor]) -> str:
    """Digest of what a fit starts from: what it computes, its options, and its data and starting parameters."""
    digest = hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode())
    for value in tensors:
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
