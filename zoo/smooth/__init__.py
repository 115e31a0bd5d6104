"""Smooth versions of functions that jump (https://kexue.fm/archives/6620)."""

from zoo.smooth.argmax import smooth_argmax, soft_one_hot
from zoo.smooth.extrema import smooth_abs, smooth_max, smooth_min, smooth_sign, smooth_step
from zoo.smooth.hardening import harden, straight_through
from zoo.smooth.metrics import (
    multilabel_cross_entropy,
    smooth_accuracy,
    smooth_auc,
    smooth_f1,
    smooth_precision,
    smooth_recall,
)
from zoo.smooth.rank import soft_rank
from zoo.smooth.relu import smooth_relu
from zoo.smooth.rounding import smooth_floor, smooth_round
from zoo.smooth.top_k import soft_top_k

__all__ = [
    "harden",
    "multilabel_cross_entropy",
    "smooth_abs",
    "smooth_accuracy",
    "smooth_argmax",
    "smooth_auc",
    "smooth_f1",
    "smooth_floor",
    "smooth_max",
    "smooth_min",
    "smooth_precision",
    "smooth_recall",
    "smooth_relu",
    "smooth_round",
    "smooth_sign",
    "smooth_step",
    "soft_one_hot",
    "soft_rank",
    "soft_top_k",
    "straight_through",
]
