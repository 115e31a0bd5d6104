"""Buckets and other places that ``fsspec`` reaches: ``gs://``, ``s3://``, ``memory://``."""

import os
import pathlib
from typing import Any

from zoo.extras import require

SCHEMES = ("gs", "s3", "memory")  # the last is this process's memory, for tests


def is_remote(name: str) -> bool:
    """Whether a name is one of these URLs."""
    return name.partition("://")[0] in SCHEMES and "://" in name


def open_filesystem(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it.

    Raises:
        ImportError: without the extra ``remote``.
        ValueError: if the URL names no folder or file.
    """
    if not url.partition("://")[2].strip("/"):
        raise ValueError(f"expected a bucket and a path such as gs://BUCKET/PATH, got {url!r}")
    fsspec = require("fsspec", "remote")
    for scheme, module in (("gs", "gcsfs"), ("s3", "s3fs")):
        if url.startswith(f"{scheme}://"):
            require(module, "remote")
    system, path = fsspec.url_to_fs(url)
    system.invalidate_cache()  # of listings: others write there too
    return system, path


def cache_folder() -> pathlib.Path:
    """Where copies are kept: ``$ZOO_CACHE``, else ``zoo`` in the user's folder of caches."""
    given = os.environ.get("ZOO_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(given or os.path.join(base, "zoo")).expanduser().resolve()


def local_name(url: str, kind: str) -> pathlib.Path:
    """Where the copy of a URL lies: under ``kind`` in the cache, the parts of the URL below."""
    scheme, _, rest = url.partition("://")
    parts = [part for part in rest.split("/") if part]
    if ".." in parts:
        raise ValueError(f"a URL may not climb with '..', got {url!r}")
    return cache_folder().joinpath(kind, scheme, *parts)
