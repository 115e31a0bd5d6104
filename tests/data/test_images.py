"""Labelled images: archives, folders of idx files, and the errors of broken ones."""

import gzip
import struct

import numpy as np
import pytest

from zoo.data import open_source
from zoo.data.images import image_arrays

PIXELS = np.arange(5 * 2 * 3, dtype=np.uint8).reshape(5, 2, 3)
LABELS = np.array([3, 1, 4, 1, 5], np.uint8)


def idx(array):
    return (
        bytes([0, 0, 8, array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + (array.tobytes())
    )


@pytest.fixture
def folder(tmp_path):
    for stem, rows in {"train": slice(0, 3), "t10k": slice(3, 5)}.items():
        # one file plain, one zipped: both are found
        (tmp_path / f"{stem}-images-idx3-ubyte").write_bytes(idx(PIXELS[rows]))
        labels = gzip.compress(idx(LABELS[rows]))
        (tmp_path / f"{stem}-labels-idx1-ubyte.gz").write_bytes(labels)
    return tmp_path


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "set.npz"
    np.savez(
        path,
        x_train=PIXELS[:3, ..., None],
        y_train=LABELS[:3].astype(np.int64),
        x_test=PIXELS[3:, ..., None],
        y_test=LABELS[3:].astype(np.int64),
    )
    return path


@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_splits_are_those_stored(kind, request):
    uri = f"file:{request.getfixturevalue(kind)}"
    train, test, whole = (open_source(uri, split=split) for split in ("train", "test", None))
    assert (len(train), len(test), len(whole)) == (3, 2, 5)
    for index in range(5):
        example = whole[index]
        np.testing.assert_array_equal(example["image"], PIXELS[index, ..., None])
        assert (example["label"], example["label"].dtype) == (LABELS[index], np.int32)
    assert test[1]["label"] == 5
    images, labels = image_arrays(test)
    np.testing.assert_allclose(images, PIXELS[3:, ..., None] / 255, rtol=1e-6)
    np.testing.assert_array_equal(labels, LABELS[3:])
    assert (images.dtype, labels.dtype) == (np.float32, np.int32)


@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_missing_split_says_which_there_are(kind, request):
    with pytest.raises(ValueError, match=r"(splits train and test|it has x_train, y_train)"):
        open_source(f"file:{request.getfixturevalue(kind)}", split="valid")


def test_broken_files_are_named(folder, archive):
    images = folder / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-1])
    with pytest.raises(
        ValueError, match=r"train-images-idx3-ubyte: expected a complete idx file.*33 bytes"
    ):
        open_source(f"file:{folder}", split="train")
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(LABELS))[:-9])
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte.gz is truncated or damaged"):
        open_source(f"file:{folder}", split="test")
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"set.npz is not a complete .npz archive"):
        open_source(f"file:{archive}")
    with pytest.raises(FileNotFoundError, match="cannot read the data file"):
        open_source(f"file:{folder / 'other.npz'}")


def test_labels_must_fit_the_images(tmp_path):
    path = tmp_path / "set.npz"
    np.savez(path, x_train=PIXELS, y_train=LABELS[:2])
    with pytest.raises(ValueError, match=r"got \[5, 2, 3, 1\] and \[2\]"):
        open_source(f"file:{path}", split="train")
    np.savez(path, x_train=PIXELS, y_train=LABELS / 2)
    with pytest.raises(ValueError, match="labels must be integers, got float64"):
        open_source(f"file:{path}", split="train")
    np.savez(path, x_train=np.array([{}]), y_train=LABELS[:1])
    with pytest.raises(ValueError, match="allow_pickle"):
        open_source(f"file:{path}", split="train")


@pytest.mark.parametrize(
    ("name", "sizes", "shape"),
    [
        ("fashion_mnist", (60_000, 10_000), (28, 28, 1)),
        ("cifar10/cifar10_10k_2k.npz", (10_000, 2_000), (32, 32, 3)),
    ],
)
def test_real_sets(name, sizes, shape, data_directory):
    path = data_directory / name
    if not path.exists():
        pytest.skip(f"needs {name} in the folder that ZOO_DATA names")
    for split, size in zip(("train", "test"), sizes, strict=True):
        source = open_source(f"file:{path}", split=split)
        labels = [source[index]["label"] for index in range(size)]
        assert np.bincount(labels).tolist() == [size // 10] * 10
        assert source[0]["image"].shape == shape
