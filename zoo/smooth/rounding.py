"""Smooth floor and round: staircases whose every step is a sigmoid.

    smooth_floor(x) = Σ_{n ≤ 0} (σ((x - n)/τ) - 1) + Σ_{n > 0} σ((x - n)/τ)   over all integers n

The article cuts the sum to -M … N, which holds for -M ≪ x ≪ N only. Here x is reduced to the
nearest step first, so that it holds for every x. For a steep staircase a few neighbours suffice;
for a flat one its Fourier series converges as fast (both are one series, by Poisson summation):

    smooth_floor(x) = x - 1/2 + Σ_{m ≥ 1} 2πτ sin(2πmx) / sinh(2π²mτ)

Source: Jianlin Su, «Function smoothing», 2019, https://kexue.fm/archives/6620, and «Smooth
functions from the delta function», 2021, https://kexue.fm/archives/8718.
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from zoo.smooth.numerics import check_temperature, logistic, widen

# Where both series fall alike. The last of ten terms is below e^{-38} or e^{-49} of the first.
STEEP = 0.25
TERMS = 10


def smooth_floor(x: jax.Array, *, temperature: ArrayLike = 0.1) -> jax.Array:
    """Smooth largest integer not above x: a staircase with a sigmoid at every integer.

    Args:
        x: any shape, in units of a step.
        temperature: τ > 0, the width of a step's edge; from about 1 on nothing is left but the
            slope, x - 1/2.

    Returns:
        The shape and dtype of ``x``, computed in at least float32; n - 1/2 at an integer n, in the
        middle of the jump.

    Raises:
        TypeError: if ``x`` is not a floating-point array.
        ValueError: if ``temperature`` is not positive; a traced one gives NaN.

    >>> import jax.numpy as jnp
    >>> smooth_floor(jnp.array([-3.5, 0.5, 0.99, 1.0, 7.7])).round(4).tolist()
    [-4.0, 0.0, 0.475, 0.5, 7.0465]

    Reference: https://kexue.fm/archives/8718.
    """
    x, wide = widen(x, "smooth_floor: x")
    temperature = check_temperature(temperature, "smooth_floor", wide)
    step = jnp.round(wide)
    return _staircase(step - 1, wide - step, temperature).astype(x.dtype)


def smooth_round(x: jax.Array, *, temperature: ArrayLike = 0.1) -> jax.Array:
    """Smooth nearest integer, smooth_floor(x + 1/2).

    Args:
        x: any shape, in units of a step.
        temperature: τ > 0, the width of a step's edge.

    Returns:
        The shape and dtype of ``x``, computed in at least float32; n at an integer n, n + 1/2 at
        n + 1/2.

    Raises:
        TypeError: if ``x`` is not a floating-point array.
        ValueError: if ``temperature`` is not positive; a traced one gives NaN.

    >>> import jax.numpy as jnp
    >>> smooth_round(jnp.array([-3.5, 0.4, 1.0, 7.7]), temperature=0.05).round(4).tolist()
    [-3.5, 0.1192, 1.0, 7.982]

    Reference: https://kexue.fm/archives/8718.
    """
    x, wide = widen(x, "smooth_round: x")
    temperature = check_temperature(temperature, "smooth_round", wide)
    below = jnp.floor(wide)
    return _staircase(below, wide - below - 0.5, temperature).astype(x.dtype)


def _staircase(below: jax.Array, offset: jax.Array, temperature: jax.Array) -> jax.Array:
    """The stairs at ``offset`` in [-1/2, 1/2] from a step up from ``below``."""
    steep = logistic(offset / temperature)
    flat = offset + 0.5
    for m in range(1, TERMS + 1):
        steep += logistic((offset - m) / temperature) - logistic((-offset - m) / temperature)
        # Where this series is not used, keep it from dividing by 0.
        width = jnp.maximum(temperature, STEEP / 2)
        turn = 2 * math.pi * m
        # 1/sinh, without overflow.
        falling = jnp.exp(-math.pi * turn * width)
        flat += 4 * math.pi * width * jnp.sin(turn * offset) * falling / (1 - falling * falling)
    return below + jnp.where(temperature < STEEP, steep, flat)
