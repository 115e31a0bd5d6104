"""Members of zip and tar archives, read so that damage is named and nothing is left out."""

import io
import lzma
import pathlib
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, cast

from zoo.data.lines import read_bytes

# What the modules raise on an archive that is cut off, damaged or none.
DAMAGED = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError),
    *(ValueError, RuntimeError, OSError),  # NotImplementedError: an unknown method of compression
)


def read_zip(path: pathlib.Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Name and content of every member whose name is wanted, in the order of the names.

    Raises:
        ValueError: if the archive or one of these members is damaged; names the file.
        OSError: if the file is missing or cannot be read.
    """
    data = io.BytesIO(read_bytes(path))
    try:
        archive = zipfile.ZipFile(data)
        names = sorted(filter(wanted, archive.namelist()))
    except DAMAGED as error:
        raise ValueError(f"{path} is damaged or no zip archive ({error})") from error
    for name in names:
        try:
            content = archive.read(name)
        except DAMAGED as error:
            raise ValueError(f"{path} is damaged or no plain zip archive ({error})") from error
        yield name, content


def read_tar(path: pathlib.Path) -> list[tuple[str, bytes]]:
    """Name and content of every file in an archive; errors as those of :func:`read_zip`."""
    data = io.BytesIO(read_bytes(path))
    try:
        with tarfile.open(fileobj=data) as archive:
            files = [(member.name, archive.extractfile(member)) for member in archive]
            contents = [(name, file.read()) for name, file in files if file is not None]
            # The module takes a damaged header behind the first member for the end.
            stream = cast(BinaryIO, archive.fileobj)
            stream.seek(archive.offset)
            end = stream.read(tarfile.BLOCKSIZE)
    except DAMAGED as error:
        raise ValueError(f"{path} is damaged or no tar archive ({error})") from error
    if end != bytes(tarfile.BLOCKSIZE):
        raise ValueError(f"{path} is damaged or cut off behind its member {len(files)}")
    return contents
