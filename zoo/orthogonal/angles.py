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

from zoo import _checks
from zoo.orthogonal.penalties import KernelAxes, as_matrix, gram


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
        Exact to 0.001° in float32 except for filters that are nearly parallel: within 1° of 0° or
        180° to 0.1°.

    Raises:
        ValueError: if ``axes`` do not fit; TypeError: if the kernel is not floating.

    >>> import jax.numpy as jnp
    >>> filter_angles(jnp.array([[1.0, 0.0, 1.0], [0.0, 2.0, -1.0]])).tolist()
    [90.0, 45.0, 135.0]

    Reference: https://kexue.fm/archives/7169.
    """
    matrix = as_matrix(kernel, axes)
    # By the largest entry first: squares of very large or small entries leave the range.
    matrix = matrix / jnp.max(jnp.abs(matrix), axis=-2, keepdims=True, initial=0)
    unit = matrix / jnp.linalg.norm(matrix, axis=-2, keepdims=True)
    filters = matrix.shape[-1]
    pairs = np.flatnonzero(np.triu(np.ones((filters, filters), bool), 1)).astype(np.int32)
    cosines = gram(unit).reshape(*matrix.shape[:-2], filters**2)[..., pairs]
    return 90 - jnp.degrees(jnp.arcsin(jnp.clip(cosines, -1, 1)))  # most exact around 90°


def random_angle_density(degrees: jax.Array, *, dimension: int) -> jax.Array:
    """The density of the angle between two random directions, p_n of the module docstring.

    Args:
        degrees: ``[...]`` in [0, 180].
        dimension: n ≥ 2, the entries of a filter.

    Returns:
        ``[...]`` per degree, in the dtype of ``degrees``; 0 outside [0, 180].

    Raises:
        ValueError: if ``dimension`` < 2; TypeError: if it is no integer, or ``degrees`` are not
            floating.

    >>> import jax.numpy as jnp
    >>> angles = jnp.array([60.0, 90.0, 120.0])
    >>> random_angle_density(angles, dimension=3).tolist()
    [0.00756, 0.00873, 0.00756]

    Reference: https://kexue.fm/archives/7076.
    """
    _checks.count("dimension", dimension, at_least=2)  # on a line there are no angles
    degrees, wide = _checks.widened("degrees", degrees)
    inside = (wide >= 0) & (wide <= 180)
    sine = jnp.sin(jnp.radians(jnp.where(inside, wide, 90)))
    # The two gamma functions by their logarithms, in double precision: both leave any range.
    scale = math.lgamma(dimension / 2) - math.lgamma((dimension - 1) / 2)
    density = math.exp(scale) * math.sqrt(math.pi) / 180 * sine ** (dimension - 2)
    return jnp.where(inside, density, 0).astype(degrees.dtype)


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
    _checks.count("dimension", dimension, at_least=2)  # on a line there are no angles
    start = math.pi**2 / (4 if dimension % 2 else 12)
    variance = start - np.sum(2 / np.arange(2 - dimension % 2, dimension - 1, 2.0) ** 2)
    return math.degrees(math.sqrt(variance))
