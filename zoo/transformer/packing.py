"""Sentences to rows of one length: [CLS] sentence sentence … [SEP] [PAD] [PAD].

Greedy and in order: a sentence that does not fit any more opens the next row, so that none is torn
apart; one that fits no row at all is cut. This is RoBERTa's FULL-SENTENCES.

Source: https://kexue.fm/archives/7055; Yinhan Liu et al., «RoBERTa», 2019, arXiv 1907.11692.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class PackedRows(NamedTuple):
    """N rows of T positions."""

    ids: np.ndarray  # int32 [N, T]
    word_starts: np.ndarray  # bool [N, T], first tokens of words; false at special tokens
    document_ids: np.ndarray  # int32 [N, T], 1, 2, … in each row; 0 at padding


def pack_sentences(
    sentences: Iterable[ArrayLike],
    *,
    length: int,
    word_starts: Sequence[ArrayLike] | None = None,
    documents: Sequence[int] | None = None,
    cls_id: int = 101,
    sep_id: int = 102,
    pad_id: int = 0,
) -> PackedRows:
    """Packs sentences into rows, see the module docstring.

    A row may hold the end of one document and the beginning of the next. ``document_ids`` keeps
    them apart in the model; without it they see each other, as in the original.

    Args:
        sentences: arrays of ids ``[n]`` without special tokens; empty ones are passed over.
        length: T, at least 3.
        word_starts: for each sentence an array ``[n]`` bool; None: every token starts a word.
        documents: for each sentence the number of its document; None: all are one document.
        cls_id: id of [CLS], which belongs to the first document of the row.
        sep_id: id of [SEP], which belongs to the last one.
        pad_id: id of [PAD].

    Returns:
        The rows.

    Raises:
        ValueError: if the length is too small, or the iterables do not have one entry a sentence.

    >>> pack_sentences([[7, 8], [9, 10, 11]], length=6).ids
    array([[101,   7,   8, 102,   0,   0],
           [101,   9,  10,  11, 102,   0]], dtype=int32)
    """
    if length < 3:
        raise ValueError(f"length must be at least 3 ([CLS], a token, [SEP]), got {length}")
    tokens = [np.asarray(sentence) for sentence in sentences]
    if word_starts is None:
        word_starts = [np.ones(len(ids), bool) for ids in tokens]
    if documents is None:
        documents = [0] * len(tokens)
    if not len(tokens) == len(word_starts) == len(documents):
        raise ValueError(
            f"word_starts and documents must have one entry for each of {len(tokens)} sentences, "
            f"got {len(word_starts)} and {len(documents)}"
        )
    rows = _Rows(length, cls_id, sep_id, pad_id)
    for ids, starts, document in zip(tokens, word_starts, documents, strict=True):
        starts = np.asarray(starts, bool)
        if starts.shape != ids.shape or ids.ndim != 1:
            raise ValueError(
                f"sentences must be [n] with word_starts of the same shape, got {ids.shape} and "
                f"{starts.shape}"
            )
        if len(ids):
            rows.add(ids[: length - 2], starts[: length - 2], document)
    return rows.finish()


class _Rows:
    """The rows that are closed, and the one that is open."""

    def __init__(self, length: int, cls_id: int, sep_id: int, pad_id: int):
        self.length, self.cls_id, self.sep_id, self.pad_id = length, cls_id, sep_id, pad_id
        self.rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._open()

    def _open(self) -> None:
        self.used = 1
        self.last: int | None = None
        self.ids = np.full(self.length, self.pad_id, np.int32)
        self.ids[0] = self.cls_id
        self.starts = np.zeros(self.length, bool)
        self.documents = np.zeros(self.length, np.int32)
        self.documents[0] = 1

    def add(self, ids: np.ndarray, starts: np.ndarray, document: int) -> None:
        if self.used + len(ids) > self.length - 1:
            self._close()
        place = slice(self.used, self.used + len(ids))
        number = self.documents[self.used - 1]
        self.ids[place], self.starts[place] = ids, starts
        self.documents[place] = number + (self.last is not None and self.last != document)
        self.used, self.last = place.stop, document

    def _close(self) -> None:
        self.ids[self.used] = self.sep_id
        self.documents[self.used] = self.documents[self.used - 1]
        self.rows.append((self.ids, self.starts, self.documents))
        self._open()

    def finish(self) -> PackedRows:
        if self.used > 1:
            self._close()
        if not self.rows:
            nothing = np.zeros((0, self.length), np.int32)
            return PackedRows(nothing, nothing.astype(bool), nothing)
        return PackedRows(*map(np.stack, zip(*self.rows, strict=True)))
