"""Health of the chains: how divergence shows while an energy is trained.

Training an energy against its own samples has no loss that falls. What shows that a run is lost is

    gap         mean E⁻ - mean E⁺, far from 0: data and samples are told apart for good
    gradient    mean |∇E| at the samples: the landscape is too steep for the chains
    saturation  share of components at the walls of the box, beyond that of the data

All three stay bounded in a healthy run, so that fixed limits serve, such as those of
``zoo.training.rollback.Rollback``.

Whether chains of one energy have mixed is told by R̂ and the effective sample size
(``chain_agreement``).

Sources: Nijkamp, Hill, Han, Zhu, Wu, "On the Anatomy of MCMC-Based Maximum Likelihood Learning of
Energy-Based Models", 2019, arXiv 1903.12370 (gap and gradient);
Gelman et al., "Bayesian Data Analysis", third edition, 2013, section 11.4; Geyer, "Practical Markov
chain Monte Carlo", 1992.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zoo._checks import accumulator, widened
from zoo.energy.chains import EnergyFunction, check_bounds, energy_and_gradient, norm


class ChainHealth(NamedTuple):
    """What a diverging run shows first.

    Attributes:
        energy_gap: ``[]``, at least float32, mean E⁻ - mean E⁺.
        gradient_norm: ``[]``, mean over the samples of |∇E|.
        excess_saturation: ``[]``, share of the samples' components at a bound less that of
            the data; 0 without bounds.
    """

    energy_gap: jax.Array
    gradient_norm: jax.Array
    excess_saturation: jax.Array


def chain_health(
    energy_fn: EnergyFunction,
    data: jax.Array,
    samples: jax.Array,
    *,
    bounds: tuple[float, float] | None = None,
) -> ChainHealth:
    """Compares samples with data.

    Args:
        energy_fn: ``(position) -> [B]``.
        data: ``[B, ...]`` floating.
        samples: ``[S, ...]``, such as samples from the replay buffer.
        bounds: (low, high) of the chains' box.

    Returns:
        A ``ChainHealth``.

    Raises:
        ValueError: reversed bounds; an energy of a wrong shape.
        TypeError: positions or an energy that are not floating-point.

    >>> energy = lambda x: (x**2).sum(-1) / 2
    >>> health = chain_health(energy, jnp.zeros((4, 1)), jnp.ones((2, 1)), bounds=(-1.0, 1.0))
    >>> print(*health)
    0.5 1.0 1.0
    """
    energy_samples, gradient = energy_and_gradient(energy_fn, samples)
    energy_data, _ = energy_and_gradient(energy_fn, data)
    saturation = jnp.zeros((), energy_data.dtype)
    if bounds is not None:
        saturation = _share_at_walls(samples, bounds) - _share_at_walls(data, bounds)
    return ChainHealth(
        energy_samples.mean() - energy_data.mean(),
        norm(gradient).mean(),
        saturation,
    )


class ChainAgreement(NamedTuple):
    """What tells whether chains have mixed.

    Attributes:
        r_hat: ``[...]``, at least float32; 1 if mixed, 1.01 is a common limit.
        effective_samples: ``[...]``, how many independent samples these are worth.
    """

    r_hat: jax.Array
    effective_samples: jax.Array


def chain_agreement(positions: jax.Array) -> ChainAgreement:
    """R̂ and the effective sample size of every component, each chain split into two halves.

        R̂ = √(V/W),   V = (n-1)/n·W + variance of the M means,   W = mean variance of the M halves
        M·n/τ,        τ = -1 + 2·Σ_k (ρ_2k + ρ_2k+1),   ρ_t = 1 - (W - mean covariance at lag t)/V

    The sum ends where a pair is not positive, and is of the least pair so far.

    Args:
        positions: ``[S, B, ...]`` floating, as ``sample_chain`` gives them; of an odd S the first
            is left out.

    Returns:
        A ``ChainAgreement``. A half that never moved gives R̂ = ∞, or NaN if all of them stayed at
        one place; then and for NaN the effective sample size is NaN.

    Raises:
        ValueError: if there are fewer than 4 samples, or no chain.
        TypeError: if the positions are not floating-point.

    >>> x = jax.random.normal(jax.random.key(0), (500, 4))
    >>> r_hat, effective = chain_agreement(x)
    >>> print(r_hat.round(2), effective > 1500, chain_agreement(0 * x + 0.1).r_hat)
    1.0 True nan
    """
    _, x = widened("positions", positions)
    if x.ndim < 2 or len(x) < 4 or not x.shape[1]:
        raise ValueError(f"positions must be [S, B, ...] with S ≥ 4 and B ≥ 1, got {x.shape}")
    n, chains = len(x) // 2, 2 * x.shape[1]
    x = x[len(x) % 2 :].reshape(2, n, *x.shape[1:])
    x = jnp.moveaxis(x, 1, 0).reshape(n, chains, *x.shape[3:])
    x, first = x - x[:1], x[0]  # of a constant exactly 0
    mean = x.mean(axis=0, keepdims=True)
    spectrum = jnp.abs(jnp.fft.rfft(x - mean, 2 * n, axis=0)) ** 2
    covariance = jnp.fft.irfft(spectrum, 2 * n, axis=0)[:n].mean(axis=1) / (n - 1)
    within = x.var(axis=0, ddof=1).mean(axis=0)
    total = within * (n - 1) / n + (mean[0] + first - first[:1]).var(axis=0, ddof=1)
    correlation = 1 - (within[None] - covariance) / total[None]
    correlation = correlation.at[0].set(1.0)
    pairs = correlation[: n - n % 2].reshape(n // 2, 2, *correlation.shape[1:]).sum(axis=1)
    pairs = jnp.where(jax.lax.cummin(pairs) > 0, jax.lax.cummin(pairs), 0)
    time = jnp.maximum(2 * pairs.sum(axis=0) - 1, 1 / math.log10(chains * n))
    r_hat = jnp.sqrt(total / within)
    still = (x == x[:1]).all(axis=0).any(axis=0)
    return ChainAgreement(
        jnp.where(still & (total > 0), jnp.inf, r_hat),
        jnp.where(still | jnp.isnan(r_hat), jnp.nan, chains * n / time),
    )


def _share_at_walls(x: jax.Array, bounds: tuple[float, float]) -> jax.Array:
    low, high = check_bounds(bounds)
    dtype = accumulator(x.dtype)
    return jnp.where(jnp.isnan(x), jnp.nan, ((x <= low) | (x >= high)).astype(dtype)).mean()
