"""Rollback of a run that diverges: back to the last good state, on with a smaller learning rate.

For training whose loss does not show divergence, such as an energy against its own samples: the
values of an evaluation are compared with limits that a healthy run never reaches.
"""

import logging
import math
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import optax

from zoo._checks import count, number
from zoo.training.checkpoint import Checkpointer
from zoo.training.state import TrainState

logger = logging.getLogger(__name__)


class Rollback:
    """Keeps the last good state of a run and returns to it; to be called in ``evaluate``.

    The parameters, the optimiser's state and the model state go back; the step number, the data and
    the keys go on, so that the run sees other batches than those it failed on. Every return
    multiplies the learning rate by ``factor``, permanently. Refused steps (a loss that is not
    finite) count as diverging: give ``Loop`` a ``max_nonfinite_steps`` longer than the time between
    evaluations.

    A run that was killed continues as if it had not been, bit for bit: a good state newer than the
    checkpoint it continues from is removed before it could be read, and made again. The older ones
    are there if ``checkpointer`` keeps all since the run's oldest checkpoint and one from before.

    Args:
        checkpointer: of a separate folder: that of ``fit`` also holds states that were never
            evaluated.
        state: of the run; its shapes (``TrainState.abstract``) suffice.
        first: gives the first state; called when a run diverges before any state was good.
        limits: name -> bound of the absolute value. A value that is not finite exceeds every bound.
        factor: in (0, 1).
        max_rollbacks: returns in this process before the run is given up.

    Raises:
        ValueError: no limits, factor outside (0, 1).
        KeyError: if the optimiser's state has no ``learning_rate``: wrap the optimiser in
            ``optax.inject_hyperparams``.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        state: TrainState,
        *,
        first: Callable[[], TrainState],
        limits: Mapping[str, float],
        factor: float = 0.5,
        max_rollbacks: int = 10,
    ) -> None:
        if not limits:
            raise ValueError("limits must name at least one measured value, got none")
        if optax.tree.get(state.optimizer_state, "learning_rate") is None:
            raise KeyError(
                "the optimiser's state has no learning_rate: expected one in a state of "
                "optax.inject_hyperparams(optimizer)(learning_rate=...)"
            )
        self._checkpointer, self._first, self._limits = checkpointer, first, dict(limits)
        self._factor = number("factor", factor, above=0, below=1)
        self._left = count("max_rollbacks", max_rollbacks)

    def __call__(self, state: TrainState, values: Mapping[str, float]) -> TrainState:
        """Keeps the state if it is good, else returns the last one that was.

        Args:
            state: after the last step; consumed if it is not good.
            values: what was measured, by name.

        Returns:
            The state to go on with.

        Raises:
            KeyError: if a name of the limits is not among the values.
            FloatingPointError: after max_rollbacks.
        """
        self._checkpointer.discard(int(state.step))
        reasons = [
            f"{name} = {values[name]:.4g}, limit {limit:g}"
            for name, limit in self._limits.items()
            if not (math.isfinite(values[name]) and abs(values[name]) <= limit)
        ]
        if refused := int(state.nonfinite_steps):
            reasons.append(f"{refused} steps refused in a row")
        if not reasons:
            self._checkpointer.save(state, position=None)
            self._checkpointer.wait()  # no checkpoint of the run may be there before its good state
            return state
        text = f"step {int(state.step)}: diverged ({'; '.join(reasons)})"
        if not self._left:
            raise FloatingPointError(f"{text} once more; give a smaller learning rate or step size")
        self._left -= 1
        rate = optax.tree.get(state.optimizer_state, "learning_rate") * self._factor
        restored = self._checkpointer.restore(state.abstract)
        good = self._first() if restored is None else restored[0]
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
