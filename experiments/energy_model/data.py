"""Images to learn, and images to be told from them."""

import numpy as np

from experiments.energy_model.config import DataConfig
from experiments.image_sets import head
from zoo.data import image_arrays, open_source
from zoo.extras import require


def outliers(data: DataConfig, test: np.ndarray) -> dict[str, np.ndarray]:
    """As many of every kind as there are test images: noise, shuffled pixels, another set."""
    generator = np.random.default_rng(0)
    rows = test.reshape(len(test), -1)
    if data.outliers == "builtin:photographs":
        name, other = "photographs", photographs(generator, test.shape)
    else:
        source = open_source(data.outliers, split="test")
        name, other = (
            source.uri.rpartition("/")[2].rpartition(":")[2],
            image_arrays(head(source, len(test)))[0],
        )
    if other.shape[1:] != test.shape[1:]:
        raise ValueError(
            f"data.outliers: expected images of {test.shape[1:]} as in data.uri, got "
            f"{other.shape[1:]}"
        )
    return {
        "uniform noise": generator.uniform(size=test.shape).astype(np.float32),
        "shuffled pixels": generator.permuted(rows, axis=1).reshape(test.shape),
        name: other,
    }


def photographs(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Grey patches of scikit-learn's two photographs, four of their pixels a side in each of ours.

    Args:
        generator: draws the places.
        shape: ``[N, height, width, 1]``.

    Returns:
        float32 of that shape, in 0..1.

    Raises:
        ValueError: if the images wanted are not grey.
    """
    count, height, width, channels = shape
    if channels != 1:
        raise ValueError(
            f"data.outliers: builtin:photographs are grey, but data.uri has {channels} channels; "
            "give the URI of a set"
        )
    pictures = require("sklearn.datasets", "data").load_sample_images().images
    grey = [picture.mean(axis=2) / 255 for picture in pictures]
    patches = []
    for number in range(count):
        picture = grey[number % len(grey)]
        top, left = (
            generator.integers(length - 4 * side)
            for length, side in zip(picture.shape, (height, width), strict=True)
        )
        patch = picture[top : top + 4 * height, left : left + 4 * width]
        patches.append(patch.reshape(height, 4, width, 4).mean(axis=(1, 3)))
    return np.stack(patches)[..., None].astype(np.float32)
