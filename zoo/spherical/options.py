"""The options of JoSE, described once."""

import math
from typing import Any, Literal, NamedTuple

from zoo import _checks

Objective = Literal["two_hinges", "joint"]
SMALL_CORPUS = 1_600_000  # words; in ten passes over more, frequent words part by themselves


class JoseOptions(NamedTuple):
    """How JoSE is trained; the defaults are those of the authors' program.

    Trainers choose passes and subsampling by the corpus if neither is given, see
    :func:`for_corpus`.

    Attributes:
        dimension: D of the vectors.
        objective: ``"two_hinges"`` as the authors' program, ``"joint"`` as the paper.
        passes: over the corpus.
        window: W, words to each side at most; each position draws its own reach in 1 … W.
        negatives: K random words per pair.
        margin: m of the hinge.
        learning_rate: a at the start; falls linearly with the words read, to 1e-4 of it.
        subsample: s, the frequency above which words are dropped at random; 0 keeps all.
        shuffle: documents in a new order each pass. In the order of the file, as the authors'
            program reads them, neighbours in the file get similar vectors for that alone: where
            the file is sorted by class, scores rise.
        chunk_size: P, words between two updates; a multiple of ``block_size``.
        block_size: T, neighbouring words that share negatives.
        steps: J, steps of a chunk, each with every J-th offset of neighbours and every J-th word of
            the documents; 4 teach as much in a pass as the authors' program, and take longer.
        seed: of all random numbers.
    """

    dimension: int = 100
    objective: Objective = "two_hinges"
    passes: int = 10
    window: int = 5
    negatives: int = 2
    margin: float = 0.15
    learning_rate: float = 0.04
    subsample: float = 1e-3
    shuffle: bool = False
    chunk_size: int = 1024
    block_size: int = 32
    steps: int = 1
    seed: int = 0

    def checked(self, shards: int = 1) -> "JoseOptions":
        """The options as plain numbers; blocks are shared out to ``shards`` devices.

        Raises:
            ValueError: if one is out of its range.
            TypeError: if a count is not an integer.
        """
        least = dict.fromkeys(("dimension", "passes", "window", "negatives"), 1)
        least |= {"block_size": 1, "chunk_size": 1, "steps": 1, "seed": 0}
        most = {"window": 127, "seed": 2**63 - 1}  # reaches are kept in int8
        plain: dict[str, Any] = {
            name: _checks.count(
                name, getattr(self, name), at_least=bound, at_most=most.get(name, math.inf)
            )
            for name, bound in least.items()
        }
        _checks.choice("objective", self.objective, ("two_hinges", "joint"))
        _checks.choice("shuffle", self.shuffle, (False, True))
        plain["shuffle"] = bool(self.shuffle)
        plain["margin"] = _checks.number("margin", self.margin, above=0)
        plain["learning_rate"] = _checks.number("learning_rate", self.learning_rate, above=0)
        plain["subsample"] = _checks.number("subsample", self.subsample, at_least=0)
        if plain["chunk_size"] % (plain["block_size"] * shards):
            raise ValueError(
                f"chunk_size must be a multiple of block_size for each of {shards} device(s), "
                f"{shards * self.block_size}, got {self.chunk_size}; change it, or give a mesh of "
                "fewer devices"
            )
        return self._replace(**plain)


def for_corpus(words: int) -> dict[str, Any]:
    """Passes and subsampling for a corpus of so many words.

    The authors' are made for millions of words. In a smaller text, frequent words stay drawn to one
    side and are everybody's neighbours: there more of them are dropped, and the text is read until
    16 million words have been seen, 80 times at most.

    >>> for_corpus(200_000), for_corpus(5_000_000)
    ({'passes': 80, 'subsample': 0.0001}, {})
    """
    if words >= SMALL_CORPUS:
        return {}
    passes = min(80, max(JoseOptions().passes, round(16e6 / max(words, 1))))
    return {"passes": passes, "subsample": 1e-4}
