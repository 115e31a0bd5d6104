"""Smooth one-hot vector and argmax, and the exact ones with a smooth gradient.

    soft_one_hot(x)_i = e^{x_i/τ} / Σ_j e^{x_j/τ}      smooth_argmax(x) = Σ_i i soft_one_hot(x)_i

The smooth argmax is a mean of indices: between two equal peaks it gives an index that has no mass
at all, as smooth_argmax([10, 0, 0, 0, 10]) = 2. The gradients of both die as τ falls; a
straight-through estimator or a falling temperature is the usual cure.

Source: Jianlin Su, «Function smoothing», 2019, https://kexue.fm/archives/6620; straight-through:
Yoshua Bengio, Nicholas Léonard, Aaron Courville, «Estimating or Propagating Gradients Through
Stochastic Neurons for Conditional Computation», 2013, arXiv 1308.3432.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from zoo.smooth.numerics import check_axis, check_temperature, widen


def soft_one_hot(x: jax.Array, *, temperature: ArrayLike = 1.0, axis: int = -1) -> jax.Array:
    """Smooth one-hot vector of the argmax: the softmax of x/τ.

    Args:
        x: ``[..., items]``; -inf gives 0.
        temperature: τ > 0, in the units of ``x``.
        axis: the axis of the items.

    Returns:
        Probabilities of the shape and dtype of ``x``, computed in at least float32.

    Raises:
        TypeError: if ``x`` is not a floating-point array.
        ValueError: if ``temperature`` is not positive (a traced one gives NaN), or ``x`` has no
            such axis.

    >>> import jax.numpy as jnp
    >>> soft_one_hot(jnp.array([2.0, 1.0, 4.0, 5.0, 3.0])).tolist()
    [0.0317, 0.0117, 0.2341, 0.6364, 0.0861]

    Reference: https://kexue.fm/archives/6620.
    """
    x, wide = widen(x, "soft_one_hot: x")
    temperature = check_temperature(temperature, "soft_one_hot", wide)
    axis = check_axis(x, axis, "soft_one_hot")
    if x.shape[axis] == 0:
        return x
    return _softmax(wide, temperature, axis).astype(x.dtype)


def smooth_argmax(x: jax.Array, *, temperature: ArrayLike = 1.0, axis: int = -1) -> jax.Array:
    """Smooth argmax, the mean index Σ_i i softmax(x/τ)_i, counted from 0.

    Args:
        x: ``[..., items]``, at least one.
        temperature: τ > 0, in the units of ``x``.
        axis: the axis of the items.

    Returns:
        ``[...]`` in the dtype of ``x``, computed in at least float32; float16 holds no odd index
        above 2048, bfloat16 none above 256.

    Raises:
        TypeError: if ``x`` is not a floating-point array.
        ValueError: if ``temperature`` is not positive (a traced one gives NaN), or ``x`` has no
            such axis or no items.

    >>> import jax.numpy as jnp
    >>> x = jnp.array([2.0, 1.0, 4.0, 5.0, 3.0])
    >>> print(smooth_argmax(x), smooth_argmax(x, temperature=0.1))
    2.7336 3.0000

    Reference: https://kexue.fm/archives/6620 (which counts from 1).
    """
    x, wide = widen(x, "smooth_argmax: x")
    temperature = check_temperature(temperature, "smooth_argmax", wide)
    axis = check_axis(x, axis, "smooth_argmax")
    if x.shape[axis] == 0:
        raise ValueError(f"smooth_argmax: x must have at least one item, got {x.shape=}")
    index = lax.broadcasted_iota(wide.dtype, x.shape, axis)
    return jnp.sum(index * _softmax(wide, temperature, axis), axis=axis).astype(x.dtype)


def straight_through(hard: Any, soft: Any) -> Any:
    """The value of ``hard``, to the last bit, with the gradient of ``soft``.

    Args:
        hard: an array, or a tree of arrays.
        soft: the same structure, shapes and dtypes.

    Returns:
        ``hard``; nothing flows back into it.

    Raises:
        ValueError: if structures, shapes or dtypes differ.

    >>> import jax, jax.numpy as jnp
    >>> x = jnp.array([-0.3, 0.2])
    >>> binary = lambda x: straight_through(jnp.where(x > 0, 1.0, 0.0), jax.nn.sigmoid(x))
    >>> print(binary(x), jax.grad(lambda x: binary(x).sum())(x))
    [0. 1.] [0.2445 0.2475]

    Reference: arXiv 1308.3432, section 4.
    """
    check_alike("straight_through", hard, soft)
    return _value_of_first(hard, soft)


@jax.custom_jvp
def _value_of_first(hard: Any, soft: Any) -> Any:
    return hard


@_value_of_first.defjvp
def _value_of_first_jvp(primals: tuple, tangents: tuple) -> tuple[Any, Any]:
    # soft + stop_gradient(hard - soft), the usual trick, misses hard by a rounding.
    return _value_of_first(*primals), tangents[1]


def check_alike(function: str, hard: Any, soft: Any) -> None:
    """Raises a ValueError unless both trees have the same structure, shapes and dtypes."""

    def describe(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: (jnp.shape(leaf), str(jnp.result_type(leaf))), tree)

    if (expected := describe(soft)) != (got := describe(hard)):
        raise ValueError(
            f"{function}: hard must have the structure, shapes and dtypes of soft, {expected}, "
            f"got {got}; convert it, for example hard.astype(soft.dtype)"
        )


def _softmax(wide: jax.Array, temperature: jax.Array, axis: int) -> jax.Array:
    # The difference comes first: x/τ itself may overflow.
    peak = lax.stop_gradient(jnp.max(wide, axis=axis, keepdims=True))
    return jax.nn.softmax((wide - peak) / temperature, axis=axis)
