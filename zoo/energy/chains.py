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
        sampler: from ``langevin`` or one of its kind. Build it once, not in every call: one
            compiled loop is kept per sampler.
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
    return _run_chain(key, sampler, state, count("num_steps", num_steps))


def sample_chain(
    key: jax.Array, sampler: Sampler, state: Any, *, num_samples: int, thinning: int = 1
) -> tuple[Any, Any, SamplerInfo]:
    """Runs a chain and keeps every ``thinning``-th position, for estimates and diagnostics.

    R̂ and the effective sample size of the positions x: ``rhat`` and ``ess_bulk`` of
    ``blackjax.diagnostics``, called as ``rhat(x, chain_axis=1, sample_axis=0)``.

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
    return _sample_chain(key, sampler, state, num_samples, count("thinning", thinning, at_least=1))


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
    batch = batch_size(position)

    def total(position: Any) -> tuple[jax.Array, jax.Array]:
        energy = energy_fn(position)
        shape, dtype = jnp.shape(energy), jnp.result_type(energy)
        if shape != (batch,):
            raise ValueError(
                f"energy_fn must give one energy per chain: expected shape ({batch},), got "
                f"{shape}; sum over the axes of an example and keep the first axis"
            )
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(f"energy_fn must return floating-point energies, got {dtype}")
        energy = energy.astype(accumulator(dtype))
        return energy.sum(), energy

    (_, energy), gradient = jax.value_and_grad(total, has_aux=True)(position)
    return energy, gradient


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


def copied(position: Any) -> Any:
    """A copy for a state: states are donated, and the caller may still hold the position."""
    return jax.tree.map(jnp.array, position)


def inner_product(a: Any, b: Any) -> jax.Array:
    """``[B]`` float32: the inner product of two positions, chain by chain."""

    def dot(a: jax.Array, b: jax.Array) -> jax.Array:
        wide = accumulator(a.dtype)
        return (a.astype(wide) * b.astype(wide)).sum(axis=tuple(range(1, a.ndim)))

    return functools.reduce(jnp.add, jax.tree.leaves(jax.tree.map(dot, a, b)))


def standard_normal(key: jax.Array, position: Any) -> Any:
    """Independent N(0, 1) in the shapes and dtypes of a position."""
    leaves, structure = jax.tree.flatten(position)
    keys = jax.random.split(key, len(leaves))
    draws = [
        jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, draws)


def per_chain(values: jax.Array, like: jax.Array) -> jax.Array:
    """``[B]`` to ``[B, 1, ...]``, to broadcast against an array ``[B, ...]``."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def as_schedule(name: str, value: ScalarOrSchedule, **bounds: Any) -> Schedule:
    """A schedule as it is; a constant, checked as ``zoo._checks.number`` does, as a schedule."""
    if callable(value):
        return value
    constant = number(name, value, **bounds)
    return lambda step: constant


def check_bounds(bounds: tuple[float, float]) -> tuple[float, float]:
    """The bounds of a box, low < high."""
    low, high = bounds
    if not low < high:
        raise ValueError(f"bounds must be (low, high) with low < high, got {bounds}")
    return low, high


@functools.partial(jax.jit, static_argnums=(1, 3))
def _run_chain(
    key: jax.Array, sampler: Sampler, state: Any, num_steps: int
) -> tuple[Any, SamplerInfo]:
    def step(state: Any, index: jax.Array) -> tuple[Any, SamplerInfo]:
        return sampler.step(jax.random.fold_in(key, index), state)

    return jax.lax.scan(step, state, jnp.arange(num_steps))


@functools.partial(jax.jit, static_argnums=(1, 3, 4))
def _sample_chain(
    key: jax.Array, sampler: Sampler, state: Any, num_samples: int, thinning: int
) -> tuple[Any, Any, SamplerInfo]:
    def keep_last(state: Any, index: jax.Array) -> tuple[Any, Any]:
        state, info = _run_chain(jax.random.fold_in(key, index), sampler, state, thinning)
        return state, (state.position, info)

    state, (positions, info) = jax.lax.scan(keep_last, state, jnp.arange(num_samples))
    return state, positions, info
