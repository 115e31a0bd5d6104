"""Smooth one-hot vector and smooth argmax.

    soft_one_hot(x)_i = e^{x_i/τ} / Σ_j e^{x_j/τ}      smooth_argmax(x) = Σ_i i soft_one_hot(x)_i

The smooth argmax is a mean of indices: between two equal peaks it gives an index that has no mass
at all, as smooth_argmax([10, 0, 0, 0, 10]) = 2. The gradients of both vanish as τ falls; a
straight-through estimator or a falling temperature is the usual cure.

Source: Jianlin Su, "Function smoothing", 2019, https://kexue.fm/archives/6620.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from zoo import _checks
from zoo.smooth.derivatives import below_peak, check_arguments


def soft_one_hot(x: jax.Array, *, temperature: ArrayLike = 1.0, axis: int = -1) -> jax.Array:
    """Smooth one-hot vector of the argmax: the softmax of x/τ.

    Args:
        x: ``[..., items]``; -inf gives 0, and several inf share.
        temperature: τ > 0, in the units of ``x``.
        axis: the axis of the items.

    Returns:
        Probabilities of the shape and dtype of ``x``, computed in at least float32; all 0 where
        every item is -inf. The error is at most (N - 1) e^{-gap/τ}, with the gap between the
        largest item and the next; items that tie share.

    Raises:
        TypeError: if ``x`` is not a floating-point array.
        ValueError: if ``temperature`` is not positive, or below 1e-34 in float32 (a traced one
            gives NaN), or ``x`` has no such axis.

    >>> import jax.numpy as jnp
    >>> soft_one_hot(jnp.array([2.0, 1.0, 4.0, 5.0, 3.0])).tolist()
    [0.0317, 0.0117, 0.2341, 0.6364, 0.0861]

    Reference: https://kexue.fm/archives/6620.
    """
    x, wide, temperature = check_arguments(x, temperature)
    axis = _checks.axis("axis", axis, x)
    weights = jnp.exp(below_peak(wide, temperature, axis=axis)[0])
    total = jnp.sum(weights, axis=axis, keepdims=True)
    return (weights / jnp.where(total == 0, 1, total)).astype(x.dtype)


def smooth_argmax(x: jax.Array, *, temperature: ArrayLike = 1.0, axis: int = -1) -> jax.Array:
    """Smooth argmax, the mean index Σ_i i soft_one_hot(x)_i, counted from 0.

    Args:
        x: ``[..., items]``, at least one.
        temperature: τ > 0, in the units of ``x``.
        axis: the axis of the items.

    Returns:
        ``[...]`` in the dtype of ``x``, computed in at least float32; float16 holds no odd index
        above 2048, bfloat16 none above 256. NaN with gradient 0 where every item is -inf.

    Raises:
        TypeError: if ``x`` is not a floating-point array.
        ValueError: as for :func:`soft_one_hot`, or if there are no items.

    >>> import jax.numpy as jnp
    >>> x = jnp.array([2.0, 1.0, 4.0, 5.0, 3.0])
    >>> print(smooth_argmax(x), smooth_argmax(x, temperature=0.1))
    2.7336 3.0000

    Reference: https://kexue.fm/archives/6620 (which counts from 1).
    """
    x, wide = _checks.widened("x", x)
    axis = _checks.axis("axis", axis, x)
    if x.shape[axis] == 0:
        raise ValueError(f"smooth_argmax: x must have at least one item, got {x.shape=}")
    index = lax.broadcasted_iota(wide.dtype, x.shape, axis)
    weights = soft_one_hot(wide, temperature=temperature, axis=axis)
    mean = jnp.sum(index * weights, axis=axis)
    return jnp.where(jnp.max(wide, axis=axis) == -jnp.inf, jnp.nan, mean).astype(x.dtype)
