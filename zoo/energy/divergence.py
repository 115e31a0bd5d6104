"""Divergence: how it shows, and the way back to the last good state with a smaller step.

Training an energy against its own samples has no loss that falls; what tells a run that is lost is

    gap         mean E⁻ - mean E⁺, far from 0: one side has won for good
    gradient    mean |∇E| at the samples: the chains overshoot in a landscape too steep for them
    saturation  share of components at the walls of the box, beyond that of the data

A healthy run keeps all three bounded for ever, so that fixed limits serve. What helps is known from
practice: go back to a checkpoint before the trouble, buffer of chains included, and go on with a
smaller learning rate.

Source: Nijkamp, Hill, Han, Zhu, Wu, «On the Anatomy of MCMC-Based Maximum Likelihood Learning of
Energy-Based Models», 2019, arXiv 1903.12370 (gap and gradient); Grathwohl et al., 2019, arXiv
1912.03263 (restarts).
"""

import logging
import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from zoo.energy.sampling import EnergyFunction, energy_and_gradient, rows_dot
from zoo.training import Checkpointer, TrainState

logger = logging.getLogger(__name__)


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
    """Measures data against samples.

    Args:
        energy_fn: ``(position) -> [B]``.
        data: ``[B, ...]`` floating.
        samples: ``[S, ...]``, such as rows of the replay buffer.
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
        low, high = bounds
        if not low < high:
            raise ValueError(f"bounds must be (low, high) with low < high, got {bounds}")
        saturation = _share(samples, low, high) - _share(data, low, high)
    return ChainHealth(
        energy_samples.mean() - energy_data.mean(),
        jnp.sqrt(rows_dot(gradient, gradient)).mean(),
        saturation,
    )


class Rollback:
    """Keeps the last good state of a run, and goes back to it: ``after_evaluation`` of ``fit``.

    The parameters, the optimiser's state and the model state (with the chains) go back, the step
    number, the data and the keys go on, so that the run meets other noise than the one it failed
    on. Every return multiplies the learning rate by ``factor``, for good. Refused steps (a loss
    that is not finite) count as diverging: give ``fit`` a ``max_nonfinite_steps`` longer than the
    time between evaluations.

    Args:
        checkpointer: of a folder of its own, as that of ``fit`` also keeps states that nobody has
            looked at.
        state: the first state; saved as good if the folder is empty.
        limits: name -> bound of the absolute value, for names that ``evaluate`` returns. A value
            that is not finite is beyond every bound.
        factor: in (0, 1).
        max_rollbacks: returns in this process before the run is given up.

    Raises:
        ValueError: no limits, factor outside (0, 1).
        KeyError: if the optimiser has no ``learning_rate`` to set: wrap it in
            ``optax.inject_hyperparams``.

    A run and its rollback: ``fit(…, evaluate=evaluate, after_evaluation=rollback)``, where
    ``evaluate`` returns the fields of ``chain_health`` among others.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        state: TrainState,
        *,
        limits: Mapping[str, float],
        factor: float = 0.5,
        max_rollbacks: int = 10,
    ) -> None:
        if not limits:
            raise ValueError("limits must name at least one value that evaluate returns, got none")
        if not 0 < factor < 1:
            raise ValueError(f"factor must be in (0, 1), got {factor}")
        if optax.tree.get(state.optimizer_state, "learning_rate") is None:
            raise KeyError(
                "the optimiser's state has no learning_rate: expected one in a state of "
                "optax.inject_hyperparams(optimizer)(learning_rate=…)"
            )
        self._checkpointer, self._limits = checkpointer, dict(limits)
        self._factor, self._left = factor, max_rollbacks
        if not checkpointer.steps():
            checkpointer.save(state, position=None)

    def __call__(self, state: TrainState, values: Mapping[str, float]) -> TrainState:
        """Keeps the state if it is good, else gives the last that was.

        Args:
            state: after the last step; consumed if it is not good.
            values: what ``evaluate`` returned.

        Returns:
            The state to go on with.

        Raises:
            KeyError: a limit for a name that ``evaluate`` does not return.
            FloatingPointError: after max_rollbacks.
        """
        reasons = [
            f"{name} = {values[name]:.4g}, limit {limit:g}"
            for name, limit in self._limits.items()
            if not (math.isfinite(values[name]) and abs(values[name]) <= limit)
        ]
        if refused := int(state.nonfinite_steps):
            reasons.append(f"{refused} steps refused in a row")
        if not reasons:
            self._checkpointer.save(state, position=None)
            return state
        text = f"step {int(state.step)}: diverged ({'; '.join(reasons)})"
        if not self._left:
            raise FloatingPointError(f"{text} once more; give a smaller learning rate or step size")
        self._left -= 1
        rate = optax.tree.get(state.optimizer_state, "learning_rate") * self._factor
        restored = self._checkpointer.restore(state.abstract)
        assert restored is not None  # the constructor saved one
        good = restored[0]
        logger.warning(
            "%s; back to the state of step %d, learning rate %.3g",
            text,
            int(good.step),
            float(rate),
        )
        return good._replace(
            step=state.step,
            nonfinite_steps=jnp.zeros_like(state.nonfinite_steps),
            optimizer_state=optax.tree.set(good.optimizer_state, learning_rate=rate),
        )


def _share(x: jax.Array, low: float, high: float) -> jax.Array:
    at_walls = (x <= low) | (x >= high)
    return at_walls.mean(dtype=jnp.promote_types(x.dtype, jnp.float32))
