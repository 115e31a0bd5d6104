"""The pictures of images and energies that a run ends with."""

from typing import Any

import numpy as np

from ..pictures import new_figure

BINS = 60


def tile(images: np.ndarray, columns: int) -> np.ndarray:
    """``[N, height, width, channels]`` side by side in rows, a white line between them."""
    rows = [images[i : i + columns] for i in range(0, len(images) - columns + 1, columns)]
    padded = np.pad(np.stack(rows), ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0)), constant_values=1.0)
    count, _, height, width, channels = padded.shape
    return padded.transpose(0, 2, 1, 3, 4).reshape(count * height, columns * width, channels)


def show(axes: Any, images: np.ndarray, columns: int) -> None:
    """A sheet; grey images dark on light, as ink."""
    grey = images.shape[-1] == 1
    sheet = tile(1 - images if grey else images, columns)
    axes.imshow(sheet, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def draw_samples(samples: np.ndarray, train: np.ndarray) -> Any:
    """Samples that started from noise, beside images of the training set."""
    figure = new_figure(10, 5.4)
    left, right = figure.subplots(1, 2)
    show(left, samples[:100], 10)
    left.set_title("samples of the model, from uniform noise")
    show(right, train[:100], 10)
    right.set_title("training images")
    return figure


def draw_rows(rows: dict[str, np.ndarray], label: str = "") -> Any:
    """Named rows of as many images each."""
    images = np.concatenate([*rows.values()])
    columns = len(images) // len(rows)
    figure = new_figure(8, 0.4 + 8 * len(rows) / columns)
    axes = figure.subplots()
    show(axes, images, columns)
    height = images.shape[1] + 1
    axes.set_yticks([(i + 0.5) * height for i in range(len(rows))], [*rows])
    axes.tick_params(length=0)
    axes.set_ylabel(label)
    return figure


def draw_energies(energies: dict[str, np.ndarray]) -> Any:
    """Histograms of the energies, by the kind of image."""
    figure = new_figure(7, 3.6)
    axes = figure.subplots()
    bins = np.histogram_bin_edges(np.concatenate([*energies.values()]), BINS - 1)
    for name, values in energies.items():
        axes.hist(values, bins, density=True, histtype="stepfilled", alpha=0.45, label=name)
    axes.set(xlabel="energy", ylabel="density")
    axes.legend(fontsize="small")
    return figure
