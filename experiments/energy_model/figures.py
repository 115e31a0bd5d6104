"""The pictures a run ends with: of images, and of points in the plane."""

import pathlib
from typing import Any

import numpy as np

from zoo import extras

BINS = 60


def save(
    workdir: pathlib.Path,
    samples: np.ndarray,
    train: np.ndarray,
    sheets: dict[int, np.ndarray],
    energies: dict[str, np.ndarray],
) -> list[pathlib.Path]:
    """Writes samples.png, training.png and energies.png; returns their paths."""
    drawn = {
        "samples": draw_samples(samples, train),
        "training": draw_training(sheets),
        "energies": draw_energies(energies),
    }
    paths = [workdir / f"{name}.png" for name in drawn]
    for path, figure in zip(paths, drawn.values(), strict=True):
        figure.savefig(path, dpi=110)
    return paths


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
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)


def draw_samples(samples: np.ndarray, train: np.ndarray) -> Any:
    """Samples that started from noise, beside images of the training set."""
    figure = extras.require("matplotlib.figure", "plot").Figure((10, 5.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    show(left, samples[:100], 10)
    left.set_title("samples of the model, from uniform noise")
    show(right, train[:100], 10)
    right.set_title("training images")
    return figure


def draw_training(sheets: dict[int, np.ndarray]) -> Any:
    """The samples at every evaluation, each column from the same noise."""
    figure = draw_rows({f"{step:,}": sheets[step] for step in sorted(sheets)})
    figure.axes[0].set_ylabel("training steps")
    return figure


def draw_rows(rows: dict[str, np.ndarray]) -> Any:
    """Named rows of as many images each."""
    images = np.concatenate([*rows.values()])
    columns = len(images) // len(rows)
    size = (8, 0.4 + 8 * len(rows) / columns)
    figure = extras.require("matplotlib.figure", "plot").Figure(size, layout="constrained")
    axes = figure.subplots()
    show(axes, images, columns)
    height = images.shape[1] + 1
    axes.set_yticks([(i + 0.5) * height for i in range(len(rows))], [*rows])
    axes.tick_params(length=0)
    return figure


def draw_energies(energies: dict[str, np.ndarray]) -> Any:
    """Histograms of the energies of the test images, the samples and the outliers."""
    figure = extras.require("matplotlib.figure", "plot").Figure((7, 3.6), layout="constrained")
    axes = figure.subplots()
    low = min(values.min() for values in energies.values())
    high = max(values.max() for values in energies.values())
    bins = np.linspace(low, high, BINS)
    for name, values in energies.items():
        axes.hist(values, bins, density=True, histtype="stepfilled", alpha=0.45, label=name)
    axes.set(xlabel="energy", ylabel="density")
    axes.legend(fontsize="small")
    return figure


def save_plane(
    workdir: pathlib.Path,
    densities: dict[str, dict[str, np.ndarray]],
    read: np.ndarray,
    curves: dict[str, dict[float, np.ndarray]],
) -> list[pathlib.Path]:
    """Writes densities.png and temperature.png; returns their paths."""
    drawn = {
        "densities": draw_densities(densities),
        "temperature": draw_temperature(read, curves),
    }
    paths = [workdir / f"{name}.png" for name in drawn]
    for path, figure in zip(paths, drawn.values(), strict=True):
        figure.savefig(path, dpi=110)
    return paths


def draw_densities(densities: dict[str, dict[str, np.ndarray]]) -> Any:
    """A row a set, the exact density first."""
    rows, columns = len(densities), max(map(len, densities.values()))
    figure = extras.require("matplotlib.figure", "plot").Figure(
        (2.5 * columns, 2.8 * rows), layout="constrained"
    )
    grid = figure.subplots(rows, columns)
    for axes_of_row, (name, row) in zip(grid, densities.items(), strict=True):
        top = row["exact"].max()
        for axes, (title, density) in zip(axes_of_row, row.items(), strict=True):
            axes.imshow(density, origin="lower", vmin=0, vmax=top, cmap="magma")
            axes.set_title(title if title != "exact" else f"{name}, exact\n", fontsize="small")
            axes.set_axis_off()
    return figure


def draw_temperature(read: np.ndarray, curves: dict[str, dict[float, np.ndarray]]) -> Any:
    """KL by the temperature an energy is read at, a line for every temperature of training."""
    figure = extras.require("matplotlib.figure", "plot").Figure((9, 3.6), layout="constrained")
    for axes, (name, lines) in zip(figure.subplots(1, len(curves)), curves.items(), strict=True):
        for number, (temperature, values) in enumerate(lines.items()):
            color = f"C{number}"
            axes.plot(read, values, color=color, label=f"chains at T = {temperature:g}")
            axes.axvline(temperature, color=color, linewidth=1, linestyle=":")
        axes.set(xscale="log", yscale="log", xlabel="energy read as exp(-E/τ), τ", title=name)
        axes.set_ylabel("KL from the exact density, nats")
        axes.set_xticks([0.1, 0.25, 0.5, 1, 2], ["0.1", "0.25", "0.5", "1", "2"])
        axes.minorticks_off()
        axes.legend(fontsize="small")
    return figure
