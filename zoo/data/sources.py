"""Random-access data behind one URI: files, folders, buckets, built-in sets and hubs.

A source is anything with a length whose items are dictionaries, so that a pipeline reads example i
without reading the examples before it.
"""

import bisect
import hashlib
import importlib.resources
import itertools
import operator
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from zoo._remote import SCHEMES as REMOTE
from zoo._remote import local_name
from zoo.data import folders, hubs, remote
from zoo.data.fingerprint import fingerprint
from zoo.data.images import ImageFiles, Images, StoredFile, has_idx_files, read_images
from zoo.data.lines import Lines
from zoo.data.tables import Rows
from zoo.extras import require

SPLITS = ("train", "valid", "test")


@runtime_checkable
class Source(Protocol):
    """Examples by number: the contract between data and :class:`zoo.data.Pipeline`."""

    uri: str

    def __len__(self) -> int:
        """Number of examples N."""

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        """Example ``index`` of 0..N-1; IndexError beyond them, so that a source can be iterated."""


def open_source(uri: str, *, split: str | None = None) -> Source:
    r"""Opens a data set by its URI.

    - ``builtin:shakespeare``: 40,000 lines of plays, ``{"text": line}``, blank lines kept.
    - ``builtin:digits``: 1,797 images, ``{"image": float32 [8, 8, 1] in 0..1, "label": int32}``.
    - ``file:PATH.jsonl``: one JSON object per line; blank lines are skipped.
    - ``file:PATH.tsv``: tab-separated strings, no quoting; ``file:PATH.csv``: comma-separated, with
      quotation marks. The first line names the columns, or ``?columns=id,text`` behind the path
      does; blank lines are skipped.
    - ``file:PATH.parquet``: the rows, with values as Python has them.
    - ``file:PATH`` of any other file: ``{"text": line}``, blank lines kept.
    - ``file:FOLDER`` or ``file:PATTERN`` with ``*`` (``**``: also folders of folders): the files of
      one of these kinds in the order of their names, see :mod:`zoo.data.folders`; texts with a
      blank line between them.
    - ``file:FOLDER`` or ``file:PATTERN`` of PNG and JPEG images whose folder is their class:
      ``{"image": uint8 [height, width, 1 or 3], "label": int32}``, classes in the order of their
      names. ``?size=64`` scales and crops them to squares, ``?channels=1`` makes them grey.
    - ``file:PATH.npz`` with arrays ``x_train``, ``y_train``, ``x_test``, ``y_test``, or
      ``file:FOLDER`` with the four idx files of MNIST: ``{"image": [height, width, channels] as
      stored, "label": int32}``. Their splits are those stored, there is nothing to cut.
    - ``gs://BUCKET/PATH`` and ``s3://BUCKET/PATH``: all of this in a bucket (extra ``remote``), of
      which a copy is kept in ``$ZOO_CACHE`` (default ``~/.cache/zoo``).
    - ``tfds:NAME``: ``tensorflow_datasets.data_source``, without TensorFlow (extra ``tfds``); bytes
      become strings. What is prepared as ArrayRecord is read; see :mod:`zoo.data.hubs`.
    - ``hf:OWNER/NAME``: ``datasets.load_dataset`` (extra ``hf``); ``?config=NAME`` behind it.

    A file is memory-mapped; with ``.gz``, ``.xz`` or ``.bz2`` after its ending it is decompressed
    into memory instead. Endings may be in capitals. ``~`` and environment variables in PATH are
    expanded. Text is UTF-8; a line ends with ``"\n"`` only, and a ``"\r"`` before that is dropped.

    Args:
        uri: what to open.
        split: ``"train"``, ``"valid"``, ``"test"``, or None for everything. Where PATH holds the
            placeholder ``{split}``, the split is a file of its own; where a folder holds ``train/``
            and ``test/``, it is a folder; ``tfds:`` and ``hf:`` take it as the name of a split
            (``"valid"`` finds ``"validation"`` too; ``tfds:`` also takes ``"train[:90%]"``). Any
            other source is cut by example, in order: 90 %, 5 % and 5 %; images are in an order
            that has nothing to do with their class.

    Returns:
        The source: ``len(source)``, ``source[i]``, ``source.uri``.

    Raises:
        ValueError: unknown scheme, built-in set, split or query; text that is empty, truncated or
            not UTF-8. Malformed JSON and a wrong number of columns are reported on reading.
        OSError: the file is missing or cannot be read.
        ImportError: the extra that the scheme needs is not installed.

    >>> source = open_source("builtin:shakespeare", split="train")
    >>> len(source), source[0]
    (36000, {'text': 'First Citizen:'})
    """
    if not isinstance(uri, str):
        raise TypeError(f"uri must be a string such as 'file:PATH', got {uri!r:.80}")
    scheme, colon, rest = uri.partition(":")
    if not colon or scheme not in _SCHEMES:
        known = ", ".join(f"{name}:" for name in _SCHEMES)
        raise ValueError(
            f"uri must start with one of {known} got {uri!r}; write a path as file:PATH"
        )
    if split is not None and split not in SPLITS and scheme != "tfds":
        raise ValueError(f"split must be one of {SPLITS} or None, got {split!r} for {uri!r}")
    return _SCHEMES[scheme](uri, rest, split)


def fingerprint_of(uri: str, *, full: bool = False) -> str:
    """The fingerprint of all the data behind a URI, of every split, without parsing them.

    Args:
        uri: as for :func:`open_source`.
        full: whether large files are read completely, see :mod:`zoo.data.fingerprint`.

    Raises:
        ValueError, OSError: as :func:`open_source`.
    """
    scheme, _, rest = uri.partition(":")
    if scheme not in ("file", *REMOTE):
        return fingerprint(open_source(uri), full=full)
    name, _ = _parse_file(uri, _copied(uri) if scheme in REMOTE else rest)
    places = [*_places(uri, name).values()]
    if "{split}" in name:
        places = [place for place in places if place.exists()] or places
    if has_idx_files(places[0]):
        files = sorted(file for file in places[0].iterdir() if file.is_file())
    else:
        files = [file for place in places for file in folders.list_files(place, uri)]
    return fingerprint([StoredFile(file) for file in files], full=full)


class _Joined:
    """A source: sequences of dictionaries end to end, or examples ``start`` to ``stop`` of them."""

    def __init__(self, uri: str, parts: Sequence[Any], start: int = 0, stop: int | None = None):
        self.uri = uri
        self._parts = parts
        self._starts = list(itertools.accumulate(map(len, parts), initial=0))
        self._range = range(start, self._starts[-1] if stop is None else stop)

    def __len__(self) -> int:
        return len(self._range)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = self._range[operator.index(index)]
        part = bisect.bisect(self._starts, index) - 1
        return self._parts[part][index - self._starts[part]]

    def fingerprinted(self) -> Any:
        """What a fingerprint is made of: the whole of what a split was cut of, and the cut."""
        return list(self._parts), self._range


def _cut(uri: str, parts: Sequence[Any], split: str | None) -> Source:
    if split is None:
        return _Joined(uri, parts)
    total = sum(map(len, parts))
    bounds = (0, total * 90 // 100, total * 95 // 100, total)
    start, stop = bounds[SPLITS.index(split) :][:2]
    if start == stop:
        raise ValueError(
            f"split={split!r} of {uri!r} is empty: its {total} examples are too few to be cut "
            "90/5/5; use split=None or a larger set"
        )
    return _Joined(uri, parts, start, stop)


def _open_builtin(uri: str, name: str, split: str | None) -> Source:
    if name == "shakespeare":
        folder = importlib.resources.files("zoo.data") / "files"
        with importlib.resources.as_file(folder / "shakespeare.txt.gz") as path:
            return _cut(uri, [Lines(path)], split)
    if name == "digits":
        digits = require("sklearn.datasets", "data").load_digits()
        images = (digits.images / 16).astype(np.float32)
        return _cut(uri, [Images(images, digits.target, name)], split)
    raise ValueError(f"builtin: knows shakespeare and digits, got {uri!r}")


class _Options(NamedTuple):
    """What may follow a path: ``?columns=a,b``, ``?size=64``, ``?channels=1``, joined by ``&``."""

    columns: list[str] | None = None
    size: int | None = None
    channels: int | None = None


def _parse_file(uri: str, rest: str) -> tuple[str, _Options]:
    """The name and the options of ``NAME?…``."""
    name, _, query = rest.partition("?")
    if not name or "\0" in name:
        raise ValueError(f"expected {uri.partition(':')[0]}:PATH, got {uri!r}")
    options: dict[str, Any] = {}
    for part in filter(None, query.split("&")):
        key, _, value = part.partition("=")
        fine = value.isdecimal() and int(value) > 0 if key != "columns" else value
        if key not in _Options._fields or not fine or (key == "channels" and value not in "13"):
            raise ValueError(
                "what may follow a path is ?columns=NAME,NAME (of .tsv and .csv), ?size=PIXELS "
                f"and ?channels=1 or 3 (of images), got {part!r} in {uri!r}"
            )
        options[key] = value.split(",") if key == "columns" else int(value)
    return name, _Options(**options)


def _path(uri: str, name: str, split: str = "{split}") -> pathlib.Path:
    path = pathlib.Path(os.path.expandvars(name.replace("{split}", split)))
    try:
        return path.expanduser()
    except RuntimeError as error:  # there is no such user
        raise ValueError(f"cannot find the folder that ~ stands for in {uri!r}: {error}") from error


def _places(uri: str, name: str) -> dict[str | None, pathlib.Path]:
    """The path of every split that is stored on its own; of everything under None if none is."""
    whole = _path(uri, name)
    if "{split}" in name and not whole.exists():
        return {split: _path(uri, name, split) for split in SPLITS}
    return folders.split_folders(whole) or {None: whole}


def _open_file(uri: str, rest: str, split: str | None) -> Source:
    name, options = _parse_file(uri, rest)
    places = _places(uri, name)
    whole = places.get(None)
    if whole is not None and (folders.kind_of(whole) == ".npz" or has_idx_files(whole)):
        stored = [split] if split else ["train", "test"]
        return _Joined(uri, [read_images(whole, part) for part in stored])
    if split is not None and whole is None and split not in places:
        known = ", ".join(map(str, places))
        raise ValueError(f"{uri} has the splits {known}, got split={split!r}; cut train")
    wanted = [split] if split in places else list(places)
    files = {part: folders.list_files(places[part], uri) for part in wanted}
    if folders.is_images(next(iter(files.values()))):
        parts = _image_parts(uri, places, files, options)
    else:
        if options.size or options.channels:
            raise ValueError(f"?size and ?channels are of images, got {uri!r}")
        parts = [part for own in files.values() for part in _text_parts(uri, own, options)]
    return _Joined(uri, parts) if whole is None else _cut(uri, parts, split)


def _text_parts(uri: str, files: Sequence[pathlib.Path], options: _Options) -> list[Any]:
    """Files one after the other; a blank line, which ends a document, is between those of text."""
    kinds = {folders.kind_of(file) for file in files}
    if options.columns and not kinds <= {".tsv", ".csv"}:
        raise ValueError(f"?columns is of .tsv and .csv, got {uri!r}")
    parts: list[Any] = []
    for file in files:
        kind = folders.kind_of(file)
        if parts and kind not in folders.TABLES:
            parts.append([{"text": ""}])
        parts.append(Rows(file) if kind == ".parquet" else Lines(file, kind, options.columns))
    return parts


def _image_parts(
    uri: str,
    places: dict[str | None, pathlib.Path],
    files: dict[str | None, list[pathlib.Path]],
    options: _Options,
) -> list[Any]:
    """Images whose class is their folder, in an order that a cut may follow: by hashed name."""
    if options.columns:
        raise ValueError(f"?columns is of .tsv and .csv, got {uri!r}")
    # The classes are those of all splits, whichever is asked for.
    every = {**{part: folders.list_files(place, uri) for part, place in places.items()}, **files}
    roots = {part: folders.root_of(place) for part, place in places.items()}
    classes = sorted(
        {folders.class_of(roots[part], file) for part in every for file in every[part]}
    )
    parts = []
    for part, own in files.items():
        own = sorted(own, key=lambda file: _hash(file.relative_to(roots[part]).as_posix()))
        labels = [classes.index(folders.class_of(roots[part], file)) for file in own]
        size, channels = options.size, options.channels
        parts.append(ImageFiles(own, labels, classes, size=size, channels=channels, uri=uri))
    return parts


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape")).digest()


def _open_remote(uri: str, rest: str, split: str | None) -> Source:
    """Data in a bucket, by way of copies on this machine."""
    return _open_file(uri, _copied(uri, split), split)


def _copied(uri: str, split: str | None = None) -> str:
    """The name of the copies, with the options, of what a URL in a bucket names."""
    url, mark, query = uri.partition("?")
    for part in ([split] if split else SPLITS) if "{split}" in url else [""]:
        remote.copy_here(url.replace("{split}", part or ""))
    return os.fspath(local_name(url, "data")) + mark + query


def _open_tfds(uri: str, name: str, split: str | None) -> Source:
    return _Joined(uri, hubs.tfds_parts(uri, name, split))


def _open_hf(uri: str, rest: str, split: str | None) -> Source:
    parts = hubs.hf_parts(uri, rest)
    if len(parts) == 1:
        return _cut(uri, [*parts.values()], split)
    return _Joined(uri, [parts[hubs.find_split(uri, parts, split)]] if split else [*parts.values()])


_SCHEMES: dict[str, Callable[[str, str, str | None], Source]] = {
    "builtin": _open_builtin,
    "file": _open_file,
    "tfds": _open_tfds,
    "hf": _open_hf,
    **dict.fromkeys(REMOTE, _open_remote),
}
