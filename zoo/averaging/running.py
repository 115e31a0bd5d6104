"""Running averages of a tree of parameters: one recursion for every kind of weight.

    weight_n  = weight_{n-1} + gain_n · (1 - weight_{n-1})
    average_n = average_{n-1} + gain_n / weight_n · (θ_n - average_{n-1})

gain_n is the share of the newest parameters θ_n: 1 - decay for an exponential average, 1 / n for a
plain mean. weight_n is the share of everything seen since the start. It begins at 1 where the
initial parameters are to be a term of the average, and at 0 where they are not. In the second case
average_n is the debiased average at every n, as if Σ gains had been divided out at the end: nothing
is ever divided by almost zero, and the average may be read at any time.

Gains, not decays, are what is computed: 1 - 0.9999 is wrong in its fourth digit in float32.

Source: article https://kexue.fm/archives/6575; Diederik Kingma, Jimmy Ba, «Adam», 2014, arXiv
1412.6980, section 3, for the debiasing.
"""

import numbers
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from zoo.training import path_name

# Number of terms, the newest included (so never less than 1) -> its share of the average.
Gain = Callable[[jax.Array], ArrayLike]
Count = int | jax.Array
Mask = Any


class AverageState(NamedTuple):
    """A running average of a tree.

    Attributes:
        steps: ``[]`` int32, steps seen.
        weight: ``[]`` at least float32, share of what was averaged; the rest is the initial tree's.
        average: the tree, floating leaves in at least float32, others as they last were.
    """

    steps: jax.Array
    weight: jax.Array
    average: Any


def average_init(values: Any, *, debias: bool = True) -> AverageState:
    """An average that has seen nothing yet and reads as the tree it starts from.

    Args:
        values: pytree of arrays.
        debias: whether the initial tree is to leave the average with the first term; otherwise it
            is a term itself, with weight 1.

    Returns:
        The state: a copy of the tree in at least float32, which may be donated beside it.

    >>> float(average_init(jnp.float32(3)).average)
    3.0
    """

    def copy(leaf: ArrayLike) -> jax.Array:
        return jnp.array(leaf, _accumulator(jnp.result_type(leaf)), copy=True)

    average = jax.tree.map(copy, values)
    floating = [leaf.dtype for leaf in jax.tree.leaves(average) if _is_inexact(leaf)]
    dtype = jnp.finfo(jnp.result_type(jnp.float32, *floating)).dtype
    return AverageState(
        steps=jnp.zeros((), jnp.int32),
        weight=jnp.asarray(0 if debias else 1, dtype),
        average=average,
    )


def advance(
    state: AverageState, values: Any, *, gain: Gain, start_step: Count, every: Count
) -> AverageState:
    """Takes in the tree after one more step; see the module for the recursion.

    Args:
        state: the average so far.
        values: the newest tree.
        gain: share of a term, given the number of terms with it.
        start_step: until so many steps are over the average follows the tree itself.
        every: only every so many steps is one looked at.

    Returns:
        The new state, of the same structure, shapes and dtypes.
    """
    steps = optax.safe_increment(state.steps)
    started = steps > start_step
    terms = jnp.maximum(steps // every - start_step // every, 1)
    share = jnp.asarray(gain(terms), state.weight.dtype)
    weight = jnp.where(started, state.weight + share * (1 - state.weight), state.weight)
    # A share of 0 before anything has weight leaves the average alone; NaN stays NaN.
    rate = jnp.where(started, share / jnp.where(share == 0, 1, weight), 1)

    if isinstance(every, int) and every == 1:
        return AverageState(steps, weight, _blend(rate, state.average, values))
    due = steps % every == 0
    weight = jnp.where(due, weight, state.weight)
    return AverageState(steps, weight, _blend_if(due, rate, state.average, values))


def _blend(rate: jax.Array, average: Any, values: Any) -> Any:
    def leaf(old: jax.Array, new: ArrayLike) -> jax.Array:
        new = jnp.asarray(new).astype(old.dtype)
        if not _is_inexact(old):  # counters are no quantities to average
            return new
        share = rate.astype(jnp.finfo(old.dtype).dtype)
        # old + share · (new - old) is exact for a constant tree; the other form is not.
        return jnp.where(share == 1, new, old + share * (new - old))

    return jax.tree.map(leaf, average, values)


@jax.jit  # outside of it, every new conditional is compiled anew
def _blend_if(due: jax.Array, rate: jax.Array, average: Any, values: Any) -> Any:
    return jax.lax.cond(due, _blend, lambda rate, average, values: average, rate, average, values)


def running_average(
    gain: Gain, *, debias: bool, start_step: Count, every: Count, mask: Mask | None
) -> optax.GradientTransformation:
    """The Optax transformation of a gain: averages the parameters, leaves the updates alone."""
    check_count("start_step", start_step, at_least=0)
    check_count("every", every, at_least=1)

    def init(parameters: Any) -> AverageState:
        masked = jax.tree.leaves(parameters, is_leaf=_is_masked)
        if masked and all(map(_is_masked, masked)):
            raise ValueError(
                "mask must select at least one parameter to average, got False for every one: "
                "correct the mask, or leave the average out"
            )
        return average_init(parameters, debias=debias)

    def update(updates: Any, state: AverageState, parameters: Any = None) -> tuple[Any, Any]:
        values = applied(parameters, updates)
        return updates, advance(state, values, gain=gain, start_step=start_step, every=every)

    transformation = optax.GradientTransformation(init, update)
    return transformation if mask is None else optax.masked(transformation, mask)


def averaged_parameters(opt_state: Any, parameters: Any = None, *, path: str | None = None) -> Any:
    """The average that an optimiser state holds, wherever it is nested.

    It is what to evaluate, save or sample with; training goes on from the parameters, which nobody
    swaps out. The arrays are those of the state, not copies: a step that donates the state ends
    their life too.

    Args:
        opt_state: state of an optimiser with :func:`parameter_ema` or another average of this
            package in it, or any tree that holds one (a ``TrainState``, say).
        parameters: the parameters; given, each leaf of the average comes in the dtype of its
            parameter, and what a mask left out comes from here.
        path: regular expression to be found in the slash-joined path of the state that is meant,
            where there are several: a name given by ``optax.named_chain``, or a number of a chain.

    Returns:
        A tree like the parameters, in at least float32 unless ``parameters`` are given.

    Raises:
        ValueError: if there is no average, or more than one; if a mask was used and ``parameters``
            are not given, or if they are not those that were averaged.

    >>> from zoo.averaging import parameter_ema
    >>> optimizer = optax.chain(optax.sgd(1.0), parameter_ema(0.5))
    >>> parameters = {"kernel": jnp.array([4.0])}
    >>> state = optimizer.init(parameters)
    >>> for _ in range(2):
    ...     updates, state = optimizer.update({"kernel": jnp.array([1.0])}, state, parameters)
    ...     parameters = optax.apply_updates(parameters, updates)
    >>> print(parameters["kernel"], averaged_parameters(state)["kernel"])
    [2.] [2.333]
    """
    found = {
        path_name(key_path): leaf
        for key_path, leaf in jax.tree.leaves_with_path(opt_state, is_leaf=_is_average)
        if _is_average(leaf)
    }
    chosen = {name: s for name, s in found.items() if path is None or re.search(path, name)}
    if len(chosen) != 1:
        wanted = "one average" if path is None else f"one average at a path with {path!r}"
        advice = (
            "chain parameter_ema(...) behind the optimiser and hand over the state that its init "
            "and update return"
            if not found
            else "choose with path=, for example by the names of optax.named_chain"
        )
        raise ValueError(
            f"averaged_parameters: opt_state must hold {wanted}, got {len(chosen)}"
            f"{f' of the averages at {sorted(found)}' if found else ''}; {advice}"
        )
    (state,) = chosen.values()
    masked = any(map(_is_masked, jax.tree.leaves(state.average, is_leaf=_is_masked)))
    if parameters is None:
        if masked:
            raise ValueError(
                "averaged_parameters: parameters must be given, as the mask left some out of the "
                "average; got None"
            )
        return state.average
    # By path, so that dictionaries of Flax and its variables of any type fit each other.
    averages = {path_name(key): leaf for key, leaf in jax.tree.leaves_with_path(state.average)}
    expected = {path_name(key): leaf for key, leaf in jax.tree.leaves_with_path(parameters)}
    wrong = sorted(
        averages.keys() - expected.keys() if masked else averages.keys() ^ expected.keys()
    )
    if wrong:
        raise ValueError(
            "averaged_parameters: parameters must be those that were averaged, got others: "
            f"{wrong} are on one side only"
        )

    def leaf(key: tuple[Any, ...], parameter: Any) -> Any:
        average = averages.get(path_name(key))
        return parameter if average is None else average.astype(jnp.result_type(parameter))

    return jax.tree_util.tree_map_with_path(leaf, parameters)


def applied(parameters: Any, updates: Any) -> Any:
    """The parameters as they will be after the step, to the last bit."""
    if parameters is None:
        raise ValueError(
            "params must be given to update(updates, state, params): what is averaged are the "
            "parameters; got None"
        )

    def stored(leaf: Any) -> Any:
        # XLA may skip the rounding to a narrow dtype where the sum is also used wide.
        if not _is_inexact(leaf) or jnp.finfo(leaf.dtype).bits >= 32:
            return leaf
        info = jnp.finfo(leaf.dtype)
        return jax.lax.reduce_precision(leaf, info.nexp, info.nmant)

    return jax.tree.map(stored, optax.apply_updates(parameters, updates))


def check_count(name: str, value: Any, *, at_least: int) -> None:
    """Refuses what is no whole number, or too small a one; traced values pass."""
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jnp.integer):
        return
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {value!r} of {type(value).__name__}")
    if value < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {value}")


def is_static(value: Any) -> bool:
    """Whether a hyper-parameter is a plain number, which can be checked at once."""
    return isinstance(value, numbers.Real) or (isinstance(value, np.ndarray) and value.ndim == 0)


def _accumulator(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32) if jnp.issubdtype(dtype, jnp.inexact) else dtype


def _is_inexact(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def _is_masked(leaf: Any) -> bool:
    return isinstance(leaf, optax.MaskedNode)


def _is_average(leaf: Any) -> bool:
    return isinstance(leaf, AverageState)
