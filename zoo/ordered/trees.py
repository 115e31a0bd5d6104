"""Binary trees from gate depths, and the brackets of a tree.

The deepest forgetting in a span marks where its largest unit ends. Both readers split there, top
down, and both are a choice of the middle of a span of words start … end - 1:

    tree(start, end) = [tree(start, middle), tree(middle, end)]

    greedy      k = argmax of depths[start:end];      middle = k, or start + 1 where k = start
    unbiased    middle = argmax of depths[start + 1:end]

The depth of a word stands for the gap before it, and a span has none before its first word. The
greedy rule looks at it all the same; as the right part of every split begins with the deepest
word, its first word is always split off next. So the rule leans to the right, and reaches 13 of the
14 binary trees over 5 words, 97 of the 132 over 7. The unbiased rule reaches all of them, and a
sentence read backwards gives the mirrored tree.

A tree is a word (``str``) or a list of trees.

Sources: Yikang Shen, Zhouhan Lin, Chin-Wei Huang, Aaron Courville, "Neural Language Modeling by
Jointly Learning Syntax and Lexicon", 2018, arXiv 1711.02013 (the greedy reader); arXiv 1810.09536.
Chris Dyer, Gábor Melis, Phil Blunsom, "A Critical Analysis of Biased Parsers in Unsupervised
Parsing", 2019, arXiv 1909.09428 (its bias).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

Tree: TypeAlias = str | list["Tree"]


class Brackets(NamedTuple):
    """What is compared of a tree."""

    num_words: int
    spans: set[tuple[int, int]]  # neither the complete sentence nor a single word, see tree_spans


def depths_to_tree(
    depths: ArrayLike, words: Sequence[str], *, rule: Literal["greedy", "unbiased"] = "greedy"
) -> Tree:
    """The binary tree that the depths describe, read top down as in the module docstring.

    Args:
        depths: ``[words]``, one number per word, such as ``Depths.forget`` of a sentence. Of equal
            depths the first counts as the deepest.
        words: the sentence.
        rule: ``"greedy"``, as published, which leans to the right; or ``"unbiased"``, which does
            not, and does not look at the depth of the first word.

    Returns:
        The tree; a sentence of one word is that word.

    Raises:
        ValueError: if there is no word, or not one finite depth per word, or the rule is unknown.

    >>> depths_to_tree([0.1, 0.9, 0.3, 0.8, 0.2], "abcde")
    ['a', ['b', ['c', ['d', 'e']]]]
    >>> depths_to_tree([0.1, 0.9, 0.3, 0.8, 0.2], "abcde", rule="unbiased")
    ['a', [['b', 'c'], ['d', 'e']]]

    Reference: arXiv 1711.02013, section 4.3; arXiv 1810.09536, section 5.2; arXiv 1909.09428.
    """
    depths = np.asarray(depths)
    if depths.shape != (len(words),) or not len(words):
        raise ValueError(
            "depths_to_tree: needs one depth for each of at least one word, got depths of shape "
            f"{depths.shape} for {len(words)} words"
        )
    if not np.isfinite(depths).all():
        raise ValueError(f"depths_to_tree: depths must be finite, got {depths.tolist()}")
    if rule not in ("greedy", "unbiased"):
        raise ValueError(f"depths_to_tree: rule must be 'greedy' or 'unbiased', got {rule!r}")

    def middle(start: int, end: int) -> int:
        if rule == "unbiased":
            return start + 1 + int(np.argmax(depths[start + 1 : end]))
        return start + max(1, int(np.argmax(depths[start:end])))

    return split_tree(words, middle)


def split_tree(words: Sequence[str], middle: Callable[[int, int], int]) -> Tree:
    """The binary tree whose span of words start … end - 1 is cut at ``middle(start, end)``.

    Args:
        words: the sentence, at least one word.
        middle: ``(start, end) -> position`` with start < position < end; asked for every span of
            two words and more.

    Returns:
        The tree; a sentence of one word is that word.

    Raises:
        ValueError: if there is no word, or a middle is not inside its span.

    >>> split_tree("abcd", lambda start, end: (start + end) // 2)
    [['a', 'b'], ['c', 'd']]
    """
    if not len(words):
        raise ValueError("split_tree: a tree needs at least one word, got none")
    # Loops instead of recursion: a long line can nest deeper than Python calls may.
    splits, todo = [], [(0, len(words))]
    while todo:
        start, end = todo.pop()
        if end - start > 1:
            k = middle(start, end)
            if not start < k < end:
                raise ValueError(
                    f"split_tree: middle({start}, {end}) must lie between them, got {k}"
                )
            splits.append((start, k, end))
            todo += [(start, k), (k, end)]
    trees: dict[tuple[int, int], Tree] = {(i, i + 1): word for i, word in enumerate(words)}
    for start, k, end in reversed(splits):  # inner spans before outer ones
        trees[start, end] = [trees[start, k], trees[k, end]]
    return trees[0, len(words)]


def tree_words(tree: Tree) -> list[str]:
    """The words of a tree from left to right; raises as :func:`tree_spans`.

    >>> tree_words([["a", "b"], "c"])
    ['a', 'b', 'c']
    """
    return [node for node, _ in _walk(tree) if isinstance(node, str)]


def tree_spans(tree: Tree) -> set[tuple[int, int]]:
    """The brackets of a tree, without those that every tree has: the sentence and single words.

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
    return brackets(tree).spans


def brackets(tree: Tree | Brackets) -> Brackets:
    """The number of words of a tree and :func:`tree_spans`; brackets are returned as they are."""
    if isinstance(tree, Brackets):
        return tree
    spans: set[tuple[int, int]] = set()
    num_words = 0
    for node, start in _walk(tree):
        if isinstance(node, str):
            num_words += 1
        elif start is not None and num_words - start > 1:
            spans.add((start, num_words))
    return Brackets(num_words, spans - {(0, num_words)})


def spans_to_tree(words: Sequence[str], spans: set[tuple[int, int]]) -> Tree:
    """The tree with these brackets, the inverse of :func:`tree_spans`.

    Args:
        words: the sentence, at least one word.
        spans: half-open word positions, nested in or apart from each other; the complete sentence
            and single words may be left out.

    Returns:
        The tree; a bracket of one word is that word.

    Raises:
        ValueError: if there is no word, or brackets cross or reach beyond the sentence.

    >>> spans_to_tree("abcd", {(1, 3), (1, 4)})
    ['a', [['b', 'c'], 'd']]
    """
    if not len(words):
        raise ValueError("spans_to_tree: a tree needs at least one word, got none")
    root: list[Tree] = []
    opened = [(len(words), root)]  # end and children of the open brackets, outermost first
    starting: dict[int, list[int]] = {}
    for start, end in sorted(spans - {(0, len(words))}, reverse=True):
        if not 0 <= start < end <= len(words):
            raise ValueError(f"spans_to_tree: ({start}, {end}) is no part of {len(words)} words")
        if end - start > 1:
            starting.setdefault(start, []).append(end)  # longest first
    for position, word in enumerate(words):
        while position == opened[-1][0]:
            opened.pop()
        for end in starting.get(position, ()):
            if end > opened[-1][0]:
                raise ValueError(
                    f"spans_to_tree: ({position}, {end}) crosses a bracket that ends at "
                    f"{opened[-1][0]}"
                )
            children: list[Tree] = []
            opened[-1][1].append(children)
            opened.append((end, children))
        opened[-1][1].append(word)
    return root if len(root) > 1 else root[0]


def prune_tree(tree: Tree, keep: Sequence[bool]) -> Tree:
    """The tree without some of its words, such as punctuation; brackets of one part disappear.

    Args:
        tree: nested lists with words as leaves.
        keep: for each word, whether it stays.

    Returns:
        The tree over the words that stay.

    Raises:
        ValueError: if there is not one truth value per word, or no word stays.

    >>> prune_tree([["(", "a"], [["or", "b"], ")"]], [False, True, True, True, False])
    ['a', ['or', 'b']]
    """
    if len(keep) != len(words := tree_words(tree)):
        raise ValueError(
            f"prune_tree: keep must have one truth value for each of {len(words)} words, "
            f"got {len(keep)}"
        )
    if not any(keep):
        raise ValueError(f"prune_tree: at least one of {len(words)} words must stay, got none")
    before = np.concatenate([[0], np.cumsum(np.asarray(keep, bool))]).tolist()
    spans = {(before[start], before[end]) for start, end in tree_spans(tree)}
    kept = [word for word, stays in zip(words, keep, strict=True) if stays]
    return spans_to_tree(kept, {(start, end) for start, end in spans if start < end})


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
