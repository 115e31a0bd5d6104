"""Smooth comparisons: the probability that one number is above, below or near another.

    soft_greater(x, y) = σ((x - y)/τ)        soft_less(x, y) = σ((y - x)/τ)
    soft_equal(x, y) = P(x - y < δ) P(x - y > -δ) / P(0 < δ)²,   P(a < b) = σ((b - a)/τ)

They are comparisons of x with y + τ times logistic noise. All end at the exact ones: with d the
distance to the nearest jump the error is at most e^{-d/τ} (4 e^{-d/τ} for soft_equal), and at the
jump itself, x = y or |x - y| = δ > 0, there stays 1/2. soft_equal is 1 at x = y at any temperature,
and (1 + cosh δ/τ) / (cosh (x - y)/τ + cosh δ/τ) in closed form. Greater and greater-or-equal differ
where x = y only, and are one function; not equal is soft_not(soft_equal).

Source: Jianlin Su, "Function smoothing", 2019, https://kexue.fm/archives/6620 (the step); the
smooth equality is ours.
"""

import math

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from zoo import _checks
from zoo.smooth.derivatives import check_arguments, logistic, logistic_slope, scaled


def soft_greater(x: ArrayLike, y: ArrayLike, *, temperature: ArrayLike = 1.0) -> jax.Array:
    """Probability that x is above y, σ((x - y)/τ); also of ≥.

    Args:
        x: any shape.
        y: broadcasts to ``x`` or ``x`` to it; equal infinities are equal.
        temperature: τ > 0, in the units of both.

    Returns:
        In [0, 1], in the dtype that both have together, computed in at least float32.

    Raises:
        TypeError: if neither is a floating-point array.
        ValueError: if they do not broadcast, or ``temperature`` is not positive, or below 1e-34 in
            float32 (a traced one gives NaN).

    >>> import jax.numpy as jnp
    >>> soft_greater(jnp.array([1.0, 2.0, 4.0]), 2.0, temperature=0.5).round(4).tolist()
    [0.1192, 0.5, 0.9820]
    """
    dtype, difference, temperature = _difference(x, y, temperature)
    return _probability(difference, temperature).astype(dtype)


def soft_less(x: ArrayLike, y: ArrayLike, *, temperature: ArrayLike = 1.0) -> jax.Array:
    """Probability that x is below y, soft_greater(y, x); also of ≤.

    Args, Returns, Raises: as for :func:`soft_greater`.

    >>> import jax.numpy as jnp
    >>> soft_less(jnp.array([1.0, 2.0, 4.0]), 2.0, temperature=0.5).round(4).tolist()
    [0.8808, 0.5, 0.0180]
    """
    return soft_greater(y, x, temperature=temperature)


def soft_equal(
    x: ArrayLike, y: ArrayLike, *, temperature: ArrayLike = 1.0, tolerance: ArrayLike = 0.0
) -> jax.Array:
    """Smooth equality: 1 at x = y, 0 far from it, for any tolerance δ = 0 or above.

    Args:
        x: this and the rest as for :func:`soft_greater`.
        y: broadcasts to ``x`` or ``x`` to it.
        temperature: τ > 0, in the units of both.
        tolerance: δ ≥ 0, one number: how far apart they may be; ``isclose`` has
            δ = 1e-8 + 1e-5 |y|.

    Returns:
        In [0, 1], as for :func:`soft_greater`; for δ = 0 it is 1 - tanh²((x - y)/2τ).

    Raises:
        TypeError, ValueError: as for :func:`soft_greater`, or if ``tolerance`` is negative.

    >>> import jax.numpy as jnp
    >>> x = jnp.array([2.0, 2.1, 2.5, 3.0])
    >>> soft_equal(x, 2.0, temperature=0.1).round(4).tolist()
    [1.0, 0.7864, 0.0266, 0.0002]
    >>> soft_equal(x, 2.0, temperature=0.1, tolerance=0.5).round(4).tolist()
    [1.0, 0.9928, 0.5067, 0.0068]
    """
    dtype, difference, temperature = _difference(x, y, temperature)
    tolerance = _checks.number("tolerance", tolerance, at_least=0)
    if isinstance(tolerance, float) and tolerance == 0:  # the same with one exponential
        return (4 * logistic_slope(scaled(difference, temperature))).astype(dtype)
    tolerance = jnp.asarray(tolerance, difference.dtype)

    def below(distance: jax.Array) -> jax.Array:
        return logistic(scaled(distance, temperature))

    near = below(tolerance - difference) * below(tolerance + difference)
    return (near / below(tolerance) ** 2).astype(dtype)


def _difference(
    x: ArrayLike, y: ArrayLike, temperature: ArrayLike
) -> tuple[jnp.dtype, jax.Array, jax.Array]:
    """The common dtype, x - y in at least float32, and the temperature."""
    dtype = jnp.result_type(x, y)
    try:
        shape = jnp.broadcast_shapes(jnp.shape(x), jnp.shape(y))
    except ValueError:
        raise ValueError(
            f"x and y must broadcast, got shapes {jnp.shape(x)} and {jnp.shape(y)}"
        ) from None
    finite = isinstance(y, (int, float)) and math.isfinite(y)
    x, y = (jnp.broadcast_to(jnp.asarray(v, dtype), shape) for v in (x, y))
    _, x, temperature = check_arguments(x, temperature)
    subtract = jnp.subtract if finite else _subtract
    return dtype, subtract(x, y.astype(x.dtype)), temperature


@jax.custom_jvp
def _probability(difference: jax.Array, temperature: jax.Array) -> jax.Array:
    """logistic(scaled(difference, temperature)); a value needs no limits."""
    return jax.nn.sigmoid(difference / temperature)


def _probability_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (difference, temperature), (moved, warmed) = primals, tangents
    if isinstance(moved, SymbolicZero):
        moved = jnp.zeros_like(difference)
    if isinstance(warmed, SymbolicZero):  # the temperature is a constant, as nearly always
        return jax.jvp(lambda d: logistic(scaled(d, temperature)), (difference,), (moved,))
    return jax.jvp(lambda d, t: logistic(scaled(d, t)), primals, (moved, warmed))


_probability.defjvp(_probability_jvp, symbolic_zeros=True)


@jax.custom_jvp
def _subtract(x: jax.Array, y: jax.Array) -> jax.Array:
    """The difference, with inf - inf = 0."""
    return jnp.where(x == y, 0, x - y)


@_subtract.defjvp
def _subtract_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    return _subtract(*primals), tangents[0] - tangents[1]
