"""Pairs as arrays, and batches of pairs of about the same length.

Most pairs have one long and one short formula. A batch has the longer formulas in one array and the
shorter ones in another, so that little is padding. Every pair of widths is compiled once, which
takes as long as training on some thousand pairs: there are at most four.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from zoo import _checks as checks
from zoo.data.iterator import Batch, BatchIterator, host_rows

from .logic import RELATIONS, TOKENS, Pair

LONG = 37  # tokens of six binary operators, the longest formulas in training
SHORT = 7  # tokens of one binary operator
FEW = 40  # batches that do not pay for widths of their own
TOKEN_IDS = {token: number for number, token in enumerate(TOKENS, start=1)}  # 0 is padding


class PairBatches(BatchIterator):
    """Batches of pairs; every pair once per epoch.

    A batch has ``longer`` and ``shorter``, int32 [B, width] with lengths [B]; ``swapped``, whether
    the premise is the shorter one; ``relation``, int32 [B]; ``group``, int32 [B], a number that
    comes with the pair; and ``valid``, false for rows that only fill the batch up. For
    ``depends_on`` see ``zoo.data.Pipeline``.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        groups: Sequence[int] | None = None,
        *,
        batch_size: int,
        seed: int = 0,
        num_epochs: int | None = None,
        depends_on: Any = None,
    ):
        seed = checks.count("seed", seed)
        batches = _Batches(pairs, groups or [0] * len(pairs), batch_size, seed)
        identity = {"pairs": len(pairs), "batch_size": batch_size, "seed": seed}
        super().__init__(
            batches,
            num_epochs=num_epochs,
            num_workers=0,
            identity=identity,
            content=(batches.arrays, depends_on),
        )


def encode(formulas: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids [N, longest], 0 behind the end, and lengths [N]."""
    split = [formula.split() for formula in formulas]
    lengths = np.array([len(tokens) for tokens in split], np.int32)
    ids = np.zeros((len(split), lengths.max(initial=1)), np.int32)
    for row, tokens in zip(ids, split, strict=True):
        row[: len(tokens)] = [TOKEN_IDS[token] for token in tokens]
    return ids, lengths


class _Batches:
    """Batches by number, of all epochs."""

    def __init__(self, pairs: Sequence[Pair], groups: Sequence[int], batch_size: int, seed: int):
        ids, lengths = encode([formula for pair in pairs for formula in pair[1:]])
        # Few numbers are kept, as bytes: all formulas are short and there are few tokens.
        self._ids = ids.astype(np.uint8).reshape(len(pairs), 2, -1)
        self._lengths = lengths.reshape(len(pairs), 2)
        self._relations = np.array([RELATIONS.index(pair.relation) for pair in pairs], np.int32)
        self._groups = np.array(groups, np.int32)
        self._swapped = self._lengths[:, 0] < self._lengths[:, 1]
        longest, shortest = self._lengths.max(axis=1), self._lengths.min(axis=1)
        long = longest > LONG
        longer = np.where(long, longest.max(initial=1), longest.max(initial=1, where=~long))
        shorter = np.where(shortest <= SHORT, np.minimum(SHORT, longer), longer)
        self._widths = np.stack([longer, shorter], axis=1)
        _, kind, sizes = np.unique(self._widths, axis=0, return_inverse=True, return_counts=True)
        few = np.isin(kind, np.flatnonzero(sizes < FEW * batch_size))
        self._widths[few] = longer[few].max(initial=0)
        self._buckets = [
            np.flatnonzero((self._widths == widths).all(axis=1))
            for widths in np.unique(self._widths, axis=0)
        ]
        self._batch_size, self._seed = batch_size, seed
        self._rows = host_rows(batch_size, None, None)
        self._plan = functools.lru_cache(maxsize=1)(self._plan_epoch)

    @property
    def arrays(self) -> list[np.ndarray]:
        """The pairs."""
        return [self._ids, self._lengths, self._relations, self._groups]

    @property
    def batches_per_epoch(self) -> int:
        return sum(-(-len(bucket) // self._batch_size) for bucket in self._buckets)

    def _plan_epoch(self, epoch: int) -> list[np.ndarray]:
        """The pairs of each batch of an epoch; all but the last of a bucket are full."""
        generator = np.random.default_rng([self._seed, epoch])
        size = self._batch_size
        plan = [
            order[start : start + size]
            for order in map(generator.permutation, self._buckets)
            for start in range(0, len(order), size)
        ]
        return [plan[i] for i in generator.permutation(len(plan))]

    def __getitem__(self, number: int) -> Batch:
        epoch, in_epoch = divmod(number, self.batches_per_epoch)
        chosen = self._plan(epoch)[in_epoch]
        valid = np.arange(self._batch_size) < len(chosen)
        chosen = np.resize(chosen, self._batch_size)[self._rows]
        first = self._swapped[chosen].astype(int)  # position of the longer one
        batch = {
            "swapped": self._swapped[chosen],
            "relation": self._relations[chosen],
            "group": self._groups[chosen],
            "valid": valid[self._rows],
        }
        sides = zip(("longer", "shorter"), (first, 1 - first), self._widths[chosen[0]], strict=True)
        for name, side, width in sides:
            kept = self._ids[chosen, side, :width].astype(np.int32)
            batch[name] = np.pad(kept, ((0, 0), (0, width - kept.shape[1])))
            batch[f"{name}_length"] = self._lengths[chosen, side]
        return batch
