"""The pictures a run ends with: its curve, trees of some sentences, one beside gold, gates."""

import json
import pathlib

import numpy as np

from zoo import extras
from zoo.ordered import GoldTree, Tree, depths_to_tree, draw_gates, draw_trees


def brackets(tree: Tree) -> str:
    """A tree as text: ``(the (dog barks))``."""
    return tree if isinstance(tree, str) else f"({' '.join(map(brackets, tree))})"


def save(
    workdir: pathlib.Path,
    baseline: float,
    sentences: list[list[str]],
    gates: list[np.ndarray] | None,
    trees: list[list[Tree]],
    compared: tuple[np.ndarray, GoldTree] | None = None,
) -> list[pathlib.Path]:
    """Writes curve.png, and as far as there is something to show trees.png, gates.png and gold.png.

    Args:
        workdir: holds metrics.jsonl.
        baseline: perplexity of the n-gram model on the validation text.
        sentences: held-out ones.
        gates: of the first sentence, ``[words, levels]`` for each layer; None without master gates.
        trees: of each sentence, one a layer.
        compared: depths ``[layers, words]`` of a sentence and its gold tree.

    Returns:
        The paths.
    """
    figures = {"curve": draw_curve(workdir / "metrics.jsonl", baseline)}
    if sentences:
        # The paper reads its trees from the second layer.
        layer = min(1, len(trees[0]) - 1)
        figures["trees"] = draw_trees(
            {
                f"{number}. layer {layer + 1}": layers[layer]
                for number, layers in enumerate(trees, start=1)
            }
        )
        if gates is not None:
            title = f"layer {layer + 1}, master forget gate"
            figures["gates"] = draw_gates(gates[layer], sentences[0], title=title)
    if compared is not None:
        depths, gold = compared
        found = {
            f"layer {number}": depths_to_tree(layer, gold.words)
            for number, layer in enumerate(depths, start=1)
        }
        figures["gold"] = draw_trees(found, gold=gold.tree)
    paths = [workdir / f"{name}.png" for name in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        figure.savefig(path, dpi=120)
    return paths


def draw_curve(metrics: pathlib.Path, baseline: float):
    """Perplexity by step: training (with dropout), validation, and the baseline as a line."""
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    figure = extras.require("matplotlib.figure", "plot").Figure((6, 4), layout="constrained")
    axes = figure.subplots()
    train = [(record["step"], np.exp(record["loss"])) for record in records if record.get("loss")]
    valid = [
        (record["step"], record["valid_perplexity"])
        for record in records
        if record.get("valid_perplexity")
    ]
    axes.plot(*zip(*train, strict=True), label="training, with dropout")
    axes.plot(*zip(*valid, strict=True), "o-", label="validation")
    axes.axhline(baseline, color="black", linestyle="--", label="5-gram Kneser-Ney, validation")
    axes.set(xlabel="step", ylabel="perplexity", yscale="log")
    axes.legend()
    return figure
