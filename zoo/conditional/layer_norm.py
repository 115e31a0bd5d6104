"""Conditional LayerNorm: the scale and bias of a LayerNorm depend linearly on a condition.

    n = (x - mean(x)) / √(variance(x) + epsilon)                 LayerNorm, over the last axis
    y = (scale + c W_scale) · n + (bias + c W_bias)

    n = x / √(mean(x²) + epsilon)                                RMSNorm, which has a scale only
    y = (scale + c W_scale) · n

    g = gate + c W_gate                                          AdaLN-Zero: x + g · f(y)

W_scale and W_bias start at 0, so a pretrained model computes at first what it did, whatever the
condition. They have no bias of their own (scale and bias are that), so the condition 0 always gives
the plain norm, which makes it the null condition of classifier-free guidance.

At the start the gradient of W_scale, (∂loss/∂scale) cᵀ, is not 0, but that of c is: what computes
the condition moves from the second step on.

The derivative is written out. Of the size of x it keeps x alone, in the dtype of x.

    dx = r (u - mean(u) - n mean(n u)),   u = (scale + c W_scale) · dy,   r = n / (x - mean(x))

Source: Su Jianlin, "Text generation controlled by Conditional LayerNorm", 2019,
https://kexue.fm/archives/7124; LayerNorm is that of Jimmy Lei Ba et al., arXiv 1607.06450, RMSNorm
that of Biao Zhang, Rico Sennrich, arXiv 1910.07467.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from zoo import _cpu
from zoo._checks import accumulator, floating, number, shapes, typed_key

Condition = jax.Array | Sequence[jax.Array]
LARGEST = 1e17  # whose square, summed over any D, float32 can hold


def conditional_layer_norm(
    x: jax.Array,
    condition: Condition,
    scale: jax.Array,
    bias: jax.Array,
    scale_kernel: jax.Array,
    bias_kernel: jax.Array,
    *,
    epsilon: float = 1e-12,
    mask: jax.Array | None = None,
) -> jax.Array:
    """LayerNorm over the last axis whose scale and bias depend on a condition.

    y = (scale + c W_scale) · (x - mean) / √(variance + epsilon) + bias + c W_bias, with mean and
    variance (of the population) in at least float32. Where x is constant along the last axis,
    y = bias + c W_bias exactly.

    Args:
        x: ``[..., D]``, |x| ≤ 1e17 in float32 and bfloat16: where the sum of squares is not finite,
            the result is NaN.
        condition: c, ``[B, E]`` for x ``[B, ..., D]``; in general its leading axes are the first
            of x: ``[E]`` is shared by all positions, ``[..., E]`` has one condition per position.
            The effects of a sequence of conditions are added: the kernels hold the rows of the
            first, then those of the second and so on.
        scale: ``[D]``.
        bias: ``[D]``.
        scale_kernel: W_scale ``[E, D]``.
        bias_kernel: W_bias ``[E, D]``.
        epsilon: added to the variance. The gradient of constant x is up to 1/√epsilon times that
            of y, which float16 cannot hold for 1e-12.
        mask: bool, broadcast to x: mean and variance are those of its true entries, and normalise
            all; a false entry that is not finite (or beyond the bound of x) gives NaN, which
            reaches no other value or gradient. A position without a true one counts as constant.
            None: all true.

    Returns:
        ``[..., D]`` in the dtype of x.

    Raises:
        TypeError: if x or a condition is missing or not floating-point, or the mask is not bool.
        ValueError: if shapes do not fit, or epsilon is not positive.

    >>> x, ones = jnp.array([[1.0, 3.0], [2.0, 6.0]]), jnp.ones((1, 2))
    >>> condition = jnp.array([[0.0], [0.5]])
    >>> conditional_layer_norm(x, condition, jnp.ones(2), jnp.zeros(2), ones, 0 * ones)
    Array([[-1. ,  1. ], [-1.5,  1.5]], dtype=float32)

    Reference: https://kexue.fm/archives/7124.
    """
    shapes(x=(x, "... D"), scale=(scale, "D"), bias=(bias, "D"))
    shapes(x=(x, "... D"), scale_kernel=(scale_kernel, "E D"), bias_kernel=(bias_kernel, "E D"))
    c = align_conditions(x, condition, len(scale_kernel))
    gain = affine(scale, scale_kernel, c)  # scale + c W_scale
    shift = affine(bias, bias_kernel, c)  # bias + c W_bias
    return _modulate(x, gain, shift, mask, epsilon=epsilon, centred=True)  # gain · n + shift


def conditional_rms_norm(
    x: jax.Array,
    condition: Condition,
    scale: jax.Array,
    scale_kernel: jax.Array,
    *,
    epsilon: float = 1e-6,
    mask: jax.Array | None = None,
) -> jax.Array:
    """RMSNorm over the last axis whose scale depends on a condition, as in T5.

    y = (scale + c W_scale) · x / √(mean(x²) + epsilon); arguments, result and errors are those of
    :func:`conditional_layer_norm`.

    >>> x, condition = jnp.array([[3.0, -3.0]]), jnp.array([[0.5]])
    >>> conditional_rms_norm(x, condition, jnp.ones(2), jnp.array([[0.0, 2.0]])).round(4)
    Array([[ 1., -2.]], dtype=float32)

    Reference: https://kexue.fm/archives/7124; arXiv 1910.07467.
    """
    shapes(x=(x, "... D"), scale=(scale, "D"), scale_kernel=(scale_kernel, "E D"))
    gain = affine(scale, scale_kernel, align_conditions(x, condition, len(scale_kernel)))
    shift = jnp.zeros_like(gain)
    return _modulate(x, gain, shift, mask, epsilon=epsilon, centred=False)  # gain · n


def conditional_gate(
    x: jax.Array, condition: Condition, gate: jax.Array, gate_kernel: jax.Array
) -> jax.Array:
    """The gate of AdaLN-Zero, by which a branch of a residual network depends on the condition.

    g = gate + c W_gate, for x + g · f(y) with y the conditional norm of x. Where both start at 0
    (``gate`` too) every block starts as the identity; where ``gate`` starts at 1 and W_gate at 0, a
    pretrained network starts as it is.

    Args:
        x: ``[..., D]``, of which only the shape and dtype count.
        condition: as for :func:`conditional_layer_norm`.
        gate: ``[D]``.
        gate_kernel: W_gate ``[E, D]``.

    Returns:
        The gate in the dtype of x, with its rank, ``[B, 1, ..., D]``: 1 at axes that share it.

    Raises:
        TypeError, ValueError: as :func:`conditional_layer_norm`.

    >>> x, condition = jnp.ones((2, 3, 1)), jnp.array([[0.0], [0.5]])
    >>> conditional_gate(x, condition, jnp.zeros(1), jnp.ones((1, 1))).tolist()
    [[[0.0]], [[0.5]]]

    Reference: William Peebles, Saining Xie, "Scalable Diffusion Models with Transformers", 2022,
    arXiv 2212.09748, section 3.2.
    """
    shapes(x=(x, "... D"), gate=(gate, "D"), gate_kernel=(gate_kernel, "E D"))
    g = affine(gate, gate_kernel, align_conditions(x, condition, len(gate_kernel)))
    own = g.shape[:-2]
    return g.reshape(*own, *(1,) * (x.ndim - 1 - len(own)), x.shape[-1]).astype(x.dtype)


def drop_condition(
    key: jax.Array, condition: Condition, *, rate: float, null: Any = None
) -> jax.Array | tuple[jax.Array, ...]:
    """Sets the condition of a random share of the samples to the null condition.

    A model trained so also gives unconditional outputs, which classifier-free guidance needs:
    f(null) + scale · (f(c) - f(null)); see :class:`ClassifierFreeGuidance`.

    Args:
        key: typed key, consumed.
        condition: ``[B, ..., E]``, at least two axes: one condition per sample; with ``null``, also
            labels ``[B]``. A sequence of conditions is dropped together.
        rate: probability of the null condition, in [0, 1].
        null: the null condition, broadcast to one sample: a learned vector ``[E]``, a label that
            stands for no class; a sequence for several conditions. None: 0, which gives the plain
            norm.

    Returns:
        Like the condition: each sample unchanged or null (not scaled up as dropout does). A traced
        rate out of its range gives NaN, the label -1.

    Raises:
        TypeError: if the key is not a typed key, or the condition not floating-point without a
            ``null``.
        ValueError: if the rate is not in [0, 1], the condition has no axis of samples, or the
            conditions are of different numbers of samples.

    >>> drop_condition(jax.random.key(0), jnp.ones((2, 3)), rate=1.0)
    Array([[0., 0., 0.], [0., 0., 0.]], dtype=float32)

    Reference: Jonathan Ho, Tim Salimans, "Classifier-Free Diffusion Guidance", arXiv 2207.12598.
    """
    typed_key("key", key)
    rate = number("rate", rate, at_least=0, at_most=1)
    several = isinstance(condition, (tuple, list))
    conditions: Any = condition if several else [condition]
    nulls = [None] * len(conditions) if null is None else null if several else [null]
    given = [
        floating("condition", c) if n is None else jnp.asarray(c)
        for c, n in zip(conditions, nulls, strict=True)
    ]
    sizes = [c.shape for c in given]
    if any(len(size) < 1 + (n is None) for size, n in zip(sizes, nulls, strict=True)):
        raise ValueError(
            f"condition must be [B, ..., E], got {', '.join(map(str, sizes))}, of which single "
            "features would be dropped; add the axis of samples, condition[None]"
        )
    if len({size[0] for size in sizes}) > 1:
        raise ValueError(f"condition must be of B samples, all of them, got shapes {sizes}")
    kept = jax.random.bernoulli(key, 1 - rate, sizes[0][:1])
    dropped = []
    for c, n in zip(given, nulls, strict=True):
        new = jnp.asarray(0 if n is None else n, c.dtype)
        if isinstance(rate, jax.core.Tracer):
            no_value = jnp.nan if jnp.issubdtype(c.dtype, jnp.inexact) else -1
            new = jnp.where(jnp.isnan(rate), jnp.asarray(no_value, c.dtype), new)
        dropped.append(jnp.where(kept.reshape(-1, *(1,) * (c.ndim - 1)), c, new))
    return tuple(dropped) if several else dropped[0]


def align_conditions(x: jax.Array, condition: Condition | None, features: int) -> list[jax.Array]:
    """Gives all conditions the same number of axes, of size 1 where positions share one.

    Raises:
        TypeError: if x or a condition is missing or not floating-point.
        ValueError: if leading axes are not the first of x, or there are not E features in all.
    """
    floating("x", x)
    if condition is None:
        raise TypeError(
            "condition must be given, an array [B, E], got None; zeros are the null condition and "
            "give the plain norm"
        )
    given: Any = condition if isinstance(condition, (tuple, list)) else [condition]
    given = [floating("condition", one) for one in given]
    sizes = [one.shape for one in given]
    leading = x.shape[:-1]
    if any(not size or size[:-1] != leading[: len(size) - 1] for size in sizes):
        raise ValueError(
            f"condition must be [..., E] with the leading axes of x, {leading}, or the first of "
            f"them, got shapes {sizes}"
        )
    if sum(size[-1] for size in sizes) != features:
        raise ValueError(
            f"condition must have as many features as the kernels have rows, {features}, got "
            f"shapes {sizes}"
        )
    rank = max(map(len, sizes))
    return [one.reshape(*one.shape[:-1], *(1,) * (rank - one.ndim), one.shape[-1]) for one in given]


def affine(vector: jax.Array, kernel: jax.Array, conditions: Sequence[jax.Array]) -> jax.Array:
    """The sum vector + Σ c W over aligned conditions, each with its rows of W: ``[..., 1, D]``."""
    wide = accumulator(jnp.result_type(vector, *conditions))
    total, row = vector.astype(wide)[(None,) * conditions[0].ndim], 0
    for c in conditions:
        rows = kernel[row : row + c.shape[-1]]
        # One product of matrices. With an axis of size 1 added behind it, the gradients of vector
        # and W are summed from one sum over positions, which XLA makes twice otherwise.
        flat = c.reshape(math.prod(c.shape[:-1]), c.shape[-1])
        product = jnp.matmul(flat, rows, preferred_element_type=wide)
        total += product.reshape(*c.shape[:-1], 1, product.shape[-1])
        row += c.shape[-1]
    return total


def _modulate(
    x: jax.Array,
    gain: jax.Array,
    shift: jax.Array,
    mask: jax.Array | None,
    *,
    epsilon: float,
    centred: bool,
) -> jax.Array:
    """The result gain · n + shift; leading axes of gain and shift are the first of x."""
    hidden = None
    if mask is not None:
        if mask.dtype != bool:
            raise TypeError(f"mask must be bool, True at entries that count, got {mask.dtype}")
        mask = jnp.broadcast_to(mask, x.shape)
        counts = mask.any(axis=-1, keepdims=True)
        hidden = counts & ~mask & ~(jnp.abs(x.astype(accumulator(x.dtype))) <= LARGEST)
        x, mask = jnp.where(counts & ~hidden, x, 0), mask | ~counts
    own, shared = x.shape[: gain.ndim - 2], x.shape[gain.ndim - 2 : -1]
    batch, time, units = math.prod(own), math.prod(shared), x.shape[-1]
    gain, shift = gain.reshape(batch, 1, units), shift.reshape(batch, 1, units)
    epsilon = number("epsilon", epsilon, above=0)
    flat = batch, time, units
    mask = None if mask is None else mask.reshape(flat)
    y = _scale_and_shift(epsilon, centred, x.reshape(flat), gain, shift, mask).reshape(x.shape)
    return y if hidden is None else jnp.where(hidden, jnp.nan, y)


# From here on x is [B, T, D], T positions per condition; gain and shift are [B, 1, D].
Mean = tuple[jax.Array, jax.Array]  # the rounded mean, and the mean of what is left


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _scale_and_shift(
    epsilon: float,
    centred: bool,
    x: jax.Array,
    gain: jax.Array,
    shift: jax.Array,
    mask: jax.Array | None = None,
) -> jax.Array:
    n = _normalize(x, *_statistics(x, epsilon, centred, mask))
    return (gain * n + shift).astype(x.dtype)


@_scale_and_shift.defjvp
def _scale_and_shift_jvp(
    epsilon: float, centred: bool, primals: tuple, tangents: tuple
) -> tuple[jax.Array, jax.Array]:
    x, gain, shift, mask = primals
    statistics = _statistics(x, epsilon, centred, mask)
    y = (gain * _normalize(x, *statistics) + shift).astype(x.dtype)
    return y, _tangent(x, gain, mask, statistics, tangents[:3])


# Of a checkpoint, the gradient keeps the arguments and nothing that is computed from them.
@functools.partial(jax.checkpoint, prevent_cse=False)
def _tangent(
    x: jax.Array, gain: jax.Array, mask: jax.Array | None, statistics: tuple, tangents: tuple
) -> jax.Array:
    """The directional derivative of gain · n + shift; its transposition is the gradient."""
    (mean, rate), (dx, dgain, dshift) = statistics, tangents
    n = _normalize(x, mean, rate)
    dx = dx.astype(n.dtype)
    # Gain and rate multiply one after the other, so the gradient needs the sums of dy and n · dy
    # alone: over positions for the gain, over units for x.
    along = -_mean(n * dx, mask) * rate
    dy = rate * (gain * dx) + n * (_cpu.outer(gain, along) + dgain)
    if mean is not None:
        dy += _cpu.outer(gain, -_mean(dx, mask) * rate)
    return (dy + dshift).astype(x.dtype)


def _mean(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    return x.mean(axis=-1, keepdims=True, where=mask)


def _statistics(
    x: jax.Array, epsilon: float, centred: bool, mask: jax.Array | None
) -> tuple[Mean | None, jax.Array]:
    """Mean (None for a RMSNorm) and r of every position, ``[B, T, 1]`` in at least float32."""
    wide = x.astype(accumulator(x.dtype))
    mean: Mean | None = None
    if centred:
        # The rounded mean of equal numbers may differ from them by more than √epsilon.
        first = wide[..., :1]
        constant = jnp.all(wide == first, axis=-1, keepdims=True, where=mask)
        rounded = jnp.where(constant, first, _mean(wide, mask))
        # Centred before squaring: E[x²] - E[x]² loses all digits when the mean is large.
        wide -= rounded
        # And twice: the rounding of a large mean may be as wide as the spread around it.
        rest = _mean(wide, mask)
        wide -= rest
        mean = rounded, rest
    square = _mean(jnp.square(wide), mask)
    # An infinite square would make n 0, a number like any other.
    return mean, jnp.where(square < jnp.inf, lax.rsqrt(square + epsilon), jnp.nan)


def _normalize(x: jax.Array, mean: Mean | None, rate: jax.Array) -> jax.Array:
    """The n of the module docstring, ``[B, T, D]``."""
    wide = x.astype(rate.dtype)
    return (wide if mean is None else wide - mean[0] - mean[1]) * rate
