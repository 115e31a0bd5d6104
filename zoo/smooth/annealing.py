"""From smooth to exact: a falling temperature, and a last stretch that ends at the exact operator.

A temperature that falls makes a smooth operator sharp, and its gradient small; at 0 there is none.
So the temperature falls to a small positive value, and from there on the *value* moves over to the
exact one, while the gradient stays that of the smooth operator:

    harden(hard, soft, w) = (1 - w) soft + w hard,   gradient of soft,   w from 0 to 1

At w = 1 the value is the exact operator's to the last bit (a straight-through estimator), so that
what was trained is what will be used.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from zoo.smooth.argmax import check_alike


def temperature_schedule(
    start: float,
    end: float,
    num_steps: int,
    *,
    shape: Literal["geometric", "linear", "cosine"] = "geometric",
) -> Callable[[ArrayLike], jax.Array]:
    """A temperature that goes from ``start`` to ``end`` in ``num_steps`` steps and stays there.

    Args:
        start: τ at step 0, positive.
        end: τ from step ``num_steps`` on, positive.
        num_steps: at least 1.
        shape: ``"geometric"`` takes the same factor at each step, ``"linear"`` the same difference,
            ``"cosine"`` half a wave.

    Returns:
        A schedule as Optax has them: step -> temperature, a float32 scalar.

    Raises:
        ValueError: if an argument is out of its range.

    >>> schedule = temperature_schedule(1.0, 0.01, 100)
    >>> [round(float(schedule(step)), 4) for step in (0, 50, 100, 200)]
    [1.0, 0.1, 0.01, 0.01]
    """
    for name, value in (("start", start), ("end", end)):
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"temperature_schedule: {name} must be positive, got {value}")
    if not num_steps >= 1:
        raise ValueError(f"temperature_schedule: num_steps must be at least 1, got {num_steps}")
    if shape not in _SHAPES:
        raise ValueError(
            f"temperature_schedule: shape must be one of {', '.join(_SHAPES)}, got {shape!r}"
        )

    def temperature(step: ArrayLike) -> jax.Array:
        done = jnp.clip(jnp.asarray(step, jnp.float32) / num_steps, 0, 1)
        return jnp.where(done == 1, jnp.float32(end), _SHAPES[shape](start, end, done))

    return temperature


def harden(hard: Any, soft: Any, hardness: ArrayLike) -> Any:
    """(1 - w) soft + w hard with the gradient of ``soft``; exactly ``hard`` from w = 1 on.

    Args:
        hard: the exact operator's value, an array or a tree of arrays.
        soft: the smooth one's: the same structure, shapes and dtypes.
        hardness: w, clipped to [0, 1]; a schedule such as
            ``optax.linear_schedule(0.0, 1.0, 1000, transition_begin=9000)`` gives it.

    Returns:
        The mixture; no gradient flows into ``hard`` and ``hardness``.

    Raises:
        ValueError: if structures, shapes or dtypes differ.

    >>> import jax, jax.numpy as jnp
    >>> from zoo.smooth import soft_one_hot
    >>> def choice(x, hardness):
    ...     soft = soft_one_hot(x, temperature=0.5)
    ...     return harden(jax.nn.one_hot(jnp.argmax(x), 3), soft, hardness)
    >>> x = jnp.array([0.2, 0.5, 0.1])
    >>> [choice(x, w).round(3).tolist() for w in (0.0, 0.5, 1.0)]
    [[0.275, 0.500, 0.225], [0.137, 0.750, 0.112], [0.0, 1.0, 0.0]]
    """
    check_alike("harden", hard, soft)
    return _mix(hard, soft, jnp.asarray(hardness, jnp.float32))


@jax.custom_jvp
def _mix(hard: Any, soft: Any, hardness: jax.Array) -> Any:
    def mix(hard: jax.Array, soft: jax.Array) -> jax.Array:
        hard, soft = jnp.asarray(hard), jnp.asarray(soft)
        w = jnp.clip(hardness, 0, 1).astype(jnp.promote_types(soft.dtype, jnp.float32))
        mixed = ((1 - w) * soft + w * hard).astype(soft.dtype)
        return jnp.where(w == 1, hard, jnp.where(w == 0, soft, mixed))

    return jax.tree.map(mix, hard, soft)


@_mix.defjvp
def _mix_jvp(primals: tuple, tangents: tuple) -> tuple[Any, Any]:
    return _mix(*primals), tangents[1]


_SHAPES: dict[str, Callable[[float, float, jax.Array], jax.Array]] = {
    "geometric": lambda start, end, done: start * jnp.exp(done * math.log(end / start)),
    "linear": lambda start, end, done: start + (end - start) * done,
    "cosine": lambda start, end, done: end + (start - end) * (1 + jnp.cos(math.pi * done)) / 2,
}
