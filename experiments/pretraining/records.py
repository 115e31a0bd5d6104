"""Rows of a corpus in ArrayRecord files.

A record is one row as bytes, see ``row_dtype``. ArrayRecord itself stores a hash of every group of
eight records and refuses to read a group that does not fit it.
"""

import functools
import json
import operator
import os
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
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
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
            and the next intact one in the place of each that is damaged, ``skipped`` in number: all
            other rows keep their place, so that a run goes on.

    Raises:
        ValueError: if the corpus is incomplete or a record is damaged.
        OSError: if the corpus or one of its files is missing.
    """

    def __init__(
        self, directory: pathlib.Path, split: str, corrupt: Literal["refuse", "skip"] = "refuse"
    ):
        path = directory / MANIFEST
        try:
            manifest = json.loads(path.read_bytes())
            shards = [shard for shard in manifest["shards"] if shard["split"] == split]
            self._dtype = row_dtype(manifest["length"])
            self._files = [directory / shard["file"] for shard in shards]
            for file, shard in zip(self._files, shards, strict=True):
                if file.parent != directory or not 0 <= shard["rows"] <= _size(file):
                    raise ValueError(f"{file} is no file of {shard['rows']} rows")
            self._starts = np.cumsum([0, *(shard["rows"] for shard in shards)])
            self._contents = [[s["split"], s["rows"], s.get("sha256")] for s in manifest["shards"]]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(
                f"{path} is damaged ({type(error).__name__}: {error}); delete it and prepare the "
                "corpus again, which keeps the files that are complete"
            ) from error
        self.uri = f"file:{directory}/{split}"
        total = int(self._starts[-1])
        self.skipped = 0
        self._numbers: Sequence[int] = range(total)
        if corrupt == "skip":
            intact = [number for number in range(total) if self._read(number) is not None]
            self.skipped = total - len(intact)
            next_intact = np.searchsorted(intact, range(total)) % max(len(intact), 1)
            self._numbers = [intact[index] for index in next_intact.tolist()] if intact else []
        else:
            for file, shard in zip(self._files, shards, strict=True):
                try:
                    found = _reader(file).num_records()
                except RuntimeError as error:
                    raise ValueError(f"{file} is no file of rows ({error}); {REMEDY}") from error
                if found != shard["rows"]:
                    raise ValueError(
                        f"{file} holds {found} records, the manifest says {shard['rows']}: the "
                        f"file is cut off; {REMEDY}"
                    )

    def __len__(self) -> int:
        return len(self._numbers)

    def fingerprinted(self) -> Any:
        """What a fingerprint is made of: what the manifest says of all splits."""
        return self._contents

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


def _size(path: pathlib.Path) -> int:
    """Bytes, more than there can be rows."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: prepare the corpus again")
    return path.stat().st_size


@functools.lru_cache(maxsize=1024)
def _reader(path: pathlib.Path) -> Any:
    """An open file; every process opens its own."""
    _size(path)
    return require("array_record.python.array_record_module", "data").ArrayRecordReader(str(path))
