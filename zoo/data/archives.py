"""Members of zip and tar archives, read so that damage is named and nothing is left out.

Nothing is written to disk, and members that claim to be larger than the archive could hold are
refused before memory is taken for them.
"""

import io
import lzma
import pathlib
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, cast

from zoo._files import check_growth
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
        size = sum(archive.getinfo(name).file_size for name in names)
    except DAMAGED as error:
        raise ValueError(f"{path} is damaged or no zip archive ({error})") from error
    check_growth(path, size, len(data.getbuffer()))
    for name in names:
        try:
            content = archive.read(name)
        except DAMAGED as error:
            raise ValueError(f"{path} is damaged or no plain zip archive ({error})") from error
        yield name, content


def read_tar(path: pathlib.Path) -> list[tuple[str, bytes]]:
    """Name and content of every file in an archive; errors as those of :func:`read_zip`.

    Links are refused: thousands of them may stand for one large member.
    """
    data = io.BytesIO(read_bytes(path))
    contents: list[tuple[str, bytes]] = []
    size = 0
    try:
        with tarfile.open(fileobj=data) as archive:
            for member in archive:
                if member.issym() or member.islnk():
                    raise ValueError(f"{member.name} is a link; pack it with tar --dereference")
                if (file := archive.extractfile(member)) is not None:
                    size += file.seek(0, io.SEEK_END)
                    check_growth(member.name, size, len(data.getbuffer()))
                    file.seek(0)
                    contents.append((member.name, file.read()))
            count = len(archive.getmembers())
            # The module takes a damaged header behind the first member for the end.
            stream = cast(BinaryIO, archive.fileobj)
            stream.seek(archive.offset)
            end = stream.read(tarfile.BLOCKSIZE)
    except DAMAGED as error:
        raise ValueError(f"{path} is damaged or no tar archive ({error})") from error
    if end != bytes(tarfile.BLOCKSIZE):
        raise ValueError(f"{path} is damaged or cut off behind its member {count}")
    return contents
