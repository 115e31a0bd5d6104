"""The unit sphere: projection, retraction, geodesics and transport, of vectors on the last axis.

    tangent_projection   P_x v = v - (x·v) x
    retract              (x + v) / |x + v|
    exponential_map      cos|v| x + sin|v| v/|v|
    logarithmic_map      θ u / |u|,  u = P_x (y - x)
    geodesic_distance    θ = 2 atan2(|x - y|, |x + y|)
    parallel_transport   v - 2 (w·v) w,  w = (x + y) / |x + y|

The angle is not taken from the arc cosine of x·y, which loses half of the digits where x and y are
nearly parallel or antipodal, and has no slope there. Transport along the geodesic is a reflection:
for v ⟂ x the usual v - (y·v) (x + y) / (1 + x·y) is the same vector, since |x + y|² = 2 (1 + x·y).
Between antipodes every direction is shortest; the one along the coordinate in which x is smallest
is taken, everywhere the same one.

Source: Gary Bécigneul, Octavian-Eugen Ganea, «Riemannian Adaptive Optimization Methods», 2019,
arXiv 1810.00760; for the sphere https://kexue.fm/archives/11196.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike


def normalize(x: ArrayLike) -> jax.Array:
    """The unit vector of each vector, ``x / |x|``.

    Args:
        x: ``[..., D]`` of any finite lengths; the zero vector has no direction and stays zero, with
            zero gradient.

    Returns:
        ``[..., D]`` in the dtype of ``x``, computed in at least float32.

    Raises:
        TypeError: if ``x`` is not a floating-point array.
        ValueError: if ``x`` is a scalar.

    >>> print(normalize(jnp.array([3.0, 4.0])))
    [0.6 0.8]
    """
    dtype, (x,) = widen("normalize", x=x)
    return unit(x).astype(dtype)


def tangent_projection(x: ArrayLike, v: ArrayLike) -> jax.Array:
    """The part of v that is tangent to the sphere at x, ``v - (x·v) x``.

    Args:
        x: unit vectors ``[..., D]``.
        v: ``[..., D]``.

    Returns:
        ``[..., D]``, orthogonal to x.

    Raises:
        TypeError: if an argument is not a floating-point array.
        ValueError: if the vectors have different sizes.

    >>> print(tangent_projection(jnp.array([1.0, 0.0]), jnp.array([5.0, 2.0])))
    [0. 2.]
    """
    dtype, (x, v) = widen("tangent_projection", x=x, v=v)
    return project(x, v).astype(dtype)


def retract(x: ArrayLike, v: ArrayLike) -> jax.Array:
    """Moves x by v and back to the sphere, ``(x + v) / |x + v|``.

    For a tangent v it agrees with :func:`exponential_map` up to O(|v|³).

    Args:
        x: unit vectors ``[..., D]``.
        v: ``[..., D]``.

    Returns:
        Unit vectors ``[..., D]``; zero where ``x + v`` is.

    Raises:
        TypeError: if an argument is not a floating-point array.
        ValueError: if the vectors have different sizes.

    >>> print(retract(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])))
    [0.707 0.707]
    """
    dtype, (x, v) = widen("retract", x=x, v=v)
    return unit(x + v).astype(dtype)


def exponential_map(x: ArrayLike, v: ArrayLike) -> jax.Array:
    """Walks from x along the geodesic that leaves with velocity v, for one unit of time.

    exp_x(v) = cos|v| x + sin|v| v/|v|.

    Args:
        x: unit vectors ``[..., D]``.
        v: tangent vectors at x, ``[..., D]``.

    Returns:
        Unit vectors ``[..., D]``, in the dtype of the arguments.

    Raises:
        TypeError: if an argument is not a floating-point array.
        ValueError: if the vectors have different sizes.

    >>> quarter_turn = jnp.array([0.0, jnp.pi / 2])
    >>> print(exponential_map(jnp.array([1.0, 0.0]), quarter_turn).round(4))
    [-0.  1.]
    """
    dtype, (x, v) = widen("exponential_map", x=x, v=v)
    return exponential(x, v).astype(dtype)


def logarithmic_map(x: ArrayLike, y: ArrayLike) -> jax.Array:
    """The tangent vector at x whose geodesic reaches y: the inverse of :func:`exponential_map`.

    Args:
        x: unit vectors ``[..., D]``.
        y: unit vectors ``[..., D]``.

    Returns:
        Tangent vectors at x, ``[..., D]``, of length θ ≤ π; zero for y = x. For y = -x one of the
        shortest ways (see the module).

    Raises:
        TypeError: if an argument is not a floating-point array.
        ValueError: if the vectors have different sizes.

    >>> print(logarithmic_map(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])))
    [0.    1.571]
    """
    dtype, (x, y) = widen("logarithmic_map", x=x, y=y)
    angle = distance(x, y)
    # The same tangent from either end; of the shorter difference no digits are lost.
    u = project(x, jnp.where(angle < 2, y - x, y + x))
    sine = norm(u)
    direction = u / jnp.where(sine > 0, sine, 1)
    near = (sine == 0) & (angle < 1)
    # Where both vectors coincide θ/|u| tends to 1, and so does the slope.
    v = jnp.where(near, u, angle * jnp.where(sine > 0, direction, _some_tangent(x)))
    return v.astype(dtype)


def geodesic_distance(x: ArrayLike, y: ArrayLike) -> jax.Array:
    """The angle between unit vectors, ``2 atan2(|x - y|, |x + y|)``.

    Args:
        x: unit vectors ``[..., D]``.
        y: unit vectors ``[..., D]``.

    Returns:
        ``[...]`` in radians, from 0 to π, exact to rounding also near both ends. The gradient
        is zero for y = ±x, where the distance has a corner.

    Raises:
        TypeError: if an argument is not a floating-point array.
        ValueError: if the vectors have different sizes.

    >>> print(geodesic_distance(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])))
    1.5707964
    """
    dtype, (x, y) = widen("geodesic_distance", x=x, y=y)
    return distance(x, y)[..., 0].astype(dtype)


def parallel_transport(x: ArrayLike, y: ArrayLike, v: ArrayLike) -> jax.Array:
    """Carries a tangent vector from x to y along the geodesic, without turning it.

    v - 2 (w·v) w with w = (x + y) / |x + y|. It keeps lengths and angles.

    Args:
        x: unit vectors ``[..., D]``.
        y: unit vectors ``[..., D]``.
        v: tangent vectors at x, ``[..., D]``.

    Returns:
        Tangent vectors at y, ``[..., D]``.

    Raises:
        TypeError: if an argument is not a floating-point array.
        ValueError: if the vectors have different sizes.

    >>> x, y = jnp.eye(2)
    >>> print(parallel_transport(x, y, y))
    [-1.  0.]
    """
    dtype, (x, y, v) = widen("parallel_transport", x=x, y=y, v=v)
    return transport(x, y, v).astype(dtype)


def random_uniform(key: jax.Array, shape: Sequence[int], dtype: DTypeLike = float) -> jax.Array:
    """Independent unit vectors, uniform on the sphere.

    Args:
        key: typed PRNG key; consumed.
        shape: ``(..., D)`` of the result.
        dtype: floating-point.

    Returns:
        Unit vectors of that shape.

    Raises:
        ValueError: if the shape has no axis, or the last one is empty.

    >>> x = random_uniform(jax.random.key(0), (5, 3))
    >>> print(jnp.linalg.norm(x, axis=-1))
    [1. 1. 1. 1. 1.]
    """
    shape = tuple(shape)
    if not shape or shape[-1] < 1:
        raise ValueError(f"random_uniform: shape must end with D ≥ 1 coordinates, got {shape}")
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    return normalize(jax.random.normal(key, shape, dtype))


# The same on arrays that are checked and wide already; scalars keep their axis.


def widen(function: str, **arrays: ArrayLike) -> tuple[jnp.dtype, tuple[jax.Array, ...]]:
    """Checks arrays of vectors; gives their common dtype, and them in at least float32."""
    values = {name: jnp.asarray(value) for name, value in arrays.items()}
    for name, value in values.items():
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise TypeError(
                f"{function}: {name} must be a floating-point array, got {value.dtype}; "
                f"convert it first, for example {name}.astype(jnp.float32)"
            )
        if value.ndim == 0:
            raise ValueError(f"{function}: {name} must be vectors [..., D], got a scalar")
    sizes = {name: value.shape[-1] for name, value in values.items()}
    if len(set(sizes.values())) > 1:
        shapes = ", ".join(f"{name} {value.shape}" for name, value in values.items())
        raise ValueError(
            f"{function}: {' and '.join(sizes)} must be vectors [..., D] of one size D, "
            f"got {shapes}"
        )
    dtype = jnp.result_type(*values.values())
    wide = jnp.promote_types(dtype, jnp.float32)
    return dtype, tuple(value.astype(wide) for value in values.values())


def norm(x: jax.Array) -> jax.Array:
    """``[..., 1]``, without overflow inside; zero slope at zero."""
    scaled, scale = _scaled(x)
    square = jnp.sum(scaled * scaled, axis=-1, keepdims=True)
    return jnp.where(square > 0, scale * jnp.sqrt(jnp.where(square > 0, square, 1)), square)


def unit(x: jax.Array) -> jax.Array:
    """X / |x|, zero for zero."""
    scaled, _ = _scaled(x)
    square = jnp.sum(scaled * scaled, axis=-1, keepdims=True)
    return jnp.where(square == 0, 0, scaled / jnp.sqrt(jnp.where(square == 0, 1, square)))


def project(x: jax.Array, v: jax.Array) -> jax.Array:
    """The tangent part of v at x."""
    return v - jnp.sum(x * v, axis=-1, keepdims=True) * x


def exponential(x: jax.Array, v: jax.Array) -> jax.Array:
    """cos|v| x + sin|v| v/|v|."""
    length = norm(v)
    # Not jnp.sinc, which jax.shard_map refuses in JAX 0.12.
    ratio = jnp.where(length == 0, 1, jnp.sin(length) / jnp.where(length == 0, 1, length))
    return jnp.cos(length) * x + ratio * v


def distance(x: jax.Array, y: jax.Array) -> jax.Array:
    """The angle, ``[..., 1]``."""
    apart, together = norm(x - y), norm(x + y)
    nothing = (apart == 0) & (together == 0)  # two zero vectors
    return 2 * jnp.arctan2(apart, jnp.where(nothing, 1, together))


def transport(x: jax.Array, y: jax.Array, v: jax.Array) -> jax.Array:
    """Reflects v at the plane between x and y."""
    middle = unit(x + y)
    antipodal = jnp.all(x + y == 0, axis=-1, keepdims=True)
    middle = jnp.where(antipodal, _some_tangent(x), middle)
    return v - 2 * jnp.sum(middle * v, axis=-1, keepdims=True) * middle


def _scaled(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """X over its largest coordinate, and that: squares neither overflow nor vanish."""
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True, initial=0)
    scale = jax.lax.stop_gradient(jnp.where(largest > 0, largest, 1))
    return x / scale, scale


def _some_tangent(x: jax.Array) -> jax.Array:
    """A unit tangent at x: the axis of its smallest coordinate, made orthogonal to x."""
    axis = jax.nn.one_hot(jnp.argmin(jnp.abs(x), axis=-1), x.shape[-1], dtype=x.dtype)
    return unit(project(x, axis))
