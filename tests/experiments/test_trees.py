import pytest

from experiments.trees import draw_trees, tree_table
from zoo.ordered.treebank import GoldTree


def test_a_tree_has_a_line_for_every_child_and_words_in_order(tmp_path):
    figure = draw_trees({"one": [["a", "b"], ["c", ["d", "e"]]]})
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == list("abcde")
    assert [text.get_position()[0] for text in axes.texts] == [0, 1, 2, 3, 4]
    ends = [line.get_ydata() for line in axes.lines]
    assert len(ends) == 8
    assert all(low < high for high, low in ends)
    assert max(high for high, _ in ends) == 3


def test_brackets_that_gold_lacks_look_otherwise():
    figure = draw_trees({"induced": [["a", "b"], ["c", "d"]]}, gold=["a", "b", ["c", "d"]])
    induced, gold = figure.axes
    assert (induced.get_title("left"), gold.get_title("left")) == ("induced (F1 67)", "gold")
    # Two lines of the complete sentence, two of [a, b], which is wrong, and two of [c, d].
    wrong = [line for line in induced.lines if line.get_linestyle() == "--"]
    assert sorted(max(line.get_xdata()) for line in wrong) == [0.5, 1]
    assert not any(line.get_linestyle() == "--" for line in gold.lines)
    with pytest.raises(ValueError, match="predicted has 2 words and gold 3"):
        draw_trees({"induced": ["a", "b"]}, gold=["a", "b", "c"])


def test_the_table_has_the_means_over_seeds_and_the_baselines():
    gold = [GoldTree(tuple("abcd"), (("S", 0, 4), ("NP", 1, 4), ("PP", 2, 4)))]
    right, left = ["a", ["b", ["c", "d"]]], [[["a", "b"], "c"], "d"]
    ours, *baselines = tree_table({"ours": [[right], [left]]}, gold, ("NP", "VP"))
    assert (ours["trees"], ours["sentence F1"], ours["corpus F1, ≤ 10 words"]) == ("ours", 50, 50)
    assert ours["NP"] == 50
    assert ours["VP"] != ours["VP"]  # there is none
    assert [row["sentence F1"] for row in baselines[:2]] == [100, 0]
