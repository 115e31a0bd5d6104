"""Trains JoSE on real corpora: one compiled step for each chunk of text.

A step gathers the rows of a chunk from the three tables into small dense ones and moves them J
times before it writes them back: by ``riemannian_sgd`` on the objective over all blocks of the
chunk (``zoo.spherical.blocks``), with the angular factor of the paper for its joint hinge and
without for the two hinges. For a row that occurs once this is the authors' rule. Of several moves
each has every J-th offset of neighbours and every J-th word of a document: in the authors' program
each of the 40 triples of a word sees what the ones before it did. The chunks are made in a second
thread (``zoo.spherical.sampling``). Tables may be split by rows over the devices of a mesh.

Source: arXiv 1911.01196 and its program; https://kexue.fm/archives/7063.
"""

import os
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from zoo import _checks
from zoo.spherical.blocks import BlockMasks, BlockVectors, HingeSum, block_loss
from zoo.spherical.corpus import Corpus, Tokenizer, read_corpus
from zoo.spherical.embeddings import JoseEmbeddings
from zoo.spherical.geometry import normalize
from zoo.spherical.optimizers import riemannian_sgd
from zoo.spherical.options import JoseOptions, for_corpus
from zoo.spherical.sampling import Chunk, ChunkSampler
from zoo.spherical.word2vec import WordVectors
from zoo.training import Checkpointer, Loop, MetricsLog, TrainState, fit, init_state, make_mesh
from zoo.training.progress import say

Given: TypeAlias = dict[str, tuple[np.ndarray, np.ndarray]]  # table -> rows [R], vectors [R, D]

RULES = ((r".*", PartitionSpec("fsdp")),)  # every table by rows
LOOP = Loop(log_every=500, checkpoint_every=5000, rate_unit="words", progress=False)


class JoseTrainer:
    """JoSE on one corpus: reads it when made, trains it with :meth:`fit`.

    Args:
        corpus: path of a UTF-8 file with a document per line (``.gz``, ``.xz`` and ``.bz2`` too),
            or an iterable of documents that can be read twice.
        min_count: rarer words are left out.
        tokenizer: text -> words.
        mesh: the devices, all of them by default; the tables are split over its axis ``fsdp``.
        initial: vectors to start from, made unit vectors: a model, or words and vectors of any
            origin (``load_word2vec``). A word of the corpus that is in them begins there, in a
            model also as a neighbour; documents begin at those of a model that has as many as the
            corpus. What they do not have is drawn as without them.
        depends_on: what else a run that continues must find unchanged, such as the labels that the
            documents are scored by, see :class:`zoo.data.Pipeline`.
        **options: fields of :class:`zoo.spherical.options.JoseOptions`, such as ``dimension``,
            ``objective``, ``passes``, ``window`` and ``seed``; without ``passes`` and ``subsample``
            both are chosen by the size of the corpus (``options.for_corpus``).

    Raises:
        ValueError: if an option is out of its range, the text is not UTF-8, fewer than two words
            are left, the file changes while it is read, or the initial vectors are not finite, have
            another dimension, or none is of a word of the corpus.
        TypeError: if an option is unknown, or the corpus is an iterator or holds no strings.

    >>> trainer = JoseTrainer(["a b a b c"] * 9 + [""], dimension=8, passes=1, min_count=1)
    >>> embeddings = trainer.fit()
    >>> embeddings.words.shape, embeddings.documents.shape, trainer.corpus.skipped
    ((3, 8), (10, 8), 1)
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        min_count: int = 5,
        tokenizer: Tokenizer = str.split,
        mesh: Mesh | None = None,
        initial: JoseEmbeddings | WordVectors | None = None,
        depends_on: Any = None,
        **options: Any,
    ) -> None:
        self.mesh = make_mesh() if mesh is None else mesh
        shards = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        self.options = JoseOptions(**options).checked(shards)
        self.vocabulary, self.corpus = read_corpus(corpus, min_count=min_count, tokenizer=tokenizer)
        if not options.keys() & {"passes", "subsample"}:
            self.options = self.options._replace(**for_corpus(len(self.corpus.ids)))
        counts, tokens = self.vocabulary.counts, self.vocabulary.tokens
        self._given: Given = {}
        if initial is not None:
            documents = len(self.corpus.starts) - 1
            self._given = given_rows(initial, tokens, documents, self.options.dimension)
            depends_on = depends_on, self._given
        self.chunks = ChunkSampler(
            self.corpus, counts, self.options, tokens=tokens, depends_on=depends_on
        )

    @cached_property
    def state(self) -> TrainState:
        """The tables: drawn when first asked for, later as :meth:`fit` left them."""
        words, documents = len(self.vocabulary), len(self.corpus.starts) - 1
        tables = partial(
            initial_tables,
            sizes={"words": words, "contexts": words, "documents": documents},
            dimension=self.options.dimension,
            shards=self.mesh.size,
        )
        optimizer = riemannian_sgd(self.options.learning_rate)
        key = jax.random.key(self.options.seed)
        state = init_state(tables, optimizer, key=key, mesh=self.mesh, rules=RULES)
        given = {
            name: _set_rows(state.parameters[name], *rows_and_vectors)
            for name, rows_and_vectors in self._given.items()
        }
        return state._replace(parameters=state.parameters | given)

    @cached_property
    def step(self) -> Callable[..., Any]:
        """The jitted step, see :func:`compile_step`."""
        return compile_step(self.options, self.chunks.text_rows, self.state.shardings)

    def fit(
        self,
        *,
        checkpoints: str | os.PathLike[str] | None = None,
        keep: int = 2,
        log: MetricsLog | None = None,
        loop: Loop = LOOP,
    ) -> JoseEmbeddings:
        """Trains to the end of the last pass; continues where a stopped run left its checkpoints.

        Args:
            checkpoints: folder to save to and to continue from; needs the extra ``train``.
            keep: how many checkpoints stay.
            log: gets the mean hinge and the words per second.
            loop: how often it logs and saves, in chunks; whether it shows progress.

        Returns:
            The vectors.

        Raises:
            ValueError: if the checkpoints are those of other data or settings.
            FloatingPointError: after ten chunks in a row whose loss is not finite.
            SystemExit: when stopped by a signal, after saving.
        """
        if loop.progress:
            passes, most = self.options.passes, self.options.subsample
            say(
                f"{len(self.corpus.ids):,} words, {passes} passes; words above a frequency of "
                f"{most:g} are dropped at random"
            )
        train = partial(
            fit,
            self.step,
            self.state,
            self.chunks,
            num_steps=self.chunks.most_chunks,
            mesh=self.mesh,
            loop=loop,
            log=log,
        )
        try:
            if checkpoints is None:
                self.state = train()
            else:
                with Checkpointer(os.fspath(checkpoints), keep=keep) as checkpointer:
                    self.state = train(checkpointer=checkpointer)
        finally:
            self.chunks.close()
        return self.embeddings()

    def embeddings(self) -> JoseEmbeddings:
        """The vectors as they are now; those of documents without a known word are zero."""
        tables = jax.tree.map(np.asarray, self.state.parameters)
        words, empty = len(self.vocabulary), np.diff(self.corpus.starts) == 0
        documents = tables["documents"][: len(empty)]
        return JoseEmbeddings(
            words=tables["words"][:words],
            contexts=tables["contexts"][:words],
            documents=np.where(empty[:, None], np.float32(0), documents),
            vocabulary=self.vocabulary,
        )


def train_jose(
    corpus: Corpus,
    *,
    checkpoints: str | os.PathLike[str] | None = None,
    progress: bool = False,
    **options: Any,
) -> JoseEmbeddings:
    """Trains JoSE on a corpus and returns its vectors.

    Args:
        corpus: path of a text with a document per line, or an iterable of documents.
        checkpoints: folder to save to and to continue from.
        progress: show a bar.
        **options: of :class:`JoseTrainer`, such as ``dimension``, ``passes``, ``window``.

    Returns:
        Unit vectors of the words (as centers and as contexts) and the documents.

    Raises:
        ValueError, TypeError: as :class:`JoseTrainer`.

    >>> texts = ["sun moon sun moon", "ox cow ox cow"] * 9
    >>> embeddings = train_jose(texts, dimension=4, passes=1)
    >>> sorted(embeddings.vocabulary.tokens)
    ['cow', 'moon', 'ox', 'sun']

    Reference: arXiv 1911.01196.
    """
    trainer = JoseTrainer(corpus, **options)
    return trainer.fit(checkpoints=checkpoints, loop=LOOP._replace(progress=progress))


def _set_rows(table: jax.Array, rows: np.ndarray, vectors: np.ndarray) -> jax.Array:
    return jax.device_put(jnp.asarray(table).at[rows].set(vectors), table.sharding)


def given_rows(
    initial: JoseEmbeddings | WordVectors, tokens: Sequence[str], documents: int, dimension: int
) -> Given:
    """Table -> its rows that vectors are given for, and these as unit vectors.

    Args:
        initial: a model, or words and vectors.
        tokens: the words of the tables.
        documents: their number.
        dimension: D.

    Raises:
        ValueError: as :class:`JoseTrainer`.
    """
    if isinstance(initial, JoseEmbeddings):
        ids, tables = initial.vocabulary.ids, initial._asdict()
    else:
        ids, tables = initial.ids, {"words": initial.vectors}
    places = np.array([ids.get(token, -1) for token in tokens])
    known = np.flatnonzero(places >= 0)
    if not len(known):
        raise ValueError("initial must have vectors of words of the corpus, got none of them")
    pairs: dict[str, tuple[Any, Any]] = {
        name: (known, places[known]) for name in ("words", "contexts") if name in tables
    }
    if len(tables.get("documents", ())) == documents:
        pairs["documents"] = np.arange(documents), np.arange(documents)
    given: Given = {}
    for name, (rows, sources) in pairs.items():
        _checks.shapes(**{f"initial: {name}": (tables[name], f"N {dimension}")})
        vectors = np.asarray(tables[name], np.float64)[sources]
        if not np.isfinite(vectors).all():
            raise ValueError(f"initial: {name} must be finite, got NaN or inf")
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        there = lengths[:, 0] > 0  # a zero vector has no direction
        given[name] = rows[there], (vectors[there] / lengths[there]).astype(np.float32)
    return given


def initial_tables(
    key: jax.Array, sizes: dict[str, int], *, dimension: int, shards: int
) -> dict[str, jax.Array]:
    """Tables ``[rows, D]``, uniform in a cube, then normalised, as the authors' program starts.

    Args:
        key: of the random numbers; consumed.
        sizes: rows of each table by its name.
        dimension: D.
        shards: rows are filled up to a multiple of it; the others do not depend on it.
    """

    def table(key: jax.Array, rows: int) -> jax.Array:
        padded = -(-rows // shards) * shards
        # Row by row, so that the vectors do not depend on the padding.
        keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(padded))
        draw = partial(jax.random.uniform, shape=(dimension,), minval=-0.5, maxval=0.5)
        return normalize(jax.vmap(draw)(keys))

    keys = jax.random.split(key, len(sizes))
    return {name: table(k, n) for k, (name, n) in zip(keys, sizes.items(), strict=True)}


def compile_step(
    options: JoseOptions,
    text_rows: int,
    shardings: TrainState | None = None,
    *,
    tables: tuple[str, ...] = ("words", "contexts", "documents"),
) -> Callable[..., Any]:
    """The jitted step ``(state, chunk) -> (state, metrics)``; the state is donated.

    Args:
        options: of the training.
        text_rows: how many of a chunk's rows can be words of its text, ``ChunkSampler.text_rows``.
        shardings: of the state; None leaves them to the compiler.
        tables: those that are moved; the others stay as they are.

    Returns:
        The step; its metrics are the mean hinge and the number of words.
    """
    step = partial(_train_step, options=options, text_rows=text_rows, trained=tables)
    places = None if shardings is None else (shardings, shardings.step)
    return jax.jit(step, donate_argnums=0, out_shardings=places)


def _train_step(
    state: TrainState,
    chunk: Chunk,
    *,
    options: JoseOptions,
    text_rows: int,
    trained: tuple[str, ...],
) -> tuple[TrainState, dict[str, jax.Array]]:
    rows = {
        "words": chunk.word_rows,
        "contexts": chunk.word_rows[:text_rows],
        "documents": chunk.document_rows,
    }
    tables = state.parameters
    points = {name: tables[name].at[rows[name]].get(mode="fill", fill_value=0) for name in rows}

    optimizer = riemannian_sgd(chunk.rate[0], angular=options.objective == "joint")
    Moving = tuple[dict[str, jax.Array], Any]  # with the state of the optimizer

    def descend(carry: Moving, part: jax.Array) -> tuple[Moving, HingeSum]:
        moving, optimizer_state = carry

        def loss(moving: dict[str, jax.Array]) -> tuple[jax.Array, HingeSum]:
            return _chunk_loss(points | moving, chunk, options, part)

        gradients, hinges = jax.grad(loss, has_aux=True)(moving)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, moving)
        return (optax.apply_updates(moving, updates), optimizer_state), hinges

    moving = {name: points[name] for name in trained}
    start = moving, state.optimizer_state
    (moved, optimizer_state), hinges = jax.lax.scan(descend, start, jnp.arange(options.steps))
    hinges = jax.tree.map(jnp.sum, hinges)
    finite = jnp.isfinite(hinges.total)
    moved = jax.tree.map(lambda new, old: jnp.where(finite, new, old), moved, moving)
    nonfinite_steps = jnp.where(finite, 0, state.nonfinite_steps + 1)
    new = {name: tables[name].at[rows[name]].set(moved[name], mode="drop") for name in moved}
    metrics = {
        "loss": hinges.total / jnp.maximum(hinges.triples, 1),
        "weight": jnp.sum(chunk.words),
        "nonfinite_steps": nonfinite_steps,
    }
    state = state._replace(
        parameters=tables | new,
        optimizer_state=optimizer_state,
        step=state.step + 1,
        nonfinite_steps=nonfinite_steps,
    )
    return state, metrics


def _chunk_loss(
    points: dict[str, jax.Array], chunk: Chunk, options: JoseOptions, part: jax.Array
) -> tuple[jax.Array, HingeSum]:
    """The sum of ``block_loss`` over the blocks of a chunk; ``part`` of J offsets and places."""
    places, offsets = np.arange(options.block_size), np.arange(2 * options.window + 1)
    offsets -= offsets > options.window  # the one in the middle is none
    here = chunk.centers[:, options.window : options.window + options.block_size]

    def take(name: str, places: jax.Array) -> jax.Array:
        return points[name].at[places].get(mode="promise_in_bounds")

    # Both in one, so that their gradients are added up in one.
    words = take("words", jnp.concatenate([chunk.centers, chunk.negatives], axis=1))
    around = chunk.centers.shape[1]
    vectors = BlockVectors(
        centers=words[:, :around],
        contexts=take("contexts", here),
        documents=take("documents", chunk.documents),
        negatives=words[:, around:],
    )
    masks = BlockMasks(
        left=chunk.left.astype(jnp.int32),
        right=chunk.right.astype(jnp.int32),
        valid=chunk.valid & (places % options.steps == part)[None],
        offsets=jnp.broadcast_to(offsets % options.steps == part, (len(here), len(offsets))),
        collides=chunk.negatives[:, :, None] == here[:, None, :],
    )
    blocks = jax.vmap(partial(block_loss, options=options))(vectors, masks)
    return jax.tree.map(jnp.sum, blocks)
