"""Compressed files, read as a stream and written at once: ``.gz``, ``.xz`` and ``.bz2``."""

import bz2
import functools
import gzip
import io
import lzma
import os
import pathlib
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO, cast

from zoo._files import decompressed, replace_file
from zoo.data.lines import DECOMPRESSORS

_COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": functools.partial(gzip.compress, mtime=0),
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
}


def open_bytes(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a file for reading; one with the ending of a compressed format gives what is in it.

    Raises:
        ValueError: from reading, if the compressed file is cut off or damaged anywhere.
        OSError: if the file is missing or cannot be read.
    """
    path = pathlib.Path(path)
    if path.suffix.lower() not in DECOMPRESSORS:
        return open(path, "rb")
    return cast(BinaryIO, io.BufferedReader(_Members(path), 1 << 20))


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Replaces a file completely or not at all, compressed if it has the ending of a format."""
    compress = _COMPRESSORS.get(pathlib.Path(path).suffix.lower(), bytes)
    replace_file(path, compress(content))


class _Members(io.RawIOBase):
    """What is in all members of a compressed file, one after the other."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._file = open(path, "rb")  # noqa: SIM115 (closed by close)
        new = DECOMPRESSORS[path.suffix.lower()]
        self._pieces, self._rest = decompressed(self._file, new), memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            while not self._rest:
                self._rest = memoryview(next(self._pieces))
        except StopIteration:
            return 0
        except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
            if getattr(error, "errno", None) is not None:
                raise
            raise ValueError(
                f"{self._path} is truncated or damaged ({error}); fetch it or compress it again"
            ) from error
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
