"""Vocabularies: round trips, counts of a known corpus, files, and what they refuse."""

import functools
import hashlib
import json
import pickle
import unicodedata

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from zoo.data import Vocabulary, build_vocabulary, encode_lines, open_source
from zoo.data.vocabulary import BERT_SPECIAL, check_vocabulary

LINES = [
    "The cat's mother-in-law -- she laughed!",
    "",
    "<unk> the Cat sat on 3.5 mats; naïve café… the end",
]
build = functools.partial(build_vocabulary, LINES)
KINDS = {
    "words": build(),
    "whitespace": build(split="whitespace"),
    "characters": build(split="characters"),
    "subwords": build_vocabulary(LINES * 5, split="subwords", max_size=300),
    "wordpiece": build(split="wordpiece", max_size=60, lowercase=True),
    "bert_characters": build(split="bert_characters"),
    "no special tokens": build(split="whitespace", special=()),
}


@pytest.fixture(params=KINDS)
def vocabulary(request):
    return KINDS[request.param]


@given(data=st.data(), kind=st.sampled_from(["words", "whitespace", "characters"]))
def test_ids_survive_text(data, kind):
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


@given(st.lists(st.text(), min_size=1), st.sampled_from(sorted(KINDS)))
def test_a_corpus_is_the_encoding_of_its_lines_with_their_breaks(lines, kind):
    vocabulary = KINDS[kind]
    end = [vocabulary.end] if "<eos>" in vocabulary.special else []
    expected = [n for ids in vocabulary.encode_batch(lines) for n in (*ids.tolist(), *end)]
    if not expected:
        with pytest.raises(ValueError, match="nothing to encode"):
            encode_lines(lines, vocabulary)
        return
    assert encode_lines(lines, vocabulary).tolist() == expected
    if end:
        assert vocabulary.encode("\n".join(lines) + "\n").tolist() == expected


def test_words():
    words = KINDS["words"]
    assert words.tokens[2:5] == ("-", "the", "!")  # those that occur twice, the others in order
    assert words.counts[:5].tolist() == [0, 0, 2, 2, 1]
    assert {"cat's", "mother-in-law", "-", "…", "naïve"} <= set(words.tokens)
    assert words.tokens.count("<unk>") == 1
    lowered = build(lowercase=True)
    assert lowered.encode("THE").tolist() == [lowered.id_of("the")] == [2]
    assert KINDS["whitespace"].encode("the <unk> dog\n").tolist() == [2, 0, 0, 1]
    assert words.ids_of(["the", "dog"]).tolist() == [3, words.unknown] == [3, words.id_of("dog")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("हिन्दी भाषा, नमस्ते!", ["हिन्दी", "भाषा", ",", "नमस्ते", "!"]),
        ("cafe\u0301 café", ["café", "café"]),
        ("می\u200cخواهم", ["می\u200cخواهم"]),
        ("q\u0303-x\u0303 \u0301a", ["q\u0303-x\u0303", "\u0301", "a"]),
        ("❤\ufe0f ok", ["❤\ufe0f", "ok"]),
        ("\ufeffthe", ["the"]),
    ],
)
def test_marks_belong_to_the_letter_before_them(text, words):
    vocabulary = build_vocabulary([text], special=())
    assert [vocabulary.tokens[n] for n in vocabulary.encode(text)] == words


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize(
    "split", ["words", "whitespace", "characters", str.split, "bert_characters", "wordpiece"]
)
def test_composed_and_decomposed_text_is_the_same(split, lowercase):
    text = "Élan Vĩnh 한국어 naïve"
    forms = [unicodedata.normalize(form, text) for form in ("NFC", "NFD")]
    options = {"lowercase": lowercase} | ({"max_size": 99} if split == "wordpiece" else {})
    one, other = (build_vocabulary([form], split=split, **options) for form in forms)
    assert (
        split == "wordpiece" or one.tokens == other.tokens
    )  # its training breaks ties as it likes
    assert one.encode(forms[0]).tolist() == one.encode(forms[1]).tolist()
    assert one.unknown not in one.encode(forms[1])


def test_unknown_words_are_left_out_without_a_token_for_them():
    vocabulary = build_vocabulary(["b a b", "a b c"], split=str.split, min_count=2, special=())
    assert vocabulary.tokens == ("b", "a")
    assert vocabulary.counts.tolist() == [3, 2]
    assert vocabulary.counts.dtype == np.int64
    assert (vocabulary.unknown, vocabulary.end) == (None, None)
    assert encode_lines(["c a\nd b", "c"], vocabulary).tolist() == [1, 0]
    with pytest.raises(KeyError, match="c"):
        vocabulary.id_of("c")


def test_bert():
    pieces, characters = KINDS["wordpiece"], KINDS["bert_characters"]
    for vocabulary in (pieces, characters):
        assert vocabulary.tokens[:5] == vocabulary.special == BERT_SPECIAL
        assert (vocabulary.unknown, vocabulary.end) == (1, 3)
    # "[MASK]" written in a text is text, and a line break is a blank.
    (ids,), (starts,) = pieces.encode_with_word_starts(["CAFÉ\n[mats 中]"])
    assert pieces.decode(ids) == "cafe mats"
    tokens = [pieces.tokens[i] for i in ids]
    assert starts.tolist() == [not token.startswith("##") for token in tokens]
    assert tokens[-2:] == ["[UNK]", "[UNK]"]
    (ids,), (starts,) = characters.encode_with_word_starts(["the\x00 é中"])
    assert [characters.tokens[i] for i in ids] == [*"the é", " ", "[UNK]", " "]
    assert starts.all()


def test_sizes():
    lines = ["a a a b b c"]
    assert build_vocabulary(lines, max_size=4).tokens[2:] == ("a", "b")
    assert build_vocabulary(lines, min_count=3).tokens[2:] == ("a",)
    assert build_vocabulary(lines, max_size=4, split="characters").tokens[2:] == (" ", "a")
    assert len(build(split="subwords", max_size=258)) == 258
    assert len(build_vocabulary(["ab"] * 3, split="subwords", max_size=999)) == 259


@pytest.mark.parametrize(
    ("split", "digest", "ids"),
    [
        ("words", "14803-589620f2ca7b", "d437dad0168db587"),
        ("whitespace", "25672-b9245ebecba3", "7127f9085a6eadde"),
        ("characters", "66-8c973a570c91", "5b6307bfbf7cf6d8"),
    ],
)
def test_ids_of_the_plays_stay(split, digest, ids):
    """Runs that were started with an earlier version of the code go on."""
    lines = [line["text"] for line in open_source("builtin:shakespeare")]
    vocabulary = build_vocabulary(lines, split=split)
    assert vocabulary.digest == digest
    found = encode_lines(lines, vocabulary).astype("<i4").tobytes()
    assert hashlib.sha256(found).hexdigest()[:16] == ids


def test_save_and_load(vocabulary, tmp_path):
    path = tmp_path / "vocabulary.json"
    vocabulary.save(path)
    loaded = Vocabulary.load(path)
    assert loaded == pickle.loads(pickle.dumps(vocabulary)) == vocabulary
    assert loaded.digest == vocabulary.digest
    assert loaded.encode(LINES[2]).tolist() == vocabulary.encode(LINES[2]).tolist()
    assert [file.name for file in tmp_path.iterdir()] == ["vocabulary.json"]
    if vocabulary.model:  # the format of Hugging Face
        path.write_text(vocabulary.model)
        assert Vocabulary.load(path) == vocabulary


def test_digest_names_the_contents(tmp_path):
    vocabularies = [*KINDS.values(), build(lowercase=True)]
    vocabularies.append(Vocabulary(KINDS["words"].tokens, "whitespace"))
    assert len({vocabulary.digest for vocabulary in vocabularies}) == len(vocabularies)
    content = '{"lowercase": false, "model": "", "split": "words", "tokens": '
    content += '["<unk>", "<eos>", "a", "b"]}'
    expected = hashlib.sha256(content.encode()).hexdigest()[:12]
    assert build_vocabulary(["a b"]).digest == f"4-{expected}"
    check_vocabulary(f"4-{expected}", build_vocabulary(["a b"]))
    with pytest.raises(ValueError, match=rf"4 tokens \(hash {expected}\), got 5 tokens"):
        check_vocabulary(f"4-{expected}", build_vocabulary(["a b c"]))
    path = tmp_path / "vocabulary.json"
    path.write_text(content)  # of a version that knew no other special tokens
    assert Vocabulary.load(path) == build_vocabulary(["a b"])


@pytest.mark.slow
def test_penn_treebank(data_directory):
    uri = f"file:{data_directory}/ptb/ptb.{{split}}.txt"
    train = open_source(uri, split="train")
    vocabulary = build_vocabulary(train, split="whitespace")
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
        (lambda: build_vocabulary([]), "is the text empty"),
        (lambda: build_vocabulary(["a"], min_count=2), "at least min_count=2"),
        (lambda: build_vocabulary(["a"], max_size=2), "max_size must be at least 3"),
        (lambda: build_vocabulary(["a"], split="letters"), "split must be.*'letters'"),
        (lambda: build_vocabulary(["", ""], split="characters"), "is the text empty"),
        (lambda: build_vocabulary(["a"], split="subwords", max_size=9), "at least 258, got 9"),
        (lambda: build_vocabulary(["a"], split="wordpiece"), "max_size must be an integer"),
        (lambda: build(split="bert_characters", special=("<unk>",)), r"must hold '\[UNK\]'"),
        (lambda: build_vocabulary([""], split="subwords", max_size=300), "is the text empty"),
        (lambda: encode_lines([], KINDS["words"]), "nothing to encode"),
        (lambda: Vocabulary(("a", "b"), "words"), r"'<eos>'\] are missing"),
        (lambda: Vocabulary(("<unk>", "<eos>", "a", "a"), "words"), r"\['a'\] more than once"),
        (lambda: Vocabulary(("<unk>", "<eos>"), "letters"), "split must be one of .*'letters'"),
        (lambda: Vocabulary(("<unk>", "<eos>"), "subwords"), "'subwords' without a model"),
        (lambda: KINDS["words"].decode([0, 999]), "ids must be in .*got 999"),
        (lambda: KINDS["words"].decode([-1]), "ids must be in .*got -1"),
        (lambda: build(split=str.split).save("nowhere"), "function cannot be saved"),
    ],
)
def test_bad_values(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


@pytest.mark.parametrize("lines", ["one string", [3], [{"review": "a"}], [{"text": b"a"}]])
def test_bad_lines(lines):
    with pytest.raises(TypeError, match="got"):
        encode_lines(lines, KINDS["words"])


def model_with(kind, **changes):
    """A saved vocabulary or a tokenizer.json that was changed."""
    text = KINDS[kind].model or json.dumps(KINDS[kind]._contents())
    return json.dumps(json.loads(text) | changes)


@pytest.mark.parametrize(
    "content",
    [
        *("", '{"tokens": ["<unk>"', "[]", '{"tokens": []}', '{"a": 1}', "[" * 10**5, "{}", "3"),
        *(b'{"tokens": ["\xff"]}', model_with("words")[:-40], model_with("wordpiece")[:-40]),
        *(model_with("words", tokens="<unk>"), model_with("words", tokens=["<unk>", "<eos>", 3])),
        *(model_with("words", special=[["<unk>"]]), model_with("words", split="letters")),
        *(model_with("wordpiece", model={}), model_with("wordpiece", model=3)),
        json.dumps(KINDS["wordpiece"]._contents() | {"model": "{}"}),
        json.dumps(KINDS["wordpiece"]._contents() | {"tokens": ["[PAD]"], "special": []}),
    ],
    ids=map(str, range(18)),
)
def test_bad_file(tmp_path, content):
    path = tmp_path / "vocabulary.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"vocabulary\.json is not a vocabulary"):
        Vocabulary.load(path)
