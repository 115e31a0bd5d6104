"""Smooth logic on probabilities, as if they belonged to independent events.

    soft_not(p) = 1 - p        soft_and(p, q) = p q        soft_or(p, q) = p + q (1 - p)
    soft_all(p) = Π_i p_i      soft_any(p) = 1 - Π_i (1 - p_i)

On 0 and 1 they are the exact operators. They are multilinear: linear in each argument, with all
derivatives, also where several are 0 or 1. Probabilities are taken as they are, whether or not they
are in [0, 1]. soft_any adds positive numbers only and keeps the digits of small ones.

Source: Lotfi Zadeh, "Fuzzy sets", Information and Control 8, 1965 (algebraic product and sum).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from zoo import _checks
from zoo.smooth.derivatives import check_mask


def soft_not(p: jax.Array) -> jax.Array:
    """Probability of the opposite, 1 - p.

    Args:
        p: any shape; half precision holds no probability of the opposite below its resolution.

    Returns:
        The shape and dtype of ``p``.

    Raises:
        TypeError: if ``p`` is not a floating-point array.

    >>> import jax.numpy as jnp
    >>> soft_not(jnp.array([0.0, 0.25, 1.0])).tolist()
    [1.0, 0.75, 0.0]
    """
    return 1 - _checks.floating("p", p)


def soft_and(p: jax.Array, q: jax.Array) -> jax.Array:
    """Probability of both, p q.

    Args:
        p: any shape.
        q: broadcasts to ``p`` or ``p`` to it.

    Returns:
        In the dtype that both have together, computed in at least float32.

    Raises:
        TypeError: if one of them is not floating.

    >>> import jax.numpy as jnp
    >>> soft_and(jnp.array([0.0, 0.5, 1.0]), jnp.array([1.0, 0.5, 1.0])).tolist()
    [0.0, 0.25, 1.0]
    """
    return _of_two(lambda p, q: p * q, p, q)


def soft_or(p: jax.Array, q: jax.Array) -> jax.Array:
    """Probability of at least one, p + q (1 - p).

    Args, Returns, Raises: as for :func:`soft_and`.

    >>> import jax.numpy as jnp
    >>> soft_or(jnp.array([0.0, 0.5, 1.0]), jnp.array([0.0, 0.5, 1.0])).tolist()
    [0.0, 0.75, 1.0]
    """
    return _of_two(_or, p, q)


def soft_xor(p: jax.Array, q: jax.Array) -> jax.Array:
    """Probability of exactly one, p (1 - q) + q (1 - p).

    Args, Returns, Raises: as for :func:`soft_and`.

    >>> import jax.numpy as jnp
    >>> soft_xor(jnp.array([0.0, 0.5, 1.0]), jnp.array([1.0, 0.25, 1.0])).tolist()
    [1.0, 0.5, 0.0]
    """
    return _of_two(lambda p, q: p * (1 - q) + q * (1 - p), p, q)


def soft_all(
    p: jax.Array, *, axis: int = -1, where: jax.Array | None = None, keepdims: bool = False
) -> jax.Array:
    """Probability of all, Π_i p_i.

    A product of many underflows where no factor is small; their geometric mean, the other usual
    choice, is ``soft_all(p) ** (1 / n)``.

    Args:
        p: ``[..., events]``.
        axis: the axis of the events.
        where: bool, broadcasts to ``p``: which events count. The others may be anything.
        keepdims: keep the axis with length 1.

    Returns:
        ``[...]`` in the dtype of ``p``, computed in at least float32; 1 without events.

    Raises:
        TypeError: if ``p`` is not floating.
        ValueError: if ``where`` is not bool or does not fit, or ``p`` has no such axis.

    >>> import jax.numpy as jnp
    >>> soft_all(jnp.array([[0.5, 0.5, 1.0], [0.0, 1.0, 1.0]])).tolist()
    [0.25, 0.0]
    """
    return _of_many(lambda p, q: p * q, 1, p, axis, where, keepdims)


def soft_any(
    p: jax.Array, *, axis: int = -1, where: jax.Array | None = None, keepdims: bool = False
) -> jax.Array:
    """Probability of at least one, 1 - Π_i (1 - p_i).

    Args, Raises: as for :func:`soft_all`.

    Returns:
        ``[...]`` in the dtype of ``p``, computed in at least float32; 0 without events.

    >>> import jax.numpy as jnp
    >>> soft_any(jnp.array([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]])).tolist()
    [0.75, 1.0]
    """
    return _of_many(_or, 0, p, axis, where, keepdims)


Operator = Callable[[jax.Array, jax.Array], jax.Array]


def _or(p: jax.Array, q: jax.Array) -> jax.Array:
    return p + q * (1 - p)


def _of_two(operator: Operator, p: jax.Array, q: jax.Array) -> jax.Array:
    p, q = _checks.floating("p", p), _checks.floating("q", q)
    dtype = jnp.promote_types(p.dtype, q.dtype)
    shape = jnp.broadcast_shapes(p.shape, q.shape)
    p, q = (jnp.broadcast_to(v.astype(_checks.accumulator(dtype)), shape) for v in (p, q))
    return operator(p, q).astype(dtype)


def _of_many(
    operator: Operator,
    neutral: float,
    p: jax.Array,
    axis: int,
    where: jax.Array | None,
    keepdims: bool,
) -> jax.Array:
    """The operator over an axis, in pairs of pairs: its derivative divides by nothing."""
    p, wide = _checks.widened("p", p)
    axis = _checks.axis("axis", axis, p)
    if where is not None:
        wide = jnp.where(check_mask(where, p.shape), wide, neutral)
    wide = jnp.moveaxis(wide, axis, 0)
    if not len(wide):
        wide = jnp.full((1, *wide.shape[1:]), neutral, wide.dtype)
    while (count := len(wide)) > 1:
        half = count // 2
        pairs = operator(wide[:half], wide[half : 2 * half])
        wide = jnp.concatenate([pairs, wide[2 * half :]])
    return jnp.moveaxis(wide, 0, axis).astype(p.dtype) if keepdims else wide[0].astype(p.dtype)
