"""Files that others read, neighbours, analogies, and the scores."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest

from zoo import spherical
from zoo.data import Vocabulary
from zoo.spherical import JoseEmbeddings
from zoo.spherical.embeddings import load_word2vec, save_word2vec
from zoo.spherical.evaluation import (
    classify_documents,
    cluster_documents,
    read_word_pairs,
    word_similarity,
)

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
        with pytest.raises(ValueError, match=r"not a complete word2vec file .* row 4"):
            load_word2vec(path, binary=binary)
    with pytest.raises(ValueError, match="one per word"):
        save_word2vec(path, words[1:], model.words)
    with pytest.raises(ValueError, match="without white space, got 'a b'"):
        save_word2vec(path, ["a b"], model.words[:1])


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


def test_word_pairs_without_scores(tmp_path):
    path = tmp_path / "pairs.txt"
    path.write_text("tiger cat 7\ntiger cat\n")
    with pytest.raises(ValueError, match="expected two words and a score, got 'tiger cat'"):
        read_word_pairs(path)


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
    with pytest.raises(ValueError, match="labels must be one per vector: 100, got 3"):
        cluster_documents(vectors, [0, 1, 2])


def test_neighbours_classify():
    labels = np.arange(30) % 3
    vectors = np.eye(3)[labels]
    found = classify_documents(vectors, labels, vectors, np.roll(labels, 1))
    assert found == {"macro_f1": 0, "micro_f1": 0}
    assert classify_documents(vectors, labels, vectors, labels)["micro_f1"] == 1
