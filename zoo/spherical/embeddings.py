"""Trained vectors: neighbours and analogies by cosine, and files that other programs read.

The text and binary formats are those of word2vec, which gensim's ``KeyedVectors`` reads and writes:
a line ``V D``, then a word and its D numbers per row, as text or as float32 bytes. All three tables
with the vocabulary go into one safetensors file.
"""

import json
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from zoo import _checks, extras
from zoo._files import replace_file
from zoo.data import Vocabulary
from zoo.spherical.files import open_bytes, write_bytes

_HEADER = re.compile(rb"\s*([0-9]{1,18})\s+([1-9][0-9]{0,17})\s*")
_LONGEST_LINE, _LONGEST_WORD = 1 << 26, 1 << 16  # bytes, beyond which a file is of another kind
_PART = 1 << 20  # bytes read at a time, whatever the first line promises


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
        self,
        positive: str | Sequence[str],
        negative: str | Sequence[str] = (),
        *,
        count: int = 10,
    ) -> list[tuple[str, float]]:
        """The nearest words by cosine; with ``negative``, of an analogy.

        Args:
            positive: a word, or words whose vectors are added.
            negative: a word, or words whose vectors are subtracted: king - man + woman is
                ``most_similar(["king", "woman"], "man")``.
            count: how many.

        Returns:
            Words and cosines, the nearest first, without those of the question.

        Raises:
            KeyError: if a word is not in the vocabulary.
            ValueError: if there is no word, or ``count`` is negative.
        """
        plus, minus = (
            [self._row(word) for word in ([words] if isinstance(words, str) else words)]
            for words in (positive, negative)
        )
        if not plus + minus:
            raise ValueError("positive must hold at least one word, got none")
        count = _checks.count("count", count)
        query = self.words[plus].sum(axis=0) - self.words[minus].sum(axis=0)
        nearest = _nearest(self.words, query, count + len(plus) + len(minus))
        tokens, asked = self.vocabulary.tokens, {*plus, *minus}
        return [(tokens[row], cosine) for row, cosine in nearest if row not in asked][:count]

    def similar_documents(
        self, query: str | ArrayLike, *, count: int = 10
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
            ValueError: if the vector has another size, or ``count`` is negative.
        """
        count = _checks.count("count", count)
        if isinstance(query, str):
            rows = self.vocabulary.ids_of(query.split())
            if not len(rows):
                raise KeyError(f"no word of {query!r} is in the vocabulary")
            return _nearest(self.documents, self.words[rows].sum(axis=0), count)
        vector = np.asarray(query)
        if vector.dtype.kind in "USO":
            raise TypeError(f"query must be one string of words, or a vector, got {query!r:.80}")
        _checks.shapes(documents=(self.documents, "N D"), query=(vector, "D"))
        return _nearest(self.documents, vector, count)

    def _row(self, word: str) -> int:
        if word not in self.vocabulary.ids:
            raise KeyError(f"{word!r} is not in the vocabulary of this model")
        return self.vocabulary.ids[word]


def save_word2vec(
    path: str | os.PathLike[str], words: Sequence[str], vectors: ArrayLike, *, binary: bool = False
) -> None:
    """Writes vectors as word2vec does; gensim's ``KeyedVectors`` reads them.

    Args:
        path: of the file; one that ends with ``.gz``, ``.xz`` or ``.bz2`` is compressed.
        words: V of them; for documents for instance their numbers.
        vectors: real numbers ``[V, D]``, D ≥ 1.
        binary: float32 bytes instead of digits.

    Raises:
        ValueError: if the lengths differ, a number is too large for float32, or a word is empty,
            has a blank, tab or line break in it, or cannot be written as UTF-8.
        TypeError: if the words are one string, or the vectors are no real numbers.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_word2vec(folder + "/vectors.txt", ["a"], np.ones((1, 2), np.float32))
    ...     print(pathlib.Path(folder, "vectors.txt").read_text().strip())
    1 2
    a 1 1
    """
    if isinstance(words, str):
        raise TypeError(f"words must be a sequence of words, got the string {words!r:.80}")
    given = np.asarray(vectors)
    if not any(jnp.issubdtype(given.dtype, kind) for kind in (jnp.floating, jnp.integer)):
        raise TypeError(f"vectors must be real numbers, got {given.dtype}")
    if given.ndim != 2 or len(given) != len(words) or not given.shape[1]:
        raise ValueError(f"vectors must be [{len(words)}, D], one per word, got {given.shape}")
    with np.errstate(over="ignore"):
        rows = np.ascontiguousarray(given, "<f4")
    if (np.isinf(rows) & (np.abs(given) < np.inf)).any():
        raise ValueError("vectors must fit into float32, whose largest number is 3.4e38")
    lines = [b"%d %d" % rows.shape]
    for word, row in zip(words, rows, strict=True):
        try:
            stored = word.encode()
        except UnicodeEncodeError:
            stored = b""
        if stored.split() != [stored]:
            raise ValueError(
                "words must be UTF-8 without blanks, tabs and line breaks, and not empty, got "
                f"{word!r}"
            )
        numbers = row.tobytes() if binary else " ".join(f"{x:.9g}" for x in row).encode()
        lines.append(stored + b" " + numbers)
    write_bytes(path, b"\n".join([*lines, b""]))


def load_word2vec(
    path: str | os.PathLike[str], *, binary: bool = False
) -> tuple[tuple[str, ...], np.ndarray]:
    """Reads what :func:`save_word2vec`, word2vec, gensim, fastText, GloVe or JoSE's program wrote.

    A text whose first line is not ``V D`` is one of GloVe, without that line. What is before the
    last D numbers of a line is its word, as other programs write some with blanks in them. Of a
    word that was cut inside a character, as word2vec cuts long ones, the rest is U+FFFD.

    Args:
        path: of the file; one that ends with ``.gz``, ``.xz`` or ``.bz2`` is decompressed.
        binary: float32 bytes instead of digits.

    Returns:
        V words, and float32 ``[V, D]``.

    Raises:
        ValueError: if the file is damaged, cut off, or of the other format.
        OSError: if the file is missing or cannot be read.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_word2vec(folder + "/v.bin", ["a"], np.ones((1, 2)), binary=True)
    ...     load_word2vec(folder + "/v.bin", binary=True)
    (('a',), array([[1., 1.]], dtype=float32))
    """
    words: list[str] = []
    numbers = bytearray()
    with open_bytes(path) as file:
        try:
            first = file.readline(_LONGEST_LINE).removeprefix(b"\xef\xbb\xbf")
            fields = first.split()
            if len(fields) == 2 or binary:
                if not (match := _HEADER.fullmatch(first)):
                    raise ValueError(f"the first line must be two counts V D, got {first[:40]!r}")
                count, size = map(int, match.groups())
                for _ in range(count):
                    word, row = _binary_row(file, size) if binary else _text_row(file, size)
                    words.append(word)
                    numbers += row
                if rest := file.read(1 << 10).strip():
                    raise ValueError(f"{rest[:20]!r} follows the last one")
            else:
                size, line = len(fields) - 1, first
                while line.strip():
                    word, row = _row_of(line, size)
                    words.append(word)
                    numbers += row
                    line = file.readline(_LONGEST_LINE)
                if not size > 1 or file.read(1 << 10).strip():
                    raise ValueError("a word and its numbers must be on each line, got none")
        except (ValueError, EOFError) as error:
            raise ValueError(
                f"{path} is not a complete word2vec file with binary={binary}: row {len(words)}: "
                f"{error}; try binary={not binary}, or fetch it again"
            ) from error
    return tuple(words), np.frombuffer(numbers, "<f4").astype(np.float32).reshape(len(words), size)


def save_embeddings(path: str | os.PathLike[str], embeddings: JoseEmbeddings) -> None:
    """Writes all three tables and the words with their counts to a safetensors file.

    Needs the extra ``data`` (safetensors).

    Args:
        path: of the file.
        embeddings: the model.

    Raises:
        ValueError: if the tables do not fit together, or the words have no counts.

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
    _check_tables(**named)
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
        words = json.loads(header["__metadata__"]["vocabulary"])
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError("its vocabulary is no list of words")
        _check_tables(**tables)
        counts = tables.pop("counts")
        vocabulary = Vocabulary(tuple(words), "whitespace", special=(), counts=counts)
        return JoseEmbeddings(**tables, vocabulary=vocabulary)
    except (
        safetensors.SafetensorError,
        ValueError,
        LookupError,
        TypeError,
        RecursionError,
    ) as error:
        raise ValueError(f"{path} is not a file of save_embeddings: {error}") from error


def _check_tables(*, words: Any, contexts: Any, documents: Any, counts: Any) -> None:
    if counts is None:
        raise ValueError("the vocabulary must have counts, by which negatives are drawn; got None")
    tables = {
        "words": (words, "V D"),
        "contexts": (contexts, "V D"),
        "documents": (documents, "N D"),
    }
    _checks.shapes(**tables, counts=(counts, "V"))


def _nearest(table: np.ndarray, query: np.ndarray, count: int) -> list[tuple[int, float]]:
    query = query.astype(np.float64)
    query /= max(float(np.max(np.abs(query), initial=0)), 1e-300)
    length = max(float(np.linalg.norm(query)), 1e-30)
    distances = -(table @ (query / length).astype(table.dtype))
    rows = np.arange(len(distances))
    if 0 < count < len(distances):  # the others need no order; NaN is further than any number
        rows = np.flatnonzero(~(distances > np.partition(distances, count - 1)[count - 1]))
    best = rows[np.argsort(distances[rows], kind="stable")[:count]]
    return [(int(row), float(-distances[row])) for row in best]


def _text_row(file: BinaryIO, size: int) -> tuple[str, bytes]:
    if not (line := file.readline(_LONGEST_LINE)):
        raise EOFError("the file ends before it")
    return _row_of(line, size)


def _row_of(line: bytes, size: int) -> tuple[str, bytes]:
    """The word of a line of text, and its numbers as float32."""
    word, *fields = line.strip().rsplit(None, size)
    numbers = [field.decode("ascii") for field in fields]
    if len(numbers) != size or any("_" in number for number in numbers):
        raise ValueError(f"a word and {size} numbers must be on its line, got {line[:40]!r}")
    if len(parts := word.split()) > 1 and is_number(_decoded(parts[-1])):
        raise ValueError(f"{size} numbers must be on its line, got more in {line[:40]!r}")
    with np.errstate(over="ignore"):
        return _decoded(word), np.array(numbers, "<f4").tobytes()


def _binary_row(file: BinaryIO, size: int) -> tuple[str, bytes]:
    """The word up to the next blank, before it perhaps a line break of the last row; float32."""
    word = bytearray()
    while (byte := file.read(1)) != b" ":
        if not byte or len(word) > _LONGEST_WORD:
            raise EOFError("the file ends within a word" if not byte else "the word never ends")
        word += byte
    name = _decoded(bytes(word.lstrip(b"\n")))
    row = bytearray()
    while missing := 4 * size - len(row):
        if not (part := file.read(min(missing, _PART))):
            raise EOFError("the file ends within its numbers")
        row += part
    return name, bytes(row)


def _decoded(word: bytes) -> str:
    if not word:
        raise ValueError("the word is empty")
    try:
        return word.decode()
    except UnicodeDecodeError as error:
        if error.end < len(word) or error.reason != "unexpected end of data":
            raise
        return word[: error.start].decode() + "\ufffd"


def is_number(text: str) -> bool:
    """Whether a text is a number as other programs write it, without Python's underscores."""
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text
