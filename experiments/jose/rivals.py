"""Gensim's word2vec and doc2vec on the documents of an experiment, scored in the same way.

    python -m experiments.jose.rivals --preset imdb

Skip-gram, and the bag of words that trains words too; window, dimension, passes, subsampling and
least count are those of the config, the five negatives gensim's own. Seconds are processor time, as
in the summary of the experiment.
"""

import functools
import time
from typing import Any

import numpy as np

from zoo.data import Vocabulary
from zoo.extras import require
from zoo.spherical import JoseEmbeddings
from zoo.training import open_workdir
from zoo.training.records import write_summary

from .. import command_line
from ..command_line import MAY_CHANGE
from .config import PRESETS, Config
from .documents import read_documents
from .train import read_pairs, report, score, score_words, tokenizer

NEGATIVES = 5


def run(config: Config) -> None:
    """Trains both and shows their scores."""
    word2vec = require("gensim.models.word2vec", "bench")
    doc2vec = require("gensim.models.doc2vec", "bench")
    documents, pairs = read_documents(config.data.uri), read_pairs(config)
    workdir = open_workdir(f"{config.workdir}_rivals", config, ignore=MAY_CHANGE)
    words = [tokenizer(config)(text) for text in documents.texts]
    options = {
        "vector_size": config.model.dimension,
        "window": config.model.window,
        "negative": NEGATIVES,
        "min_count": config.data.min_count,
        "sample": config.training.subsample,
        "epochs": config.training.passes,
        "seed": config.training.seed,
        "workers": 1,
    }
    summary: dict[str, Any] = {}
    for name, make, texts in (
        ("word2vec", functools.partial(word2vec.Word2Vec, sg=1), words),
        (
            "doc2vec",
            functools.partial(doc2vec.Doc2Vec, dm=0, dbow_words=1),
            [doc2vec.TaggedDocument(text, [row]) for row, text in enumerate(words)],
        ),
    ):
        begin = time.process_time()
        model = make(texts, **options)
        seconds = time.process_time() - begin
        vectors = unit(model.wv.vectors)
        # Where it has no vectors of documents: the mean of a document's words.
        means = np.stack([mean_vector(text, model.wv.key_to_index, vectors) for text in words])
        of_documents = unit(model.dv.vectors) if name == "doc2vec" else unit(means)
        vocabulary = Vocabulary(tuple(model.wv.index_to_key), "whitespace", special=())
        embeddings = JoseEmbeddings(vectors, vectors, of_documents, vocabulary)
        print(f"{name}: {seconds:.0f} s of the processor")
        scores = {"all documents": score(of_documents, documents, config)}
        similarity = score_words(embeddings, pairs)
        report(embeddings, scores, similarity, config)
        summary[name] = {
            "scores": scores,
            "word_similarity": similarity,
            "processor_seconds": seconds,
        }
    print("written:", write_summary(workdir, summary))


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1; zeros stay."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)


def mean_vector(text: list[str], rows: dict[str, int], vectors: np.ndarray) -> np.ndarray:
    """The mean of the vectors of the known words."""
    known = [rows[word] for word in text if word in rows]
    return vectors[known].mean(axis=0) if known else np.zeros(vectors.shape[1], vectors.dtype)


if __name__ == "__main__":
    from . import rivals  # under its own name, by which the folder is called

    command_line.main(rivals.run, PRESETS, __doc__)
