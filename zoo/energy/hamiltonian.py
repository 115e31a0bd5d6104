"""Hamiltonian Monte Carlo: long moves along the energy, exact by rejecting.

A velocity is drawn, the pair moves by L leapfrog steps, and the end is accepted or not:

    v ~ N(0, T·M)
    L times:  v ← v - h/2·M∇E(x),   x ← x + h·v,   v ← v - h/2·M∇E(x)
    accept with min(1, exp((H - H')/T)),   H = E(x) + v·M⁻¹v/2

With L = 1 this is ``metropolis_langevin`` at the step h²/2. On E = a·x²/2 the leapfrog is stable
for h < 2/√a (M = 1), and moves of a time hL near π/√a and its multiples come back to where they
began, or to its mirror image: choose hL well below that of the slowest component.

Sources: Duane, Kennedy, Pendleton, Roweth, "Hybrid Monte Carlo", 1987; Neal, "MCMC using
Hamiltonian dynamics", 2011, arXiv 1206.1901.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from zoo._checks import count, number
from zoo._closures import Equations, hoisted
from zoo.energy.chains import (
    EnergyFunction,
    Sampler,
    SamplerInfo,
    ScalarOrSchedule,
    accepted_or_kept,
    as_schedule,
    diagonal,
    energy_and_gradient,
    inner_product,
    moved,
    norm,
    rounded,
    scaled,
    standard_normal,
    wide,
)
from zoo.energy.langevin import MetropolisState, metropolis_init


def hamiltonian_monte_carlo(
    energy_fn: EnergyFunction,
    *,
    step_size: ScalarOrSchedule,
    num_leapfrog_steps: int,
    temperature: float = 1.0,
    preconditioner: Any = 1.0,
) -> Sampler:
    """Exact for any step, and further per gradient than ``metropolis_langevin``.

    Args:
        energy_fn: ``(position) -> [B]``.
        step_size: h > 0, of time, or a schedule of which the law does not depend; an acceptance
            near 0.65 to 0.8 explores fastest (``adapt_step_size`` finds it).
        num_leapfrog_steps: L, at least 1; a step costs L gradients.
        temperature: T > 0.
        preconditioner: diagonal of M > 0, the inverse of the masses, a number or a pytree that
            broadcasts against an example; variances of the components serve best.

    Returns:
        A ``Sampler`` with ``MetropolisState``. Its info tells of the proposal.

    Raises:
        ValueError: step_size ≤ 0, num_leapfrog_steps < 1 or temperature ≤ 0; when used, an energy
            of a wrong shape.
        TypeError: when used, a position or an energy that is not floating-point.

    A proposal whose energy is not finite is rejected. A chain that cannot propose is lost, and
    becomes NaN: one whose own energy is NaN or whose gradient is not finite.

    Reference: Neal, 2011.

    >>> sampler = hamiltonian_monte_carlo(
    ...     lambda x: (x**2).sum(-1) / 2, step_size=0.3, num_leapfrog_steps=5
    ... )
    >>> state, info = sampler.step(jax.random.key(0), sampler.init(jnp.ones((3, 2))))
    >>> state.position.shape, bool((info.acceptance_probability > 0.9).all())
    ((3, 2), True)
    """
    step_size = as_schedule("step_size", step_size, above=0)
    num_leapfrog_steps = count("num_leapfrog_steps", num_leapfrog_steps, at_least=1)
    temperature = number("temperature", temperature, above=0)

    def step(key: jax.Array, state: MetropolisState) -> tuple[MetropolisState, SamplerInfo]:
        velocity_key, accept_key = jax.random.split(key)
        h = step_size(state.step)
        metric = diagonal(preconditioner, wide(state.position))

        def kicked(velocity: Any, gradient: Any) -> Any:
            return moved(velocity, scaled(wide(gradient), metric, -h / 2), 1)

        def leapfrog(moving: Any) -> Any:
            x, velocity, _, gradient = moving
            velocity = kicked(velocity, gradient)
            x = moved(x, velocity, h)
            energy, gradient = energy_and_gradient(energy_fn, rounded(x, state.position))
            return x, kicked(velocity, gradient), energy, gradient

        def kinetic(velocity: Any) -> jax.Array:
            return inner_product(velocity, jax.tree.map(jnp.divide, velocity, metric)) / 2

        noise = standard_normal(velocity_key, state.position)
        start = scaled(noise, jax.tree.map(jnp.sqrt, metric), jnp.sqrt(temperature))
        moving = wide(state.position), start, state.energy, state.gradient
        equations, constants = hoisted(leapfrog, moving)
        x, end, energy, gradient = _repeat(equations, constants, moving, num_leapfrog_steps)
        log_ratio = (state.energy - energy + kinetic(start) - kinetic(end)) / temperature
        log_ratio = jnp.where(jnp.isfinite(energy), log_ratio, -jnp.inf)
        can_move = jnp.isfinite(kinetic(start)) & jnp.isfinite(norm(kicked(start, state.gradient)))
        lost = jnp.isnan(state.energy) | ~can_move
        proposal = rounded(x, state.position), energy, gradient
        kept, probability = accepted_or_kept(accept_key, log_ratio, lost, proposal, state[:3])
        info = SamplerInfo(energy, norm(gradient), probability)
        x, energy, gradient = kept
        return MetropolisState(x, energy, gradient, state.step + 1), info

    return Sampler(functools.partial(metropolis_init, energy_fn), step)


@functools.partial(jax.jit, static_argnums=(0, 3))  # not compiled again for every step outside jit
def _repeat(function: Equations, constants: list[Any], carry: Any, times: int) -> Any:
    return jax.lax.scan(lambda x, _: (function(constants, x), None), carry, length=times)[0]
