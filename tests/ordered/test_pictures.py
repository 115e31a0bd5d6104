import numpy as np
import pytest

from zoo.ordered import draw_gates, draw_trees


def test_a_tree_has_a_line_for_every_child_and_words_in_order():
    axes = draw_trees({"one": [["a", "b"], ["c", ["d", "e"]]]}).axes[0]
    assert [text.get_text() for text in axes.texts] == list("abcde")
    assert [text.get_position()[0] for text in axes.texts] == [0, 1, 2, 3, 4]
    assert len(axes.lines) == 8
    tops = [line.get_ydata()[0] for line in axes.lines]
    assert all(line.get_ydata()[1] < line.get_ydata()[0] for line in axes.lines)
    assert max(tops) == 3


def test_brackets_that_gold_lacks_look_otherwise():
    figure = draw_trees({"induced": [["a", "b"], ["c", "d"]]}, gold=["a", "b", ["c", "d"]])
    induced, gold = figure.axes
    assert (induced.get_title("left"), gold.get_title("left")) == ("induced (F1 67)", "gold")
    # Two lines of the whole sentence, two of [a, b], which is wrong, and two of [c, d].
    wrong = [line.get_linestyle() == "--" for line in induced.lines]
    ends = [max(line.get_xdata()) for line in induced.lines]
    assert sorted(end for end, bad in zip(ends, wrong, strict=True) if bad) == [0.5, 1]
    assert not any(line.get_linestyle() == "--" for line in gold.lines)


def test_gates_show_levels_upwards():
    gates = np.array([[0.0, 0.5, 1.0], [0.25, 1.0, 1.0]])
    axes = draw_gates(gates, ["the", "dog"]).axes[0]
    (image,) = axes.images
    np.testing.assert_array_equal(image.get_array(), gates.T)
    assert image.origin == "lower"


def test_files_can_be_written(tmp_path):
    path = tmp_path / "tree.png"
    draw_trees({"": ["a", "b"]}).savefig(path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_bad_input():
    with pytest.raises(ValueError, match=r"one row for each of 2 words, got shape \(3, 4\)"):
        draw_gates(np.zeros((3, 4)), ["a", "b"])
    with pytest.raises(ValueError, match="at least one tree"):
        draw_trees({})
    with pytest.raises(ValueError, match="predicted has 2 words and gold 3"):
        draw_trees({"induced": ["a", "b"]}, gold=["a", "b", "c"])
    with pytest.raises(ValueError, match="empty list"):
        draw_trees({"induced": ["a", []]})
