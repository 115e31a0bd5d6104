import nltk
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.ordered import bracket_scores, depths_to_tree, tree_spans, tree_words


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

    reference = to_nltk(tree)
    spans = set()
    for position in reference.treepositions():
        if isinstance(reference[position], nltk.Tree) and position:
            leaves = [
                p for p in reference.treepositions("leaves") if p[: len(position)] == position
            ]
            start = reference.treepositions("leaves").index(leaves[0])
            spans.add((start, start + len(leaves)))
    assert tree_spans(tree) == spans


def test_bias_of_the_greedy_rule():
    # Three equally likely orders of two words would give 1/2 each; noise gives 2/3 to the right.
    permutations = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    right = [depths_to_tree(p, "abc") == ["a", ["b", "c"]] for p in permutations]
    assert sum(right) == 4


def test_a_long_line_does_not_overflow_the_stack():
    tree = depths_to_tree(np.zeros(5000), ["w"] * 5000)
    assert bracket_scores(tree, tree).f1 == 1
    assert len(tree_spans(tree)) == 4998


def test_scores():
    gold = ["a", ["b", "c"], "d", ["e", ["f", "g"]]]
    predicted = [[["a", "b"], "c"], [["d", "e"], ["f", "g"]]]
    scores = bracket_scores(predicted, gold)
    assert tree_spans(gold) == {(1, 3), (4, 7), (5, 7)}
    assert scores == pytest.approx((1 / 5, 1 / 3, 0.25))


@pytest.mark.parametrize(
    ("predicted", "gold", "expected"),
    [
        ("a", "a", (1, 1, 1)),
        (["a", "b"], ["a", "b"], (1, 1, 1)),
        (["a", ["b", "c"]], ["a", "b", "c"], (0, 1, 0)),  # a flat gold tree asks for no bracket
        (["a", "b", "c"], ["a", ["b", "c"]], (0, 0, 0)),
    ],
)
def test_scores_without_brackets(predicted, gold, expected):
    assert bracket_scores(predicted, gold) == expected


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
    with pytest.raises(ValueError, match="predicted has 2 words and gold 3"):
        bracket_scores(["a", "b"], ["a", "b", "c"])
