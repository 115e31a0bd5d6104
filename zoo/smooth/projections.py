"""Projections on the simplex and on the permutahedron, with their exact sparse derivatives.

    project_simplex(x) = argmin |y - x|² over y ≥ 0, Σ y = 1            = max(x - λ, 0), Σ = 1
    project_permutahedron(x, w) = argmin |y - x|² over the hull of all permutations of w

The first is a sparse soft_one_hot (sparsemax). The second gives sparse ranks and sorted items,

    project_permutahedron(-x/τ, [n, …, 1])     ranks, 1 for the largest
    project_permutahedron([1, …, n]/τ, x)      items in rising order

which are exact as soon as all gaps exceed τ (ranks) or 1/τ exceeds all gaps (items), and else means
over blocks of neighbours. Derivatives are those of the blocks: inside one
dy = dx - mean(dx) + mean(dw), nothing between two; second derivatives are 0.

With s = sort(x) and w falling, y = w + d - v, d = s - w, where v falls and is nearest to d: an
isotonic regression. All neighbouring blocks whose means rise are pooled at once, which pools what
one by one would, until no means rise: usually some ten rounds of O(n), at most n.

Source: André Martins, Ramón Astudillo, "From Softmax to Sparsemax", 2016, arXiv 1602.02068; Mathieu
Blondel, Olivier Teboul, Quentin Berthet, Josip Djolonga, "Fast Differentiable Sorting and Ranking",
2020, arXiv 2002.08871.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from zoo import _checks
from zoo.smooth.derivatives import below_peak, check_arguments, check_mask
from zoo.smooth.sort import running


def project_simplex(
    x: jax.Array,
    *,
    temperature: ArrayLike = 1.0,
    axis: int = -1,
    where: jax.Array | None = None,
) -> jax.Array:
    """Nearest probabilities to x/τ (sparsemax): a sparse smooth one-hot vector of the argmax.

    Exactly the one-hot vector where the largest item is τ above the next.

    Args:
        x: ``[..., items]``; -inf gives 0, and several inf share.
        temperature: τ > 0, in the units of ``x``.
        axis: the axis of the items.
        where: bool, broadcasts to ``x``: which items take part. The others may be anything; they
            get 0.

    Returns:
        Probabilities of the shape and dtype of ``x``, computed in at least float32; all 0 where
        every item is -inf.

    Raises:
        TypeError, ValueError: as for :func:`zoo.smooth.soft_sort`.

    >>> import jax.numpy as jnp
    >>> project_simplex(jnp.array([2.0, 1.0, 4.0, 4.5, 3.0])).tolist()
    [0.0, 0.0, 0.25, 0.75, 0.0]

    Reference: arXiv 1602.02068.
    """
    x, wide, temperature = check_arguments(x, temperature)
    axis = _checks.axis("axis", axis, x)
    where = None if where is None else check_mask(where, x.shape)
    u, peak = below_peak(wide, temperature, axis=axis, where=where)
    present = (wide > -jnp.inf) | jnp.isnan(wide)
    present = present if where is None else present & where
    y = _nearest_probabilities(jnp.moveaxis(u, axis, 0))
    y = jnp.where(present, jnp.moveaxis(y, 0, axis), 0)
    lost = jnp.isnan(peak) | jnp.isnan(temperature)
    return jnp.where(lost, jnp.nan, y).astype(x.dtype)


@jax.custom_jvp
def _nearest_probabilities(u: jax.Array) -> jax.Array:
    """max(u - λ, 0) with sum 1 along the first axis, for a largest u of 0."""
    falling = -jnp.sort(-u, axis=0)
    count = 1 + lax.broadcasted_iota(u.dtype, u.shape, 0)
    # Taking one item too few or too many underrates λ.
    threshold = jnp.max((jnp.cumsum(falling, axis=0) - 1) / count, axis=0, initial=-jnp.inf)
    return jnp.maximum(u - threshold[None], 0)


@_nearest_probabilities.defjvp
def _nearest_probabilities_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    y = _nearest_probabilities(*primals)
    support = (y > 0).astype(y.dtype)
    mean = jnp.sum(support * tangents[0], axis=0) / jnp.maximum(jnp.sum(support, axis=0), 1)
    return y, support * (tangents[0] - mean[None])


def project_permutahedron(x: jax.Array, weights: jax.Array, *, axis: int = -1) -> jax.Array:
    """Nearest point to x in the hull of all permutations of the weights.

    Args:
        x: ``[..., items]``, finite.
        weights: ``[..., items]``, finite, in any order; broadcasts with ``x``.
        axis: the axis of the items, in both counted from the end as in their common shape.

    Returns:
        In the common shape and dtype, computed in at least float32: in the order of ``x``, with the
        sum of the weights. A row with NaN or infinite numbers is NaN.

    Raises:
        TypeError: if one of them is not floating.
        ValueError: if the shapes do not broadcast, or there is no such axis.

    >>> import jax.numpy as jnp
    >>> ranks = jnp.array([5.0, 4.0, 3.0, 2.0, 1.0])
    >>> x = jnp.array([2.0, 1.0, 4.0, 4.25, 3.0])
    >>> project_permutahedron(-x, ranks).tolist()
    [3.85, 4.85, 1.85, 1.6, 2.85]

    Reference: arXiv 2002.08871.
    """
    x, weights = _checks.floating("x", x), _checks.floating("weights", weights)
    dtype = jnp.promote_types(x.dtype, weights.dtype)
    shape = jnp.broadcast_shapes(x.shape, weights.shape)
    x, weights = (
        jnp.broadcast_to(v.astype(_checks.accumulator(dtype)), shape) for v in (x, weights)
    )
    axis = _checks.axis("axis", axis, x)
    x, w = jnp.moveaxis(x, axis, 0), -jnp.sort(-jnp.moveaxis(weights, axis, 0), axis=0)
    order = jnp.argsort(-x, axis=0)
    d = jnp.take_along_axis(x, order, axis=0) - w
    finite = jnp.all(jnp.isfinite(d), axis=0, keepdims=True)
    d = jnp.where(finite, d, 0)
    # As w + (d - v), not s - v: a block of one item is exact.
    y = jnp.where(finite, w + (d - _falling(d)), jnp.nan)
    y = jnp.take_along_axis(y, jnp.argsort(order, axis=0), axis=0)
    return jnp.moveaxis(y, 0, axis).astype(dtype)


@jax.custom_jvp
def _falling(d: jax.Array) -> jax.Array:
    """The falling sequence nearest to d, along the first axis."""
    return _block_means(_blocks(d), d)


@_falling.defjvp
def _falling_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    starts = _blocks(lax.stop_gradient(primals[0]))
    return _block_means(starts, primals[0]), _block_means(starts, tangents[0])


@jax.jit
def _blocks(d: jax.Array) -> jax.Array:
    """Where the blocks start, by pooling neighbours whose means rise."""

    def unsettled(carry: tuple) -> jax.Array:
        return carry[1]

    def pool(carry: tuple) -> tuple:
        starts, _ = carry
        means = _block_means(starts, d)
        rises = means[1:] > means[:-1]
        rises = jnp.concatenate([jnp.zeros_like(starts[:1]), rises]) & starts
        return starts & ~rises, jnp.any(rises)

    starts = jnp.ones_like(d, dtype=bool)
    return lax.while_loop(unsettled, pool, (starts, jnp.any(starts)))[0]


@jax.jit
def _block_means(starts: jax.Array, d: jax.Array) -> jax.Array:
    """The mean of the block of every entry; blocks are given by where they start."""
    if not len(d):
        return d
    first = starts.astype(d.dtype)
    last = jnp.concatenate([first[1:], jnp.ones_like(first[:1])])
    means = running(False, 1 - first, first, d) / running(False, 1 - first, first, jnp.ones_like(d))
    return running(True, 1 - last, last, last * means)
