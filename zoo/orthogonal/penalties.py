"""Penalties that pull the filters of a kernel apart by its numbers alone, without data.

With W [D, K], a filter a column, G = WᵀW and λ the eigenvalues of G - I:

    soft               ‖G - I‖²_F = Σ λ²                  (soft orthogonality)
    double_soft        ‖WᵀW - I‖²_F + ‖WWᵀ - I‖²_F        = 2·soft + D - K
    off_diagonal       ‖G ∘ (1 - I)‖²_F                   (BigGAN: filters of any length)
    mutual_coherence   max_ij |G - I|_ij
    spectral           ‖G - I‖₂ = max |λ|                 (SRIP, by power iteration)

Gradients: soft 4W(G - I), double_soft twice that, off_diagonal 4W(G ∘ (1 - I)), mutual_coherence
±w_j in column i and ±w_i in column j of the largest entry, spectral W(vuᵀ + uvᵀ) with the unit
vectors (G - I)v = ‖G - I‖₂·u, which are held fixed in higher derivatives too.

Where K > D not all filters can be orthogonal. Then soft ≥ K - D, double_soft ≥ K - D, spectral ≥ 1,
and off_diagonal ≥ K(K - D)/D for filters of length 1 (Welch 1974).

Sources: Nitin Bansal, Xiaohan Chen, Zhangyang Wang, «Can We Gain More from Orthogonality
Regularizations in Training Deep CNNs?», 2018, arXiv 1810.09102 (soft, double soft, mutual
coherence, SRIP); Andrew Brock, Jeff Donahue, Karen Simonyan, «Large Scale GAN Training for High
Fidelity Natural Image Synthesis», 2018, arXiv 1809.11096 (off-diagonal); article
https://kexue.fm/archives/7169.
"""

import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from zoo.orthogonal.axes import KernelAxes, as_matrix
from zoo.orthogonal.gram import gram, identity_distance, identity_like, pair_sums

Kind = Literal["soft", "double_soft", "off_diagonal", "mutual_coherence", "spectral"]


def orthogonality_penalty(
    kernel: jax.Array,
    *,
    kind: Kind = "soft",
    axes: KernelAxes = KernelAxes(),  # noqa: B008 - immutable
    power_iterations: int | jax.Array = 10,
) -> jax.Array:
    """How far the filters of a kernel are from orthogonal, by one of the module's formulas.

    soft = ‖WᵀW - I‖²_F, and so on; W is ``kernel`` as a matrix with a filter a column.

    A ``double_soft`` penalty has exactly twice the gradient of ``soft``: ‖WWᵀ‖_F = ‖WᵀW‖_F and the
    traces are equal, so the two terms differ by the constant K - D.

    Args:
        kernel: ``[*window, I, K]``, or any layout that ``axes`` describes.
        kind: the formula.
        axes: which axes count filters; which separate kernels.
        power_iterations: of ``"spectral"``, from a fixed start; every iteration costs two products
            with a vector, and too few give less than the norm. One is what SRIP's authors use.

    Returns:
        ``[*batch]``, a scalar where ``axes.batch`` is empty, in at least float32.

    Raises:
        ValueError: if ``kind``, ``axes`` or ``power_iterations`` do not fit; TypeError: if the
            kernel is not floating.

    >>> import jax, jax.numpy as jnp
    >>> kernel = jnp.array([[1.0, 0.6], [0.0, 0.8]])
    >>> {kind: round(float(orthogonality_penalty(kernel, kind=kind)), 4)
    ...  for kind in ("soft", "double_soft", "off_diagonal", "mutual_coherence", "spectral")}
    {'soft': 0.72, 'double_soft': 1.44, 'off_diagonal': 0.72, 'mutual_coherence': 0.6,
     'spectral': 0.6}
    >>> print(jax.grad(orthogonality_penalty)(kernel))
    [[1.44 2.4 ]
     [1.92 0.  ]]

    Reference: arXiv 1810.09102, section 3; arXiv 1809.11096, section 3.1.
    """
    check_kind(kind, power_iterations)
    matrix = as_matrix(kernel, axes, "kernel")
    match kind:
        case "soft":
            return identity_distance(matrix)
        case "double_soft":
            rows, columns = matrix.shape[-2:]
            return 2 * identity_distance(matrix) + (rows - columns)
        case "off_diagonal":
            return pair_sums(matrix)[1]
        case "mutual_coherence":
            return _mutual_coherence(matrix)
        case "spectral":
            return _spectral(matrix, power_iterations)


def check_kind(kind: str, power_iterations: int | jax.Array) -> None:
    """Raises a ValueError unless the penalty exists."""
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
    static = isinstance(power_iterations, int | float)
    if static and not (isinstance(power_iterations, int) and power_iterations >= 1):
        raise ValueError(f"power_iterations must be an int of at least 1, got {power_iterations}")


def _mutual_coherence(matrix: jax.Array) -> jax.Array:
    columns = matrix.shape[-1]
    if columns == 0:
        return jnp.zeros(matrix.shape[:-2], matrix.dtype)
    fixed = gram(lax.stop_gradient(matrix))
    entries = jnp.abs(fixed - identity_like(fixed)).reshape(*matrix.shape[:-2], columns**2)
    i, j = jnp.divmod(jnp.argmax(entries, axis=-1), columns)
    # The largest entry once more from its two filters, so that only they get a gradient, and
    # without another product of matrices.
    first, second = (
        jnp.take_along_axis(matrix, jnp.expand_dims(index, (-1, -2)), axis=-1)[..., 0]
        for index in (i, j)
    )
    entry = jnp.sum(first * second, axis=-1) - (i == j)
    return entry * lax.stop_gradient(jnp.sign(entry))  # no slope at 0, as abs has


def _spectral(matrix: jax.Array, power_iterations: int | jax.Array) -> jax.Array:
    vector = _dominant_vector(lax.stop_gradient(matrix), power_iterations)
    image = _apply(matrix, vector)
    squares = jnp.sum(image**2, axis=-1)
    # An orthonormal W has norm 0, where the root has no slope.
    positive = squares > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1)), 0)


@jax.jit
def _dominant_vector(matrix: jax.Array, power_iterations: int | jax.Array) -> jax.Array:
    """The vector ``[..., K]`` that G - I stretches most, nearly."""
    fixed = np.random.default_rng(0).normal(size=matrix.shape[-1])
    shape = (*matrix.shape[:-2], matrix.shape[-1])
    start = jnp.broadcast_to(jnp.asarray(fixed, matrix.dtype), shape)

    def step(_: int, vector: jax.Array) -> jax.Array:
        return _normalize(_apply(matrix, vector))

    return lax.fori_loop(1, power_iterations, step, step(0, start))


def _apply(matrix: jax.Array, vector: jax.Array) -> jax.Array:
    """(WᵀW - I)·v without WᵀW."""
    product = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)
    inner = product("...dk,...k->...d", matrix, vector)
    return product("...dk,...d->...k", matrix, inner) - vector


def _normalize(vector: jax.Array) -> jax.Array:
    """Length 1; a zero vector stays zero."""
    largest = jnp.max(jnp.abs(vector), axis=-1, keepdims=True, initial=0)
    scaled = vector / jnp.where(largest > 0, largest, 1)
    norm = jnp.linalg.norm(scaled, axis=-1, keepdims=True)
    return scaled / jnp.where(norm > 0, norm, 1)
