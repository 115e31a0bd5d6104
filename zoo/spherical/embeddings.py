"""Trained vectors: neighbours and analogies by cosine, and files that other programs read.

The text and binary formats are those of word2vec, which gensim's ``KeyedVectors`` reads and writes:
a line ``V D``, then a word and its D numbers per row, as text or as float32 bytes. All three tables
with the vocabulary go into one safetensors file.
"""

import json
import os
import pathlib
from collections.abc import Sequence
from typing import IO, NamedTuple

import numpy as np

from zoo import extras
from zoo._files import replace_file
from zoo.data import Vocabulary


class JoseEmbeddings(NamedTuple):
    """Unit vectors of a trained model."""

    words: np.ndarray  # float32 [V, D] as centers: the word vectors
    contexts: np.ndarray  # float32 [V, D] as neighbours
    documents: np.ndarray  # float32 [documents, D]; zero for those without a known word
    vocabulary: Vocabulary  # V words by falling count, without special tokens

    def word(self, word: str) -> np.ndarray:
        """The vector of a word, ``[D]``; KeyError if it is not in the vocabulary."""
        return self.words[self._row(word)]

    def most_similar(
        self, positive: str | Sequence[str], negative: Sequence[str] = (), *, count: int = 10
    ) -> list[tuple[str, float]]:
        """The nearest words by cosine; with ``negative``, of an analogy.

        Args:
            positive: a word, or words whose vectors are added.
            negative: words whose vectors are subtracted: king - man + woman is
                ``most_similar(["king", "woman"], ["man"])``.
            count: how many.

        Returns:
            Words and cosines, the nearest first, without those of the question.

        Raises:
            KeyError: if a word is not in the vocabulary.
        """
        plus = [self._row(w) for w in ([positive] if isinstance(positive, str) else positive)]
        minus = [self._row(w) for w in negative]
        query = self.words[plus].sum(axis=0) - self.words[minus].sum(axis=0)
        nearest = _nearest(self.words, query, count + len(plus) + len(minus))
        tokens, asked = self.vocabulary.tokens, {*plus, *minus}
        return [(tokens[row], cosine) for row, cosine in nearest if row not in asked][:count]

    def similar_documents(
        self, query: str | np.ndarray, *, count: int = 10
    ) -> list[tuple[int, float]]:
        """The documents nearest to words or to a vector, by cosine.

        Args:
            query: words of the vocabulary with blanks between them (others are passed over), or
                a vector ``[D]``, such as a row of ``documents``.
            count: how many.

        Returns:
            Line numbers from 0, and cosines; the nearest first.

        Raises:
            KeyError: if no word is in the vocabulary.
        """
        if isinstance(query, str):
            rows = self.vocabulary.ids_of(query.split())
            if not len(rows):
                raise KeyError(f"no word of {query!r} is in the vocabulary")
            return _nearest(self.documents, self.words[rows].sum(axis=0), count)
        return _nearest(self.documents, query, count)

    def _row(self, word: str) -> int:
        if word not in self.vocabulary.ids:
            raise KeyError(f"{word!r} is not in the vocabulary of this model")
        return self.vocabulary.ids[word]


def save_word2vec(
    path: str | os.PathLike[str], words: Sequence[str], vectors: np.ndarray, *, binary: bool = False
) -> None:
    """Writes vectors as word2vec does; gensim's ``KeyedVectors`` reads them.

    Args:
        path: of the file.
        words: V of them; for documents for instance their numbers.
        vectors: ``[V, D]``.
        binary: float32 bytes instead of digits.

    Raises:
        ValueError: if the lengths differ, or a word is empty or has white space in it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_word2vec(folder + "/vectors.txt", ["a"], np.ones((1, 2), np.float32))
    ...     print(pathlib.Path(folder, "vectors.txt").read_text().strip())
    1 2
    a 1 1
    """
    vectors = np.ascontiguousarray(vectors, "<f4")
    if vectors.ndim != 2 or len(vectors) != len(words):
        raise ValueError(f"vectors must be [{len(words)}, D], one per word, got {vectors.shape}")
    if bad := [word for word in words if not word or word.split() != [word]]:
        raise ValueError(f"words must be without white space, got {bad[0]!r}")
    lines = [b"%d %d" % vectors.shape]
    for word, vector in zip(words, vectors, strict=True):
        numbers = vector.tobytes() if binary else " ".join(f"{x:.9g}" for x in vector).encode()
        lines.append(word.encode() + b" " + numbers)
    replace_file(path, b"\n".join([*lines, b""]))


def load_word2vec(
    path: str | os.PathLike[str], *, binary: bool = False
) -> tuple[tuple[str, ...], np.ndarray]:
    """Reads what :func:`save_word2vec`, word2vec, gensim or JoSE's program wrote.

    Args:
        path: of the file.
        binary: float32 bytes instead of digits.

    Returns:
        V words, and float32 ``[V, D]``.

    Raises:
        ValueError: if the file is damaged, cut off, or of the other format.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_word2vec(folder + "/v.bin", ["a"], np.ones((1, 2)), binary=True)
    ...     load_word2vec(folder + "/v.bin", binary=True)
    (('a',), array([[1., 1.]], dtype=float32))
    """
    words, rows = [], []
    with open(path, "rb") as file:
        try:
            count, size = map(int, file.readline().split())
            for _ in range(count):
                if binary:
                    words.append(_binary_word(file))
                    rows.append(np.frombuffer(file.read(4 * size), "<f4", size))
                else:
                    word, *numbers = file.readline().decode().split()
                    words.append(word)
                    rows.append(np.array(numbers, np.float32).reshape(size))
            if rest := file.read(1 << 10).strip():
                raise ValueError(f"{rest[:20]!r} follows the last one")
        except (ValueError, EOFError) as error:
            raise ValueError(
                f"{path} is not a complete word2vec file with binary={binary}: row {len(words)}: "
                f"{error}; try binary={not binary}, or fetch it again"
            ) from error
    return tuple(words), np.array(rows, np.float32).reshape(count, size)


def save_embeddings(path: str | os.PathLike[str], embeddings: JoseEmbeddings) -> None:
    """Writes all three tables and the words with their counts to a safetensors file.

    Needs the extra ``data`` (safetensors).

    Args:
        path: of the file.
        embeddings: the model.

    >>> import tempfile
    >>> table = np.eye(2, dtype=np.float32)
    >>> vocabulary = Vocabulary(("a", "b"), "whitespace", special=(), counts=np.array([2, 1]))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_embeddings(folder + "/m", JoseEmbeddings(table, table, table, vocabulary))
    ...     load_embeddings(folder + "/m").vocabulary.tokens
    ('a', 'b')
    """
    *tables, vocabulary = embeddings
    named = dict(zip(embeddings._fields, tables, strict=False)) | {"counts": vocabulary.counts}
    content = extras.require("safetensors.numpy", "data").save(
        {name: np.ascontiguousarray(table) for name, table in named.items()},
        metadata={"vocabulary": json.dumps(vocabulary.tokens)},
    )
    replace_file(path, content)


def load_embeddings(path: str | os.PathLike[str]) -> JoseEmbeddings:
    """Reads what :func:`save_embeddings` wrote.

    Needs the extra ``data`` (safetensors).

    Args:
        path: of the file.

    Returns:
        The model; its vocabulary splits texts at white space.

    Raises:
        ValueError: if the file is damaged or holds something else.

    >>> load_embeddings("/dev/null")
    Traceback (most recent call last):
    ...
    ValueError: /dev/null is not a file of save_embeddings: ...
    """
    safetensors = extras.require("safetensors", "data")
    try:
        data = pathlib.Path(path).read_bytes()
        tables = extras.require("safetensors.numpy", "data").load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        words = tuple(json.loads(header["__metadata__"]["vocabulary"]))
        vocabulary = Vocabulary(words, "whitespace", special=(), counts=tables.pop("counts"))
        return JoseEmbeddings(**tables, vocabulary=vocabulary)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a file of save_embeddings: {error}") from error


def _nearest(table: np.ndarray, query: np.ndarray, count: int) -> list[tuple[int, float]]:
    cosines = table @ (query / max(float(np.linalg.norm(query)), 1e-30))
    best = np.argsort(-cosines, kind="stable")[:count]
    return [(int(row), float(cosines[row])) for row in best]


def _binary_word(file: IO[bytes]) -> str:
    """The bytes up to the next blank; the line break of the row before may be in front."""
    word = bytearray()
    while (byte := file.read(1)) != b" ":
        if not byte:
            raise EOFError("the file ends within a word")
        word += byte
    return word.lstrip(b"\n").decode()
