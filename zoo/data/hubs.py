"""Data sets by name: ``tfds:`` through TensorFlow Datasets, ``hf:`` through Hugging Face's.

TensorFlow Datasets reads what is prepared as ArrayRecord without TensorFlow, and prepares many sets
without. Where a set needs it for that, an error says so before anything is downloaded, and gives
the command that prepares it once, in an environment of its own.
"""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zoo.data.folders import SPLIT_NAMES
from zoo.extras import require


class Converted:
    """Examples of a hub with byte strings as text and pictures as arrays."""

    def __init__(self, examples: Sequence[Any]):
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return {name: _plain(value) for name, value in self._examples[index].items()}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if hasattr(value, "getbands"):  # of Pillow
        array = np.asarray(value)
        return array[..., None] if array.ndim == 2 else array
    return value


def tfds_parts(uri: str, name: str, split: str | None) -> list[Converted]:
    """The examples of one split, or of each if None, of a set of TensorFlow Datasets."""
    tfds = require("tensorflow_datasets", "tfds")
    _check_prepared(tfds, uri, name)
    if split is None:
        parts = tfds.data_source(name)
        if not parts:
            raise ValueError(f"{uri!r} does not say which splits it has; give split=")
        return [*map(Converted, parts.values())]
    for known in SPLIT_NAMES["valid"] if split == "valid" else (split,):
        try:
            return [Converted(tfds.data_source(name, split=known))]
        except ValueError as error:  # tfds lists the splits there are
            failure = error
    raise ValueError(f"cannot open split={split!r} of {uri!r}: {failure}") from failure


def _check_prepared(tfds: Any, uri: str, name: str) -> None:
    """A ValueError if the set is not there yet and preparing it would need TensorFlow."""
    try:
        builder = tfds.builder(name, file_format="array_record")
    except Exception as error:  # the library has one of its own, which lists all sets
        raise ValueError(f"{uri}: {str(error).splitlines()[0]}") from error
    # A builder that uses TensorFlow has it, imported late, as tf; pictures are encoded by it too.
    module = sys.modules.get(type(builder).__module__)
    needs_it = hasattr(module, "tf") or re.search(r"Image|Video|Audio", repr(builder.info.features))
    if builder.is_prepared() or not needs_it:
        return
    python = (
        f"import tensorflow_datasets as t; t.builder({name!r}, file_format='array_record')"
        ".download_and_prepare()"
    )
    packages = "tensorflow tensorflow-datasets array_record importlib_resources"
    raise ValueError(
        f"{uri} is not prepared in {os.fspath(builder.data_dir)}, and preparing it needs "
        "TensorFlow, which zoo does not use. Prepare it once in a second environment:\n"
        f"  python3 -m venv tfds && tfds/bin/pip install {packages} && "
        f'tfds/bin/python -c "{python}"\n'
        "and run the same command again. Nothing has been downloaded."
    )


def hf_parts(uri: str, rest: str) -> dict[str, Converted]:
    """The examples of every split of a set of the Hugging Face Hub, or of a folder in its form."""
    name, _, query = rest.partition("?")
    key, _, config = query.partition("=")
    if not name or (query and (key != "config" or not config)):
        raise ValueError(f"expected hf:OWNER/NAME or hf:OWNER/NAME?config=NAME, got {uri!r}")
    found = require("datasets", "hf").load_dataset(name, config or None)
    return {split: Converted(examples) for split, examples in found.items()}


def find_split(uri: str, parts: Mapping[str, Any], split: str) -> str:
    """The name under which a set has a split."""
    for name in SPLIT_NAMES[split]:
        if name in parts:
            return name
    raise ValueError(f"{uri!r} has the splits {', '.join(parts)}, got split={split!r}")
