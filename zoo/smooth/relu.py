"""ReLU and clip smoothed by a kernel of width τ, which tends to Dirac's delta as τ falls to 0.

    smooth_relu(x) = ∫ max(x - τ t, 0) kernel(t) dt,   its derivative is the kernel's CDF at x/τ

    logistic   τ log(1 + e^{x/τ})                      softplus; CDF σ(x/τ)
    gaussian   x Φ(x/τ) + τ φ(x/τ)                     CDF Φ(x/τ)
    square     (x + √(x² + b τ²)) / 2, b = 4 log² 2    SquarePlus; CDF (1 + x/√(x² + b τ²)) / 2

All kernels are even, so that smooth_relu(x) = max(x, 0) + τ excess(|x|/τ) with an excess ≥ 0 that
decays: written so, no digits cancel for negative x. A clip is a difference of two,

    smooth_clip(x) = low + smooth_relu(x - low) - smooth_relu(x - high)
                   = clip(x, low, high) + τ excess(|x - low|/τ) - τ excess(|x - high|/τ)

Source: Jianlin Su, "Smooth functions from the delta function", 2021,
https://kexue.fm/archives/8718, and "SquarePlus", 2021, https://kexue.fm/archives/8833; Jonathan T.
Barron, "Squareplus: a softplus-like algebraic rectifier", 2021, arXiv 2112.11687.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr
from jax.typing import ArrayLike

from zoo import _checks
from zoo.smooth.derivatives import (
    FAR,
    check_arguments,
    clipped_quotient,
    fits,
    logistic,
    with_slopes,
)
from zoo.smooth.hardening import straight_through

# The smallest b with which SquarePlus is never below softplus; at 0 they are both log 2.
SQUARE = 4 * math.log(2) ** 2


class Kernel(NamedTuple):
    """An even density by its integrals."""

    cdf: Callable[[jax.Array], jax.Array]  # ∫_{-∞}^u kernel, exact also where it is nearly 0
    excess: Callable[[jax.Array], jax.Array]  # ∫_v^∞ (t - v) kernel(t) dt for v ≥ 0
    spread: Callable[[jax.Array], jax.Array]  # ∫_v^∞ t kernel(t) dt, the derivative in τ
    far: float  # |x|/τ from which on no derivative matters, or can be had


def smooth_relu(
    x: jax.Array,
    *,
    temperature: ArrayLike = 1.0,
    kernel: Literal["logistic", "gaussian", "square"] = "logistic",
) -> jax.Array:
    """ReLU convolved with a kernel of width τ.

    Args:
        x: any shape.
        temperature: τ > 0, in the units of ``x``. SquarePlus with the constant b of its paper is
            ``temperature=√b / (2 log 2)``.
        kernel: ``"logistic"`` (softplus), ``"gaussian"``, or ``"square"`` (SquarePlus).

    Returns:
        The shape and dtype of ``x``, computed in at least float32; never below max(x, 0), and the
        farthest above it at 0, by τ log 2 (τ/√(2π) for ``"gaussian"``).

    Raises:
        TypeError: if ``x`` is not a floating-point array.
        ValueError: if ``kernel`` is unknown or ``temperature`` is not positive, or below 1e-34 in
            float32 (a traced one gives NaN).

    >>> import jax.numpy as jnp
    >>> for kernel in ("logistic", "gaussian", "square"):
    ...     print(smooth_relu(jnp.array([-1.0, 0.0, 1.0]), kernel=kernel).round(4).tolist())
    [0.3133, 0.6931, 1.3133]
    [0.0833, 0.3989, 1.0833]
    [0.3547, 0.6931, 1.3547]

    Reference: https://kexue.fm/archives/8718 and https://kexue.fm/archives/8833.
    """
    x, wide, temperature = check_arguments(x, temperature)
    _checks.choice("kernel", kernel, tuple(_RELU))
    return _RELU[kernel](wide, temperature).astype(x.dtype)


def smooth_clip(
    x: jax.Array,
    low: ArrayLike,
    high: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    kernel: Literal["logistic", "gaussian", "square"] = "logistic",
) -> jax.Array:
    """Clip convolved with a kernel of width τ: low + smooth_relu(x - low) - smooth_relu(x - high).

    Args:
        x: any shape.
        low: one number, or broadcasts to ``x``; -inf for none.
        high: likewise, not below ``low``; inf for none.
        temperature: τ > 0, in the units of all three.
        kernel: as for :func:`smooth_relu`.

    Returns:
        The shape and dtype of ``x``, computed in at least float32: between ``low`` and ``high``,
        and the farthest from the exact clip at one of them, by less than τ log 2 (τ/√(2π) for
        ``"gaussian"``). NaN where ``low`` is above ``high``.

    Raises:
        TypeError, ValueError: as for :func:`smooth_relu`, or if a bound does not broadcast to
            ``x``.

    >>> import jax.numpy as jnp
    >>> x = jnp.array([-9.0, 0.0, 0.5, 1.0, 9.0])
    >>> smooth_clip(x, 0.0, 1.0, temperature=0.1).round(4).tolist()
    [0.0, 0.0693, 0.5, 0.9307, 1.0]

    Reference: https://kexue.fm/archives/8718.
    """
    x, wide, temperature = check_arguments(x, temperature)
    _checks.choice("kernel", kernel, tuple(_RELU))
    low, high = (jnp.asarray(bound, wide.dtype) for bound in (low, high))
    for name, bound in (("low", low), ("high", high)):
        if not fits(bound.shape, x.shape):
            raise ValueError(f"{name} must broadcast to the shape {x.shape}, got {bound.shape}")
    low, high = jnp.broadcast_to(low, x.shape), jnp.broadcast_to(high, x.shape)
    relu, excess = _RELU[kernel], _KERNELS[kernel].excess
    # What the two ramps exceed theirs by, in the form in which no digits cancel.
    ends = (excess(jnp.abs(_LONGEST(wide - bound, temperature))) for bound in (low, high))
    value = jnp.clip(wide, low, high) + temperature * (next(ends) - next(ends))
    smooth = low + relu(wide - low, temperature) - relu(wide - high, temperature)
    smooth = straight_through(value, smooth)
    return jnp.where(low <= high, smooth, jnp.nan).astype(x.dtype)


def _density(v: jax.Array) -> jax.Array:
    return jnp.exp(-v * v / 2) / math.sqrt(2 * math.pi)


def _root(v: jax.Array) -> jax.Array:
    """√(v² + b), where v² may overflow."""
    large = 1e9  # b does not show above it
    return jnp.where(v > large, v, jnp.sqrt(jnp.minimum(v, large) ** 2 + SQUARE))


@jax.custom_jvp
def _square_cdf(u: jax.Array) -> jax.Array:
    root = _root(jnp.abs(u))
    tail = SQUARE / (2 * root) / (root + jnp.abs(u))
    return jnp.where(u > 0, 1 - tail, tail)


@_square_cdf.defjvp
def _square_cdf_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (u,), (du,) = primals, tangents
    density = SQUARE / 2 * (1 / _root(jnp.abs(u))) ** 3
    return _square_cdf(u), density * du


_KERNELS = {
    "logistic": Kernel(
        cdf=logistic,
        excess=lambda v: jnp.log1p(jnp.exp(-v)),
        spread=lambda v: jnp.log1p(jnp.exp(-v)) + v * logistic(-v),
        far=FAR,
    ),
    "gaussian": Kernel(
        cdf=ndtr,
        excess=lambda v: jnp.maximum(_density(v) - v * ndtr(-v), 0),
        spread=_density,
        far=FAR,
    ),
    "square": Kernel(
        cdf=_square_cdf,
        excess=lambda v: SQUARE / 2 / (_root(v) + v),
        spread=lambda v: SQUARE / 2 / _root(v),
        far=1e18,
    ),
}


def _mollify(kernel: Kernel) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """max(x, 0) + τ excess(|x|/τ) with its derivatives, of x and τ."""
    quotient = clipped_quotient(kernel.far)

    def value(x: jax.Array, t: jax.Array) -> jax.Array:
        excess = t * kernel.excess(jnp.abs(_LONGEST(x, t)))
        return jnp.maximum(x, 0) + jnp.where(jnp.isinf(x), 0, excess)  # clipped, it would show

    return with_slopes(
        value,
        in_x=lambda x, t: kernel.cdf(quotient(x, t)),
        in_temperature=lambda x, t: kernel.spread(jnp.abs(quotient(x, t))),
    )


_LONGEST = clipped_quotient(1e37)
_RELU = {name: _mollify(kernel) for name, kernel in _KERNELS.items()}
