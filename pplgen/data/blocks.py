"""NumPy and Parquet files as blocks of rows that are read independently."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from glob import glob
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import narwhals.stable.v2 as nw
import numpy as np

from pplgen.data.arrow_files import data_columns
from pplgen.data.columns import unnamed_columns
from pplgen.data.frames import as_matrix, check_names, drop_row_counter
from pplgen.data.objects import as_pandas
from pplgen.data.paths import as_input_error, import_optional, require_file, table_name, with_home
from pplgen.data.tensors import check_shape
from pplgen.errors import InputError

__all__ = ["BLOCK_VALUES", "GROUP_BLOCKS", "Blocks", "open_blocks", "open_stream", "stream_name"]

BLOCK_VALUES = 1 << 20
"""Values per block of an npy file: 4 MiB in float32, 65,536 rows of 16 columns."""

GROUP_BLOCKS = 4
"""A Parquet row group of up to ``GROUP_BLOCKS * BLOCK_VALUES`` values is one block; larger ones are read in slices."""

OPEN_FILES = 32
"""Maximum number of simultaneously open files per stream."""

_NUMERIC_TYPES = ("integer", "floating", "boolean", "decimal", "null")
"""Arrow types of numeric or empty columns."""


class Blocks(NamedTuple):
    """The columns of a file, its block boundaries, and a function that reads one block.

    Attributes
    ----------
    columns
        One name per feature.
    bounds
        First row of each block, counted from 0, followed by the number of rows; shape ``(num_blocks + 1,)``.
    read
        Function that returns one block in float32 or float64, shape ``(num_rows, num_features)``; NaN means missing.
    starts
        First row of each block in the complete file or files, counted from 0; a selection of blocks has gaps.
    """

    columns: tuple[str, ...]
    bounds: np.ndarray
    read: Callable[[int], np.ndarray]
    starts: np.ndarray

    def select(self, indices: Sequence[int]) -> Blocks:
        """Return the blocks at ``indices``."""
        bounds = np.cumsum([0, *np.diff(self.bounds)[indices]])
        return Blocks(self.columns, bounds, lambda index: self.read(indices[index]), self.starts[indices])


def stream_name(path: str | Path) -> str:
    """Return a name for the rows of a file, a folder or a glob pattern."""
    path = Path(path)
    if _is_pattern(path):
        path = path.parent
    return path.resolve().name if path.is_dir() else table_name(path)


def open_stream(path: Path) -> Blocks:
    """Open a file, or all files of a folder or a glob pattern as one stream."""
    path = with_home(path)
    if not (path.is_dir() or _is_pattern(path)):
        return open_blocks(path)
    candidates = path.iterdir() if path.is_dir() else map(Path, glob(str(path)))
    files = sorted(file for file in candidates if file.suffix.lower() in _OPENERS)
    if not files:
        raise InputError(f"{str(path)!r} contains no NumPy (.npy) or Parquet (.parquet) files")
    return _concatenate(files)


def _is_pattern(path: Path) -> bool:
    """Whether a path is a glob pattern."""
    return any(sign in str(path) for sign in "*?[") and not path.exists()


def _concatenate(files: list[Path]) -> Blocks:
    """Concatenate the blocks of several files."""
    columns: tuple[str, ...] | None = None
    sizes: list[int] = [0]
    locations: list[tuple[Path, int]] = []
    for file in files:
        opened = open_blocks(file)
        if columns is None:
            columns = opened.columns
        elif opened.columns != columns:
            raise InputError(
                f"{str(file)!r} has columns {_summary(opened.columns)}, but {str(files[0])!r} has {_summary(columns)}"
            )
        sizes.extend(np.diff(opened.bounds).tolist())
        locations.extend((file, index) for index in range(len(opened.bounds) - 1))
    cached_open = lru_cache(OPEN_FILES)(open_blocks)

    def read(index: int) -> np.ndarray:
        file, block = locations[index]
        return cached_open(file).read(block)

    bounds = np.cumsum(sizes)
    return Blocks(columns or (), bounds, read, bounds[:-1])


def _summary(columns: tuple[str, ...]) -> str:
    """List the first few columns."""
    return ", ".join(columns[:5]) + (f" and {len(columns) - 5} more" if len(columns) > 5 else "")


def open_blocks(path: Path) -> Blocks:
    """Open a file according to its suffix; only metadata are read."""
    suffix = path.suffix.lower()
    if suffix not in _OPENERS:
        raise InputError(f"{str(path)!r} cannot be streamed; expected a NumPy (.npy) or Parquet (.parquet) file")
    require_file(path)
    return _OPENERS[suffix](path)


def _open_numpy(path: Path) -> Blocks:
    """Memory-map an array; blocks are row ranges of equal length."""
    with as_input_error(path, "a plain numeric NumPy file", Exception):
        matrix = as_matrix(np.lib.format.open_memmap(path, mode="r"), repr(str(path)))
    check_shape(path.stem, matrix.shape)
    num_rows, num_columns = matrix.shape
    bounds = np.append(np.arange(0, num_rows, _rows_per_block(BLOCK_VALUES, num_columns)), num_rows)
    dtype = matrix.dtype if matrix.dtype in (np.float32, np.float64) else np.float64

    def read(index: int) -> np.ndarray:
        return np.array(matrix[bounds[index] : bounds[index + 1]], dtype=dtype, order="C")

    return Blocks(unnamed_columns(num_columns), bounds, read, bounds[:-1])


def _open_parquet(path: Path) -> Blocks:
    """Open a Parquet file; blocks are its row groups, or slices of large ones."""
    arrow = import_optional("pyarrow", repr(str(path)))
    parquet = import_optional("pyarrow.parquet", repr(str(path)))
    # damaged metadata raise many types of errors
    with as_input_error(path, "a Parquet file", Exception):
        file = parquet.ParquetFile(path, memory_map=True)
        schema = file.schema_arrow
        columns = data_columns(schema)
        check_names(tuple(columns))
        check_shape(path.stem, (file.metadata.num_rows, len(columns)))
        num_rows = _rows_per_block(BLOCK_VALUES, len(columns))
        head = next(file.iter_batches(num_rows, columns=columns[:2])).select(columns[:2])
        first = nw.from_native(arrow.Table.from_batches([head]).replace_schema_metadata(None))
    columns = [*drop_row_counter(as_pandas(first, range(len(columns[:2])))).columns, *columns[2:]]
    types = [schema.field(name).type for name in columns]
    for name, kind in zip(columns, types, strict=True):
        if not any(getattr(arrow.types, f"is_{number}")(kind) for number in _NUMERIC_TYPES):
            raise InputError(f"column {name!r}: values of type {kind}; expected numbers")
    dtype = np.float32 if all(map(arrow.types.is_float32, types)) else np.float64
    slice_rows = _rows_per_block(GROUP_BLOCKS * BLOCK_VALUES, len(columns))
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    starts = np.cumsum([0, *sizes])
    slices = [(group, first) for group, size in enumerate(sizes) for first in range(0, size, slice_rows)]
    bounds = np.array([*(starts[group] + first for group, first in slices), starts[-1]])

    def read(index: int) -> np.ndarray:
        group, first = slices[index]
        with as_input_error(path, "a Parquet file", Exception):
            batches = file.iter_batches(slice_rows, row_groups=[group], columns=columns)
            batch = next(islice(batches, first // slice_rows, None))
        matrix = np.empty((len(batch), len(columns)), dtype=dtype)
        for j, name in enumerate(columns):
            numbers = batch.column(name).cast(arrow.from_numpy_dtype(dtype), safe=False)
            matrix[:, j] = numbers.to_numpy(zero_copy_only=False)
        return matrix

    return Blocks(tuple(columns), bounds, read, bounds[:-1])


def _rows_per_block(values: int, num_columns: int) -> int:
    """Return the number of rows in a block of ``values`` values, at least 1."""
    return max(1, values // num_columns)


_OPENERS: dict[str, Callable[[Path], Blocks]] = {".npy": _open_numpy, ".parquet": _open_parquet, ".pq": _open_parquet}
