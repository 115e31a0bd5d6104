"""Rows of a corpus in ArrayRecord files, each row with a checksum of its own.

A record is the CRC-32 of its content (4 bytes) and the content: ids, then the bits of
``word_starts``, then ``document_ids``; all little-endian.
"""

import dataclasses
import functools
import json
import operator
import pathlib
import zlib
from typing import Any, Literal

import numpy as np

from zoo.extras import require
from zoo.transformer import PackedRows

MANIFEST = "manifest.json"


def encode(ids: np.ndarray, word_starts: np.ndarray, document_ids: np.ndarray) -> bytes:
    """One row, ``[T]`` each, as bytes."""
    content = b"".join(
        (
            ids.astype("<u4").tobytes(),
            np.packbits(word_starts).tobytes(),
            document_ids.astype("<u2").tobytes(),
        )
    )
    return zlib.crc32(content).to_bytes(4, "little") + content


def decode(record: bytes, length: int) -> dict[str, np.ndarray] | None:
    """The arrays of a row, or None if it is damaged."""
    content = record[4:]
    if zlib.crc32(content) != int.from_bytes(record[:4], "little"):
        return None
    bits = -(-length // 8)
    if len(content) != 6 * length + bits:
        return None
    starts = np.frombuffer(content, np.uint8, bits, 4 * length)
    documents = np.frombuffer(content, "<u2", length, 4 * length + bits)
    return {
        "ids": np.frombuffer(content, "<u4", length).astype(np.int32),
        "word_starts": np.unpackbits(starts, count=length).astype(bool),
        "document_ids": documents.astype(np.int32),
    }


def write(path: pathlib.Path, rows: PackedRows) -> None:
    """Writes rows to a file that appears when it is whole."""
    module = require("array_record.python.array_record_module", "data")
    part = path.with_name(path.name + ".part")
    writer = module.ArrayRecordWriter(str(part), "group_size:8")
    for row in zip(*rows, strict=True):
        writer.write(encode(*row))
    writer.close()
    part.replace(path)


@dataclasses.dataclass
class RecordRows:
    """The rows of one split of a prepared corpus: a source for ``zoo.data.Pipeline``.

    Attributes:
        directory: the corpus.
        split: ``"train"``, ``"valid"`` or ``"test"``.
        corrupt: ``"refuse"`` raises on the first damaged record; ``"skip"`` looks at all of them
            once and leaves the damaged ones out, and ``skipped`` counts them.

    Raises:
        ValueError: if the corpus is not whole or a record is damaged.
        OSError: if the corpus or one of its files is missing.
    """

    directory: pathlib.Path
    split: str
    corrupt: Literal["refuse", "skip"] = "refuse"

    def __post_init__(self) -> None:
        manifest = json.loads((self.directory / MANIFEST).read_text())
        self.uri = f"file:{self.directory}/{self.split}"
        self.length: int = manifest["length"]
        self.shards = [shard for shard in manifest["shards"] if shard["split"] == self.split]
        counts = [shard["rows"] for shard in self.shards]
        self._starts = np.cumsum([0, *counts])
        self.skipped = 0
        self._numbers: np.ndarray | None = None
        if self.corrupt == "skip":
            good = [self._read(number) is not None for number in range(int(self._starts[-1]))]
            self._numbers = np.flatnonzero(good)
            self.skipped = len(good) - len(self._numbers)
        else:
            for shard in self.shards:
                found = _reader(self.directory / shard["file"]).num_records()
                if found != shard["rows"]:
                    raise ValueError(
                        f"{self.directory / shard['file']} holds {found} records, the manifest "
                        f"says {shard['rows']}: the file is cut off; delete it and prepare the "
                        "corpus again, or train with data.corrupt='skip'"
                    )

    def __len__(self) -> int:
        return int(self._starts[-1]) if self._numbers is None else len(self._numbers)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Row ``index``: ids, word_starts, document_ids ``[T]`` and its own number."""
        number = range(len(self))[operator.index(index)]
        if self._numbers is not None:
            number = int(self._numbers[number])
        row = self._read(number)
        if row is None:
            shard, place = self._place(number)
            raise ValueError(
                f"{self.directory / shard['file']}: record {place} is damaged (its checksum does "
                "not fit); delete the file and prepare the corpus again, or train with "
                "data.corrupt='skip'"
            )
        return {**row, "row": np.int32(number)}

    def _place(self, number: int) -> tuple[dict[str, Any], int]:
        shard = int(np.searchsorted(self._starts, number, side="right")) - 1
        return self.shards[shard], number - int(self._starts[shard])

    def _read(self, number: int) -> dict[str, np.ndarray] | None:
        shard, place = self._place(number)
        try:
            (record,) = _reader(self.directory / shard["file"]).read([place])
        except (RuntimeError, ValueError, IndexError):  # what the library itself finds damaged
            return None
        return decode(record, self.length)


@functools.lru_cache(maxsize=1024)
def _reader(path: pathlib.Path) -> Any:
    """An open file; every process opens its own."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: prepare the corpus again")
    return require("array_record.python.array_record_module", "data").ArrayRecordReader(str(path))
