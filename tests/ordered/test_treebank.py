import gzip
import zipfile

import nltk
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
        (
            "(S (NN a))\n(S (NP (NN a))\n  (VP (VB b))",
            "line 2: a bracket opens that is never closed",
        ),
        ("(S (NN a))\n ) (S", r"line 2: expected a bracket that opens, .* got '\)'"),
        ("(S\n (NP (NN a b)))", r"line 2: expected \(TAG word\) or brackets .*, got b"),
        ("\n(S a (NN b))", r"line 2: expected \(TAG word\) or brackets .*, got \(S a \("),
        ("(S (NN a) b)", r"line 1: expected \(TAG word\) or brackets .*, got b"),
        ("(S (NN a))\n b", r"line 2: expected a bracket that opens, or a comment, got 'b'"),
        ("(S ())", r"line 1: expected \(TAG word\) or brackets .*, got \(\)"),
        ("(S (NN))", r"line 1: expected \(TAG word\) or brackets .*, got \(NN\)"),
        (
            "(S (NP (NNP R)) (( () (NN a) () )))",
            r"line 1: .* got \(\)",
        ),  # parentheses that nobody escaped
        ("(S (NP-SBJ (PRP (She))))", r"line 1: .* got \(She\)"),  # words in brackets of their own
        ("(NN a)", "line 1: a word needs a bracket around it"),
        ("(S (NN a", "line 1: a bracket opens"),
        ("(S (NN a))\n# (\n(S (. .)\n# (NN a))", "line 4: .* got #"),  # none inside a tree
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
    with pytest.raises(ValueError, match=r"holds no tree; .* match '\*\.mrg'"):
        read_treebank(tmp_path)
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("x/wsj.mrg", "(S (NN a))\n(S (NN b")
    with pytest.raises(ValueError, match=r"bad\.zip/x/wsj\.mrg, line 2: a bracket opens"):
        read_treebank(tmp_path / "bad.zip")
    (tmp_path / "latin.mrg").write_bytes(b"(S (NN caf\xe9))")
    with pytest.raises(ValueError, match=r"latin\.mrg is not UTF-8 at byte offset 10"):
        read_treebank(tmp_path / "latin.mrg")
    assert read_treebank(tmp_path / "latin.mrg", encoding="latin-1")[0].words == ("café",)
    (tmp_path / "cut.mrg.gz").write_bytes(gzip.compress(b"(S (NN a))")[:-4])
    (tmp_path / "cut.zip").write_bytes((tmp_path / "bad.zip").read_bytes()[:-4])
    for name in ("cut.mrg.gz", "cut.zip"):
        with pytest.raises(ValueError, match=f"{name} is .*damaged"):
            read_treebank(tmp_path / name)


ENGLISH = (
    "( (S (NP (PRP He)) (VP (VBD paid) (NP (QP ($ $) (CD 9)) (-NONE- *U*)) (-LRB- -LRB-)) (. .)))"
)
CHINESE = """\ufeff<DOC>
<S ID=1>
( (IP (NP-PN-SBJ (NR 北京)) (VP (ADVP (AD 也)) (VP (VV 下) (NP-OBJ (NN 雪)))) (PU 。)) )
</S>
<S ID=2>
( (IP (NP-SBJ (-NONE- *pro*))
  (VP (VC 是) (NP-PRD (DNP (NP (PN 我)) (DEG 的)) (NP (NN 书)))) (PU ！)))
</S>
</DOC>
"""


def test_chinese(tmp_path):
    first, second = parse_brackets(CHINESE, tags="chinese")
    assert first.words == ("北京", "也", "下", "雪")
    assert first.tree == ["北京", ["也", ["下", "雪"]]]
    assert first.constituents[1] == ("NP", 0, 1)
    assert second.tree == ["是", [["我", "的"], "书"]]
    assert second.constituents[:2] == (("IP", 0, 4), ("VP", 0, 4))  # the dropped subject is gone
    (tmp_path / "chtb_0001.fid.gz").write_bytes(gzip.compress(CHINESE[1:].encode("gb18030")))
    (tmp_path / "README").write_text("no tree")
    options = {"tags": "chinese", "pattern": "*.fid"}
    assert read_treebank(tmp_path, encoding="gb18030", **options) == [first, second]
    with pytest.raises(ValueError, match=r"fid\.gz is not UTF-8 at byte .* pass its encoding="):
        read_treebank(tmp_path, **options)
    with pytest.raises(ValueError, match="must be one that Python knows, got 'gb99'"):
        read_treebank(tmp_path, encoding="gb99", **options)


@pytest.mark.parametrize(
    ("text", "tags", "words"),
    [
        (ENGLISH, "penn", "He paid 9"),
        (ENGLISH, "collins", "He paid $ 9 -LRB-"),
        ("(S (NP (PRON She)) (VP (VERB left)) (PUNCT .))", "universal", "She left"),
        ("(S (NP (PRON She)) (VP (VERB left)) (PUNCT .))", {"VERB"}, "left"),
        ("(S (NE Eva) (VVFIN lacht) ($. .))", lambda tag: tag[0] != "$", "Eva lacht"),
        ("(S (JJ|NN gold) (. .) (NN fish))", "penn", "fish"),
        ("(S (NN e) (HYPH -) (NN mail) (NFP :-\\)))", "penn", "e mail"),
        ("(S (CD 1\u00a0000) (NN :-\\)) (NN a\u3000b))", "penn", "1\u00a0000 :-\\) a\u3000b"),
    ],
)
def test_what_stays_is_told_by_its_tag(text, tags, words):
    assert " ".join(parse_brackets(text, tags=tags)[0].words) == words


def test_tags_that_are_not_in_the_set_are_named():
    text = "(S (NP (PRON She)) (VP (VERB left)) (PUNCT .))"
    with pytest.raises(
        ValueError, match=r"line 1: expected a tag of .* 'penn', got 'PRON'; .*tags="
    ):
        parse_brackets(text)
    with pytest.raises(ValueError, match=r"tags must be one of 'penn', .* got 'NN'"):
        parse_brackets(text, tags="NN")


@pytest.mark.parametrize("mark", ["\ufeff", "# sent (1)\n", "%% 1\n", "*x*(c)*x*\n", "\n  <S>\n"])
def test_byte_order_marks_and_comments_are_no_text(tmp_path, mark):
    path = tmp_path / "one.mrg"
    path.write_text(f"{mark}(S (UH Yes))\n{mark}(S\n(# #) (UH No))", encoding="utf-8-sig")
    assert [tree.words for tree in read_treebank(path)] == [("Yes",), ("No",)]
    with pytest.raises(ValueError, match=r"line 1: .* got ';'"):
        parse_brackets("; one\n(S (UH Yes))")
    with pytest.raises(ValueError, match=r"line 1: .* got '<S>'"):  # not dropped in silence
        parse_brackets("<S> (S (UH Yes)) </S>")
    assert parse_brackets("; one\n(S (UH Yes))", comments=[";"])[0].words == ("Yes",)


@pytest.mark.parametrize("shape", ["(S {}", "(S (NN a) {}", "(S {} (NN b)"])
def test_trees_of_any_depth(shape):
    depth = 3000  # recursion ends at 1000
    opening, closing = shape.split("{}")
    text = opening * depth + "(NN c)" + (closing + ")") * depth
    (tree,) = parse_brackets(text)
    assert len(tree.constituents) == depth
    if " (" in shape:
        assert len(tree_spans(tree.tree)) == depth - 1


def trees_of_nltk():
    words = st.tuples(st.sampled_from(["NN", "VB", "."]), st.sampled_from(["a", "é", "-"]))
    leaves = words.map(lambda pair: nltk.Tree(pair[0], [pair[1]]))
    labels = st.sampled_from(["S", "NP-SBJ", "", "X=2"])
    node = lambda children: st.builds(nltk.Tree, labels, st.lists(children, min_size=1, max_size=3))  # noqa: E731
    return node(st.recursive(leaves, node, max_leaves=6))


@given(trees_of_nltk(), st.integers(5, 60))
def test_the_same_words_and_brackets_as_nltk_reads(tree, margin):
    read = parse_brackets(tree.pformat(margin=margin))
    words = [(word, tag) for word, tag in tree.pos() if tag != "."]
    assert [pair for found in read for pair in zip(found.words, found.tags, strict=True)] == words
    labels = {"S": "S", "NP-SBJ": "NP", "X=2": "X"}
    expected = []
    for node in tree.subtrees(lambda node: node.height() > 2):
        kept = sum(tag != "." for _, tag in node.pos())
        expected += [(labels[node.label()], kept)] if kept and node.label() else []
    found = [(label, end - start) for t in read for label, start, end in t.constituents]
    assert found == expected
