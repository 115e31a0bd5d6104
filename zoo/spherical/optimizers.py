"""Riemannian SGD, momentum and Adam for rows on the unit sphere, as Optax transformations.

Every vector on the last axis of a leaf is a point x of its own sphere. With the gradient ∇f there,

    g = (I - x xᵀ) ∇f                       Riemannian gradient
    x ← (x - η c g) / |x - η c g|           SGD;  c = 1 + xᵀ∇f / |∇f| with the angular factor
    m ← β T(m) + g                          momentum;  T: parallel transport to the new x
    v ← β₂ v + (1 - β₂) |g|²                Adam: one v a row, the size of its own factor

The angular factor in [0, 2] is JoSE's: it is 0 where -∇f points along x already and 2 where it
points away. A transformation returns the difference to the new point, as Optax wants it; the new
point is normalised from the current one in at least float32, so errors of rounding do not add up.

Rows with zero gradient (and zero momentum) do not move, and zero rows, such as padding, never do.

Source: Yu Meng et al., «Spherical Text Embedding», 2019, arXiv 1911.01196, section 4; Gary
Bécigneul, Octavian-Eugen Ganea, «Riemannian Adaptive Optimization Methods», 2019,
arXiv 1810.00760; https://kexue.fm/archives/7063, https://kexue.fm/archives/11196.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from zoo.spherical.geometry import exponential, project, transport, unit

Rate = float | jax.Array | Callable[[Any], Any]  # a schedule takes the number of steps done


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
        ValueError: from ``update``, without parameters or for a scalar leaf.

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

    def init(params: optax.Params) -> RiemannianSgdState:
        del params
        return RiemannianSgdState(jnp.zeros((), jnp.int32))

    def move(x: jax.Array, gradient: jax.Array, rate: jax.Array) -> jax.Array:
        step = project(x, gradient)
        if angular:
            step = (1 + jnp.sum(x * unit(gradient), axis=-1, keepdims=True)) * step
        return _difference(x, -rate * step, _retraction)

    def update(
        updates: optax.Updates, state: RiemannianSgdState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, RiemannianSgdState]:
        rate = _rate(learning_rate, state.step)
        moved = _map_spheres(lambda x, gradient: move(x, gradient, rate), params, updates)
        return moved, RiemannianSgdState(optax.safe_increment(state.step))

    return optax.GradientTransformation(init, update)


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
        ValueError: if ``momentum`` is out of its range; from ``update`` as in
            :func:`riemannian_sgd`.

    >>> optimizer = riemannian_momentum(0.1)
    >>> x = jnp.array([[1.0, 0.0]])
    >>> updates, state = optimizer.update(jnp.array([[0.0, -1.0]]), optimizer.init(x), x)
    >>> print(state.momentum)
    [[ 0.1 -1. ]]
    """
    _in_unit_interval("momentum", momentum)

    def init(params: optax.Params) -> RiemannianMomentumState:
        return RiemannianMomentumState(jnp.zeros((), jnp.int32), _wide_zeros(params))

    def update(
        updates: optax.Updates, state: RiemannianMomentumState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, RiemannianMomentumState]:
        rate = _rate(learning_rate, state.step)

        def move(x: jax.Array, gradient: jax.Array, old: jax.Array) -> tuple[jax.Array, jax.Array]:
            mean = momentum * project(x, old) + project(x, gradient)
            difference = _difference(x, -rate * mean, _retraction)
            return difference, transport(x, x + difference, mean)

        moved, mean = _map_spheres(move, params, updates, state.momentum, outputs=2)
        return moved, RiemannianMomentumState(optax.safe_increment(state.step), mean)

    return optax.GradientTransformation(init, update)


def riemannian_adam(
    learning_rate: Rate, *, b1: float = 0.9, b2: float = 0.999, epsilon: float = 1e-8
) -> optax.GradientTransformation:
    """Adam on a product of spheres: each row has one adaptive rate, and transported momentum.

    m ← β₁ m + (1 - β₁) g,  v ← β₂ v + (1 - β₂) |g|²,
    x' = exp_x(-η m̂ / (√v̂ + ε)),  m ← T_{x→x'}(m);  m̂, v̂ are corrected for their start at zero.

    Args:
        learning_rate: η in radians a step at most, about; a number or a schedule.
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        epsilon: ε.

    Returns:
        The transformation; see :func:`riemannian_sgd`.

    Raises:
        ValueError: if a decay is out of its range; from ``update`` as in :func:`riemannian_sgd`.

    >>> optimizer = riemannian_adam(0.1)
    >>> x = jnp.array([[1.0, 0.0]])
    >>> updates, _ = optimizer.update(jnp.array([[0.0, -7.0]]), optimizer.init(x), x)
    >>> print(optax.apply_updates(x, updates))  # 0.1 radians, whatever the gradient's length
    [[0.995 0.100]]

    Reference: arXiv 1810.00760, section 4.
    """
    _in_unit_interval("b1", b1)
    _in_unit_interval("b2", b2)

    def init(params: optax.Params) -> RiemannianAdamState:
        square = jax.tree.map(lambda leaf: leaf[..., :1], _wide_zeros(params))
        return RiemannianAdamState(jnp.zeros((), jnp.int32), _wide_zeros(params), square)

    def update(
        updates: optax.Updates, state: RiemannianAdamState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, RiemannianAdamState]:
        count = optax.safe_increment(state.step)
        rate = _rate(learning_rate, state.step)
        unbias_mean, unbias_square = 1 - b1**count, 1 - b2**count

        def move(
            x: jax.Array, gradient: jax.Array, old_mean: jax.Array, old_square: jax.Array
        ) -> tuple[jax.Array, jax.Array, jax.Array]:
            riemannian = project(x, gradient)
            mean = b1 * project(x, old_mean) + (1 - b1) * riemannian
            length = jnp.sum(riemannian**2, axis=-1, keepdims=True)
            square = b2 * old_square + (1 - b2) * length
            scale = rate / unbias_mean / (jnp.sqrt(square / unbias_square) + epsilon)
            difference = _difference(x, -scale.astype(x.dtype) * mean, exponential)
            return difference, transport(x, x + difference, mean), square

        moved, mean, square = _map_spheres(
            move, params, updates, state.mean, state.square, outputs=3
        )
        return moved, RiemannianAdamState(count, mean, square)

    return optax.GradientTransformation(init, update)


def _retraction(x: jax.Array, step: jax.Array) -> jax.Array:
    return x + step


def _difference(
    x: jax.Array, step: jax.Array, walk: Callable[[jax.Array, jax.Array], jax.Array]
) -> jax.Array:
    """From x to the unit vector along its walk; exactly zero without a step, or for a zero x."""
    still = jnp.all(step == 0, axis=-1, keepdims=True) | jnp.all(x == 0, axis=-1, keepdims=True)
    return jnp.where(still, 0, unit(walk(x, step)) - x)


def _map_spheres(
    move: Callable[..., Any], params: optax.Params | None, *trees: Any, outputs: int = 1
) -> Any:
    """Applies ``move`` leaf by leaf in at least float32; the first output is in params' dtype."""
    if params is None:
        raise ValueError(
            "a Riemannian update needs the current point: call update(updates, state, params)"
        )

    def apply(path: Any, x: jax.Array, *leaves: jax.Array) -> tuple[jax.Array, ...]:
        if jnp.ndim(x) == 0:
            name = jax.tree_util.keystr(path)
            raise ValueError(
                f"params{name} must be vectors [..., D], got a scalar; leave it to another "
                "optimiser with optax.partition"
            )
        wide = jnp.promote_types(x.dtype, jnp.float32)
        results = move(x.astype(wide), *(leaf.astype(wide) for leaf in leaves))
        first, *rest = results if outputs > 1 else (results,)
        return first.astype(x.dtype), *rest

    results = jax.tree_util.tree_map_with_path(apply, params, *trees)
    structure: Any = jax.tree.structure(params)
    columns = zip(*structure.flatten_up_to(results), strict=True)
    unzipped = [structure.unflatten(column) for column in columns]
    if not unzipped:  # no leaves at all
        return params if outputs == 1 else (params,) * outputs
    return unzipped[0] if outputs == 1 else tuple(unzipped)


def _rate(learning_rate: Rate, count: jax.Array) -> Any:
    return learning_rate(count) if callable(learning_rate) else learning_rate


def _wide_zeros(params: optax.Params) -> optax.Updates:
    return jax.tree.map(
        lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), params
    )


def _in_unit_interval(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1), got {value}")
