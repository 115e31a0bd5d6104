"""Exponential moving average of the parameters, which the training itself never sees.

    average_n = decay · average_{n-1} + (1 - decay) · θ_n

θ_n are the parameters after step n. Started from θ_0 it is that line; debiased it is divided by
1 - decay^n and holds θ_1 … θ_n alone. Its memory is about 1 / (1 - decay) steps: noise keeps
(1 - decay) / (1 + decay) of its variance, a drift of slope s is followed decay · s / (1 - decay)
behind. It runs as the recursion of every average of this package, in the share of the newest term
(here 1 - decay, for a plain mean 1 / n):

    weight_n  = weight_{n-1} + share_n · (1 - weight_{n-1})
    average_n = average_{n-1} + share_n / weight_n · (θ_n - average_{n-1})

weight_n is the total share of θ_1 … θ_n. It starts at 1 where θ_0 is a term; debiased it starts at
0, and no n divides by almost zero. Shares, not decays, are computed: 1 - 0.9999 is wrong in its
fourth digit in float32.

Source: articles https://kexue.fm/archives/6575 and https://kexue.fm/archives/6583; Boris Polyak,
Anatoli Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from zoo import _checks
from zoo._paths import for_tree, spread

Decay = ArrayLike | Callable[[jax.Array], ArrayLike]
Share = Callable[[jax.Array], ArrayLike]  # number of terms, at least 1 -> share of the newest
Steps = int | jax.Array
Mask = Any  # as for optax.masked; None averages every leaf


class AverageState(NamedTuple):
    """A running average of a tree.

    Attributes:
        steps: ``[]`` int32, number of steps seen.
        weight: ``[]`` at least float32, total share of the terms; the rest is the initial tree's.
        average: the tree, floating leaves in at least float32, others as they last were.
    """

    steps: jax.Array
    weight: jax.Array
    average: Any


class Averaged(NamedTuple):
    """What is averaged, and its average, where a transformation is given a model state too."""

    parameters: Any
    model_state: Any


def average_init(values: Any, *, debias: bool = True) -> AverageState:
    """An average without terms, which reads as the tree it starts from.

    Args:
        values: pytree of arrays, copied in at least float32.
        debias: whether they leave the average with the first term, or are a term of weight 1.

    Returns:
        The state.

    >>> float(average_init(jnp.float32(3)).average)
    3.0
    """

    def copy(leaf: ArrayLike) -> jax.Array:
        leaf = jnp.array(leaf, copy=True)
        return leaf.astype(_checks.accumulator(leaf.dtype)) if _is_inexact(leaf) else leaf

    average = jax.tree.map(copy, values)
    floats = [leaf.dtype for leaf in jax.tree.leaves(average) if _is_inexact(leaf)]
    weight = jnp.asarray(0 if debias else 1, jnp.finfo(jnp.result_type(jnp.float32, *floats)).dtype)
    return AverageState(jnp.zeros((), jnp.int32), weight, average)


def running_update(
    state: AverageState, values: Any, *, share: Share, start_step: Steps, every: Steps
) -> AverageState:
    """The recursion of the module docstring, for any share; else as :func:`average_update`."""
    start_step, every = _checked_steps(start_step, every)
    values = spread(values, state.average, name="values")
    steps = optax.safe_increment(state.steps)
    started = steps > start_step
    seen = steps // every - start_step // every
    terms = jnp.maximum(seen, 1)
    newest = jnp.asarray(share(terms), state.weight.dtype)
    valid = (start_step >= 0) & (every >= 1)
    if valid is not True:  # traced
        newest = jnp.where(valid, newest, jnp.nan)
    weight = jnp.where(started, state.weight + newest * (1 - state.weight), state.weight)
    # A share of 0 before there is any weight leaves the average alone; NaN stays NaN.
    rate = jnp.where(started, newest / jnp.where(newest == 0, 1, weight), 1)
    if isinstance(every, int) and every == 1:
        return AverageState(steps, weight, _move(rate, state.average, values))
    due = (steps % every == 0) | jnp.isnan(newest)
    weight = jnp.where(due, weight, state.weight)
    # Until there is a term, what is read are the newest parameters.
    follows = ~started | ((seen < 1) & (state.weight == 0))
    rate = jnp.where(follows, 1, rate)
    return AverageState(steps, weight, _move_if(due | follows, rate, state.average, values))


def _move(rate: jax.Array, average: Any, values: Any) -> Any:
    def leaf(old: jax.Array, new: ArrayLike) -> jax.Array:
        if not _is_inexact(old):  # counters and keys are not averaged
            return jnp.asarray(new, old.dtype)
        new = jnp.asarray(new).astype(old.dtype)
        step = rate.astype(jnp.finfo(old.dtype).dtype)
        # old + step · (new - old) is exact for a constant tree; the other form is not.
        return jnp.where(step == 1, new, old + step * (new - old))

    return jax.tree.map(leaf, average, values)


@jax.jit  # outside of jit every new conditional would be compiled again
def _move_if(due: jax.Array, rate: jax.Array, average: Any, values: Any) -> Any:
    return jax.lax.cond(due, _move, lambda rate, average, values: average, rate, average, values)


def average_update(
    state: AverageState,
    values: Any,
    *,
    decay: Decay,
    warmup: bool = False,
    start_step: Steps = 0,
    every: Steps = 1,
    mask: Mask = None,
) -> AverageState:
    """One step of an exponential average of any tree: parameters, statistics, activations, metrics.

    average_n = decay · average_{n-1} + (1 - decay) · values_n, divided by 1 - decay^n if debiased.

    The tree may be the complete state of a model: ``{"params": …, "batch_stats": …}`` of Linen,
    ``nnx.state(model)`` of NNX. Keys and counters are those of the newest tree, so that one call
    of the model evaluates the average; :func:`averaged_module` puts it into a module.

    Args:
        state: from ``average_init`` or an earlier update.
        values: the newest tree, with the structure of the first.
        decay: as for :func:`parameter_ema`, and so are the other arguments.
        warmup: whether the decay is at most (1 + n) / (10 + n) at the n-th term.
        start_step: steps before the first that is averaged.
        every: only the tree of every so many steps is averaged.
        mask: which leaves to average; the others are those of the newest tree, as running
            statistics are sometimes wanted.

    Returns:
        The new state, with the same structure, shapes and dtypes.

    Raises:
        ValueError, TypeError: if an argument is out of range, as for :func:`parameter_ema`.

    >>> state = average_init(jnp.zeros(()))
    >>> for value in (1.0, 2.0):
    ...     state = average_update(state, jnp.float32(value), decay=0.5)
    >>> float(state.average)
    1.667
    """
    _check_decay(decay)

    def share(terms: jax.Array) -> ArrayLike:
        current = decay(terms - 1) if callable(decay) else decay
        current = 1 - _checks.number("decay", current, at_least=0, at_most=1)
        return jnp.maximum(current, 9 / (10 + terms)) if warmup else current

    new = running_update(state, values, share=share, start_step=start_step, every=every)
    if mask is None:
        return new
    own = spread(for_tree(mask, state.average), state.average, name="mask")
    newest = spread(values, state.average, name="values")
    return new._replace(
        average=jax.tree.map(
            lambda keep, average, value: average if keep else jnp.asarray(value, average.dtype),
            own,
            new.average,
            newest,
        )
    )


def next_parameters(parameters: Any, updates: Any) -> Any:
    """The parameters after the step, to the last bit; those without an update stay."""
    if parameters is None:
        raise ValueError("params must be given to update(updates, state, params), got None")

    def stored(parameter: Any, update: Any) -> Any:
        if update is None or getattr(update, "dtype", None) == jax.dtypes.float0:
            return parameter
        new = optax.apply_updates(parameter, update)
        # XLA may skip the rounding to a narrow dtype where the sum is also used wide.
        if not _is_inexact(new) or jnp.finfo(new.dtype).bits >= 32:
            return new
        info = jnp.finfo(new.dtype)
        return jax.lax.reduce_precision(new, info.nexp, info.nmant)

    return jax.tree.map(stored, parameters, updates_like(parameters, updates))


def updates_like(parameters: Any, updates: Any) -> Any:
    """The updates in the containers of the parameters; None is an update that is not made."""
    return spread(updates, parameters, name="updates", is_leaf=lambda leaf: leaf is None)


def average_of_parameters(
    step: Callable[..., AverageState],
    debias: bool,
    start_step: Steps,
    every: Steps,
    mask: Mask,
    first_model_state: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """The Optax transformation that averages the parameters and passes the updates through."""
    _checked_steps(start_step, every)

    def chosen(parameters: Any) -> Any:
        """The parameters that are averaged, with a MaskedNode for each of the others."""
        if mask is None:
            return parameters
        own = spread(for_tree(mask, parameters), parameters, name="mask")
        return jax.tree.map(
            lambda leaf, keep: leaf if keep else optax.MaskedNode(), parameters, own
        )

    def init(parameters: Any) -> Any:
        own = chosen(parameters)
        leaves = jax.tree.leaves(own, is_leaf=is_masked)
        if leaves and all(map(is_masked, leaves)):
            raise ValueError(
                "mask must select at least one parameter, got False for every one; "
                "optax.inject_hyperparams gives functions the step unless static_args names them"
            )
        state = average_init(with_model_state(own, first_model_state), debias=debias)
        return state if mask is None else optax.MaskedState(state)

    def with_model_state(parameters: Any, model_state: Any) -> Any:
        return parameters if first_model_state is None else Averaged(parameters, model_state)

    def update(
        updates: Any, state: Any, parameters: Any = None, *, model_state: Any = None, **extra: Any
    ) -> tuple[Any, Any]:
        del extra  # of other transformations in the chain
        if first_model_state is not None and model_state is None:
            raise ValueError(
                "model_state must be given to update(updates, state, params, model_state=...), as "
                "it was to the transformation, got None"
            )
        newest = with_model_state(chosen(next_parameters(parameters, updates)), model_state)
        inner = state if mask is None else state.inner_state
        new = step(inner, newest, start_step=start_step, every=every)
        return updates, new if mask is None else optax.MaskedState(new)

    return optax.GradientTransformationExtraArgs(init, update)


def parameter_ema(
    decay: Decay,
    *,
    debias: bool = True,
    warmup: bool = False,
    start_step: Steps = 0,
    every: Steps = 1,
    mask: Mask = None,
    model_state: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Keeps an exponential moving average of the parameters; passes the updates through unchanged.

    It is :func:`average_update` of the parameters after each step, last in a chain, where it sees
    the updates as they will be applied; read it with :func:`averaged_parameters`. Inside
    ``optax.MultiSteps`` it counts the real steps; after ``MultiSteps(..., k)`` give it ``every=k``.

    Args:
        decay: in [0, 1); or a schedule of the number of earlier terms (0, 1, …); or a traced
            scalar. Traced, values outside [0, 1] give NaN, and 1 - 0.9999 is off by 2e-4 of itself.
        debias: whether the initial parameters are left out of the average (True), or are a term of
            it that fades (False).
        warmup: whether the decay is at most (1 + n) / (10 + n) at the n-th term, as in TensorFlow.
        start_step: averaging starts with the parameters after step ``start_step + 1``.
        every: steps from one term to the next, those that it divides; steps between them cost
            nothing. Until the first term the average is the parameters themselves (from
            ``start_step`` on those after it, where ``debias=False`` makes them a term).
        mask: which leaves to average, as for ``optax.masked``: a tree of truth values, a prefix of
            the parameters' structure, or a function from the parameters to one.
        model_state: what the model updates itself, such as the running statistics of batch
            normalisation, as it is before the first step. It is averaged too, its keys and counters
            carried; every update then needs it, as the keyword ``model_state``.

    Returns:
        The transformation. Its state is an ``AverageState`` of the parameters, in at least float32:
        in bfloat16 an average with decay 0.9999 would never move.

    Raises:
        ValueError: if decay is not in [0, 1), start_step is negative or every less than 1; at init,
            if the mask is False everywhere; at update, if no parameters (or no model state) are
            given.
        TypeError: if start_step or every is not an integer.

    >>> optimizer = optax.chain(optax.adam(1e-3), parameter_ema(0.999))
    >>> state = optimizer.init({"kernel": jnp.ones((2, 3))})
    >>> state[-1].average["kernel"].shape
    (2, 3)

    Reference: https://kexue.fm/archives/6575.
    """
    _check_decay(decay)
    update = functools.partial(average_update, decay=decay, warmup=warmup)
    return average_of_parameters(update, debias, start_step, every, mask, model_state)


def _check_decay(decay: Decay) -> None:
    if not callable(decay) and not isinstance(decay, jax.core.Tracer):
        advice = "0.999 averages over about 1000 steps"
        _checks.number("decay", decay, at_least=0, below=1, advice=advice)


def _checked_steps(start_step: Steps, every: Steps) -> tuple[Any, Any]:
    """Both as Python integers where they are known."""
    if not isinstance(start_step, jax.core.Tracer):
        start_step = _checks.count("start_step", start_step)
    if not isinstance(every, jax.core.Tracer):
        every = _checks.count("every", every, at_least=1)
    return start_step, every


def _is_inexact(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def is_masked(leaf: Any) -> bool:
    """Whether it stands for what a mask left out."""
    return isinstance(leaf, optax.MaskedNode)
