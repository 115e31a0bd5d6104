"""Stochastic-gradient Langevin dynamics: a posterior sampled from minibatches.

    E(x) = prior(x) + Σ_i e(x, d_i)  ≈  prior(x) + N/n · Σ_{i in a random minibatch of n} e(x, d_i)

The gradient of the right-hand side is unbiased; its noise adds to the Langevin noise and vanishes
beside it as the step decreases, h_t = a(b + t)^-0.55 or so.

Source: Welling, Teh, "Bayesian Learning via Stochastic Gradient Langevin Dynamics", 2011.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from zoo._checks import accumulator, count
from zoo.energy.chains import (
    Sampler,
    SamplerInfo,
    ScalarOrSchedule,
    batch_size,
    checked_energy,
)
from zoo.energy.langevin import LangevinState, langevin


def stochastic_gradient_langevin(
    prior_fn: Callable[[Any], jax.Array],
    example_fn: Callable[[Any, Any], jax.Array],
    data: Any,
    *,
    minibatch_size: int,
    step_size: ScalarOrSchedule,
    temperature: ScalarOrSchedule = 1.0,
    preconditioner: Any = 1.0,
) -> Sampler:
    """Langevin dynamics whose gradient sees ``minibatch_size`` random examples a step.

    Args:
        prior_fn: ``(position) -> [B]``.
        example_fn: ``(position, minibatch) -> [B, n]``, the energy of each example for each chain.
        data: pytree of ``[N, ...]``; a copy is kept.
        minibatch_size: n, drawn with replacement; the chains share them.
        step_size: h > 0, or a schedule.
        temperature: T ≥ 0, or a schedule.
        preconditioner: see ``langevin``.

    Returns:
        A ``Sampler`` with ``LangevinState``; the energy of its info is the estimate.

    Raises:
        ValueError: minibatch_size < 1, empty data, and what ``langevin`` refuses;
            when used, energies of other shapes.
        TypeError: when used, a position or an energy that is not floating-point.

    The mean of a Gaussian: prior x²/2, examples (x - d)²/2.

    >>> data = jnp.arange(10.0)
    >>> sampler = stochastic_gradient_langevin(
    ...     lambda x: (x**2).sum(-1) / 2,
    ...     lambda x, d: (x - d[None]) ** 2 / 2,
    ...     data,
    ...     minibatch_size=5,
    ...     step_size=0.01,
    ... )
    >>> state, info = sampler.step(jax.random.key(0), sampler.init(jnp.zeros((3, 1))))
    >>> info.energy.shape
    (3,)
    """
    minibatch_size = count("minibatch_size", minibatch_size, at_least=1)
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(data)}
    if len(sizes) != 1 or sizes & {(), (0,)}:
        raise ValueError(
            f"data must hold arrays [N, ...] of one N > 0, got first axes {sorted(sizes)}"
        )
    ((total,),) = sizes
    data = jax.tree.map(jnp.array, data)

    def sampler(minibatch: Any) -> Sampler:
        def energy_fn(position: Any) -> jax.Array:
            examples = example_fn(position, minibatch)
            expected, got = (batch_size(position), minibatch_size), jnp.shape(examples)
            if got != expected:
                raise ValueError(
                    "example_fn must give one energy per chain and example: expected shape "
                    f"{expected}, got {got}"
                )
            mean = examples.mean(axis=1, dtype=accumulator(examples.dtype))
            return checked_energy(prior_fn, position, name="prior_fn") + total * mean

        return langevin(
            energy_fn,
            step_size=step_size,
            temperature=temperature,
            preconditioner=preconditioner,
        )

    def step(key: jax.Array, state: LangevinState) -> tuple[LangevinState, SamplerInfo]:
        draw_key, step_key = jax.random.split(key)
        rows = jax.random.randint(draw_key, (minibatch_size,), 0, total)
        return sampler(jax.tree.map(lambda leaf: leaf[rows], data)).step(step_key, state)

    return Sampler(sampler(data).init, step)
