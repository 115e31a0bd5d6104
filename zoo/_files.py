"""Atomic replacement of files."""

import contextlib
import os
import pathlib


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
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
