"""The corpus of JoSE's cases, and the programs that train on it beside ours."""

import functools
import os
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from zoo.extras import require

WINDOW, NEGATIVES = 10, 2


@functools.cache
def corpus(words: int, vocabulary: int, length: int) -> tuple[str, ...]:
    """Documents of Zipf's words: the frequency falls as 1 / rank."""
    random = np.random.default_rng(0)
    shares = np.cumsum(1 / np.arange(1, vocabulary + 1))
    ids = np.searchsorted(shares, random.random(words) * shares[-1])
    rows = ids[: words // length * length].reshape(-1, length)
    return tuple(" ".join(f"w{i}" for i in row) for row in rows.tolist())


def original(*, words: int, vocabulary: int, length: int, dimension: int) -> Callable[[], Any]:
    """The authors' program on all cores; its complete run, reading and writing included."""
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


def trained(model: Any, texts: list[Any]) -> Callable[[], Any]:
    """One epoch of a model of gensim."""
    model.build_vocab(texts)
    return lambda: model.train(texts, total_examples=len(texts), epochs=1)


def options(dimension: int) -> dict[str, Any]:
    """Those of gensim that JoSE has too."""
    workers = len(os.sched_getaffinity(0))
    shared = {"vector_size": dimension, "window": WINDOW, "negative": NEGATIVES, "min_count": 1}
    return shared | {"sample": 1e-3, "workers": workers}


def word2vec(*, dimension: int, **size: int) -> Callable[[], Any]:
    """Gensim's skip-gram with the same window and negatives: words only, no documents."""
    models = require("gensim.models", "bench")
    texts = [text.split() for text in corpus(**size)]
    return trained(models.Word2Vec(sg=1, **options(dimension)), texts)


def doc2vec(*, dimension: int, **size: int) -> Callable[[], Any]:
    """Gensim's doc2vec (bag of words with word training) with the same window and negatives."""
    doc2vec = require("gensim.models.doc2vec", "bench")
    texts = [doc2vec.TaggedDocument(t.split(), [n]) for n, t in enumerate(corpus(**size))]
    return trained(doc2vec.Doc2Vec(dm=0, dbow_words=1, **options(dimension)), texts)
