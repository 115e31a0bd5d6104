"""The exact operator with the gradient of a smooth one.

    straight_through(hard, soft) = hard, with the gradient of soft
    harden(hard, soft, w) = straight_through((1 - w) soft + w hard, soft)

A falling temperature makes a smooth operator sharp and its gradient small; at 0 there is none. So
let the temperature fall to a small positive value, as
``optax.exponential_decay(1.0, num_steps, 0.01, end_value=0.01)`` does, and then let w rise from 0
to 1: at w = 1 the value is the exact operator's to the last bit, so that what was trained is what
will be used.

Source: Yoshua Bengio, Nicholas Léonard, Aaron Courville, "Estimating or Propagating Gradients
Through Stochastic Neurons for Conditional Computation", 2013, arXiv 1308.3432.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from zoo import _checks


def straight_through(hard: Any, soft: Any) -> Any:
    """The value of ``hard``, to the last bit, with the gradient of ``soft``.

    Args:
        hard: an array, or a tree of arrays.
        soft: the same structure, shapes and dtypes.

    Returns:
        ``hard``; no gradient flows into it.

    Raises:
        ValueError: if structures, shapes or dtypes differ.

    >>> import jax, jax.numpy as jnp
    >>> x = jnp.array([-0.3, 0.2])
    >>> binary = lambda x: straight_through(jnp.where(x > 0, 1.0, 0.0), jax.nn.sigmoid(x))
    >>> print(binary(x), jax.grad(lambda x: binary(x).sum())(x))
    [0. 1.] [0.2445 0.2475]

    Reference: arXiv 1308.3432, section 4.
    """
    _check_alike(hard, soft)
    return _value_of_first(hard, soft)


def harden(hard: Any, soft: Any, hardness: ArrayLike) -> Any:
    """(1 - w) soft + w hard with the gradient of ``soft``; exactly ``hard`` at w = 1.

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
    >>> def choose(x, hardness):
    ...     soft = soft_one_hot(x, temperature=0.5)
    ...     return harden(jax.nn.one_hot(jnp.argmax(x), 3), soft, hardness)
    >>> x = jnp.array([0.2, 0.5, 0.1])
    >>> [choose(x, w).round(3).tolist() for w in (0.0, 0.5, 1.0)]
    [[0.275, 0.500, 0.225], [0.137, 0.750, 0.112], [0.0, 1.0, 0.0]]
    """
    _check_alike(hard, soft)

    def mix(hard: jax.Array, soft: jax.Array) -> jax.Array:
        hard, soft = jnp.asarray(hard), jnp.asarray(soft)
        w = jnp.clip(hardness, 0, 1).astype(_checks.accumulator(soft.dtype))
        mixed = ((1 - w) * soft + w * hard).astype(soft.dtype)
        return jnp.where(w == 1, hard, jnp.where(w == 0, soft, mixed))

    hardness = jnp.asarray(hardness, jnp.float32)
    return straight_through(jax.tree.map(mix, *lax.stop_gradient((hard, soft))), soft)


@jax.custom_jvp
def _value_of_first(hard: Any, soft: Any) -> Any:
    return hard


@_value_of_first.defjvp
def _value_of_first_jvp(primals: tuple, tangents: tuple) -> tuple[Any, Any]:
    # soft + stop_gradient(hard - soft), the usual trick, misses hard by a rounding.
    return _value_of_first(*primals), tangents[1]


def _check_alike(hard: Any, soft: Any) -> None:
    def describe(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: (jnp.shape(leaf), str(jnp.result_type(leaf))), tree)

    if (expected := describe(soft)) != (got := describe(hard)):
        raise ValueError(
            f"hard must have the structure, shapes and dtypes of soft, {expected}, got {got}; "
            "convert it, for example hard.astype(soft.dtype)"
        )
