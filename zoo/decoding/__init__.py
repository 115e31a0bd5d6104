"""Texts from a model that predicts the next token (https://kexue.fm/archives/7124)."""

from zoo.decoding.beams import Beams, beam_search
from zoo.decoding.filters import filter_logits, penalize_repetition
from zoo.decoding.sampling import Samples, sample
from zoo.decoding.steps import Prefilled, StepFunction, guide, guide_logits, prefill

__all__ = [
    "Beams",
    "Prefilled",
    "Samples",
    "StepFunction",
    "beam_search",
    "filter_logits",
    "guide",
    "guide_logits",
    "penalize_repetition",
    "prefill",
    "sample",
]
