"""The pictures a run ends with: its curve, trees of some sentences, one beside gold, gates."""

import json
import pathlib
from typing import Any

import numpy as np

from zoo.ordered import depths_to_tree
from zoo.ordered.trees import Tree

from ..pictures import new_figure, save_figures
from ..trees import draw_trees, text_width
from .parsing import Seen


def brackets(tree: Tree) -> str:
    """A tree as text: ``(the (dog barks))``."""
    return tree if isinstance(tree, str) else f"({' '.join(map(brackets, tree))})"


def save(workdir: pathlib.Path, baseline: float, seen: Seen) -> list[pathlib.Path]:
    """Writes curve.png, and as far as there is something to show trees.png, gates.png and gold.png.

    ``workdir`` holds metrics.jsonl; ``baseline`` is the n-gram model's validation perplexity.
    """
    figures = {"curve": draw_curve(workdir / "metrics.jsonl", baseline)}
    if seen.sentences:
        layer = min(1, len(seen.trees[0]) - 1)  # the paper reads its trees from the second layer
        named = {f"{n}. layer {layer + 1}": t[layer] for n, t in enumerate(seen.trees, start=1)}
        figures["trees"] = draw_trees(named)
        if seen.gates:
            title = f"layer {layer + 1}, master forget gate"
            figures["gates"] = draw_gates(seen.gates[layer], seen.sentences[0], title)
    if seen.compared is not None:
        depths, gold = seen.compared
        found = {
            f"layer {number}": depths_to_tree(layer, gold.words)
            for number, layer in enumerate(depths, start=1)
        }
        figures["gold"] = draw_trees(found, gold=gold.tree)
    return save_figures(workdir, figures)


def draw_gates(gates: np.ndarray, words: list[str], title: str) -> Any:
    """A master gate ``[words, levels]`` as a heat map: words to the right, levels upwards."""
    figure = new_figure(max(4.0, text_width(words)) + 1, 3)
    axes = figure.subplots()
    image = axes.imshow(gates.T, aspect="auto", origin="lower", vmin=0, vmax=1)
    axes.set_xticks(range(len(words)), words, rotation=45, ha="right")
    axes.set(ylabel="level", title=title)
    figure.colorbar(image, label="gate (1 keeps the history)")
    return figure


def draw_curve(metrics: pathlib.Path, baseline: float) -> Any:
    """Perplexity by step: training (with dropout), validation, and the baseline as a line."""
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    figure = new_figure(6, 4)
    axes = figure.subplots()
    train = [(r["step"], np.exp(r["loss"])) for r in records if r.get("loss")]
    valid = [(r["step"], r["valid_perplexity"]) for r in records if r.get("valid_perplexity")]
    axes.plot(*zip(*train, strict=True), label="training, with dropout")
    axes.plot(*zip(*valid, strict=True), "o-", label="validation")
    axes.axhline(baseline, color="black", linestyle="--", label="5-gram Kneser-Ney, validation")
    axes.set(xlabel="step", ylabel="perplexity", yscale="log")
    axes.legend()
    return figure
