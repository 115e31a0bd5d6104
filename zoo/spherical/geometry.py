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
Between antipodes every direction is shortest; the one along the smallest coordinate of x is taken.
Near them x + y is small, and where it is not orthogonal to x - y for rounding alone it is made so.

Coordinates below the smallest normal number (1.2e-38 in float32) are zero: XLA computes so. Every
function computes in at least float32, returns the common dtype of its arguments, and raises
TypeError for an argument that is not a floating-point array and ValueError for vectors that differ
in size.

Source: Gary Bécigneul, Octavian-Eugen Ganea, "Riemannian Adaptive Optimization Methods", 2019,
arXiv 1810.00760; for the sphere https://kexue.fm/archives/11196.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from zoo import _checks

Result = TypeVar("Result")


def widen(function: str, **arrays: ArrayLike) -> tuple[Any, list[jax.Array]]:
    """Checks vectors of one size; gives their common dtype, and them in at least float32."""
    named = {f"{function}: {name}": x for name, x in arrays.items()}
    values = {name: _checks.floating(name, x) for name, x in named.items()}
    _checks.shapes(**{name: (x, "... D") for name, x in values.items()})
    dtype = jnp.result_type(*values.values())
    return dtype, [x.astype(_checks.accumulator(dtype)) for x in values.values()]


def on_vectors(function: Callable[..., Result]) -> Callable[..., Result]:
    """Checks the arguments that are not keyword-only, widens them, and narrows the result."""
    signature = inspect.signature(function)
    names = [name for name, p in signature.parameters.items() if p.kind is not p.KEYWORD_ONLY]

    @functools.wraps(function)
    def checked(*args: Any, **options: Any) -> Result:
        bound = signature.bind(*args, **options).arguments
        dtype, vectors = widen(function.__name__, **{name: bound.pop(name) for name in names})
        return jax.tree.map(lambda x: x.astype(dtype), function(*vectors, **bound))

    return checked


def dot(x: jax.Array, y: jax.Array) -> jax.Array:
    """Inner product x·y, ``[..., 1]``."""
    return jnp.sum(x * y, axis=-1, keepdims=True)


def norm(x: jax.Array) -> jax.Array:
    """|x|, ``[..., 1]``, without overflow inside; zero slope at zero."""
    scaled, scale = _scaled(x)
    square = dot(scaled, scaled)
    return jnp.where(square > 0, scale * jnp.sqrt(jnp.where(square > 0, square, 1)), square)


@on_vectors
def normalize(x: jax.Array) -> jax.Array:
    """The unit vector of each vector, ``x / |x|``.

    Args:
        x: ``[..., D]`` of any finite lengths; the zero vector has no direction and stays zero, with
            zero gradient; one that is not finite gives NaN.

    Returns:
        ``[..., D]``.

    >>> print(normalize(jnp.array([3.0, 4.0])))
    [0.6 0.8]
    """
    scaled, _ = _scaled(x)
    square = dot(scaled, scaled)
    length = jnp.sqrt(jnp.where(square == 0, 1, square))
    # An infinite coordinate has made the square infinite: no direction.
    return jnp.where(square == 0, 0, scaled / jnp.where(length < jnp.inf, length, jnp.nan))


@on_vectors
def tangent_projection(x: jax.Array, v: jax.Array) -> jax.Array:
    """The part of v that is tangent to the sphere at x, ``v - (x·v) x``.

    Args:
        x: unit vectors ``[..., D]``.
        v: ``[..., D]``.

    Returns:
        ``[..., D]``, orthogonal to x.

    >>> print(tangent_projection(jnp.array([1.0, 0.0]), jnp.array([5.0, 2.0])))
    [0. 2.]
    """
    return v - dot(x, v) * x


@on_vectors
def retract(x: jax.Array, v: jax.Array) -> jax.Array:
    """Moves x by v and back to the sphere, ``(x + v) / |x + v|``.

    For a tangent v it agrees with :func:`exponential_map` up to O(|v|³).

    Args:
        x: unit vectors ``[..., D]``.
        v: ``[..., D]``.

    Returns:
        Unit vectors ``[..., D]``; zero where ``x + v`` is.

    >>> print(retract(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])))
    [0.707 0.707]
    """
    return normalize(x + v)


@on_vectors
def exponential_map(x: jax.Array, v: jax.Array) -> jax.Array:
    """Walks from x along the geodesic that leaves with velocity v, for one unit of time.

    exp_x(v) = cos|v| x + sin|v| v/|v|.

    Args:
        x: unit vectors ``[..., D]``.
        v: tangent vectors at x, ``[..., D]``.

    Returns:
        Unit vectors ``[..., D]``.

    >>> quarter_turn = jnp.array([0.0, jnp.pi / 2])
    >>> print(exponential_map(jnp.array([1.0, 0.0]), quarter_turn).round(4))
    [-0.  1.]
    """
    length = norm(v)
    # Not jnp.sinc, which jax.shard_map refuses in JAX 0.12.
    ratio = jnp.where(length == 0, 1, jnp.sin(length) / jnp.where(length == 0, 1, length))
    return jnp.cos(length) * x + ratio * v


@on_vectors
def logarithmic_map(x: jax.Array, y: jax.Array) -> jax.Array:
    """The tangent vector at x whose geodesic reaches y: the inverse of :func:`exponential_map`.

    Args:
        x: unit vectors ``[..., D]``.
        y: unit vectors ``[..., D]``.

    Returns:
        Tangent vectors at x, ``[..., D]``, of length θ ≤ π; zero for y = x. For y = -x one of the
        shortest ways (see the module).

    >>> print(logarithmic_map(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])))
    [0.    1.571]
    """
    angle = geodesic_distance(x, y)[..., None]
    far = angle > 2
    # The same tangent from either end; of the shorter difference no digits are lost.
    way = jnp.where(far, y + x, y - x)
    u = tangent_projection(x, way)
    # Near the antipode the rounding along x is taken off once more; it may be all there is.
    u = jnp.where(far, tangent_projection(x, u), u)
    sine = norm(u)
    lost = far & (sine <= 4 * jnp.finfo(x.dtype).eps * norm(way))
    direction = jnp.where(lost, _some_tangent(x), u / jnp.where(sine > 0, sine, 1))
    # Where both vectors coincide θ/|u| tends to 1, and so does the slope.
    return jnp.where((sine == 0) & ~far, u, angle * direction)


@on_vectors
def geodesic_distance(x: jax.Array, y: jax.Array) -> jax.Array:
    """The angle between unit vectors, ``2 atan2(|x - y|, |x + y|)``.

    Args:
        x: unit vectors ``[..., D]``.
        y: unit vectors ``[..., D]``.

    Returns:
        ``[...]`` in radians, from 0 to π, exact to rounding also near both ends. The gradient
        is zero for y = ±x, where the distance has a corner.

    >>> print(geodesic_distance(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])))
    1.5707964
    """
    apart, together = norm(x - y), norm(x + y)
    undefined = (apart == 0) & (together == 0)  # two zero vectors
    return 2 * jnp.arctan2(apart, jnp.where(undefined, 1, together))[..., 0]


@on_vectors
def parallel_transport(x: jax.Array, y: jax.Array, v: jax.Array) -> jax.Array:
    """Carries a tangent vector from x to y along the geodesic, without turning it.

    v - 2 (w·v) w with w = (x + y) / |x + y|. It keeps lengths and angles.

    Args:
        x: unit vectors ``[..., D]``.
        y: unit vectors ``[..., D]``.
        v: tangent vectors at x, ``[..., D]``.

    Returns:
        Tangent vectors at y, ``[..., D]``.

    >>> x, y = jnp.eye(2)
    >>> print(parallel_transport(x, y, y))
    [-1.  0.]
    """
    w, across = x + y, x - y
    far = dot(x, y) < 0
    # Not orthogonal to x - y, w would not turn x into y: that error grows towards the antipode.
    # Taken off twice, it is lost as far as anything else is left.
    square, middle = jnp.where(far, dot(across, across), 1), w
    for _ in range(2):
        middle = jnp.where(far, middle - dot(middle, across) / square * across, middle)
    lost = dot(middle, middle) <= (4 * jnp.finfo(x.dtype).eps) ** 2 * dot(w, w)
    middle = jnp.where(lost, _some_tangent(across / jnp.sqrt(square)), middle)
    length = dot(middle, middle)
    return v - 2 * dot(middle, v) / jnp.where(length > 0, length, 1) * middle


def random_uniform(key: jax.Array, shape: Sequence[int], dtype: DTypeLike = float) -> jax.Array:
    """Independent unit vectors, uniform on the sphere.

    Args:
        key: typed PRNG key; consumed.
        shape: ``(..., D)`` of the result.
        dtype: floating-point.

    Returns:
        Unit vectors of that shape.

    Raises:
        ValueError: if the shape has no axis, the last one is empty, or a size is negative.
        TypeError: if the key is no typed one, or the dtype not a floating one.

    >>> x = random_uniform(jax.random.key(0), (5, 3))
    >>> print(jnp.linalg.norm(x, axis=-1))
    [1. 1. 1. 1. 1.]
    """
    shape = sizes("random_uniform", shape)
    if not shape or shape[-1] < 1:
        raise ValueError(f"random_uniform: shape must end with D ≥ 1 coordinates, got {shape}")
    dtype = _checks.floating("random_uniform: dtype", jnp.zeros((), dtype)).dtype
    key = _checks.typed_key("random_uniform: key", key)
    # Narrow numbers are drawn wide: one in a thousand of float16 would be an exact zero.
    draw = jax.random.normal(key, shape, _checks.accumulator(dtype))
    return normalize(jnp.where(draw == 0, jnp.finfo(draw.dtype).tiny, draw)).astype(dtype)


def sizes(function: str, shape: Sequence[int]) -> tuple[int, ...]:
    """``shape`` as a tuple of sizes."""
    if not isinstance(shape, Sequence):
        raise TypeError(f"{function}: shape must be a tuple of integers, got {shape!r:.80}")
    return tuple(_checks.count(f"{function}: shape", size) for size in shape)


def _scaled(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Divides by the largest coordinate, and gives it: squares neither overflow nor vanish.

    XLA multiplies by the reciprocal, which must not vanish either: hence the bound.
    """
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True, initial=0)
    scale = jnp.minimum(jnp.where(largest > 0, largest, 1), 1 / jnp.finfo(x.dtype).tiny)
    scale = jax.lax.stop_gradient(scale)
    return x / scale, scale


def _some_tangent(x: jax.Array) -> jax.Array:
    """A unit tangent at x: the axis of its smallest coordinate, made orthogonal to x."""
    if not x.shape[-1]:
        return x
    axis = jax.nn.one_hot(jnp.argmin(jnp.abs(x), axis=-1), x.shape[-1], dtype=x.dtype)
    return normalize(tangent_projection(x, axis))
