import zipfile

import nltk
import pytest

from zoo.ordered import GoldTree, keep_words, parse_brackets, read_treebank, tree_spans

SENTENCE = """
( (S
    (NP-SBJ-1 (DT The) (`` ``) (NN dog) ('' '') )
    (VP (VBD wanted)
      (S (NP-SBJ (-NONE- *-1) )
        (VP (TO to)
          (VP (VB bark) ))))
    (. .) ))
"""


def test_a_tree_with_all_it_holds():
    (tree,) = parse_brackets(SENTENCE)
    assert tree.words == ("The", "``", "dog", "''", "wanted", "*-1", "to", "bark", ".")
    assert tree.tags == ("DT", "``", "NN", "''", "VBD", "-NONE-", "TO", "VB", ".")
    assert tree.constituents == (
        ("S", 0, 9),
        ("NP-SBJ-1", 0, 4),
        ("VP", 4, 8),
        ("S", 5, 8),
        ("NP-SBJ", 5, 6),
        ("VP", 6, 8),
        ("VP", 7, 8),
    )


def test_words_alone():
    tree = keep_words(parse_brackets(SENTENCE)[0])
    assert tree.words == ("The", "dog", "wanted", "to", "bark")
    assert tree.constituents == (
        ("S", 0, 5),
        ("NP", 0, 2),
        ("VP", 2, 5),
        ("S", 3, 5),
        ("VP", 3, 5),
        ("VP", 4, 5),
    )
    assert tree.tree == [["The", "dog"], ["wanted", ["to", "bark"]]]
    assert keep_words(parse_brackets("(S (. .))")[0]) is None


def test_the_tree_of_one_word():
    (tree,) = parse_brackets("( (S (VP (VB Go))))")
    assert tree.tree == "Go"
    assert tree_spans(tree.tree) == set()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(S (NP (NN a))\n  (VP (VB b))", "line 1, column 1: this bracket is never closed"),
        ("(S (NP (NN a)\n  (VP (VB b)))", "line 1, column 1: this bracket is never closed"),
        ("(S (NN a))\n ) (S", r"line 2, column 2: this '\)' closes nothing"),
        ("(S\n (NP (NN a b)))", r"line 2, column 12: expected '\)' after the word 'a', got 'b'"),
        ("(S a (NN b))", r"line 1, column 6: expected '\)' after the word 'a', got '\('"),
        ("(S (NN a) b)", "line 1, column 11: 'b' stands beside brackets"),
        ("(S (NN a)) b", "line 1, column 12: 'b' stands outside of any bracket"),
        ("(S ())", "line 1, column 4: this bracket holds nothing"),
        ("(S (NN))", "line 1, column 4: this bracket holds nothing"),
        ("(NN a)", "line 1, column 1: a word needs a bracket around it"),
        ("(S (NN", r"line 1, column 4: this bracket is never closed"),
        ("(S (NN a", r"line 1, column 4: this bracket is never closed"),
        ("(", r"line 1, column 1: this bracket is never closed"),
    ],
)
def test_malformed_brackets_are_located(text, message):
    with pytest.raises(ValueError, match="^gold.mrg, " + message):
        parse_brackets(text, name="gold.mrg")


def test_files_folders_and_archives(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "2.mrg").write_text("(S (NN b) (NN c))")
    (tmp_path / "a" / "1.mrg").write_text("(S (NN a))\n\n(S (. .))")
    (tmp_path / "a" / "README").write_text("no tree")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("2.mrg", "1.mrg", "README"):
            archive.write(tmp_path / "a" / name, f"treebank/{name}")
    expected = [
        GoldTree(("a",), (("S", 0, 1),), ("NN",)),
        GoldTree(("b", "c"), (("S", 0, 2),), ("NN", "NN")),
    ]
    monkeypatch.setenv("TREES", str(tmp_path))
    assert read_treebank("$TREES/a") == read_treebank(tmp_path / "a.zip") == expected
    assert read_treebank(tmp_path / "a" / "2.mrg") == expected[1:]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.zip"]  # nothing unpacked


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_treebank(tmp_path / "absent.mrg")
    with pytest.raises(ValueError, match=r"holds no tree; .* \*\.mrg"):
        read_treebank(tmp_path)
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("x/wsj.mrg", "(S (NN a))\n(S (NN b")
    with pytest.raises(ValueError, match=r"bad\.zip/x/wsj\.mrg, line 2, column 4: .* never"):
        read_treebank(tmp_path / "bad.zip")
    (tmp_path / "latin.mrg").write_bytes(b"(S (NN caf\xe9))")
    with pytest.raises(ValueError, match=r"latin\.mrg is not UTF-8 at byte offset 10"):
        read_treebank(tmp_path / "latin.mrg")


def test_agrees_with_nltk_on_the_wall_street_journal(data_directory):
    path = data_directory / "wsj_treebank_sample" / "treebank.zip"
    if not path.exists():
        pytest.skip(f"put NLTK's treebank.zip at {path}")
    trees = read_treebank(path)
    assert len(trees) == 3914
    assert sum(len(tree.words) <= 10 for tree in trees) == 555
    assert sum(len(tree.words) <= 40 for tree in trees) == 3764
    with zipfile.ZipFile(path) as archive:
        text = archive.read("treebank/combined/wsj_0001.mrg").decode()
    for block, ours in zip(blocks(text), parse_brackets(text), strict=True):
        theirs = nltk.Tree.fromstring(block, remove_empty_top_bracketing=True)
        assert [tuple(reversed(pair)) for pair in theirs.pos()] == list(
            zip(ours.tags, ours.words, strict=True)
        )
        assert [t.label() for t in theirs.subtrees() if t.height() > 2] == [
            label for label, _, _ in ours.constituents
        ]


def blocks(text):
    """The trees of a file, each of which begins at the start of a line."""
    return ["(" + block for block in text.split("\n(")[1:]]
