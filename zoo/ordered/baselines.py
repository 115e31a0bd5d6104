"""Baseline trees and the binarised oracle.

Right branching alone finds much of English, and the greedy reader leans to the right, so a score
without these beside it says little.
"""

from collections.abc import Sequence

import numpy as np

from zoo.ordered.treebank import GoldTree
from zoo.ordered.trees import Tree, depths_to_tree, split_tree, tree_spans, tree_words


def baseline_trees(gold: Sequence[GoldTree], *, seed: int = 0) -> dict[str, list[Tree]]:
    """The trees of every baseline for the sentences of a treebank, and the best binary trees.

    Args:
        gold: the gold trees; only the oracle looks at more than their words.
        seed: of the random trees.

    Returns:
        name -> a tree for each sentence.

    >>> list(baseline_trees([GoldTree(("the", "dog", "barks"), (("S", 0, 3),))]))
    ['right branching', 'left branching', 'balanced', 'random depths, greedy',
     'random depths, unbiased', 'best binary tree']
    """
    generator = np.random.default_rng(seed)
    words = [tree.words for tree in gold]
    return {
        "right branching": list(map(right_branching_tree, words)),
        "left branching": list(map(left_branching_tree, words)),
        "balanced": list(map(balanced_tree, words)),
        "random depths, greedy": [depths_to_tree(generator.random(len(w)), w) for w in words],
        "random depths, unbiased": [random_tree(generator, w) for w in words],
        "best binary tree": [binarized_tree(tree.tree) for tree in gold],
    }


def right_branching_tree(words: Sequence[str]) -> Tree:
    """Pairs every word with all that follow it.

    >>> right_branching_tree("abcd")
    ['a', ['b', ['c', 'd']]]
    """
    return split_tree(words, lambda start, end: start + 1)


def left_branching_tree(words: Sequence[str]) -> Tree:
    """Pairs every word with all that come before it.

    >>> left_branching_tree("abcd")
    [[['a', 'b'], 'c'], 'd']
    """
    return split_tree(words, lambda start, end: end - 1)


def balanced_tree(words: Sequence[str]) -> Tree:
    """Halves of halves; of an odd number of words the left half gets one more.

    >>> balanced_tree("abcde")
    [[['a', 'b'], 'c'], ['d', 'e']]
    """
    return split_tree(words, lambda start, end: (start + end + 1) // 2)


def random_tree(generator: np.random.Generator, words: Sequence[str]) -> Tree:
    """Random depths read by the unbiased rule: every binary tree is possible, left like right.

    >>> random_tree(np.random.default_rng(2), "abcd")
    [['a', 'b'], ['c', 'd']]
    """
    return depths_to_tree(generator.random(len(words)), words, rule="unbiased")


def binarized_tree(tree: Tree) -> Tree:
    """A binary tree with all brackets of a tree, the oracle that no binary tree can beat.

    Args:
        tree: any number of children per node; what is flat becomes right branching.

    Returns:
        The tree over the same words.

    >>> binarized_tree([["a", "b", "c"], "d"])
    [['a', ['b', 'c']], 'd']
    """
    words = tree_words(tree)
    # The longest bracket that begins at a word, and ends before the span does, is its first part.
    ends: dict[int, list[int]] = {}
    for start, end in sorted(tree_spans(tree), reverse=True):
        ends.setdefault(start, []).append(end)

    def middle(start: int, end: int) -> int:
        return next((e for e in ends.get(start, ()) if e < end), start + 1)

    return split_tree(words, middle)
