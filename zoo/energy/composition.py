"""Energies made of energies: and, or, not, and fixed parts.

Densities multiply where energies add, so that concepts learned apart combine without training:

    p₁(x)·p₂(x)      E₁ + E₂                   both
    p₁(x)/p₂(x)^w    E₁ - w·E₂                 the first, not the second
    p₁(x) + p₂(x)    -log(e^{-E₁} + e^{-E₂})   either (weights e^{-E} as they are, without log Z)

Source: Hinton, «Training products of experts by minimizing contrastive divergence», 2002; Du, Li,
Mordatch, «Compositional visual generation with energy based models», 2020, arXiv 2004.06030.

A conditional energy E(x, y) also classifies: y is the label of least energy, which is right if the
labels are equally frequent and share one normaliser; min_y E(x, y) tells outliers.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from zoo.energy.sampling import EnergyFunction, batch_size


def product_energy(
    energy_fns: Sequence[EnergyFunction], *, weights: Sequence[float | jax.Array] | None = None
) -> EnergyFunction:
    """``Σ_i w_i·E_i(x)``: the product of the densities; a negative weight negates a concept.

    Args:
        energy_fns: each ``(position) -> [B]``.
        weights: one for each, 1 if not given; a number, or ``[B]`` with one for every row.

    Returns:
        An energy function.

    Raises:
        ValueError: no energies, or another number of weights.

    >>> both = product_energy([lambda x: x.sum(-1), lambda x: (x**2).sum(-1)], weights=[1, -2])
    >>> print(both(jnp.array([[1.0, 2.0]])))
    [-7.]
    """
    weights = [1.0] * len(energy_fns) if weights is None else [*weights]
    if not energy_fns or len(weights) != len(energy_fns):
        raise ValueError(
            f"weights: expected one for each of {len(energy_fns)} energies, got {len(weights)}"
            if energy_fns
            else "energy_fns must hold at least one energy function, got none"
        )

    def energy(position: Any) -> jax.Array:
        first, *rest = (w * e(position) for w, e in zip(weights, energy_fns, strict=True))
        return sum(rest, first)

    return energy


def mixture_energy(energy_fns: Sequence[EnergyFunction]) -> EnergyFunction:
    """``-log Σ_i e^{-E_i(x)}``: the sum of the unnormalised densities.

    Args:
        energy_fns: each ``(position) -> [B]``.

    Returns:
        An energy function.

    Raises:
        ValueError: no energies.

    >>> either = mixture_energy([lambda x: 0 * x.sum(-1), lambda x: 0 * x.sum(-1)])
    >>> print(either(jnp.ones((1, 2))))
    [-0.6931]
    """
    if not energy_fns:
        raise ValueError("energy_fns must hold at least one energy function, got none")

    def energy(position: Any) -> jax.Array:
        return -jax.nn.logsumexp(jnp.stack([-e(position) for e in energy_fns]), axis=0)

    return energy


def clamped_energy(energy_fn: EnergyFunction, known: jax.Array, mask: jax.Array) -> EnergyFunction:
    """In-painting: the energy of the free components, the others held at their known values.

    A sampler of it leaves the gradient's zeros alone but still adds noise to the known components;
    put them back at the end with ``jnp.where(mask, known, position)``.

    Args:
        energy_fn: ``(position) -> [B]``.
        known: values that broadcast against the position.
        mask: bool, True where known; broadcasts against the position.

    Returns:
        An energy function.

    Raises:
        TypeError: a mask that is not bool.

    >>> known, mask = jnp.array([[5.0, 0.0]]), jnp.array([[True, False]])
    >>> energy = clamped_energy(lambda x: x.sum(-1), known, mask)
    >>> print(energy(jnp.ones((1, 2))))
    [6.]
    """
    if jnp.result_type(mask) != jnp.bool_:
        raise TypeError(f"mask must be bool, True where known, got {jnp.result_type(mask)}")
    return lambda position: energy_fn(jnp.where(mask, known, position))


def energies_by_label(
    energy_fn: Callable[[Any, jax.Array], jax.Array], position: Any, *, num_classes: int
) -> jax.Array:
    """E(x, y) for every label y: ``argmin`` classifies, ``min`` is the energy of any of them.

    Args:
        energy_fn: ``(position, labels [B]) -> [B]``, such as a ``ResNetEnergy`` with classes in
            evaluation mode.
        position: pytree of ``[B, ...]``.
        num_classes: K, at least 1; the labels are looked at one after the other.

    Returns:
        ``[B, K]``.

    Raises:
        ValueError: num_classes < 1.

    >>> energy = lambda x, y: (x[:, 0] - y) ** 2
    >>> energies_by_label(energy, jnp.array([[0.0], [1.9]]), num_classes=3).argmin(axis=1)
    Array([0, 2], dtype=int32)
    """
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    rows = batch_size(position)
    found = jax.lax.map(
        lambda label: energy_fn(position, jnp.full(rows, label)), jnp.arange(num_classes)
    )
    return found.T
