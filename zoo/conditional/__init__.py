"""Conditional LayerNorm (https://kexue.fm/archives/7124)."""

from zoo.conditional.conversion import conditionalize
from zoo.conditional.layer_norm import conditional_layer_norm
from zoo.conditional.modules import ClassCondition, ConditionalLayerNorm, ConditionalRMSNorm

__all__ = [
    "ClassCondition",
    "ConditionalLayerNorm",
    "ConditionalRMSNorm",
    "conditional_layer_norm",
    "conditionalize",
]
