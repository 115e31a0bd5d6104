"""Files: replaced atomically, and decompressed so that memory is taken for what they can hold.

Text grows 3 to 20 times when it is decompressed; a file made to fill the memory grows 1,000 times
(gzip) or a million times (bzip2).
"""

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

GROWTH = 250  # beyond FREE bytes, the most bytes that a compressed one may stand for
FREE = 1 << 24  # bytes that anything compressed may grow to
_PIECE = 1 << 16  # compressed bytes read at a time: what is behind a member is copied, so not many
_STEP = 1 << 20  # bytes that are decompressed at a time


def replace_file(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Writes a file so that a crash leaves the old one or the new one, never a part."""
    path = pathlib.Path(path)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink()
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = str(path)  # a full disk: which file it was
        raise


def check_growth(name: object, size: int, stored: int) -> None:
    """Whether ``size`` bytes may come of ``stored`` compressed ones.

    >>> check_growth("text.gz", 10**9, 10**7)
    >>> check_growth("text.gz", 10**9, 10**6)
    Traceback (most recent call last):
    ...
    ValueError: text.gz: 1,000,000 bytes grow to 1,000,000,000, more than 250 times as many; ...
    """
    if size > max(FREE, GROWTH * stored):
        raise ValueError(
            f"{name}: {stored:,} bytes grow to {size:,}, more than {GROWTH} times as many; "
            "decompress the file by other means if you trust it"
        )


def decompressed(file: BinaryIO, new: Callable[[], Any]) -> Iterator[bytes]:
    """What is in all members of a compressed file, one after the other, piece by piece.

    The modules gzip, lzma and bz2 take what they cannot read behind a complete member for padding.

    Args:
        file: the compressed file.
        new: what decompresses a member, such as `bz2.BZ2Decompressor`.

    Raises:
        EOFError: if the end is missing; what the module raises if there is damage.
        ValueError: if it grows too much.
    """
    member: Any = None
    seen, stored, size = False, 0, 0
    data = piece = b""
    while True:
        if not data and len(piece) < _STEP:  # else there is more within the decompressor
            data = file.read(_PIECE)
            stored += len(data)
            if not data:
                break
        if member is None and seen and not (data := data.lstrip(b"\0")):  # padding
            piece = b""
            continue
        member, seen = member or new(), True
        piece = member.decompress(data, _STEP)
        size += len(piece)
        check_growth(file.name, size, stored)
        yield piece
        data = getattr(member, "unconsumed_tail", b"")  # the others keep it
        if member.eof:
            member, data, piece = None, member.unused_data, b""
    if member is not None:
        raise EOFError("the end of the compressed data is missing")
