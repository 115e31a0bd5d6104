"""Figures without pyplot, which keeps every figure in memory, and where a run writes them."""

import pathlib
from collections.abc import Mapping
from typing import Any

from zoo import extras


def new_figure(width: float, height: float) -> Any:
    """An empty ``matplotlib.figure.Figure``, in inches."""
    figure = extras.require("matplotlib.figure", "plot").Figure
    return figure((width, height), layout="constrained")


def save_figures(folder: pathlib.Path, figures: Mapping[str, Any]) -> list[pathlib.Path]:
    """Writes ``NAME.png`` for each figure by name; returns the paths."""
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=110)
    return [folder / f"{name}.png" for name in figures]
