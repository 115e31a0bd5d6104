"""Data by URI, vocabularies, and pipelines that give the same batches however they are run."""

from zoo.data.corpus import build_vocabulary, encode_lines
from zoo.data.generators import wrap_generator
from zoo.data.pipeline import Pipeline, StreamPipeline
from zoo.data.sources import Source, open_source
from zoo.data.vocabulary import Vocabulary

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
