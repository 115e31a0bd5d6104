"""Damaged, mutated and random files: documented errors alone, and what is read is consistent.

``ZOO_FUZZ=100000 python -m pytest tests/spherical/test_fuzz.py`` tries so many files per reader.
"""

import bz2
import functools
import gzip
import lzma
import os

import numpy as np
import pytest

from tests.edits import edited
from zoo import spherical
from zoo.data import Vocabulary
from zoo.spherical.corpus import read_corpus
from zoo.spherical.evaluation import read_word_pairs
from zoo.spherical.word2vec import load_word2vec, save_word2vec

COUNT = int(os.environ.get("ZOO_FUZZ", "300"))
PARTS = [
    *(b" ", b"\n", b"\r\n", b"\t", b",", b"\0", b"\x1f\x8b", b"\xef\xbb\xbf", b"\xff", b"\xc3"),
    *("\u00a0".encode(), "\u2028".encode(), "é".encode(), b"-1", b"0", b"1_0", b"1e999", b"nan"),
    *(b"1000000000000 2\n", b"2 1000000000000\n", b"9" * 40, b"word", b"SimLex999", b"."),
]


def fuzz(path, seeds, read, check):
    """Every file is read and checked, or refused by a ValueError that names it."""
    random, refusals = np.random.default_rng(0), []
    for number in range(COUNT):
        path.write_bytes(edited(random, seeds[number % len(seeds)], PARTS))
        try:
            result = read(path)
        except ValueError as error:
            refusals.append(str(error))
        else:
            check(result)
    assert 0 < len(refusals) < COUNT
    assert not [message for message in refusals if str(path) not in message]


def consistent(result):
    words, vectors = result
    assert vectors.dtype == np.float32
    assert vectors.shape[0] == len(words)
    assert all(words)


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("ending", ["", ".gz", ".xz", ".bz2"])
def test_vectors(tmp_path, binary, ending):
    plain = tmp_path / "plain"
    save_word2vec(plain, ["na\u00efve", "b", "c"], np.arange(9.0).reshape(3, 3), binary=binary)
    glove = [] if binary else [plain.read_bytes().partition(b"\n")[2]]
    compress = {
        "": bytes,
        ".gz": gzip.compress,
        ".xz": functools.partial(lzma.compress, preset=0),
        ".bz2": bz2.compress,
    }
    seeds = [compress[ending](seed) for seed in (plain.read_bytes(), *glove)]
    # Also two members, of which either may be damaged.
    middle = len(plain.read_bytes()) // 2
    parts = plain.read_bytes()[:middle], plain.read_bytes()[middle:]
    seeds.append(b"".join(map(compress[ending], parts)))
    read = functools.partial(load_word2vec, binary=binary)
    fuzz(tmp_path / f"vectors{ending}", seeds, read, consistent)


def test_word_pairs(tmp_path):
    seeds = (
        b"Word 1,Word 2,Human (mean)\ntiger,cat,7.35\nking,cabbage,.23\n",
        b"word1\tword2\tPOS\tSimLex999\told\nold\tnew\tA\t1.58\t2\n",
        "sun sunlight 50.0\né b -1e3\r\n".encode(),
    )

    def check(pairs):
        for first, second, score in pairs:
            assert first
            assert second
            assert np.isfinite(score)

    fuzz(tmp_path / "pairs", seeds, read_word_pairs, check)


def test_models(tmp_path):
    pytest.importorskip("safetensors")
    path = tmp_path / "model"
    table = np.eye(2, dtype=np.float32)
    vocabulary = Vocabulary(("a", "b"), "whitespace", special=(), counts=np.array([2, 1]))
    spherical.save_embeddings(path, spherical.JoseEmbeddings(table, table, table, vocabulary))

    def check(model):
        assert model.words.shape == model.contexts.shape
        assert len(model.words) == len(model.vocabulary) == len(model.vocabulary.counts)

    fuzz(path, [path.read_bytes()], spherical.load_embeddings, check)


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_corpora(tmp_path, ending):
    text = "a b a b\n\nb a é a\n".encode()
    seed = gzip.compress(text[:9]) + gzip.compress(text[9:]) if ending else text

    def check(corpus):
        vocabulary, encoded = corpus
        assert encoded.starts[-1] == len(encoded.ids) == vocabulary.counts.sum()

    def read(path):
        try:
            return read_corpus(path, min_count=1)
        except ValueError as error:
            if "min_count" in str(error):  # too few words are no fault of the file
                raise ValueError(path) from error
            raise

    fuzz(tmp_path / f"text{ending}", [seed], read, check)
