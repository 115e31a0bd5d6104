"""Averages of the weights of a network, beside or after its training (article 6575)."""

from zoo.averaging.exponential import average_update, parameter_ema
from zoo.averaging.lookahead import lookahead
from zoo.averaging.power import (
    post_hoc_average,
    post_hoc_weights,
    power_law_ema,
    power_law_exponent,
)
from zoo.averaging.running import AverageState, average_init, averaged_parameters
from zoo.averaging.statistics import recompute_statistics
from zoo.averaging.stochastic import stochastic_weight_average

__all__ = [
    "AverageState",
    "average_init",
    "average_update",
    "averaged_parameters",
    "lookahead",
    "parameter_ema",
    "post_hoc_average",
    "post_hoc_weights",
    "power_law_ema",
    "power_law_exponent",
    "recompute_statistics",
    "stochastic_weight_average",
]
