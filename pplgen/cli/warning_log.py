"""Warnings on the command line: actionable ones are printed, the others saved to the run's log."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator

import typer

from pplgen.errors import DataWarning, printable

__all__ = ["WARNINGS", "WarningLog", "is_first_process"]


def is_first_process() -> bool:
    """Return whether this is the only process, or the first that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


class WarningLog(logging.Handler):
    """Prints warnings that the user can act on; collects the others for the run's log."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    @contextlib.contextmanager
    def captured(self) -> Iterator[None]:
        """Capture Python's warnings inside this context."""
        logger = logging.getLogger("py.warnings")
        logging.captureWarnings(True)
        logger.addHandler(self)
        try:
            yield
        finally:
            logger.removeHandler(self)
            logging.captureWarnings(False)

    def emit(self, record: logging.LogRecord) -> None:
        """Print a warning, or collect it."""
        text = record.getMessage()
        if match := re.search(rf"{DataWarning.__name__}: (.*)", text):
            if is_first_process():
                typer.echo(f"pplgen: {printable(match[1])}", err=True)
        else:
            self.lines.append(text)


WARNINGS = WarningLog()
"""Warnings of this process."""
