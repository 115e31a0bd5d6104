"""The picture a run ends with: what a wrong label costs, and how often samples look like theirs."""

import pathlib
from collections.abc import Mapping
from typing import Any

from zoo.extras import require


def save(
    workdir: pathlib.Path,
    names: Mapping[str, str],
    real: Mapping[str, Any],
    results: Mapping[str, Any],
) -> pathlib.Path:
    """Writes ``classes.png``: perplexity by class and label accuracy of samples."""
    figure = require("matplotlib.figure", "plot").Figure((10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    colors = dict(zip(results, ("tab:blue", "tab:orange", "tab:green"), strict=False))
    width = 0.8 / len(results)
    for place, (variant, result) in enumerate(results.items()):
        by_class = result["held_out_by_class"]
        positions = [i + (place - (len(results) - 1) / 2) * width for i in range(len(by_class))]
        heights = [numbers["wrong / right"] for numbers in by_class.values()]
        ends = [numbers["wrong / right interval"] for numbers in by_class.values()]
        left.bar(
            positions,
            [height - 1 for height in heights],
            width,
            bottom=1,
            color=colors[variant],
            label=names[variant],
            yerr=_reach(heights, ends),
            error_kw={"linewidth": 0.8},
        )
    left.set_xticks(range(len(by_class)), by_class, rotation=30 if len(by_class) > 3 else 0)
    for label in left.get_xticklabels():
        label.set_horizontalalignment("right" if len(by_class) > 3 else "center")
    left.axhline(1, color="black", linewidth=0.8)
    left.set_ylabel("perplexity, wrong / right label")
    left.set_title("Held-out text by its class", fontsize=10)
    left.legend(fontsize=8)

    scales = list(next(iter(results.values()))["samples"])
    for place, (variant, result) in enumerate(results.items()):
        heights = [100 * result["samples"][scale]["label accuracy"] for scale in scales]
        ends = [
            tuple(100 * end for end in result["samples"][scale]["label accuracy interval"])
            for scale in scales
        ]
        positions = [i + (place - (len(results) - 1) / 2) * width for i in range(len(scales))]
        right.bar(
            positions,
            heights,
            width,
            color=colors[variant],
            yerr=_reach(heights, ends),
            error_kw={"linewidth": 0.8},
        )
    right.axhline(100 * real["label accuracy"], color="black", linestyle="--", linewidth=1)
    right.annotate(
        "real held-out text",
        (0.01, 100 * real["label accuracy"]),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        xytext=(0, 3),
        fontsize=8,
    )
    right.set_xticks(range(len(scales)), [f"guidance {float(scale):g}" for scale in scales])
    right.set_ylabel("label accuracy, %")
    right.set_ylim(0, 100)
    right.set_title("Samples, by an independent classifier", fontsize=10)
    path = workdir / "classes.png"
    figure.savefig(path, dpi=110)
    return path


def _reach(heights: list[float], ends: list[tuple[float, float]]) -> list[list[float]]:
    below = [height - low for height, (low, _) in zip(heights, ends, strict=True)]
    above = [high - height for height, (_, high) in zip(heights, ends, strict=True)]
    return [below, above]
