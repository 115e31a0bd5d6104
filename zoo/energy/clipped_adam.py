"""The original's optimiser: Adam whose gradient is clipped by what it has seen before.

    g ← clip(g, ±(3·√(v/(1 - β₂^t)) + 0.1)),   v of the step before; then Adam with β₁ = 0

A component may grow to three times its running size and a tenth more, which is what keeps a few bad
chains from moving the energy far. The first step is bounded by 0.1.

Source: Du, Mordatch, 2019, arXiv 1903.08689, and its code.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class ClipBySecondMomentState(NamedTuple):
    """State of ``clip_by_second_moment``.

    Attributes:
        step: ``[]`` int32, updates seen.
        second_moment: pytree like the parameters, float32.
    """

    step: jax.Array
    second_moment: Any


def clip_by_second_moment(
    *, decay: float = 0.999, width: float = 3.0, slack: float = 0.1
) -> optax.GradientTransformation:
    """Clips every component to ±(width·√v̂ + slack), v̂ the bias-corrected mean of clipped squares.

    Args:
        decay: β₂ in [0, 1).
        width: in standard deviations, at least 0.
        slack: added to the bound, at least 0.

    Returns:
        An Optax transformation.

    Raises:
        ValueError: decay outside [0, 1), a negative width or slack.

    >>> clip = clip_by_second_moment()
    >>> updates, _ = clip.update(jnp.array([1.0, -0.05]), clip.init(jnp.zeros(2)))
    >>> print(updates)
    [ 0.1  -0.05]
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay must be in [0, 1), got {decay}")
    for name, value in (("width", width), ("slack", slack)):
        if value < 0:
            raise ValueError(f"{name} must be at least 0, got {value}")

    def init(parameters: Any) -> ClipBySecondMomentState:
        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, _wide(p)), parameters)
        return ClipBySecondMomentState(jnp.zeros((), jnp.int32), zeros)

    def update(
        updates: Any, state: ClipBySecondMomentState, parameters: Any = None
    ) -> tuple[Any, ClipBySecondMomentState]:
        del parameters
        step = optax.safe_increment(state.step)
        # The code divides the moment of the step before by the correction of this one.
        correction = _correction(decay, step)

        def clipped(g: jax.Array, v: jax.Array) -> jax.Array:
            bound = width * jnp.sqrt(v / correction) + slack
            return jnp.clip(g.astype(v.dtype), -bound, bound)

        wide = jax.tree.map(clipped, updates, state.second_moment)
        moment = jax.tree.map(
            lambda g, v: decay * v + (1 - decay) * g**2, wide, state.second_moment
        )
        narrow = jax.tree.map(lambda g, like: g.astype(like.dtype), wide, updates)
        return narrow, ClipBySecondMomentState(step, moment)

    return optax.GradientTransformation(init, update)


def clipped_adam(
    learning_rate: optax.ScalarOrSchedule = 3e-4,
    *,
    b1: float = 0.0,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """Adam behind ``clip_by_second_moment``, with the original's numbers.

    ``eps`` is TensorFlow's «epsilon hat»: it is added to the uncorrected √v, so that the step is
    ``learning_rate·√(1 - β₂^t)/(1 - β₁^t)·m/(√v + eps)``.

    Args:
        learning_rate: number or schedule.
        b1: decay of the mean; keep 0, the target moves.
        b2: decay of the squares, also for the clipping.
        eps: see above.

    Returns:
        An Optax transformation.

    Raises:
        ValueError: b2 outside [0, 1).

    >>> optimizer = clipped_adam()
    >>> updates, _ = optimizer.update(jnp.array([1.0]), optimizer.init(jnp.zeros(1)))
    >>> print(updates)
    [-0.000299999]
    """
    return optax.chain(
        clip_by_second_moment(decay=b2),
        _scale_by_adam_hat(b1, b2, eps),
        optax.scale_by_learning_rate(learning_rate),
    )


def _scale_by_adam_hat(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    def init(parameters: Any) -> optax.ScaleByAdamState:
        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, _wide(p)), parameters)
        copy = jax.tree.map(jnp.copy, zeros)
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros, copy)

    def update(
        updates: Any, state: optax.ScaleByAdamState, parameters: Any = None
    ) -> tuple[Any, optax.ScaleByAdamState]:
        del parameters
        count = optax.safe_increment(state.count)
        mean = jax.tree.map(lambda g, m: b1 * m + (1 - b1) * g.astype(m.dtype), updates, state.mu)
        square = jax.tree.map(
            lambda g, v: b2 * v + (1 - b2) * g.astype(v.dtype) ** 2, updates, state.nu
        )
        rate = jnp.sqrt(_correction(b2, count)) / _correction(b1, count)
        scaled = jax.tree.map(
            lambda m, v, g: (rate * m / (jnp.sqrt(v) + eps)).astype(g.dtype), mean, square, updates
        )
        return scaled, optax.ScaleByAdamState(count, mean, square)

    return optax.GradientTransformation(init, update)


def _correction(decay: float, step: jax.Array) -> jax.Array:
    """1 - decay^step without cancellation: 1 - 0.999 has but four digits in float32."""
    return -jnp.expm1(step * math.log(decay)) if decay else jnp.ones(())


def _wide(leaf: jax.Array) -> Any:
    return jnp.promote_types(leaf.dtype, jnp.float32)
