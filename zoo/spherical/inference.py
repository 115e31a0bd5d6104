"""Vectors of unseen documents: the words stay as they are, only the documents' vectors move.

    d ← N(d + a Σ_words Σ_K (1 - u·d + u'·d) [(u - u') - (u·d - u'·d) d])   where u·d - u'·d < m

It is the training step with two of the three tables frozen.

Source: the document hinge of the program of arXiv 1911.01196, which itself embeds only the
documents that it is trained on.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zoo.spherical.corpus import Corpus, Tokenizer, encode_corpus
from zoo.spherical.embeddings import JoseEmbeddings
from zoo.spherical.geometry import normalize
from zoo.spherical.sampling import ChunkSampler
from zoo.spherical.trainer import train_step
from zoo.training import TrainState


def embed_documents(
    embeddings: JoseEmbeddings,
    corpus: Corpus,
    *,
    passes: int = 10,
    negatives: int = 2,
    margin: float = 0.15,
    learning_rate: float = 0.04,
    subsample: float = 1e-3,
    tokenizer: Tokenizer = str.split,
    seed: int = 0,
) -> np.ndarray:
    """Vectors of documents that were not trained on, next to those that were.

    Args:
        embeddings: the trained model; its words stay as they are.
        corpus: path of a text with a document a line, or an iterable of documents.
        passes: over the documents.
        negatives: K random words a word.
        margin: m of the hinge.
        learning_rate: at the start; falls linearly.
        subsample: the frequency above which words are dropped at random; 0 keeps all.
        tokenizer: text -> words, as in training.
        seed: of all random numbers.

    Returns:
        float32 ``[documents, D]``; zero for a document without a known word.

    Raises:
        ValueError: if the text is not UTF-8.

    >>> from zoo.spherical import train_jose
    >>> model = train_jose(["sun moon sun moon", "ox cow ox cow"] * 9, dimension=4, passes=1)
    >>> vectors = embed_documents(model, ["moon sun", "cow", "iron"])
    >>> np.linalg.norm(vectors, axis=-1).round(3)
    array([1., 1., 0.], dtype=float32)
    """
    encoded = encode_corpus(corpus, embeddings.vocabulary, tokenizer=tokenizer)
    chunks = ChunkSampler(
        encoded,
        embeddings.vocabulary.counts,
        window=5,  # only sizes the pool of negatives: K (2W + 1) for the 32 words of a block
        negatives=negatives,
        passes=passes,
        learning_rate=learning_rate,
        subsample=subsample,
        shuffle=False,
        chunk_size=1024,
        block_size=32,
        seed=seed,
    )
    # From the mean of its words: a short document moves only a little.
    bounds = zip(encoded.starts[:-1], encoded.starts[1:], strict=True)
    sums = [embeddings.words[encoded.ids[begin:end]].sum(axis=0) for begin, end in bounds]
    start = jnp.asarray(np.array(sums, np.float32).reshape(-1, embeddings.words.shape[1]))
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        parameters={
            "words": jnp.asarray(embeddings.words),
            "contexts": jnp.asarray(embeddings.contexts),
            "documents": normalize(start),
        },
        optimizer_state=optax.EmptyState(),
        key=jax.random.key(seed),
        nonfinite_steps=jnp.zeros((), jnp.int32),
    )
    step = jax.jit(
        partial(
            train_step,
            objective="two_hinges",
            margin=margin,
            text_rows=chunks.text_rows,
            only_documents=True,
        ),
        donate_argnums=0,
    )
    for chunk in chunks if len(start) else ():
        state, _ = step(state, chunk)
    return np.asarray(state.parameters["documents"])
