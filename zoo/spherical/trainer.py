"""Trains JoSE on real corpora: one compiled step for each chunk of text.

A step gathers the rows of a chunk from the three tables into small dense ones, computes the descent
of all its blocks (``zoo.spherical.blocks``), adds up what belongs to a row, and moves each row
once, with the angular factor c of the paper for its joint hinge and c = 1 for the two hinges:

    x ← N(x + a c (I - x xᵀ) Σ descent)

which is the authors' rule for a row that occurs once. The chunks are made in a second thread
(``zoo.spherical.sampling``). Tables may be split by rows over the devices of a mesh.

Source: arXiv 1911.01196 and its program; https://kexue.fm/archives/7063.
"""

import math
import os
import pathlib
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from zoo.spherical.blocks import BlockMasks, BlockVectors, Objective, block_descent
from zoo.spherical.corpus import (
    Corpus,
    Tokenizer,
    build_vocabulary,
    encode_corpus,
    fingerprint,
)
from zoo.spherical.embeddings import JoseEmbeddings
from zoo.spherical.geometry import unit
from zoo.spherical.sampling import Chunk, ChunkSampler
from zoo.training import Checkpointer, MetricsLog, TrainState, fit, init_state, make_mesh

RULES = ((r".*", PartitionSpec("fsdp")),)  # every table by rows


class JoseTrainer:
    """JoSE on one corpus: reads it when made, trains it with :meth:`fit`.

    Args:
        corpus: path of a UTF-8 file with a document a line (``.gz`` and ``.xz`` too), or an
            iterable of documents that can be read twice.
        dimension: D of the vectors.
        objective: ``"two_hinges"`` as the authors' program, ``"joint"`` as the paper.
        passes: over the corpus.
        window: W, words to each side at most; each position draws its own reach in 1 … W.
        negatives: K random words a pair.
        margin: m of the hinge.
        learning_rate: a at the start; falls linearly to 1e-4 of it.
        min_count: rarer words are left out.
        subsample: s, the frequency above which words are dropped at random; 0 keeps all.
        shuffle: documents in a new order each pass. In the order of the file, as the authors'
            program reads them, neighbours in the file get similar vectors for that alone: where
            the file is sorted by class, scores rise.
        tokenizer: text -> words.
        chunk_size: P, words between two updates; a multiple of ``block_size``.
        block_size: T, neighbouring words that share negatives.
        seed: of all random numbers.
        mesh: the devices, all of them by default; the tables are split over its axis ``fsdp``.

    Raises:
        ValueError: if an option is out of its range, the text is not UTF-8, fewer than two words
            are left, or the file changes while it is read.
        TypeError: if the corpus is an iterator or holds no strings.

    >>> trainer = JoseTrainer(["a b a b c"] * 9 + [""], dimension=8, passes=1, min_count=1)
    >>> embeddings = trainer.fit()
    >>> embeddings.words.shape, embeddings.documents.shape, trainer.corpus.skipped
    ((3, 8), (10, 8), 1)
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        dimension: int = 100,
        objective: Objective = "two_hinges",
        passes: int = 10,
        window: int = 5,
        negatives: int = 2,
        margin: float = 0.15,
        learning_rate: float = 0.04,
        min_count: int = 5,
        subsample: float = 1e-3,
        shuffle: bool = False,
        tokenizer: Tokenizer = str.split,
        chunk_size: int = 1024,
        block_size: int = 32,
        seed: int = 0,
        mesh: Mesh | None = None,
    ) -> None:
        for name, value in {
            "dimension": dimension,
            "passes": passes,
            "window": window,
            "negatives": negatives,
            "block_size": block_size,
        }.items():
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        for name, number in {"margin": margin, "learning_rate": learning_rate}.items():
            if not 0 < number < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {number}")
        if not 0 <= subsample < math.inf:
            raise ValueError(f"subsample must be at least 0, got {subsample}")
        if objective not in ("two_hinges", "joint"):
            raise ValueError(f"objective must be 'two_hinges' or 'joint', got {objective!r}")
        if window > 127 or chunk_size < 1 or chunk_size % block_size:
            raise ValueError(
                "window must be at most 127 and chunk_size a multiple of block_size, got "
                f"{window=}, {chunk_size=}, {block_size=}"
            )
        self.mesh = make_mesh() if mesh is None else mesh
        shards = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        if chunk_size // block_size % shards:
            raise ValueError(
                f"chunk_size must be a multiple of block_size for each of {shards} devices, "
                f"{shards * block_size}, got {chunk_size}; or give a mesh of fewer devices"
            )
        before = fingerprint(corpus)
        self.vocabulary = build_vocabulary(corpus, min_count=min_count, tokenizer=tokenizer)
        self.corpus = encode_corpus(corpus, self.vocabulary, tokenizer=tokenizer)
        if fingerprint(corpus) != before or len(self.corpus.ids) != self.vocabulary.counts.sum():
            raise ValueError(
                f"the corpus {corpus if before else ''} changed while it was read: "
                f"{self.vocabulary.counts.sum()} words of the vocabulary in the first pass, "
                f"{len(self.corpus.ids)} in the second; train on a copy that nobody writes to"
            )
        self.chunks = ChunkSampler(
            self.corpus,
            self.vocabulary.counts,
            window=window,
            negatives=negatives,
            passes=passes,
            learning_rate=learning_rate,
            subsample=subsample,
            shuffle=shuffle,
            chunk_size=chunk_size,
            block_size=block_size,
            seed=seed,
        )
        sizes = {
            "words": len(self.vocabulary.words),
            "contexts": len(self.vocabulary.words),
            "documents": self.num_documents,
        }
        self.state = init_state(
            partial(initial_tables, sizes=sizes, dimension=dimension, shards=self.mesh.size),
            optax.identity(),
            key=jax.random.key(seed),
            mesh=self.mesh,
            rules=RULES,
        )
        step = partial(
            train_step, objective=objective, margin=margin, text_rows=self.chunks.text_rows
        )
        shardings = self.state.shardings
        self.step = jax.jit(
            step,
            donate_argnums=0,
            out_shardings=(shardings, NamedSharding(self.mesh, PartitionSpec())),
        )

    def fit(
        self,
        *,
        checkpoints: str | os.PathLike[str] | None = None,
        log: MetricsLog | None = None,
        checkpoint_every: int = 5000,
        keep: int = 2,
        log_every: int = 500,
        progress: bool = False,
    ) -> JoseEmbeddings:
        """Trains to the end of the last pass; goes on where a stopped run left its checkpoints.

        Args:
            checkpoints: folder to save to and to continue from; needs the extra ``train``.
            log: gets the mean hinge and the words a second.
            checkpoint_every: in chunks.
            keep: how many checkpoints stay.
            log_every: in chunks.
            progress: show a bar; needs the extra ``train``.

        Returns:
            The vectors.

        Raises:
            ValueError: if the checkpoints are those of other data or settings.
            SystemExit: when stopped by a signal, after saving.
        """

        def run(checkpointer: Checkpointer | None) -> TrainState:
            return fit(
                self.step,
                self.state,
                self.chunks,
                num_steps=self.chunks.most_chunks,
                mesh=self.mesh,
                checkpointer=checkpointer,
                log=log,
                checkpoint_every=checkpoint_every,
                log_every=log_every,
                rate_unit="words",
                progress=progress,
            )

        try:
            if checkpoints is None:
                self.state = run(None)
            else:
                with Checkpointer(pathlib.Path(checkpoints), keep=keep) as checkpointer:
                    self.state = run(checkpointer)
        finally:
            self.chunks.close()
        return self.embeddings()

    def embeddings(self) -> JoseEmbeddings:
        """The vectors as they are now; those of documents without a known word are zero."""
        tables = jax.tree.map(np.asarray, self.state.parameters)
        count, documents = len(self.vocabulary.words), tables["documents"][: self.num_documents]
        empty = np.diff(self.corpus.starts) == 0
        return JoseEmbeddings(
            words=tables["words"][:count],
            contexts=tables["contexts"][:count],
            documents=np.where(empty[:, None], np.float32(0), documents),
            vocabulary=self.vocabulary,
        )

    @property
    def num_documents(self) -> int:
        """Lines of the corpus, empty ones too."""
        return len(self.corpus.starts) - 1


def initial_tables(
    key: jax.Array, sizes: dict[str, int], *, dimension: int, shards: int
) -> dict[str, jax.Array]:
    """Uniform in a cube, then normalised, as the authors' program starts.

    Args:
        key: of the random numbers; consumed.
        sizes: rows of each table by its name.
        dimension: D.
        shards: rows are filled up to a multiple of it; the others do not depend on it.

    Returns:
        A table ``[rows, D]`` for each name.

    >>> initial_tables(jax.random.key(0), {"words": 3}, dimension=5, shards=2)["words"].shape
    (4, 5)
    """

    def table(key: jax.Array, rows: int) -> jax.Array:
        padded = -(-rows // shards) * shards
        # Row by row, so that the vectors do not depend on the padding.
        keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(padded))
        shape = (dimension,)
        return unit(jax.vmap(lambda k: jax.random.uniform(k, shape, minval=-0.5, maxval=0.5))(keys))

    keys = jax.random.split(key, len(sizes))
    return {name: table(k, n) for k, (name, n) in zip(keys, sizes.items(), strict=True)}


def train_jose(
    corpus: Corpus,
    *,
    checkpoints: str | os.PathLike[str] | None = None,
    progress: bool = False,
    **options: Any,
) -> JoseEmbeddings:
    """Trains JoSE on a corpus and returns its vectors.

    Args:
        corpus: path of a text with a document a line, or an iterable of documents.
        checkpoints: folder to save to and to continue from.
        progress: show a bar.
        **options: of :class:`JoseTrainer`, such as ``dimension``, ``passes``, ``window``.

    Returns:
        Unit vectors of the words (as centers and as contexts) and the documents.

    Raises:
        ValueError: as :class:`JoseTrainer`.
        TypeError: as :class:`JoseTrainer`.

    >>> embeddings = train_jose(["sun moon sun moon", "ox cow"] * 5, dimension=4, passes=1)
    >>> sorted(embeddings.vocabulary.words)
    ['cow', 'moon', 'ox', 'sun']

    Reference: arXiv 1911.01196.
    """
    trainer = JoseTrainer(corpus, **options)
    return trainer.fit(checkpoints=checkpoints, progress=progress)


def train_step(
    state: TrainState,
    chunk: Chunk,
    *,
    objective: Objective,
    margin: float,
    text_rows: int,
    only_documents: bool = False,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Moves the rows of one chunk.

    Args:
        state: the three tables are its parameters.
        chunk: of the sampler.
        objective: see :class:`JoseTrainer`.
        margin: m.
        text_rows: how many of the chunk's rows can be words of its text.
        only_documents: leave the words and contexts as they are.

    Returns:
        The new state, and metrics: the mean hinge and the number of words.
    """
    tables, rate = state.parameters, chunk.rate[0]
    block, width = chunk.left.shape[1], chunk.centers.shape[1] - chunk.left.shape[1]
    context_rows = chunk.word_rows[:text_rows]
    words = _gather(tables["words"], chunk.word_rows)
    contexts = _gather(tables["contexts"], context_rows)
    documents = _gather(tables["documents"], chunk.document_rows)
    here = chunk.centers[:, width // 2 : width // 2 + block]
    vectors = BlockVectors(
        centers=words.at[chunk.centers].get(mode="promise_in_bounds"),
        contexts=contexts.at[here].get(mode="promise_in_bounds"),
        documents=documents.at[chunk.documents].get(mode="promise_in_bounds"),
        negatives=words.at[chunk.negatives].get(mode="promise_in_bounds"),
    )
    masks = BlockMasks(
        left=chunk.left.astype(jnp.int32),
        right=chunk.right.astype(jnp.int32),
        valid=chunk.valid,
        collides=chunk.negatives[:, :, None] == here[:, None, :],
    )
    descend = partial(block_descent, objective=objective, margin=margin)
    descent, hinge = jax.vmap(descend)(vectors, masks)

    move = partial(_move, rate=rate, angular=objective == "joint")
    documents = move(documents, (chunk.documents, descent.documents))
    moved = {"documents": _scatter(tables["documents"], chunk.document_rows, documents)}
    if not only_documents:
        parts = (chunk.centers, descent.centers), (chunk.negatives, descent.negatives)
        contexts = move(contexts, (here, descent.contexts))
        moved["words"] = _scatter(tables["words"], chunk.word_rows, move(words, *parts))
        moved["contexts"] = _scatter(tables["contexts"], context_rows, contexts)
    # An empty block has no mean.
    filled = jnp.any(chunk.valid, axis=1)
    loss = jnp.sum(jnp.where(filled, hinge, 0)) / jnp.maximum(jnp.sum(filled), 1)
    metrics = {
        "loss": loss,
        "weight": jnp.sum(chunk.words),
        "nonfinite_steps": state.nonfinite_steps,
    }
    return state._replace(parameters=tables | moved, step=state.step + 1), metrics


def _gather(table: jax.Array, rows: jax.Array) -> jax.Array:
    return table.at[rows].get(mode="fill", fill_value=0)


def _scatter(table: jax.Array, rows: jax.Array, values: jax.Array) -> jax.Array:
    return table.at[rows].set(values, mode="drop")


def _move(
    x: jax.Array, *parts: tuple[jax.Array, jax.Array], rate: jax.Array, angular: bool
) -> jax.Array:
    """Adds up the descent of each row and moves it once."""
    size = x.shape[1]
    total = jnp.zeros_like(x)
    for places, values in parts:
        flat = values.reshape(-1, size)
        total = total.at[places.reshape(-1)].add(flat, mode="promise_in_bounds")
    radial = jnp.sum(x * total, axis=-1, keepdims=True)
    square = jnp.sum(total * total, axis=-1, keepdims=True)
    touched = square > 0
    step = total - radial * x
    if angular:
        step = (1 - radial * jax.lax.rsqrt(jnp.where(touched, square, 1))) * step
    moved = x + rate * step
    length = jax.lax.rsqrt(jnp.where(touched, jnp.sum(moved * moved, axis=-1, keepdims=True), 1))
    return jnp.where(touched, moved * length, x)
