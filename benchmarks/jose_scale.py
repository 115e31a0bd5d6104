"""Words per second and memory of JoSE's step as the vocabulary and the number of documents grow.

    python -m benchmarks.jose_scale                       # every row
    python -m benchmarks.jose_scale 1000000 10000000      # one: words of the vocabulary, documents

Documents of ten words after Zipf's law. The tables are complete; of the text only the chunks that
are timed are drawn, the rest of it only takes its memory. Each row is a process of its own.
"""

import functools
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from zoo.spherical import riemannian_sgd, trainer
from zoo.spherical.corpus import EncodedCorpus
from zoo.spherical.options import JoseOptions
from zoo.spherical.sampling import ChunkSampler
from zoo.training import init_state, make_mesh, put_batch

ROWS = ((10_000, 100_000), (100_000, 1_000_000), (1_000_000, 1_000_000), (1_000_000, 10_000_000))
LENGTH, WARM, TIMED = 10, 20, 200  # words per document; chunks
OPTIONS = JoseOptions(window=10, passes=1)


def chunks_and_tables(
    options: JoseOptions, vocabulary: int, documents: int, words: int, drawn: int, shards: int
) -> tuple[ChunkSampler, Callable[..., Any]]:
    """Chunks of Zipf's words, of which the first are drawn, and the initialiser of the tables."""
    shares = 1 / np.arange(1, vocabulary + 1)
    shares /= shares.sum()
    ids = np.zeros(words, np.int32)
    ids[:drawn] = np.random.default_rng(0).choice(vocabulary, len(ids[:drawn]), p=shares)
    corpus = EncodedCorpus(ids, np.append(np.arange(0, words, LENGTH), words))
    chunks = ChunkSampler(corpus, np.maximum(shares * words, 1).astype(np.int64), options)
    shape: Any = {"words": vocabulary, "contexts": vocabulary, "documents": documents}
    shape = {"sizes": shape, "dimension": options.dimension, "shards": shards}
    return chunks, functools.partial(trainer.initial_tables, **shape)


def measure(vocabulary: int, documents: int) -> str:
    """Trains some chunks; one row of the table."""
    words = documents * LENGTH
    drawn = 4 * 1024 * (WARM + TIMED)  # subsampling drops some of them
    chunks, tables = chunks_and_tables(OPTIONS, vocabulary, documents, words, drawn, 1)
    mesh, optimizer = make_mesh(), riemannian_sgd(OPTIONS.learning_rate)
    state = init_state(tables, optimizer, key=jax.random.key(0), mesh=mesh, rules=trainer.RULES)
    step = trainer.compile_step(OPTIONS, chunks.text_rows)
    read, begin = 0.0, 0.0
    for number in range(WARM + TIMED):
        if number == WARM:
            jax.block_until_ready(state)
            begin = time.perf_counter()
        chunk = next(chunks)
        read += float(np.sum(chunk.words)) if number >= WARM else 0
        state, _ = step(state, put_batch(chunk, mesh))
    jax.block_until_ready(state)
    rate = read / (time.perf_counter() - begin)
    chunks.close()
    size = 4 * OPTIONS.dimension * (2 * vocabulary + documents) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    counts = " | ".join(f"{number:,}" for number in (vocabulary, documents, words))
    return f"| {counts} | {size:.2f} | {peak:.2f} | {rate:,.0f} |"


def main(arguments: list[str]) -> None:
    """Prints the table, or one row of it."""
    if arguments:
        print(measure(*map(int, arguments)), flush=True)
        return
    print("| vocabulary | documents | words | tables, GiB | peak, GiB | words per second |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    for row in ROWS:
        subprocess.run([sys.executable, "-m", __spec__.name, *map(str, row)], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
