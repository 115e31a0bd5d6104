"""The options of JoSE, described once."""

import math
from typing import Literal, NamedTuple

from zoo import _checks

Objective = Literal["two_hinges", "joint"]


class JoseOptions(NamedTuple):
    """How JoSE is trained; the defaults are those of the authors' program.

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
    seed: int = 0

    def checked(self, shards: int = 1) -> "JoseOptions":
        """The options, if they are in their ranges; blocks are shared out to ``shards`` devices.

        Raises:
            ValueError: if one is not.
            TypeError: if a count is not an integer.
        """
        for name in ("dimension", "passes", "window", "negatives", "block_size"):
            most = 127 if name == "window" else math.inf  # reaches are kept in int8
            _checks.count(name, getattr(self, name), at_least=1, at_most=most)
        _checks.choice("objective", self.objective, ("two_hinges", "joint"))
        _checks.number("margin", self.margin, above=0)
        _checks.number("learning_rate", self.learning_rate, above=0)
        _checks.number("subsample", self.subsample, at_least=0)
        if self.chunk_size < 1 or self.chunk_size % (self.block_size * shards):
            raise ValueError(
                f"chunk_size must be a multiple of block_size for each of {shards} device(s), "
                f"{shards * self.block_size}, got {self.chunk_size}; change it, or give a mesh of "
                "fewer devices"
            )
        return self
