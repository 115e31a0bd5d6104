"""Files that others read, neighbours, analogies, and the scores."""

import bz2
import gzip
import importlib.util
import lzma
import subprocess
import sys

import numpy as np
import pytest

from zoo import spherical
from zoo.data import Vocabulary
from zoo.spherical import JoseEmbeddings
from zoo.spherical.evaluation import (
    classify_documents,
    cluster_documents,
    read_word_pairs,
    word_similarity,
)
from zoo.spherical.word2vec import load_word2vec, save_word2vec

# Reads our file, keeps what it found, and writes the file anew.
GENSIM = """
import sys, numpy, gensim.models
path, numpy_path, binary = sys.argv[1], sys.argv[2], bool(int(sys.argv[3]))
vectors = gensim.models.KeyedVectors.load_word2vec_format(path, binary=binary)
numpy.save(numpy_path, vectors.vectors)
vectors.save_word2vec_format(path, binary=binary)
"""


@pytest.fixture
def model():
    words = ("king", "queen", "man", "woman", "naïve")
    gender, royal = np.eye(4)[0], np.eye(4)[1]
    table = np.array([royal - gender, royal + gender, -gender, gender, np.eye(4)[2]], np.float32)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    documents = np.concatenate([table[:3], np.zeros((1, 4), np.float32)])
    vocabulary = Vocabulary(words, "whitespace", special=(), counts=np.arange(5))
    return JoseEmbeddings(table, table[::-1].copy(), documents, vocabulary)


def test_neighbours_and_analogies(model):
    assert model.most_similar(["king", "woman"], ["man"], count=1)[0][0] == "queen"
    assert model.most_similar("man", count=2)[0][0] == "king"
    assert "man" not in dict(model.most_similar("man", count=9))
    assert model.similar_documents("queen unknown", count=1) == [(1, pytest.approx(1))]
    assert model.similar_documents(model.documents[2], count=2)[0][0] == 2
    np.testing.assert_array_equal(model.word("queen"), model.words[1])
    with pytest.raises(KeyError, match="'ox' is not in the vocabulary"):
        model.most_similar("ox")
    with pytest.raises(KeyError, match="no word of 'ox cow'"):
        model.similar_documents("ox cow")
    # One word is one word, not its letters.
    assert model.most_similar("king", "man") == model.most_similar(["king"], ["man"])


def test_the_nearest_come_in_order_and_nan_last(model):
    table = model.words.copy()
    table[0] = np.nan
    broken = model._replace(words=table, documents=table)
    assert [word for word, _ in broken.most_similar("man", count=9)][-1] == "king"
    for count in range(7):
        found = broken.similar_documents(table[2] * np.float32(1e30), count=count)
        assert [row for row, _ in found] == [2, 4, 1, 3, 0][:count]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.most_similar([]), "positive must hold at least one word"),
        (lambda m: m.most_similar("man", count=-1), "count must be at least 0, got -1"),
        (lambda m: m.similar_documents("man", count=2.5), "count must be an integer, got 2.5"),
        (lambda m: m.similar_documents(np.ones(3)), r"query must have shape \[D\], where D is 4"),
        (lambda m: m.similar_documents(["man"]), "query must be one string of words, or a vector"),
    ],
)
def test_questions_that_are_refused(model, call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call(model)


@pytest.mark.parametrize("binary", [False, True])
def test_word2vec_files_keep_every_bit(model, tmp_path, binary):
    path, words = tmp_path / "vectors", model.vocabulary.tokens
    save_word2vec(path, words, model.words, binary=binary)
    names, vectors = load_word2vec(path, binary=binary)
    assert names == words
    np.testing.assert_array_equal(vectors, model.words)


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("gensim"), reason="gensim, of the extra bench")
@pytest.mark.parametrize("binary", [False, True])
def test_word2vec_files_are_gensims(model, tmp_path, binary):
    path, numpy_path = tmp_path / "vectors", tmp_path / "theirs.npy"
    save_word2vec(path, model.vocabulary.tokens, model.words, binary=binary)
    # A process of its own: gensim's extensions turn off subnormal numbers in the one that loads it.
    subprocess.run([sys.executable, "-c", GENSIM, path, numpy_path, str(int(binary))], check=True)
    np.testing.assert_array_equal(np.load(numpy_path), model.words)
    names, vectors = load_word2vec(path, binary=binary)
    assert names == model.vocabulary.tokens
    np.testing.assert_allclose(vectors, model.words, rtol=1e-6)


def test_damaged_files_are_refused(model, tmp_path):
    path, words = tmp_path / "vectors", model.vocabulary.tokens
    for binary in (False, True):
        save_word2vec(path, words, model.words, binary=binary)
        with pytest.raises(ValueError, match="not a complete word2vec file"):
            load_word2vec(path, binary=not binary)
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(ValueError, match=r"not a complete word2vec file .* row [34]"):
            load_word2vec(path, binary=binary)
    with pytest.raises(ValueError, match="one per word"):
        save_word2vec(path, words[1:], model.words)


TABLE = np.arange(4, dtype=np.float32).reshape(2, 2)


@pytest.mark.parametrize("binary", [False, True])
def test_words_keep_every_character_but_blanks(tmp_path, binary):
    path = tmp_path / "vectors"
    words = ("a\u00a0b", "a\u2009b", "\u2028", "a\x85", "\ufeffa", "\x1c", "1", "नमस्ते")
    table = np.arange(2 * len(words), dtype=np.float32).reshape(-1, 2)
    save_word2vec(path, words, table, binary=binary)
    before = path.read_bytes()
    names, vectors = load_word2vec(path, binary=binary)
    assert names == words
    np.testing.assert_array_equal(vectors, table)
    for word in ("a b", "a\tb", "a\nb", "a\rb", "a\x0bb", "", "\ud800"):
        with pytest.raises(ValueError, match="words must be UTF-8 without blanks"):
            save_word2vec(path, ["z", word], TABLE, binary=binary)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("words", "table", "error", "message"),
    [
        ("ab", TABLE, TypeError, "a sequence of words, got the string 'ab'"),
        (["a", "b"], TABLE * 1j, TypeError, "must be real numbers, got complex64"),
        (["a", "b"], TABLE.astype(float) * 1e300, ValueError, "must fit into float32"),
        (["a", "b"], TABLE[:, :0], ValueError, r"one per word, got \(2, 0\)"),
    ],
)
def test_what_cannot_be_saved(tmp_path, words, table, error, message):
    with pytest.raises(error, match=message):
        save_word2vec(tmp_path / "vectors", words, np.asarray(table))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"the 0 1\nof 2 3\n", ("the", "of")),  # GloVe: no line of counts
        (b"the 0 1\n. . . 2 3", ("the", ". . .")),  # as in glove.840B.300d
        (b"\xef\xbb\xbf2 2\r\na 0 1 \r\nb\t2\t3\r\n", ("a", "b")),
        (b"2 2\nna\xc3 0 1\nb 2 3\n", ("na\ufffd", "b")),  # cut inside a character
        (b"2 2\na 0 1\na 2 3\n\n", ("a", "a")),
        (b"2 2\n... king 0 1\n\xc2\xa0 2 3\n", ("... king", "\u00a0")),
    ],
)
def test_texts_of_other_programs(tmp_path, content, words):
    path = tmp_path / "vectors.txt"
    path.write_bytes(content)
    names, vectors = load_word2vec(path)
    assert names == words
    np.testing.assert_array_equal(vectors, TABLE)


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("binary", [False, True, None])
def test_the_first_words_of_a_file(tmp_path, ending, binary):
    path = tmp_path / f"vectors{ending}"
    words, table = ["a", "b", "c"], np.arange(6, dtype=np.float32).reshape(3, 2)
    save_word2vec(path, words, table, binary=bool(binary))
    content = gzip.decompress(path.read_bytes()) if ending else path.read_bytes()
    content = content[4:] if binary is None else content  # GloVe's has no line of counts
    for limit in (1, 2, 3, 9, np.int64(2)):
        kept = min(limit, 3)
        # What is behind the last one is not looked at.
        damaged = content + (b"\xff" * 9 if limit < 3 else b"")
        path.write_bytes(gzip.compress(damaged) if ending else damaged)
        names, vectors = load_word2vec(path, binary=bool(binary), limit=limit)
        assert names == tuple(words[:kept])
        np.testing.assert_array_equal(vectors, table[:kept])
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        load_word2vec(path, limit=0)


@pytest.mark.parametrize("binary", [False, True])
def test_bytes_that_are_no_text(tmp_path, binary):
    path = tmp_path / "vectors"
    save_word2vec(path, ["a?b", "c"], TABLE, binary=binary)
    path.write_bytes(path.read_bytes().replace(b"?", b"\xff"))
    for errors, word in (("replace", "a\ufffdb"), ("ignore", "ab")):
        assert load_word2vec(path, binary=binary, errors=errors).words == (word, "c")
    with pytest.raises(ValueError, match=r"row 0: .*invalid start byte; errors='replace' reads"):
        load_word2vec(path, binary=binary)
    with pytest.raises(ValueError, match="errors must be one of 'strict', 'replace', 'ignore'"):
        load_word2vec(path, errors="surrogateescape")


def test_neighbours_in_a_file(model, tmp_path):
    path = tmp_path / "vectors"
    lengths = np.array([[1.0], [3.0], [0.5], [7.0], [0.0]])
    save_word2vec(path, [*model.vocabulary.tokens[:4], "king"], lengths * model.words)
    vectors = spherical.load_word2vec(path)
    words, cosines = zip(*vectors.most_similar("man", count=9), strict=True)
    assert words == ("king", "king", "queen", "woman")
    np.testing.assert_allclose(cosines, [0.5**0.5, 0, -(0.5**0.5), -1], atol=1e-6)
    # Lengths do not count in a question either.
    assert vectors.most_similar(["king", "woman"], "man", count=1)[0][0] == "queen"
    np.testing.assert_array_equal(vectors.word("king"), vectors.vectors[0])  # the first of two
    with pytest.raises(KeyError, match="'ox' is not in the vocabulary"):
        vectors.word("ox")


@pytest.mark.parametrize(
    ("content", "binary", "message"),
    [
        (b"", False, "row 0: a word and its numbers must be on each line"),
        (b"-1 2\n", False, "row 0: the first line must be two counts V D, got b'-1 2"),
        (b"1 0\na\n", False, "two counts V D"),
        (b"1_0 2\n", False, "two counts V D"),
        (b"9" * 5000 + b" 2\n", True, "two counts V D"),
        (b"1000000000000 2\na 1 2\n", False, "row 1: the file ends before it"),
        (b"1000000000000 2\na 12345678", True, "row 1: the file ends within a word"),
        (b"1 1000000000000\na 12345678", True, "row 0: the file ends within its numbers"),
        (b"1 2\n" + b"a" * 70_000, True, "row 0: the word never ends"),
        (b"1 2\n 12345678", True, "row 0: the word is empty"),
        (b"1 2\na 1_0 2\n", False, "row 0: a word and 2 numbers"),
        (b"1 2\na 1 2\x1c3\n", False, "row 0: could not convert"),
        (b"1 2\na 1 2 3\n", False, "row 0: 2 numbers must be on its line, got more"),
        (b"1 2\na\xff 1 2\n", False, "row 0: .*invalid start byte"),
        (b"1 2\na 1 2\nb 3 4\n", False, "row 1: b'b 3 4' follows the last one"),
        (b"a 1 2\n\nb 3 4\n", False, "row 1: a word and its numbers must be on each line"),
    ],
)
def test_files_that_are_refused(tmp_path, content, binary, message):
    path = tmp_path / "vectors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"vectors is not a complete word2vec file .*{message}"):
        load_word2vec(path, binary=binary)


@pytest.mark.parametrize(
    ("ending", "module"), [(".gz", gzip), (".GZ", gzip), (".xz", lzma), (".bz2", bz2)]
)
def test_compressed_vectors(tmp_path, ending, module):
    path = tmp_path / f"vectors.txt{ending}"
    save_word2vec(path, ["a", "b"], TABLE)
    assert module.decompress(path.read_bytes()) == b"2 2\na 0 1\nb 2 3\n"
    np.testing.assert_array_equal(load_word2vec(path)[1], TABLE)
    members = [module.compress(part) for part in (b"2 2\na 0 1\n", b"b 2 3\n")]
    path.write_bytes(b"".join(members))
    np.testing.assert_array_equal(load_word2vec(path)[1], TABLE)
    for damaged in (members[0] + members[1][:-5], members[0] + b"x" + members[1][1:], b"2 2\n"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{path.name} is truncated or damaged"):
            load_word2vec(path)


def test_safetensors_keeps_everything(model, tmp_path):
    pytest.importorskip("safetensors")
    path = tmp_path / "model.safetensors"
    spherical.save_embeddings(path, model)
    loaded = spherical.load_embeddings(path)
    assert loaded.vocabulary.tokens == model.vocabulary.tokens
    for ours, theirs in zip(
        (*loaded[:3], loaded.vocabulary.counts), (*model[:3], model.vocabulary.counts), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match="is not a file of save_embeddings"):
        spherical.load_embeddings(path)
    for part, message in {
        "words": r"contexts must have shape \[V, D\], where V is 4",
        "vocabulary": "must have counts",
    }.items():
        lacking = Vocabulary(model.vocabulary.tokens, "whitespace", special=())
        wrong = {"words": model.words[:4], "vocabulary": lacking}[part]
        with pytest.raises(ValueError, match=message):
            spherical.save_embeddings(path, model._replace(**{part: wrong}))


def test_safetensors_of_others_are_refused(model, tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "model.safetensors"
    tables = {"words": model.words, "contexts": model.contexts, "documents": model.documents}
    tables["counts"] = np.ones(5, int)
    for changes, names, message in (
        ({}, '"abcde"', "its vocabulary is no list of words"),
        ({}, "[" * 100_000, "recursion"),
        ({}, '["a", "a", "b", "c", "d"]', "must be distinct"),
        ({"contexts": model.contexts[:3]}, '["a", "b", "c", "d", "e"]', "contexts must have"),
        ({"more": model.words}, '["a", "b", "c", "d", "e"]', "more"),
    ):
        path.write_bytes(numpy.save(tables | changes, metadata={"vocabulary": names}))
        with pytest.raises(ValueError, match=f"is not a file of save_embeddings: .*{message}"):
            spherical.load_embeddings(path)


def test_word_similarity_is_spearmans(model):
    pairs = [("king", "queen", 9), ("king", "man", 8), ("man", "woman", 1), ("king", "ox", 5)]
    found = word_similarity(model, pairs)
    # Cosines 0, .707, -1; ranks 2, 3, 1 against 3, 2, 1.
    assert found == (pytest.approx(0.5), 3, 0.75)
    assert np.isnan(word_similarity(model, [("ox", "cow", 1)]).spearman)


@pytest.mark.parametrize(
    ("name", "count", "first"),
    [
        ("wordsim353/combined.csv", 353, ("love", "sex", 6.77)),
        ("MEN/MEN_dataset_natural_form_full", 3000, ("sun", "sunlight", 50.0)),
        ("SimLex-999/SimLex-999.txt", 999, ("old", "new", 1.58)),
    ],
)
def test_word_pairs_as_distributed(data_directory, name, count, first):
    pairs = read_word_pairs(data_directory / "word_similarity" / name)
    assert len(pairs) == count
    assert pairs[0] == first


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("", []),
        ("\ufeffa,b,1\r\n\r\nc,d,-2e1\r\n", [("a", "b", 1.0), ("c", "d", -20.0)]),
        ("first\tsecond\tscore\na\u2028b\tc d\t7", [("a\u2028b", "c d", 7.0)]),
    ],
)
def test_word_pairs_of_other_editors(tmp_path, text, pairs):
    path = tmp_path / "pairs.txt"
    path.write_bytes(text.encode())
    assert read_word_pairs(path) == pairs


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"tiger cat 7\ntiger cat\n", "expected two words and a score, got 'tiger cat'"),
        (b"tiger cat\n", "got 'tiger cat'"),
        (b"a b nan\n", "got 'a b nan'"),
        (b"a,b,1\n,c,2\n", "got ',c,2'"),
        (b"a b 1_0\na b 1_0\n", "got 'a b 1_0'"),
        (b"a\xff b 1\n", "is not UTF-8: byte 1"),
    ],
)
def test_word_pairs_without_scores(tmp_path, content, message):
    path = tmp_path / "pairs.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_word_pairs(path)


def test_a_similarity_without_order_is_nan(model):
    pairs = [("king", "queen", 1), ("king", "man", 1), ("man", "woman", 1)]
    assert np.isnan(word_similarity(model, pairs).spearman)
    assert np.isnan(word_similarity(model, [*pairs, ("man", "queen", np.nan)]).spearman)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: cluster_documents(x, y, runs=0), "runs must be at least 1, got 0"),
        (lambda x, y: cluster_documents(x, y, seed=-1), "seed must be at least 0"),
        (lambda x, y: cluster_documents(x[:0], y[:0]), "and at least one: 0, got 0"),
        (lambda x, y: cluster_documents(x * np.nan, y, spherical=True), "must be finite"),
        (lambda x, y: classify_documents(x, y, x, y[:2]), "test_labels must be one per vector"),
        (lambda x, y: classify_documents(x, y, x * np.inf, y), "test_vectors must be finite"),
        (lambda x, y: classify_documents(x, y, x, y, neighbours=5), "at most 4, got 5"),
    ],
)
def test_scores_that_are_refused(call, message):
    with np.errstate(invalid="ignore"), pytest.raises(ValueError, match=message):
        call(np.eye(4), np.array([0, 0, 1, 1]))


@pytest.mark.parametrize("spherical_means", [False, True])
def test_clusters_of_separate_classes(spherical_means):
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 25)
    vectors = np.eye(6)[labels] + 0.05 * random.normal(size=(100, 6))
    found = cluster_documents(vectors, labels, spherical=spherical_means, runs=20)
    assert found["purity"][0] > 0.8
    best = cluster_documents(vectors, labels, spherical=spherical_means, runs=1, seed=3)
    assert best["mutual_information"][0] <= np.log(4) + 1e-9
    one = cluster_documents(vectors, np.zeros(100, int), runs=1)
    assert one["purity"] == (1, 0)
    with pytest.raises(ValueError, match=r"one per vector, .*: 100, got 3"):
        cluster_documents(vectors, [0, 1, 2])


def test_neighbours_classify():
    labels = np.arange(30) % 3
    vectors = np.eye(3)[labels]
    found = classify_documents(vectors, labels, vectors, np.roll(labels, 1))
    assert found == {"macro_f1": 0, "micro_f1": 0}
    assert classify_documents(vectors, labels, vectors, labels)["micro_f1"] == 1


def test_centered_tables_have_no_common_component():
    random = np.random.default_rng(0)
    table = random.normal(size=(40, 6)) + 3
    table = (table / np.linalg.norm(table, axis=1, keepdims=True)).astype(np.float32)
    documents = np.concatenate([table[:9], np.zeros((1, 6), np.float32)])
    vocabulary = Vocabulary(tuple(f"w{i}" for i in range(40)), "whitespace", special=())
    model = JoseEmbeddings(table, table[::-1], documents, vocabulary)
    centered = model.centered()
    expected = table - table.mean(axis=0)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(centered.words, expected, atol=1e-6)
    np.testing.assert_allclose(centered.contexts, expected[::-1], atol=1e-6)
    assert np.linalg.norm(model.words.mean(axis=0)) > 0.9
    assert np.linalg.norm(centered.words.mean(axis=0)) < 0.3
    assert not centered.documents[9].any()
    np.testing.assert_allclose(np.linalg.norm(centered.documents[:9], axis=1), 1, atol=1e-6)
