"""Images to learn, and images to be told from them."""

import numpy as np

from zoo.data import open_source
from zoo.data.images import image_arrays
from zoo.extras import require

from ..image_sets import head
from .config import DataConfig

SHRINK = 4  # pixels of a photograph per pixel of a patch, along each side


def outliers(data: DataConfig, test: np.ndarray) -> dict[str, np.ndarray]:
    """As many of every kind as there are test images: noise, shuffled pixels, another set."""
    generator = np.random.default_rng(0)
    pixels = test.reshape(len(test), -1)
    if data.outliers == "builtin:photographs":
        name, other = "photographs", photographs(generator, test.shape)
    else:
        source = open_source(data.outliers, split="test")
        name = source.uri.rpartition("/")[2].rpartition(":")[2]
        other, _ = image_arrays(head(source, len(test)))
    if other.shape[1:] != test.shape[1:]:
        expected, got = test.shape[1:], other.shape[1:]
        raise ValueError(f"data.outliers: expected images of {expected} as in data.uri, got {got}")
    return {
        "uniform noise": generator.uniform(size=test.shape).astype(np.float32),
        "shuffled pixels": generator.permuted(pixels, axis=1).reshape(test.shape),
        name: other,
    }


def photographs(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Patches ``[N, height, width, channels]`` of scikit-learn's two photographs, float32 in 0..1.

    Grey if ``channels`` is 1. Each pixel is the mean of ``SHRINK²`` of theirs, of fewer where the
    photographs are too small for that.
    """
    count, height, width, channels = shape
    pictures = require("sklearn.datasets", "data").load_sample_images().images
    if channels == 1:
        pictures = [picture.mean(axis=2, keepdims=True) for picture in pictures]
    pictures = [picture / 255 for picture in pictures]
    shrink = min(SHRINK, *(min(p.shape[0] // height, p.shape[1] // width) for p in pictures))
    if channels not in (1, 3) or not shrink:
        raise ValueError(
            f"data.outliers: builtin:photographs are smaller or of other channels than the images "
            f"of data.uri, {height} x {width} x {channels}; give the URI of a set"
        )
    patches = np.empty(shape, np.float32)
    for number in range(count):
        picture = pictures[number % len(pictures)]
        rows, columns = shrink * height, shrink * width
        top = generator.integers(max(1, picture.shape[0] - rows))
        left = generator.integers(max(1, picture.shape[1] - columns))
        patch = picture[top : top + rows, left : left + columns]
        blocks = patch.reshape(height, shrink, width, shrink, channels)
        patches[number] = blocks.mean(axis=(1, 3))
    return patches
