"""Trees that the layers of the language model see, against those of a treebank.

Each sentence is read from a state of zeros with an end of line before and behind it, its words
lower-cased and digits written as N, as in the text of Penn Treebank and in the original's code.
Nothing is trained for it.
"""

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from zoo.data import Source, Vocabulary
from zoo.ordered import depths_to_tree, read_treebank
from zoo.ordered.treebank import GoldTree
from zoo.ordered.trees import Tree

from ..trees import tree_table
from .config import ParsingConfig

NOTE = (
    "The training text of Penn Treebank covers sections 00 and 01 of the Wall Street Journal, "
    "which the sample wsj_0001 to wsj_0199 is from: its sentences are not held out."
)
LABELS = ("ADJP", "NP", "PP", "INTJ")  # those of the paper's table
LENGTHS = (16, 32, 64, 128, 256, 512)  # columns of a batch: one program is compiled for each
ROWS = 32


class Seen(NamedTuple):
    """What the layers see in some held-out sentences and in a treebank."""

    sentences: list[list[str]]
    trees: list[list[Tree]]  # by sentence and layer
    gates: list[np.ndarray]  # master forget, [words, levels] by layer, of the first sentence
    table: list[dict[str, str | float]]  # scores against the treebank
    compared: tuple[np.ndarray, GoldTree] | None  # depths [layers, words] of a short gold tree


def read_trees(
    merge: Callable[..., Any],
    parameters: Any,
    source: Source,
    vocabulary: Vocabulary,
    gold: Sequence[GoldTree],
) -> Seen:
    """Reads a few held-out lines of a text, and all sentences of a treebank."""
    read = make_reader(merge, end=vocabulary.end)
    sentences = choose_sentences(source, vocabulary)
    encoded = encode_sentences(sentences, vocabulary)
    trees = [
        [depths_to_tree(depths, words) for depths in layers]
        for words, layers in zip(sentences, read(parameters, encoded), strict=True)
    ]
    gates = []
    if sentences and merge(parameters).layers[0].master_input != "none":
        ids = np.array([[vocabulary.end, *encoded[0]]])
        layers = jax.jit(lambda parameters: merge(parameters).master_gates(ids))(parameters)
        gates = [np.asarray(layer.forget[0, 1:]) for layer in layers]
    if not gold:
        return Seen(sentences, trees, gates, [], None)
    depths = read(parameters, encode_sentences([tree.words for tree in gold], vocabulary))
    pairs = zip(depths, gold, strict=True)
    compared = next((pair for pair in pairs if 7 <= len(pair[1].words) <= 12), None)
    return Seen(sentences, trees, gates, table_of_scores(depths, gold), compared)


def choose_sentences(source: Source, vocabulary: Vocabulary, count: int = 3) -> list[list[str]]:
    """The first lines of held-out text with 7 to 12 tokens that are all in the vocabulary."""
    encoded = (vocabulary.encode(example["text"]) for example in source)
    known = (ids for ids in encoded if 7 <= len(ids) <= 12 and vocabulary.unknown not in ids)
    return [[vocabulary.tokens[i] for i in ids] for ids in itertools.islice(known, count)]


def open_treebank(config: ParsingConfig) -> list[GoldTree]:
    """The gold trees at ``file:PATH``, a folder, an archive or a file; none of an empty name."""
    uri = config.treebank
    scheme, colon, path = uri.partition(":")
    if uri and (scheme != "file" or not colon):
        raise ValueError(f"parsing.treebank must be file:PATH of a treebank, got {uri!r}")
    reading = {"tags": config.tags, "encoding": config.encoding, "pattern": config.pattern}
    return read_treebank(path, **reading) if uri else []


def encode_sentences(sentences: Sequence[Sequence[str]], vocabulary: Vocabulary) -> list[list[int]]:
    """Ids of the words as the language model knows them."""
    number = {token: index for index, token in enumerate(vocabulary.tokens)}
    return [
        [number.get(re.sub("[0-9]+", "N", word.lower()), vocabulary.unknown) for word in words]
        for words in sentences
    ]


def make_reader(merge: Callable[..., Any], *, end: int) -> Callable[..., list[np.ndarray]]:
    """Builds ``read(parameters, sentences) -> depths``, [layers, words] for each list of ids."""

    @jax.jit
    def depths_of(parameters: Any, ids: jax.Array) -> jax.Array:
        return merge(parameters)(ids).depths.forget

    def read(parameters: Any, sentences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        depths: list[np.ndarray] = [np.empty(0)] * len(sentences)
        columns = sorted({*LENGTHS, max(map(len, sentences), default=0) + 1})
        by_length = sorted(range(len(sentences)), key=lambda number: len(sentences[number]))
        while by_length:
            # The words behind the last one cannot reach back: only the end before them matters.
            size = next(c for c in columns if c > len(sentences[by_length[0]]))
            batch = [n for n in by_length[:ROWS] if len(sentences[n]) < size]
            by_length = by_length[len(batch) :]
            ids = np.full((ROWS, size), end, np.int32)
            for row, number in enumerate(batch):
                ids[row, 1 : 1 + len(sentences[number])] = sentences[number]
            found = np.asarray(depths_of(parameters, ids))
            for row, number in enumerate(batch):
                depths[number] = found[:, row, 1 : 1 + len(sentences[number])]
        return depths

    return read


def table_of_scores(
    depths: Sequence[np.ndarray], gold: Sequence[GoldTree]
) -> list[dict[str, str | float]]:
    """The scores of every layer by both readers, then those of the baselines, in percent."""
    predicted = {
        f"layer {layer + 1}, {rule}": [
            [
                depths_to_tree(sentence[layer], tree.words, rule=rule)
                for sentence, tree in zip(depths, gold, strict=True)
            ]
        ]
        for layer in range(len(depths[0]))
        for rule in ("greedy", "unbiased")
    }
    return tree_table(predicted, gold, LABELS)
