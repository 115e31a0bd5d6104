"""What the two ON-LSTM experiments share: tables and pictures of trees."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zoo.ordered import bracket_scores, tree_spans
from zoo.ordered.baselines import baseline_trees
from zoo.ordered.scores import treebank_scores
from zoo.ordered.treebank import GoldTree
from zoo.ordered.trees import Tree, tree_words

from .pictures import new_figure

SCORES = ("sentence F1", "corpus F1", "EVALB F1")
SHORT = 10  # words


def tree_table(
    predicted: Mapping[str, Sequence[Sequence[Tree]]],
    gold: Sequence[GoldTree],
    labels: Sequence[str],
) -> list[dict[str, str | float]]:
    """Scores in percent of the predicted trees, then of the baselines, one row for each name.

    Args:
        predicted: name -> for each seed, a tree for each sentence; the scores are means over seeds.
        gold: the labelled trees to find.
        labels: those whose recall gets a column.
    """
    columns = (*SCORES, *(f"{name}, ≤ {SHORT} words" for name in SCORES), "depth", *labels)

    def row(trees: Sequence[Tree]) -> list[float]:
        scores = treebank_scores(trees, gold, short=SHORT)
        recall = [100 * scores.recall.get(label, np.nan) for label in labels]
        return [*(100 * score for score in (*scores.every, *scores.short)), scores.depth, *recall]

    baselines = {name: [trees] for name, trees in baseline_trees(gold).items()}
    return [
        {"trees": name}
        | dict(zip(columns, np.mean([*map(row, of_seeds)], axis=0).tolist(), strict=True))
        for name, of_seeds in (dict(predicted) | baselines).items()
    ]


def draw_trees(trees: dict[str, Tree], *, gold: Tree | None = None) -> Any:
    """Draws trees under each other, for example one per layer, or induced beside gold.

    Args:
        trees: title -> tree.
        gold: a tree of the same words, drawn last. The brackets that another tree shares with it
            are drawn in blue and those that it does not have in dashed red, and the titles say F1.

    Returns:
        A ``matplotlib.figure.Figure`` with one axes per tree.

    >>> len(draw_trees({"induced": [["a", "b"], "c"]}, gold=["a", ["b", "c"]]).axes)
    2
    """
    if gold is not None:
        scores = {title: bracket_scores(tree, gold) for title, tree in trees.items()}
        trees = {f"{title} (F1 {100 * scores[title].f1:.0f})": trees[title] for title in trees}
        trees["gold"] = gold
    right = None if gold is None else tree_spans(gold)
    drawings = [_lay_out(tree) for tree in trees.values()]
    width = max(3.0, max(text_width(words) for words, _, _ in drawings))
    heights = [0.28 * height + 0.75 for _, _, height in drawings]
    figure = new_figure(width, sum(heights))
    grid = figure.subplots(len(trees), 1, squeeze=False, height_ratios=heights)
    for axes, title, (words, lines, height) in zip(grid[:, 0], trees, drawings, strict=True):
        for x, y, span in lines:
            agrees = right is None or span in right or span == (0, len(words))
            color, style = ("tab:blue", "-") if agrees else ("tab:red", "--")
            axes.plot(x, y, color=color, linewidth=1.2, linestyle=style)
        for position, word in enumerate(words):
            axes.text(position, -0.15, word, ha="center", va="top")
        axes.set(xlim=(-0.6, len(words) - 0.4), ylim=(-1.1, height + 0.2))
        axes.set_title(title, loc="left", fontsize="medium")
        axes.set_axis_off()
    return figure


def text_width(words: list[str]) -> float:
    """Inches for a line of words on an even grid: the longest word decides the spacing."""
    return len(words) * (0.1 * max(map(len, words)) + 0.15)


def _lay_out(tree: Tree) -> tuple[list[str], list[tuple[tuple, tuple, tuple[int, int]]], int]:
    """Words, line segments (xs, ys, span of the upper node) and height of a tree.

    A node is one above its highest child.
    """
    lines: list[tuple[tuple, tuple, tuple[int, int]]] = []
    num_placed = 0

    def place(node: Tree) -> tuple[float, int]:
        nonlocal num_placed
        start = num_placed
        if isinstance(node, str):
            num_placed += 1
            return float(start), 0
        children = [place(child) for child in node]
        x = (children[0][0] + children[-1][0]) / 2
        y = 1 + max(y for _, y in children)
        span = (start, num_placed)
        lines.extend(((x, child_x), (y, child_y), span) for child_x, child_y in children)
        return x, y

    height = place(tree)[1]
    return tree_words(tree), lines, height
