import zipfile

import pytest

from zoo.ordered import read_treebank, tree_spans
from zoo.ordered.treebank import GoldTree, parse_brackets

SENTENCE = """
( (S
    (NP-SBJ-1 (DT The) (`` ``) (NN dog) ('' '') )
    (VP (VBD wanted)
      (S (NP-SBJ (-NONE- *-1) )
        (VP (TO to)
          (VP (VB bark) ))))
    (. .) ))
"""


def test_words_alone():
    (tree,) = parse_brackets(SENTENCE + "(S (. .))")  # the second holds no word
    assert tree.words == ("The", "dog", "wanted", "to", "bark")
    assert tree.tags == ("DT", "NN", "VBD", "TO", "VB")
    assert tree.constituents == (
        ("S", 0, 5),
        ("NP", 0, 2),
        ("VP", 2, 5),
        ("S", 3, 5),
        ("VP", 3, 5),
        ("VP", 4, 5),
    )
    assert tree.tree == [["The", "dog"], ["wanted", ["to", "bark"]]]
    assert tree.brackets == (5, tree_spans(tree.tree)) == (5, {(0, 2), (2, 5), (3, 5)})


def test_the_tree_of_one_word():
    (tree,) = parse_brackets("( (S (VP (VB Go))))")
    assert tree.tree == "Go"
    assert tree.brackets == (1, set())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(S (NN a))\n(S (NP (NN a))\n  (VP (VB b))", "line 2: Un-matched open paren"),
        ("(S (NN a))\n ) (S", "line 2: Un-matched close paren"),
        ("(S\n (NP (NN a b)))", r"line 1: expected \(TAG word\) or brackets .*, got a"),
        ("\n(S a (NN b))", r"line 2: expected \(TAG word\) or brackets .*, got a"),
        ("(S (NN a) b)", r"line 1: expected \(TAG word\) or brackets .*, got b"),
        ("(S (NN a))\n b", r"line 2: .*expected '\(' but got 'b'"),
        ("(S ())", r"line 1: expected \(TAG word\) or brackets .*, got \( \)"),
        ("(S (NN))", r"line 1: expected \(TAG word\) or brackets .*, got \(NN \)"),
        ("(NN a)", "line 1: a word needs a bracket around it"),
        ("(S (NN a", "line 1: Un-matched open paren"),
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
    with pytest.raises(ValueError, match=r"bad\.zip/x/wsj\.mrg, line 2: Un-matched open paren"):
        read_treebank(tmp_path / "bad.zip")
    (tmp_path / "latin.mrg").write_bytes(b"(S (NN caf\xe9))")
    with pytest.raises(ValueError, match=r"latin\.mrg is not UTF-8 at byte offset 10"):
        read_treebank(tmp_path / "latin.mrg")


def test_other_tag_sets_are_named_and_can_be_given():
    text = "(S (NP (PRON She)) (VP (VERB left)) (PUNCT .))"
    with pytest.raises(ValueError, match=r"line 1: expected a tag of the Penn .* 'PRON'.*tags="):
        parse_brackets(text)
    assert parse_brackets(text, tags={"PRON", "VERB"})[0].words == ("She", "left")
    assert parse_brackets("(S (JJ|NN gold) (. .) (NN fish))")[0].words == ("fish",)


def test_a_byte_order_mark_is_no_word(tmp_path):
    path = tmp_path / "one.mrg"
    path.write_text("(S (UH Yes))", encoding="utf-8-sig")
    assert read_treebank(path)[0].words == ("Yes",)


def test_brackets_nested_without_end_are_refused():
    with pytest.raises(ValueError, match=r"line 1: .*deep"):
        parse_brackets("(S " * 100_000 + "(NN deep)" + ")" * 100_000)
