"""Annealed importance sampling: an estimate of log Z, and so of log-likelihoods.

Chains start from exact samples of a normal density p₀ = e^{-E₀}/Z₀ and meet the energies

    E_b = (1 - b)·E₀ + b·E₁,   b from 0 to 1,

one Metropolis-adjusted Langevin step at each. The weights w = Π e^{-(E_{b'} - E_b)(x_b)} have the
mean Z₁/Z₀ whatever the steps: the estimate of Z is unbiased, that of log Z is low on average.

Source: Neal, "Annealed importance sampling", 2001.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zoo._checks import count, number
from zoo.energy.chains import EnergyFunction, checked_energy, inner_product
from zoo.energy.langevin import metropolis_langevin


class LogNormalizer(NamedTuple):
    """An estimate of log Z.

    Attributes:
        log_normalizer: ``[]`` float32.
        log_weights: ``[B]`` float32, log(w·Z₀) of every chain.
        effective_chains: ``[]`` float32, (Σw)²/Σw², between 1 and B; a small number is a warning.
        acceptance_rate: ``[]`` float32, mean over chains and steps.
    """

    log_normalizer: jax.Array
    log_weights: jax.Array
    effective_chains: jax.Array
    acceptance_rate: jax.Array


def annealed_log_normalizer(
    key: jax.Array,
    energy_fn: EnergyFunction,
    shape: tuple[int, ...],
    *,
    num_steps: int,
    step_size: float,
    scale: float = 1.0,
) -> LogNormalizer:
    """Estimates log ∫ e^{-E(x)} dx, starting from N(0, scale²) in every component.

    Args:
        key: ``[]`` typed key; consumed.
        energy_fn: ``(position [B, ...]) -> [B]``.
        shape: of the chains, ``(B, ...)``.
        num_steps: number of energies between the two; the error falls with it.
        step_size: of the Langevin steps.
        scale: standard deviation of the start; it should cover the target.

    Returns:
        A ``LogNormalizer``.

    Raises:
        ValueError: num_steps < 1, step_size or scale ≤ 0, a shape without a batch axis or without
            chains, an energy that is not ``[B]``.

    >>> energy = lambda x: (x**2).sum(-1) / 2
    >>> result = annealed_log_normalizer(
    ...     jax.random.key(0), energy, (8, 2), num_steps=4, step_size=0.5
    ... )
    >>> print(result.log_normalizer, float(jnp.log(2 * jnp.pi)))  # the start is the target
    1.83787 1.83787
    """
    num_steps = count("num_steps", num_steps, at_least=1)
    if not shape:
        raise ValueError("shape must be (B, ...), with a batch axis first, got ()")
    count("shape[0]", shape[0], at_least=1)
    step_size = number("step_size", step_size, above=0)
    scale = number("scale", scale, above=0)
    log_start = math.prod(shape[1:]) * (math.log(2 * math.pi) / 2 + jnp.log(scale))

    def start_energy(x: jax.Array) -> jax.Array:
        return inner_product(x / scale, x / scale) / 2

    def end_energy(x: jax.Array) -> jax.Array:
        return checked_energy(energy_fn, x)

    def step(carry: tuple[jax.Array, jax.Array], index: jax.Array) -> Any:
        position, log_weights = carry
        share = (index + 1) / num_steps
        gap = end_energy(position) - start_energy(position)
        log_weights = log_weights - gap.astype(jnp.float32) / num_steps

        def between(x: jax.Array) -> jax.Array:
            return (1 - share) * start_energy(x) + share * end_energy(x)

        sampler = metropolis_langevin(between, step_size=step_size)
        state, info = sampler.step(jax.random.fold_in(key, index + 1), sampler.init(position))
        return (state.position, log_weights), info.acceptance_probability.mean()

    position = scale * jax.random.normal(jax.random.fold_in(key, 0), shape)
    log_weights = jnp.full(shape[:1], log_start, jnp.float32)
    (_, log_weights), accepted = jax.lax.scan(step, (position, log_weights), jnp.arange(num_steps))
    total = jax.nn.logsumexp(log_weights)
    return LogNormalizer(
        total - jnp.log(jnp.float32(shape[0])),
        log_weights,
        jnp.exp(2 * total - jax.nn.logsumexp(2 * log_weights)),
        accepted.mean(),
    )
