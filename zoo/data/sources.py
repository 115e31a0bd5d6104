"""Random-access data behind one URI: ``builtin:``, ``file:`` and ``tfds:``.

A source is anything with a length whose items are dictionaries, so that a pipeline reads example i
without reading the examples before it.
"""

import bisect
import importlib.resources
import itertools
import operator
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from zoo.data.fingerprint import fingerprint
from zoo.data.images import Images, read_images
from zoo.data.lines import DECOMPRESSORS, Lines, map_file
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
    - ``file:PATH.tsv``: tab-separated strings, no quoting; the first line names the columns, or
      ``file:PATH.tsv?columns=id,text`` does; blank lines are skipped.
    - ``file:PATH.npz`` with arrays ``x_train``, ``y_train``, ``x_test``, ``y_test``, or
      ``file:FOLDER`` with the four idx files of MNIST: ``{"image": [height, width, channels] as
      stored, "label": int32}``. Their splits are those stored, there is nothing to cut.
    - ``file:PATH`` with any other ending: ``{"text": line}``, blank lines kept.
    - ``tfds:NAME``: ``tensorflow_datasets.data_source``, without TensorFlow; bytes become strings.

    A file is memory-mapped; with ``.gz``, ``.xz`` or ``.bz2`` after its ending it is decompressed
    into memory instead. Endings may be in capitals. ``~`` and environment variables in PATH are
    expanded. Text is UTF-8; a line ends with ``"\n"`` only, and a ``"\r"`` before that is dropped.

    Args:
        uri: what to open.
        split: ``"train"``, ``"valid"``, ``"test"``, or None for everything. Where PATH holds the
            placeholder ``{split}``, the split is a file of its own; ``tfds:`` takes it as the name
            of a split (``"valid"`` finds ``"validation"`` too, and slices such as ``"train[:90%]"``
            are passed on). Any other source is cut by example, in order: 90 %, 5 % and 5 %.

    Returns:
        The source: ``len(source)``, ``source[i]``, ``source.uri``.

    Raises:
        ValueError: unknown scheme, built-in set, split or query; text that is empty, truncated or
            not UTF-8. Malformed JSON and a wrong number of columns are reported on reading.
        OSError: the file is missing or cannot be read.

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
    if uri.partition(":")[0] != "file":
        return fingerprint(open_source(uri), full=full)
    name, _, _ = _parse_file(uri)
    whole = _path(uri, name)
    files = [whole]
    if whole.is_dir():
        files = sorted(file for file in whole.iterdir() if file.is_file())
    elif "{split}" in name and not whole.exists():
        files = [_path(uri, name, split) for split in SPLITS]
        files = [file for file in files if file.exists()] or files
    return fingerprint([map_file(file) for file in files], full=full)


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


def _cut(uri: str, examples: Any, split: str | None) -> Source:
    if split is None:
        return _Joined(uri, [examples])
    total = len(examples)
    bounds = (0, total * 90 // 100, total * 95 // 100, total)
    start, stop = bounds[SPLITS.index(split) :][:2]
    if start == stop:
        raise ValueError(
            f"split={split!r} of {uri!r} is empty: its {total} examples are too few to be cut "
            "90/5/5; use split=None or a larger set"
        )
    return _Joined(uri, [examples], start, stop)


def _open_builtin(uri: str, name: str, split: str | None) -> Source:
    if name == "shakespeare":
        folder = importlib.resources.files("zoo.data") / "files"
        with importlib.resources.as_file(folder / "shakespeare.txt.gz") as path:
            return _cut(uri, Lines(path), split)
    if name == "digits":
        digits = require("sklearn.datasets", "data").load_digits()
        images = (digits.images / 16).astype(np.float32)
        return _cut(uri, Images(images, digits.target, name), split)
    raise ValueError(f"builtin: knows shakespeare and digits, got {uri!r}")


def _parse_file(uri: str) -> tuple[str, str, list[str] | None]:
    """The name, the kind (its ending in lower case), and the columns of ``file:NAME?columns=…``."""
    name, _, query = uri.removeprefix("file:").partition("?")
    key, _, value = query.partition("=")
    path = pathlib.PurePath(name)
    kind = (path.with_suffix("") if path.suffix.lower() in DECOMPRESSORS else path).suffix.lower()
    if not name or "\0" in name:
        raise ValueError(f"expected file:PATH, got {uri!r}")
    if query and (kind != ".tsv" or key != "columns" or not value):
        raise ValueError(
            f"the only query is ?columns=NAME,NAME after a .tsv path, got {query!r} in {uri!r}"
        )
    return name, kind, value.split(",") if value else None


def _path(uri: str, name: str, split: str = "{split}") -> pathlib.Path:
    path = pathlib.Path(os.path.expandvars(name.replace("{split}", split)))
    try:
        return path.expanduser()
    except RuntimeError as error:  # there is no such user
        raise ValueError(f"cannot find the folder that ~ stands for in {uri!r}: {error}") from error


def _open_file(uri: str, rest: str, split: str | None) -> Source:
    del rest
    name, kind, columns = _parse_file(uri)
    whole = _path(uri, name)
    if kind == ".npz" or whole.is_dir():
        stored = [split] if split else ["train", "test"]
        return _Joined(uri, [read_images(whole, part) for part in stored])
    if "{split}" not in name:
        return _cut(uri, Lines(whole, kind, columns), split)
    stored = [split] if split else list(SPLITS)
    return _Joined(uri, [Lines(_path(uri, name, part), kind, columns) for part in stored])


class _Decoded(_Joined):
    """Examples of ``tfds`` with their byte strings as text."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            name: value.decode() if isinstance(value, bytes) else value
            for name, value in super().__getitem__(index).items()
        }


def _open_tfds(uri: str, name: str, split: str | None) -> Source:
    tfds = require("tensorflow_datasets", "data")
    if split is None:
        parts = tfds.data_source(name)
        if not parts:
            raise ValueError(f"{uri!r} does not say which splits it has; give split=")
        return _Decoded(uri, list(parts.values()))
    for known in ("validation", "valid") if split == "valid" else (split,):
        try:
            return _Decoded(uri, [tfds.data_source(name, split=known)])
        except ValueError as error:  # tfds lists the splits there are
            failure = error
    raise ValueError(f"cannot open split={split!r} of {uri!r}: {failure}") from failure


_SCHEMES: dict[str, Callable[[str, str, str | None], Source]] = {
    "builtin": _open_builtin,
    "file": _open_file,
    "tfds": _open_tfds,
}
