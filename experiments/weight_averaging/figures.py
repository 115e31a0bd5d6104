"""The pictures a run ends with: accuracy by step and by width, and the orbit of the Dirac GAN."""

import pathlib
from typing import Any

import numpy as np

from experiments.weight_averaging import dirac_gan
from zoo import extras


def save(
    workdir: pathlib.Path,
    curves: dict[str, dict[int, float]],
    by_width: dict[float, dict[str, float]],
) -> list[pathlib.Path]:
    """Writes accuracy.png, post_hoc.png and dirac_gan.png; returns their paths."""
    drawn = {
        "accuracy": draw_accuracy(curves),
        "post_hoc": draw_widths(by_width),
        "dirac_gan": draw_orbit(),
    }
    paths = [workdir / f"{name}.png" for name in drawn]
    for path, figure in zip(paths, drawn.values(), strict=True):
        figure.savefig(path, dpi=120)
    return paths


def draw_accuracy(curves: dict[str, dict[int, float]]) -> Any:
    """Test accuracy by step, one line each."""
    figure = extras.require("matplotlib.figure", "plot").Figure((7, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, (name, curve) in enumerate(curves.items()):
        grey = {"color": f"{0.75 - 0.25 * number}"} if number < 2 else {}
        steps, values = list(curve), 100 * np.array(list(curve.values()))
        axes.plot(steps, values, ".-", linewidth=1, markersize=4, label=name, **grey)
    settled = [
        value for curve in curves.values() for value in list(curve.values())[len(curve) // 4 :]
    ]
    low, high = 100 * min(settled), 100 * max(settled)
    axes.set(xlabel="step", ylabel="test accuracy %", ylim=(low - 1, high + 1))
    axes.grid(alpha=0.3)
    figure.legend(fontsize="small", loc="outside upper center", ncols=3)
    return figure


def draw_widths(by_width: dict[float, dict[str, float]]) -> Any:
    """Final loss by averaging length."""
    figure = extras.require("matplotlib.figure", "plot").Figure((5, 3.5), layout="constrained")
    axes = figure.subplots()
    widths = sorted(by_width)
    axes.plot(widths, [by_width[width]["loss"] for width in widths], "o-")
    axes.set(xlabel="relative standard deviation of the average", ylabel="test loss")
    axes.grid(alpha=0.3)
    return figure


def draw_orbit(start: tuple[float, float] = (0.1, 0.2), *, periods: int = 12) -> Any:
    """The game's orbit with its averages, and how far each is from the equilibrium by time."""
    step = dirac_gan.PERIOD / 256
    points = dirac_gan.orbit(start, time=periods * dirac_gan.PERIOD, step=step)
    figure = extras.require("matplotlib.figure", "plot").Figure((9, 4), layout="constrained")
    plane, decline = figure.subplots(1, 2)
    time = step * np.arange(len(points)) / dirac_gan.PERIOD
    lines = {"parameters": points}
    for multiple in (1, 3):
        label = f"average, memory of {multiple} period{'s' * (multiple > 1)}"
        lines[label] = dirac_gan.averages(points, memory=multiple * dirac_gan.PERIOD, step=step)
    for label, line in lines.items():
        plane.plot(line[:, 0], line[:, 1], linewidth=1, label=label)
        decline.plot(time, np.linalg.norm(line, axis=1), linewidth=1, label=label)
    plane.plot(0, 0, "k+")
    plane.set(xlabel="discriminator φ", ylabel="generator θ", aspect="equal")
    decline.set(xlabel="time in periods of 4π", ylabel="distance from equilibrium", yscale="log")
    decline.legend(fontsize="small")
    return figure
