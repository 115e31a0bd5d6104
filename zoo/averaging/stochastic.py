"""Stochastic weight averaging: the plain mean of the parameters along the end of the training.

    average_n = average_{n-1} + (θ_n - average_{n-1}) / n

The learning rate stays high meanwhile, constant or in cycles, so that the θ_n lie around a wide
minimum; their mean is nearer to its middle than any of them.

Source: Pavel Izmailov, Dmitrii Podoprikhin, Timur Garipov, Dmitry Vetrov, Andrew Gordon Wilson,
"Averaging Weights Leads to Wider Optima and Better Generalization", 2018, arXiv 1803.05407.
"""

import functools
from typing import Any

import optax

from zoo.averaging.exponential import Mask, Steps, average_of_parameters, running_update


def stochastic_weight_average(
    *,
    start_step: Steps,
    every: Steps = 1,
    mask: Mask = None,
    model_state: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Keeps the mean of the parameters; passes the updates through unchanged.

    average_n = (θ_1 + … + θ_n) / n, over the parameters after steps that ``every`` divides.

    Args:
        start_step: averaging starts after so many steps (three quarters of the training, in the
            paper); until then the average is the parameters themselves.
        every: steps from one term to the next, such as an epoch or a cycle of the learning rate.
        mask: which leaves to average, as for :func:`parameter_ema`.
        model_state: what else to average, as there.

    Returns:
        The transformation; read it with :func:`averaged_parameters`. Batch normalisation needs new
        statistics for the mean: ``zoo.averaging.statistics.recompute_statistics``.

    Raises:
        ValueError, TypeError: as :func:`parameter_ema`.

    >>> optimizer = optax.chain(optax.sgd(0.05), stochastic_weight_average(start_step=750))

    Reference: arXiv 1803.05407, algorithm 1.
    """
    update = functools.partial(running_update, share=lambda terms: 1 / terms)
    return average_of_parameters(update, True, start_step, every, mask, model_state)
