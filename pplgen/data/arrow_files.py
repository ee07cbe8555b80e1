"""Parquet and Arrow files through PyArrow."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import narwhals.stable.v2 as nw

from pplgen.data.paths import as_input_error, import_optional

__all__ = ["data_columns", "read_arrow", "read_parquet"]


def read_parquet(path: Path) -> Any:
    """Read a Parquet file as a frame of narwhals, without the index that pandas stores."""
    return _read(path, "a Parquet file", lambda: import_optional("pyarrow.parquet", repr(str(path))).read_table(path))


def read_arrow(path: Path) -> Any:
    """Read a Feather or Arrow file as a frame of narwhals, without the index that pandas stores."""
    return _read(path, "an Arrow file", lambda: _read_ipc(path))


def _read_ipc(path: Path) -> Any:
    """Read the format with random access, which Feather is, or the one for streams."""
    arrow, ipc = (import_optional(module, repr(str(path))) for module in ("pyarrow", "pyarrow.ipc"))
    with path.open("rb") as file:
        is_file, is_feather = file.read(6) == b"ARROW1", file.seek(0) == 0 and file.read(4) == b"FEA1"
    if is_feather:
        return import_optional("pyarrow.feather", repr(str(path))).read_table(path)
    with arrow.OSFile(str(path)) as source:
        return (ipc.open_file if is_file else ipc.open_stream)(source).read_all()


def _read(path: Path, kind: str, read: Callable[[], Any]) -> Any:
    import_optional("pyarrow", repr(str(path)))
    # damaged metadata raise many types of errors
    with as_input_error(path, kind, Exception):
        table = read()
        table.validate(full=True)
        return nw.from_native(table.select(data_columns(table.schema)).replace_schema_metadata(None))


def data_columns(schema: Any) -> list[str]:
    """Return the columns of a schema of PyArrow except those in which pandas stores an index.

    pandas stores a non-default index, such as that of shuffled rows, as columns and lists them in the metadata; notes
    that cannot be understood are ignored.
    """
    try:
        stored = json.loads((schema.metadata or {}).get(b"pandas", b"{}"))["index_columns"]
        index = {name for name in stored if isinstance(name, str)}
    except (ValueError, KeyError, TypeError):
        index = set()
    return [name for name in schema.names if name not in index]
