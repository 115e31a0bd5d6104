"""Underdamped Langevin dynamics: a position with a velocity, integrated as BAOAB.

    dx = v dt,   dv = -∇E dt - γ v dt + √(2γT) dW

One step of size h: B half a kick -h/2·∇E; A half a drift h/2·v; O the friction and noise, exactly,
v ← c·v + √(T(1-c²))·ξ with c = exp(-γh); A; B. One gradient a step, for the second B, is kept for
the first B of the next. On quadratic energies the law of the position is exact for every stable
step (h²a < 4), that of the velocity has the variance T·(1 - h²a/4).

Source: Leimkuhler, Matthews, "Rational construction of stochastic numerical methods for molecular
sampling", 2013, arXiv 1203.5428.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zoo._checks import number
from zoo.energy.chains import (
    EnergyFunction,
    Sampler,
    SamplerInfo,
    copied,
    energy_and_gradient,
    moved,
    norm,
    only_where,
    rounded,
    standard_normal,
    wide,
)


class UnderdampedState(NamedTuple):
    """Position, velocity and the gradient there.

    Attributes:
        position: pytree of ``[B, ...]``.
        velocity: like the position.
        gradient: like the position.
    """

    position: Any
    velocity: Any
    gradient: Any


def underdamped_langevin(
    energy_fn: EnergyFunction, *, step_size: float, friction: float, temperature: float = 1.0
) -> Sampler:
    """BAOAB: explores further per gradient than ``langevin``, and its position law is closer.

    Args:
        energy_fn: ``(position) -> [B]``.
        step_size: h > 0, of time (its square plays the role of ``langevin``'s step).
        friction: γ > 0; of the order of the slowest frequency explores fastest.
        temperature: T ≥ 0.

    Returns:
        A ``Sampler`` with ``UnderdampedState``; ``init`` starts at rest.

    Raises:
        ValueError: step_size ≤ 0, friction ≤ 0, temperature < 0; when used, a wrong energy shape.
        TypeError: when used, a position or an energy that is not floating-point.

    An energy or gradient that is not finite makes its own chain NaN and no other.

    >>> sampler = underdamped_langevin(lambda x: (x**2).sum(-1) / 2, step_size=0.5, friction=1.0)
    >>> state, info = sampler.step(jax.random.key(0), sampler.init(jnp.ones((3, 2))))
    >>> state.velocity.shape
    (3, 2)
    """
    step_size = number("step_size", step_size, above=0)
    friction = number("friction", friction, above=0)
    temperature = number("temperature", temperature, at_least=0)

    def init(position: Any) -> UnderdampedState:
        _, gradient = energy_and_gradient(energy_fn, position)
        return UnderdampedState(copied(position), jax.tree.map(jnp.zeros_like, position), gradient)

    def step(key: jax.Array, state: UnderdampedState) -> tuple[UnderdampedState, SamplerInfo]:
        decay = jnp.exp(-friction * step_size)
        velocity = moved(wide(state.velocity), wide(state.gradient), -step_size / 2)
        position = moved(wide(state.position), velocity, step_size / 2)
        velocity = jax.tree.map(lambda v: v * decay.astype(v.dtype), velocity)
        kick = jnp.sqrt(temperature * -jnp.expm1(-2 * friction * step_size))
        velocity = moved(velocity, standard_normal(key, velocity), kick)
        position = rounded(moved(position, velocity, step_size / 2), state.position)
        energy, gradient = energy_and_gradient(energy_fn, position)
        velocity = rounded(moved(velocity, wide(gradient), -step_size / 2), state.velocity)
        length = norm(gradient)
        finite = jnp.isfinite(energy) & jnp.isfinite(length)
        info = SamplerInfo(energy, length, jnp.ones_like(energy))
        position, velocity = only_where(finite, (position, velocity))
        return UnderdampedState(position, velocity, gradient), info

    return Sampler(init, step)
