"""The picture of a run: what a wrong label costs, and how often samples look like their class."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..pictures import new_figure, save_figure

COLORS = ("tab:blue", "tab:orange", "tab:green")


def save(
    workdir: pathlib.Path, results: Mapping[str, Any], real: Mapping[str, Any]
) -> pathlib.Path:
    """Writes ``classes.png``: perplexity by class and label accuracy of samples."""
    figure = new_figure(10, 3.6)
    left, right = figure.subplots(1, 2)
    by_class = {name: own["held_out_by_class"] for name, own in results.items()}
    classes = _bars(left, by_class, "wrong / right", bottom=1)
    left.set_xticks(range(len(classes)), classes, rotation=30 if len(classes) > 3 else 0)
    left.set_ylabel("perplexity, wrong / right label")
    left.set_title("Held-out text by its class", fontsize=10)
    left.legend(fontsize=8)

    scales = _bars(right, {name: own["samples"] for name, own in results.items()}, "label accuracy")
    right.set_xticks(range(len(scales)), [f"guidance {float(scale):g}" for scale in scales])
    height = real["label accuracy"]
    right.axhline(height, color="black", linestyle="--", linewidth=1)
    place = right.get_yaxis_transform()
    right.text(0.01, height + 0.01, "real held-out text", transform=place, fontsize=8)
    right.set_ylabel("label accuracy")
    right.set_ylim(0, 1)
    right.set_title("Samples, by an independent classifier", fontsize=10)
    return save_figure(workdir / "classes.png", figure)


def _bars(
    axes: Any, series: Mapping[str, Mapping[str, Any]], column: str, *, bottom: float = 0
) -> list[str]:
    """A group of bars with intervals for each row of the series; gives the names of the rows."""
    width = 0.8 / len(series)
    for number, (name, rows) in enumerate(series.items()):
        values = [(row[column], *row[f"{column} interval"]) for row in rows.values()]
        heights, low, high = np.array(values).T
        axes.bar(
            np.arange(len(rows)) + (number - (len(series) - 1) / 2) * width,
            heights - bottom,
            width,
            bottom=bottom,
            color=COLORS[number],
            label=name,
            yerr=(heights - low, high - heights),
            error_kw={"linewidth": 0.8},
        )
    axes.axhline(bottom, color="black", linewidth=0.8)
    return list(rows)
