"""Trees that no model made: what induced trees must beat, and the best that binary trees can do.

Right branching alone finds much of English, and the greedy reader leans to the right, so a score
without these beside it says little.
"""

from collections.abc import Sequence

import numpy as np

from zoo.ordered.trees import Tree, depths_to_tree, split_tree, tree_spans, tree_words


def right_branching_tree(words: Sequence[str]) -> Tree:
    """Every word beside all that follow it.

    Args:
        words: the sentence, at least one word.

    Returns:
        The tree.

    Raises:
        ValueError: if there is no word.

    >>> right_branching_tree("abcd")
    ['a', ['b', ['c', 'd']]]
    """
    return split_tree(words, lambda start, end: start + 1)


def left_branching_tree(words: Sequence[str]) -> Tree:
    """Every word beside all that come before it.

    Args:
        words: the sentence, at least one word.

    Returns:
        The tree.

    Raises:
        ValueError: if there is no word.

    >>> left_branching_tree("abcd")
    [[['a', 'b'], 'c'], 'd']
    """
    return split_tree(words, lambda start, end: end - 1)


def balanced_tree(words: Sequence[str]) -> Tree:
    """Halves of halves; of an odd number of words the left half gets one more.

    Args:
        words: the sentence, at least one word.

    Returns:
        The tree.

    Raises:
        ValueError: if there is no word.

    >>> balanced_tree("abcde")
    [[['a', 'b'], 'c'], ['d', 'e']]
    """
    return split_tree(words, lambda start, end: (start + end + 1) // 2)


def random_tree(generator: np.random.Generator, words: Sequence[str]) -> Tree:
    """Noise read by the unbiased rule: every binary tree is possible, left like right.

    Args:
        generator: NumPy's random generator; one number a word is drawn.
        words: the sentence, at least one word.

    Returns:
        The tree.

    Raises:
        ValueError: if there is no word.

    >>> random_tree(np.random.default_rng(2), "abcd")
    [['a', 'b'], ['c', 'd']]
    """
    return depths_to_tree(generator.random(len(words)), words, rule="unbiased")


def binarized_tree(tree: Tree) -> Tree:
    """A binary tree with all brackets of a tree, the oracle that no binary tree can beat.

    Args:
        tree: any number of children a node; what is flat becomes right branching.

    Returns:
        The tree over the same words.

    Raises:
        TypeError: if a node is neither a word nor a list; ValueError: if a list is empty.

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
