"""One writer per folder: a lock that the kernel releases when its process ends, however it ends.

It is a POSIX record lock on ``<folder>/.lock``, which also holds over NFS, and which workers that
are forked do not inherit. What the file says (host, process, since when) names the holder; whether
there is one, only the lock tells: the file of a run that crashed stays and holds nobody up.
"""

import errno
import os
import pathlib
import socket
import time
import warnings

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"
_BUSY = (errno.EACCES, errno.EAGAIN)
_held: dict[tuple[int, int, int], int] = {}  # (process, device, inode) -> descriptor


def lock_folder(folder: pathlib.Path) -> None:
    """Makes this process the only writer of a folder, until it ends or calls ``release_folders``.

    A folder that this process holds already is left as it is. A file system that has no locks is
    warned of.

    Raises:
        BlockingIOError: if another process holds it; the message names that process.
    """
    path = folder / NAME
    # Closing any descriptor of a file gives up this process's lock on it: look before opening.
    if path.exists() and _key(path.stat()) in _held:
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(descriptor, 300).decode(errors="replace").strip()
        os.close(descriptor)
        if error.errno in _BUSY:
            raise BlockingIOError(
                errno.EAGAIN,
                f"another run is writing here: {holder or 'a process'}; wait for it, stop it, or "
                "give another --workdir",
                str(folder),
            ) from None
        warnings.warn(
            f"{path} cannot be locked ({error.strerror}): nothing keeps a second run out of this "
            "folder",
            stacklevel=3,
        )
        return
    since = time.strftime("%Y-%m-%d %H:%M:%S %z")
    text = f"process {os.getpid()} on {socket.gethostname()}, since {since}\n"
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)
    _held[_key(os.fstat(descriptor))] = descriptor


def release_folders() -> None:
    """Gives up every folder that this process holds."""
    for key, descriptor in list(_held.items()):
        if key[0] == os.getpid():
            os.close(descriptor)
        del _held[key]


def _key(status: os.stat_result) -> tuple[int, int, int]:
    return os.getpid(), status.st_dev, status.st_ino
