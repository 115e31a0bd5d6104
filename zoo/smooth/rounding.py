"""Smooth floor and round: staircases whose every step is a sigmoid.

    smooth_floor(x) = Σ_{n ≤ 0} (σ((x - n)/τ) - 1) + Σ_{n > 0} σ((x - n)/τ)   over all integers n

The article cuts the sum to -M … N, which holds for -M ≪ x ≪ N only. Here x is reduced to the
nearest step first, so that it holds for every x. For a steep staircase a few neighbours suffice;
for a flat one its Fourier series converges as fast (both are one series, by Poisson summation):

    smooth_floor(x) = x - 1/2 + Σ_{m ≥ 1} 2πτ sin(2πmx) / sinh(2π²mτ)

Source: Jianlin Su, "Function smoothing", 2019, https://kexue.fm/archives/6620, and "Smooth
functions from the delta function", 2021, https://kexue.fm/archives/8718.
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from zoo.smooth.derivatives import check_arguments, logistic, scaled

STEEP = 0.25  # the temperature at which both series fall fast
# By the bytes of a float. The next term would be below e^{-22} or e^{-29}, and e^{-42} or e^{-54}.
TERMS = {4: 5, 8: 10}


def smooth_floor(x: jax.Array, *, temperature: ArrayLike = 0.1) -> jax.Array:
    """Smooth largest integer not above x: a staircase with a sigmoid at every integer.

    Args:
        x: any shape, in units of a step; ±inf stay, with gradient 0.
        temperature: τ > 0, the width of a step's edge; from about 1 on nothing is left but the
            slope, x - 1/2.

    Returns:
        The shape and dtype of ``x``, computed in at least float32; n - 1/2 at an integer n, in the
        middle of the jump.

    Raises:
        TypeError: if ``x`` is not a floating-point array.
        ValueError: if ``temperature`` is not positive, or below 1e-34 in float32 (a traced one
            gives NaN).

    >>> import jax.numpy as jnp
    >>> smooth_floor(jnp.array([-3.5, 0.5, 0.99, 1.0, 7.7])).round(4).tolist()
    [-4.0, 0.0, 0.475, 0.5, 7.0465]

    Reference: https://kexue.fm/archives/8718.
    """
    x, wide, temperature = check_arguments(x, temperature)
    step = jnp.round(wide)
    return _staircase(step - 1, _offset(wide, step), temperature).astype(x.dtype)


def smooth_round(x: jax.Array, *, temperature: ArrayLike = 0.1) -> jax.Array:
    """Smooth nearest integer, smooth_floor(x + 1/2).

    Args:
        x: any shape, in units of a step; ±inf stay, with gradient 0.
        temperature: τ > 0, the width of a step's edge.

    Returns:
        The shape and dtype of ``x``, computed in at least float32; n at an integer n, n + 1/2 at
        n + 1/2.

    Raises:
        TypeError, ValueError: as for :func:`smooth_floor`.

    >>> import jax.numpy as jnp
    >>> smooth_round(jnp.array([-3.5, 0.4, 1.0, 7.7]), temperature=0.05).round(4).tolist()
    [-3.5, 0.1192, 1.0, 7.982]

    Reference: https://kexue.fm/archives/8718.
    """
    x, wide, temperature = check_arguments(x, temperature)
    below = jnp.floor(wide)  # not x + 1/2, which rounding would move
    return _staircase(below, _offset(wide, below) - 0.5, temperature).astype(x.dtype)


def _offset(x: jax.Array, step: jax.Array) -> jax.Array:
    """What is left of x above the step; 0 at ±inf."""
    return jnp.where(jnp.isinf(x), 0, x - step)


def _staircase(below: jax.Array, offset: jax.Array, temperature: jax.Array) -> jax.Array:
    """The staircase at ``offset`` in [-1/2, 1/2] from the step that leads up from ``below``."""
    m = jnp.arange(1, 1 + TERMS[offset.dtype.itemsize], dtype=offset.dtype)
    m = m.reshape(-1, *[1] * offset.ndim)
    near = offset[None]
    others = logistic(scaled(near - m, temperature)) - logistic(scaled(-near - m, temperature))
    steep = logistic(scaled(offset, temperature)) + jnp.sum(others, axis=0)
    # Where this series is not used, keep it from dividing by 0. 1/sinh, without overflow:
    width = jnp.maximum(temperature, STEEP / 2)
    falling = jnp.exp(-2 * math.pi**2 * width * m)
    waves = jnp.sin(2 * math.pi * m * near) * 2 * falling / (1 - falling * falling)
    flat = offset + 0.5 + 2 * math.pi * (width * jnp.sum(waves, axis=0))
    return below + jnp.where(temperature < STEEP, steep, flat)
