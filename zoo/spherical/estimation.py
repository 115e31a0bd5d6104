"""Means of points on the sphere: the Fréchet mean, and the von Mises-Fisher fit.

    frechet_mean           m = argmin Σ wᵢ θ(xᵢ, m)²,   where Σ wᵢ log_m(xᵢ) = 0
    fit_von_mises_fisher   μ = Σ wᵢ xᵢ / |Σ wᵢ xᵢ|,   A(κ) = |Σ wᵢ xᵢ| / Σ wᵢ

The Fréchet mean is solved to rounding without derivatives; two Newton steps that follow carry them:
at the solution one gives the first derivative exactly, and two all up to the third.

Sources: Hermann Karcher, "Riemannian center of mass and mollifier smoothing", 1977; Arindam
Banerjee, Inderjit Dhillon, Joydeep Ghosh, Suvrit Sra, "Clustering on the Unit Hypersphere using von
Mises-Fisher Distributions", 2005 (Journal of Machine Learning Research 6).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from zoo import _checks
from zoo.spherical.geometry import (
    exponential_map,
    geodesic_distance,
    logarithmic_map,
    norm,
    normalize,
    tangent_projection,
    widen,
)
from zoo.spherical.von_mises_fisher import cosine_moments

_MOST_STEPS = 200  # of the Fréchet mean: error times mean |1 - θ cot θ| in each, .89 for θ = 1.5


class VonMisesFisher(NamedTuple):
    """The parameters of a von Mises-Fisher distribution."""

    mean: jax.Array  # [..., D], unit vectors μ
    concentration: jax.Array  # [...], κ ≥ 0


def frechet_mean(x: ArrayLike, *, weights: ArrayLike | None = None) -> jax.Array:
    """The point whose squared distances along the sphere to all points have the least mean.

    m ← exp_m(Σ wᵢ log_m(xᵢ) / Σ wᵢ) from the mean direction on, until it stays. Of points in an
    open half of the sphere it is the only one; of points all around it is a local one.

    Args:
        x: unit vectors ``[..., N, D]``.
        weights: ≥ 0, ``[..., N]`` or ``[N]``, equal if None; NaN if all are 0.

    Returns:
        Unit vectors ``[..., D]`` in the dtype of ``x``.

    Raises:
        ValueError: if there are no points, or the weights have another shape.

    >>> angles = jnp.array([0.0, 0.2, 1.0])
    >>> mean = frechet_mean(jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1))
    >>> print(jnp.arctan2(mean[1], mean[0]))
    0.4

    Reference: Karcher 1977, section 1.
    """
    dtype, x, shares = _checked("frechet_mean", x, weights)
    return _frechet_mean(x, shares).astype(dtype)


@jax.jit  # its loops are compiled once, also outside jit
def _frechet_mean(x: jax.Array, shares: jax.Array) -> jax.Array:
    def gradient(mean: jax.Array, x: jax.Array, shares: jax.Array) -> jax.Array:
        return jnp.sum(shares * logarithmic_map(mean[..., None, :], x), axis=-2)

    def step(state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[Any, Any, Any]:
        mean, _, count = state
        v = gradient(mean, *fixed)
        return normalize(exponential_map(mean, v)), jnp.max(norm(v), initial=0), count + 1

    def moves(state: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        _, last, count = state
        return (last > 2 * jnp.finfo(x.dtype).eps) & (count < _MOST_STEPS)

    def newton(_: int, mean: jax.Array) -> jax.Array:
        ways = gradient(mean, x, shares)
        angle = geodesic_distance(mean[..., None, :], x)[..., None]
        toward = normalize(tangent_projection(mean[..., None, :], x))
        across = jnp.where(angle > 0, angle / jnp.tan(jnp.where(angle > 0, angle, 1)), 1)
        # The Hessian: 1 along the way to each point, θ cot θ across, and 1 along the mean itself.
        hessian = jnp.einsum("...ni,...nj->...ij", shares * (1 - across) * toward, toward)
        share = jnp.sum(shares * across, axis=-2, keepdims=True)
        along = mean[..., :, None] * mean[..., None, :]
        identity = jnp.broadcast_to(jnp.eye(x.shape[-1], dtype=x.dtype), along.shape)
        hessian += share * identity + (1 - share) * along
        v = jnp.linalg.solve(hessian, ways[..., None])[..., 0]
        return normalize(exponential_map(mean, tangent_projection(mean, v)))

    fixed = jax.lax.stop_gradient((x, shares))
    start = normalize(jnp.sum(fixed[1] * fixed[0], axis=-2))
    # Points that balance have no mean direction: the first of them is as good.
    start = jnp.where(jnp.any(start != 0, axis=-1, keepdims=True), start, fixed[0][..., 0, :])
    # Made from `start`, so that under shard_map it varies over devices as it does.
    begin = start, jnp.inf + 0 * jnp.sum(start), jnp.zeros((), jnp.int32)
    mean, _, _ = jax.lax.while_loop(moves, step, begin)
    return jax.lax.fori_loop(0, 2, newton, mean)


def fit_von_mises_fisher(x: ArrayLike, *, weights: ArrayLike | None = None) -> VonMisesFisher:
    """The von Mises-Fisher distribution of largest likelihood.

    With few points in many dimensions κ is too large: for uniform ones it is about D / √N.

    Args:
        x: unit vectors ``[..., N, D]``, D ≥ 2.
        weights: ≥ 0, ``[..., N]`` or ``[N]``, equal if None; NaN if all are 0.

    Returns:
        ``VonMisesFisher``, mean ``[..., D]`` and concentration ``[...]`` in the dtype of ``x``. Of
        points that balance the mean is zero and κ = 0; of equal ones κ is infinite, or as large as
        their rounding allows.

    Raises:
        ValueError: if there are no points, D < 2, or the weights have another shape.

    >>> angles = jnp.array([-0.2, 0.0, 0.2])
    >>> print(fit_von_mises_fisher(jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1)))
    VonMisesFisher(mean=Array([1., 0.], dtype=float32), concentration=Array(37.8..., dtype=float32))

    Reference: Banerjee et al. 2005, equations 2.4 and 4.4.
    """
    dtype, x, shares = _checked("fit_von_mises_fisher", x, weights)
    if (size := x.shape[-1]) < 2:
        raise ValueError(f"fit_von_mises_fisher: vectors must have D ≥ 2 coordinates, got {size}")
    total = jnp.sum(shares * x, axis=-2)
    length, mean = norm(total)[..., 0], normalize(total)
    # 1 - |Σ w x|, of which no digits are lost for points that are close together.
    gap = jnp.sum(shares[..., 0] * jnp.sum((x - mean[..., None, :]) ** 2, axis=-1), axis=-1) / 2
    gap = jnp.where(length > 0, gap, 1 - length)

    kappa = _concentration(length, gap, size)
    return VonMisesFisher(mean.astype(dtype), kappa.astype(dtype))


@partial(jax.jit, static_argnames="size")  # its loop is compiled once, also outside jit
def _concentration(length: jax.Array, gap: jax.Array, size: int) -> jax.Array:
    """The κ with A(κ) = length = 1 - gap."""

    def newton(_: int, kappa: jax.Array) -> jax.Array:
        moments = cosine_moments(kappa, size)
        error = jnp.where(gap < 0.5, moments.gap - gap, length - moments.mean)
        return kappa + error / moments.variance

    spread = gap * (2 - gap)  # 1 - length²
    equal = spread == 0
    start = length * (size - 1 + spread) / jnp.where(equal, 1, spread)
    return jnp.where(equal, jnp.inf, jax.lax.fori_loop(0, 6, newton, start))


def _checked(
    function: str, x: ArrayLike, weights: ArrayLike | None
) -> tuple[Any, jax.Array, jax.Array]:
    """The dtype of points ``[..., N, D]``, them in at least float32, and shares ``[..., N, 1]``."""
    dtype, (wide,) = widen(function, x=x)
    if wide.ndim < 2 or not wide.shape[-2]:
        raise ValueError(
            f"{function}: x must have shape [..., N, D] with at least one point, got "
            f"{list(wide.shape)}"
        )
    if weights is None:
        return dtype, wide, jnp.full((*wide.shape[:-1], 1), 1 / wide.shape[-2], wide.dtype)
    given = _checks.floating(f"{function}: weights", weights).astype(wide.dtype)
    if given.shape not in (wide.shape[:-1], wide.shape[-2:-1]):
        raise ValueError(
            f"{function}: weights must have shape {list(wide.shape[:-1])} or [N] = "
            f"{[wide.shape[-2]]}, one for each point, got {list(given.shape)}"
        )
    shares = jnp.broadcast_to(given / jnp.sum(given, axis=-1, keepdims=True), wide.shape[:-1])
    return dtype, wide, shares[..., None]
