"""Binary trees from gate depths, and bracket scores against gold trees.

The deepest forgetting in a span marks where its largest unit ends, so the greedy reader splits
there, top down:

    tree(span) = [tree(left of k), [x_k, tree(right of k)]],   k = argmax of the depths in the span

with an empty side left out. A tree is a word (``str``) or a list of trees.

Sources: Yikang Shen, Zhouhan Lin, Chin-Wei Huang, Aaron Courville, «Neural Language Modeling by
Jointly Learning Syntax and Lexicon», 2018, arXiv 1711.02013 (the reader); arXiv 1810.09536. Chris
Dyer, Gábor Melis, Phil Blunsom, «A Critical Analysis of Biased Parsers in Unsupervised Parsing»,
2019, arXiv 1909.09428: the greedy rule reaches not every binary tree and leans to the right.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

Tree: TypeAlias = str | list["Tree"]


class BracketScores(NamedTuple):
    """Agreement of the brackets of one tree with those of another, each in [0, 1]."""

    precision: float
    recall: float
    f1: float


def depths_to_tree(depths: ArrayLike, words: Sequence[str]) -> Tree:
    """The binary tree the greedy top-down rule reads from the depths.

    Args:
        depths: ``[words]``, one number a word, such as ``Depths.forget`` of a sentence. Of equal
            depths the first counts as the deepest.
        words: the sentence.

    Returns:
        The tree; a sentence of one word is that word.

    Raises:
        ValueError: if there is no word, or not one finite depth a word.

    >>> depths_to_tree([0.1, 0.9, 0.3, 0.8, 0.2], "abcde")
    ['a', ['b', ['c', ['d', 'e']]]]
    >>> depths_to_tree([0.1, 0.2, 0.3], "abc")
    [['a', 'b'], 'c']

    Reference: arXiv 1711.02013, section 4.3; arXiv 1810.09536, section 5.2.
    """
    depths = np.asarray(depths)
    if depths.shape != (len(words),) or not len(words):
        raise ValueError(
            "depths_to_tree: needs one depth for each of at least one word, got depths of shape "
            f"{depths.shape} for {len(words)} words"
        )
    if not np.isfinite(depths).all():
        raise ValueError(f"depths_to_tree: depths must be finite, got {depths.tolist()}")
    # Loops instead of recursion: a long line can nest deeper than Python calls may.
    splits, todo = [], [(0, len(words))]
    while todo:
        start, end = todo.pop()
        if end - start > 1:
            k = start + int(np.argmax(depths[start:end]))
            splits.append((start, k, end))
            todo += [(start, k), (k + 1, end)]
    trees: dict[tuple[int, int], Tree] = {(i, i + 1): word for i, word in enumerate(words)}
    for start, k, end in reversed(splits):  # inner spans before outer ones
        right = [words[k], trees[k + 1, end]] if k + 1 < end else words[k]
        trees[start, end] = [trees[start, k], right] if start < k else right
    return trees[0, len(words)]


def tree_words(tree: Tree) -> list[str]:
    """The words of a tree from left to right.

    Args:
        tree: nested lists with words as leaves.

    Returns:
        The words.

    Raises:
        TypeError: if a node is neither a word nor a list.

    >>> tree_words([["a", "b"], "c"])
    ['a', 'b', 'c']
    """
    return [node for node, _ in _walk(tree) if isinstance(node, str)]


def tree_spans(tree: Tree) -> set[tuple[int, int]]:
    """The brackets of a tree that say something: neither the whole sentence nor a single word.

    Args:
        tree: nested lists with words as leaves; any number of children.

    Returns:
        Half-open word positions ``(start, end)``; brackets around the same words count once.

    Raises:
        TypeError: if a node is neither a word nor a list; ValueError: if a list is empty.

    >>> sorted(tree_spans(["the", [["old", "dog"], ["barked", "twice"]]]))
    [(1, 3), (1, 5), (3, 5)]

    Reference: arXiv 1810.09536, section 5.2, as its code counts.
    """
    spans: set[tuple[int, int]] = set()
    num_words = 0
    for node, start in _walk(tree):
        if isinstance(node, str):
            num_words += 1
        elif start is not None and num_words - start > 1:
            spans.add((start, num_words))
    return spans - {(0, num_words)}


def bracket_scores(predicted: Tree, gold: Tree) -> BracketScores:
    """Precision, recall and F1 of the brackets of a tree, see :func:`tree_spans`.

    precision = shared / predicted, recall = shared / gold, F1 their harmonic mean. Where the gold
    tree has no bracket, recall is 1, and precision is 1 only if the prediction has none either.

    Args:
        predicted: tree of the sentence.
        gold: the tree to find, over as many words.

    Returns:
        The scores of this sentence; the mean of their ``f1`` is «sentence F1».

    Raises:
        ValueError: if the trees have different numbers of words; TypeError as for the spans.

    >>> bracket_scores([["a", "b"], ["c", "d"]], ["a", ["b", ["c", "d"]]])
    BracketScores(precision=0.5, recall=0.5, f1=0.5)

    Reference: arXiv 1810.09536, section 5.2, as its code counts (without its 1e-8 terms).
    """
    lengths = len(tree_words(predicted)), len(tree_words(gold))
    if lengths[0] != lengths[1]:
        raise ValueError(
            f"bracket_scores: predicted has {lengths[0]} words and gold {lengths[1]}; "
            "trees of the same sentence are compared, with the same tokens left out"
        )
    predicted_spans, gold_spans = tree_spans(predicted), tree_spans(gold)
    shared = len(predicted_spans & gold_spans)
    recall = shared / len(gold_spans) if gold_spans else 1.0
    if predicted_spans:
        precision = shared / len(predicted_spans)
    else:
        precision = 0.0 if gold_spans else 1.0
    f1 = 2 * precision * recall / (precision + recall) if shared or not gold_spans else 0.0
    return BracketScores(precision, recall, f1)


def _walk(tree: Tree) -> Iterator[tuple[Tree, int | None]]:
    """Yields words as they come, and each list after its last word with the position of its first.

    The second item is None for a word.
    """
    num_words = 0
    todo: list[tuple[Tree, int | None]] = [(tree, None)]
    while todo:
        node, start = todo.pop()
        if isinstance(node, str):
            num_words += 1
            yield node, None
        elif not isinstance(node, list):
            raise TypeError(f"a tree is a word (str) or a list of trees, got {node!r} inside one")
        elif not node:
            raise ValueError("a tree must not contain an empty list: every bracket holds a word")
        elif start is None:
            todo.append((node, num_words))
            todo.extend((child, None) for child in reversed(node))
        else:
            yield node, start
