"""Rows of a corpus in ArrayRecord files.

A record is one row as bytes, see ``row_dtype``. ArrayRecord itself stores a hash of every group of
eight records and refuses to read a group that does not fit it.
"""

import dataclasses
import functools
import json
import operator
import pathlib
from typing import Any, Literal

import numpy as np

from zoo.extras import require
from zoo.transformer.packing import PackedRows

MANIFEST = "manifest.json"


def row_dtype(length: int) -> np.dtype:
    """One row ``[T]`` of :class:`PackedRows`."""
    shape = (length,)
    return np.dtype(
        [("ids", "<i4", shape), ("word_starts", "?", shape), ("document_ids", "<i4", shape)]
    )


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


@dataclasses.dataclass
class RecordRows:
    """The rows of one split of a prepared corpus: a source for ``zoo.data.Pipeline``.

    Attributes:
        directory: the corpus.
        split: ``"train"``, ``"valid"`` or ``"test"``.
        corrupt: ``"refuse"`` raises on the first damaged record; ``"skip"`` reads all of them once
            and leaves the damaged ones out, ``skipped`` in number.

    Raises:
        ValueError: if the corpus is incomplete or a record is damaged.
        OSError: if the corpus or one of its files is missing.
    """

    directory: pathlib.Path
    split: str
    corrupt: Literal["refuse", "skip"] = "refuse"

    def __post_init__(self) -> None:
        manifest = json.loads((self.directory / MANIFEST).read_text())
        self.uri = f"file:{self.directory}/{self.split}"
        self.dtype = row_dtype(manifest["length"])
        self.shards = [shard for shard in manifest["shards"] if shard["split"] == self.split]
        self._starts = np.cumsum([0, *(shard["rows"] for shard in self.shards)])
        total = int(self._starts[-1])
        if self.corrupt == "skip":
            self._numbers = [number for number in range(total) if self._read(number) is not None]
        else:
            self._numbers = range(total)
            for shard in self.shards:
                path = self.directory / shard["file"]
                if (found := _reader(path).num_records()) != shard["rows"]:
                    raise ValueError(
                        f"{path} holds {found} records, the manifest says {shard['rows']}: the "
                        "file is cut off; delete it and prepare the corpus again, or train with "
                        "data.corrupt='skip'"
                    )
        self.skipped = total - len(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Row ``index``: ids, word_starts, document_ids ``[T]`` and its own number."""
        number = self._numbers[operator.index(index)]
        row = self._read(number)
        if row is None:
            shard, place = self._place(number)
            raise ValueError(
                f"{self.directory / shard['file']}: record {place} is damaged; delete the file and "
                "prepare the corpus again, or train with data.corrupt='skip'"
            )
        return {**{name: row[name] for name in self.dtype.names or ()}, "row": np.int32(number)}

    def _place(self, number: int) -> tuple[dict[str, Any], int]:
        shard = int(np.searchsorted(self._starts, number, side="right")) - 1
        return self.shards[shard], number - int(self._starts[shard])

    def _read(self, number: int) -> Any:
        shard, place = self._place(number)
        try:
            (record,) = _reader(self.directory / shard["file"]).read([place])
            (row,) = np.frombuffer(record, self.dtype)  # raises if the length is another
        except (RuntimeError, ValueError, IndexError):
            return None
        return row


@functools.lru_cache(maxsize=1024)
def _reader(path: pathlib.Path) -> Any:
    """An open file; every process opens its own."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: prepare the corpus again")
    return require("array_record.python.array_record_module", "data").ArrayRecordReader(str(path))
