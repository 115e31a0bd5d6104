"""Trained vectors: neighbours and analogies by cosine, and the file that keeps everything.

All three tables with the vocabulary go into one safetensors file; what other programs read is in
:mod:`zoo.spherical.word2vec`.
"""

import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from zoo import _checks, extras
from zoo._files import replace_file
from zoo.data import Vocabulary
from zoo.spherical.word2vec import nearest, nearest_words, row_of

FREQUENT = 3000  # words whose mean stands for what all share


class JoseEmbeddings(NamedTuple):
    """Unit vectors of a trained model."""

    words: np.ndarray  # float32 [V, D] as centers: the word vectors
    contexts: np.ndarray  # float32 [V, D] as neighbours
    documents: np.ndarray  # float32 [documents, D]; zero for those without a known word
    vocabulary: Vocabulary  # V words by falling count, without special tokens

    def centered(self) -> "JoseEmbeddings":
        """The same with the mean of the 3,000 most frequent words subtracted from each table.

        x ← (x - m) / |x - m|, m the mean of the rows of that table that belong to these words; that
        of all rows for the documents. At first training draws all words to one side, and what they
        share says nothing about which are alike: without it cosines follow human scores better
        while the mean is long (after few passes, on small texts). Not where tables are compared
        with each other (``similar_documents`` of words, ``embed_documents``, further training as
        ``initial``): each has lost another vector then, and dot products are no longer the model's.

        Returns:
            The tables of unit vectors; zero rows stay zero.
        """

        def without(table: np.ndarray, mean: np.ndarray) -> np.ndarray:
            rest = np.where(table.any(axis=1, keepdims=True), table - mean, 0)
            lengths = np.linalg.norm(rest, axis=1, keepdims=True)
            return (rest / np.where(lengths > 0, lengths, 1)).astype(table.dtype)

        words, contexts = (table[:FREQUENT].mean(axis=0) for table in (self.words, self.contexts))
        known = self.documents[self.documents.any(axis=1)]
        documents = known.sum(axis=0) / max(len(known), 1)
        return self._replace(
            words=without(self.words, words),
            contexts=without(self.contexts, contexts),
            documents=without(self.documents, documents),
        )

    def word(self, word: str) -> np.ndarray:
        """The vector of a word, ``[D]``; KeyError if it is not in the vocabulary."""
        return self.words[row_of(self.vocabulary.ids, word)]

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
        found = nearest_words(self.words, self.vocabulary.ids, positive, negative, count=count)
        return [(self.vocabulary.tokens[row], cosine) for row, cosine in found]

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
            return nearest(self.documents, self.words[rows].sum(axis=0), count)
        vector = np.asarray(query)
        if vector.dtype.kind in "USO":
            raise TypeError(f"query must be one string of words, or a vector, got {query!r:.80}")
        _checks.shapes(documents=(self.documents, "N D"), query=(vector, "D"))
        return nearest(self.documents, vector, count)


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
