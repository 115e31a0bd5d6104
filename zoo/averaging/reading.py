"""Reads the averages out of the state of an optimiser, or puts them into a module.

Leaves are found by their paths, so that dictionaries of Flax, its variables and lists fit each
other, and the averages of several groups of parameters (``optax.multi_transform``) come together.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from zoo._paths import path_name
from zoo.averaging.exponential import Averaged, AverageState, is_masked


def averaged_parameters(opt_state: Any, parameters: Any = None, *, path: str | None = None) -> Any:
    """The average that an optimiser state holds, at any depth: evaluate, save or sample with it.

    The arrays are those of the state, not copies: a step that donates the state deletes them too.

    Args:
        opt_state: state of an optimiser with one of the averages of this package in it, or any
            tree that holds one (a ``TrainState``, say). Those of several groups of parameters, as
            ``optax.multi_transform`` makes them, are joined.
        parameters: if given, each leaf of the average has the dtype of its parameter, and leaves
            that a mask left out are taken from here. With a model state: the pair of both.
        path: regular expression to be found in the slash-joined path of the average, where there
            are several: a name given by ``optax.named_chain``, or an index in a chain.

    Returns:
        A tree like the parameters, in at least float32 unless ``parameters`` are given; the pair
        ``(parameters, model_state)`` if the transformation was given a model state.

    Raises:
        ValueError: if there is no average, or several of the same parameter; if a mask was used and
            ``parameters`` are not given, or if they are not those that were averaged.

    >>> import optax
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
    tree, averages, model_state = _find(opt_state, path)
    masked = any(map(is_masked, jax.tree.leaves(tree, is_leaf=is_masked)))
    if parameters is not None and model_state is None:
        return _filled(parameters, averages, partial=masked, name="parameters")
    if parameters is not None:
        own, other = parameters
        return Averaged(
            _filled(own, averages, partial=masked, name="parameters"),
            _filled(other, _by_path(model_state), partial=False, name="model_state"),
        )
    # A place that one group leaves out may be in another.
    full = jax.tree.map_with_path(
        lambda key, leaf: averages.get(path_name(key), leaf), tree, is_leaf=is_masked
    )
    if any(map(is_masked, jax.tree.leaves(full, is_leaf=is_masked))):
        raise ValueError("parameters must be given, as the mask left some out; got None")
    return full if model_state is None else Averaged(full, model_state)


def averaged_module(model: Any, average: Any, *, path: str | None = None) -> Any:
    """The module with averaged values, for evaluation in one call.

    Args:
        model: any Flax NNX module; it is not changed. What was not averaged is taken from it.
        average: an :class:`AverageState` of ``nnx.state(model)`` or a part of it, from
            :func:`average_update`; or an optimiser state, as for :func:`averaged_parameters`
            (the ``opt_state`` of an ``nnx.Optimizer``), with or without a model state.
        path: which average, where there are several.

    Returns:
        A new module of the same kind, in the dtypes of the model. Call ``eval()`` on it where
        layers behave differently in training.

    Raises:
        ValueError: if there is no average, or several; if one is of something that the model has
            not.

    >>> from zoo.averaging import average_init, average_update
    >>> model = nnx.BatchNorm(2, rngs=nnx.Rngs(0))  # scale, bias, and running mean and variance
    >>> average = average_init(nnx.state(model))
    >>> model.mean[...] = jnp.array([2.0, 4.0])
    >>> average = average_update(average, nnx.state(model), decay=0.9)
    >>> print(averaged_module(model, average).mean[...])
    [2. 4.]

    Reference: https://kexue.fm/archives/6575.
    """
    _, averages, model_state = _find(average, path)
    graph, state = nnx.split(model)
    everything = averages | _by_path(model_state)
    return nnx.merge(graph, _filled(state, everything, partial=True, name="model"))


def _find(tree: Any, path: str | None) -> tuple[Any, dict[str, Any], Any]:
    """Of the averages in a tree: one of parameters, the leaves of all by path, a model state."""
    leaves = jax.tree.leaves_with_path(tree, is_leaf=lambda x: isinstance(x, AverageState))
    found = {path_name(key): leaf for key, leaf in leaves if isinstance(leaf, AverageState)}
    chosen = [state.average for name, state in found.items() if re.search(path or "", name)]
    pairs = [x if isinstance(x, Averaged) else Averaged(x, None) for x in chosen]
    model_states = [pair.model_state for pair in pairs if pair.model_state is not None]
    parts = [_by_path(pair.parameters) for pair in pairs]
    averages = {name: leaf for part in parts for name, leaf in part.items()}
    if not pairs or len(averages) < sum(map(len, parts)) or len(model_states) > 1:
        raise ValueError(
            f"opt_state must hold one average{f' at a path with {path!r}' if path else ''}, got "
            f"{len(pairs)} of the averages at {sorted(found)}; chain parameter_ema(...) after the "
            "optimiser, and choose between several with path=, by the names of optax.named_chain"
        )
    return pairs[0].parameters, averages, model_states[0] if model_states else None


def _by_path(tree: Any) -> dict[str, Any]:
    return {path_name(key): leaf for key, leaf in jax.tree.leaves_with_path(tree)}


def _filled(tree: Any, averages: dict[str, Any], *, partial: bool, name: str) -> Any:
    """The tree with the averages at their paths, in its own dtypes."""
    names = _by_path(tree).keys()
    if wrong := sorted(averages.keys() - names if partial else averages.keys() ^ names):
        raise ValueError(
            f"{name} must be those that were averaged; {wrong} are on one side only, got "
            f"{sorted(names)}"
        )

    def leaf(key: tuple[Any, ...], own: Any) -> Any:
        average = averages.get(path_name(key))
        if average is None:
            return own
        dtype = jnp.result_type(own)
        return average if average.dtype == dtype else average.astype(dtype)

    return jax.tree.map_with_path(leaf, tree)
