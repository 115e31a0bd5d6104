"""Cumax: the running sum of a softmax, a soft version of the binary gate (0, …, 0, 1, …, 1).

    cumax(x)_k = Σ_{j ≤ k} softmax(x)_j = P(split ≤ k),   split ~ softmax(x)

Its reverse runs the other way, Σ_{j ≥ k}. Both are probabilities of a random split point, so they
are monotone, lie in [0, 1] and end exactly at 1.

Source: Yikang Shen, Shawn Tan, Alessandro Sordoni, Aaron Courville, "Ordered Neurons: Integrating
Tree Structures into Recurrent Neural Networks", 2018, arXiv 1810.09536; article
https://kexue.fm/archives/6621.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from zoo import _checks, _cpu


def cumax(x: jax.Array, *, axis: int = -1, reverse: bool = False) -> jax.Array:
    """Cumulative softmax, ``cumsum(softmax(x))``.

    cumax(x)_k = Σ_{j ≤ k} e^{x_j} / Σ_j e^{x_j}, or the sum over j ≥ k with ``reverse``.

    Args:
        x: logits of the split point, ``[..., levels]``; -inf excludes a level. If all are -inf, or
            one is +inf, the result is NaN; an empty axis gives an empty result.
        axis: the axis of the levels.
        reverse: sum from the last level to the first.

    Returns:
        Values in [0, 1] of the shape and dtype of ``x``, computed in at least float32: never
        decreasing along ``axis`` and exactly 1 at its end (never increasing from exactly 1 with
        ``reverse``).

    Raises:
        TypeError: if ``x`` is not a floating-point array.

    >>> import jax.numpy as jnp
    >>> cumax(jnp.array([1.0, 2.0, 3.0, 0.0])).tolist()
    [0.087, 0.324, 0.968, 1.0]
    >>> cumax(jnp.array([1.0, 2.0, 3.0, 0.0]), reverse=True).tolist()
    [1.0, 0.913, 0.676, 0.032]

    Reference: arXiv 1810.09536, equation 5.
    """
    x, wide = _checks.widened("cumax: x", x)
    axis = _checks.axis("cumax: axis", axis, x)
    if not x.shape[axis]:
        return x
    return _cumax(axis, reverse, wide).astype(x.dtype)


def log_cumax(x: jax.Array, *, axis: int = -1, reverse: bool = False) -> jax.Array:
    """Logarithm of :func:`cumax`, exact where cumax itself underflows to 0.

    log_cumax(x)_k = log Σ_{j ≤ k} e^{x_j} - log Σ_j e^{x_j}.

    Args:
        x: logits of the split point, as for :func:`cumax`.
        axis: the axis of the levels.
        reverse: sum from the last level to the first.

    Returns:
        Values ≤ 0 in nats, of the shape and dtype of ``x``, computed in at least float32; exactly 0
        at the end of ``axis`` (at its start with ``reverse``).

    Raises:
        TypeError: if ``x`` is not a floating-point array.

    >>> import jax.numpy as jnp
    >>> print(log_cumax(jnp.array([0.0, 200.0])))
    [-200.    0.]

    Reference: arXiv 1810.09536, equation 5.
    """
    x, wide = _checks.widened("log_cumax: x", x)
    axis = _checks.axis("log_cumax: axis", axis, x)
    if not (levels := x.shape[axis]):
        return x
    excluded = wide == -jnp.inf
    # In their place the least number, so that -inf reaches no derivative.
    filled = jnp.where(excluded, jnp.finfo(wide.dtype).min, wide)
    sums = _cpu.running("logsumexp", filled, axis=axis, reverse=reverse)
    logs = sums - lax.index_in_dim(sums, 0 if reverse else -1, axis)
    # From either end: the place of each level, and how many are excluded before the first other.
    place = lax.broadcasted_iota(jnp.int32, x.shape, axis)
    place = levels - 1 - place if reverse else place
    first = jnp.min(jnp.where(excluded, levels, place), axis=axis, keepdims=True)
    nothing = jnp.where(first < levels, -jnp.inf, jnp.nan).astype(wide.dtype)
    return jnp.where(place < first, nothing, logs).astype(x.dtype)


# A derivative rule, because what makes the end exactly 1 would make its derivative 0.
@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _cumax(axis: int, reverse: bool, x: jax.Array) -> jax.Array:
    sums = _running_sum(axis, reverse, jax.nn.softmax(x, axis=axis))
    # Parallel sums round each entry by itself, so neighbours can swap by an ulp; the end can miss 1
    # in any order. Both are promised, and 1 - cumax must not be negative.
    ordered = lax.platform_dependent(
        sums,
        cpu=lambda sums: sums,  # one after the other they never decrease
        default=partial(lax.cummax, axis=axis, reverse=reverse),
    )
    end = 0 if reverse else x.shape[axis] - 1
    at_end = lax.broadcasted_iota(jnp.int32, x.shape, axis) == end
    return jnp.where(at_end & ~jnp.isnan(sums), 1, jnp.minimum(ordered, 1))


@_cumax.defjvp
def _cumax_jvp(
    axis: int, reverse: bool, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    probabilities = jax.nn.softmax(x, axis=axis)
    mean = jnp.sum(probabilities * dx, axis=axis, keepdims=True)
    return _cumax(axis, reverse, x), _running_sum(axis, reverse, probabilities * (dx - mean))


def _running_sum(axis: int, reverse: bool, x: jax.Array) -> jax.Array:
    return _cpu.running("sum", x, axis=axis, reverse=reverse)
