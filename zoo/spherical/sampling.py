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

import collections
import concurrent.futures
import math
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from zoo.spherical.corpus import EncodedCorpus

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
    """Where the next chunk begins; whole numbers only."""

    epoch: int
    segment: int  # in the order of the epoch
    chunk: int  # of those drawn from there


class ChunkSampler:
    """Iterator of chunks over some passes, with a position that can be saved and restored.

    Args:
        corpus: the documents.
        counts: of the words, ``[V]``.
        window: W.
        negatives: K a pair.
        passes: over the corpus.
        learning_rate: at the start; falls linearly with the words read, to 1e-4 of it.
        subsample: s; 0 keeps every word.
        shuffle: documents in a new order each pass, instead of the order of the corpus.
        chunk_size: P.
        block_size: T, a divisor of P.
        seed: of everything random here.
    """

    def __init__(
        self,
        corpus: EncodedCorpus,
        counts: np.ndarray,
        *,
        window: int,
        negatives: int,
        passes: int,
        learning_rate: float,
        subsample: float,
        shuffle: bool,
        chunk_size: int,
        block_size: int,
        seed: int,
    ) -> None:
        self.ids, self.passes, self.rate = corpus.ids, passes, learning_rate
        self.window, self.chunk_size, self.block_size = window, chunk_size, block_size
        self.shuffle, self.seed = shuffle, seed
        self.total = len(corpus.ids)
        total, counts = max(counts.sum(), 1), counts.astype(np.float64)
        threshold = subsample * total
        keep = (np.sqrt(counts / threshold) + 1) * threshold / counts if subsample else counts
        self.keep = np.minimum(keep, 1).astype(np.float32)
        share = np.cumsum(counts**0.75)
        middles = (np.arange(_TABLE) + 0.5) / _TABLE * share[-1]
        self.table = np.searchsorted(share, middles).clip(0, len(counts) - 1).astype(np.int32)
        blocks = chunk_size // block_size
        self.num_negatives = (2 * window + 1) * negatives
        text = chunk_size + 2 * window
        self.text_rows = _multiple(min(text, len(counts)))
        self.word_rows = _multiple(min(text + blocks * self.num_negatives, len(counts)))
        # Documents longer than a slab are cut: its length bounds the memory.
        lengths = np.diff(corpus.starts)
        filled = np.flatnonzero(lengths)
        self.slab = chunk_size * _SLAB_CHUNKS
        parts = -(-lengths[filled] // self.slab)
        self.document = np.repeat(filled, parts)
        place = np.arange(len(self.document)) - np.repeat(np.cumsum(parts) - parts, parts)
        self.begin = corpus.starts[self.document] + place * self.slab
        self.length = np.minimum(self.slab, corpus.starts[self.document + 1] - self.begin)
        self.num_documents = len(lengths)
        self.kept = float(np.dot(counts, self.keep))  # words of a pass, on average
        mean_length = self.kept / max(len(filled), 1)
        self.document_rows = _multiple(min(chunk_size, 16 + int(4 * chunk_size / mean_length)))
        self._identity = {
            "words": self.total,
            "documents": self.num_documents,
            "vocabulary": zlib.crc32(counts.tobytes()),
            "window": window,
            "negatives": negatives,
            "passes": passes,
            "learning_rate": learning_rate,
            "subsample": subsample,
            "shuffle": shuffle,
            "chunk_size": chunk_size,
            "block_size": block_size,
            "seed": seed,
        }
        self._slots = np.zeros(len(counts), np.int32)
        self._position = Position(0, 0, 0)
        self._ahead: collections.deque[concurrent.futures.Future[Any]] = collections.deque()
        self._thread: concurrent.futures.ThreadPoolExecutor | None = None

    @property
    def most_chunks(self) -> int:
        """No fewer than there are; that chance keeps so many more words is out of the question."""
        kept = min(self.total, int(self.kept + 10 * math.sqrt(self.total)))
        slabs = -(-self.total // self.slab) * 2 + 1
        by_documents = len(self.document) // max(self.document_rows, 1) + 1
        return self.passes * (-(-kept // self.chunk_size) + slabs + by_documents)

    def __iter__(self) -> "ChunkSampler":
        return self

    def __next__(self) -> Chunk:
        if self._thread is None:
            self._thread = concurrent.futures.ThreadPoolExecutor(1, "zoo-chunks")
            source = self._chunks(self._position)
            self._advance = lambda: next(source, None)
            self._ahead.extend(self._thread.submit(self._advance) for _ in range(_AHEAD))
        item = self._ahead.popleft().result()
        self._ahead.append(self._thread.submit(self._advance))
        if item is None:
            self.close()
            self._position = Position(self.passes, 0, 0)
            raise StopIteration
        chunk, self._position = item
        return chunk

    def get_state(self) -> dict[str, Any]:
        """The position, as what JSON can hold, and whose it is."""
        return {"position": list(self._position), "sampler": self._identity}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position.

        Raises:
            ValueError: if the state was saved with other text or settings.
        """
        saved = state.get("sampler", {})
        differing = [
            f"{name} was {saved.get(name)!r}, is {value!r}"
            for name, value in self._identity.items()
            if saved.get(name) != value
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
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
        self._thread = None
        self._ahead.clear()

    def _chunks(self, position: Position) -> Iterator[tuple[Chunk, Position]]:
        """The chunks from a position on, each with the position behind it."""
        count = len(self.document)
        for epoch in range(position.epoch, self.passes):
            order = np.arange(count)
            if self.shuffle:
                order = np.random.default_rng([self.seed, epoch]).permutation(count)
            ends = np.cumsum(self.length[order])
            segment = position.segment if epoch == position.epoch else 0
            while segment < count:
                before = ends[segment - 1] if segment else 0
                stop = max(segment + 1, int(np.searchsorted(ends, before + self.slab, "right")))
                drawn = self._draw(order[segment:stop], epoch, segment, int(before))
                skip = position.chunk if Position(epoch, segment, 0)[:2] == position[:2] else 0
                for number, chunk in enumerate(drawn, start=1):
                    if number > skip:
                        yield chunk, Position(epoch, segment, number)
                segment = stop

    def _draw(self, segments: np.ndarray, epoch: int, place: int, before: int) -> Iterator[Chunk]:
        """The chunks of some segments."""
        random = np.random.default_rng([self.seed, epoch, place, 1])
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
        reach = random.integers(1, self.window + 1, total, dtype=np.int32)
        here = np.arange(total)
        left = np.minimum(reach, here - bounds[segment]).astype(np.int8)
        right = np.minimum(reach, bounds[segment + 1] - 1 - here).astype(np.int8)
        around = np.pad(ids, self.window)
        document = self.document[segments][segment].astype(np.int32)
        changes = np.flatnonzero(np.diff(document, prepend=-1))
        start = 0
        while start < total:
            stop = min(start + self.chunk_size, total)
            later = changes[np.searchsorted(changes, start, "right") :][: self.document_rows]
            if len(later) == self.document_rows:  # no room for the document that begins there
                stop = min(stop, int(later[-1]))
            done = before + read * (start / total)
            share = (epoch * self.total + done) / (self.passes * self.total)
            yield self._chunk(
                around[start : stop + 2 * self.window],
                document[start:stop],
                left[start:stop],
                right[start:stop],
                random,
                rate=self.rate * max(1e-4, 1 - share),
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
        size, block, count = self.chunk_size, self.block_size, len(document)
        missing, blocks = size - count, size // self.block_size
        text = np.pad(ids, (0, missing), mode="edge")
        drawn = random.integers(0, _TABLE, blocks * self.num_negatives, dtype=np.int32)
        rows, places = self._unique(np.concatenate([text, self.table[drawn]]))
        begins = np.diff(document, prepend=-1) != 0
        documents = document[begins]
        starts = np.arange(0, size, block)[:, None] + np.arange(block + 2 * self.window)

        def blocked(values: np.ndarray) -> np.ndarray:
            return np.pad(values, (0, missing)).reshape(blocks, block)

        return Chunk(
            word_rows=_padded(rows, self.word_rows, len(self.keep)),
            document_rows=_padded(documents, self.document_rows, self.num_documents),
            centers=places[: len(text)][starts],
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
