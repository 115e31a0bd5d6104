"""Cases of `zoo.spherical`: a pass of JoSE over a corpus, and the sums of its blocks."""

from benchmarks.case import Case
from benchmarks.cases import jose_programs as programs

CASES = [
    Case(
        name="spherical.train_jose",
        sizes={
            "tiny": {"words": 20_000, "vocabulary": 1_000, "length": 100, "dimension": 16},
            "news": {"words": 2_000_000, "vocabulary": 30_000, "length": 300, "dimension": 100},
            "large vocabulary": {
                "words": 2_000_000,
                "vocabulary": 1_000_000,
                "length": 300,
                "dimension": 100,
            },
            "short documents": {
                "words": 2_000_000,
                "vocabulary": 30_000,
                "length": 10,
                "dimension": 100,
            },
        },
        small=("tiny",),
        build=programs.train,
        rivals={
            "authors' program": programs.original,
            "gensim word2vec": programs.word2vec,
            "gensim doc2vec": programs.doc2vec,
        },
        count=programs.words_read,
        unit="words",
        floor=programs.train_floor,
    ),
    Case(
        name="spherical.block_descent",
        sizes={
            "small": {"positions": 256, "dimension": 100},
            "chunk": {"positions": 1024, "dimension": 100},
            "large": {"positions": 16_384, "dimension": 100},
        },
        small=("small", "chunk"),
        build=programs.block_products,
        rivals={"loop over triples": programs.triple_loop},
        equal=("loop over triples",),
        count=lambda positions, dimension: positions,
        unit="positions",
        floor=programs.block_floor,
    ),
]
