"""Packs sentences into rows of one length: [CLS] sentence sentence … [SEP] [PAD] [PAD].

Greedy and in order: a sentence that no longer fits opens the next row, so that none is split; one
that fits no row is truncated. This is RoBERTa's FULL-SENTENCES.

Source: https://kexue.fm/archives/7055; Yinhan Liu et al., "RoBERTa", 2019, arXiv 1907.11692.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from zoo._checks import count

LARGEST = 2**31 - 1  # id


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
    them apart in the model; without it they attend to each other, as in the original.

    Args:
        sentences: arrays of ids ``[n]`` without special tokens; empty ones are skipped.
        length: T, at least 3.
        word_starts: for each sentence an array ``[n]`` bool; None: every token starts a word.
        documents: for each sentence the number of its document; None: all are one document.
        cls_id: id of [CLS], which belongs to the first document of the row.
        sep_id: id of [SEP], which belongs to the last one.
        pad_id: id of [PAD].

    Returns:
        The rows.

    Raises:
        ValueError: if the length is too small, an id is none, or the sequences do not have one
            entry per sentence.

    >>> pack_sentences([[7, 8], [9, 10, 11]], length=6).ids
    array([[101,   7,   8, 102,   0,   0],
           [101,   9,  10,  11, 102,   0]], dtype=int32)
    """
    length = count("length", length, at_least=3)  # [CLS], a token, [SEP]
    for name, special in {"cls_id": cls_id, "sep_id": sep_id, "pad_id": pad_id}.items():
        count(name, special, at_most=LARGEST)
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
    rows: list[list[tuple[np.ndarray, np.ndarray, int]]] = []
    room = 0
    for ids, starts, document in zip(tokens, word_starts, documents, strict=True):
        starts = np.asarray(starts, bool)
        if starts.shape != ids.shape or ids.ndim != 1:
            raise ValueError(
                f"sentences must be [n] with word_starts of the same shape, got {ids.shape} and "
                f"{starts.shape}"
            )
        if len(ids) and (ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() > LARGEST):
            raise ValueError(
                f"sentences must hold integers from 0 to {LARGEST}, got {ids!r:.80} of {ids.dtype}"
            )
        ids, starts = ids[: length - 2].astype(np.int32), starts[: length - 2]
        if len(ids) > room:
            rows.append([])
            room = length - 2
        if len(ids):
            rows[-1].append((ids, starts, document))
            room -= len(ids)
    packed = PackedRows(
        np.full((len(rows), length), pad_id, np.int32),
        np.zeros((len(rows), length), bool),
        np.zeros((len(rows), length), np.int32),
    )
    for i, row in enumerate(rows):
        ids_of, starts_of, document_of = zip(*row, strict=True)
        numbers = 1 + np.cumsum(np.diff(document_of, prepend=document_of[0]) != 0)
        inner = np.concatenate(ids_of)
        sep = 1 + len(inner)
        packed.ids[i, : sep + 1] = np.r_[cls_id, inner, sep_id]
        packed.word_starts[i, 1:sep] = np.concatenate(starts_of)
        packed.document_ids[i, 1:sep] = np.repeat(numbers, [len(ids) for ids in ids_of])
        packed.document_ids[i, [0, sep]] = 1, numbers[-1]
    return packed
