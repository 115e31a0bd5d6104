"""The pictures a run ends with: densities, and KL by the temperature an energy is read at."""

from typing import Any

import numpy as np

from ..pictures import new_figure


def draw_densities(densities: dict[str, dict[str, np.ndarray]]) -> Any:
    """One row per set, the exact density first."""
    rows, columns = len(densities), max(map(len, densities.values()))
    figure = new_figure(2.5 * columns, 2.8 * rows)
    grid = figure.subplots(rows, columns)
    for axes_of_row, (name, row) in zip(grid, densities.items(), strict=True):
        top = row["exact"].max()
        for axes, (title, density) in zip(axes_of_row, row.items(), strict=True):
            axes.imshow(density, origin="lower", vmin=0, vmax=top, cmap="magma")
            axes.set_title(title if title != "exact" else f"{name}, exact\n", fontsize="small")
            axes.set_axis_off()
    return figure


def draw_temperature(read: np.ndarray, curves: dict[str, dict[float, np.ndarray]]) -> Any:
    """KL by the temperature an energy is read at, one line per temperature of training."""
    figure = new_figure(9, 3.6)
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
