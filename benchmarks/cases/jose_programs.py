"""Programs of the JoSE cases: one update of a chunk, whole passes, and the rivals."""

import functools
import os
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.case import Floor, Program
from zoo import spherical
from zoo.spherical.blocks import BlockMasks, BlockVectors, block_descent
from zoo.spherical.corpus import EncodedCorpus
from zoo.spherical.sampling import ChunkSampler
from zoo.training import make_mesh

WINDOW, NEGATIVES, BLOCK = 10, 2, 32


@functools.cache
def corpus(words: int, vocabulary: int, length: int) -> tuple[str, ...]:
    """Documents of Zipf's words: the frequency falls as 1 / rank."""
    random = np.random.default_rng(0)
    shares = np.cumsum(1 / np.arange(1, vocabulary + 1))
    ids = np.searchsorted(shares, random.random(words) * shares[-1])
    rows = ids[: words // length * length].reshape(-1, length)
    return tuple(" ".join(f"w{i}" for i in row) for row in rows.tolist())


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
        trainer.state = trainer.state._replace(step=jax.numpy.zeros((), jax.numpy.int32))
        return trainer.fit().words

    return call


def words_read(*, words: int, length: int, **_: int) -> int:
    """How many words one pass reads."""
    return words // length * length


def train_floor(*, words: int, vocabulary: int, length: int, dimension: int) -> Floor:
    """Least work of a pass: of the kept words, as many triples as the program of the authors has.

    A triple takes two products and three updates of a vector, 10 operations a number; its vectors
    are read and written once a chunk at best, here: each table once.
    """
    shares = 1 / np.arange(1, vocabulary + 1)
    shares /= shares.sum()
    keep = np.minimum(1, np.sqrt(1e-3 / shares) + 1e-3 / shares)
    kept = words_read(words=words, length=length) * float(np.dot(shares, keep))
    triples = NEGATIVES * (WINDOW + 2)  # (W + 1) / 2 neighbours to each side, and the document
    documents = words // length
    tables = 4 * dimension * (2 * vocabulary + documents)
    return Floor(int(kept * triples * 10 * dimension), 2 * tables)


def chunk_sampler(
    corpus: EncodedCorpus, counts: np.ndarray, *, chunk_size: int = 1024
) -> ChunkSampler:
    """Chunks of one pass with the options of the paper, in the order of the corpus."""
    return ChunkSampler(
        corpus,
        counts,
        window=WINDOW,
        negatives=NEGATIVES,
        passes=1,
        learning_rate=0.04,
        subsample=1e-3,
        shuffle=False,
        chunk_size=chunk_size,
        block_size=BLOCK,
        seed=0,
    )


def original(*, words: int, vocabulary: int, length: int, dimension: int) -> Callable[[], Any]:
    """The authors' program on all cores; its whole run, reading and writing included."""
    program = shutil.which(os.environ.get("JOSE_PROGRAM", "jose"))
    if program is None:
        raise ImportError("the authors' program: put jose in PATH or its path in JOSE_PROGRAM")
    folder = tempfile.mkdtemp()
    text = pathlib.Path(folder, "text.txt")
    text.write_text("\n".join(corpus(words, vocabulary, length)) + "\n")
    threads = len(os.sched_getaffinity(0))
    command = [program, "-train", str(text), "-word-output", f"{folder}/words.txt"]
    options = {"size": dimension, "window": WINDOW, "negative": NEGATIVES, "iter": 1}
    options |= {"min-count": 1, "threads": threads}
    for name, value in options.items():
        command += [f"-{name}", str(value)]
    return lambda: subprocess.run(command, check=True, capture_output=True).returncode


def word2vec(*, words: int, vocabulary: int, length: int, dimension: int) -> Callable[[], Any]:
    """Gensim's skip-gram with the same window and negatives: words only, no documents."""
    from gensim.models import Word2Vec

    texts = [text.split() for text in corpus(words, vocabulary, length)]
    model = Word2Vec(
        vector_size=dimension,
        window=WINDOW,
        negative=NEGATIVES,
        sg=1,
        min_count=1,
        sample=1e-3,
        workers=len(os.sched_getaffinity(0)),
    )
    model.build_vocab(texts)
    return lambda: model.train(texts, total_examples=len(texts), epochs=1)


def doc2vec(*, words: int, vocabulary: int, length: int, dimension: int) -> Callable[[], Any]:
    """Gensim's doc2vec (bag of words with word training) with the same window and negatives."""
    from gensim.models.doc2vec import Doc2Vec, TaggedDocument

    texts = [
        TaggedDocument(text.split(), [row])
        for row, text in enumerate(corpus(words, vocabulary, length))
    ]
    model = Doc2Vec(
        vector_size=dimension,
        window=WINDOW,
        negative=NEGATIVES,
        dm=0,
        dbow_words=1,
        min_count=1,
        sample=1e-3,
        workers=len(os.sched_getaffinity(0)),
    )
    model.build_vocab(texts)
    return lambda: model.train(texts, total_examples=len(texts), epochs=1)


# One block's sums: our products against a loop over offsets and negatives, as JAX is often written.


def blocks(*, positions: int, dimension: int) -> tuple[BlockVectors, BlockMasks]:
    random = np.random.default_rng(0)
    count, number = positions // BLOCK, (2 * WINDOW + 1) * NEGATIVES

    def units(rows: int) -> np.ndarray:
        x = random.normal(size=(count, rows, dimension))
        return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)

    vectors = BlockVectors(units(BLOCK + 2 * WINDOW), units(BLOCK), units(BLOCK), units(number))
    reach = random.integers(1, WINDOW + 1, (2, count, BLOCK)).astype(np.int32)
    masks = BlockMasks(
        *reach, np.ones((count, BLOCK), bool), random.random((count, number, BLOCK)) < 1e-3
    )
    return vectors, masks


def block_products(*, positions: int, dimension: int) -> Program:
    descend = functools.partial(block_descent, objective="two_hinges", margin=0.15)
    return lambda *inputs: jax.vmap(descend)(*inputs)[0], blocks(
        positions=positions, dimension=dimension
    )


def triple_loop(*, positions: int, dimension: int) -> Program:
    """Every triple by itself: gathers, three updates, scatters."""
    number = (2 * WINDOW + 1) * NEGATIVES

    def descend(vectors: BlockVectors, masks: BlockMasks) -> BlockVectors:
        jnp = jax.numpy
        u, v, d, n = vectors
        place = np.arange(BLOCK)

        def add(sums: BlockVectors, triple: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
            offset, k = triple
            own = offset == 0  # the word with its document
            negative = jnp.where(own, (place * NEGATIVES + k) % number, 0)
            negative = jnp.where(own, negative, (offset + WINDOW) * NEGATIVES + k)
            center = u[place + WINDOW + offset]
            target = jnp.where(own, d, v)
            other = n[negative]
            f = jnp.sum(center * target, axis=1)
            h = jnp.sum(other * target, axis=1)
            inside = (-offset <= masks.left) & (offset <= masks.right)
            counted = jnp.where(own, masks.valid, inside) & ~masks.collides[negative, place]
            active = (counted & (f - h < 0.15))[:, None]
            f, h = f[:, None], h[:, None]
            follow = jnp.where(active, 1 - f + h, 0) * (center - other)
            return BlockVectors(
                centers=sums.centers.at[place + WINDOW + offset].add(
                    jnp.where(active, 1 - f, 0) * target
                ),
                contexts=sums.contexts + jnp.where(own, 0, follow),
                documents=sums.documents + jnp.where(own, follow, 0),
                negatives=sums.negatives.at[negative].add(-jnp.where(active, 2 * h, 0) * target),
            ), None

        offsets = np.repeat(np.arange(-WINDOW, WINDOW + 1), NEGATIVES)
        triples = (offsets, np.tile(np.arange(NEGATIVES), 2 * WINDOW + 1))
        zeros = jax.tree.map(jnp.zeros_like, vectors)
        return jax.lax.scan(add, zeros, triples)[0]

    inputs = blocks(positions=positions, dimension=dimension)
    return lambda *arguments: jax.vmap(descend)(*arguments), inputs


def block_floor(*, positions: int, dimension: int) -> Floor:
    """The products that the blocks are made of; every vector read and its sum written once."""
    number = (2 * WINDOW + 1) * NEGATIVES
    a_position = 3 * (BLOCK + 2 * WINDOW) + 3 * number + 3 * NEGATIVES + 3
    rows = (BLOCK + 2 * WINDOW + 2 * BLOCK + number) * (positions // BLOCK)
    return Floor(2 * dimension * a_position * positions, 8 * dimension * rows)
