"""Local copies of data in buckets: a file is fetched once, and again when it has changed there."""

import glob
import os
import pathlib

from zoo._files import replace_file
from zoo._remote import local_name, open_filesystem


def copy_here(url: str) -> pathlib.Path:
    """Copies a file, a folder with all below it, or what a pattern with ``*`` matches.

    Args:
        url: ``gs://…``, ``s3://…`` or ``memory://…``.

    Returns:
        The path, or the pattern, of the copies.

    Raises:
        FileNotFoundError: if nothing is there.
        OSError: if it cannot be read (no permission, no network).
    """
    here, scheme = local_name(url, "data"), url.partition("://")[0]
    system, root = open_filesystem(url)
    names = system.glob(root) if "*" in root else system.find(root)  # find(file) is the file
    if not names:
        raise FileNotFoundError(2, "there is no data", url)
    copies = {name: local_name(f"{scheme}://{name}", "data") for name in names}
    for name, copy in copies.items():
        state = local_name(f"{scheme}://{name}", "states")  # which state of the original it is
        now = system.ukey(name)
        if copy.is_file() and state.is_file() and state.read_text() == now:
            continue
        for path in (copy, state):
            path.parent.mkdir(parents=True, exist_ok=True)
        part = copy.with_name(f".{copy.name}.{os.getpid()}.part")
        system.get_file(name, os.fspath(part))
        part.replace(copy)
        replace_file(state, now)
    pattern = os.fspath(here) if "*" in root else os.path.join(glob.escape(os.fspath(here)), "**")
    for old in map(pathlib.Path, glob.glob(pattern, recursive=True)):
        if old.is_file() and old not in copies.values():  # gone there
            old.unlink()
    return here
