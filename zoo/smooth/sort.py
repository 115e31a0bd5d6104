"""Smooth sorting: every sorted item is a mean of the items near it.

    soft_argsort(x)_ij = e^{-|s_i - x_j|/τ} / Σ_k e^{-|s_i - x_k|/τ},   s = sort(x)
    soft_sort(x) = soft_argsort(x) x

The rows of the matrix are probabilities, and its product with x is sorted. At temperature τ no item
is farther from the exact one than

    |soft_sort(x)_i - s_i| ≤ τ W((n - 1)/e) < τ log n      (W of Lambert, W e^W = (n - 1)/e)

with equality where all other items lie 1 + W((n - 1)/e) units of τ away on one side. Items that tie
share. As the exact operator, the smooth one is continuous, with derivatives except where items tie;
there it has those of the items moving apart in their order.

The product needs no matrix: in rising order e^{-(s_i - s_j)/τ} is a product of the e^{-gap/τ}
between, so that sums over all items below are a recurrence, and so are those above:

    count_i = 1 + e^{-gap_i/τ} count_{i-1}
    distance_i = e^{-gap_i/τ} (distance_{i-1} + gap_i count_{i-1})

and soft_sort(x)_i = s_i + (distance of those above - distance of those below) / count of all, where
no digits cancel: O(n log n) time for the sort, O(n) for the rest.

Source: Sebastian Prillo, Julian Eisenschlos, "SoftSort: A Continuous Relaxation for the argsort
Operator", ICML 2020, arXiv 2006.16038 (with d = |·|); the bound and the recurrence are ours.
"""

import functools
import math
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from zoo import _checks, _cpu
from zoo.smooth.derivatives import FAR, check_arguments, check_mask, scaled

Interpolation = Literal["linear", "lower", "higher", "nearest", "midpoint"]


class _Sorted(NamedTuple):
    """Items in rising order along the first axis; those that do not take part are the last."""

    x: jax.Array  # [N, ...], inf where nothing takes part
    weights: jax.Array  # [N, ...], 1 for what takes part, else 0
    values: jax.Array  # [N, ...]


def soft_sort(
    x: jax.Array,
    *,
    temperature: ArrayLike = 1.0,
    axis: int = -1,
    descending: bool = False,
    where: jax.Array | None = None,
    values: jax.Array | None = None,
) -> jax.Array:
    """Smooth sorted items, soft_argsort(x) x, in O(N log N) and without the matrix.

    Args:
        x: ``[..., items]``, N of them; ±inf stay and take no part in the others.
        temperature: τ > 0, in the units of ``x``.
        axis: the axis of the items.
        descending: from the largest to the smallest.
        where: bool, broadcasts to ``x``: which items take part. The others may be anything.
        values: what is put in order by ``x`` instead of ``x`` itself, of its shape and dtype:
            soft_argsort(x) values.

    Returns:
        The shape and dtype of ``x``, computed in at least float32, within [min, max] and within
        τ log N of the exact items. One NaN makes its row NaN. With ``where`` the items that take
        part come first; the places behind them hold inf (-inf if descending; 0 for ``values``) and
        have no gradient.

    Raises:
        TypeError: if ``x`` is not a floating-point array.
        ValueError: if ``temperature`` is not positive, or below 1e-34 in float32 (a traced one
            gives NaN), ``x`` has no such axis, ``where`` is not bool or does not fit, or ``values``
            differ from ``x`` in shape or dtype.

    >>> import jax.numpy as jnp
    >>> x = jnp.array([2.0, 1.0, 4.0, 5.0, 3.0])
    >>> for temperature in (1.0, 0.1):
    ...     print(soft_sort(x, temperature=temperature).round(3).tolist())
    [1.548, 2.219, 3.0, 3.781, 4.452]
    [1.0, 2.0, 3.0, 4.0, 5.0]
    >>> print(soft_sort(x, values=x**2, temperature=0.1, descending=True).round(2))
    [25. 16.  9.  4.  1.]

    Reference: Prillo, Eisenschlos, 2020.
    """
    x, keys, where, temperature, axis = _arguments(x, temperature, axis, where, descending)
    if values is not None:
        values = jnp.asarray(values)
        if (values.shape, values.dtype) != (x.shape, x.dtype):
            raise ValueError(
                f"values must have the shape and dtype of x, {x.shape} {x.dtype}, got "
                f"{values.shape} {values.dtype}; for other values see soft_argsort"
            )
        values = jnp.moveaxis(values.astype(keys.dtype), axis, 0)
    y = _sorted_means(keys, where, values, temperature)
    y = -y if descending and values is None else y
    return jnp.moveaxis(y, 0, axis).astype(x.dtype)


def soft_argsort(
    x: jax.Array,
    *,
    temperature: ArrayLike = 1.0,
    axis: int = -1,
    descending: bool = False,
    where: jax.Array | None = None,
) -> jax.Array:
    """Smooth permutation matrix: row i weighs the items for the i-th place.

    ``soft_argsort(x) @ values`` puts anything in order; in O(N log N) see :func:`soft_sort`.

    Args:
        x: this and the rest as for :func:`soft_sort`.
        temperature: τ > 0, in the units of ``x``.
        axis: the axis of the items.
        descending: from the largest to the smallest.
        where: bool, broadcasts to ``x``: which items take part.

    Returns:
        ``[..., places, items]`` in the dtype of ``x``, computed in at least float32: the places on
        ``axis`` (counted in ``x``), the items on the last axis. Rows sum to 1; those of places
        behind the items that take part are 0.

    Raises:
        TypeError, ValueError: as for :func:`soft_sort`.

    >>> import jax.numpy as jnp
    >>> soft_argsort(jnp.array([2.0, 1.0, 4.0]), temperature=0.5).round(3).tolist()
    [[0.119, 0.879, 0.002], [0.867, 0.117, 0.016], [0.018, 0.002, 0.980]]

    Reference: Prillo, Eisenschlos, 2020.
    """
    x, keys, where, temperature, axis = _arguments(x, temperature, axis, where, descending)
    if not len(keys):
        return jnp.zeros((*x.shape, 0), x.dtype)
    matrix = _matrix(keys, where, temperature)
    return jnp.moveaxis(matrix, (0, 1), (axis, -1)).astype(x.dtype)


def soft_quantile(
    x: jax.Array,
    q: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    axis: int = -1,
    where: jax.Array | None = None,
    method: Interpolation = "linear",
    keepdims: bool = False,
) -> jax.Array:
    """Smooth quantile: between the entries of :func:`soft_sort` at place q (N - 1), from 0.

    Args:
        x: ``[..., items]``; this and the rest as for :func:`soft_sort`.
        q: any shape, in [0, 1]; a percentile p is ``q=p / 100``.
        temperature: τ > 0, in the units of ``x``.
        axis: the axis of the items.
        where: bool, broadcasts to ``x``: which items take part.
        method: what is taken between two places, as in ``jnp.quantile``.
        keepdims: keep the axis with length 1.

    Returns:
        ``[*q.shape, ...]`` in the dtype of ``x``, within τ log N of the exact quantile. NaN with
        gradient 0 if no item takes part.

    Raises:
        TypeError, ValueError: as for :func:`soft_sort`; or if there are no items, ``q`` is not in
            [0, 1] (a traced one gives NaN), or ``method`` is unknown.

    >>> import jax.numpy as jnp
    >>> x = jnp.array([2.0, 1.0, 4.0, 5.0, 3.0])
    >>> soft_quantile(x, jnp.array([0.0, 0.6, 1.0]), temperature=0.2).round(3).tolist()
    [1.007, 3.4, 4.993]
    """
    _checks.choice("method", method, get_args(Interpolation))
    if not isinstance(q, jax.core.Tracer) and not (np.abs(np.asarray(q) - 0.5) <= 0.5).all():
        raise ValueError(f"q must be in [0, 1], got {q!r:.80}; a percentile p is q=p / 100")
    x, keys, where, temperature, axis = _arguments(x, temperature, axis, where)
    if not len(keys):
        raise ValueError(f"x must have at least one item, got {x.shape=}")
    places = _sorted_means(keys, where, None, temperature)
    taken = jnp.ones(keys.shape, bool) if where is None else where
    count = jnp.sum(taken, axis=0)
    q = jnp.asarray(q, places.dtype)
    q = jnp.where((q >= 0) & (q <= 1), q, jnp.nan)[(..., *[None] * count.ndim)]
    place = q * jnp.maximum(count - 1, 0).astype(q.dtype)[(None,) * (q.ndim - count.ndim)]
    below, above = jnp.floor(place), jnp.ceil(place)
    share = {
        "linear": place - lax.stop_gradient(below),
        "lower": jnp.zeros_like(place),
        "higher": jnp.ones_like(place),
        "nearest": (jnp.round(place) > below).astype(place.dtype),
        "midpoint": jnp.full_like(place, 0.5),
    }[method]

    def at(place: jax.Array) -> jax.Array:
        index = jnp.where(jnp.isnan(place), 0, place).astype(jnp.int32)
        flat = index.reshape(math.prod(q.shape[: q.ndim - count.ndim]), *count.shape)
        return jnp.take_along_axis(places, flat, axis=0).reshape(index.shape)

    low, high = at(below), at(above)
    y = jnp.where(low == high, low, (1 - share) * low + share * high)
    y = jnp.where((count == 0)[(None,) * (y.ndim - count.ndim)] | jnp.isnan(place), jnp.nan, y)
    if keepdims:
        y = jnp.expand_dims(y, y.ndim - count.ndim + axis)
    return y.astype(x.dtype)


def soft_median(
    x: jax.Array,
    *,
    temperature: ArrayLike = 1.0,
    axis: int = -1,
    where: jax.Array | None = None,
    keepdims: bool = False,
) -> jax.Array:
    """Smooth median, soft_quantile(x, 1/2).

    Args, Returns, Raises: as for :func:`soft_quantile`.

    >>> import jax.numpy as jnp
    >>> x = jnp.array([2.0, 1.0, 4.0, 50.0])
    >>> print(soft_median(x), soft_median(x, temperature=0.01))
    2.7905 3.0000
    """
    return soft_quantile(x, 0.5, temperature=temperature, axis=axis, where=where, keepdims=keepdims)


def _arguments(
    x: jax.Array,
    temperature: ArrayLike,
    axis: int,
    where: jax.Array | None,
    descending: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array | None, jax.Array, int]:
    """x, what is to rise along the first axis, the mask of that, the temperature, the axis."""
    x, wide, temperature = check_arguments(x, temperature)
    axis = _checks.axis("axis", axis, x)
    if where is not None:
        where = jnp.moveaxis(jnp.broadcast_to(check_mask(where, x.shape), x.shape), axis, 0)
    return x, jnp.moveaxis(-wide if descending else wide, axis, 0), where, temperature, axis


def _in_order(keys: jax.Array, where: jax.Array | None, values: jax.Array | None = None) -> _Sorted:
    weights = None
    if where is not None:
        keys, weights = jnp.where(where, keys, jnp.inf), where.astype(keys.dtype)
        values = None if values is None else jnp.where(where, values, 0)
    keys, *rest = _cpu.sort(*(a for a in (keys, weights, values) if a is not None))
    weights = jnp.ones_like(keys) if where is None else rest.pop(0)
    return _Sorted(keys, weights, rest[0] if rest else keys)


def _absent(keys: jax.Array, where: jax.Array | None) -> jax.Array:
    """The places behind the items that take part."""
    place = lax.broadcasted_iota(jnp.int32, keys.shape, 0)
    return place >= (len(keys) if where is None else jnp.sum(where, axis=0, keepdims=True))


def _lost(keys: jax.Array, where: jax.Array | None) -> jax.Array:
    """Rows with a NaN that takes part."""
    nan = jnp.isnan(keys) if where is None else jnp.isnan(keys) & where
    return jnp.any(nan, axis=0, keepdims=True)


@jax.jit
def _sorted_means(
    keys: jax.Array, where: jax.Array | None, values: jax.Array | None, temperature: jax.Array
) -> jax.Array:
    """The weighted means for every place along the first axis."""
    if not len(keys):
        return keys
    items = _in_order(keys, where, values)
    y = _means(items.x, items.weights, temperature) if values is None else _sums(items, temperature)
    y = jnp.where(_absent(keys, where), jnp.inf if values is None else 0, y)
    return jnp.where(_lost(keys, where) | jnp.isnan(temperature), jnp.nan, y)


def _sums(items: _Sorted, temperature: jax.Array) -> jax.Array:
    """The weighted means of the values, or of the items by their distances if these are the values.

    Every sum is a recurrence of its own, which a GPU computes by parallel prefixes.
    """
    keep, loss, gap = _passed(items.x[1:], items.x[:-1], temperature)
    edge = jnp.zeros_like(items.x[:1])
    with_edge = functools.partial(jnp.concatenate, axis=0)
    from_below = with_edge([edge, keep]), with_edge([edge + 1, loss])
    from_above = with_edge([keep, edge]), with_edge([loss, edge + 1])

    def both_sides(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return running(False, *from_below, x), running(True, *from_above, x)

    below, above = both_sides(items.weights)
    total = below + above - items.weights
    total = jnp.where(total == 0, 1, total)
    if items.values is not items.x:
        weighted = items.weights * items.values
        return (sum(both_sides(weighted)) - weighted) / total
    shrunk = keep * gap
    up = running(True, *from_above, with_edge([shrunk * above[1:], edge]))
    down = running(False, *from_below, with_edge([edge, shrunk * below[:-1]]))
    return items.x + (up - down) / total


def _passed(upper: jax.Array, lower: jax.Array, temperature: jax.Array) -> tuple[jax.Array, ...]:
    """e^{-gap/τ}, 1 less it, and the gap, 0 where nothing passes it."""
    gap = jnp.where((upper == lower) & jnp.isinf(upper), 0, upper - lower)
    units = scaled(gap, temperature)
    return jnp.exp(-units), -jnp.expm1(-units), jnp.where(units < FAR, gap, 0)


@jax.custom_jvp
def _means(x: jax.Array, weights: jax.Array, temperature: jax.Array) -> jax.Array:
    """`_sums` of the items themselves; without derivatives, two loops suffice on a CPU."""
    return lax.platform_dependent(
        x, weights, temperature, cpu=_means_in_two_passes, default=_means_by_sums
    )


@_means.defjvp
def _means_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    return jax.jvp(_means_by_sums, primals, tangents)


def _means_by_sums(x: jax.Array, weights: jax.Array, temperature: jax.Array) -> jax.Array:
    return _sums(_Sorted(x, weights, x), temperature)


def _means_in_two_passes(x: jax.Array, weights: jax.Array, temperature: jax.Array) -> jax.Array:
    """From below with count and distance of the items passed, then from above with the means."""
    passed = _passed(x[1:], x[:-1], temperature)
    edge = jnp.zeros_like(x[:1])
    nothing = edge[0], edge[0]

    def step(sums: tuple, entry: tuple) -> tuple[jax.Array, jax.Array]:
        (count, distance), (keep, loss, gap, weight) = sums, entry
        count, moved = _cpu.kept(count, keep, loss), distance + gap * count
        return count + weight, _cpu.kept(moved, keep, loss)

    def rise(sums: tuple, entry: tuple) -> tuple[tuple, tuple]:
        sums = step(sums, entry)
        return sums, sums

    def fall(sums: tuple, entry: tuple) -> tuple[tuple, jax.Array]:
        x, below, down, *others = entry
        above, up = sums = step(sums, tuple(others))
        total = below + above - others[-1]
        return sums, x + (up - down) / jnp.where(total == 0, 1, total)

    before = (jnp.concatenate([edge, a]) for a in passed)
    after = (jnp.concatenate([a, edge]) for a in passed)
    _, below = lax.scan(rise, nothing, (*before, weights))
    return lax.scan(fall, nothing, (x, *below, *after, weights), reverse=True)[1]


@jax.jit
def _matrix(keys: jax.Array, where: jax.Array | None, temperature: jax.Array) -> jax.Array:
    """[places, items, ...], as in `soft_argsort`."""
    places, items = _in_order(keys, where).x[:, None], keys[None]
    taken = ~_absent(keys, where)[:, None]
    if where is not None:
        taken, items = taken & where[None], jnp.where(where, items, jnp.inf)
    distance = jnp.where(places == items, 0, places - items)
    weights = jnp.where(taken, jnp.exp(-jnp.abs(scaled(distance, temperature))), 0)
    total = jnp.sum(weights, axis=1, keepdims=True)
    matrix = weights / jnp.where(total == 0, 1, total)
    return jnp.where(_lost(keys, where)[None] | jnp.isnan(temperature), jnp.nan, matrix)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def running(reverse: bool, keep: jax.Array, loss: jax.Array, x: jax.Array) -> jax.Array:
    """z_i = x_i + keep_i z_{i-1} along the first axis; z_{i+1} for z_{i-1} in reverse.

    The loss, 1 - keep, adds digits, no derivative.
    """
    return _cpu.recurrence(keep, loss, x, reverse=reverse)


@running.defjvp
def _running_jvp(reverse: bool, primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    keep, loss, x = primals
    z = running(reverse, keep, loss, x)
    edge = jnp.zeros_like(z[:1])
    before = jnp.concatenate([z[1:], edge] if reverse else [edge, z[:-1]])
    return z, running(reverse, keep, loss, tangents[2] + tangents[0] * before)
