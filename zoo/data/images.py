"""Labelled images by number, from the formats in which sets are distributed.

- files ``.png`` and ``.jpg`` whose folder is their class;
- an archive ``.npz`` with ``x_train``, ``y_train``, ``x_test``, ``y_test``;
- a folder with the four idx files of MNIST, ``.gz`` or not: ``train-images-idx3-ubyte``,
  ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte``, ``t10k-labels-idx1-ubyte``.

An idx file starts with two zero bytes, a type (8: unsigned bytes), the number of axes, and the size
of every axis as big-endian 32-bit numbers; the values follow in C order.
"""

import collections
import io
import math
import operator
import pathlib
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from zoo.data.archives import DAMAGED
from zoo.data.arrays import read_npz
from zoo.data.lines import map_file, read_bytes
from zoo.extras import require

# What Pillow raises on a file that is cut off, damaged or none of its own.
_DAMAGED = (*DAMAGED, SyntaxError, OverflowError, struct.error)
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


class ImageFiles:
    """Images in files, decoded when they are read; grey ones have one channel, others RGB.

    Every header is read at once, so that a file that is no image is found before training.

    Args:
        files: with the endings of PNG or JPEG.
        labels: int ``[N]``.
        classes: their names.
        size: the shorter side is scaled to so many pixels, and a square cut out of the middle; None
            keeps the images as they are, and they must then have one size.
        channels: 1 or 3; None: 1 if all images are grey.
        uri: named in errors.

    Raises:
        ValueError: a file is no image, or they differ in size and none is given.
        ImportError: without the extra ``data`` (Pillow).
    """

    def __init__(
        self,
        files: Sequence[pathlib.Path],
        labels: Sequence[int],
        classes: Sequence[str],
        *,
        size: int | None,
        channels: int | None,
        uri: str,
    ):
        self.files, self.labels = list(files), np.array(labels, np.int32)
        self.classes = tuple(classes)
        headers = [_read_picture(file) for file in self.files]
        sizes = collections.Counter(header.size for header in headers)
        if size is None and len(sizes) > 1:
            raise ValueError(
                f"the images of {uri} have {len(sizes)} sizes, {min(sizes)} and {max(sizes)} among "
                f"them; give one with {uri.partition('?')[0]}?size=64"
            )
        grey = all(header.mode in ("1", "L") for header in headers)
        self._size, self._channels = size, channels or (1 if grey else 3)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = operator.index(index)
        path = self.files[index]
        operations = require("PIL.ImageOps", "data")
        header = _read_picture(path)
        try:
            picture = operations.exif_transpose(header)
            picture = picture.convert("L" if self._channels == 1 else "RGB")
        except _DAMAGED as error:
            raise ValueError(f"{path} is truncated or damaged ({error}); fetch it again") from error
        if self._size is not None:
            picture = operations.fit(picture, (self._size, self._size))
        array = np.asarray(picture, np.uint8).reshape(picture.height, picture.width, self._channels)
        return {"image": array, "label": self.labels[index]}

    def fingerprinted(self) -> Any:
        """What a fingerprint is made of: contents, classes and how they are read."""
        files = [StoredFile(file) for file in self.files]
        return files, self.labels, self.classes, self._size, self._channels


class StoredFile:
    """A file that is opened only while its fingerprint is taken."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def fingerprinted(self) -> Any:
        """Its bytes."""
        return map_file(self.path)


def _read_picture(path: pathlib.Path) -> Any:
    """An image of which only the header has been read; the file is closed."""
    pictures = require("PIL.Image", "data")
    data = read_bytes(path)
    try:
        picture = pictures.open(io.BytesIO(data), formats=("PNG", "JPEG"))
    except (*_DAMAGED, pictures.DecompressionBombError) as error:
        raise ValueError(f"{path} is damaged or no PNG or JPEG image ({error})") from error
    if picture.mode.startswith(("I", "F")):
        raise ValueError(f"{path} must have 8 bits a channel, got the mode {picture.mode}")
    return picture


def int32(values: np.ndarray, name: str) -> np.ndarray:
    """Integers as int32; a ValueError if they are none or one does not fit."""
    if values.dtype.kind not in "iu":
        raise ValueError(f"{name} must be integers, got {values.dtype}")
    limits = np.iinfo(np.int32)
    if values.size and not limits.min <= int(values.min()) <= int(values.max()) <= limits.max:
        raise ValueError(f"{name} must fit in 32 bits, got {values.min()} to {values.max()}")
    return values.astype(np.int32)


def has_idx_files(folder: pathlib.Path) -> bool:
    """Whether a folder holds files of MNIST's format."""
    return folder.is_dir() and any("-idx" in file.name for file in folder.iterdir())


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
