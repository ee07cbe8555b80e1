"""Warnings on the command line: those that the user can act on are printed, the others kept for the run's log."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator

import typer

from pplgen.errors import DataWarning, printable

__all__ = ["WarningLog", "speaks"]


def speaks() -> bool:
    """Whether this process talks to the user: of those that torchrun has started, the first."""
    return os.environ.get("RANK", "0") == "0"


class WarningLog(logging.Handler):
    """Echoes warnings that the user can act on; keeps the others for the run's log."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    @contextlib.contextmanager
    def captured(self) -> Iterator[None]:
        """Take Python's warnings meanwhile."""
        logger = logging.getLogger("py.warnings")
        logging.captureWarnings(True)
        logger.addHandler(self)
        try:
            yield
        finally:
            logger.removeHandler(self)
            logging.captureWarnings(False)

    def emit(self, record: logging.LogRecord) -> None:
        """Print a warning, or keep it."""
        text = record.getMessage()
        if found := re.search(rf"{DataWarning.__name__}: (.*)", text):
            if speaks():
                typer.echo(f"pplgen: {printable(found[1])}", err=True)
        else:
            self.lines.append(text)
