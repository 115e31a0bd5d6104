"""Fetches the sets that the READMEs' tables use from their public sources.

    python -m zoo.data.fetch                    # lists them
    python -m zoo.data.fetch ptb imdb           # into $ZOO_DATA/ptb and $ZOO_DATA/imdb
    python -m zoo.data.fetch mnist --folder DIR

Every download is compared with a SHA-256 before anything is made of it, and a set that is complete
is left as it is. Read the licence that is printed: several sets are for research alone.
"""

import argparse
import gzip
import hashlib
import importlib.resources
import json
import lzma
import os
import pathlib
import shutil
import sys
import urllib.request
from collections.abc import Sequence
from typing import Any

from zoo._files import replace_file
from zoo.data.public_sets import MAKERS

_SECONDS = 60  # without a byte
_PIECE = 1 << 20
_COMPRESS = {".gz": lambda content: gzip.compress(content, mtime=0), ".xz": lzma.compress}


def public_sets() -> dict[str, Any]:
    """Name -> page, licence, downloads with SHA-256, files, of every set."""
    path = importlib.resources.files("zoo.data") / "files" / "sets.json"
    return json.loads(path.read_text(encoding="utf-8"))


def fetch(name: str, folder: pathlib.Path) -> None:
    """Fetches a set into a folder of its name, unless it is there.

    Raises:
        ValueError: unknown name, or a download or a file made of it has another SHA-256.
        OSError: something cannot be fetched or written.
        FileNotFoundError: something has to be put there by hand; the message says from where.
    """
    sets = public_sets()
    if name not in sets:
        raise ValueError(f"the set must be one of {', '.join(sets)}, got {name!r}")
    entry, folder = sets[name], folder / name
    files = entry.get("files") or [*entry["downloads"]]
    print(f"{name}: {entry['page']}\n  licence: {entry['licence']}")
    if all((folder / file).exists() for file in files):
        print(f"  complete in {folder}")
        return
    downloads = folder / ".downloads"
    for file, sha256 in entry["downloads"].items():
        url = entry["urls"][file] if "urls" in entry else f"{entry['base']}/{file}"
        _download(url, downloads / file, sha256)
    made = (
        MAKERS[name](downloads, folder)
        if name in MAKERS
        else ((file, (downloads / file).read_bytes()) for file in files)
    )
    for file, content in made:
        expected = entry.get("contents", {}).get(file)
        if expected and (got := hashlib.sha256(content).hexdigest()) != expected:
            raise ValueError(
                f"{file} of {name} has the SHA-256 {got}, expected {expected}: "
                f"the source has changed; see {entry['page']}"
            )
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        # What is stored as it was fetched is compressed already.
        compress = _COMPRESS.get(pathlib.PurePath(file).suffix) if name in MAKERS else None
        replace_file(folder / file, compress(content) if compress else content)
        print(f"  {folder / file}: {len(content):,} bytes")
    if missing := [file for file in files if not (folder / file).exists()]:
        raise FileNotFoundError(
            f"{name} needs {entry['by_hand']}. Put it into {folder} and run the same command "
            f"again, which then makes {', '.join(missing)}"
        )
    shutil.rmtree(downloads)


def _download(url: str, path: pathlib.Path, sha256: str | None) -> None:
    """Fetches a file, unless it is there, and compares its checksum."""
    if path.exists() and sha256 in (None, _sha256(path)):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    request = urllib.request.Request(url, headers={"User-Agent": "kexue-zoo"})
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer, part.open("wb") as file:
            total, done = int(answer.headers.get("Content-Length") or 0), 0
            while piece := answer.read(_PIECE):
                file.write(piece)
                done += len(piece)
                if sys.stderr.isatty():
                    print(f"\r  {path.name}: {done:,} of {total:,} bytes", end="", file=sys.stderr)
        if total and done != total:
            raise OSError(f"it ended after {done:,} of {total:,} bytes")
    except OSError as error:  # urllib's errors are among them
        part.unlink(missing_ok=True)
        raise OSError(
            f"cannot fetch {url}: {error}. Run the command again, or put the file there by other "
            f"means: {path}"
        ) from error
    if sha256 is not None and (got := _sha256(part)) != sha256:
        part.unlink()
        raise ValueError(
            f"{url} has the SHA-256 {got}, expected {sha256}: it was damaged on its way or has "
            "changed there; nothing was kept"
        )
    part.replace(path)


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; gives its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m zoo.data.fetch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="sets, or all; none: list them")
    parser.add_argument("--folder", help="default: $ZOO_DATA", default=os.environ.get("ZOO_DATA"))
    given = parser.parse_args(arguments)
    sets = public_sets()
    if not given.names:
        width = max(map(len, sets))
        for name, entry in sets.items():
            print(f"{name:{width}}  {entry['page']}  ({entry['licence']})")
        return 0
    if not given.folder:
        parser.error(
            "set ZOO_DATA to the folder for data (export ZOO_DATA=~/data), or give --folder"
        )
    status = 0
    for name in sets if given.names == ["all"] else given.names:
        try:
            fetch(name, pathlib.Path(given.folder).expanduser())
        except (ValueError, OSError, ImportError) as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            status = 2
    return status


if __name__ == "__main__":
    sys.exit(main())
