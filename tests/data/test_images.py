"""Labelled images: archives, folders of idx files, and the errors of broken ones."""

import gzip
import io
import struct
import zipfile

import numpy as np
import pytest

from zoo.data import StreamPipeline, open_source
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
    np.savez(path, x_train=PIXELS.astype(str), y_train=LABELS)
    with pytest.raises(ValueError, match="images of numbers, got <U"):
        open_source(f"file:{path}", split="train")


@pytest.mark.parametrize("dtype", [np.int64, np.uint32, np.uint64])
def test_labels_that_do_not_fit_are_refused(tmp_path, dtype):
    path, large = tmp_path / "set.npz", np.array([0, 1, 2, 3, 2**32 - 1], dtype)
    np.savez(path, x_train=PIXELS, y_train=large)
    with pytest.raises(ValueError, match="labels must fit in 32 bits, got 0 to 4294967295"):
        open_source(f"file:{path}", split="train")
    examples = [{"image": PIXELS[0], "label": label} for label in large]
    with pytest.raises(ValueError, match="labels must fit in 32 bits"):
        image_arrays(examples)
    with pytest.raises(ValueError, match="labels must be integers, got float64"):
        image_arrays([{"image": PIXELS[0], "label": 0.5}])
    with pytest.raises(ValueError, match="ids must fit in 32 bits"):
        StreamPipeline(large, batch_size=2, num_steps=2, seed=0)


def test_arrays_in_every_order_and_bounded_by_their_file(tmp_path):
    path = tmp_path / "set.npz"
    np.savez(path, x_train=np.asfortranarray(PIXELS), y_train=LABELS.astype(">i8"))
    source = open_source(f"file:{path}", split="train")
    np.testing.assert_array_equal([row["image"][..., 0] for row in source], PIXELS)
    assert [row["label"] for row in source] == LABELS.tolist()
    # A header that claims a petabyte takes no memory.
    header = io.BytesIO()
    claimed = {"descr": "|u1", "fortran_order": False, "shape": (10**15, 1, 1)}
    np.lib.format.write_array_header_1_0(header, claimed)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x_train.npy", header.getvalue())
        archive.writestr("y_train.npy", header.getvalue())
    with pytest.raises(ValueError, match="x_train: it has 0 bytes for uint8"):
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
