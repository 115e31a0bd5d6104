"""Conditional LayerNorm: the scale and bias of a LayerNorm depend on a condition, linearly.

    n = (x - mean(x)) / √(variance(x) + epsilon)                 LayerNorm, over the last axis
    y = (scale + c W_scale) · n + (bias + c W_bias)

    n = x / √(mean(x²) + epsilon)                                RMSNorm, which has a scale only
    y = (scale + c W_scale) · n

W_scale and W_bias start at 0, so that a pretrained model starts as it was, whatever the condition.
They have no bias of their own (scale and bias are that), so the condition 0 is no condition: it
gives the plain norm at any time, which is what classifier-free guidance wants of a null condition.

At the start ∂loss/∂W_scale = (∂loss/∂scale) cᵀ is not 0, but ∂loss/∂c is: what makes the condition
moves from the second step on.

The derivative is written out. It keeps x itself, two numbers a row and the gain of every condition,
so nothing of the size of x in float32 for bfloat16 inputs.

    dx = r (u - mean(u) - n mean(n u)),   u = (scale + c W_scale) · dy,   r = n / (x - mean(x))

Source: Su Jianlin, «Text generation controlled by Conditional LayerNorm», 2019,
https://kexue.fm/archives/7124; LayerNorm is that of Jimmy Lei Ba et al., arXiv 1607.06450, RMSNorm
that of Biao Zhang, Rico Sennrich, arXiv 1910.07467.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

Condition = jax.Array | Sequence[jax.Array]


def conditional_layer_norm(
    x: jax.Array,
    condition: Condition,
    scale: jax.Array,
    bias: jax.Array,
    scale_kernel: jax.Array,
    bias_kernel: jax.Array,
    *,
    epsilon: float = 1e-12,
) -> jax.Array:
    """LayerNorm over the last axis whose scale and bias depend on a condition.

    y = (scale + c W_scale) · (x - mean) / √(variance + epsilon) + bias + c W_bias, with mean and
    variance (that of the population) in at least float32. Where a row of x is constant, y = bias +
    c W_bias exactly.

    Args:
        x: ``[..., D]``, |x| ≤ 1e17 in float32 and bfloat16: sums of squares must be finite.
        condition: c, ``[B, E]`` for x ``[B, ..., D]``; in general its leading axes are the first
            of x, so ``[E]`` is one for all rows and ``[..., E]`` one for every position. A sequence
            of conditions gives the sum of their effects: the rows of the kernels are then those of
            the first, the second and so on.
        scale: ``[D]``.
        bias: ``[D]``.
        scale_kernel: W_scale ``[E, D]``.
        bias_kernel: W_bias ``[E, D]``.
        epsilon: added to the variance. The gradient of a constant row is up to 1/√epsilon times
            that of y, which float16 cannot hold for 1e-12.

    Returns:
        ``[..., D]`` in the dtype of x.

    Raises:
        TypeError: if x or a condition is missing or not floating-point.
        ValueError: if shapes do not fit.

    >>> x, ones = jnp.array([[1.0, 3.0], [2.0, 6.0]]), jnp.ones((1, 2))
    >>> condition = jnp.array([[0.0], [0.5]])
    >>> conditional_layer_norm(x, condition, jnp.ones(2), jnp.zeros(2), ones, 0 * ones)
    Array([[-1. ,  1. ], [-1.5,  1.5]], dtype=float32)

    Reference: https://kexue.fm/archives/7124.
    """
    check_affine(x, scale=scale, bias=bias)
    check_affine(x, scale_kernel=scale_kernel, bias_kernel=bias_kernel)
    conditions = aligned(x, condition, len(scale_kernel))
    return modulated(
        x,
        shifted(scale, scale_kernel, conditions, x),
        shifted(bias, bias_kernel, conditions, x),
        epsilon=epsilon,
    )


def conditional_rms_norm(
    x: jax.Array,
    condition: Condition,
    scale: jax.Array,
    scale_kernel: jax.Array,
    *,
    epsilon: float = 1e-6,
) -> jax.Array:
    """RMSNorm over the last axis whose scale depends on a condition, as T5 and its kin need it.

    y = (scale + c W_scale) · x / √(mean(x²) + epsilon), with the mean in at least float32.

    Args:
        x: ``[..., D]``, |x| ≤ 1e17 in float32 and bfloat16: sums of squares must be finite.
        condition: c, as for :func:`conditional_layer_norm`.
        scale: ``[D]``.
        scale_kernel: W_scale ``[E, D]``.
        epsilon: added to the mean square.

    Returns:
        ``[..., D]`` in the dtype of x.

    Raises:
        TypeError: if x or a condition is missing or not floating-point.
        ValueError: if shapes do not fit.

    >>> x, condition = jnp.array([[3.0, -3.0]]), jnp.array([[0.5]])
    >>> conditional_rms_norm(x, condition, jnp.ones(2), jnp.array([[0.0, 2.0]])).round(4)
    Array([[ 1., -2.]], dtype=float32)

    Reference: https://kexue.fm/archives/7124; arXiv 1910.07467.
    """
    check_affine(x, scale=scale)
    check_affine(x, scale_kernel=scale_kernel)
    conditions = aligned(x, condition, len(scale_kernel))
    return modulated(x, shifted(scale, scale_kernel, conditions, x), epsilon=epsilon)


def drop_condition(key: jax.Array, condition: jax.Array, *, rate: float) -> jax.Array:
    """Makes the condition of a random share of the samples 0, which is no condition.

    A model that is trained so can also be read without a condition, and its logits then be guided:
    (1 + w) · logits(c) - w · logits(0).

    Args:
        key: typed key, consumed.
        condition: ``[B, ..., E]``.
        rate: probability of 0, in [0, 1].

    Returns:
        ``[B, ..., E]``: each sample whole or 0 (not scaled up as dropout does).

    Raises:
        ValueError: if the rate is not in [0, 1].

    >>> drop_condition(jax.random.key(0), jnp.ones((2, 3)), rate=1.0)
    Array([[0., 0., 0.], [0., 0., 0.]], dtype=float32)

    Reference: Jonathan Ho, Tim Salimans, «Classifier-Free Diffusion Guidance», arXiv 2207.12598.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must be in [0, 1], got {rate}")
    kept = jax.random.bernoulli(key, 1 - rate, condition.shape[:1])
    return jnp.where(kept.reshape(-1, *(1,) * (condition.ndim - 1)), condition, 0)


def modulated(
    x: jax.Array, gain: jax.Array, shift: jax.Array | None = None, *, epsilon: float
) -> jax.Array:
    """The last step: gain · n + shift for a LayerNorm; for a RMSNorm there is no shift.

    gain and shift have as many axes as x, with size 1 behind those of the conditions, and are at
    least float32.
    """
    own = x.ndim - 1
    while own and gain.shape[own - 1] == 1:
        own -= 1
    conditions, positions = math.prod(x.shape[:own]), math.prod(x.shape[own:-1])
    rows = (conditions, x.shape[-1])
    zeros = jnp.zeros(rows, gain.dtype)
    return _modulated(
        epsilon,
        shift is not None,
        x.reshape(conditions, positions, x.shape[-1]),
        gain.reshape(rows),
        zeros if shift is None else shift.reshape(rows),
    ).reshape(x.shape)


# From here on x is [G, T, D]: T positions of each of G conditions, whose gain and shift are [G, D].


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _modulated(
    epsilon: float, centre: bool, x: jax.Array, gain: jax.Array, shift: jax.Array
) -> jax.Array:
    normal = _normal(x, *_statistics(x, epsilon, centre))
    return (gain[:, None] * normal + shift[:, None]).astype(x.dtype)


@_modulated.defjvp
def _modulated_jvp(
    epsilon: float, centre: bool, primals: tuple, tangents: tuple
) -> tuple[jax.Array, jax.Array]:
    x, gain, shift = primals
    mean, rate = _statistics(x, epsilon, centre)
    y = (gain[:, None] * _normal(x, mean, rate) + shift[:, None]).astype(x.dtype)
    return y, _tangent(x, mean, rate, gain, *tangents)


# Of a checkpoint, the gradient keeps the arguments and nothing that is computed from them.
@functools.partial(jax.checkpoint, prevent_cse=False)
def _tangent(
    x: jax.Array,
    mean: jax.Array | None,
    rate: jax.Array,
    gain: jax.Array,
    dx: jax.Array,
    dgain: jax.Array,
    dshift: jax.Array,
) -> jax.Array:
    """The directional derivative of gain · n + shift; its transposition is the gradient."""
    normal = _normal(x, mean, rate)
    dx = dx.astype(normal.dtype)
    # Gain and rate are taken apart so that the gradient sums up dy alone and n · dy alone: what is
    # summed over positions for the gain is summed over units for x.
    along = -jnp.mean(normal * dx, axis=-1, keepdims=True) * rate
    dy = rate * (gain[:, None] * dx) + normal * (_outer(gain, along) + dgain[:, None])
    if mean is not None:
        dy += _outer(gain, -jnp.mean(dx, axis=-1, keepdims=True) * rate)
    return (dy + dshift[:, None]).astype(x.dtype)


def _outer(gain: jax.Array, number: jax.Array) -> jax.Array:
    """The products gain · number, ``[G, D]`` and ``[G, T, 1]`` to ``[G, T, D]``.

    Its transposition is a sum over units. XLA writes the gain out for every position before it sums
    on a CPU, unless the sum is that of a matrix product.
    """
    return lax.platform_dependent(
        gain,
        number,
        cpu=lambda gain, number: jnp.einsum("gd,gt->gtd", gain, number[..., 0]),
        default=lambda gain, number: gain[:, None] * number,
    )


def _statistics(x: jax.Array, epsilon: float, centre: bool) -> tuple[jax.Array | None, jax.Array]:
    """Mean (None for a RMSNorm) and r of every row, ``[G, T, 1]`` in at least float32."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = None
    if centre:
        # The mean of equal numbers need not be that number: epsilon 1e-12 is no match for what
        # rounding leaves of a constant row.
        first = wide[..., :1]
        constant = jnp.all(wide == first, axis=-1, keepdims=True)
        mean = jnp.where(constant, first, wide.mean(axis=-1, keepdims=True))
        # Centred before squaring: E[x²] - E[x]² loses all digits when the mean is large.
        wide -= mean
    return mean, lax.rsqrt(jnp.square(wide).mean(axis=-1, keepdims=True) + epsilon)


def _normal(x: jax.Array, mean: jax.Array | None, rate: jax.Array) -> jax.Array:
    """The n of the module docstring, ``[G, T, D]``."""
    wide = x.astype(rate.dtype)
    return (wide if mean is None else wide - mean) * rate


def shifted(
    vector: jax.Array, kernel: jax.Array, conditions: Sequence[jax.Array], x: jax.Array
) -> jax.Array:
    """Gives vector + Σ c W over aligned conditions, each with its rows of W; as many axes as x."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    total, row = vector.astype(wide)[(None,) * (x.ndim - 1)], 0
    for condition in conditions:
        rows = kernel[row : row + condition.shape[-1]]
        total += jnp.matmul(condition, rows, preferred_element_type=wide)
        row += condition.shape[-1]
    return total


def aligned(x: jax.Array, condition: Condition | None, features: int) -> list[jax.Array]:
    """The conditions with as many axes as x: size 1 where all positions share one.

    Raises:
        TypeError: if x or a condition is missing or not floating-point.
        ValueError: if leading axes are not the first of x, or there are not E features in all.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"x must be floating-point, got {x.dtype}")
    if condition is None:
        raise TypeError(
            "condition must be given, an array [B, E], got None; zeros are no condition, and give "
            "the plain norm"
        )
    conditions: Sequence[jax.Array] = (
        condition if isinstance(condition, (tuple, list)) else [condition]  # type: ignore[list-item]
    )
    for one in conditions:
        if not jnp.issubdtype(one.dtype, jnp.floating):
            raise TypeError(
                f"condition must be floating-point, got {one.dtype}; embed labels first, for "
                "example by ClassCondition"
            )
        if one.ndim < 1 or one.ndim > x.ndim or one.shape[:-1] != x.shape[: one.ndim - 1]:
            raise ValueError(
                f"condition must be [..., E] with the leading axes of x, {x.shape[:-1]}, or the "
                f"first of them, got shape {one.shape}"
            )
    width = sum(one.shape[-1] for one in conditions)
    if width != features:
        raise ValueError(
            f"condition must have as many features as the kernels have rows, {features}, got "
            f"{width} in shape {', '.join(str(one.shape) for one in conditions)}"
        )
    ones = [(1,) * (x.ndim - one.ndim) for one in conditions]
    return [
        one.reshape(*one.shape[:-1], *inner, one.shape[-1])
        for one, inner in zip(conditions, ones, strict=True)
    ]


def check_affine(x: jax.Array, **parameters: jax.Array) -> None:
    """Refuses parameters that are not vectors or matrices with as many columns as x."""
    for name, value in parameters.items():
        rank = 2 if name.endswith("kernel") else 1
        shapes = {other.shape for other in parameters.values()}
        if value.ndim != rank or value.shape[-1:] != x.shape[-1:] or len(shapes) > 1:
            wanted = "[E, D]" if rank == 2 else "[D]"
            got = {key: other.shape for key, other in parameters.items()}
            raise ValueError(
                f"{name} must have shape {wanted} with D = {math.prod(x.shape[-1:])}, the last "
                f"axis of x, and fit the others, got {got}"
            )
