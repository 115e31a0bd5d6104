"""Cases of `zoo.spherical`: a pass of JoSE over a corpus, and the gradients of its blocks."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.case import Case, Floor, Program
from benchmarks.cases import jose_programs as rivals
from benchmarks.cases.jose_programs import NEGATIVES, WINDOW, corpus
from zoo import spherical
from zoo.spherical.blocks import BlockMasks, BlockVectors, block_loss
from zoo.spherical.objective import two_hinges_loss
from zoo.spherical.options import JoseOptions
from zoo.training import make_mesh

BLOCK, NUMBER = 32, (2 * WINDOW + 1) * NEGATIVES  # positions and negatives of a block


def train(*, words: int, vocabulary: int, length: int, dimension: int) -> Callable[[], Any]:
    """One pass over a corpus that is read already, by a step that is compiled."""
    trainer = spherical.JoseTrainer(
        corpus(words, vocabulary, length),
        dimension=dimension,
        passes=1,
        window=WINDOW,
        negatives=NEGATIVES,
        min_count=1,
        mesh=make_mesh(devices=jax.devices()[:1]),
    )
    start = trainer.chunks.get_state()

    def call() -> Any:
        trainer.chunks.set_state(start)
        trainer.state = trainer.state._replace(step=jnp.zeros((), jnp.int32))
        return trainer.fit().words

    return call


def words_read(*, words: int, length: int, **_: int) -> int:
    return words // length * length


def train_floor(*, words: int, vocabulary: int, length: int, dimension: int) -> Floor:
    """Least work of a pass: of the kept words, as many triples as the program of the authors has.

    A triple takes two products and three updates of a vector, 10 operations per number; its vectors
    are read and written once per chunk at best, here: each table once.
    """
    shares = 1 / np.arange(1, vocabulary + 1)
    shares /= shares.sum()
    keep = np.minimum(1, np.sqrt(1e-3 / shares) + 1e-3 / shares)
    kept = words_read(words=words, length=length) * float(np.dot(shares, keep))
    triples = NEGATIVES * (WINDOW + 2)  # (W + 1) / 2 neighbours to each side, and the document
    tables = 4 * dimension * (2 * vocabulary + words // length)
    return Floor(int(kept * triples * 10 * dimension), 2 * tables)


# The gradients of blocks: matrix products against a loop over triples, as JAX is often written.


def blocks(positions: int, dimension: int) -> tuple[BlockVectors, BlockMasks]:
    random, count = np.random.default_rng(0), positions // BLOCK

    def units(rows: int) -> np.ndarray:
        x = random.normal(size=(count, rows, dimension))
        return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)

    vectors = BlockVectors(units(BLOCK + 2 * WINDOW), units(BLOCK), units(BLOCK), units(NUMBER))
    reach = random.integers(1, WINDOW + 1, (2, count, BLOCK)).astype(np.int32)
    collides = random.random((count, NUMBER, BLOCK)) < 1e-3
    return vectors, BlockMasks(*reach, np.ones((count, BLOCK), bool), collides)


def block_gradient(*, positions: int, dimension: int) -> Program:
    loss = functools.partial(block_loss, options=JoseOptions())

    def gradient(vectors: BlockVectors, masks: BlockMasks) -> BlockVectors:
        return jax.vmap(jax.grad(lambda *block: loss(*block)[0]))(vectors, masks)

    return gradient, blocks(positions, dimension)


def triple_loop(*, positions: int, dimension: int) -> Program:
    """The public loss on one offset and negative after the other."""
    place = np.arange(BLOCK)

    def loss(
        vectors: BlockVectors, masks: BlockMasks, offset: jax.Array, k: jax.Array
    ) -> jax.Array:
        own = offset == 0  # the word with its document
        shared = (offset + WINDOW) * NEGATIVES + k
        negative = jnp.where(own, (place * NEGATIVES + k) % NUMBER, shared)
        inside = (-offset <= masks.left) & (offset <= masks.right)
        counted = jnp.where(own, masks.valid, inside) & ~masks.collides[negative, place]
        target = jnp.where(own, vectors.documents, vectors.contexts)
        center = vectors.centers[place + WINDOW + offset]
        return jnp.sum(
            jnp.where(counted, two_hinges_loss(center, target, vectors.negatives[negative]), 0)
        )

    def gradient(vectors: BlockVectors, masks: BlockMasks) -> BlockVectors:
        def add(sums: BlockVectors, triple: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, sums, jax.grad(loss)(vectors, masks, *triple)), None

        offsets = np.repeat(np.arange(-WINDOW, WINDOW + 1), NEGATIVES)
        triples = (offsets, np.tile(np.arange(NEGATIVES), 2 * WINDOW + 1))
        return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, vectors), triples)[0]

    return jax.vmap(gradient), blocks(positions, dimension)


NEWS = {"words": 2_000_000, "vocabulary": 30_000, "length": 300, "dimension": 100}
CASES = [
    Case(
        name="spherical.train_jose",
        sizes={
            "tiny": {"words": 20_000, "vocabulary": 1_000, "length": 100, "dimension": 16},
            "news": NEWS,
            "large vocabulary": NEWS | {"vocabulary": 1_000_000},
            "short documents": NEWS | {"length": 10},
        },
        small=("tiny",),
        build=train,
        rivals={
            "authors' program": rivals.original,
            "gensim word2vec": rivals.word2vec,
            "gensim doc2vec": rivals.doc2vec,
        },
        count=words_read,
        unit="words",
        floor=train_floor,
    ),
    Case(
        name="spherical.block_descent",
        sizes={
            "small": {"positions": 256, "dimension": 100},
            "chunk": {"positions": 1024, "dimension": 100},
            "large": {"positions": 16_384, "dimension": 100},
        },
        small=("small", "chunk"),
        build=block_gradient,
        rivals={"loop over triples": triple_loop},
        equal=("loop over triples",),
        count=lambda positions, dimension: positions,
        unit="positions",
    ),
]
