"""Labelled images by number, from the two formats in which small sets are distributed.

- an archive ``.npz`` with ``x_train``, ``y_train``, ``x_test``, ``y_test``;
- a folder with the four idx files of MNIST, ``.gz`` or not: ``train-images-idx3-ubyte``,
  ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte``, ``t10k-labels-idx1-ubyte``.

An idx file starts with two zero bytes, a type (8: unsigned bytes), the number of axes, and the size
of every axis as big-endian 32-bit numbers; the values follow in C order.
"""

import io
import math
import operator
import pathlib
import zipfile
from typing import Any

import numpy as np

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
        if not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"{name}: expected integer labels, got {labels.dtype}")
        self.images = images
        self.labels = labels.astype(np.int32)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = operator.index(index)
        return {"image": self.images[index], "label": self.labels[index]}


def read_images(path: pathlib.Path, split: str) -> Images:
    """The images of one split, of a folder of idx files or of an archive ``.npz``."""
    images, labels = _read_folder(path, split) if path.is_dir() else _read_archive(path, split)
    return Images(images, labels, str(path))


def _read_archive(path: pathlib.Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(io.BytesIO(read_bytes(path)), allow_pickle=False) as archive:
            if not {f"x_{split}", f"y_{split}"} <= set(archive.files):
                raise ValueError(f"{path} has no {split=}, it has {', '.join(archive.files)}")
            return archive[f"x_{split}"], archive[f"y_{split}"]
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is not a complete .npz archive: {error}") from error


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
    labels = np.asarray([example["label"] for example in examples], np.int32)
    return images.astype(np.float32) / np.float32(scale), labels
