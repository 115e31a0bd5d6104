"""The pictures a run ends with: angles of every layer beside chance, and learning curves."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zoo.orthogonal.angles import random_angle_density, random_angle_std

from ..pictures import new_figure
from .model import LAYERS

TITLES = {
    "none": "none",
    "weight_decay": "weight decay",
    "soft": "soft",
    "off_diagonal": "off-diagonal",
    "spectral": "SRIP",
    "self_orthogonality": "self-orthogonality",
}
NORMS = {False: "no batch norm", True: "batch norm"}


Pair = tuple[str, bool]  # method, batch norm


def draw_angles(angles: Mapping[Pair, Mapping[str, np.ndarray]], entries: Mapping[str, int]) -> Any:
    """Histograms of the angles of all seeds: a row per method, a column per layer; chance in black.

    ``entries`` are the numbers of entries of a filter by layer.
    """
    methods = list(dict.fromkeys(method for method, _ in angles))
    figure = new_figure(9, 1.0 + 1.25 * len(methods))
    grid = figure.subplots(len(methods), len(LAYERS), squeeze=False, sharex="col")
    for column, layer in enumerate(LAYERS):
        chance = random_angle_std(entries[layer])
        everything = np.concatenate([own[layer] for own in angles.values()])
        reach = max(3.5 * chance, np.quantile(np.abs(everything - 90), 0.995))
        edges = np.linspace(90 - reach, 90 + reach, 41)
        fine = np.linspace(edges[0], edges[-1], 301, dtype=np.float32)
        density = np.asarray(random_angle_density(fine, dimension=entries[layer]))
        for row, method in enumerate(methods):
            axes = grid[row, column]
            for norm, color in ((False, "tab:orange"), (True, "tab:blue")):
                if (method, norm) in angles:
                    style = {"histtype": "step", "color": color, "label": NORMS[norm]}
                    axes.hist(angles[method, norm][layer], edges, density=True, **style)
            axes.plot(fine, density, color="black", linewidth=1, label="random filters")
            axes.set(yticks=[], xlim=(edges[0], edges[-1]))
            axes.spines[["left", "top", "right"]].set_visible(False)
        grid[0, column].set_title(f"{layer} layer, {entries[layer]} entries")
        grid[-1, column].set_xlabel("angle between two filters, degrees")
    for row, method in enumerate(methods):
        title = TITLES[method].replace("-", "-\n")
        grid[row, 0].set_ylabel(title, rotation=0, ha="right", va="center")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def draw_curves(curves: Mapping[Pair, np.ndarray], steps: Sequence[float]) -> Any:
    """Cross-entropy ``[seeds, steps]`` while training, the mean over the seeds."""
    norms = list(dict.fromkeys(norm for _, norm in curves))
    figure = new_figure(4.5 * len(norms), 3.5)
    grid = figure.subplots(1, len(norms), squeeze=False, sharey=True)[0]
    for axes, norm in zip(grid, norms, strict=True):
        for (method, own), values in curves.items():
            if own == norm:
                axes.plot(steps, values.mean(axis=0), label=TITLES[method])
        axes.set(title=NORMS[norm], xlabel="step", yscale="log")
    grid[0].set_ylabel("cross-entropy of the batches")
    grid[-1].legend(fontsize="small")
    return figure
