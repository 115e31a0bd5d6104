"""Data by URI, vocabularies, and pipelines that give the same batches however they are run."""

from zoo.data.corpus import (
    build_character_vocabulary,
    build_vocabulary,
    build_word_vocabulary,
    encode_lines,
    train_subword_vocabulary,
)
from zoo.data.generators import wrap_generator
from zoo.data.images import image_arrays
from zoo.data.pipeline import Pipeline, StreamPipeline
from zoo.data.sources import Source, open_source
from zoo.data.vocabulary import Vocabulary, check_vocabulary

__all__ = [
    "Pipeline",
    "Source",
    "StreamPipeline",
    "Vocabulary",
    "build_character_vocabulary",
    "build_vocabulary",
    "build_word_vocabulary",
    "check_vocabulary",
    "encode_lines",
    "image_arrays",
    "open_source",
    "train_subword_vocabulary",
    "wrap_generator",
]
