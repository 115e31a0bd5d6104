"""Riemannian SGD, momentum and Adam for rows on the unit sphere, as Optax transformations.

Every vector on the last axis of a leaf is a point x of its own sphere. With the gradient ∇f there,

    g = (I - x xᵀ) ∇f                       Riemannian gradient
    x ← (x - η c g) / |x - η c g|           SGD;  c = 1 + xᵀ∇f / |∇f| with the angular factor
    m ← β T(m) + g                          momentum;  T: parallel transport to the new x
    v ← β₂ v + (1 - β₂) |g|²                Adam: one v per row, the size of its own factor

The angular factor in [0, 2] is JoSE's: it is 0 where -∇f points along x already and 2 where it
points away. A transformation returns the difference to the new point, as Optax wants it; the new
point is normalised from the current one in at least float32, so errors of rounding do not add up.
Momentum lies along the step: for it T has a closed form, equal to ``parallel_transport``.

Rows with zero gradient (and zero momentum) do not move, and zero rows, such as padding, never do. A
step whose square overflows (in float32, one longer than 1e19) gives NaN.

Source: Yu Meng et al., "Spherical Text Embedding", 2019, arXiv 1911.01196, section 4; Gary
Bécigneul, Octavian-Eugen Ganea, "Riemannian Adaptive Optimization Methods", 2019,
arXiv 1810.00760; https://kexue.fm/archives/7063, https://kexue.fm/archives/11196.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from zoo import _checks
from zoo._paths import path_name
from zoo.spherical.geometry import (
    dot,
    exponential_map,
    norm,
    normalize,
    tangent_projection,
)

Rate = float | jax.Array | Callable[[Any], Any]  # a schedule takes the number of steps done
Moved = tuple[jax.Array, ...]  # the difference to the new point, and what is remembered


class RiemannianSgdState(NamedTuple):
    """State of :func:`riemannian_sgd`."""

    step: jax.Array  # int32 [], steps done


class RiemannianMomentumState(NamedTuple):
    """State of :func:`riemannian_momentum`."""

    step: jax.Array  # int32 [], steps done
    momentum: optax.Updates  # like the parameters, at least float32; tangent at the current point


class RiemannianAdamState(NamedTuple):
    """State of :func:`riemannian_adam`."""

    step: jax.Array  # int32 [], steps done
    mean: optax.Updates  # like the parameters, at least float32; tangent at the current point
    square: optax.Updates  # [..., 1] of every leaf, mean squared length of the gradient


def riemannian_sgd(learning_rate: Rate, *, angular: bool = True) -> optax.GradientTransformation:
    """Stochastic gradient descent on spheres, with JoSE's angular factor.

    x ← (x - η c g) / |x - η c g|,  g = (I - x xᵀ) ∇f,  c = 1 + xᵀ∇f / |∇f|.

    Args:
        learning_rate: η, a number or a schedule.
        angular: multiply by c; False: c = 1.

    Returns:
        The transformation. Its ``update`` needs the parameters, whose rows are unit vectors.
        Use ``optax.partition`` where only some leaves are spheres.

    Raises:
        ValueError: from ``init`` and ``update``, for a scalar leaf; from ``update``, without
            parameters, or for a gradient of another shape.
        TypeError: from both, for a leaf that is not floating-point.

    >>> optimizer = optax.partition(
    ...     {"sphere": riemannian_sgd(0.1), "flat": optax.sgd(0.1)},
    ...     {"embedding": "sphere", "bias": "flat"},
    ... )
    >>> params = {"embedding": jnp.array([[1.0, 0.0]]), "bias": jnp.zeros(2)}
    >>> gradient = {"embedding": jnp.array([[0.0, -1.0]]), "bias": jnp.ones(2)}
    >>> updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    >>> print(optax.apply_updates(params, updates)["embedding"])
    [[0.995 0.100]]

    Reference: arXiv 1911.01196, equation 9.
    """

    def move(x: jax.Array, gradient: jax.Array, rate: Any, _: Any) -> Moved:
        square = dot(gradient, gradient)
        length = jnp.sqrt(jnp.where(square > 0, square, 1))
        factor = 1 + dot(x, gradient) / length if angular else 1
        tangent = -rate * factor * tangent_projection(x, gradient)
        return (_retraction(x, tangent, still=square == 0),)

    return _on_spheres(move, learning_rate, RiemannianSgdState)


def riemannian_momentum(
    learning_rate: Rate, *, momentum: float = 0.9
) -> optax.GradientTransformation:
    """SGD with heavy-ball momentum that is carried along by parallel transport.

    m ← β m + g,  x' = (x - η m) / |x - η m|,  m ← T_{x→x'}(m).

    Args:
        learning_rate: η, a number or a schedule.
        momentum: β in [0, 1).

    Returns:
        The transformation; see :func:`riemannian_sgd`.

    Raises:
        ValueError: if ``momentum`` is out of its range.

    >>> optimizer = riemannian_momentum(0.1)
    >>> x = jnp.array([[1.0, 0.0]])
    >>> updates, state = optimizer.update(jnp.array([[0.0, -1.0]]), optimizer.init(x), x)
    >>> print(state.momentum)
    [[ 0.1 -1. ]]
    """
    momentum = _checks.number("momentum", momentum, at_least=0, below=1)

    def move(x: jax.Array, gradient: jax.Array, old: jax.Array, rate: Any, _: Any) -> Moved:
        mean = momentum * tangent_projection(x, old) + tangent_projection(x, gradient)
        square = dot(mean, mean)
        difference = _retraction(x, -rate * mean, still=square == 0)
        # Along its own geodesic: T(m) = cos θ m + sin θ |m| x, here with tan θ = η |m|.
        carried = (mean + rate * square * x) * jax.lax.rsqrt(1 + rate**2 * square)
        return difference, carried

    return _on_spheres(move, learning_rate, RiemannianMomentumState, jnp.zeros_like)


def riemannian_adam(
    learning_rate: Rate, *, b1: float = 0.9, b2: float = 0.999, epsilon: float = 1e-8
) -> optax.GradientTransformation:
    """Adam on a product of spheres: each row has one adaptive rate, and transported momentum.

    m ← β₁ m + (1 - β₁) g,  v ← β₂ v + (1 - β₂) |g|²,
    x' = exp_x(-η m̂ / (√v̂ + ε)),  m ← T_{x→x'}(m);  m̂, v̂ are corrected for their start at zero.

    Args:
        learning_rate: η, about the most radians per step; a number or a schedule.
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        epsilon: ε ≥ 0.

    Returns:
        The transformation; see :func:`riemannian_sgd`.

    Raises:
        ValueError: if a decay or ε is out of its range.

    >>> optimizer = riemannian_adam(0.1)
    >>> x = jnp.array([[1.0, 0.0]])
    >>> updates, _ = optimizer.update(jnp.array([[0.0, -7.0]]), optimizer.init(x), x)
    >>> print(optax.apply_updates(x, updates))  # 0.1 radians, whatever the gradient's length
    [[0.995 0.100]]
    """
    b1 = _checks.number("b1", b1, at_least=0, below=1)
    b2 = _checks.number("b2", b2, at_least=0, below=1)
    epsilon = _checks.number("epsilon", epsilon, at_least=0)

    def move(
        x: jax.Array, gradient: jax.Array, mean: jax.Array, square: jax.Array, rate: Any, step: Any
    ) -> Moved:
        riemannian = tangent_projection(x, gradient)
        mean = b1 * tangent_projection(x, mean) + (1 - b1) * riemannian
        square = b2 * square + (1 - b2) * dot(riemannian, riemannian)
        scale = rate / (1 - b1**step) / (jnp.sqrt(square / (1 - b2**step)) + epsilon)
        new = normalize(exponential_map(x, -scale.astype(x.dtype) * mean))
        length = norm(mean)
        difference = jnp.where((length == 0) | (dot(x, x) == 0), 0, new - x)
        # Along its own geodesic: T(m) = cos θ m + sin θ |m| x.
        angle = scale * length
        return difference, jnp.cos(angle) * mean + jnp.sin(angle) * length * x, square

    one_per_row = lambda x: jnp.zeros_like(x[..., :1])  # noqa: E731
    return _on_spheres(move, learning_rate, RiemannianAdamState, jnp.zeros_like, one_per_row)


def _retraction(x: jax.Array, step: jax.Array, *, still: jax.Array) -> jax.Array:
    """``retract(x, step) - x`` for a unit x and a tangent step; exactly zero where ``still``.

    There |x + step| ≥ 1: unlike :func:`zoo.spherical.retract` it needs no scaling first, which
    would cost two more passes over the rows.
    """
    still = still | (dot(x, x) == 0)
    moved = x + step
    square = jnp.where(still, 1, dot(moved, moved))
    shrink = jnp.where(square < jnp.inf, jax.lax.rsqrt(square), jnp.nan)
    return jnp.where(still, 0, shrink * moved - x)


def _on_spheres(
    move: Callable[..., Moved],
    learning_rate: Rate,
    make_state: Callable[..., Any],
    *memories: Callable[[jax.Array], jax.Array],
) -> optax.GradientTransformation:
    """The transformation that applies ``move`` to every leaf, in at least float32.

    ``move(x, gradient, *memories, rate, step)``, with steps from 1, gives the difference to the new
    point, which gets the dtype of x, and the new memories; ``memories`` give the first ones.
    """

    def init(params: optax.Params) -> Any:
        for path, x in jax.tree.leaves_with_path(params):
            _check_sphere(path, x)
        wide = jax.tree.map(lambda x: jnp.zeros(x.shape, _checks.accumulator(x.dtype)), params)
        return make_state(jnp.zeros((), jnp.int32), *(jax.tree.map(m, wide) for m in memories))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, Any]:
        if params is None:
            raise ValueError(
                "a Riemannian update needs the current point: call update(updates, state, params)"
            )
        step = optax.safe_increment(state[0])
        rate = learning_rate(state[0]) if callable(learning_rate) else learning_rate
        structure: Any = jax.tree.structure(params)
        trees = map(structure.flatten_up_to, (updates, *state[1:]))
        results = []
        for (path, x), *leaves in zip(jax.tree.leaves_with_path(params), *trees, strict=True):
            _check_sphere(path, x)
            if jnp.shape(leaves[0]) != x.shape:
                raise ValueError(
                    f"updates {path_name(path)!r} must have the shape of its parameters, "
                    f"{list(x.shape)}, got {list(jnp.shape(leaves[0]))}"
                )
            wide = (leaf.astype(_checks.accumulator(x.dtype)) for leaf in (x, *leaves))
            difference, *rest = move(*wide, rate, step)
            results.append((difference.astype(x.dtype), *rest))
        columns = zip(*results, strict=True) if results else [()] * (1 + len(memories))
        moved, *kept = map(structure.unflatten, columns)
        return moved, make_state(step, *kept)

    return optax.GradientTransformation(init, update)


def _check_sphere(path: tuple[Any, ...], x: Any) -> None:
    what, dtype = f"params {path_name(path)!r}", jnp.result_type(x)
    advice = "leave it to another optimiser with optax.partition"
    if jnp.shape(x) == ():
        raise ValueError(f"{what} must be vectors [..., D], got a scalar; {advice}")
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{what} must be floating-point vectors, got {dtype}; {advice}")
