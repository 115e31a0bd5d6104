"""Word vectors in the formats of word2vec, with their neighbours and analogies by cosine.

The text and binary formats are those that gensim's ``KeyedVectors`` reads and writes: a line
``V D``, then a word and its D numbers per row, as text or as float32 bytes.
"""

import functools
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import BinaryIO, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from zoo import _checks
from zoo.spherical.files import open_bytes, write_bytes

Errors = Literal["strict", "replace", "ignore"]

_HEADER = re.compile(rb"\s*([0-9]{1,18})\s+([1-9][0-9]{0,17})\s*")
_LONGEST_LINE, _LONGEST_WORD = 1 << 18, 1 << 16  # bytes, beyond which a file is of another kind
_PART = 1 << 20  # bytes read at a time, whatever the first line promises


class _WordVectors(NamedTuple):
    words: tuple[str, ...]  # V
    vectors: np.ndarray  # float32 [V, D], of any lengths


class WordVectors(_WordVectors):
    """Words ``[V]`` and their vectors, float32 ``[V, D]``: ``words, vectors = load_word2vec(...)``.

    Of equal words the first one is found.
    """

    @functools.cached_property
    def ids(self) -> dict[str, int]:
        """The row of each word."""
        return {word: row for row, word in reversed([*enumerate(self.words)])}

    @functools.cached_property
    def directions(self) -> np.ndarray:
        """The unit vectors, ``[V, D]``; zero for a zero vector."""
        vectors = self.vectors.astype(np.float64)
        lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
        return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)

    def word(self, word: str) -> np.ndarray:
        """The vector of a word, ``[D]``; KeyError if there is no such word."""
        return self.vectors[row_of(self.ids, word)]

    def most_similar(
        self,
        positive: str | Sequence[str],
        negative: str | Sequence[str] = (),
        *,
        count: int = 10,
    ) -> list[tuple[str, float]]:
        """The nearest words by cosine, see :meth:`zoo.spherical.JoseEmbeddings.most_similar`.

        The directions of the words of the question are added, whatever their lengths, as gensim
        does.
        """
        found = nearest_words(self.directions, self.ids, positive, negative, count=count)
        return [(self.words[row], cosine) for row, cosine in found]


def row_of(ids: Mapping[str, int], word: str) -> int:
    """The row of a word; KeyError if there is no such word."""
    if word not in ids:
        raise KeyError(f"{word!r} is not in the vocabulary of this model")
    return ids[word]


def nearest_words(
    table: np.ndarray,
    ids: Mapping[str, int],
    positive: str | Sequence[str],
    negative: str | Sequence[str] = (),
    *,
    count: int = 10,
) -> list[tuple[int, float]]:
    """Rows of unit vectors nearest to a sum and difference of some, without these; and cosines."""
    plus, minus = (
        [row_of(ids, word) for word in ([words] if isinstance(words, str) else words)]
        for words in (positive, negative)
    )
    if not plus + minus:
        raise ValueError("positive must hold at least one word, got none")
    count = _checks.count("count", count)
    query = table[plus].sum(axis=0) - table[minus].sum(axis=0)
    found = nearest(table, query, count + len(plus) + len(minus))
    return [(row, cosine) for row, cosine in found if row not in {*plus, *minus}][:count]


def nearest(table: np.ndarray, query: np.ndarray, count: int) -> list[tuple[int, float]]:
    """The rows with the largest cosines, and these; NaN is further than any number."""
    query = query.astype(np.float64)
    query /= max(float(np.max(np.abs(query), initial=0)), 1e-300)
    length = max(float(np.linalg.norm(query)), 1e-30)
    distances = -(table @ (query / length).astype(table.dtype))
    rows = np.arange(len(distances))
    if 0 < count < len(distances):  # the others need no order; NaN is further than any number
        rows = np.flatnonzero(~(distances > np.partition(distances, count - 1)[count - 1]))
    best = rows[np.argsort(distances[rows], kind="stable")[:count]]
    return [(int(row), float(-distances[row])) for row in best]


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

    >>> import pathlib, tempfile
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
    path: str | os.PathLike[str],
    *,
    binary: bool = False,
    limit: int | None = None,
    errors: Errors = "strict",
) -> WordVectors:
    """Reads what :func:`save_word2vec`, word2vec, gensim, fastText, GloVe or JoSE's program wrote.

    A text whose first line is not ``V D`` is one of GloVe, without that line. What is before the
    last D numbers of a line is its word, as other programs write some with blanks in them.

    Args:
        path: of the file; one that ends with ``.gz``, ``.xz`` or ``.bz2`` is decompressed.
        binary: float32 bytes instead of digits.
        limit: reads the first so many words, the most frequent ones in most files, and does not
            look at the rest.
        errors: what becomes of bytes that are not UTF-8: ``"strict"`` refuses them, but of a word
            that was cut inside a character, as word2vec cuts long ones, the rest is U+FFFD;
            ``"replace"`` makes each U+FFFD, ``"ignore"`` leaves them out.

    Returns:
        ``WordVectors``: V words, and float32 ``[V, D]``.

    Raises:
        ValueError: if the file is damaged, cut off, or of the other format.
        OSError: if the file is missing or cannot be read.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_word2vec(folder + "/v.bin", ["a", "b"], np.eye(2), binary=True)
    ...     load_word2vec(folder + "/v.bin", binary=True).most_similar("a")
    [('b', 0.0)]
    """
    _checks.choice("errors", errors, ("strict", "replace", "ignore"))
    most = math.inf if limit is None else _checks.count("limit", limit, at_least=1)
    words: list[str] = []
    numbers = bytearray()

    def add(line: bytes | None = None) -> None:
        if binary:
            word, row = _binary_row(file, size)
        else:
            word, row = _row_of(file.readline(_LONGEST_LINE) if line is None else line, size)
        words.append(_decoded(word, errors))
        numbers.extend(row)

    with open_bytes(path) as file:
        try:
            first = file.readline(_LONGEST_LINE).removeprefix(b"\xef\xbb\xbf")
            fields = first.split()
            if len(fields) == 2 or binary:
                if not (match := _HEADER.fullmatch(first)):
                    raise ValueError(f"the first line must be two counts V D, got {first[:40]!r}")
                count, size = map(int, match.groups())
                while len(words) < min(count, most):
                    add()
                rest = file.read(1 << 10).strip() if count <= most else b""
                if rest:
                    raise ValueError(f"{rest[:20]!r} follows the last one")
            else:
                size, line = len(fields) - 1, first
                while line.strip() and len(words) < most:
                    add(line)
                    line = file.readline(_LONGEST_LINE) if len(words) < most else b""
                rest = file.read(1 << 10).strip() if len(words) < most else b""
                if not size > 1 or rest:
                    raise ValueError("a word and its numbers must be on each line, got none")
        except (ValueError, EOFError) as error:
            raise ValueError(
                f"{path} is not a complete word2vec file with binary={binary}: row {len(words)}: "
                f"{error}; try binary={not binary}, or fetch it again"
            ) from error
    table = np.frombuffer(numbers, "<f4").astype(np.float32).reshape(len(words), size)
    return WordVectors(tuple(words), table)


def _row_of(line: bytes, size: int) -> tuple[bytes, bytes]:
    """The word of a line of text, and its numbers as float32."""
    if not line:
        raise EOFError("the file ends before it")
    word, *fields = line.strip().rsplit(None, size)
    numbers = [field.decode("ascii") for field in fields]
    if len(numbers) != size or any("_" in number for number in numbers):
        raise ValueError(f"a word and {size} numbers must be on its line, got {line[:40]!r}")
    if len(parts := word.split()) > 1 and is_number(parts[-1].decode("latin-1")):
        raise ValueError(f"{size} numbers must be on its line, got more in {line[:40]!r}")
    with np.errstate(over="ignore"):
        return word, np.array(numbers, "<f4").tobytes()


def _binary_row(file: BinaryIO, size: int) -> tuple[bytes, bytes]:
    """The word up to the next blank, before it perhaps a line break of the last row; float32."""
    word = bytearray()
    while (byte := file.read(1)) != b" ":
        if not byte or len(word) > _LONGEST_WORD:
            raise EOFError("the file ends within a word" if not byte else "the word never ends")
        word += byte
    row = bytearray()
    while missing := 4 * size - len(row):
        if not (part := file.read(min(missing, _PART))):
            raise EOFError("the file ends within its numbers")
        row += part
    return bytes(word.lstrip(b"\n")), bytes(row)


def _decoded(word: bytes, errors: Errors) -> str:
    if not word:
        raise ValueError("the word is empty")
    if errors != "strict":
        return word.decode(errors=errors)
    try:
        return word.decode()
    except UnicodeDecodeError as error:
        if error.end < len(word) or error.reason != "unexpected end of data":
            raise ValueError(f"{error}; errors='replace' reads it all the same") from error
        return word[: error.start].decode() + "\ufffd"


def is_number(text: str) -> bool:
    """Whether a text is a number as other programs write it, without Python's underscores."""
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text
