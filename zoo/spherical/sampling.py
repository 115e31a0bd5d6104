"""Text to chunks of fixed shape for the trainer: subsampling, windows, negatives, and row numbers.

A chunk is a run of at most P words in blocks of T. It names the rows of the tables that it touches
once each, and every word of it by its place among them, so that a step gathers them into small
dense tables, works there, and writes them back. All of it is vectorised and runs in a second thread
while the device computes.

    keep probability   min(1, (√(c / (sN)) + 1) · sN / c) for count c of N words, s = 1e-3
    half window        uniform in 1 … W, cut at the ends of the document
    negatives          P(w) ∝ c^0.75

Random numbers depend on the seed, the pass and the position alone, so a run that continues draws
the same ones.

Source: the program of arXiv 1911.01196, which has them from word2vec (Tomas Mikolov et al., 2013,
arXiv 1310.4546).
"""

import functools
import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from zoo.data.fingerprint import fingerprint
from zoo.data.generators import SafeGenerator, wrap_generator
from zoo.spherical.corpus import EncodedCorpus
from zoo.spherical.options import JoseOptions

_TABLE = 1 << 22  # entries of the table of negatives
_SLAB_CHUNKS = 32  # chunks of words that are drawn at a time
_AHEAD = 4  # chunks made ahead


class Chunk(NamedTuple):
    """Up to P words in G blocks of T; the first axis can be split over devices."""

    word_rows: Any  # int32 [R], each row once; those of the text first; padded with V
    document_rows: Any  # int32 [Q], each row once; padded with the number of documents
    centers: Any  # int32 [G, T + 2W], places in word_rows
    documents: Any  # int32 [G, T], places in document_rows
    negatives: Any  # int32 [G, N], places in word_rows
    left: Any  # int8 [G, T], neighbours before
    right: Any  # int8 [G, T], neighbours behind
    valid: Any  # bool [G, T]
    rate: Any  # float32 [G], the learning rate, G times
    words: Any  # float32 [G], words of the text that were read for it, a G-th each


class Position(NamedTuple):
    """Where the next chunk begins; integers only."""

    epoch: int
    segment: int  # in the order of the epoch
    chunk: int  # of those drawn from there


class ChunkSampler:
    """Iterator of chunks over some passes, with a position that can be saved and restored.

    Args:
        corpus: the documents.
        counts: of the words, ``[V]``.
        options: of the training.
        tokens: the words, by which a position is known to belong to this text.
        depends_on: what else must be the same where a position is restored.
    """

    def __init__(
        self,
        corpus: EncodedCorpus,
        counts: np.ndarray | None,
        options: JoseOptions,
        *,
        tokens: Sequence[str] = (),
        depends_on: Any = None,
    ) -> None:
        self.corpus, self.ids, self.tokens, self.options = corpus, corpus.ids, tokens, options
        self._depends_on = depends_on
        if counts is None or not len(counts) or np.min(counts) < 1:
            raise ValueError(
                f"counts must be ≥ 1 for each word: negatives are drawn by them; got {counts!r:.80}"
            )
        total, counts = counts.sum(), counts.astype(np.float64)
        threshold = options.subsample * total
        keep = (np.sqrt(counts / threshold) + 1) * threshold / counts if threshold else counts
        self.keep = np.minimum(keep, 1).astype(np.float32)
        share = np.cumsum(counts**0.75)
        middles = (np.arange(_TABLE) + 0.5) / _TABLE * share[-1]
        self.table = np.searchsorted(share, middles).clip(0, len(counts) - 1).astype(np.int32)
        size = options.chunk_size
        blocks = size // options.block_size
        self.num_negatives = (2 * options.window + 1) * options.negatives
        text = size + 2 * options.window
        self.text_rows = _multiple(min(text, len(counts)))
        self.word_rows = _multiple(min(text + blocks * self.num_negatives, len(counts)))
        # Documents longer than a slab are cut: its length bounds the memory.
        lengths = np.diff(corpus.starts)
        filled = np.flatnonzero(lengths)
        self.slab = size * _SLAB_CHUNKS
        parts = -(-lengths[filled] // self.slab)
        self.document = np.repeat(filled, parts)
        place = np.arange(len(self.document)) - np.repeat(np.cumsum(parts) - parts, parts)
        self.begin = corpus.starts[self.document] + place * self.slab
        self.length = np.minimum(self.slab, corpus.starts[self.document + 1] - self.begin)
        self.num_documents = len(lengths)
        self.kept = float(np.dot(counts, self.keep))  # words of a pass, on average
        self.spread = float(np.dot(counts, self.keep * (1 - self.keep)))  # and the variance
        mean_length = self.kept / max(len(filled), 1)
        self.document_rows = _multiple(min(size, 16 + int(4 * size / mean_length)))
        self._slots = np.zeros(len(counts), np.int32)
        self._position = Position(0, 0, 0)
        self._ahead: SafeGenerator | None = None

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """What the chunks depend on: the text, the words that its numbers stand for, the options.

        Reads all numbers once, and only for a run that saves or continues.
        """
        text = hashlib.blake2b(np.ascontiguousarray(self.corpus.starts).data, digest_size=12)
        text.update(np.ascontiguousarray(self.ids).data)
        words = hashlib.blake2b(digest_size=12)
        for token in self.tokens:
            words.update(f"{len(token)} {token}".encode("utf-8", "surrogatepass"))
        return {
            "words": len(self.ids),
            "documents": self.num_documents,
            "text": text.hexdigest(),
            "vocabulary": words.hexdigest(),
            **self.options._asdict(),
            **({} if self._depends_on is None else {"content": fingerprint(self._depends_on)}),
        }

    @property
    def most_chunks(self) -> int:
        """Upper bound on the number of chunks (ten standard deviations)."""
        words = len(self.ids)
        kept = min(words, int(self.kept + 10 * math.sqrt(self.spread)))
        # All but the last slab are filled up to less than the longest document.
        longest = int(np.max(self.length, initial=0))
        slabs = 1 + min(-(-words // self.slab) * 2, words // (self.slab - longest + 1))
        by_documents = len(self.document) // max(self.document_rows, 1) + 1
        chunks = -(-kept // self.options.chunk_size) + slabs + by_documents
        return self.options.passes * chunks

    @property
    def expected_steps(self) -> int:
        """About how many chunks there are: of each slab the last one is half full."""
        slabs = -(-len(self.ids) // self.slab)
        return round(self.options.passes * (self.kept / self.options.chunk_size + slabs / 2))

    def __iter__(self) -> "ChunkSampler":
        return self

    def __next__(self) -> Chunk:
        if self._ahead is None:
            make = functools.partial(self._chunks, self._position)
            self._ahead = wrap_generator(make, prefetch=_AHEAD)
        try:
            chunk, self._position = next(self._ahead)
        except StopIteration:
            self.close()
            self._position = Position(self.options.passes, 0, 0)
            raise
        return chunk

    def get_state(self) -> dict[str, Any]:
        """The position, as what JSON can hold, with the settings that it belongs to."""
        return {"position": list(self._position), "sampler": self.identity}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position.

        Raises:
            ValueError: if the state was saved with other text or settings.
        """
        saved = state.get("sampler", {})
        if saved:  # states of earlier versions, which took one step a chunk, do not name it
            saved = {"steps": 1, **saved}
        if "content" in self.identity:  # states of earlier versions do not name it
            saved = {"content": self.identity["content"], **saved}
        differing = [
            f"{name} was {saved.get(name)!r}, is {self.identity.get(name)!r}"
            for name in self.identity | saved
            if saved.get(name) != self.identity.get(name)
        ]
        if differing:
            raise ValueError(
                f"the saved position belongs to another run: {'; '.join(differing)}; use the same "
                "text and settings, or another folder for the checkpoints"
            )
        self.close()
        self._position = Position(*state["position"])

    def close(self) -> None:
        """Ends the thread; reading on starts a new one."""
        if self._ahead is not None:
            self._ahead.close()
        self._ahead = None

    def _chunks(self, position: Position) -> Iterator[tuple[Chunk, Position]]:
        """The chunks from a position on, each with the position behind it."""
        count = len(self.document)
        for epoch in range(position.epoch, self.options.passes):
            order = np.arange(count)
            if self.options.shuffle:
                order = np.random.default_rng([self.options.seed, epoch]).permutation(count)
            ends = np.cumsum(self.length[order])
            segment = position.segment if epoch == position.epoch else 0
            while segment < count:
                before = ends[segment - 1] if segment else 0
                stop = max(segment + 1, int(np.searchsorted(ends, before + self.slab, "right")))
                drawn = self._draw(order[segment:stop], epoch, segment, int(before))
                skip = position.chunk if (epoch, segment) == position[:2] else 0
                for number, chunk in enumerate(drawn, start=1):
                    if number > skip:
                        yield chunk, Position(epoch, segment, number)
                segment = stop

    def _draw(self, segments: np.ndarray, epoch: int, place: int, before: int) -> Iterator[Chunk]:
        """The chunks of some segments; ``before`` words of the epoch were read already."""
        options = self.options
        random = np.random.default_rng([options.seed, epoch, place, 1])
        length = self.length[segments]
        ends = np.cumsum(length)
        read = int(ends[-1])
        source = np.repeat(self.begin[segments] - (ends - length), length) + np.arange(read)
        ids = self.ids[source]
        kept = random.random(read, np.float32) < self.keep[ids]
        ids = ids[kept]
        segment = np.repeat(np.arange(len(segments)), length)[kept]
        total = len(ids)
        if not total:
            return
        bounds = np.searchsorted(segment, np.arange(len(segments) + 1))
        reach = random.integers(1, options.window + 1, total, dtype=np.int32)
        here = np.arange(total)
        left = np.minimum(reach, here - bounds[segment]).astype(np.int8)
        right = np.minimum(reach, bounds[segment + 1] - 1 - here).astype(np.int8)
        around = np.pad(ids, options.window)
        document = self.document[segments][segment].astype(np.int32)
        changes = np.flatnonzero(np.diff(document, prepend=-1))
        passes, start = options.passes, 0
        while start < total:
            stop = min(start + options.chunk_size, total)
            later = changes[np.searchsorted(changes, start, "right") :][: self.document_rows]
            if len(later) == self.document_rows:  # no room for the document that begins there
                stop = min(stop, int(later[-1]))
            share = (epoch + (before + read * (start / total)) / len(self.ids)) / passes
            yield self._chunk(
                around[start : stop + 2 * options.window],
                document[start:stop],
                left[start:stop],
                right[start:stop],
                random,
                rate=options.learning_rate * max(1e-4, 1 - share),
                words=read * (stop - start) / total,
            )
            start = stop

    def _chunk(
        self,
        ids: np.ndarray,
        document: np.ndarray,
        left: np.ndarray,
        right: np.ndarray,
        random: np.random.Generator,
        *,
        rate: float,
        words: float,
    ) -> Chunk:
        size, block, count = self.options.chunk_size, self.options.block_size, len(document)
        missing, blocks = size - count, size // block
        text = np.pad(ids, (0, missing), mode="edge")
        drawn = random.integers(0, _TABLE, blocks * self.num_negatives, dtype=np.int32)
        rows, places = self._unique(np.concatenate([text, self.table[drawn]]))
        begins = np.diff(document, prepend=-1) != 0
        around = np.arange(block + 2 * self.options.window)

        def blocked(values: np.ndarray) -> np.ndarray:
            return np.pad(values, (0, missing)).reshape(blocks, block)

        return Chunk(
            word_rows=_padded(rows, self.word_rows, len(self.keep)),
            document_rows=_padded(document[begins], self.document_rows, self.num_documents),
            centers=places[: len(text)][np.arange(0, size, block)[:, None] + around],
            documents=blocked((np.cumsum(begins) - 1).astype(np.int32)),
            negatives=places[len(text) :].reshape(blocks, -1),
            left=blocked(left),
            right=blocked(right),
            valid=blocked(np.ones(count, bool)),
            rate=np.full(blocks, rate, np.float32),
            words=np.full(blocks, words / blocks, np.float32),
        )

    def _unique(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Each number once, in the order of first occurrence, and the place of each among them.

        Like ``np.unique``, without sorting: a table of all rows remembers the first occurrence.
        """
        order = np.arange(len(ids), dtype=np.int32)
        self._slots[ids[::-1]] = order[::-1]  # the last write stays
        first = self._slots[ids]
        is_first = first == order
        number = np.cumsum(is_first, dtype=np.int32) - 1
        return ids[is_first], number[first]


def _multiple(value: int, of: int = 64) -> int:
    return -(-value // of) * of


def _padded(rows: np.ndarray, size: int, value: int) -> np.ndarray:
    return np.pad(rows, (0, size - len(rows)), constant_values=value).astype(np.int32)
