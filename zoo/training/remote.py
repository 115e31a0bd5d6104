"""The workdir of a run in a bucket: a folder here that is filled from it and written back to it.

Checkpoints are written here, atomically, and copied when they are complete; an index of what
belongs together is written last, so that a run that is killed at any moment leaves a consistent
state behind. One process writes; nothing but the index keeps a second machine out.
"""

import contextlib
import errno
import json
import os
import pathlib
import shutil
import warnings
from collections.abc import Iterator

from zoo._remote import SCHEMES, cache_folder, is_remote, local_name, open_filesystem
from zoo.training.lock import NAME, lock_folder

INDEX = ".index.json"
_KIND = "workdirs"
_State = dict[str, tuple[int, int]]  # name -> size and time of what has been copied
_staged: dict[pathlib.Path, _State] = {}


def stage(url: str) -> pathlib.Path:
    """The folder here of a workdir there: locked, and filled with what the workdir holds.

    Raises:
        OSError: if nothing can be written there.
        BlockingIOError: if another run on this machine uses it.
        ImportError: without the extra ``remote``.
    """
    folder = local_name(url, _KIND)
    if any(folder.is_relative_to(known) for known in _staged):
        return folder
    system, root = open_filesystem(url)
    with _named(url, "workdir cannot be written"):
        system.pipe_file(f"{root}/.writable", b"")
        system.rm_file(f"{root}/.writable")
    folder.mkdir(parents=True, exist_ok=True)
    lock_folder(folder)
    with _named(url, "workdir cannot be read"):
        for old in folder.iterdir():
            if old.is_dir():
                shutil.rmtree(old)
            elif old.name != NAME:
                old.unlink()
        if system.exists(f"{root}/{INDEX}"):
            names = json.loads(system.cat_file(f"{root}/{INDEX}"))
        else:
            names = [name[len(root) :].strip("/") for name in system.find(root)]
        for name in names:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            system.get_file(f"{root}/{name}", os.fspath(path))
    _staged[folder] = _listing(folder)
    return folder


def entered(directory: str | os.PathLike[str]) -> pathlib.Path:
    """The folder to write in: that of a URL, and of a folder beside a staged one; else itself."""
    name = os.fspath(directory)
    url = name if is_remote(name) else url_of(name)
    return pathlib.Path(name) if url is None else stage(url)


def url_of(path: str | os.PathLike[str]) -> str | None:
    """The URL of a path in the folder of a workdir that lies elsewhere; None of any other."""
    base = cache_folder() / _KIND
    if not pathlib.Path(path).is_relative_to(base):
        return None
    scheme, *parts = pathlib.Path(path).relative_to(base).parts or ("",)
    return f"{scheme}://{'/'.join(parts)}" if scheme in SCHEMES else None


def publish(path: str | os.PathLike[str]) -> None:
    """Copies what has changed in the workdir that holds a path, if it lies elsewhere.

    Raises:
        OSError: if that fails; the message says where everything is.
    """
    place = pathlib.Path(path)
    for folder in [known for known in _staged if place.is_relative_to(known)]:
        url = url_of(folder) or ""
        system, root = open_filesystem(url)
        before, now = _staged[folder], _listing(folder)
        with _named(url, f"workdir could not be written, all of it is in {folder}:"):
            for name, state in now.items():
                if before.get(name) != state:
                    system.put_file(os.fspath(folder / name), f"{root}/{name}")
            if before.keys() != now.keys() or not system.exists(f"{root}/{INDEX}"):
                system.pipe_file(f"{root}/{INDEX}", json.dumps(sorted(now)).encode())
            for name in before.keys() - now.keys():
                with contextlib.suppress(FileNotFoundError):
                    system.rm_file(f"{root}/{name}")
        _staged[folder] = now


def leave() -> None:
    """Copies what is left to copy, and forgets the folders."""
    for folder in [*_staged]:
        try:
            if folder.exists() and (_staged[folder] or _listing(folder)):
                publish(folder)
        except OSError as error:
            warnings.warn(str(error), stacklevel=2)
    _staged.clear()


def is_staged(path: str | os.PathLike[str]) -> bool:
    """Whether a path lies in the folder of a workdir elsewhere."""
    return any(pathlib.Path(path).is_relative_to(known) for known in _staged)


def _listing(folder: pathlib.Path) -> _State:
    """Every file that belongs to the run, but the lock and what is being written."""
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        unfinished = path.suffix == ".part" or "orbax-checkpoint-tmp" in name
        if path.is_file() and path.name != NAME and not unfinished:
            status = path.stat()
            found[name] = (status.st_size, status.st_mtime_ns)
    return found


@contextlib.contextmanager
def _named(url: str, what: str) -> Iterator[None]:
    """Turns whatever a bucket's library raises into an OSError with the URL."""
    try:
        yield
    except Exception as error:
        reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        number = getattr(error, "errno", None) or errno.EIO
        advice = "check the bucket and the login, or give another --workdir"
        raise OSError(number, f"{what} ({reason}); {advice}", url) from error
