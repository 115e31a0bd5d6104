"""Cases of `zoo.spherical`: a pass of JoSE over a corpus, and the gradients of its blocks."""

import functools
import os
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoo import spherical
from zoo.extras import require
from zoo.spherical.blocks import BlockMasks, BlockVectors, block_loss
from zoo.spherical.objective import two_hinges_loss
from zoo.spherical.options import JoseOptions
from zoo.spherical.von_mises_fisher import random_von_mises_fisher
from zoo.training import make_mesh

from ..case import Case, Program, make_case

WINDOW, NEGATIVES = 10, 2
BLOCK, NUMBER = 32, (2 * WINDOW + 1) * NEGATIVES  # positions and negatives of a block
CORES = len(os.sched_getaffinity(0))


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
        trainer.state = trainer.state._replace(step=jnp.zeros((), jnp.int32))
        return trainer.fit().words

    return call


def original(*, dimension: int, **size: int) -> Callable[[], Any]:
    """The authors' program on all cores; its complete run, reading and writing included."""
    program = shutil.which(os.environ.get("JOSE_PROGRAM", "jose"))
    if program is None:
        raise ImportError("the authors' program: put jose in PATH or its path in JOSE_PROGRAM")
    folder = tempfile.mkdtemp()
    text = pathlib.Path(folder, "text.txt")
    text.write_text("\n".join(corpus(**size)) + "\n")
    options = {"train": text, "word-output": f"{folder}/words.txt", "size": dimension}
    options |= {"window": WINDOW, "negative": NEGATIVES, "iter": 1, "min-count": 1}
    options["threads"] = CORES
    command = [program, *(word for n, v in options.items() for word in (f"-{n}", str(v)))]
    return lambda: subprocess.run(command, check=True, capture_output=True).returncode


def in_gensim(name: str, options: dict[str, int], *, dimension: int, **size: int) -> Any:
    """One epoch of gensim's model, with the options that JoSE has too."""
    models = require("gensim.models", "bench")
    texts: list[Any] = [text.split() for text in corpus(**size)]
    if name == "Doc2Vec":
        texts = [models.doc2vec.TaggedDocument(words, [n]) for n, words in enumerate(texts)]
    options = options | {"window": WINDOW, "negative": NEGATIVES, "min_count": 1}
    make = getattr(models, name)
    model = make(vector_size=dimension, sample=1e-3, workers=CORES, **options)
    model.build_vocab(texts)
    return lambda: model.train(texts, total_examples=len(texts), epochs=1)


# The gradients of blocks: matrix products against a loop over triples, as JAX is often written.


def blocks(*, positions: int, dimension: int) -> tuple[BlockVectors, BlockMasks]:
    random, count = np.random.default_rng(0), positions // BLOCK

    def units(rows: int) -> np.ndarray:
        x = random.normal(size=(count, rows, dimension))
        return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)

    vectors = BlockVectors(units(BLOCK + 2 * WINDOW), units(BLOCK), units(BLOCK), units(NUMBER))
    reach = random.integers(1, WINDOW + 1, (2, count, BLOCK)).astype(np.int32)
    collides = random.random((count, NUMBER, BLOCK)) < 1e-3
    valid, offsets = np.ones((count, BLOCK), bool), np.ones((count, 2 * WINDOW + 1), bool)
    return vectors, BlockMasks(*reach, valid, offsets, collides)


@jax.vmap
def block_gradient(vectors: BlockVectors, masks: BlockMasks) -> BlockVectors:
    loss = functools.partial(block_loss, options=JoseOptions())
    return jax.grad(lambda *block: loss(*block)[0])(vectors, masks)


@jax.vmap
def triple_loop(vectors: BlockVectors, masks: BlockMasks) -> BlockVectors:
    """The public loss on one offset and negative after the other."""
    place = np.arange(BLOCK)

    def loss(vectors: BlockVectors, offset: jax.Array, k: jax.Array) -> jax.Array:
        own = offset == 0  # the word with its document
        shared = (offset + WINDOW) * NEGATIVES + k
        negative = jnp.where(own, (place * NEGATIVES + k) % NUMBER, shared)
        inside = (-offset <= masks.left) & (offset <= masks.right)
        counted = jnp.where(own, masks.valid, inside) & ~masks.collides[negative, place]
        target = jnp.where(own, vectors.documents, vectors.contexts)
        center = vectors.centers[place + WINDOW + offset]
        hinges = two_hinges_loss(center, target, vectors.negatives[negative])
        return jnp.sum(jnp.where(counted, hinges, 0))

    def add(sums: BlockVectors, triple: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, jax.grad(loss)(vectors, *triple)), None

    offsets = np.repeat(np.arange(-WINDOW, WINDOW + 1), NEGATIVES)
    triples = (offsets, np.tile(np.arange(NEGATIVES), 2 * WINDOW + 1))
    return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, vectors), triples)[0]


# The von Mises-Fisher distribution: samples, and the fit to some.


def sample(*, dimension: int, count: int, concentration: float) -> Program:
    mean = np.eye(dimension, dtype=np.float32)[0]
    draw = functools.partial(random_von_mises_fisher, shape=(count,))
    return jax.jit(draw), (jax.random.key(0), mean, jnp.float32(concentration))


def in_scipy(name: str, *, dimension: int, count: int, concentration: float) -> Program:
    """SciPy's samples, or its fit to ours."""
    law = require("scipy.stats", "data").vonmises_fisher(np.eye(dimension)[0], concentration)
    if name == "rvs":
        return lambda: law.rvs(count, random_state=np.random.default_rng(0))
    draw, inputs = sample(dimension=dimension, count=count, concentration=concentration)
    points = np.asarray(draw(*inputs), np.float64)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return lambda: require("scipy.stats", "data").vonmises_fisher.fit(points)


def fit(**size: Any) -> Program:
    draw, inputs = sample(**size)
    return jax.jit(spherical.fit_von_mises_fisher), (draw(*inputs),)


LAWS = {
    "sphere": {"dimension": 3, "count": 10_000, "concentration": 10.0},
    "words": {"dimension": 50, "count": 10_000, "concentration": 50.0},
}
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
            "authors' program": original,
            "gensim word2vec": functools.partial(in_gensim, "Word2Vec", {"sg": 1}),
            # Bag of words, with training of the words.
            "gensim doc2vec": functools.partial(in_gensim, "Doc2Vec", {"dm": 0, "dbow_words": 1}),
        },
        count=lambda words, length, **_: words // length * length,
        unit="words",
    ),
    make_case(
        "spherical.block_descent",
        block_gradient,
        {"loop over triples": triple_loop},
        blocks,
        sizes={
            "small": {"positions": 256, "dimension": 100},
            "chunk": {"positions": 1024, "dimension": 100},
            "large": {"positions": 16_384, "dimension": 100},
        },
        small=("small", "chunk"),
        count=lambda positions, dimension: positions,
        unit="positions",
    ),
    *(
        Case(
            name=f"spherical.{name}",
            sizes=LAWS,
            small=("sphere",),
            build=build,
            rivals={"SciPy": functools.partial(in_scipy, theirs)},
            count=lambda count, **_: count,
            unit="points",
        )
        for name, build, theirs in (
            ("random_von_mises_fisher", sample, "rvs"),
            ("fit_von_mises_fisher", fit, "fit"),
        )
    ),
]
