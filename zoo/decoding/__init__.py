"""Generation from a model that predicts the next token (https://kexue.fm/archives/7124)."""

from zoo.decoding.beams import beam_search
from zoo.decoding.filters import filter_logits
from zoo.decoding.sampling import sample
from zoo.decoding.steps import guide, prefill

__all__ = [
    "beam_search",
    "filter_logits",
    "guide",
    "prefill",
    "sample",
]
