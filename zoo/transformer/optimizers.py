"""AdamW and LAMB as BERT is pretrained with, linear schedules, and updates of used rows alone.

    m = β₁ m + (1 - β₁) g        v = β₂ v + (1 - β₂) g²        (divided by 1 - βᵗ if bias-corrected)
    u = m / (√v + ε) + λ x
    x ← x - γ u                  AdamW
    x ← x - γ ‖x‖/‖u‖ u          LAMB, ratio 1 if either norm is 0

γ is the scheduled rate, so decay is scheduled with it, and it takes x of before the update. What is
excluded by its path has no decay and, in LAMB, ratio 1. ``exclude`` is looked for in paths such as
``layers/attention_norm/scale``; the default finds every bias and norm, the output bias too.

Sources: Ilya Loshchilov, Frank Hutter, «Decoupled Weight Decay Regularization», 2017, arXiv
1711.05101; Yang You et al., «Large Batch Optimization for Deep Learning», 2019, arXiv 1904.00962;
https://kexue.fm/archives/7094 (derived optimizers) and 6869 (lazy). Differences from that code: it
counts micro-steps where updates are counted here, and its LAMB treats a rate below 1e-7 as 1e-7.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from zoo.training.placement import path_name

EXCLUDE = (r"bias$", r"norm")
STACKED = (r"(^|/)layers/",)


class AdamState(NamedTuple):
    """The moments."""

    updates: jax.Array  # [] int32, how many there were
    mean: Any  # like the parameters, float32 where they are narrower
    square: Any  # likewise


def scale_by_adam(
    *, b1: float = 0.9, b2: float = 0.999, epsilon: float = 1e-6, bias_correction: bool = True
) -> optax.GradientTransformation:
    """Adam's direction m / (√v + ε), with or without bias correction.

    ``optax.scale_by_adam`` with correction is the same; BERT and LAMB are trained without.

    Args:
        b1: decay of the mean of gradients.
        b2: decay of the mean of their squares.
        epsilon: added to the root.
        bias_correction: whether the moments are divided by 1 - bᵗ.

    Returns:
        The transformation.

    Raises:
        ValueError: if a decay is outside [0, 1) or epsilon is negative.

    >>> adam = scale_by_adam(bias_correction=False, epsilon=0.0)
    >>> updates, _ = adam.update(jnp.array([2.0]), adam.init(jnp.array([0.0])))
    >>> updates  # 0.1 / √0.001
    Array([3.162], dtype=float32)
    """
    for name, decay in (("b1", b1), ("b2", b2)):
        if not 0 <= decay < 1:
            raise ValueError(f"{name} must be in [0, 1), got {decay}")
    if epsilon < 0:
        raise ValueError(f"epsilon must be at least 0, got {epsilon}")

    def init(parameters: Any) -> AdamState:
        def zeros(leaf: jax.Array) -> jax.Array:
            return jnp.zeros_like(leaf, dtype=jnp.promote_types(leaf.dtype, jnp.float32))

        moments = jax.tree.map(zeros, parameters)
        return AdamState(jnp.zeros([], jnp.int32), moments, jax.tree.map(jnp.copy, moments))

    def update(gradients: Any, state: AdamState, parameters: Any = None) -> tuple[Any, AdamState]:
        del parameters
        count = state.updates + 1
        mean = optax.tree.update_moment(gradients, state.mean, b1, 1)
        square = optax.tree.update_moment(gradients, state.square, b2, 2)

        def direction(m: jax.Array, v: jax.Array, gradient: jax.Array) -> jax.Array:
            if bias_correction:
                m, v = (
                    moment / (1 - decay ** count.astype(moment.dtype))
                    for moment, decay in ((m, b1), (v, b2))
                )
            return (m / (jnp.sqrt(v) + epsilon)).astype(gradient.dtype)

        return jax.tree.map(direction, mean, square, gradients), AdamState(count, mean, square)

    return optax.GradientTransformation(init, update)


def scale_by_norm_ratio(
    *, exclude: Sequence[str] = EXCLUDE, stacked: Sequence[str] = STACKED
) -> optax.GradientTransformation:
    """LAMB's layer adaptation: u ‖x‖/‖u‖ for every tensor, u where either norm is 0.

    Args:
        exclude: patterns of paths whose updates stay as they are.
        stacked: patterns of paths whose first axis counts layers: each has its own norms.

    Returns:
        The transformation; its update needs the parameters.

    >>> ratio = scale_by_norm_ratio()
    >>> x = {"kernel": jnp.array([3.0, 4.0])}
    >>> ratio.update({"kernel": jnp.array([0.0, 2.0])}, ratio.init(x), x)[0]
    {'kernel': Array([0., 5.], dtype=float32)}
    """

    def init(parameters: Any) -> optax.EmptyState:
        del parameters
        return optax.EmptyState()

    def update(updates: Any, state: Any, parameters: Any = None) -> tuple[Any, Any]:
        if parameters is None:
            raise ValueError("scale_by_norm_ratio: update needs the parameters, got None")

        def scale(path: tuple[Any, ...], u: jax.Array, x: jax.Array) -> jax.Array:
            name = path_name(path)
            if _found(exclude, name):
                return u
            axes = tuple(range(1 if _found(stacked, name) else 0, u.ndim))
            x_norm, u_norm = _norm(x, axes), _norm(u, axes)
            known = (x_norm > 0) & (u_norm > 0)
            ratio = jnp.where(known, x_norm / jnp.where(known, u_norm, 1), 1)
            return (ratio * u).astype(u.dtype)

        return jax.tree_util.tree_map_with_path(scale, updates, parameters), state

    return optax.GradientTransformation(init, update)


def adamw(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    epsilon: float = 1e-6,
    weight_decay: float = 0.01,
    bias_correction: bool = True,
    exclude: Sequence[str] = EXCLUDE,
) -> optax.GradientTransformation:
    """AdamW, see the module docstring.

    Args:
        learning_rate: γ, a number or a schedule of the number of updates.
        b1: β₁.
        b2: β₂.
        epsilon: ε, outside the root.
        weight_decay: λ.
        bias_correction: of the moments; Google's BERT was trained without.
        exclude: patterns of paths without decay.

    Returns:
        The transformation; its update needs the parameters.

    Raises:
        ValueError: if a number is out of its range.

    >>> optimizer = adamw(0.1, weight_decay=0.5)
    >>> x = {"kernel": jnp.array([2.0]), "bias": jnp.array([2.0])}
    >>> updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, x), optimizer.init(x), x)
    >>> updates["kernel"], updates["bias"]
    (Array([-0.1], dtype=float32), Array([-0.], dtype=float32))

    Reference: arXiv 1711.05101, algorithm 2.
    """
    return optax.chain(
        scale_by_adam(b1=b1, b2=b2, epsilon=epsilon, bias_correction=bias_correction),
        _decay(weight_decay, exclude),
        optax.scale_by_learning_rate(learning_rate),
    )


def lamb(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    epsilon: float = 1e-6,
    weight_decay: float = 0.01,
    bias_correction: bool = False,
    exclude: Sequence[str] = EXCLUDE,
    stacked: Sequence[str] = STACKED,
) -> optax.GradientTransformation:
    """LAMB, see the module docstring: every tensor moves by γ times its own norm.

    Args:
        learning_rate: γ, a number or a schedule of the number of updates.
        b1: β₁.
        b2: β₂.
        epsilon: ε, outside the root.
        weight_decay: λ, inside the norm of u.
        bias_correction: of the moments; the article's runs have none.
        exclude: patterns of paths without decay and with ratio 1.
        stacked: patterns of paths whose first axis counts layers: each has its own norms.

    Returns:
        The transformation; its update needs the parameters.

    Raises:
        ValueError: if a number is out of its range.

    >>> optimizer = lamb(0.1)
    >>> x = {"kernel": jnp.array([3.0, 4.0])}
    >>> updates, _ = optimizer.update({"kernel": jnp.array([0.0, 9.0])}, optimizer.init(x), x)
    >>> bool(jnp.isclose(jnp.linalg.norm(updates["kernel"]), 0.1 * 5.0))
    True

    Reference: arXiv 1904.00962, algorithm 2.
    """
    return optax.chain(
        scale_by_adam(b1=b1, b2=b2, epsilon=epsilon, bias_correction=bias_correction),
        _decay(weight_decay, exclude),
        scale_by_norm_ratio(exclude=exclude, stacked=stacked),
        optax.scale_by_learning_rate(learning_rate),
    )


def piecewise_linear(knots: Mapping[int, float], *, scale: float = 1.0) -> optax.Schedule:
    """A rate that is linear between knots, constant after the last, and begins at 0.

    Args:
        knots: number of updates -> rate. Without a knot at 0, the rate there is 0.
        scale: factor of all rates, such as the peak rate.

    Returns:
        ``(count) -> rate``; float32, exact for counts below 2²⁴.

    Raises:
        ValueError: if there is no knot, or one at a negative count.

    >>> warm_up_and_decay = piecewise_linear({1000: 1.0, 2000: 0.1})
    >>> [float(warm_up_and_decay(count)) for count in (500, 1500, 3000)]
    [0.5, 0.55, 0.1]
    """
    if not knots or min(knots) < 0:
        raise ValueError(f"knots must be counts of 0 or more, at least one, got {dict(knots)}")
    points = sorted({0: 0.0, **knots}.items())
    counts = [float(count) for count, _ in points]
    rates = [scale * rate for _, rate in points]
    if not all(map(math.isfinite, rates)):
        raise ValueError(f"knots must have finite rates, got {dict(knots)} and {scale=}")

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        place = jnp.asarray(count, jnp.float32)
        return jnp.interp(place, jnp.array(counts), jnp.array(rates))

    return schedule


def lazy_rows(
    optimizer: optax.GradientTransformation, *, tables: Sequence[str] = (r"embedding$",)
) -> optax.GradientTransformationExtraArgs:
    """Moves only the rows of a table that the batch used: those whose gradient is not all 0.

    x_r ← x_r + [g_r ≠ 0] Δ_r. Without it, decay and old momentum move the vectors of words that did
    not occur. The moments of unused rows still decay. Weights tied to a softmax over the whole
    vocabulary have no unused rows: there it changes nothing.

    Args:
        optimizer: what it is put around; the gradients must come from the loss as they are.
        tables: patterns of the paths of tables.

    Returns:
        The transformation.

    >>> optimizer = lazy_rows(adamw(0.1, weight_decay=0.5))
    >>> x = {"embedding": jnp.ones((2, 1))}
    >>> gradient = {"embedding": jnp.array([[0.0], [1.0]])}
    >>> updates, _ = optimizer.update(gradient, optimizer.init(x), x)
    >>> updates["embedding"].round(2)
    Array([[ 0.  ],
           [-0.15]], dtype=float32)

    Reference: https://kexue.fm/archives/6869.
    """
    inner = optax.with_extra_args_support(optimizer)

    def update(gradients: Any, state: Any, parameters: Any = None, **extra: Any) -> tuple[Any, Any]:
        updates, state = inner.update(gradients, state, parameters, **extra)

        def keep(path: tuple[Any, ...], update: jax.Array, gradient: jax.Array) -> jax.Array:
            if not _found(tables, path_name(path)):
                return update
            return jnp.where(jnp.any(gradient != 0, axis=-1, keepdims=True), update, 0)

        return jax.tree_util.tree_map_with_path(keep, updates, gradients), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _decay(weight_decay: float, exclude: Sequence[str]) -> optax.GradientTransformation:
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay must be at least 0, got {weight_decay}")

    def decayed(parameters: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: not _found(exclude, path_name(path)), parameters
        )

    return optax.add_decayed_weights(weight_decay, mask=decayed)


def _found(patterns: Sequence[str], name: str) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


def _norm(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return jnp.sqrt(jnp.sum(jnp.square(wide), axis=axes, keepdims=True))
