"""Conditional LayerNorm (https://kexue.fm/archives/7124)."""

from zoo.conditional.conversion import conditionalize
from zoo.conditional.layer_norm import (
    conditional_layer_norm,
    conditional_rms_norm,
    drop_condition,
)
from zoo.conditional.modules import (
    ClassCondition,
    ConditionalLayerNorm,
    ConditionalRMSNorm,
    conditioned_on,
)

__all__ = [
    "ClassCondition",
    "ConditionalLayerNorm",
    "ConditionalRMSNorm",
    "conditional_layer_norm",
    "conditional_rms_norm",
    "conditionalize",
    "conditioned_on",
    "drop_condition",
]
