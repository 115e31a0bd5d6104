"""Stochastic weight averaging: the plain mean of the parameters along the end of the training.

    average_n = average_{n-1} + (θ_n - average_{n-1}) / n

The rate stays high while it is taken, constant or in cycles, so that the θ_n lie around a wide
minimum and not all in one place; their mean is nearer to its middle than any of them.

Source: Pavel Izmailov, Dmitrii Podoprikhin, Timur Garipov, Dmitry Vetrov, Andrew Gordon Wilson,
«Averaging Weights Leads to Wider Optima and Better Generalization», 2018, arXiv 1803.05407.
"""

import jax
import optax

from zoo.averaging.running import Count, Mask, running_average


def stochastic_weight_average(
    *, start_step: Count, every: Count = 1, mask: Mask | None = None
) -> optax.GradientTransformation:
    """Keeps the mean of the parameters; passes the updates through unchanged.

    average_n = (θ_1 + … + θ_n) / n, over the parameters after steps that ``every`` divides.

    Args:
        start_step: averaging begins after so many steps (three quarters of the training, in the
            paper); until then the average is the parameters themselves.
        every: steps from one term to the next, such as those of an epoch, or of a cycle of the
            learning rate.
        mask: which leaves to average, as for :func:`parameter_ema`.

    Returns:
        The transformation; read it with :func:`averaged_parameters`. Networks with batch
        normalisation need their statistics anew: :func:`recompute_statistics`.

    Raises:
        ValueError: if start_step or every is out of range; at init, if the mask is False
            throughout; at update, if no parameters are given.
        TypeError: if start_step or every is no integer.

    >>> optimizer = optax.chain(optax.sgd(0.05), stochastic_weight_average(start_step=750))

    Reference: arXiv 1803.05407, algorithm 1.
    """

    def gain(terms: jax.Array) -> jax.Array:
        return 1 / terms

    return running_average(gain, debias=True, start_step=start_step, every=every, mask=mask)
