"""NumPy's files, ``.npy`` and archives ``.npz`` of them, read so that damage is named.

No Python objects are read, and memory is taken for the bytes there are, not for those that a header
claims.
"""

import io
import math
import pathlib
import struct
import tokenize
import zipfile
from collections.abc import Sequence
from typing import IO

import numpy as np

from zoo._files import check_growth
from zoo.data.archives import DAMAGED
from zoo.data.lines import read_bytes

# What zipfile and NumPy raise on a file that is damaged, encrypted or none at all.
_DAMAGED = (
    *DAMAGED,
    *(struct.error, SyntaxError, tokenize.TokenError, MemoryError),  # of a header
    *(TypeError, KeyError, OverflowError),
)


def read_npy(path: pathlib.Path) -> np.ndarray:
    """The array in a file ``.npy``; errors as those of :func:`read_npz`."""
    try:
        data = read_bytes(path)
        return _array(io.BytesIO(data), len(data))
    except _DAMAGED as error:
        raise ValueError(f"{path} is not a complete .npy file: {error}") from error


def read_npz(path: pathlib.Path, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Arrays of an archive ``.npz``, all of them if None are named; they are read-only.

    Raises:
        ValueError: if the archive or one of these arrays is damaged or missing; names the file.
        OSError: if the file is missing or cannot be read.
    """
    data = io.BytesIO(read_bytes(path))
    try:
        archive = zipfile.ZipFile(data)
        there = [name.removesuffix(".npy") for name in archive.namelist()]
    except _DAMAGED as error:
        raise ValueError(f"{path} is not a complete .npz archive: {error}") from error
    if missing := [name for name in names or () if name not in there]:
        raise ValueError(f"{path} has no {', '.join(missing)}, it has {', '.join(there)}")
    arrays, size = {}, 0
    for name in there if names is None else names:
        try:
            member = archive.getinfo(f"{name}.npy")
            size += member.file_size
            check_growth(name, size, len(data.getbuffer()))
            with archive.open(member) as file:
                arrays[name] = _array(file, member.file_size)
        except _DAMAGED as error:
            kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
            raise ValueError(
                f"{path} is not a complete .npz archive: {name}: {kind}{error}"
            ) from error
    return arrays


def _array(file: IO[bytes], size: int) -> np.ndarray:
    """The array in a file that holds, or claims to hold, so many bytes."""
    version = np.lib.format.read_magic(file)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    shape, columns_first, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects; save numbers (allow_pickle=False)")
    size -= file.tell()
    if min(shape, default=0) < 0 or size != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"it has {size} bytes for {dtype} {list(shape)}")
    data = file.read()
    if len(data) != size:
        raise ValueError(f"it has {len(data)} bytes for {dtype} {list(shape)}")
    array = np.frombuffer(data, dtype)
    return array.reshape(shape[::-1]).T if columns_first else array.reshape(shape)
