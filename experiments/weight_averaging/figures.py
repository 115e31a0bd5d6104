"""The pictures a run ends with: accuracy by step and by width, and the orbit of the Dirac GAN."""

from typing import Any

import numpy as np

from ..pictures import new_figure
from . import dirac_gan


def draw_accuracy(curves: dict[str, dict[int, float]]) -> Any:
    """Test accuracy by step, one line each; the y-axis leaves out the first quarter."""
    figure = new_figure(7, 4.5)
    axes, settled = figure.subplots(), []
    for number, (name, curve) in enumerate(curves.items()):
        grey = {"color": f"{0.75 - 0.25 * number}"} if number < 2 else {}
        values = 100 * np.array(list(curve.values()))
        axes.plot(list(curve), values, ".-", linewidth=1, markersize=4, label=name, **grey)
        settled += [*values[len(values) // 4 :]]
    axes.set(xlabel="step", ylabel="test accuracy %", ylim=(min(settled) - 1, max(settled) + 1))
    axes.grid(alpha=0.3)
    figure.legend(fontsize="small", loc="outside upper center", ncols=3)
    return figure


def draw_widths(loss: dict[float, float]) -> Any:
    """Test loss by the width of the average."""
    figure = new_figure(5, 3.5)
    axes = figure.subplots()
    axes.plot(*zip(*sorted(loss.items()), strict=True), "o-")
    axes.set(xlabel="relative standard deviation of the average", ylabel="test loss")
    axes.grid(alpha=0.3)
    return figure


def draw_orbit(start: tuple[float, float] = (0.1, 0.2), *, periods: int = 12) -> Any:
    """The game's orbit with its averages, and how far each is from the equilibrium by time."""
    figure = new_figure(9, 4)
    step = dirac_gan.PERIOD / 256
    points = dirac_gan.orbit(start, time=periods * dirac_gan.PERIOD, step=step)
    plane, decline = figure.subplots(1, 2)
    lines = {"parameters": points}
    for multiple in (1, 3):
        label = f"average, memory of {multiple} period{'s' * (multiple > 1)}"
        lines[label] = dirac_gan.averages(points, memory=multiple * dirac_gan.PERIOD, step=step)
    for label, line in lines.items():
        plane.plot(line[:, 0], line[:, 1], linewidth=1, label=label)
        decline.plot(np.arange(len(line)) / 256, np.linalg.norm(line, axis=1), linewidth=1)
    plane.plot(0, 0, "k+")
    plane.set(xlabel="discriminator φ", ylabel="generator θ", aspect="equal")
    plane.legend(fontsize="small")
    decline.set(xlabel="time in periods of 4π", ylabel="distance from equilibrium", yscale="log")
    return figure
