"""Angles between filters, and their distribution when the filters are random.

    θ_ij = arccos(w_i·w_j / (‖w_i‖·‖w_j‖))
    p_n(θ) = Γ(n/2) / (Γ((n-1)/2)·√π) · sinⁿ⁻²θ,   mean 90°,   variance ½·ψ'(n/2) ≈ 1/(n - 2)

for random directions in n dimensions (ψ' is the trigamma function). Filters of n entries that were
never trained are thus nearly orthogonal already: "training made them orthogonal" means that their
angles are closer to 90° than in this distribution.

Source: Su Jianlin, "Distribution of the angle of two random vectors in n dimensions", 2019,
https://kexue.fm/archives/7076.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from zoo import _checks
from zoo.orthogonal.penalties import KernelAxes, as_matrix, gram

NEAR = 0.9  # cosine from which the angle is computed from the difference of the two directions


def filter_angles(
    kernel: jax.Array,
    *,
    axes: KernelAxes = KernelAxes(),  # noqa: B008 - immutable
) -> jax.Array:
    """The angle between every two filters of a kernel.

    θ_ij = arccos(w_i·w_j / (‖w_i‖·‖w_j‖)), i < j.

    Args:
        kernel: ``[*window, I, K]``, or any layout that ``axes`` describes.
        axes: which axes count filters; which separate kernels.

    Returns:
        ``[*batch, K(K - 1)/2]`` degrees in [0, 180], in at least float32, in the order of pairs
        (0, 1), (0, 2), …, (1, 2), …; NaN for pairs with a filter of zeros, which has no direction.
        Exact to 0.001° in float32; pairs without a direction have a gradient of 0.

    Raises:
        ValueError: if ``axes`` do not fit; TypeError: if the kernel is not floating.

    >>> import jax.numpy as jnp
    >>> filter_angles(jnp.array([[1.0, 0.0, 1.0], [0.0, 2.0, -1.0]])).tolist()
    [90.0, 45.0, 135.0]

    Reference: https://kexue.fm/archives/7169.
    """
    matrix = as_matrix(kernel, axes)
    # By the largest entry first: squares of very large or small entries leave the range.
    largest = lax.stop_gradient(jnp.max(jnp.abs(matrix), axis=-2, keepdims=True, initial=0))
    directed = largest != 0  # not > 0: NaN must stay NaN
    matrix = matrix / jnp.where(directed, largest, 1)
    squares = jnp.sum(matrix**2, axis=-2, keepdims=True)
    unit = matrix / jnp.sqrt(jnp.where(directed, squares, 1))
    exist = jnp.swapaxes(directed, -1, -2) & directed
    products = jnp.where(exist, gram(unit), jnp.nan)
    cosines = _of_pairs(products)
    if not cosines.size:
        return cosines
    near = jnp.abs(cosines) > NEAR
    angles = 90 - jnp.degrees(jnp.arcsin(jnp.where(near, 0, cosines)))  # most exact around 90°
    return _with_near_angles(angles, near, unit, products)


def _of_pairs(square: jax.Array) -> jax.Array:
    """``[..., K, K]`` -> ``[..., K(K - 1)/2]``, above the diagonal."""
    filters = square.shape[-1]
    pairs = np.flatnonzero(np.triu(np.ones((filters, filters), bool), 1)).astype(np.int32)
    return square.reshape(*square.shape[:-2], filters**2)[..., pairs]


@jax.jit  # outside of jit every new conditional would be compiled again
def _with_near_angles(
    angles: jax.Array, near: jax.Array, unit: jax.Array, cosines: jax.Array
) -> jax.Array:
    """The angles of pairs, those near 0° and 180° once more where there are any."""

    def exact(angles: jax.Array) -> jax.Array:
        return jnp.where(near, _of_pairs(_near_angles(unit, cosines)), angles)

    return lax.cond(jnp.any(near), exact, lambda angles: angles, angles)


def _near_angles(unit: jax.Array, cosines: jax.Array) -> jax.Array:
    """``[..., K, K]`` degrees, exact where the cosine has lost the digits, else perhaps 0.

    θ = 2·arctan(‖u - v‖/‖u + v‖), a row at a time: the differences are D numbers for every pair.
    """
    columns = jnp.arange(cosines.shape[-1])

    def length(x: jax.Array) -> jax.Array:
        squares = jnp.sum(x**2, axis=-2)
        positive = squares != 0
        return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1)), 0)

    @jax.checkpoint
    def row(i: jax.Array) -> jax.Array:
        u = lax.dynamic_index_in_dim(unit, i, axis=-1)
        cosine = lax.stop_gradient(lax.dynamic_index_in_dim(cosines, i, axis=-2, keepdims=False))
        turned = unit * jnp.where(cosine < 0, -1, 1)[..., None, :]  # to the side of u
        angle = 2 * jnp.degrees(jnp.arctan2(length(u - turned), length(u + turned)))
        return jnp.where(cosine < 0, 180 - angle, angle)

    def where_near(i: jax.Array) -> jax.Array:
        cosine = lax.dynamic_index_in_dim(cosines, i, axis=-2, keepdims=False)
        others = lax.expand_dims(columns > i, range(cosine.ndim - 1))
        found = jnp.any((jnp.abs(cosine) > NEAR) & others)
        return lax.cond(found, row, lambda _: jnp.zeros_like(cosine), i)

    return jnp.moveaxis(lax.map(where_near, columns), 0, -2)


def random_angle_density(degrees: jax.Array, *, dimension: int) -> jax.Array:
    """The density of the angle between two random directions, p_n of the module docstring.

    Args:
        degrees: ``[...]`` in [0, 180].
        dimension: n ≥ 2, the entries of a filter.

    Returns:
        ``[...]`` per degree, in the dtype of ``degrees``; 0 outside [0, 180], NaN for NaN.

    Raises:
        ValueError: if ``dimension`` < 2; TypeError: if it is no integer, or ``degrees`` are not
            floating.

    >>> import jax.numpy as jnp
    >>> angles = jnp.array([60.0, 90.0, 120.0])
    >>> random_angle_density(angles, dimension=3).tolist()
    [0.00756, 0.00873, 0.00756]

    Reference: https://kexue.fm/archives/7076.
    """
    dimension = _checks.count("dimension", dimension, at_least=2)  # on a line there are no angles
    degrees, wide = _checks.widened("degrees", degrees)
    outside = (wide < 0) | (wide > 180)  # NaN is not
    # From the nearer end, as sin 180° would be that of a rounded π, below zero.
    tilt = jnp.abs(jnp.where(outside, 90, wide) - 90)
    if dimension <= 100:
        power = jnp.sin(jnp.radians(90 - tilt)) ** (dimension - 2)
    else:
        # A power would multiply the rounding of sin θ = 1 - 2·sin²((θ - 90°)/2) by n. At the ends
        # it is 0 in any dtype.
        below_one = jnp.minimum(2 * jnp.sin(jnp.radians(tilt / 2)) ** 2, 1 - 1e-6)
        power = jnp.exp((dimension - 2) * jnp.log1p(-below_one))
    # The two gamma functions by their logarithms, in double precision: both leave any range.
    scale = math.lgamma(dimension / 2) - math.lgamma((dimension - 1) / 2)
    density = math.exp(scale) * math.sqrt(math.pi) / 180 * power
    density = jnp.where(jnp.isnan(wide), wide, density)  # where n = 2 it does not depend on θ
    return jnp.where(outside, 0, density).astype(degrees.dtype)


def random_angle_std(dimension: int) -> float:
    """The standard deviation of the angle between two random directions.

    √(½·ψ'(n/2)): ψ' loses 1/x² from x to x + 1, so that the variance is π²/12 for n = 2, π²/4 - 2
    for n = 3, and 2/n² less for n + 2 than for n.

    Args:
        dimension: n ≥ 2, the entries of a filter.

    Returns:
        Degrees.

    Raises:
        ValueError: if ``dimension`` < 2.

    >>> [round(random_angle_std(dimension), 2) for dimension in (3, 27, 576)]
    [39.17, 11.23, 2.39]

    Reference: https://kexue.fm/archives/7076.
    """
    dimension = _checks.count("dimension", dimension, at_least=2)  # on a line there are no angles
    start = math.pi**2 / (4 if dimension % 2 else 12)
    variance = start - np.sum(2 / np.arange(2 - dimension % 2, dimension - 1, 2.0) ** 2)
    return math.degrees(math.sqrt(variance))
