"""Smooth selection: means under the weights that a smooth condition or index gives.

    soft_where(p, x, y) = p x + (1 - p) y
    soft_take(x, weights) = Σ_i weights_i x_i
    soft_slice(x, weights, size)_t = Σ_i weights_i x_{i+t}

With weights 0 and 1 they are the exact operators, and linear between, so that their distance from
those is at most that of the weights (half the sum of all |changes|) times the range of the values.
What has the weight 0 and is not finite takes no part.

Source: Jianlin Su, "Function smoothing", 2019, https://kexue.fm/archives/6620 (smooth one-hot).
"""

import jax
import jax.numpy as jnp

from zoo import _checks


def soft_where(p: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """Smooth choice, p x + (1 - p) y.

    Args:
        p: any shape, the probability of ``x``; taken as it is, whether or not it is in [0, 1].
        x: broadcasts with the others, as does ``y``.
        y: the other choice.

    Returns:
        In the dtype that all have together, computed in at least float32; ``x`` to the last bit for
        p = 1, ``y`` for p = 0, whatever the other is.

    Raises:
        TypeError: if one of them is not floating.

    >>> import jax.numpy as jnp
    >>> soft_where(jnp.array([0.0, 0.25, 1.0]), jnp.array(4.0), jnp.array(8.0)).tolist()
    [8.0, 7.0, 4.0]
    """
    named = {"p": p, "x": x, "y": y}
    p, x, y = (_checks.floating(name, value) for name, value in named.items())
    dtype = jnp.result_type(p, x, y)
    shape = jnp.broadcast_shapes(p.shape, x.shape, y.shape)
    p, x, y = (jnp.broadcast_to(v.astype(_checks.accumulator(dtype)), shape) for v in (p, x, y))
    return (_product(p, x) + _product(1 - p, y)).astype(dtype)


def soft_take(x: jax.Array, weights: jax.Array, *, axis: int = -1) -> jax.Array:
    """Smooth item, Σ_i weights_i x_i: ``x[i]`` with the index i given by its probabilities.

    Args:
        x: ``[..., items]``.
        weights: ``[..., items]`` for one item per row, as from ``soft_one_hot``, or
            ``[..., places, items]`` (one axis more than ``x``) for several, as from
            ``soft_argsort``; always with the items last. The leading axes broadcast: ``[items]``
            is one index for all rows.
        axis: the axis of the items in ``x``.

    Returns:
        ``x`` without ``axis``, or with the places there, in the common dtype, summed in at least
        float32.

    Raises:
        TypeError: if one of them is not floating.
        ValueError: if the items are not as many, ``weights`` have too many axes, or ``x`` has no
            such axis.

    >>> import jax.numpy as jnp
    >>> from zoo.smooth import soft_argsort, soft_one_hot
    >>> x, y = jnp.array([3.0, 1.0, 2.0]), jnp.array([10.0, 20.0, 30.0])
    >>> print(soft_take(y, soft_one_hot(x, temperature=0.1)).round(2))
    10.0
    >>> print(soft_take(y, soft_argsort(x, temperature=0.1)).round(2))
    [20. 30. 10.]
    """
    x, weights = _checks.floating("x", x), _checks.floating("weights", weights)
    axis = _checks.axis("axis", axis, x)
    if weights.shape[-1:] != x.shape[axis : axis + 1] or weights.ndim > x.ndim + 1:
        raise ValueError(
            f"weights must have the shape [..., {x.shape[axis]}] with at most {x.ndim + 1} axes, "
            f"got {weights.shape}"
        )
    dtype = jnp.promote_types(x.dtype, weights.dtype)
    wide = _checks.accumulator(dtype)
    items, weights = jnp.moveaxis(x.astype(wide), axis, -1), weights.astype(wide)
    places = weights.ndim == x.ndim + 1
    items = items[..., None, :] if places else items
    weights = weights.reshape((1,) * (items.ndim - weights.ndim) + weights.shape)
    shape = jnp.broadcast_shapes(items.shape, weights.shape)
    items, weights = jnp.broadcast_to(items, shape), jnp.broadcast_to(weights, shape)
    taken = jnp.sum(_product(weights, items), axis=-1)
    return (jnp.moveaxis(taken, -1, axis) if places else taken).astype(dtype)


def soft_slice(x: jax.Array, weights: jax.Array, size: int, *, axis: int = -1) -> jax.Array:
    """Smooth slice, Σ_i weights_i x[i : i + size]: its start is given by its probabilities.

    Args:
        x: ``[..., items]``.
        weights: ``[items]``; as ``lax.dynamic_slice`` does, starts behind the last one that leaves
            room for ``size`` items count as that one.
        size: how many items, from 1 to all.
        axis: the axis of the items in ``x``; for several axes call it for one after the other.

    Returns:
        ``x`` with ``size`` items, in the common dtype, summed in at least float32.

    Raises:
        TypeError, ValueError: as for :func:`soft_take`, or if ``size`` is out of range.

    >>> import jax.numpy as jnp
    >>> x = jnp.array([1.0, 2.0, 4.0, 8.0])
    >>> print(soft_slice(x, jnp.array([0.0, 0.5, 0.5, 0.0]), 2))
    [3. 6.]
    """
    x, weights = _checks.floating("x", x), _checks.floating("weights", weights)
    axis = _checks.axis("axis", axis, x)
    items = x.shape[axis]
    size = _checks.count("size", size, at_least=1, at_most=items)
    _checks.shapes(x=(jnp.moveaxis(x, axis, -1), "... N"), weights=(weights, "N"))
    last = items - size
    starts = jnp.concatenate([weights[:last], jnp.sum(weights[last:], keepdims=True)])
    windows = jnp.arange(size)[:, None] + jnp.arange(last + 1)[None]
    windows = jnp.take(jnp.moveaxis(x, axis, -1), windows, axis=-1)  # [..., size, starts]
    return jnp.moveaxis(soft_take(windows, starts), -1, axis)


def _product(weight: jax.Array, value: jax.Array) -> jax.Array:
    """The product, where 0 times what is not finite is 0."""
    return weight * jnp.where((weight == 0) & ~jnp.isfinite(value), 0, value)
