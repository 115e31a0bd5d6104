"""Smooth maximum and minimum, absolute value, sign and step.

    smooth_max(x) = τ log Σ_i e^{x_i/τ}         max < smooth_max ≤ max + τ log n
    smooth_abs(x) = τ log(e^{x/τ} + e^{-x/τ})   its derivative is smooth_sign(x) = tanh(x/τ)
    smooth_step(x) = 1 / (1 + e^{-x/τ})

All tend to the exact operator as the temperature τ falls to 0; the articles write K = 1/τ. The
smooth maximum is the logsumexp; the softmax is its gradient, a smooth one-hot vector.

Source: Jianlin Su, "Function smoothing", 2019, https://kexue.fm/archives/6620; the bounds:
https://kexue.fm/archives/3290, 9070.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from zoo.smooth.derivatives import (
    below_peak,
    check_arguments,
    check_mask,
    logistic,
    logistic_slope,
    scaled,
    with_slopes,
)

Axis = int | tuple[int, ...] | None


def smooth_max(
    x: jax.Array,
    *,
    temperature: ArrayLike = 1.0,
    axis: Axis = -1,
    keepdims: bool = False,
    where: jax.Array | None = None,
) -> jax.Array:
    """Smooth maximum, τ log Σ_i e^{x_i/τ}.

    Convex, 1-Lipschitz in the largest difference, and max < smooth_max ≤ max + τ log n.

    Args:
        x: ``[..., items]``; -inf takes no part.
        temperature: τ > 0, in the units of ``x``.
        axis: what to reduce over; None for everything.
        keepdims: keep the reduced axes with length 1.
        where: bool, broadcasts to ``x``: which items take part. The others may be anything.

    Returns:
        ``[...]`` in the dtype of ``x``, computed in at least float32. Without any item -inf, with
        gradient 0.

    Raises:
        TypeError: if ``x`` is not a floating-point array.
        ValueError: if ``temperature`` is not positive, or below 1e-34 in float32 (a traced one
            gives NaN), or ``where`` is not bool or does not fit.

    >>> import jax.numpy as jnp
    >>> x = jnp.array([2.0, 1.0, 4.0, 5.0, 3.0])
    >>> [round(float(smooth_max(x, temperature=t)), 4) for t in (1.0, 0.5, 0.1)]
    [5.4519, 5.0727, 5.0]

    Reference: https://kexue.fm/archives/3290.
    """
    x, wide, temperature = check_arguments(x, temperature)
    where = None if where is None else check_mask(where, x.shape)
    u, peak = below_peak(wide, temperature, axis=axis, where=where)
    total = jnp.sum(jnp.exp(u), axis=axis, keepdims=True)
    empty = total == 0
    smooth = peak + temperature * jnp.log(jnp.where(empty, 1, total))
    smooth = jnp.where(empty, -jnp.inf, smooth)
    return (smooth if keepdims else jnp.squeeze(smooth, axis)).astype(x.dtype)


def smooth_min(
    x: jax.Array,
    *,
    temperature: ArrayLike = 1.0,
    axis: Axis = -1,
    keepdims: bool = False,
    where: jax.Array | None = None,
) -> jax.Array:
    """Smooth minimum, -τ log Σ_i e^{-x_i/τ}: min - τ log n ≤ smooth_min < min.

    Args, Raises: as for :func:`smooth_max`; inf takes no part.

    Returns:
        ``[...]`` in the dtype of ``x``; without any item inf.

    >>> import jax.numpy as jnp
    >>> print(smooth_min(jnp.array([2.0, 1.0, 4.0]), temperature=0.5).round(4))
    0.936

    Reference: https://kexue.fm/archives/3290.
    """
    negative = -jnp.asarray(x)
    return -smooth_max(negative, temperature=temperature, axis=axis, keepdims=keepdims, where=where)


def smooth_abs(x: jax.Array, *, temperature: ArrayLike = 1.0) -> jax.Array:
    """Smooth absolute value, τ log(e^{x/τ} + e^{-x/τ}).

    Its error |x| < smooth_abs ≤ |x| + τ log 2 is the largest at 0; its derivative is tanh(x/τ).

    Args:
        x: any shape.
        temperature: τ > 0, in the units of ``x``.

    Returns:
        The shape and dtype of ``x``, computed in at least float32.

    Raises:
        TypeError, ValueError: as for :func:`smooth_max`.

    >>> import jax.numpy as jnp
    >>> smooth_abs(jnp.array([-2.0, 0.0, 0.5]), temperature=0.2).round(4).tolist()
    [2.0, 0.1386, 0.5013]

    Reference: https://kexue.fm/archives/6620.
    """
    x, wide, temperature = check_arguments(x, temperature)
    return _absolute(wide, temperature).astype(x.dtype)


def smooth_sign(x: jax.Array, *, temperature: ArrayLike = 1.0) -> jax.Array:
    """Smooth sign, tanh(x/τ): the derivative of :func:`smooth_abs`.

    Args:
        x: any shape.
        temperature: τ > 0, in the units of ``x``.

    Returns:
        The shape and dtype of ``x``, in [-1, 1], computed in at least float32; the error is at
        most 2 e^{-2|x|/τ}.

    Raises:
        TypeError, ValueError: as for :func:`smooth_max`.

    >>> import jax.numpy as jnp
    >>> smooth_sign(jnp.array([-2.0, 0.0, 0.1]), temperature=0.2).round(4).tolist()
    [-1.0, 0.0, 0.4621]

    Reference: https://kexue.fm/archives/6620.
    """
    x, wide, temperature = check_arguments(x, temperature)
    return _tanh(scaled(wide, temperature)).astype(x.dtype)


def smooth_step(x: jax.Array, *, temperature: ArrayLike = 1.0) -> jax.Array:
    """Smooth unit step, σ(x/τ) = 1 / (1 + e^{-x/τ}).

    Args:
        x: any shape.
        temperature: τ > 0, in the units of ``x``.

    Returns:
        The shape and dtype of ``x``, in [0, 1], computed in at least float32; the error is at
        most e^{-|x|/τ}.

    Raises:
        TypeError, ValueError: as for :func:`smooth_max`.

    >>> import jax.numpy as jnp
    >>> smooth_step(jnp.array([-2.0, 0.0, 0.1]), temperature=0.2).round(4).tolist()
    [0.0, 0.5, 0.6225]

    Reference: https://kexue.fm/archives/6620.
    """
    x, wide, temperature = check_arguments(x, temperature)
    return logistic(scaled(wide, temperature)).astype(x.dtype)


@jax.custom_jvp
def _tanh(u: jax.Array) -> jax.Array:
    return jnp.tanh(u)


@_tanh.defjvp
def _tanh_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    # 1 - tanh² loses all digits where tanh rounds to 1.
    (u,), (du,) = primals, tangents
    return _tanh(u), 4 * logistic_slope(2 * u) * du


def _entropy(x: jax.Array, temperature: jax.Array) -> jax.Array:
    """Of the choice between x and -x, in nats: the derivative of smooth_abs in τ."""
    twice = 2 * jnp.abs(scaled(x, temperature))
    return jnp.log1p(jnp.exp(-twice)) + twice * logistic(-twice)


_absolute = with_slopes(
    # Equal to τ log(e^{x/τ} + e^{-x/τ}), without overflow.
    lambda x, t: jnp.abs(x) + t * jnp.log1p(jnp.exp(-2 * jnp.abs(scaled(x, t)))),
    in_x=lambda x, t: _tanh(scaled(x, t)),
    in_temperature=_entropy,
)
