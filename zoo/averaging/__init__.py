"""Averages of the weights of a network, beside or after its training (article 6575)."""

from zoo.averaging.exponential import average_init, average_update, parameter_ema
from zoo.averaging.lookahead import lookahead
from zoo.averaging.power import post_hoc_average, power_law_ema
from zoo.averaging.reading import averaged_module, averaged_parameters
from zoo.averaging.stochastic import stochastic_weight_average

__all__ = [
    "average_init",
    "average_update",
    "averaged_module",
    "averaged_parameters",
    "lookahead",
    "parameter_ema",
    "post_hoc_average",
    "power_law_ema",
    "stochastic_weight_average",
]
