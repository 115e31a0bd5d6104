"""What all samplers of an energy share: the sampler's form, one gradient, and the chain.

An energy E gives the density p(x) = exp(-E(x)/T) / Z. Its samplers have blackjax's form,

    state = sampler.init(position)
    state, info = sampler.step(key, state)

and move B chains at once: ``position`` is a pytree of ``[B, ...]`` and ``energy_fn(position) ->
[B]`` treats every chain by itself. The loop is one ``lax.scan``; n steps cost n gradients.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zoo._checks import accumulator, count, number
from zoo._closures import Equations, hoisted

EnergyFunction = Callable[..., jax.Array]
Schedule = Callable[[jax.Array], Any]  # step number -> value, as those of Optax
ScalarOrSchedule = float | jax.Array | Schedule


class Sampler(NamedTuple):
    """A Markov chain as two pure functions.

    Attributes:
        init: ``(position) -> state``; every state has a field ``position``.
        step: ``(key, state) -> (state, SamplerInfo)``; consumes the key.
    """

    init: Callable[[Any], Any]
    step: Callable[[jax.Array, Any], tuple[Any, Any]]


class SamplerInfo(NamedTuple):
    """Diagnostics of one step, for each chain.

    Attributes:
        energy: ``[B]`` float32, where the step took its gradient.
        gradient_norm: ``[B]`` float32, of that gradient before any clipping.
        acceptance_probability: ``[B]`` float32, 1 where nothing is ever rejected.
    """

    energy: jax.Array
    gradient_norm: jax.Array
    acceptance_probability: jax.Array


def run_chain(
    key: jax.Array, sampler: Sampler, state: Any, num_steps: int
) -> tuple[Any, SamplerInfo]:
    """Runs a chain and keeps only its last state, for training and generation.

    Args:
        key: ``[]`` typed key; consumed.
        sampler: from ``langevin`` or one of its kind. What its energy closes over is read in every
            call: weights that have changed since, in place too, count. The compiled loop is kept.
        state: from ``sampler.init``, or the end of another chain.
        num_steps: at least 0.

    Returns:
        The last state (its ``position`` is the sample) and the ``SamplerInfo`` of every step,
        leaves ``[num_steps, B]``.

    Raises:
        ValueError: if num_steps is negative.

    >>> from zoo.energy import langevin
    >>> sampler = langevin(lambda x: (x**2).sum(-1) / 2, step_size=0.1)
    >>> state, info = run_chain(jax.random.key(0), sampler, sampler.init(jnp.ones((4, 3))), 20)
    >>> state.position.shape, info.energy.shape
    ((4, 3), (20, 4))
    """
    num_steps = count("num_steps", num_steps)
    step, constants = hoisted(sampler.step, key, state)
    return _run_chain(key, step, constants, state, num_steps)


def sample_chain(
    key: jax.Array, sampler: Sampler, state: Any, *, num_samples: int, thinning: int = 1
) -> tuple[Any, Any, SamplerInfo]:
    """Runs a chain and keeps every ``thinning``-th position, for estimates and diagnostics.

    ``zoo.energy.chain_agreement`` gives R̂ and the effective sample sizes of the positions.

    Args:
        key: ``[]`` typed key; consumed.
        sampler: from ``langevin`` or one of its kind.
        state: from ``sampler.init``, or the end of another chain.
        num_samples: S, how many positions are kept, at least 0.
        thinning: steps from one kept position to the next, at least 1.

    Returns:
        The last state, the positions ``[S, B, ...]``, and the ``SamplerInfo`` of every step, leaves
        ``[S, thinning, B]``.

    Raises:
        ValueError: if num_samples is negative or thinning less than 1.

    >>> from zoo.energy import langevin
    >>> sampler = langevin(lambda x: (x**2).sum(-1) / 2, step_size=0.1)
    >>> start = sampler.init(jnp.ones((4, 3)))
    >>> _, x, _ = sample_chain(jax.random.key(0), sampler, start, num_samples=5, thinning=10)
    >>> x.shape
    (5, 4, 3)
    """
    num_samples = count("num_samples", num_samples)
    thinning = count("thinning", thinning, at_least=1)
    step, constants = hoisted(sampler.step, key, state)
    return _sample_chain(key, step, constants, state, num_samples, thinning)


def energy_and_gradient(energy_fn: EnergyFunction, position: Any) -> tuple[jax.Array, Any]:
    """E and ∇E of every chain from one pass: the chains are independent, so one sum serves all.

    Args:
        energy_fn: ``(position) -> [B]``.
        position: pytree of floats ``[B, ...]``.

    Returns:
        Energies ``[B]`` float32 and the gradient, a pytree like the position.

    Raises:
        TypeError: if the position or the energy is not floating-point.
        ValueError: if the energy has another shape than ``[B]``, or the position no batch axis.

    >>> energy, gradient = energy_and_gradient(lambda x: (x**2).sum(-1), jnp.array([[1.0, 2.0]]))
    >>> print(energy, gradient)
    [5.] [[2. 4.]]
    """
    batch_size(position)

    def total(position: Any) -> tuple[jax.Array, jax.Array]:
        energy = checked_energy(energy_fn, position)
        return energy.sum(), energy

    (_, energy), gradient = jax.value_and_grad(total, has_aux=True)(position)
    return energy, gradient


def checked_energy(
    energy_fn: EnergyFunction, position: Any, *more: Any, name: str = "energy_fn"
) -> jax.Array:
    """``energy_fn(position, *more)`` in at least float32, an error unless it is one per chain.

    Every energy that is summed, weighted or averaged goes through here: a scalar would be broadcast
    to all chains, and be wrong without a word.
    """
    energy = energy_fn(position, *more)
    batch, shape, dtype = batch_size(position), jnp.shape(energy), jnp.result_type(energy)
    if shape != (batch,):
        raise ValueError(
            f"{name} must give one energy per chain: expected shape ({batch},), got "
            f"{shape}; sum over the axes of an example and keep the first axis"
        )
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{name} must return floating-point energies, got {dtype}")
    return jnp.asarray(energy, accumulator(dtype))


def batch_size(position: Any) -> int:
    """B of a position, checked: every leaf floating-point with the same first axis."""
    leaves = jax.tree.leaves(position)
    if not all(jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in leaves):
        dtypes = [jnp.result_type(leaf).name for leaf in leaves]
        raise TypeError(f"position must be floating-point, got {', '.join(dtypes)}")
    sizes = {jnp.shape(leaf)[:1] for leaf in leaves}
    if len(sizes) != 1 or sizes == {()}:
        shapes = [jnp.shape(leaf) for leaf in leaves]
        raise ValueError(f"position: expected leaves [B, ...] of one B, got shapes {shapes}")
    return sizes.pop()[0]


def check_scaled(name: str, dtype: Any) -> None:
    """A TypeError unless the dtype of images or samples is a floating one."""
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{name} must be floating-point, got {dtype}; scale bytes to [0, 1]")


def copied(position: Any) -> Any:
    """A copy for a state: states are donated, and the caller may still hold the position."""
    return jax.tree.map(jnp.array, position)


def inner_product(a: Any, b: Any) -> jax.Array:
    """``[B]`` float32: the inner product of two positions, chain by chain."""

    def dot(a: jax.Array, b: jax.Array) -> jax.Array:
        wide = accumulator(a.dtype)
        return (a.astype(wide) * b.astype(wide)).sum(axis=tuple(range(1, a.ndim)))

    return functools.reduce(jnp.add, jax.tree.leaves(jax.tree.map(dot, a, b)))


def norm(position: Any) -> jax.Array:
    """``[B]``: the length of a gradient, chain by chain; not finite if a component is not."""
    small = 2.0**-80  # no square of a component is too large then
    reduced = jax.tree.map(lambda leaf: leaf.astype(accumulator(leaf.dtype)) * small, position)
    large = jnp.sqrt(inner_product(reduced, reduced)) / small
    squared = inner_product(position, position)
    return jnp.where(jnp.isfinite(squared), jnp.sqrt(squared), large)


def only_where(valid: jax.Array, position: Any) -> Any:
    """The position, NaN in the chains that are not valid."""
    return jax.tree.map(lambda x: jnp.where(per_chain(valid, x), x, jnp.nan), position)


def standard_normal(key: jax.Array, position: Any) -> Any:
    """Independent N(0, 1) in the shapes of a position, in at least float32.

    In half precision ``jax.random.normal`` has few values, and none beyond 3.
    """
    leaves, structure = jax.tree.flatten(position)
    keys = jax.random.split(key, len(leaves))
    draws = [
        jax.random.normal(k, leaf.shape, accumulator(leaf.dtype))
        for k, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, draws)


def moved(position: Any, by: Any, factor: Any) -> Any:
    """``position + factor·by``; the factor may be wider, the leaves keep their dtypes."""
    return jax.tree.map(lambda a, b: a + jnp.asarray(factor).astype(a.dtype) * b, position, by)


def diagonal(value: Any, position: Any) -> Any:
    """A number for every leaf, or a pytree that broadcasts against an example: ``[1, ...]``."""

    def one(v: Any, leaf: jax.Array) -> jax.Array:
        return jnp.broadcast_to(jnp.asarray(v, leaf.dtype), leaf.shape[1:])[None]

    return jax.tree.map(one, jax.tree.broadcast(value, position), position)


def scaled(tree: Any, metric: Any, factor: Any) -> Any:
    """``factor·metric·tree``; the factor may be wider, the leaves keep their dtypes."""
    return jax.tree.map(
        lambda leaf, m: leaf * (m * jnp.asarray(factor).astype(leaf.dtype)), tree, metric
    )


def accepted_or_kept(
    key: jax.Array, log_ratio: jax.Array, lost: jax.Array, new: Any, old: Any
) -> tuple[Any, jax.Array]:
    """Metropolis' choice, chain by chain: the new values with probability ``min(1, e^log_ratio)``.

    A ratio that is NaN counts as 0. Chains that are lost become NaN, and so does their probability.
    """
    probability = jnp.exp(jnp.minimum(jnp.nan_to_num(log_ratio, nan=-jnp.inf), 0))
    accepted = jax.random.uniform(key, probability.shape, probability.dtype) < probability

    def select(new: jax.Array, old: jax.Array) -> jax.Array:
        kept = jnp.where(per_chain(accepted, new), new, old)
        return jnp.where(per_chain(lost, new), jnp.nan, kept)

    return jax.tree.map(select, new, old), jnp.where(lost, jnp.nan, probability)


def wide(position: Any) -> Any:
    """The position in at least float32, in which a step is computed and rounded once."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, accumulator(leaf.dtype)), position)


def rounded(position: Any, like: Any) -> Any:
    """The position in the dtypes of another."""
    return jax.tree.map(lambda leaf, other: leaf.astype(other.dtype), position, like)


def per_chain(values: jax.Array, like: jax.Array) -> jax.Array:
    """``[B]`` to ``[B, 1, ...]``, to broadcast against an array ``[B, ...]``."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def as_schedule(name: str, value: ScalarOrSchedule, **bounds: Any) -> Schedule:
    """A constant as a schedule, checked by ``zoo._checks.number``; a schedule may fall to 0."""
    if callable(value):
        return lambda step: number(name, value(step), at_least=0)
    constant = number(name, value, **bounds)
    return lambda step: constant


def check_bounds(bounds: tuple[float, float]) -> tuple[float, float]:
    """The bounds of a box, low < high; either may be infinite."""
    low, high = bounds
    if isinstance(low, jax.core.Tracer) or isinstance(high, jax.core.Tracer):
        inside = low < high
        return jnp.where(inside, low, jnp.nan), jnp.where(inside, high, jnp.nan)
    if not low < high:
        raise ValueError(f"bounds must be (low, high) with low < high, got {bounds}")
    return low, high


@functools.partial(jax.jit, static_argnums=(1, 4))
def _run_chain(
    key: jax.Array, step: Equations, constants: list[Any], state: Any, num_steps: int
) -> tuple[Any, SamplerInfo]:
    def move(state: Any, index: jax.Array) -> tuple[Any, SamplerInfo]:
        return step(constants, jax.random.fold_in(key, index), state)

    return jax.lax.scan(move, state, jnp.arange(num_steps))


@functools.partial(jax.jit, static_argnums=(1, 4, 5))
def _sample_chain(
    key: jax.Array,
    step: Equations,
    constants: list[Any],
    state: Any,
    num_samples: int,
    thinning: int,
) -> tuple[Any, Any, SamplerInfo]:
    def keep_last(state: Any, index: jax.Array) -> tuple[Any, Any]:
        state, info = _run_chain(jax.random.fold_in(key, index), step, constants, state, thinning)
        return state, (state.position, info)

    state, (positions, info) = jax.lax.scan(keep_last, state, jnp.arange(num_samples))
    return state, positions, info
