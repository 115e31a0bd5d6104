"""Averages of the weights of a network, beside or after its training (article 6575).

Beside the libraries that have one too:

- ``flax.nnx.EMA(model, decay)`` averages the variables of one NNX module, with one constant decay
  and the initial values as a term, by an ``update`` after each step. It is enough for that;
  ``parameter_ema(decay, debias=False)`` gives the same numbers. The averages here live in the
  optimiser's state instead, for dicts, Linen and NNX alike, and are saved, sharded and resumed with
  it. They add bias correction, schedules, warm-up, a late start, every k-th step, masks, float32
  averages of half-precision parameters, and model state whose counters and keys are carried.
- ``optax.ema`` averages updates, which is momentum, not parameters. ``optax.incremental_update`` is
  one step of :func:`average_update` without its count, so without bias correction.
- ``optax.lookahead`` keeps a pair of trees that callers must unpack; :func:`lookahead` keeps one.
- ``torch.optim.swa_utils`` has the plain mean, :func:`stochastic_weight_average` here.

Power-law averages and :func:`post_hoc_average` have no counterpart in JAX that is known.
"""

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
