"""Smooth versions of functions that jump (https://kexue.fm/archives/6620)."""

from zoo.smooth.argmax import smooth_argmax, soft_one_hot
from zoo.smooth.comparisons import soft_equal, soft_greater, soft_less
from zoo.smooth.extrema import smooth_abs, smooth_max, smooth_min, smooth_sign, smooth_step
from zoo.smooth.hardening import straight_through
from zoo.smooth.logic import soft_all, soft_and, soft_any, soft_not, soft_or
from zoo.smooth.metrics import (
    multilabel_cross_entropy,
    smooth_accuracy,
    smooth_auc,
    smooth_f1,
    smooth_precision,
    smooth_recall,
)
from zoo.smooth.rank import soft_rank
from zoo.smooth.relu import smooth_clip, smooth_relu
from zoo.smooth.rounding import smooth_floor, smooth_round
from zoo.smooth.selection import soft_take, soft_where
from zoo.smooth.sort import soft_argsort, soft_median, soft_quantile, soft_sort
from zoo.smooth.top_k import soft_top_k

__all__ = [
    "multilabel_cross_entropy",
    "smooth_abs",
    "smooth_accuracy",
    "smooth_argmax",
    "smooth_auc",
    "smooth_clip",
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
    "soft_all",
    "soft_and",
    "soft_any",
    "soft_argsort",
    "soft_equal",
    "soft_greater",
    "soft_less",
    "soft_median",
    "soft_not",
    "soft_one_hot",
    "soft_or",
    "soft_quantile",
    "soft_rank",
    "soft_sort",
    "soft_take",
    "soft_top_k",
    "soft_where",
    "straight_through",
]
