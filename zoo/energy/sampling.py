"""What all samplers of an energy share: the sampler's form, one gradient, and the chain.

An energy E gives the density p(x) = exp(-E(x)/T) / Z. Its samplers have blackjax's form,

    state = sampler.init(position)
    state, info = sampler.step(key, state)

and move B chains at once: ``position`` is a pytree of ``[B, ...]`` and ``energy_fn(position) ->
[B]`` treats every row by itself. The loop is one ``lax.scan``; n steps cost n gradients.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

EnergyFunction = Callable[..., jax.Array]
Schedule = Callable[[jax.Array], Any]  # step number -> value
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
    """Runs a chain and keeps its end alone: what training and generation need.

    Args:
        key: ``[]`` typed key; consumed.
        sampler: from ``langevin`` or one of its kind. One compiled loop is kept per sampler: build
            it once, not once a call.
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
    _check_count("num_steps", num_steps, 0)
    return _run_chain(key, sampler, state, num_steps)


def sample_chain(
    key: jax.Array, sampler: Sampler, state: Any, *, num_samples: int, thinning: int = 1
) -> tuple[Any, Any, SamplerInfo]:
    """Runs a chain and keeps every ``thinning``-th position: what estimates and diagnostics need.

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
    _check_count("num_samples", num_samples, 0)
    _check_count("thinning", thinning, 1)
    return _sample_chain(key, sampler, state, num_samples, thinning)


def energy_and_gradient(energy_fn: EnergyFunction, position: Any) -> tuple[jax.Array, Any]:
    """E and its gradient from one pass: the rows are independent, so one sum serves all.

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
                f"energy_fn must give one energy a row: expected shape ({batch},), got {shape}; "
                "sum over the axes of an example and keep the first axis"
            )
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(f"energy_fn must return floating-point energies, got {dtype}")
        energy = energy.astype(jnp.promote_types(dtype, jnp.float32))
        return energy.sum(), energy

    (_, energy), gradient = jax.value_and_grad(total, has_aux=True)(position)
    return energy, gradient


def batch_size(position: Any) -> int:
    """B of a position, checked: every leaf floating-point with the same first axis."""
    leaves = jax.tree.leaves(position)
    if not leaves:
        raise ValueError("position must hold at least one array [B, ...], got an empty tree")
    for leaf in leaves:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(f"position must be floating-point, got {jnp.result_type(leaf)}")
    sizes = {jnp.shape(leaf)[:1] for leaf in leaves}
    if len(sizes) > 1 or sizes == {()}:
        shapes = [jnp.shape(leaf) for leaf in leaves]
        raise ValueError(f"position: expected leaves [B, ...] of one B, got shapes {shapes}")
    return sizes.pop()[0]


def own(position: Any) -> Any:
    """A copy for a state: states are donated, and the caller may still hold the position."""
    return jax.tree.map(jnp.array, position)


def rows_dot(a: Any, b: Any) -> jax.Array:
    """``[B]`` float32: the inner product of two positions, row by row."""

    def dot(a: jax.Array, b: jax.Array) -> jax.Array:
        wide = jnp.promote_types(a.dtype, jnp.float32)
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


def at_step(value: ScalarOrSchedule, step: jax.Array) -> Any:
    """The value of a constant or a schedule at a step."""
    return value(step) if callable(value) else value


def check_scalar(name: str, value: Any, *, positive: bool = True) -> None:
    """Refuses a plain number that is not positive (or negative); schedules pass."""
    if isinstance(value, int | float) and not (value > 0 if positive else value >= 0):
        wanted = "greater than 0" if positive else "at least 0"
        raise ValueError(f"{name} must be {wanted}, got {value}")


def _check_count(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


@functools.partial(jax.jit, static_argnums=(1, 3))
def _run_chain(
    key: jax.Array, sampler: Sampler, state: Any, num_steps: int
) -> tuple[Any, SamplerInfo]:
    def step(state: Any, number: jax.Array) -> tuple[Any, SamplerInfo]:
        return sampler.step(jax.random.fold_in(key, number), state)

    return jax.lax.scan(step, state, jnp.arange(num_steps))


@functools.partial(jax.jit, static_argnums=(1, 3, 4))
def _sample_chain(
    key: jax.Array, sampler: Sampler, state: Any, num_samples: int, thinning: int
) -> tuple[Any, Any, SamplerInfo]:
    def kept(state: Any, number: jax.Array) -> tuple[Any, Any]:
        state, info = _run_chain(jax.random.fold_in(key, number), sampler, state, thinning)
        return state, (state.position, info)

    state, (positions, info) = jax.lax.scan(kept, state, jnp.arange(num_samples))
    return state, positions, info
