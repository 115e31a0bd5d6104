"""Composition of energies: and, or, not, and in-painting.

Densities multiply where energies add, so that separately learned concepts combine untrained:

    p₁(x)·p₂(x)      E₁ + E₂                   both
    p₁(x)/p₂(x)^w    E₁ - w·E₂                 the first, not the second
    p₁(x) + p₂(x)    -log(e^{-E₁} + e^{-E₂})   either (weights e^{-E} as they are, without log Z)

Source: Hinton, "Training products of experts by minimizing contrastive divergence", 2002; Du, Li,
Mordatch, "Compositional visual generation with energy based models", 2020, arXiv 2004.06030.

A conditional energy E(x, y) also classifies: y is the label of least energy, which is right if the
labels are equally frequent and share one normaliser; min_y E(x, y) detects outliers.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from zoo._checks import count, number
from zoo.energy.chains import EnergyFunction, batch_size, checked_energy


def product_energy(
    energy_fns: Sequence[EnergyFunction], *, weights: Sequence[float | jax.Array] | None = None
) -> EnergyFunction:
    """``Σ_i w_i·E_i(x)``: the product of the densities; a negative weight negates a concept.

    Args:
        energy_fns: each ``(position) -> [B]``.
        weights: one for each, 1 if not given; a number, or ``[B]`` with one per example.

    Returns:
        An energy function.

    Raises:
        ValueError: no energies, or another number of weights; when used, energies or weights of
            other shapes.

    >>> both = product_energy([lambda x: x.sum(-1), lambda x: (x**2).sum(-1)], weights=[1, -2])
    >>> print(both(jnp.array([[1.0, 2.0]])))
    [-7.]
    """
    weights = [1.0] * len(energy_fns) if weights is None else [*weights]
    weights = [w if jnp.ndim(w) else number("weights", w) for w in weights]
    _check_given(energy_fns)
    if len(weights) != len(energy_fns):
        raise ValueError(
            f"weights: expected one for each of {len(energy_fns)} energies, got {len(weights)}"
        )

    def energy(position: Any) -> jax.Array:
        energies = [checked_energy(e, position) for e in energy_fns]
        for weight in weights:
            if jnp.shape(weight) not in ((), energies[0].shape):
                raise ValueError(
                    f"weights: expected numbers or shape {energies[0].shape}, one for each "
                    f"example, got {jnp.shape(weight)}"
                )
        first, *rest = (w * e for w, e in zip(weights, energies, strict=True))
        return sum(rest, first)

    return energy


def mixture_energy(energy_fns: Sequence[EnergyFunction]) -> EnergyFunction:
    """``-log Σ_i e^{-E_i(x)}``: the sum of the unnormalised densities.

    Args, Returns, Raises: as ``product_energy``, without weights.

    >>> either = mixture_energy([lambda x: 0 * x.sum(-1), lambda x: 0 * x.sum(-1)])
    >>> print(either(jnp.ones((1, 2))))
    [-0.6931]
    """
    _check_given(energy_fns)

    def energy(position: Any) -> jax.Array:
        return -jax.nn.logsumexp(
            jnp.stack([-checked_energy(e, position) for e in energy_fns]), axis=0
        )

    return energy


def clamped_energy(energy_fn: EnergyFunction, known: jax.Array, mask: jax.Array) -> EnergyFunction:
    """In-painting: the energy of the free components, the others fixed at their known values.

    The known components have no gradient, but samplers still add noise to them; restore them at
    the end with ``jnp.where(mask, known, position)``.

    Args:
        energy_fn: ``(position) -> [B]``.
        known: values that broadcast against the position.
        mask: bool, True where known; broadcasts against the position.

    Returns:
        An energy function.

    Raises:
        TypeError: a mask that is not bool.
        ValueError: when used, values or a mask that do not broadcast against the position.

    >>> known, mask = jnp.array([[5.0, 0.0]]), jnp.array([[True, False]])
    >>> energy = clamped_energy(lambda x: x.sum(-1), known, mask)
    >>> print(energy(jnp.ones((1, 2))))
    [6.]
    """
    if jnp.result_type(mask) != jnp.bool_:
        raise TypeError(f"mask must be bool, True where known, got {jnp.result_type(mask)}")

    def energy(position: jax.Array) -> jax.Array:
        shape = jnp.broadcast_shapes(jnp.shape(known), jnp.shape(mask), position.shape)
        if shape != position.shape:
            raise ValueError(
                f"known and mask must broadcast against the position {position.shape}, got "
                f"{jnp.shape(known)} and {jnp.shape(mask)}"
            )
        return energy_fn(jnp.where(mask, jnp.asarray(known, position.dtype), position))

    return energy


def energies_by_label(
    energy_fn: Callable[[Any, jax.Array], jax.Array], position: Any, *, num_classes: int
) -> jax.Array:
    """E(x, y) for every label y: ``argmin`` classifies, ``min`` is the energy of any of them.

    Args:
        energy_fn: ``(position, labels [B]) -> [B]``, such as a ``ResNetEnergy`` with classes in
            evaluation mode.
        position: pytree of ``[B, ...]``.
        num_classes: K, at least 1; the labels are evaluated one after the other.

    Returns:
        ``[B, K]``.

    Raises:
        ValueError: num_classes < 1, energies that are not ``[B]``.

    >>> energy = lambda x, y: (x[:, 0] - y) ** 2
    >>> energies_by_label(energy, jnp.array([[0.0], [1.9]]), num_classes=3).argmin(axis=1)
    Array([0, 2], dtype=int32)
    """
    num_classes = count("num_classes", num_classes, at_least=1)
    batch = batch_size(position)
    energies = jax.lax.map(
        lambda label: checked_energy(energy_fn, position, jnp.full(batch, label)),
        jnp.arange(num_classes),
    )
    return energies.T


def _check_given(energy_fns: Sequence[EnergyFunction]) -> None:
    if not energy_fns:
        raise ValueError("energy_fns must hold at least one energy function, got none")
