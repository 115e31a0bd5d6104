"""Langevin dynamics: gradient descent on the energy with noise of the right size.

    x' = x - h·M∇E(x) + √(2hT·M)·ξ,   ξ ~ N(0, 1)

With h → 0 its law is exp(-E/T)/Z. A finite step h shifts it: on E = a·x²/2 the stationary variance
is T/(a·(1 - ha/2)) instead of T/a; ``metropolis_langevin`` removes that by rejecting.

The samplers of energy-based image models choose the noise smaller than the step asks for, at the
effective temperature s²/(2h): 10⁻⁶ in the original code (h = 10, s = 0.005). That is noisy descent,
not sampling of exp(-E). They also add the noise before they take the gradient (``noise_first``), so
that a sample carries no fresh noise; on the quadratic that order has the stationary variance
s²q/(1-q), q = (1-ha)², against s²/(1-q).

Sources: Welling, Teh, "Bayesian Learning via Stochastic Gradient Langevin Dynamics", 2011; Roberts,
Tweedie, "Exponential convergence of Langevin distributions", 1996; Du, Mordatch, "Implicit
Generation and Modeling with Energy-Based Models", 2019, arXiv 1903.08689; article 6612.
"""

import functools
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from zoo._checks import choice, number
from zoo.energy.chains import (
    EnergyFunction,
    Sampler,
    SamplerInfo,
    ScalarOrSchedule,
    accepted_or_kept,
    as_schedule,
    batch_size,
    check_bounds,
    copied,
    diagonal,
    energy_and_gradient,
    inner_product,
    moved,
    norm,
    only_where,
    per_chain,
    rounded,
    scaled,
    standard_normal,
    wide,
)


class LangevinState(NamedTuple):
    """State of the unadjusted samplers.

    Attributes:
        position: pytree of ``[B, ...]``.
        step: ``[]`` int32, steps made, for schedules.
    """

    position: Any
    step: jax.Array


class MetropolisState(NamedTuple):
    """State of the adjusted samplers: the gradient is kept, a rejected step costs no second one.

    Attributes:
        position: pytree of ``[B, ...]``.
        energy: ``[B]`` float32, there.
        gradient: pytree like the position, there.
        step: ``[]`` int32, steps made.
    """

    position: Any
    energy: jax.Array
    gradient: Any
    step: jax.Array


def langevin(
    energy_fn: EnergyFunction,
    *,
    step_size: ScalarOrSchedule,
    noise_scale: ScalarOrSchedule | None = None,
    temperature: ScalarOrSchedule = 1.0,
    preconditioner: Any = 1.0,
    gradient_clip: float | None = None,
    gradient_norm_clip: float | None = None,
    noise_first: bool = False,
    bounds: tuple[float, float] | None = None,
    boundary: Literal["clip", "reflect"] = "clip",
) -> Sampler:
    """Unadjusted Langevin dynamics, ``x' = x - h·M·clip(∇E(x)) + s·√M·ξ``.

    Args:
        energy_fn: ``(position) -> [B]``.
        step_size: h > 0, or a schedule ``(step) -> h``.
        noise_scale: s ≥ 0, or a schedule; None: √(2·h·temperature), the Langevin law.
        temperature: T ≥ 0, or a schedule; unused if a noise_scale is given.
        preconditioner: diagonal of M > 0, a number or a pytree that broadcasts against an example.
        gradient_clip: bound of each component of the gradient.
        gradient_norm_clip: bound of the gradient's norm, chain by chain.
        noise_first: add the noise before the gradient is taken, as the original code does.
        bounds: (low, high) of a box for every component.
        boundary: what the box does to a position outside: ``"clip"`` to the wall (mass gathers
            there), or ``"reflect"`` at it (keeps the law of exp(-E) inside the box).

    Returns:
        A ``Sampler`` with ``LangevinState``.

    Raises:
        ValueError: step_size ≤ 0, a negative temperature or noise_scale, a clip ≤ 0, reversed
            bounds, an unknown boundary; when used, an energy of a wrong shape.
        TypeError: when used, a position or an energy that is not floating-point.

    An energy or gradient that is not finite makes its own chain NaN and no other.

    >>> sampler = langevin(lambda x: (x**2).sum(-1) / 2, step_size=0.1, noise_scale=0.0)
    >>> state, info = sampler.step(jax.random.key(0), sampler.init(jnp.array([[1.0, -2.0]])))
    >>> print(state.position, info.energy)
    [[ 0.9 -1.8]] [2.5]
    """
    step_size = as_schedule("step_size", step_size, above=0)
    temperature = as_schedule("temperature", temperature, at_least=0)
    if noise_scale is not None:
        noise_scale = as_schedule("noise_scale", noise_scale, at_least=0)
    if gradient_clip is not None:
        gradient_clip = number("gradient_clip", gradient_clip, above=0)
    if gradient_norm_clip is not None:
        gradient_norm_clip = number("gradient_norm_clip", gradient_norm_clip, above=0)
    choice("boundary", boundary, ("clip", "reflect"))
    if bounds is not None:
        bounds = check_bounds(bounds)

    def init(position: Any) -> LangevinState:
        batch_size(position)
        return LangevinState(copied(position), jnp.zeros((), jnp.int32))

    def step(key: jax.Array, state: LangevinState) -> tuple[LangevinState, SamplerInfo]:
        h = step_size(state.step)
        s = noise_scale(state.step) if noise_scale else jnp.sqrt(2 * h * temperature(state.step))
        at = state.position
        metric = diagonal(preconditioner, wide(at))
        noise = scaled(standard_normal(key, at), jax.tree.map(jnp.sqrt, metric), s)

        at = rounded(moved(wide(at), noise, 1), at) if noise_first else at
        energy, gradient = energy_and_gradient(energy_fn, at)
        length = norm(gradient)
        finite = jnp.isfinite(energy) & jnp.isfinite(length)
        gradient = _clipped(wide(gradient), gradient_clip, gradient_norm_clip, length)
        x = moved(wide(at), scaled(gradient, metric, -h), 1)
        x = x if noise_first else moved(x, noise, 1)
        if bounds is not None:
            x = jax.tree.map(lambda leaf: _contained(leaf, bounds, boundary), x)
        info = SamplerInfo(energy, length, jnp.ones_like(energy))
        return LangevinState(rounded(only_where(finite, x), at), state.step + 1), info

    return Sampler(init, step)


def metropolis_langevin(
    energy_fn: EnergyFunction,
    *,
    step_size: ScalarOrSchedule,
    temperature: float = 1.0,
    preconditioner: Any = 1.0,
) -> Sampler:
    """Metropolis-adjusted Langevin: exact for any step, at the price of rejections.

    The step of ``langevin`` is a proposal x' ~ q(·|x) = N(x - h·M∇E(x), 2hT·M), accepted with
    probability min(1, exp((E(x) - E(x'))/T)·q(x|x')/q(x'|x)).

    Args:
        energy_fn: ``(position) -> [B]``.
        step_size: h > 0, or a schedule of which the law does not depend; an acceptance near 0.57
            explores fastest.
        temperature: T > 0.
        preconditioner: diagonal of M > 0, a number or a pytree that broadcasts against an example.

    Returns:
        A ``Sampler`` with ``MetropolisState``. Its info tells of the proposal.

    Raises:
        ValueError: step_size ≤ 0 or temperature ≤ 0; when used, an energy of a wrong shape.
        TypeError: when used, a position or an energy that is not floating-point.

    A proposal whose energy is not finite is rejected. A chain that cannot propose is lost, and
    becomes NaN: one whose own energy is NaN or whose gradient is not finite.

    Reference: Roberts, Tweedie, 1996; the optimal acceptance: Roberts, Rosenthal, 1998.

    >>> sampler = metropolis_langevin(lambda x: (x**2).sum(-1) / 2, step_size=0.5)
    >>> state, info = sampler.step(jax.random.key(0), sampler.init(jnp.ones((3, 2))))
    >>> info.acceptance_probability.shape
    (3,)
    """
    step_size = as_schedule("step_size", step_size, above=0)
    temperature = number("temperature", temperature, above=0)

    def step(key: jax.Array, state: MetropolisState) -> tuple[MetropolisState, SamplerInfo]:
        noise_key, accept_key = jax.random.split(key)
        h = step_size(state.step)
        x, energy_x, gradient_x, _ = state
        metric = diagonal(preconditioner, wide(x))

        def drifted(position: Any, gradient: Any) -> Any:
            return moved(wide(position), scaled(wide(gradient), metric, -h), 1)

        def log_proposal(to: Any, position: Any, gradient: Any) -> jax.Array:
            gap = jax.tree.map(jnp.subtract, wide(to), drifted(position, gradient))
            whitened = jax.tree.map(jnp.divide, gap, metric)
            return -inner_product(gap, whitened) / (4 * h * temperature)

        noise = standard_normal(noise_key, x)
        noise = scaled(noise, jax.tree.map(jnp.sqrt, metric), jnp.sqrt(2 * h * temperature))
        proposal = rounded(moved(drifted(x, gradient_x), noise, 1), x)
        energy, gradient = energy_and_gradient(energy_fn, proposal)
        forward = log_proposal(proposal, x, gradient_x)
        log_ratio = (
            (energy_x - energy) / temperature + log_proposal(x, proposal, gradient) - forward
        )
        log_ratio = jnp.where(jnp.isfinite(energy), log_ratio, -jnp.inf)
        lost = jnp.isnan(energy_x) | ~jnp.isfinite(forward)
        new, old = (proposal, energy, gradient), (x, energy_x, gradient_x)
        kept, probability = accepted_or_kept(accept_key, log_ratio, lost, new, old)
        info = SamplerInfo(energy, norm(gradient), probability)
        x, energy, gradient = kept
        return MetropolisState(x, energy, gradient, state.step + 1), info

    return Sampler(functools.partial(metropolis_init, energy_fn), step)


def metropolis_init(energy_fn: EnergyFunction, position: Any) -> MetropolisState:
    """The state of chains that start here."""
    energy, gradient = energy_and_gradient(energy_fn, position)
    return MetropolisState(copied(position), energy, gradient, jnp.zeros((), jnp.int32))


def _contained(x: jax.Array, bounds: tuple[float, float], boundary: str) -> jax.Array:
    low, high = bounds
    if boundary == "clip":
        return jnp.clip(x, low, high)
    width = high - low
    if not isinstance(width, jax.core.Tracer) and width == math.inf:  # at most one wall
        x = x if low == -math.inf else low + jnp.abs(x - low)
        return x if high == math.inf else high - jnp.abs(high - x)
    return low + width - jnp.abs(jnp.mod(x - low, 2 * width) - width)


def _clipped(
    gradient: Any, component_bound: float | None, norm_bound: float | None, length: jax.Array
) -> Any:
    if component_bound is not None:
        gradient = jax.tree.map(lambda g: jnp.clip(g, -component_bound, component_bound), gradient)
    if norm_bound is None:
        return gradient
    if component_bound is not None:
        length = norm(gradient)
    factor = norm_bound / jnp.maximum(length, norm_bound)
    return jax.tree.map(lambda g: g * per_chain(factor, g).astype(g.dtype), gradient)
