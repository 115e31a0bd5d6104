r"""The lines of a UTF-8 file, by number.

A plain file is memory-mapped beside an index of its lines; a ``.gz``, ``.xz`` or ``.bz2`` file is
decompressed into memory once, all of its members. Lines end with ``"\n"`` and nothing else (one
``"\r"`` before it is dropped): form feeds and Unicode separators stay in their line. A byte order
mark before a line, as it stands where files were joined, is no text. The encoding is checked when
the file is opened, so that a bad byte is reported before training.
"""

import bz2
import collections
import csv
import functools
import io
import json
import lzma
import mmap
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

from zoo._files import decompressed

_CHUNK = 1 << 24  # bytes per piece: bounds the memory of opening a file
_BYTE_ORDER_MARK = "\ufeff"
_LONGEST_FIELD = 2**31 - 1  # characters of a field in a .csv; the module's own limit is 2**17
_SMALL = 1 << 16  # bytes up to which a file is read: a process has 65,530 mappings
# Endings of compressed files, each with what decompresses one member.
DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    ".gz": functools.partial(zlib.decompressobj, wbits=16 + zlib.MAX_WBITS),
    ".xz": lzma.LZMADecompressor,
    ".bz2": bz2.BZ2Decompressor,
}


class Lines:
    """Examples of a file with one example per line.

    Args:
        path: of the file.
        kind: ``".jsonl"``: a JSON object on every line that is not blank; ``".tsv"``: tab-separated
            columns on every line that is not blank (tabs are not blank: they part empty columns);
            ``".csv"``: comma-separated columns, where quotation marks hold commas, line breaks and
            doubled quotation marks; any other: the text of every line.
        columns: names of the columns; None: they are on the first line.

    Attributes:
        starts: int64 [N], offset of the first byte of every line.
        stops: int64 [N], offset past its last byte, the line break excluded.
    """

    def __init__(self, path: pathlib.Path, kind: str = "", columns: Sequence[str] | None = None):
        self.path = path
        self._kind, self._columns = kind, columns
        self._data = read_bytes(path)
        breaks = [
            np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")) + offset
            for offset, chunk in _checked_chunks(self._data, path)
        ]
        stops = np.concatenate(breaks)
        if not len(stops) or stops[-1] != len(self._data) - 1:  # the last line may lack its break
            stops = np.append(stops, len(self._data))
        starts = np.concatenate([[0], stops[:-1] + 1])
        if kind in (".jsonl", ".tsv"):
            blanks = b" \r\x0b\x0c" if kind == ".tsv" else None
            bounds = zip(starts.tolist(), stops.tolist(), strict=True)
            lines = (self._data[start:stop] for start, stop in bounds)
            mark = _BYTE_ORDER_MARK.encode()
            filled = [i for i, line in enumerate(lines) if line.removeprefix(mark).strip(blanks)]
            starts, stops = starts[filled], stops[filled]
        if kind == ".csv":
            firsts, lasts = _csv_records(self._data, starts, stops, path)
            starts, stops = starts[firsts], stops[lasts]
        self.starts, self.stops = starts, stops
        self._parse = _parse_object if kind == ".jsonl" else _parse_text
        if kind in _TABLES:
            if columns is None:
                columns = _TABLES[kind](self._line(0))
                self.starts, self.stops = starts[1:], stops[1:]
            if twice := [name for name, n in collections.Counter(columns).items() if n > 1]:
                raise ValueError(f"{path}: columns must have different names, {twice} come twice")
            self._columns = list(columns)
            self._parse = functools.partial(_parse_columns, columns=columns, kind=kind)

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
        return line.removeprefix(_BYTE_ORDER_MARK).removesuffix("\r")

    def fingerprinted(self) -> Any:
        """What a fingerprint is made of: the bytes and how they are read."""
        return self._data, self._kind, self._columns

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


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = next(name for name, n in collections.Counter(k for k, _ in pairs).items() if n > 1)
        raise ValueError(f"a JSON object must have each field once, got {twice!r} twice")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_distinct)


def _parse_object(line: str) -> dict[str, Any]:
    try:
        value = _DECODER.decode(line)
        if "\\ud" in line.lower():  # half of a pair is no character: no file could hold the text
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise ValueError(f"malformed JSON at column {error.colno}: {error.msg}") from error
    except UnicodeEncodeError as error:
        raise ValueError(f"half a surrogate pair, {error.object[error.start]!r}") from error
    except RecursionError as error:
        raise ValueError("JSON is nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, got {type(value).__name__}")
    return value


def _split_csv(record: str) -> list[str]:
    csv.field_size_limit(_LONGEST_FIELD)
    try:
        return next(csv.reader(io.StringIO(record, newline=""), strict=True))
    except csv.Error as error:
        raise ValueError(str(error)) from error


# Kinds of tables, each with how the fields of a row are parted.
_TABLES: dict[str, Callable[[str], list[str]]] = {
    ".tsv": lambda line: line.split("\t"),
    ".csv": _split_csv,
}


def _parse_columns(line: str, columns: Sequence[str], kind: str) -> dict[str, Any]:
    values = _TABLES[kind](line)
    if len(values) != len(columns):
        raise ValueError(
            f"expected {len(columns)} {'comma' if kind == '.csv' else 'tab'}-separated columns "
            f"({', '.join(columns)}), got {len(values)}"
        )
    return dict(zip(columns, values, strict=True))


def _csv_records(
    data: bytes | mmap.mmap, starts: np.ndarray, stops: np.ndarray, path: pathlib.Path
) -> tuple[list[int], list[int]]:
    """First and last line of every record that is not blank: quotation marks hold line breaks."""
    csv.field_size_limit(_LONGEST_FIELD)
    bounds = zip(starts.tolist(), stops.tolist(), strict=True)
    mark = _BYTE_ORDER_MARK
    lines = (data[start:stop].decode().removeprefix(mark) + "\n" for start, stop in bounds)
    reader = csv.reader(lines, strict=True)
    firsts, lasts, number = [], [], 0
    try:
        for row in reader:
            if any(field.strip() for field in row):
                firsts.append(number)
                lasts.append(reader.line_num - 1)
            number = reader.line_num
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {number + 1}: {error}; a field with commas, line breaks or quotation "
            'marks stands in quotation marks, those inside it doubled ("")'
        ) from error
    return firsts, lasts


def read_bytes(path: pathlib.Path) -> bytes | mmap.mmap:
    """The bytes of a file: mapped, or decompressed into memory.

    Raises:
        ValueError: a compressed file is cut off or damaged anywhere, or grows too much.
        OSError: the file is missing or cannot be read.
    """
    if (new := DECOMPRESSORS.get(path.suffix.lower())) is None:
        return map_file(path)
    try:
        with _open(path) as file:
            return b"".join(decompressed(file, new))
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(
            f"{path} is truncated or damaged ({error}); fetch it or compress it again"
        ) from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise ValueError(  # bz2's word for damage
            f"{path} is truncated or damaged ({error}); fetch it or compress it again"
        ) from error


def map_file(path: pathlib.Path) -> bytes | mmap.mmap:
    """The bytes of a file as they are stored."""
    with _open(path) as file:
        if os.fstat(file.fileno()).st_size <= _SMALL:  # an empty one cannot be mapped either
            return file.read()
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _open(path: pathlib.Path) -> BinaryIO:
    try:
        return open(path, "rb")
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
        blank = blank and not chunk.removeprefix(_BYTE_ORDER_MARK.encode()).strip()
        yield offset, chunk
        offset = end
    if blank:
        raise ValueError(f"{path} is empty: there is no text in its {len(data)} bytes")
