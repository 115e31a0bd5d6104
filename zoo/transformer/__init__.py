"""Transformers: BERT, GPT, UniLM and their pretraining (https://kexue.fm/archives/7055)."""

from zoo.transformer.bert_weights import bert_config, bert_state_dict, load_bert, save_bert
from zoo.transformer.config import TransformerConfig
from zoo.transformer.layers import KeyValueCache, LayerNorm
from zoo.transformer.loss import cross_entropy_sums, masked_cross_entropy
from zoo.transformer.model import Transformer
from zoo.transformer.objectives import (
    PretrainingExample,
    mask_tokens,
    next_tokens,
    split_prefix,
)
from zoo.transformer.optimizers import (
    AdamState,
    adamw,
    lamb,
    lazy_rows,
    piecewise_linear,
    scale_by_adam,
    scale_by_norm_ratio,
)
from zoo.transformer.packing import PackedRows, pack_sentences
from zoo.transformer.placement import placement_rules

__all__ = [
    "AdamState",
    "KeyValueCache",
    "LayerNorm",
    "PackedRows",
    "PretrainingExample",
    "Transformer",
    "TransformerConfig",
    "adamw",
    "bert_config",
    "bert_state_dict",
    "cross_entropy_sums",
    "lamb",
    "lazy_rows",
    "load_bert",
    "mask_tokens",
    "masked_cross_entropy",
    "next_tokens",
    "pack_sentences",
    "piecewise_linear",
    "placement_rules",
    "save_bert",
    "scale_by_adam",
    "scale_by_norm_ratio",
    "split_prefix",
]
