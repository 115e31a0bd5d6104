"""Smooth top-k: a vector in [0, 1] with sum k that tends to the multi-hot vector of the k largest.

    gradient   P(i ∈ S) for a random k-subset S with P(S) ∝ exp Σ_{i∈S} x_i/τ; k = 1 is the softmax
    threshold  f(x/τ - λ), f(u) = e^u/2 below 0 and 1 - e^{-u}/2 above
    sigmoid    σ(x/τ - λ)
    clipped    min(1, e^{x/τ - λ}); k = 1 is the softmax; has a kink, and its winners no gradient
    recursive  p ← p + softmax((1 - p)(x - min x)/τ), k times from p = 0

λ is chosen so that the sum is k. All but the last are monotone in x and invariant to a shift. The
recursive form is the first article's, kept for comparison: it can leave [0, 1], can break the order
where entries differ by many τ, and fails always for k = n, which is refused.

Source: Jianlin Su, "Smooth top-k", 2024, https://kexue.fm/archives/10373, and "Function
smoothing", 2019, https://kexue.fm/archives/6620 (recursive).
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from zoo import _checks, _cpu
from zoo.smooth.argmax import soft_one_hot
from zoo.smooth.derivatives import check_arguments, check_mask, difference, scaled
from zoo.smooth.subsets import inclusion_probabilities
from zoo.smooth.thresholds import CLIPPED, LAPLACE, LOGISTIC, threshold

Method = Literal["gradient", "threshold", "sigmoid", "clipped", "recursive"]
FORMS = {"threshold": LAPLACE, "sigmoid": LOGISTIC, "clipped": CLIPPED}
METHODS = ("gradient", *FORMS, "recursive")


def soft_top_k(
    x: jax.Array,
    k: int,
    *,
    temperature: ArrayLike = 1.0,
    axis: int = -1,
    method: Method = "gradient",
    where: jax.Array | None = None,
) -> jax.Array:
    """Smooth multi-hot vector of the k largest items.

    For n items ``"gradient"`` takes O(nk) time, ``"recursive"`` O(nk) time and memory, the others
    O(n) for each of a handful of steps.

    Args:
        x: ``[..., items]``, N of them; inf gives 1, -inf gives 0, unless they are more than there
            is room for and tie. Not for ``"recursive"``: there -inf gives 0 while more than k
            others are left, and what else is infinite makes its row NaN.
        k: how many, 1 ≤ k ≤ N (< N for ``"recursive"``).
        temperature: τ > 0, in the units of ``x``.
        axis: the axis of the items.
        method: see the module; each has its own values at τ > 0.
        where: bool, broadcasts to ``x``: which items take part. The others may be anything; they
            get 0, as -inf does, and if no more than k items are left these get 1 (NaN for
            ``"recursive"``).

    Returns:
        The shape and dtype of ``x``, computed in at least float32: in [0, 1] (but for
        ``"recursive"``), with sum k along ``axis``. Where items tie for the k-th place they share
        what is left; with k = N all are 1. One NaN makes its row NaN. The error is at most
        max(k, N - k) e^{-gap/τ}, e^{-gap/2τ} for ``"threshold"`` and ``"sigmoid"``, with the gap
        between the k-th item and the next.

    Raises:
        TypeError: if ``x`` is not a floating-point array or ``k`` no integer.
        ValueError: if ``k``, ``axis`` or ``method`` is not one of the allowed, ``where`` is not
            bool or does not fit, or ``temperature`` is not positive, or below 1e-34 in float32 (a
            traced one gives NaN).

    >>> import jax.numpy as jnp
    >>> x = jnp.array([2.0, 1.0, 4.0, 5.0, 3.0])
    >>> for method in ("gradient", "threshold", "sigmoid", "clipped", "recursive"):
    ...     print(soft_top_k(x, 2, method=method).round(4).tolist())
    [0.1154, 0.0433, 0.6746, 0.8705, 0.2961]
    [0.1064, 0.0392, 0.6821, 0.8830, 0.2893]
    [0.1693, 0.0697, 0.6009, 0.8036, 0.3565]
    [0.0871, 0.0321, 0.6439, 1.0, 0.2369]
    [0.1410, 0.0532, 0.6473, 0.8142, 0.3444]

    Reference: https://kexue.fm/archives/10373.
    """
    x, wide, temperature = check_arguments(x, temperature)
    axis = _checks.axis("axis", axis, x)
    _checks.choice("method", method, METHODS)
    items = x.shape[axis]
    k = _checks.count("k", k, at_least=1, at_most=items)
    if k == items and method == "recursive":
        raise ValueError(
            f"k must be less than the {items} items of x for method='recursive', which then gives "
            f"some items more than 1 and others less, got {k}; use another method"
        )
    if where is not None:
        where = check_mask(where, x.shape)
        wide = jnp.where(where, wide, -jnp.inf)
    if k == items:
        lost = jnp.isnan(wide).any(axis, keepdims=True) | jnp.isnan(temperature)
        every = jnp.ones(x.shape, bool) if where is None else where
        return jnp.where(lost, jnp.nan, jnp.broadcast_to(every, x.shape)).astype(x.dtype)
    if method == "recursive":
        chosen = jnp.moveaxis(_recursive(k, jnp.moveaxis(wide, axis, -1), temperature), -1, axis)
    else:
        # Sums over the first axis are those of many columns at once. The barriers keep XLA's CPU
        # compiler from computing in the order of the other side of a transpose.
        columns = jnp.moveaxis(wide, axis, 0)
        sizes = [size for size in columns.shape[1:] if size != 1]  # loops over one entry are slow
        x_by_column = lax.optimization_barrier(columns.reshape(items, *sizes))
        chosen = _shift_invariant(method, k, x_by_column, temperature)
        chosen = lax.optimization_barrier(chosen).reshape(columns.shape)
        chosen = jnp.moveaxis(chosen, 0, axis)
    if where is not None:
        chosen = jnp.where(where | jnp.isnan(chosen), chosen, 0)
    return chosen.astype(x.dtype)


def _shift_invariant(method: str, k: int, x: jax.Array, temperature: jax.Array) -> jax.Array:
    """The methods with a threshold, on the first axis."""
    largest = _cpu.largest(lax.stop_gradient(x), k)
    pivot = jnp.where(jnp.isnan(largest[:1]), jnp.nan, largest[-1:])  # NaN counts as the largest
    # The difference comes first: x/τ itself may overflow.
    u = lax.optimization_barrier(scaled(difference(x, pivot), temperature))  # used many times
    largest = scaled(difference(largest, pivot), lax.stop_gradient(temperature))
    if method == "gradient":
        return inclusion_probabilities(k, u, largest)
    form = FORMS[method]
    return form.cdf(u - threshold(form, k, u, largest)[None])


@functools.partial(jax.jit, static_argnums=0)
def _recursive(k: int, x: jax.Array, temperature: jax.Array) -> jax.Array:
    present = x != -jnp.inf
    valid = (jnp.sum(present, axis=-1) > k) & (jnp.max(x, axis=-1) < jnp.inf)
    valid = valid[..., None]
    smallest = jnp.min(x, axis=-1, keepdims=True, where=present, initial=jnp.inf)
    x = jnp.where(valid & present, x - smallest, 0)

    def add_one(chosen: jax.Array, _: None) -> tuple[jax.Array, None]:
        left = jnp.where(present, (1 - chosen) * x, -jnp.inf)
        return chosen + soft_one_hot(left, temperature=temperature), None

    chosen = lax.scan(add_one, jnp.zeros_like(x), None, length=k)[0]
    return jnp.where(valid, chosen, jnp.nan)
