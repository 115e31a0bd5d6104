"""Labelled images by number, from the two formats in which small sets are distributed.

- an archive ``.npz`` with ``x_train``, ``y_train``, ``x_test``, ``y_test``;
- a folder with the four idx files of MNIST, ``.gz`` or not: ``train-images-idx3-ubyte``,
  ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte``, ``t10k-labels-idx1-ubyte``.

An idx file starts with two zero bytes, a type (8: unsigned bytes), the number of axes, and the size
of every axis as big-endian 32-bit numbers; the values follow in C order.
"""

import math
import operator
import pathlib
from typing import Any

import numpy as np

from zoo.data.arrays import read_npz
from zoo.data.lines import read_bytes

_IDX_NAMES = {"train": "train", "test": "t10k"}


class Images:
    """Images and labels of the same number.

    Attributes:
        images: ``[N, height, width, channels]``, as stored.
        labels: int32 ``[N]``.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, name: str):
        if images.ndim == 3:
            images = images[..., None]
        if images.ndim != 4 or labels.shape != images.shape[:1] or not len(labels):
            raise ValueError(
                f"{name}: expected images [N, height, width(, channels)] and labels [N], "
                f"got {list(images.shape)} and {list(labels.shape)}"
            )
        if images.dtype.kind not in "buif":
            raise ValueError(f"{name}: expected images of numbers, got {images.dtype}")
        self.images = images
        self.labels = int32(labels, f"{name}: labels")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = operator.index(index)
        return {"image": self.images[index], "label": self.labels[index]}

    def fingerprinted(self) -> Any:
        """What a fingerprint is made of."""
        return self.images, self.labels


def int32(values: np.ndarray, name: str) -> np.ndarray:
    """Integers as int32; a ValueError if they are none or one does not fit."""
    if values.dtype.kind not in "iu":
        raise ValueError(f"{name} must be integers, got {values.dtype}")
    limits = np.iinfo(np.int32)
    if values.size and not limits.min <= int(values.min()) <= int(values.max()) <= limits.max:
        raise ValueError(f"{name} must fit in 32 bits, got {values.min()} to {values.max()}")
    return values.astype(np.int32)


def read_images(path: pathlib.Path, split: str) -> Images:
    """The images of one split, of a folder of idx files or of an archive ``.npz``."""
    images, labels = _read_folder(path, split) if path.is_dir() else _read_archive(path, split)
    return Images(images, labels, str(path))


def _read_archive(path: pathlib.Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    images, labels = read_npz(path, [f"{name}_{split}" for name in "xy"]).values()
    return images, labels


def _read_folder(folder: pathlib.Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    if split not in _IDX_NAMES:
        raise ValueError(f"{folder} has the splits train and test, got {split!r}; cut train")
    images, labels = (
        _read_idx(folder / f"{_IDX_NAMES[split]}-{name}-idx{axes}-ubyte", axes=axes)
        for name, axes in (("images", 3), ("labels", 1))
    )
    return images, labels


def _read_idx(path: pathlib.Path, *, axes: int) -> np.ndarray:
    path = path if path.exists() else path.with_name(path.name + ".gz")
    data = read_bytes(path)
    start = 4 + 4 * axes
    shape = tuple(np.frombuffer(data[4:start].ljust(4 * axes, b"\0"), ">u4").tolist())
    if data[:4] != bytes([0, 0, 8, axes]) or len(data) != start + math.prod(shape):
        raise ValueError(
            f"{path}: expected a complete idx file of unsigned bytes with {axes} axes, got the "
            f"first bytes {data[:4]!r}, sizes {shape} and {len(data)} bytes"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def image_arrays(source: Any) -> tuple[np.ndarray, np.ndarray]:
    """Loads all labelled images of a small set.

    Args:
        source: of examples with ``"image"`` and ``"label"``, such as ``builtin:digits``.

    Returns:
        Images float32 ``[N, height, width, channels]`` (bytes divided by 255, other values as they
        are) and labels int32 ``[N]``.

    >>> from zoo.data import open_source
    >>> images, labels = image_arrays(open_source("builtin:digits", split="test"))
    >>> images.shape, images.dtype, labels.shape
    ((90, 8, 8, 1), dtype('float32'), (90,))
    """
    examples = [source[index] for index in range(len(source))]
    images = np.stack([np.asarray(example["image"]) for example in examples])
    scale = 255 if images.dtype == np.uint8 else 1
    labels = int32(np.asarray([example["label"] for example in examples]), "labels")
    return images.astype(np.float32) / np.float32(scale), labels
