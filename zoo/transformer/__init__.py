"""Transformers: BERT, GPT, UniLM and their pretraining (https://kexue.fm/archives/7055)."""

from zoo.transformer.config import TransformerConfig
from zoo.transformer.loss import masked_cross_entropy
from zoo.transformer.model import Transformer
from zoo.transformer.objectives import mask_tokens, next_tokens, split_prefix
from zoo.transformer.packing import pack_sentences
from zoo.transformer.placement import placement_rules
from zoo.transformer.weights import load_bert, load_transformer, save_transformer

__all__ = [
    "Transformer",
    "TransformerConfig",
    "load_bert",
    "load_transformer",
    "mask_tokens",
    "masked_cross_entropy",
    "next_tokens",
    "pack_sentences",
    "placement_rules",
    "save_transformer",
    "split_prefix",
]
