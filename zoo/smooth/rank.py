"""Smooth ranks, and sums of sigmoids over all pairs of items without looking at all pairs.

    soft_rank(x)_i = 1/2 + Σ_j σ((x_j - x_i)/τ)

The largest item has about rank 1; the ranks add up to n(n + 1)/2 as the exact ones do. All pairs
would cost n² exponentials. For two items a distance u ≥ 0 apart, z = e^{-u} is in [0, 1], and

    σ(-u) = z / (1 + z) ≈ Σ_{m=1}^M c_m z^m,     error < 2 z (3 + √8)^{-M}

with coefficients that alternate and stay within [-1, 1]: M = 12 in float32 (1e-9), 22 in float64
(3e-17). The items are sorted and cut into blocks of 32. Pairs within a block are summed as they
are. A block acts on the items beyond it through its M moments Σ_j w_j z_j^m only, which are carried
from block to block, shrinking by e^{-m·gap}: O(n log n) for the sort, O(n (32 + 2M)) for the sums,
O(nM) memory. The derivative is another such sum, with the symmetric kernel σ' = Σ m c_m z^m.
Up to 64 items all pairs are the faster way, and nothing is sorted.
Whole items are counted from above, so that the best ranks, small numbers, have all their digits.

Source: the ranks: Tao Qin, Tie-Yan Liu, Hang Li, "A general approximation framework for direct
optimization of information retrieval measures", Information Retrieval 13, 2010; the coefficients:
Henri Cohen, Fernando Rodriguez Villegas, Don Zagier, "Convergence acceleration of alternating
series", Experimental Mathematics 9, 2000, algorithm 1.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from zoo import _checks
from zoo.smooth.derivatives import check_arguments, check_mask, logistic, logistic_slope, scaled

SHORT = 64  # up to so many items all pairs, which are faster up to about 128
BLOCK = 32  # a pair within a block costs an exponential, a block a step of a loop
TERMS = {4: 12, 8: 22}  # M by the bytes of a float
WIDEST = {4: 40.0, 8: 80.0}  # a gap over which σ' is nothing beside 1, by the bytes of a float


def soft_rank(
    x: jax.Array,
    *,
    temperature: ArrayLike = 1.0,
    axis: int = -1,
    where: jax.Array | None = None,
) -> jax.Array:
    """Smooth rank, 1/2 + Σ_j σ((x_j - x_i)/τ): about 1 for the largest of N items, N for the least.

    O(N log N) time and O(N) memory.

    Args:
        x: ``[..., items]``; ±inf count as the largest and the smallest number.
        temperature: τ > 0, in the units of ``x``.
        axis: the axis of the items.
        where: bool, broadcasts to ``x``: which items take part. The others may be anything; they
            get 0.

    Returns:
        Ranks in [1, N] of the shape and dtype of ``x``, computed in at least float32, with sum
        N(N + 1)/2; items that are equal have the same. The error of a rank is at most e^{-d/τ}
        for every other item, d its distance. One NaN makes all ranks of its row NaN. float16 holds
        no rank above 65504.

    Raises:
        TypeError, ValueError: as for :func:`zoo.smooth.soft_one_hot`, or if ``where`` is not bool
            or does not fit.

    >>> import jax.numpy as jnp
    >>> x = jnp.array([2.0, 1.0, 4.0, 5.0, 3.0])
    >>> soft_rank(x, temperature=0.1).round(3).tolist()
    [4.0, 5.0, 2.0, 1.0, 3.0]
    >>> soft_rank(x).tolist()
    [3.833, 4.546, 2.167, 1.454, 3.000]

    Reference: Qin, Liu, Li, 2010.
    """
    x, wide, temperature = check_arguments(x, temperature)
    axis = _checks.axis("axis", axis, x)
    taken = None
    if where is not None:
        taken = jnp.moveaxis(jnp.broadcast_to(check_mask(where, x.shape), x.shape), axis, -1)
    wide = jnp.moveaxis(wide, axis, -1)
    wide = wide if taken is None else jnp.where(taken, wide, 0)
    weights = jnp.ones_like(wide) if taken is None else taken.astype(wide.dtype)
    ranks = 0.5 + smooth_counts(wide, weights, temperature)
    ranks = ranks if taken is None else jnp.where(taken, ranks, 0)
    return jnp.moveaxis(ranks, -1, axis).astype(x.dtype)


def smooth_counts(x: jax.Array, weights: jax.Array, temperature: jax.Array) -> jax.Array:
    """Σ_j w_j σ((x_j - x_i)/τ) for every i, on the last axis; no gradient flows to the weights."""
    if x.shape[-1] == 0:
        return x
    x = jnp.where(jnp.isinf(x), jnp.sign(x) * jnp.finfo(x.dtype).max, x)  # they tie: inf - inf is 0
    if x.shape[-1] <= SHORT:
        return _counts_of_few(x, lax.stop_gradient(weights), temperature)
    order = jnp.argsort(lax.stop_gradient(x), axis=-1)
    index = lax.broadcasted_iota(order.dtype, order.shape, order.ndim - 1)
    inverse = jnp.put_along_axis(index, order, index, axis=-1, inplace=False)
    ordered = jnp.take_along_axis(x, order, axis=-1)
    weights = jnp.take_along_axis(lax.stop_gradient(weights), order, axis=-1)
    counts = _counts(ordered, weights, temperature)
    lost = jnp.isnan(ordered[..., -1:])  # NaN is sorted to the end
    return jnp.where(lost, jnp.nan, jnp.take_along_axis(counts, inverse, axis=-1))


@jax.custom_jvp
def _counts_of_few(x: jax.Array, weights: jax.Array, temperature: jax.Array) -> jax.Array:
    """The counts by all pairs."""
    u = (x[..., None, :] - x[..., :, None]) / temperature  # infinite ones are right here
    return jnp.sum(jax.nn.sigmoid(u) * weights[..., None, :], axis=-1)


def _counts_of_few_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, Any]:
    x, weights, temperature = primals
    tangent = jnp.zeros_like(x)
    if not isinstance(dx := tangents[0], SymbolicZero):
        tangent += _all_pairs(logistic_slope, x, weights * dx, temperature)
        tangent -= _all_pairs(logistic_slope, x, weights, temperature) * dx
    if not isinstance(tangents[2], SymbolicZero):
        slopes = _all_pairs(lambda u: u * logistic_slope(u), x, weights, temperature)
        tangent -= slopes * tangents[2]
    return _counts_of_few(*primals), tangent / temperature


_counts_of_few.defjvp(_counts_of_few_jvp, symbolic_zeros=True)


def _all_pairs(
    kernel: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    weights: jax.Array,
    temperature: jax.Array,
) -> jax.Array:
    """Σ_j w_j kernel((x_j - x_i)/τ)."""
    pairs = scaled(x[..., None, :] - x[..., :, None], temperature)
    return jnp.sum(kernel(pairs) * weights[..., None, :], axis=-1)


@jax.custom_jvp
def _counts(ordered: jax.Array, weights: jax.Array, temperature: jax.Array) -> jax.Array:
    """The counts for items in rising order."""
    near, under, over = _pair_sums(logistic, _series(ordered.dtype), ordered, weights, temperature)
    # Beyond the block σ(u) is 1 - σ(-u) for those above.
    blocks = jnp.sum(_in_blocks(weights), axis=-1)
    later = lax.cumsum(blocks, axis=blocks.ndim - 1, reverse=True) - blocks
    return near + jnp.repeat(later, BLOCK, axis=-1)[..., : ordered.shape[-1]] - over + under


def _counts_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, Any]:
    ordered, weights, temperature = primals
    series = tuple(m * c for m, c in enumerate(_series(ordered.dtype), start=1))

    def kernel_sum(weights: jax.Array) -> jax.Array:
        return sum(_pair_sums(logistic_slope, series, ordered, weights, temperature))

    # d((x_j - x_i)/τ) is a difference of one quantity.
    moved = jnp.zeros_like(ordered)
    if not isinstance(tangents[0], SymbolicZero):
        moved += tangents[0]
    if not isinstance(tangents[2], SymbolicZero):
        moved -= _places(ordered, temperature) * tangents[2]
    moved /= temperature
    tangent = kernel_sum(weights * moved) - kernel_sum(weights) * moved
    return _counts(*primals), tangent


_counts.defjvp(_counts_jvp, symbolic_zeros=True)


def _places(ordered: jax.Array, temperature: jax.Array) -> jax.Array:
    """x/τ from the middle item on, with gaps over which nothing acts made shorter.

    So the place has digits also in a row with outliers, and is finite beside the largest numbers.
    """
    gaps = scaled(ordered[..., 1:] - ordered[..., :-1], temperature)
    steps = jnp.minimum(gaps, WIDEST[ordered.dtype.itemsize])
    places = jnp.concatenate([jnp.zeros_like(steps[..., :1]), jnp.cumsum(steps, axis=-1)], axis=-1)
    return places - places[..., ordered.shape[-1] // 2, None]


@functools.cache
def _series(dtype: np.dtype) -> tuple[float, ...]:
    """c_1 … c_M of z/(1 + z) on [0, 1]."""
    terms = TERMS[np.dtype(dtype).itemsize]
    d = math.cosh(terms * math.log(3 + math.sqrt(8)))
    b, c, series = -1.0, -d, []
    for k in range(terms):
        c = b - c
        series.append(c / d)
        b *= (k + terms) * (k - terms) / ((k + 0.5) * (k + 1))
    return tuple(series)


def _in_blocks(values: jax.Array, *, repeat_last: bool = False) -> jax.Array:
    """[..., N] -> [..., blocks, BLOCK], filled up with the last value or with 0."""
    missing = -values.shape[-1] % BLOCK
    padding = [(0, 0)] * (values.ndim - 1) + [(0, missing)]
    values = jnp.pad(values, padding, mode="edge" if repeat_last else "constant")
    return values.reshape(*values.shape[:-1], values.shape[-1] // BLOCK, BLOCK)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _pair_sums(
    kernel: Callable[[jax.Array], jax.Array],
    series: tuple[float, ...],
    ordered: jax.Array,
    weights: jax.Array,
    temperature: jax.Array,
) -> tuple[jax.Array, ...]:
    """Sums over each item's block, over the blocks below and over those above, [..., N] each.

    Of w_j kernel((x_j - x_i)/τ) within the block, of w_j Σ_m c_m e^{-m|x_j - x_i|/τ} beyond it.
    """
    items = ordered.shape[-1]
    x, w = _in_blocks(ordered, repeat_last=True), _in_blocks(weights)
    near = _all_pairs(kernel, x, w, temperature)

    def powers(distance: jax.Array) -> jax.Array:
        """e^{-m distance/τ}, [..., M]."""
        gap = scaled(distance, temperature)[..., None]
        m = jnp.arange(1, len(series) + 1, dtype=x.dtype)
        return jnp.exp(-gap * jnp.expand_dims(m, range(gap.ndim - 1)))

    first, last = x[..., :1], x[..., -1:]
    from_first, from_last = powers(x - first), powers(last - x)
    width = powers((last - first)[..., 0])
    gap = powers(x[..., 1:, 0] - x[..., :-1, -1])
    c = jnp.expand_dims(jnp.asarray(series, x.dtype), range(from_first.ndim - 1))

    def beyond(near_end: jax.Array, far_end: jax.Array, *, reverse: bool) -> jax.Array:
        moments = jnp.sum(far_end * w[..., None], axis=-2)
        carried = _carry(moments, width, gap, reverse=reverse)
        return jnp.sum(c * near_end * carried[..., None, :], axis=-1)

    under = beyond(from_first, from_last, reverse=False)
    over = beyond(from_last, from_first, reverse=True)
    flat = (*ordered.shape[:-1], x.shape[-2] * BLOCK)
    return tuple(part.reshape(flat)[..., :items] for part in (near, under, over))


def _carry(moments: jax.Array, width: jax.Array, gap: jax.Array, *, reverse: bool) -> jax.Array:
    """Moments of all blocks before each block as seen from its near end, [..., blocks, M]."""

    def step(carry: jax.Array, block: tuple) -> tuple[jax.Array, jax.Array]:
        moments, width, gap = block
        carry = (moments + carry * width) * gap
        return carry, carry

    here = slice(1, None) if reverse else slice(None, -1)
    blocks = tuple(
        jnp.moveaxis(v, -2, 0) for v in (moments[..., here, :], width[..., here, :], gap)
    )
    start = jnp.zeros_like(moments[..., 0, :])
    carried = lax.scan(step, start, blocks, reverse=reverse)[1]
    ends = (carried, start[None]) if reverse else (start[None], carried)
    return jnp.moveaxis(jnp.concatenate(ends), 0, -2)
