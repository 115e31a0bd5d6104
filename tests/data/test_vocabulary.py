"""Vocabularies: round trips, counts of a known corpus, files, and what they refuse."""

import hashlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from zoo.data import (
    Vocabulary,
    build_character_vocabulary,
    build_word_vocabulary,
    check_vocabulary,
    encode_lines,
    open_source,
    train_subword_vocabulary,
)

LINES = [
    "The cat's mother-in-law -- she laughed!",
    "",
    "<unk> the Cat sat on 3.5 mats; naïve café… the end",
]


def make(kind):
    if kind == "characters":
        return build_character_vocabulary(LINES)
    if kind == "subwords":
        return train_subword_vocabulary(LINES * 5, size=300)
    return build_word_vocabulary(LINES, split=kind)


KINDS = {kind: make(kind) for kind in ("words", "whitespace", "characters", "subwords")}


@pytest.fixture(params=KINDS)
def vocabulary(request):
    return KINDS[request.param]


@given(data=st.data())
@settings(max_examples=50)
@pytest.mark.parametrize("kind", ["words", "whitespace", "characters"])
def test_ids_survive_text(kind, data):
    vocabulary = KINDS[kind]
    known = st.integers(1 if kind == "characters" else 0, len(vocabulary) - 1)
    ids = data.draw(st.lists(known, max_size=20))
    encoded = vocabulary.encode(vocabulary.decode(ids))
    assert encoded.dtype == np.int32
    assert encoded.tolist() == ids


@given(st.text())
@example("<eos> and <unk>\r\n\x0c\u2028")
def test_any_text_survives_subwords(text):
    vocabulary = KINDS["subwords"]
    assert vocabulary.decode(vocabulary.encode(text)) == text


@given(st.text(alphabet="".join(LINES) + "\n"))
def test_known_characters_survive(text):
    vocabulary = KINDS["characters"]
    assert vocabulary.decode(vocabulary.encode(text)) == text


@given(st.lists(st.text(), min_size=1), st.sampled_from(sorted(KINDS)))
def test_a_corpus_is_the_encoding_of_its_lines_with_their_breaks(lines, kind):
    vocabulary = KINDS[kind]
    ids = encode_lines(lines, vocabulary)
    assert ids.tolist() == vocabulary.encode("\n".join(lines) + "\n").tolist()
    one_by_one = [np.append(vocabulary.encode(line), vocabulary.end) for line in lines]
    assert ids.tolist() == np.concatenate(one_by_one).tolist()
    if kind != "whitespace":  # "<eos>" between blanks is the end token there
        assert (ids == vocabulary.end).sum() >= len(lines)


def test_words():
    tokens = KINDS["words"].tokens
    assert tokens[2:5] == ("-", "the", "!")  # those that occur twice, then the others, in order
    assert {"cat's", "mother-in-law", "-", "…", "naïve"} <= set(tokens)
    assert tokens.count("<unk>") == 1
    lowered = build_word_vocabulary(LINES, lowercase=True)
    assert lowered.tokens[2] == "the"
    assert lowered.encode("THE").tolist() == [2]
    assert KINDS["whitespace"].encode("the <unk> dog\n").tolist() == [2, 0, 0, 1]


def test_sizes():
    lines = ["a a a b b c"]
    assert build_word_vocabulary(lines, max_size=4).tokens[2:] == ("a", "b")
    assert build_word_vocabulary(lines, min_count=3).tokens[2:] == ("a",)
    assert len(train_subword_vocabulary(LINES, size=258)) == 258
    assert len(train_subword_vocabulary(["ab"] * 3, size=999)) == 259


def test_long_corpus_in_pieces():
    lines = [f"{i % 7} x" for i in range(10_000)]
    ids = encode_lines(lines, build_word_vocabulary(lines))
    assert ids.shape == (30_000,)
    assert (ids[2::3] == 1).all()


def test_save_and_load(vocabulary, tmp_path):
    path = tmp_path / "vocabulary.json"
    vocabulary.save(path)
    loaded = Vocabulary.load(path)
    assert loaded == vocabulary
    assert loaded.digest == vocabulary.digest
    assert loaded.encode(LINES[2]).tolist() == vocabulary.encode(LINES[2]).tolist()
    assert [file.name for file in tmp_path.iterdir()] == ["vocabulary.json"]


def test_digest_names_the_contents():
    vocabularies = [*KINDS.values(), build_word_vocabulary(LINES, lowercase=True)]
    vocabularies.append(Vocabulary(KINDS["words"].tokens, "whitespace"))
    assert len({vocabulary.digest for vocabulary in vocabularies}) == len(vocabularies)
    content = '{"lowercase": false, "model": "", "split": "words", "tokens": '
    content += '["<unk>", "<eos>", "a", "b"]}'
    expected = hashlib.sha256(content.encode()).hexdigest()[:12]
    assert build_word_vocabulary(["a b"]).digest == f"4-{expected}"
    assert make("subwords").digest == KINDS["subwords"].digest


def test_mismatch_is_refused(vocabulary):
    check_vocabulary(vocabulary.digest, vocabulary)
    other = build_word_vocabulary(["a b"])
    with pytest.raises(ValueError, match=rf"{len(vocabulary)} tokens \(hash .*got 4 tokens"):
        check_vocabulary(vocabulary.digest, other)


def test_penn_treebank(data_directory):
    uri = f"file:{data_directory}/ptb/ptb.{{split}}.txt"
    train = open_source(uri, split="train")
    vocabulary = build_word_vocabulary(train, split="whitespace")
    assert len(vocabulary) == 10_000
    assert vocabulary.tokens[2] == "the"
    streams = [encode_lines(open_source(uri, split=s), vocabulary) for s in ("valid", "test")]
    streams.insert(0, encode_lines(train, vocabulary))
    assert [len(ids) for ids in streams] == [929_589, 73_760, 82_430]
    assert [(ids == vocabulary.end).sum() for ids in streams] == [42_068, 3_370, 3_761]
    text = "\n".join(line["text"].strip() for line in train) + "\n"
    assert vocabulary.decode(streams[0]) == text


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build_word_vocabulary([]), "is the text empty"),
        (lambda: build_word_vocabulary(["a"], min_count=2), "at least min_count=2"),
        (lambda: build_word_vocabulary(["a"], max_size=2), "max_size must be at least 3"),
        (lambda: build_word_vocabulary(["a"], split="letters"), "split must be.*'letters'"),
        (lambda: build_character_vocabulary(["", ""]), "is the text empty"),
        (lambda: train_subword_vocabulary(["a"], size=100), "at least 258.*got 100"),
        (lambda: train_subword_vocabulary([""], size=300), "is the text empty"),
        (lambda: encode_lines([], KINDS["words"]), "is empty"),
        (lambda: Vocabulary(("a", "b"), "words"), "must begin with <unk>, <eos>"),
        (lambda: Vocabulary(("<unk>", "<eos>", "a", "a"), "words"), r"\['a'\] more than once"),
        (lambda: Vocabulary(("<unk>", "<eos>"), "letters"), "split must be one of .*'letters'"),
        (lambda: Vocabulary(("<unk>", "<eos>"), "subwords"), "'subwords' without a model"),
        (lambda: KINDS["words"].decode([0, 999]), "ids must be in .*got 999"),
        (lambda: KINDS["words"].decode([-1]), "ids must be in .*got -1"),
    ],
)
def test_bad_values(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("lines", ["one string", [3], [{"review": "a"}], [{"text": b"a"}]])
def test_bad_lines(lines):
    with pytest.raises(TypeError, match="got"):
        encode_lines(lines, KINDS["words"])


@pytest.mark.parametrize("content", ["", '{"tokens": ["<unk>"', "[]", '{"tokens": []}', '{"a": 1}'])
def test_bad_file(tmp_path, content):
    path = tmp_path / "vocabulary.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"vocabulary\.json is not a vocabulary"):
        Vocabulary.load(path)
