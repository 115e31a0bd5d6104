"""Data by URI, vocabularies, and pipelines that give the same batches however they are run."""

from zoo.data.corpus import (
    build_character_vocabulary,  # noqa: F401 - callers move to build_vocabulary
    build_vocabulary,
    build_word_vocabulary,  # noqa: F401
    encode_lines,
    train_subword_vocabulary,  # noqa: F401
)
from zoo.data.generators import wrap_generator
from zoo.data.images import image_arrays  # noqa: F401
from zoo.data.pipeline import Pipeline, StreamPipeline
from zoo.data.sources import Source, open_source
from zoo.data.vocabulary import Vocabulary, check_vocabulary  # noqa: F401

__all__ = [
    "Pipeline",
    "Source",
    "StreamPipeline",
    "Vocabulary",
    "build_vocabulary",
    "encode_lines",
    "open_source",
    "wrap_generator",
]
