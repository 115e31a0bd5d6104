"""Step sizes by dual averaging: until proposals are accepted as often as is wanted.

With α_t the mean acceptance of step t, made at the step size h_t, and h_1 = 10·h_0:

    e_t = (1 - 1/(t + 10))·e_{t-1} + (δ - α_t)/(t + 10)      mean error, e_0 = 0
    log h_{t+1} = log 10h_0 - √t/0.05·e_t                    the next step size to try
    log h̄_t = t^-0.75·log h_{t+1} + (1 - t^-0.75)·log h̄_{t-1}   the average, which is the result

Source: Nesterov, "Primal-dual subgradient methods for convex problems", 2009; Hoffman, Gelman, "The
No-U-Turn Sampler", 2014, arXiv 1111.4246, algorithm 5 and its constants.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zoo._checks import count, number
from zoo._closures import Equations, hoisted
from zoo.energy.chains import Sampler, SamplerInfo

SHRINKAGE, DELAY, DECAY = 0.05, 10, 0.75  # γ, t₀ and κ as published
SMALLEST, LARGEST = 1e-30, 1e30  # step sizes that are tried


class DualAveraging(NamedTuple):
    """What is known after t steps.

    Attributes:
        step: ``[]`` int32, t.
        center: ``[]`` float32, log 10h₀.
        error: ``[]`` float32, e_t.
        log_step_size: ``[]`` float32, log h_{t+1}, to be tried next.
        log_average: ``[]`` float32, log h̄_t.
    """

    step: jax.Array
    center: jax.Array
    error: jax.Array
    log_step_size: jax.Array
    log_average: jax.Array


class AdaptedStepSize(NamedTuple):
    """The end of an adaptation.

    Attributes:
        step_size: ``[]`` float32.
        state: of the sampler, where its chains are now.
        info: ``SamplerInfo`` of every step, leaves ``[num_steps, B]``.
    """

    step_size: jax.Array
    state: Any
    info: SamplerInfo


def dual_averaging_init(step_size: float | jax.Array) -> DualAveraging:
    """Before the first step; h₀ itself is tried first."""
    log_step_size = jnp.log(jnp.float32(step_size))
    center = log_step_size + jnp.log(jnp.float32(10))
    zero = jnp.zeros((), jnp.float32)
    return DualAveraging(jnp.zeros((), jnp.int32), center, zero, log_step_size, log_step_size)


def dual_averaging_update(
    state: DualAveraging, acceptance: float | jax.Array, *, target_acceptance: float | jax.Array
) -> DualAveraging:
    """The state after a step that was accepted with this probability.

    >>> state = dual_averaging_update(dual_averaging_init(1.0), 0.3, target_acceptance=0.8)
    >>> print(state.error.round(4), jnp.exp(state.log_step_size).round(4))
    0.0455 4.0289
    """
    step = state.step + 1
    t = step.astype(jnp.float32)
    share = 1 / (t + DELAY)
    error = (1 - share) * state.error + share * (target_acceptance - acceptance)
    log_step_size = state.center - jnp.sqrt(t) / SHRINKAGE * error
    log_step_size = jnp.clip(log_step_size, jnp.log(SMALLEST), jnp.log(LARGEST))
    weight = t**-DECAY
    log_average = weight * log_step_size + (1 - weight) * state.log_average
    return DualAveraging(step, state.center, error, log_step_size, log_average)


def adapt_step_size(
    key: jax.Array,
    make_sampler: Callable[[Any], Sampler],
    position: Any,
    *,
    num_steps: int,
    step_size: float = 0.1,
    target_acceptance: float = 0.8,
) -> AdaptedStepSize:
    """Finds the step size of a sampler that rejects, one for all chains, while they run.

    Args:
        key: ``[]`` typed key; consumed.
        make_sampler: ``(step size) -> Sampler``, such as ``lambda h: metropolis_langevin(energy,
            step_size=h)``; what it closes over is read in every call.
        position: where the chains start, pytree of ``[B, ...]``.
        num_steps: at least 1; some hundred, which are no samples of the law.
        step_size: h₀ > 0, tried first.
        target_acceptance: δ in (0, 1): 0.57 for ``metropolis_langevin``, 0.65 to 0.8 for
            ``hamiltonian_monte_carlo``. The average accepts a little more often.

    Returns:
        An ``AdaptedStepSize``. Chains that are lost (NaN) do not count; with all of them lost the
        step size is NaN. It grows without end for a sampler that never rejects.

    Raises:
        ValueError: num_steps < 1, step_size ≤ 0, target_acceptance outside (0, 1).

    Reference: Hoffman, Gelman, 2014.

    >>> from zoo.energy import metropolis_langevin
    >>> make = lambda h: metropolis_langevin(lambda x: (x**2).sum(-1) / 2, step_size=h)
    >>> start = jax.random.normal(jax.random.key(0), (64, 5))
    >>> found = adapt_step_size(
    ...     jax.random.key(1), make, start, num_steps=200, target_acceptance=0.57
    ... )
    >>> bool(abs(found.info.acceptance_probability[100:].mean() - 0.57) < 0.03)
    True
    """
    num_steps = count("num_steps", num_steps, at_least=1)
    step_size = number("step_size", step_size, above=0)
    target_acceptance = number("target_acceptance", target_acceptance, above=0, below=1)
    state = make_sampler(step_size).init(position)

    def move(key: jax.Array, state: Any, step_size: jax.Array) -> tuple[Any, SamplerInfo]:
        return make_sampler(step_size).step(key, state)

    averaging = dual_averaging_init(step_size)
    equations, constants = hoisted(move, key, state, averaging.log_step_size)
    return _adapt(key, equations, constants, state, averaging, target_acceptance, num_steps)


@functools.partial(jax.jit, static_argnums=(1, 6))
def _adapt(
    key: jax.Array,
    move: Equations,
    constants: list[Any],
    state: Any,
    averaging: DualAveraging,
    target_acceptance: float | jax.Array,
    num_steps: int,
) -> AdaptedStepSize:
    def step(carry: tuple[Any, DualAveraging], index: jax.Array) -> Any:
        state, averaging = carry
        step_size = jnp.exp(averaging.log_step_size)
        state, info = move(constants, jax.random.fold_in(key, index), state, step_size)
        acceptance = jnp.nanmean(info.acceptance_probability).astype(jnp.float32)
        averaging = dual_averaging_update(
            averaging, acceptance, target_acceptance=target_acceptance
        )
        return (state, averaging), info

    (state, averaging), info = jax.lax.scan(step, (state, averaging), jnp.arange(num_steps))
    return AdaptedStepSize(jnp.exp(averaging.log_average), state, info)
