"""Vectors of unseen documents: the words stay as they are, only the documents' vectors move.

    d ← N(d + a Σ_words Σ_K (1 - u·d + u'·d) [(u - u') - (u·d - u'·d) d])   where u·d - u'·d < m

It is the training step with two of the three tables frozen.

Source: the document hinge of the program of arXiv 1911.01196, which itself embeds only the
documents that it is trained on.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoo.spherical.corpus import Corpus, Tokenizer, encode_corpus
from zoo.spherical.embeddings import JoseEmbeddings
from zoo.spherical.geometry import normalize
from zoo.spherical.optimizers import riemannian_sgd
from zoo.spherical.options import JoseOptions
from zoo.spherical.sampling import ChunkSampler
from zoo.spherical.trainer import compile_step
from zoo.training import TrainState


def embed_documents(
    embeddings: JoseEmbeddings, corpus: Corpus, *, tokenizer: Tokenizer = str.split, **options: Any
) -> np.ndarray:
    """Vectors of documents that were not trained on, next to those that were.

    Args:
        embeddings: the trained model; its words stay as they are.
        corpus: path of a text with a document per line, or an iterable of documents.
        tokenizer: text -> words, as in training.
        **options: fields of :class:`zoo.spherical.options.JoseOptions`, as in training; the
            objective is ``"two_hinges"``, and there are neither windows nor shuffling.

    Returns:
        float32 ``[documents, D]``; zero for a document without a known word.

    Raises:
        ValueError: if an option is out of its range or another dimension than the model's, the
            vocabulary has no counts, or the text is not UTF-8.
        TypeError: if an option is unknown, or the corpus is an iterator or holds no strings.

    >>> from zoo.spherical import train_jose
    >>> model = train_jose(["sun moon sun moon", "ox cow ox cow"] * 9, dimension=4, passes=1)
    >>> vectors = embed_documents(model, ["moon sun", "cow", "iron"])
    >>> np.linalg.norm(vectors, axis=-1).round(3)
    array([1., 1., 0.], dtype=float32)
    """
    size = embeddings.words.shape[1]
    settings = JoseOptions(**{"dimension": size, **options}).checked()
    if settings.dimension != size:
        raise ValueError(f"dimension must be that of the model, {size}, got {settings.dimension}")
    # The window only sizes the pool of negatives: K (2W + 1) for the words of a block.
    settings = settings._replace(objective="two_hinges", shuffle=False, window=5)
    encoded = encode_corpus(corpus, embeddings.vocabulary, tokenizer=tokenizer)
    chunks = ChunkSampler(encoded, embeddings.vocabulary.counts, settings)
    # From the mean of its words: a short document moves only a little.
    bounds = zip(encoded.starts[:-1], encoded.starts[1:], strict=True)
    sums = [embeddings.words[encoded.ids[begin:end]].sum(axis=0) for begin, end in bounds]
    start = jnp.asarray(np.array(sums, np.float32).reshape(-1, size))
    tables = {
        "words": jnp.asarray(embeddings.words),
        "contexts": jnp.asarray(embeddings.contexts),
        "documents": normalize(start),
    }
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        parameters=tables,
        optimizer_state=riemannian_sgd(settings.learning_rate).init(tables),
        key=jax.random.key(settings.seed),
        nonfinite_steps=jnp.zeros((), jnp.int32),
    )
    step = compile_step(settings, chunks.text_rows, tables=("documents",))
    for chunk in chunks if len(start) else ():
        state, _ = step(state, chunk)
    return np.asarray(state.parameters["documents"])
