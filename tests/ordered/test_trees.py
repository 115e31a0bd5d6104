import collections
import itertools

import nltk
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.ordered import bracket_scores, depths_to_tree, tree_spans
from zoo.ordered.trees import prune_tree, spans_to_tree, split_tree, tree_words


@pytest.mark.parametrize(
    ("depths", "tree"),
    [
        ([0.1, 0.9, 0.3, 0.8, 0.2], ["a", ["b", ["c", ["d", "e"]]]]),
        ([0.9, 0.1, 0.3], ["a", ["b", "c"]]),
        ([0.1, 0.2, 0.3], [["a", "b"], "c"]),
        ([0.2, 0.2, 0.2], ["a", ["b", "c"]]),  # equal depths: the first is the deepest
        ([0.5], "a"),
    ],
)
def test_golden_trees(depths, tree):
    assert depths_to_tree(depths, "abcde"[: len(depths)]) == tree


def recursive_rule(depths, words):
    """The rule as the paper words it, a second time."""
    if len(words) == 1:
        return words[0]
    k = int(np.argmax(depths))
    right = (
        [words[k], recursive_rule(depths[k + 1 :], words[k + 1 :])] if words[k + 1 :] else words[k]
    )
    return [recursive_rule(depths[:k], words[:k]), right] if k else right


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_equals_the_recursive_rule(depths):
    words = [f"w{i}" for i in range(len(depths))]
    tree = depths_to_tree(depths, words)
    assert tree == recursive_rule(depths, words)
    assert tree_words(tree) == words
    if len(words) > 1:
        assert len(tree_spans(tree)) == len(words) - 2  # binary, without the whole sentence


@given(st.lists(st.floats(0, 1), min_size=3, max_size=10))
def test_spans_agree_with_nltk(depths):
    tree = depths_to_tree(depths, [f"w{i}" for i in range(len(depths))])

    def to_nltk(node):
        return node if isinstance(node, str) else nltk.Tree("X", [to_nltk(child) for child in node])

    parts = [part.leaves() for part in to_nltk(tree).subtrees()][1:]  # all words differ
    starts = [int(words[0][1:]) for words in parts]
    spans = {(start, start + len(words)) for start, words in zip(starts, parts, strict=True)}
    assert tree_spans(tree) == spans


def all_trees(num_words, rule):
    """What every order of the depths gives, as often as it does."""
    words = [f"w{i}" for i in range(num_words)]
    return collections.Counter(
        frozenset(tree_spans(depths_to_tree(depths, words, rule=rule)))
        for depths in itertools.permutations(range(num_words))
    )


# How many of the binary trees (Catalan numbers) each rule reaches: measured with the original.
@pytest.mark.parametrize(
    ("num_words", "greedy", "unbiased"),
    [(4, 5, 5), (5, 13, 14), (6, 35, 42), (7, 97, 132)],
)
def test_reachable_trees(num_words, greedy, unbiased):
    assert len(all_trees(num_words, "greedy")) == greedy
    assert len(all_trees(num_words, "unbiased")) == unbiased


def test_bias_of_the_greedy_rule():
    right, left = frozenset({(1, 3)}), frozenset({(0, 2)})
    assert all_trees(3, "greedy") == {right: 4, left: 2}
    assert all_trees(3, "unbiased") == {right: 3, left: 3}
    right, left = frozenset({(1, 4), (2, 4)}), frozenset({(0, 3), (0, 2)})
    assert (all_trees(4, "greedy")[right], all_trees(4, "greedy")[left]) == (10, 2)  # of 24
    assert (all_trees(4, "unbiased")[right], all_trees(4, "unbiased")[left]) == (4, 4)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12, unique=True))
def test_the_unbiased_rule_reads_backwards_alike(depths):
    words = range(len(depths))
    forwards = tree_spans(depths_to_tree(depths, [str(w) for w in words], rule="unbiased"))
    # A depth belongs to the gap before its word, so that of the first word has no place.
    backwards = [0.0, *depths[:0:-1]]
    mirrored = tree_spans(depths_to_tree(backwards, [str(w) for w in words], rule="unbiased"))
    assert {(len(words) - end, len(words) - start) for start, end in mirrored} == forwards


@given(st.recursive(st.sampled_from("ab"), lambda t: st.lists(t, min_size=1, max_size=4)))
def test_trees_from_their_spans(tree):
    again = spans_to_tree(tree_words(tree), tree_spans(tree))
    assert tree_words(again) == tree_words(tree)
    assert tree_spans(again) == tree_spans(tree)
    assert spans_to_tree(tree_words(again), tree_spans(again)) == again


def recursive_prune(tree, stays):
    if isinstance(tree, str):
        return [tree] if next(stays) else []
    parts = [part for child in tree for part in recursive_prune(child, stays)]
    return [parts] if len(parts) > 1 else parts


@given(
    st.recursive(st.sampled_from("ab"), lambda t: st.lists(t, min_size=1, max_size=4)), st.data()
)
def test_pruning_equals_leaving_out(tree, data):
    n = len(tree_words(tree))
    keep = data.draw(st.lists(st.booleans(), min_size=n, max_size=n).filter(any))
    assert [prune_tree(tree, keep)] == recursive_prune(tree, iter(keep))


def test_a_long_line_does_not_overflow_the_stack():
    tree = depths_to_tree(np.zeros(5000), ["w"] * 5000)
    assert bracket_scores(tree, tree).f1 == 1
    assert len(tree_spans(tree)) == 4998


@pytest.mark.parametrize(
    ("depths", "words", "message"),
    [
        ([], [], "at least one word"),
        ([0.1, 0.2], ["a"], r"shape \(2,\) for 1 words"),
        ([[0.1]], ["a"], r"shape \(1, 1\)"),
        ([0.1, float("nan")], ["a", "b"], "must be finite"),
    ],
)
def test_bad_depths(depths, words, message):
    with pytest.raises(ValueError, match=message):
        depths_to_tree(depths, words)


def test_bad_trees():
    with pytest.raises(ValueError, match="empty list"):
        tree_spans(["a", []])
    with pytest.raises(TypeError, match="got 3 inside"):
        tree_spans(["a", 3])
    with pytest.raises(ValueError, match=r"middle\(0, 2\) must lie between them, got 2"):
        split_tree("ab", lambda start, end: end)
    with pytest.raises(ValueError, match=r"\(1, 3\) crosses a bracket that ends at 2"):
        spans_to_tree("abc", {(0, 2), (1, 3)})
    with pytest.raises(ValueError, match=r"\(1, 4\) is no part of 3 words"):
        spans_to_tree("abc", {(1, 4)})
    with pytest.raises(ValueError, match="one truth value for each of 2 words, got 1"):
        prune_tree(["a", "b"], [True])
    with pytest.raises(ValueError, match="at least one of 2 words must stay"):
        prune_tree(["a", "b"], [False, False])
    for function in (split_tree, spans_to_tree):
        with pytest.raises(ValueError, match="at least one word"):
            function([], None)
    with pytest.raises(ValueError, match="'greedy' or 'unbiased', got 'best'"):
        depths_to_tree([0.1, 0.2], "ab", rule="best")
