"""Rows of a corpus in ArrayRecord files.

A record is one row as bytes, see ``row_dtype``. ArrayRecord itself stores a hash of every group of
eight records and refuses to read a group that does not fit it.
"""

import functools
import json
import operator
import pathlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from zoo.extras import require
from zoo.transformer.packing import PackedRows

MANIFEST = "manifest.json"
REMEDY = "delete it and prepare the corpus again, or train with data.corrupt='skip'"


def row_dtype(length: int) -> np.dtype:
    """One row ``[T]`` of :class:`PackedRows`."""
    fields = {"ids": "<i4", "word_starts": "?", "document_ids": "<i4"}
    return np.dtype([(name, kind, (length,)) for name, kind in fields.items()])


def write(path: pathlib.Path, rows: PackedRows) -> None:
    """Writes rows to a file that appears when it is complete."""
    module = require("array_record.python.array_record_module", "data")
    table = np.empty(len(rows.ids), row_dtype(rows.ids.shape[1]))
    for name, column in rows._asdict().items():
        table[name] = column
    part = path.with_name(path.name + ".part")
    writer = module.ArrayRecordWriter(str(part), "group_size:8")
    for row in table:
        writer.write(row.tobytes())
    writer.close()
    part.replace(path)


class RecordRows:
    """The rows of one split of a prepared corpus: a source for ``zoo.data.Pipeline``.

    Args:
        directory: the corpus.
        split: ``"train"``, ``"valid"`` or ``"test"``.
        corrupt: ``"refuse"`` raises on the first damaged record; ``"skip"`` reads all of them once
            and leaves the damaged ones out, ``skipped`` in number.

    Raises:
        ValueError: if the corpus is incomplete or a record is damaged.
        OSError: if the corpus or one of its files is missing.
    """

    def __init__(
        self, directory: pathlib.Path, split: str, corrupt: Literal["refuse", "skip"] = "refuse"
    ):
        manifest = json.loads((directory / MANIFEST).read_text())
        shards = [shard for shard in manifest["shards"] if shard["split"] == split]
        self.uri = f"file:{directory}/{split}"
        self._dtype = row_dtype(manifest["length"])
        self._files = [directory / shard["file"] for shard in shards]
        self._starts = np.cumsum([0, *(shard["rows"] for shard in shards)])
        total = int(self._starts[-1])
        self._numbers: Sequence[int] = range(total)
        if corrupt == "skip":
            self._numbers = [number for number in range(total) if self._read(number) is not None]
        else:
            for file, shard in zip(self._files, shards, strict=True):
                if (found := _reader(file).num_records()) != shard["rows"]:
                    raise ValueError(
                        f"{file} holds {found} records, the manifest says {shard['rows']}: the "
                        f"file is cut off; {REMEDY}"
                    )
        self.skipped = total - len(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Row ``index``: ids, word_starts, document_ids ``[T]`` and its own number."""
        number = self._numbers[operator.index(index)]
        row = self._read(number)
        if row is None:
            file, record = self._place(number)
            raise ValueError(f"{file}: record {record} is damaged; {REMEDY}")
        return {**{name: row[name] for name in self._dtype.names or ()}, "row": np.int32(number)}

    def _place(self, number: int) -> tuple[pathlib.Path, int]:
        shard = int(np.searchsorted(self._starts, number, side="right")) - 1
        return self._files[shard], number - int(self._starts[shard])

    def _read(self, number: int) -> Any:
        """A row, or None if its record is damaged or missing."""
        file, record = self._place(number)
        try:
            (row,) = np.frombuffer(_reader(file).read([record])[0], self._dtype)
        except (RuntimeError, ValueError, IndexError):  # a ValueError if the length is another
            return None
        return row


@functools.lru_cache(maxsize=1024)
def _reader(path: pathlib.Path) -> Any:
    """An open file; every process opens its own."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: prepare the corpus again")
    return require("array_record.python.array_record_module", "data").ArrayRecordReader(str(path))
