"""Short names of the contents of data, by which a run that continues notices that they changed.

A fingerprint is a hash of values, sizes and types, never of names, places or times: a copy of the
same data elsewhere has the same one. What is large is sampled at evenly spaced places, so that it
takes well under a second: of a file or array beyond 64 MiB 256 blocks of 64 KiB, of a list beyond
8,192 entries as many of them, of any other sequence, whose examples may have to be read or
decoded, 64. ``full=True`` reads everything.
"""

import dataclasses
import hashlib
import mmap
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any

import numpy as np

_WHOLE = 1 << 26  # bytes up to which a buffer is read completely
_BLOCKS, _BLOCK = 256, 1 << 16  # number and bytes of the blocks that are read of a larger one
_IN_MEMORY, _ELSEWHERE = 1 << 13, 64  # most entries of a list, and of a source, that are read

_Add = Callable[[bytes | memoryview], None]


def fingerprint(data: Any, *, full: bool = False) -> str:
    """The fingerprint of arrays, texts, numbers, sources and containers of them.

    Of an object that is none of these, only the type counts; one with a method ``fingerprinted``
    is taken for what that returns.

    Args:
        data: what to name.
        full: whether everything is read, however large it is.

    Returns:
        24 hexadecimal digits.

    >>> fingerprint({"labels": np.arange(3)}) == fingerprint({"labels": np.arange(3)})
    True
    >>> fingerprint(["a", "b"]) == fingerprint(["b", "a"])
    False
    """
    digest = hashlib.blake2b(digest_size=12)
    _add(digest.update, data, full)
    return digest.hexdigest()


def _add(add: _Add, data: Any, full: bool) -> None:
    if isinstance(data, str):
        _add_buffer(add, "text", data.encode("utf-8", "surrogatepass"), full)
    elif data is None or isinstance(data, bool | int | float | complex):
        _add_buffer(add, "number", repr(data).encode(), full)
    elif isinstance(data, np.ndarray):
        _add_array(add, data, full)
    elif isinstance(data, dict | Mapping):
        _add_entries(add, "mapping", sorted(data.items(), key=lambda item: str(item[0])), full)
    elif isinstance(data, bytes | bytearray | memoryview | mmap.mmap):
        _add_buffer(add, "bytes", data, full)
    elif callable(parts := getattr(data, "fingerprinted", None)) and not isinstance(data, type):
        _add(add, parts(), full)
    elif isinstance(data, Set):
        _add_entries(add, "set", sorted(fingerprint(entry, full=full) for entry in data), full)
    elif dataclasses.is_dataclass(data) and not isinstance(data, type):
        fields = [getattr(data, field.name) for field in dataclasses.fields(data)]
        _add_entries(add, type(data).__name__, fields, full)
    elif isinstance(data, range):
        _add_entries(add, "range", [data.start, data.stop, data.step], full)
    elif hasattr(data, "__array__"):
        _add_array(add, np.asarray(data), full)
    elif hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        most = _IN_MEMORY if isinstance(data, list | tuple) else _ELSEWHERE
        _add_sequence(add, data, len(data) if full else most, full)
    else:
        _add_buffer(add, "object", type(data).__qualname__.encode(), full)


def _add_buffer(add: _Add, kind: str, data: Any, full: bool) -> None:
    with memoryview(data) as given, given.cast("B") as view:
        size = view.nbytes
        add(f"{kind} {size} ".encode())
        if full or size <= _WHOLE:
            add(view)
            return
        for start in np.linspace(0, size - _BLOCK, _BLOCKS).astype(np.int64).tolist():
            add(view[start : start + _BLOCK])


def _add_array(add: _Add, array: np.ndarray, full: bool) -> None:
    if array.dtype.hasobject:
        _add_entries(add, f"objects {array.shape}", array.ravel().tolist(), full)
        return
    dtype = array.dtype
    kind = f"array {dtype.char}{dtype.itemsize} {dtype.descr if dtype.names else ''} {array.shape}"
    _add_buffer(add, kind, np.ascontiguousarray(array).reshape(-1).view(np.uint8), full)


def _add_entries(add: _Add, kind: str, entries: Iterable[Any], full: bool) -> None:
    add(f"{kind} ".encode())
    for entry in entries:
        _add(add, entry, full)
    add(b"end ")


def _add_sequence(add: _Add, data: Any, most: int, full: bool) -> None:
    length = len(data)
    add(f"sequence {length} ".encode())
    indices: Iterable[int] = range(length)
    if length > most:
        indices = np.linspace(0, length - 1, most).astype(np.int64).tolist()
    for index in indices:
        try:
            entry = data[index]
        except Exception as error:  # a damaged example stops a run where it is used, not here
            entry = type(error).__name__
        _add(add, entry, full)
