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
