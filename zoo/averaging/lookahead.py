"""Lookahead: an average of the parameters to which they return every few steps.

    slow_n = slow_{n-1} + slow_step_size · (fast - slow_{n-1}),   fast = slow_n

This is an exponential average with decay 1 - slow_step_size of every sync_period-th step, started
from the initial parameters (not from zero, as in a well-known port) and written back.

Source: Michael Zhang, James Lucas, Geoffrey Hinton, Jimmy Ba, "Lookahead Optimizer: k steps
forward, 1 step back", 2019, arXiv 1907.08610.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from zoo import _checks
from zoo._paths import spread
from zoo.averaging.exponential import (
    AverageState,
    Steps,
    average_init,
    average_update,
    next_parameters,
    updates_like,
)


def lookahead(
    *, sync_period: Steps = 5, slow_step_size: float | jax.Array = 0.5
) -> optax.GradientTransformation:
    """Turns the optimiser before it in the chain into the fast one of Lookahead.

    Every ``sync_period`` steps: slow += slow_step_size · (fast - slow), fast = slow.

    Unlike with ``optax.lookahead``, the parameters stay one tree; the slow ones are in the state,
    and :func:`averaged_parameters` finds them.

    Args:
        sync_period: fast steps from one synchronisation to the next.
        slow_step_size: in (0, 1]; 1 is the fast optimiser alone.

    Returns:
        The transformation, to be the last in the chain.

    Raises:
        ValueError: if an argument is out of range; at update, if no parameters are given.
        TypeError: if sync_period is not an integer.

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
    if not isinstance(sync_period, jax.core.Tracer):
        sync_period = _checks.count("sync_period", sync_period, at_least=1)
    decay = 1 - _checks.number("slow_step_size", slow_step_size, above=0, at_most=1)

    def init(parameters: Any) -> AverageState:
        return average_init(parameters, debias=False)

    def update(updates: Any, state: AverageState, parameters: Any = None) -> tuple[Any, Any]:
        fast = next_parameters(parameters, updates)
        state = average_update(state, fast, decay=decay, every=sync_period)
        synchronised = (state.steps % sync_period == 0) | (sync_period < 1)  # then slow is NaN

        def leaf(parameter: jax.Array, slow: jax.Array, update: Any) -> Any:
            if update is None or not jnp.issubdtype(update.dtype, jnp.inexact):
                return update
            back = slow - jnp.asarray(parameter).astype(slow.dtype)
            return jnp.where(synchronised, back.astype(update.dtype), update)

        moved = jax.tree.map(leaf, parameters, state.average, updates_like(parameters, updates))
        return spread(moved, updates, name="params", is_leaf=lambda leaf: leaf is None), state

    return optax.GradientTransformation(init, update)
