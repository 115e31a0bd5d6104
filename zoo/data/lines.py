r"""The lines of a UTF-8 file, by number.

A plain file is memory-mapped beside an index of its lines; a ``.gz`` or ``.xz`` file is
decompressed into memory once. Lines end with ``"\n"`` and nothing else (one ``"\r"`` before it is
dropped): form feeds and Unicode separators stay in their line. The encoding is checked when the
file is opened, so that a bad byte is reported before training.
"""

import functools
import gzip
import json
import lzma
import mmap
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

_CHUNK = 1 << 24  # bytes per piece: bounds the memory of opening a file
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}


class Lines:
    """Examples of a file with one example per line.

    Args:
        path: of the file.
        kind: ``".jsonl"``: a JSON object on every line that is not blank; ``".tsv"``: tab-separated
            columns on every line that is not blank; any other: the text of every line.
        columns: names of the columns; None: they are on the first line.

    Attributes:
        starts: int64 [N], offset of the first byte of every line.
        stops: int64 [N], offset past its last byte, the line break excluded.
    """

    def __init__(self, path: pathlib.Path, kind: str = "", columns: Sequence[str] | None = None):
        self.path = path
        self._data = read_bytes(path)
        breaks = [
            np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")) + offset
            for offset, chunk in _checked_chunks(self._data, path)
        ]
        stops = np.concatenate(breaks)
        if not len(stops) or stops[-1] != len(self._data) - 1:  # the last line may lack its break
            stops = np.append(stops, len(self._data))
        first = len(_BYTE_ORDER_MARK) if self._data[:3] == _BYTE_ORDER_MARK else 0
        starts = np.concatenate([[first], stops[:-1] + 1])
        if kind in (".jsonl", ".tsv"):
            bounds = zip(starts.tolist(), stops.tolist(), strict=True)
            filled = [i for i, (start, stop) in enumerate(bounds) if self._data[start:stop].strip()]
            starts, stops = starts[filled], stops[filled]
        self.starts, self.stops = starts, stops
        self._parse = _parse_object if kind == ".jsonl" else _parse_text
        if kind == ".tsv":
            if columns is None:
                columns = self._line(0).split("\t")
                self.starts, self.stops = starts[1:], stops[1:]
            self._parse = functools.partial(_parse_columns, columns=columns)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            return self._parse(self._line(index))
        except ValueError as error:
            number = self._data[: self.starts[index]].count(b"\n") + 1
            raise ValueError(f"{self.path}, line {number}: {error}") from error

    def _line(self, index: int) -> str:
        line = self._data[self.starts[index] : self.stops[index]].decode()
        return line[:-1] if line.endswith("\r") else line

    def __getstate__(self) -> dict[str, Any]:
        # A memory map cannot travel to a worker process; the file is there too.
        mapped = isinstance(self._data, mmap.mmap)
        return self.__dict__ | ({"_data": None} if mapped else {})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._data is None:
            self._data = read_bytes(self.path)


def _parse_text(line: str) -> dict[str, Any]:
    return {"text": line}


def _parse_object(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"malformed JSON at column {error.colno}: {error.msg}") from error
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, got {type(value).__name__}")
    return value


def _parse_columns(line: str, columns: Sequence[str]) -> dict[str, Any]:
    values = line.split("\t")
    if len(values) != len(columns):
        raise ValueError(
            f"expected {len(columns)} tab-separated columns ({', '.join(columns)}), "
            f"got {len(values)}"
        )
    return dict(zip(columns, values, strict=True))


def read_bytes(path: pathlib.Path) -> bytes | mmap.mmap:
    """The bytes of a file: mapped, or decompressed into memory."""
    try:
        if opener := _OPENERS.get(path.suffix):
            with opener(path, "rb") as file:
                return file.read()
        with open(path, "rb") as file:
            if not os.fstat(file.fileno()).st_size:  # an empty file cannot be mapped
                return b""
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError) as error:
        raise ValueError(
            f"{path} is truncated or damaged ({error}); fetch it or compress it again"
        ) from error
    except OSError as error:
        hint = "; is the environment variable in its path set?" if "$" in str(path) else ""
        message = f"cannot read the data file: {error.strerror}{hint}"
        raise type(error)(error.errno, message, str(path)) from error


def _checked_chunks(data: bytes | mmap.mmap, path: pathlib.Path) -> Iterator[tuple[int, bytes]]:
    """Complete lines of UTF-8, about ``_CHUNK`` bytes at a time, each piece with its offset."""
    offset, blank = 0, True
    while offset < len(data):
        end = data.rfind(b"\n", offset, offset + _CHUNK) + 1
        if not end:  # no break in reach: the last line, or one longer than a chunk
            end = data.find(b"\n", offset) + 1 or len(data)
        chunk = data[offset:end]
        try:
            chunk.decode()
        except UnicodeDecodeError as error:
            position = offset + error.start
            number = data[:position].count(b"\n") + 1
            raise ValueError(
                f"{path} is not UTF-8: line {number}, byte offset {position} of the file holds "
                f"{data[position : position + 1]!r} ({error.reason}); convert it to UTF-8"
            ) from error
        blank = blank and not chunk.removeprefix(_BYTE_ORDER_MARK).strip()
        yield offset, chunk
        offset = end
    if blank:
        raise ValueError(f"{path} is empty: there is no text in its {len(data)} bytes")
