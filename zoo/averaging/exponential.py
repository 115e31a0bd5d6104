"""Exponential moving average of the parameters, which the training itself never sees.

    average_n = decay · average_{n-1} + (1 - decay) · θ_n

θ_n are the parameters after step n. Started from θ_0 it is that line; debiased it is divided by
1 - decay^n and holds θ_1 … θ_n alone. Its memory is about 1 / (1 - decay) steps: noise around a
fixed point loses all but (1 - decay) / (1 + decay) of its variance, and a drift of slope s is
followed decay · s / (1 - decay) behind.

Source: article https://kexue.fm/archives/6575 and https://kexue.fm/archives/6583; Boris Polyak,
Anatoli Juditsky, «Acceleration of Stochastic Approximation by Averaging», 1992, SIAM Journal on
Control and Optimization 30.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from zoo.averaging.running import (
    AverageState,
    Count,
    Gain,
    Mask,
    advance,
    check_count,
    is_static,
    running_average,
)

Decay = ArrayLike | Callable[[jax.Array], ArrayLike]


def average_update(
    state: AverageState,
    values: Any,
    *,
    decay: Decay,
    warmup: bool = False,
    start_step: Count = 0,
    every: Count = 1,
) -> AverageState:
    """One step of an exponential average of any tree: statistics, activations, metrics.

    Args:
        state: from ``average_init`` or an earlier update.
        values: the newest tree, structured like the first.
        decay: as for :func:`parameter_ema`, and so are the other arguments.
        warmup: whether the decay is at most (1 + n) / (10 + n) at the n-th term.
        start_step: steps before the first that is averaged.
        every: only the tree of every so many steps is averaged.

    Returns:
        The new state.

    Raises:
        ValueError: if decay is not in [0, 1), start_step is negative or every less than 1.
        TypeError: if start_step or every is no integer.

    >>> from zoo.averaging import average_init
    >>> state = average_init(jnp.zeros(()))
    >>> for value in (1.0, 2.0):
    ...     state = average_update(state, jnp.float32(value), decay=0.5)
    >>> float(state.average)
    1.667
    """
    check_count("start_step", start_step, at_least=0)
    check_count("every", every, at_least=1)
    gain = exponential_gain(decay, warmup)
    return advance(state, values, gain=gain, start_step=start_step, every=every)


def parameter_ema(
    decay: Decay,
    *,
    debias: bool = True,
    warmup: bool = False,
    start_step: Count = 0,
    every: Count = 1,
    mask: Mask | None = None,
) -> optax.GradientTransformation:
    """Keeps an exponential moving average of the parameters; passes the updates through unchanged.

    average_n = decay · average_{n-1} + (1 - decay) · θ_n, and divided by 1 - decay^n if debiased.

    It comes last in a chain, where it sees the updates as they will be applied; read it with
    :func:`averaged_parameters`. Inside ``optax.MultiSteps`` it counts the real steps; outside,
    behind a ``MultiSteps(..., k)`` in a chain, give it ``every=k``.

    Args:
        decay: in [0, 1); or a schedule of the number of terms averaged before (0, 1, …), or an
            array. There, values outside [0, 1] give NaN, and 1 - decay has the precision of
            float32 (of 0.9999 it is off by 2e-4 of itself).
        debias: whether the parameters at the start are left out of the average (True), or are a
            term of it that fades (False).
        warmup: whether the decay is at most (1 + n) / (10 + n) at the n-th term, as in TensorFlow.
        start_step: averaging begins with the parameters after step ``start_step + 1``; until then
            the average is the parameters themselves.
        every: steps from one that is averaged to the next; only those cost anything.
        mask: which leaves to average, as for ``optax.masked``: a tree of truth values like the
            parameters (or a prefix of it), or a function from them to one.

    Returns:
        The transformation. Its state is an ``AverageState`` of the shape of the parameters, in at
        least float32: in bfloat16 an average with decay 0.9999 would never move.

    Raises:
        ValueError: if decay is not in [0, 1), start_step is negative or every less than 1; at init,
            if the mask is False throughout; at update, if no parameters are given.
        TypeError: if start_step or every is no integer.

    >>> optimizer = optax.chain(optax.adam(1e-3), parameter_ema(0.999))
    >>> state = optimizer.init({"kernel": jnp.ones((2, 3))})
    >>> state[-1].average["kernel"].shape
    (2, 3)

    Reference: https://kexue.fm/archives/6575.
    """
    gain = exponential_gain(decay, warmup)
    return running_average(gain, debias=debias, start_step=start_step, every=every, mask=mask)


def exponential_gain(decay: Decay, warmup: bool) -> Gain:
    """The share 1 - decay of a term, in float64 where it is known before tracing."""
    if is_static(decay) and not 0 <= decay < 1:  # type: ignore[operator]
        raise ValueError(
            f"decay must be in [0, 1), got {decay}; 0.999 averages over about 1000 steps"
        )

    def gain(terms: jax.Array) -> ArrayLike:
        if is_static(decay):
            share: Any = 1 - decay  # type: ignore[operator]
        else:
            value = jnp.asarray(decay(terms - 1) if callable(decay) else decay)
            share = jnp.where((value >= 0) & (value <= 1), 1 - value, jnp.nan)
        return jnp.maximum(share, 9 / (10 + terms)) if warmup else share

    return gain
