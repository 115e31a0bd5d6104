"""Pictures of what an ON-LSTM saw: its trees, and its master gates over a sentence."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from zoo import extras
from zoo.ordered.scores import bracket_scores
from zoo.ordered.trees import Tree, tree_spans, tree_words


def draw_trees(trees: dict[str, Tree], *, gold: Tree | None = None) -> Any:
    """Draws trees under each other, for example one a layer, or induced beside gold.

    Args:
        trees: title -> tree; at least one.
        gold: a tree of the same words, drawn last. The brackets that another tree shares with it
            are drawn in blue and those that it does not have in dashed red, and the titles say F1.

    Returns:
        A ``matplotlib.figure.Figure`` with one axes a tree.

    Raises:
        ImportError: without the extra ``plot``; ValueError: if there is no tree, or one has
            another number of words than gold; TypeError or ValueError: if one is malformed.

    >>> len(draw_trees({"induced": [["a", "b"], "c"]}, gold=["a", ["b", "c"]]).axes)
    2
    """
    if not trees:
        raise ValueError("draw_trees: needs at least one tree, got none")
    if gold is not None:
        scores = {title: bracket_scores(tree, gold) for title, tree in trees.items()}
        trees = {f"{title} (F1 {100 * scores[title].f1:.0f})": trees[title] for title in trees}
        trees["gold"] = gold
    right = None if gold is None else tree_spans(gold)
    drawings = [_lay_out(tree) for tree in trees.values()]
    sizes = [(len(words), height) for words, _, height in drawings]
    width = max(3.0, max(_text_width(words) for words, _, _ in drawings))
    heights = [0.28 * height + 0.75 for _, height in sizes]
    figure_class = extras.require("matplotlib.figure", "plot").Figure
    figure = figure_class(figsize=(width, sum(heights)), layout="constrained")
    grid = figure.subplots(len(trees), 1, squeeze=False, height_ratios=heights)
    for axes, title, (words, lines, height) in zip(grid[:, 0], trees, drawings, strict=True):
        for x, y, span in lines:
            if right is None or span in right or span == (0, len(words)):
                axes.plot(x, y, color="tab:blue", linewidth=1.2)
            else:
                axes.plot(x, y, color="tab:red", linewidth=1.2, linestyle="--")
        for position, word in enumerate(words):
            axes.text(position, -0.15, word, ha="center", va="top")
        axes.set(xlim=(-0.6, len(words) - 0.4), ylim=(-1.1, height + 0.2))
        axes.set_title(title, loc="left", fontsize="medium")
        axes.set_axis_off()
    return figure


def draw_gates(gates: ArrayLike, words: Sequence[str], *, title: str = "") -> Any:
    """Draws a master gate over a sentence as a heat map: words to the right, levels upwards.

    Args:
        gates: ``[words, levels]`` in [0, 1], as from ``master_gates``.
        words: the sentence.
        title: above the picture.

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        ImportError: without the extra ``plot``; ValueError: if there is not one row a word.

    >>> import numpy as np
    >>> figure = draw_gates(np.eye(3), ["the", "dog", "barks"])
    >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
    ['the', 'dog', 'barks']
    """
    gates = np.asarray(gates, np.float32)
    if gates.ndim != 2 or len(gates) != len(words):
        raise ValueError(
            "draw_gates: gates must be [words, levels] with one row for each of "
            f"{len(words)} words, got shape {gates.shape}"
        )
    figure_class = extras.require("matplotlib.figure", "plot").Figure
    figure = figure_class(figsize=(max(4.0, _text_width(words)) + 1, 3), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(gates.T, aspect="auto", origin="lower", vmin=0, vmax=1, cmap="viridis")
    axes.set_xticks(range(len(words)), words, rotation=45, ha="right")
    axes.set(ylabel="level", title=title)
    figure.colorbar(image, label="gate (1 keeps the history)")
    return figure


def _text_width(words: Sequence[str]) -> float:
    """Inches for a line of words on an even grid: the longest word decides the spacing."""
    return len(words) * (0.1 * max(map(len, words)) + 0.15)


def _lay_out(tree: Tree) -> tuple[list[str], list[tuple[tuple, tuple, tuple[int, int]]], int]:
    """Words, line segments (xs, ys, span of the upper node) and height of a tree.

    A node is one above its highest child.
    """
    words = tree_words(tree)
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

    return words, lines, place(tree)[1]
