"""Lookahead: an average of the parameters to which they return every few steps.

    slow_n = slow_{n-1} + slow_step_size · (fast - slow_{n-1}),   fast = slow_n    every sync_period

This is an exponential average with decay 1 - slow_step_size of every sync_period-th step, begun at
the initial parameters and written back. (A well-known port began its slow parameters at zero, and
so halved the parameters at the first synchronisation.)

Source: Michael Zhang, James Lucas, Geoffrey Hinton, Jimmy Ba, «Lookahead Optimizer: k steps
forward, 1 step back», 2019, arXiv 1907.08610.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from zoo.averaging.running import (
    AverageState,
    advance,
    applied,
    average_init,
    check_count,
    is_static,
)


def lookahead(
    *, sync_period: int = 5, slow_step_size: float | jax.Array = 0.5
) -> optax.GradientTransformation:
    """Makes the optimiser before it in the chain the fast one of Lookahead.

    Every ``sync_period`` steps: slow += slow_step_size · (fast - slow), fast = slow.

    Unlike ``optax.lookahead``, the parameters stay what they are, a tree, with which gradients are
    taken; the slow ones are in the state, and :func:`averaged_parameters` finds them.

    Args:
        sync_period: fast steps from one synchronisation to the next.
        slow_step_size: in (0, 1]; 1 is the fast optimiser alone.

    Returns:
        The transformation, to be the last in the chain.

    Raises:
        ValueError: if an argument is out of range; at update, if no parameters are given.
        TypeError: if sync_period is no integer.

    >>> optimizer = optax.chain(optax.sgd(1.0), lookahead(sync_period=2))
    >>> parameters, gradient = jnp.zeros(()), jnp.ones(())
    >>> state = optimizer.init(parameters)
    >>> for _ in range(2):
    ...     updates, state = optimizer.update(gradient, state, parameters)
    ...     parameters = optax.apply_updates(parameters, updates)
    ...     print(parameters)
    -1.0
    -1.0

    Reference: arXiv 1907.08610, algorithm 1.
    """
    check_count("sync_period", sync_period, at_least=1)
    if is_static(slow_step_size) and not 0 < slow_step_size <= 1:
        raise ValueError(f"slow_step_size must be in (0, 1], got {slow_step_size}")

    def gain(terms: jax.Array) -> jax.Array:
        size = jnp.asarray(slow_step_size)
        return jnp.where((size > 0) & (size <= 1), size, jnp.nan)

    def init(parameters: Any) -> AverageState:
        return average_init(parameters, debias=False)

    def update(updates: Any, state: AverageState, parameters: Any = None) -> tuple[Any, Any]:
        fast = applied(parameters, updates)
        state = advance(state, fast, gain=gain, start_step=0, every=sync_period)
        synchronised = state.steps % sync_period == 0

        def leaf(slow: jax.Array, parameter: jax.Array, update: jax.Array) -> jax.Array:
            back = (slow - parameter).astype(update.dtype)
            return jnp.where(synchronised, back, update)

        return jax.tree.map(leaf, state.average, parameters, updates), state

    return optax.GradientTransformation(init, update)
