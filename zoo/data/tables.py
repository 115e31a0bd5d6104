"""Parquet files: examples by row, values as Python has them."""

import operator
import pathlib
from typing import Any

from zoo.data.lines import map_file
from zoo.extras import require


class Rows:
    """The rows of one file, which is memory-mapped.

    Args:
        path: of the file.

    Raises:
        ValueError: if the file is cut off, damaged, without rows or no Parquet file.
        OSError: if it is missing or cannot be read.
        ImportError: without the extra ``data`` (pyarrow).
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        arrow = require("pyarrow", "data")
        parquet = require("pyarrow.parquet", "data")
        content = map_file(path)
        try:
            table = parquet.read_table(arrow.BufferReader(arrow.py_buffer(content)))
            names = table.column_names
            columns = [column.combine_chunks() for column in table.columns]
        except (arrow.ArrowException, OSError, ValueError) as error:
            raise ValueError(f"{path} is damaged or no Parquet file ({error})") from error
        if not len(table):
            raise ValueError(f"{path} is empty: it has no rows")
        if len(set(names)) < len(names):
            raise ValueError(f"{path}: columns must have different names, got {names}")
        self._columns = dict(zip(names, columns, strict=True))
        self._length = len(table)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(self._length)[operator.index(index)]
        try:
            return {name: column[index].as_py() for name, column in self._columns.items()}
        except ValueError as error:  # bytes that are not UTF-8
            raise ValueError(f"{self.path}, row {index}: {error}") from error

    def fingerprinted(self) -> Any:
        """What a fingerprint is made of: the bytes."""
        return map_file(self.path)

    def __reduce__(self) -> Any:  # a worker process reads the file itself
        return Rows, (self.path,)
