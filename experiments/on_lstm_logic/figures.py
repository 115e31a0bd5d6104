"""The pictures a run ends with: accuracy by number of operators, and trees beside gold."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from zoo.ordered.treebank import GoldTree

from ..pictures import new_figure, save_figures
from ..trees import draw_trees


def save(
    workdir: pathlib.Path,
    accuracy: dict[str, np.ndarray],
    majority: dict[int, float],
    results: Mapping[str, list[Any]],
    gold: list[GoldTree],
    *,
    seen: int,
) -> list[pathlib.Path]:
    """Writes accuracy.png, and trees.png if there is a formula; returns their paths."""
    figures = {"accuracy": draw_accuracy(accuracy, majority, seen=seen)}
    if gold:
        # One of middle length, so that it fits on a page.
        chosen = min(range(len(gold)), key=lambda i: abs(len(gold[i].words) - 9))
        trees = {
            f"{name}, {rule}": trees[chosen]
            for name, of_seeds in results.items()
            for rule, trees in of_seeds[0].trees.items()
        }
        figures["trees"] = draw_trees(trees, gold=gold[chosen].tree)
    return save_figures(workdir, figures)


def draw_accuracy(accuracy: dict[str, np.ndarray], majority: dict[int, float], *, seen: int) -> Any:
    """Accuracy by number of operators: mean over seeds, from the lowest to the highest of them."""
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    numbers = list(majority)
    for (name, values), marker in zip(accuracy.items(), "os", strict=True):
        (line,) = axes.plot(numbers, 100 * values.mean(axis=0), f"{marker}-", label=name)
        low, high = 100 * values.min(axis=0), 100 * values.max(axis=0)
        axes.fill_between(numbers, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    shares = [100 * share for share in majority.values()]
    axes.plot(numbers, shares, "k--", label="most frequent relation")
    axes.axvspan(-0.5, seen + 0.5, color="0.93", zorder=0)
    axes.text(seen / 2, 101.5, "lengths seen in training", ha="center", va="bottom")
    axes.set(xlabel="operators in the longer formula", ylabel="right relations in percent")
    axes.set(xticks=numbers, xlim=(-0.5, max(numbers) + 0.5), ylim=(40, 106))
    axes.legend(loc="upper right", bbox_to_anchor=(1, 0.94))
    return figure
