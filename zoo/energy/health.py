"""Health of the chains: how divergence shows while an energy is trained.

Training an energy against its own samples has no loss that falls. What shows that a run is lost is

    gap         mean E⁻ - mean E⁺, far from 0: data and samples are told apart for good
    gradient    mean |∇E| at the samples: the landscape is too steep for the chains
    saturation  share of components at the walls of the box, beyond that of the data

All three stay bounded in a healthy run, so that fixed limits serve, such as those of
``zoo.training.rollback.Rollback``.

Whether chains of one energy have mixed is another question: ``zoo.energy.chain_agreement``.

Source: Nijkamp, Hill, Han, Zhu, Wu, "On the Anatomy of MCMC-Based Maximum Likelihood Learning of
Energy-Based Models", 2019, arXiv 1903.12370 (gap and gradient).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from zoo._checks import accumulator
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


def _share_at_walls(x: jax.Array, bounds: tuple[float, float]) -> jax.Array:
    low, high = check_bounds(bounds)
    dtype = accumulator(x.dtype)
    return jnp.where(jnp.isnan(x), jnp.nan, ((x <= low) | (x >= high)).astype(dtype)).mean()
