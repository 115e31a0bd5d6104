"""NT-ASGD: SGD that begins to average its parameters when the validation loss stagnates.

    triggered at validation n:   loss_n > min(loss_1 … loss_{n - patience - 1})
    from then on, at each step:  terms += 1;  average += (parameters - average) / terms

Steps go on from the parameters themselves, at the same learning rate; the average is what is
evaluated. Before the trigger there is none.

Source: Stephen Merity, Nitish Shirish Keskar, Richard Socher, "Regularizing and Optimizing LSTM
Language Models", 2017, arXiv 1708.02182, algorithm 1; the averages of Boris Polyak and Anatoli
Juditsky, 1992.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from zoo import _checks


class NtAsgdState(NamedTuple):
    """State of :func:`nt_asgd`; its structure and shapes never change."""

    recent: jax.Array  # [patience] float32, the last validation losses, the newest at the end
    best: jax.Array  # [] float32, the least of all losses before those
    triggered: jax.Array  # [] bool, whether parameters are averaged
    terms: jax.Array  # [] int32, number of averaged parameters
    average: Any  # mean of the parameters since the trigger, in at least float32; before: newest


def nt_asgd(*, patience: int = 5) -> optax.GradientTransformation:
    """Averages parameters once validation stagnates; updates pass through unchanged.

    Must be last in a chain, as it needs the final updates. :func:`observe_validation` tells it a
    validation loss, and :func:`nt_asgd_parameters` gives the parameters to evaluate:

        optimizer = optax.chain(clip, decay, optax.sgd(30.0), nt_asgd())

    The original's ASGD (PyTorch, lambd = 0, t0 = 0) leaves the first parameters out of the mean;
    here it is the mean of all since the trigger.

    Args:
        patience: n, the "non-monotone interval": a validation is compared with the best of those
            more than so many before it.

    Returns:
        The transformation.

    Raises:
        ValueError: if patience < 1. At update, if no parameters are given.

    >>> import jax, jax.numpy as jnp, optax
    >>> optimizer = optax.chain(optax.sgd(1.0), nt_asgd(patience=1))
    >>> parameters = jnp.array(0.0)
    >>> state = optimizer.init(parameters)
    >>> for loss in (3.0, 2.0, 4.0):
    ...     state = observe_validation(state, loss)
    >>> for _ in range(2):
    ...     updates, state = optimizer.update(jnp.array(-1.0), state, parameters)
    ...     parameters = optax.apply_updates(parameters, updates)
    >>> float(parameters), float(nt_asgd_parameters(state, parameters))
    (2.0, 1.5)

    Reference: arXiv 1708.02182, section 3.
    """
    patience = _checks.count("patience", patience, at_least=1)

    def init(parameters: Any) -> NtAsgdState:
        return NtAsgdState(
            recent=jnp.full((patience,), jnp.inf, jnp.float32),
            best=jnp.full((), jnp.inf, jnp.float32),
            triggered=jnp.zeros((), bool),
            terms=jnp.zeros((), jnp.int32),
            average=jax.tree.map(
                lambda leaf: jnp.array(leaf, _checks.accumulator(leaf.dtype), copy=True),
                parameters,
            ),
        )

    def update(updates: Any, state: NtAsgdState, parameters: Any = None) -> tuple[Any, NtAsgdState]:
        if parameters is None:
            raise ValueError("nt_asgd: update needs the parameters, got None; pass them third")
        terms = state.terms + state.triggered
        newest = optax.apply_updates(parameters, updates)

        def blend(average: jax.Array, newest: jax.Array) -> jax.Array:
            share = 1 / jnp.maximum(terms, 1).astype(average.dtype)
            newest = newest.astype(average.dtype)
            return jnp.where(terms > 1, average + share * (newest - average), newest)

        average = jax.tree.map(blend, state.average, newest)
        return updates, state._replace(terms=terms, average=average)

    return optax.GradientTransformation(init, update)


def observe_validation(opt_state: Any, loss: jax.Array | float) -> Any:
    """Tells the :func:`nt_asgd` in an optimiser's state the loss of a validation.

    Args:
        opt_state: state of an optimiser with one ``nt_asgd``, anywhere in it.
        loss: ``[]``, less is better; NaN counts as no improvement.

    Returns:
        The new state, of the same structure.

    Raises:
        ValueError: if there is not exactly one ``NtAsgdState``.

    >>> import jax.numpy as jnp
    >>> state = nt_asgd(patience=1).init(jnp.zeros(3))
    >>> [bool((state := observe_validation(state, loss)).triggered) for loss in (3.0, 2.0, 4.0)]
    [False, False, True]
    """
    state = _find(opt_state)
    loss = jnp.asarray(loss, jnp.float32)
    loss = jnp.where(jnp.isnan(loss), jnp.inf, loss)
    new = state._replace(
        recent=jnp.append(state.recent[1:], loss),
        best=jnp.minimum(state.best, state.recent[0]),
        triggered=state.triggered | (loss > state.best),
    )
    return jax.tree.map(lambda node: new if _is_state(node) else node, opt_state, is_leaf=_is_state)


def nt_asgd_parameters(opt_state: Any, parameters: Any) -> Any:
    """The parameters to evaluate: the average since the trigger; before it, those of the last step.

    Args:
        opt_state: state of an optimiser with one ``nt_asgd``, anywhere in it.
        parameters: of the last step.

    Returns:
        A tree like ``parameters``, in their dtypes.

    >>> import jax.numpy as jnp
    >>> nt_asgd_parameters(nt_asgd().init(jnp.zeros(2)), jnp.ones(2)).tolist()
    [1.0, 1.0]
    """
    state = _find(opt_state)
    started = state.terms > 0
    return jax.tree.map(
        lambda a, b: jnp.where(started, a.astype(b.dtype), b), state.average, parameters
    )


def _is_state(node: Any) -> bool:
    return isinstance(node, NtAsgdState)


def _find(opt_state: Any) -> NtAsgdState:
    states = [node for node in jax.tree.leaves(opt_state, is_leaf=_is_state) if _is_state(node)]
    if len(states) != 1:
        raise ValueError(
            f"opt_state must hold exactly one NtAsgdState, got {len(states)}; "
            "put nt_asgd() last in the chain"
        )
    return states[0]
