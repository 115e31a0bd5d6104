"""Gram matrices, and the sums over their entries that penalties are made of.

    G = Wᵀ·W  [K, K],   W [D, K]

Two facts make these sums cheap. A Gram matrix is symmetric, so its tangent is half + halfᵀ with
one product half = Wᵀ·dW, and the gradient of any function of G is one product as well,
W·(Ḡ + Ḡᵀ), where differentiating the product WᵀW takes two. And the two Gram matrices of W share
their non-zero eigenvalues, so a sum over all squares can be taken from the smaller one:

    ‖WᵀW‖² = ‖WWᵀ‖²,   ‖WᵀW - I_K‖² = ‖WWᵀ - I_D‖² + K - D
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    # Accelerators round float32 factors to fewer bits unless told otherwise, and G - I of filters
    # that are nearly orthonormal would be that rounding alone.
    return jnp.einsum("...dk,...dl->...kl", a, b, precision=lax.Precision.HIGHEST)


@jax.custom_jvp
def gram(matrix: jax.Array) -> jax.Array:
    """``[..., D, K]`` -> ``[..., K, K]``, WᵀW."""
    return _product(matrix, matrix)


@gram.defjvp
def _gram_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[jax.Array, jax.Array]:
    (matrix,), (tangent,) = primals, tangents
    half = _product(matrix, tangent)
    return gram(matrix), half + jnp.swapaxes(half, -1, -2)


def identity_distance(matrix: jax.Array) -> jax.Array:
    """‖WᵀW - I_K‖² in the Frobenius norm, ``[..., D, K]`` -> ``[...]``."""
    rows, columns = matrix.shape[-2:]
    smaller = gram(matrix if columns <= rows else jnp.swapaxes(matrix, -1, -2))
    deviation = smaller - identity_like(smaller)
    return jnp.sum(deviation**2, axis=(-1, -2)) + max(columns - rows, 0)


def pair_sums(matrix: jax.Array, axis_name: Any = None) -> tuple[jax.Array, jax.Array]:
    """Σ_{i≠j} G_ij and Σ_{i≠j} G_ij² of G = WᵀW, ``[..., D, K]`` -> ``[...]`` twice.

    With ``axis_name`` the rows of W are those of all devices together.
    """
    rows, columns = matrix.shape[-2:]
    # From the smaller side the diagonal has to be subtracted. For filters of equal length that is
    # at most half of the sum where K > 2D, so no digits are lost.
    if columns > 2 * rows and axis_name is None:
        norms = jnp.sum(matrix**2, axis=-2)
        smaller = gram(jnp.swapaxes(matrix, -1, -2))
        total = jnp.sum(jnp.sum(matrix, axis=-1) ** 2, axis=-1) - jnp.sum(norms, axis=-1)
        return total, jnp.sum(smaller**2, axis=(-1, -2)) - jnp.sum(norms**2, axis=-1)
    full = gram(matrix)
    if axis_name is not None:
        full = lax.psum(full, axis_name)
    pairs = full * (1 - identity_like(full))
    return jnp.sum(pairs, axis=(-1, -2)), jnp.sum(pairs**2, axis=(-1, -2))


def identity_like(square: jax.Array) -> jax.Array:
    """The identity of the last two axes, with as many axes as ``square``."""
    size = square.shape[-1]
    return jnp.eye(size, dtype=square.dtype).reshape((1,) * (square.ndim - 2) + (size, size))
