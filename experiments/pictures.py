"""Figures without pyplot, which keeps every figure in memory, and where a run writes them."""

import io
import pathlib
from collections.abc import Mapping
from typing import Any

from zoo import extras
from zoo._files import replace_file


def new_figure(width: float, height: float) -> Any:
    """An empty ``matplotlib.figure.Figure``, in inches."""
    figure = extras.require("matplotlib.figure", "plot").Figure
    return figure((width, height), layout="constrained")


def save_figure(path: pathlib.Path, figure: Any, *, dpi: int = 110) -> pathlib.Path:
    """Replaces the picture at ``path``, and gives the path."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=dpi)
    replace_file(path, picture.getvalue())
    return path


def save_figures(folder: pathlib.Path, figures: Mapping[str, Any]) -> list[pathlib.Path]:
    """Writes ``NAME.png`` for each figure by name; returns the paths."""
    return [save_figure(folder / f"{name}.png", figure) for name, figure in figures.items()]
