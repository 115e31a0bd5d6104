"""The original's optimiser: Adam without a first moment, its gradient clipped by the second.

    g ← clip(g, ±(3·√(v/(1 - β₂^t)) + 0.1)),   v of the step before
    v ← β₂·v + (1 - β₂)·g²
    θ ← θ - rate·√(1 - β₂^t)·g/(√v + ε)

A component may grow to three times its running size and a tenth more, which keeps a few bad chains
from moving the energy far. The first step is bounded by 0.1.

Source: Du, Mordatch, 2019, arXiv 1903.08689, and its code.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from zoo._checks import accumulator, number

WIDTH, SLACK = 3.0, 0.1  # of the bound, as published


class ClippedRmsState(NamedTuple):
    """State of ``scale_by_clipped_rms``.

    Attributes:
        step: ``[]`` int32, updates seen.
        rms: state of ``optax.scale_by_rms``; v is its ``nu``, in at least float32.
    """

    step: jax.Array
    rms: optax.ScaleByRmsState


def second_moment_bound(second_moment: jax.Array, correction: jax.Array) -> jax.Array:
    """``3·√(v/(1 - β₂^t)) + 0.1``: what the components of a gradient are clipped to.

    >>> print(second_moment_bound(jnp.array([0.0, 4e-3]), 1e-3).round(3))
    [0.1 6.1]
    """
    return WIDTH * jnp.sqrt(second_moment / correction) + SLACK


def scale_by_clipped_rms(
    *, decay: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """``g -> √(1 - β₂^t)·clip(g)/(√v + ε)``: ``optax.scale_by_rms`` of the clipped gradient.

    Args:
        decay: β₂ in [0, 1).
        eps: ε, added to the uncorrected √v (TensorFlow's "epsilon hat").

    Returns:
        An Optax transformation with ``ClippedRmsState``.

    Raises:
        ValueError: decay outside [0, 1), eps < 0.
    """
    decay = number("decay", decay, at_least=0, below=1)
    eps = number("eps", eps, at_least=0)
    # Of a number in double precision; of 0 the limit.
    exact = isinstance(decay, float) and decay > 0
    log_decay = math.log(decay) if exact else jnp.log(jnp.asarray(decay, jnp.float32))
    rms = optax.scale_by_rms(decay, eps, eps_in_sqrt=False)

    def init(parameters: Any) -> ClippedRmsState:
        wide = jax.tree.map(lambda p: p.astype(accumulator(p.dtype)), parameters)
        return ClippedRmsState(jnp.zeros((), jnp.int32), rms.init(wide))

    def update(
        updates: Any, state: ClippedRmsState, parameters: Any = None
    ) -> tuple[Any, ClippedRmsState]:
        del parameters
        step = optax.safe_increment(state.step)
        correction = -jnp.expm1(step * log_decay)  # 1 - β₂^t without cancellation

        def clip(g: jax.Array, v: jax.Array) -> jax.Array:
            bound = second_moment_bound(v, correction)  # v still of the step before, as published
            return jnp.clip(g.astype(v.dtype), -bound, bound)

        scaled, after = rms.update(jax.tree.map(clip, updates, state.rms.nu), state.rms)
        root = jnp.sqrt(correction)
        scaled = jax.tree.map(lambda s, g: (root * s).astype(g.dtype), scaled, updates)
        return scaled, ClippedRmsState(step, after)

    return optax.GradientTransformation(init, update)


def clipped_adam(
    learning_rate: optax.ScalarOrSchedule = 3e-4, *, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """``scale_by_clipped_rms`` with a learning rate: the complete optimiser.

    Args:
        learning_rate: number or schedule.
        b2: decay of the squares.
        eps: added to the uncorrected √v.

    Returns:
        An Optax transformation.

    >>> optimizer = clipped_adam()
    >>> updates, _ = optimizer.update(jnp.array([1.0]), optimizer.init(jnp.zeros(1)))
    >>> print(updates)
    [-0.000299999]
    """
    return optax.chain(
        scale_by_clipped_rms(decay=b2, eps=eps), optax.scale_by_learning_rate(learning_rate)
    )
