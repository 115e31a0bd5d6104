"""Conditional LayerNorm (https://kexue.fm/archives/7124)."""

from zoo.conditional.conversion import conditionalize
from zoo.conditional.guidance import ClassifierFreeGuidance
from zoo.conditional.layer_norm import conditional_layer_norm
from zoo.conditional.modules import ClassCondition, ConditionalLayerNorm, ConditionalRMSNorm

__all__ = [
    "ClassCondition",
    "ClassifierFreeGuidance",
    "ConditionalLayerNorm",
    "ConditionalRMSNorm",
    "conditional_layer_norm",
    "conditionalize",
]
