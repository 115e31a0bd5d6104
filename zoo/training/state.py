"""The training state: what one step needs from the last, as one pytree of fixed structure.

Abstract first: shapes come from ``jax.eval_shape``, the rules turn them into shardings, and one
``jax.jit`` fills every array on its own devices, so that none ever holds all of a large model.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx, traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from zoo import _checks as checks
from zoo._paths import path_name
from zoo.training.mesh import batch_sharding, put_batch
from zoo.training.placement import Rules, shardings

# For a program that runs once on a CPU: compiling the initialisation of a Transformer of 6 layers
# takes 2.5 s instead of 9 s. The values stay the same: only level 0 rounds otherwise.
_RUNS_ONCE = {"xla_backend_optimization_level": 1}


class TrainState(NamedTuple):
    """All that a training run carries from step to step, and all that a checkpoint holds.

    Attributes:
        step: ``[]`` int32, batches seen.
        parameters: pytree of float32 arrays.
        optimizer_state: of the Optax transformation.
        key: ``[]`` typed key, never changed; the key of a step is ``fold_in(key, step)``.
        nonfinite_steps: ``[]`` int32, updates refused in a row because they were not finite.
        carry: pytree handed from one batch to the next, every leaf ``[B, ...]``.
        model_state: pytree that the model updates itself and no gradient moves, such as the running
            averages of BatchNorm; replicated.
    """

    step: jax.Array
    parameters: Any
    optimizer_state: Any
    key: jax.Array
    nonfinite_steps: jax.Array
    carry: Any = ()
    model_state: Any = ()

    @property
    def shardings(self) -> "TrainState":
        """The same tree with each array's sharding: what ``make_train_step`` takes."""
        return jax.tree.map(lambda leaf: leaf.sharding, self)

    @property
    def abstract(self) -> "TrainState":
        """The same tree of shapes, dtypes and shardings, without memory."""
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), self
        )


def abstract_state(
    init_parameters: Callable[[jax.Array], Any],
    optimizer: optax.GradientTransformation,
    *,
    mesh: Mesh,
    rules: Rules = (),
    carry: Any = (),
    init_model_state: Callable[[jax.Array], Any] | None = None,
) -> TrainState:
    """The state as shapes, dtypes and shardings: nothing is computed or allocated.

    It is enough to compile a step ahead of time and to restore a checkpoint. Arguments as in
    :func:`init_state`, without the key; ``carry`` is anything with global shapes and dtypes.

    Returns:
        A ``TrainState`` of ``jax.ShapeDtypeStruct``.

    Raises:
        TypeError: if a parameter is not at least float32.
        ValueError: if a rule does not fit (see ``shardings``).

    >>> from zoo.training import make_mesh
    >>> init = lambda key: {"kernel": jax.random.normal(key, (3, 4))}
    >>> abstract_state(init, optax.sgd(0.1), mesh=make_mesh()).parameters["kernel"].shape
    (3, 4)
    """
    build = functools.partial(_build, init_parameters, optimizer, init_model_state)
    shapes = jax.eval_shape(build, jax.eval_shape(jax.random.key, 0), ())
    for path, leaf in jax.tree.leaves_with_path(shapes.parameters):
        if not jnp.issubdtype(leaf.dtype, jnp.floating) or jnp.finfo(leaf.dtype).bits < 32:
            raise TypeError(
                f"parameter {path_name(path)!r} is {leaf.dtype}: expected float32. Keep float32 "
                "masters and give compute_dtype to make_train_step; what is not learned belongs "
                "in the loss function, the batch, the carry or the model state"
            )
    replicated: Any = NamedSharding(mesh, PartitionSpec())
    places = TrainState(
        step=replicated,
        parameters=shardings(shapes.parameters, mesh, rules),
        optimizer_state=shardings(shapes.optimizer_state, mesh, rules, strict=False),
        key=replicated,
        nonfinite_steps=replicated,
        carry=jax.tree.map(lambda _: batch_sharding(mesh), carry),
        model_state=jax.tree.map(lambda _: replicated, shapes.model_state),
    )
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes._replace(carry=carry),
        places,
    )


def init_state(
    init_parameters: Callable[[jax.Array], Any],
    optimizer: optax.GradientTransformation,
    *,
    key: jax.Array,
    mesh: Mesh,
    rules: Rules = (),
    carry: Any = (),
    init_model_state: Callable[[jax.Array], Any] | None = None,
) -> TrainState:
    """Draws the parameters and places the state on the mesh.

    The values depend on ``key`` alone, not on the mesh.

    Args:
        init_parameters: ``(key) -> parameters``, a pytree of float32 arrays.
        optimizer: an Optax transformation.
        key: ``[]`` typed key; consumed.
        mesh: from ``make_mesh``.
        rules: ordered ``(pattern, PartitionSpec)`` pairs; parameters without one are replicated.
        carry: pytree of numpy arrays ``[B, ...]``, B the rows of this process alone.
        init_model_state: ``(key) -> model state``, or None if the model keeps none; called with the
            key of the parameters, so that one module can make both.

    Returns:
        The state before the first step.

    Raises:
        TypeError: if the key is not a typed key or a parameter is not at least float32.
        ValueError: if a rule does not fit, or the carry does not divide.

    >>> from zoo.training import make_mesh
    >>> init = lambda key: {"kernel": jax.random.normal(key, (3, 4))}
    >>> state = init_state(init, optax.sgd(0.1), key=jax.random.key(0), mesh=make_mesh())
    >>> int(state.step), state.parameters["kernel"].shape
    (0, (3, 4))
    """
    checks.typed_key("key", key)
    carry = put_batch(carry, mesh)
    placed = {"rules": rules, "carry": carry, "init_model_state": init_model_state}
    abstract = abstract_state(init_parameters, optimizer, mesh=mesh, **placed)
    build = jax.jit(
        _build,
        static_argnums=(0, 1, 2),
        out_shardings=abstract.shardings,
        compiler_options=_RUNS_ONCE if mesh.devices.flat[0].platform == "cpu" else None,
    )
    return build(init_parameters, optimizer, init_model_state, key, carry)


# Variables that are neither learned nor random streams.
_MODEL_STATE = nnx.Not(nnx.Any(nnx.Param, nnx.RngState))


def functional(
    make_module: Callable[[nnx.Rngs], nnx.Module],
) -> tuple[Callable[[jax.Array], Any], Callable[..., Any]]:
    """Splits a Flax NNX module into a parameter initialiser and a way back to the module.

    Nothing is computed or allocated here; both functions work inside ``jax.jit``.

    Args:
        make_module: ``(rngs) -> module``.

    Returns:
        ``init(key)``, giving the parameters as a plain nested dict with string keys, and
        ``merge(parameters, key=None, *, model_state=())``, giving the module. With a key it is in
        training mode and its random streams (dropout) start from the key; without one it is in
        evaluation mode (``module.eval()``) and must not draw. A module with further variables, such
        as the running averages of BatchNorm, takes them as ``model_state``, in the form of
        :func:`get_model_state`; ``merge`` raises a ValueError without them.

    >>> init, merge = functional(lambda rngs: nnx.Linear(3, 4, rngs=rngs))
    >>> parameters = init(jax.random.key(0))
    >>> sorted(parameters), merge(parameters)(jnp.ones((2, 3))).shape
    (['bias', 'kernel'], (2, 4))
    """
    shapes: Any = nnx.eval_shape(lambda: make_module(nnx.Rngs(jax.random.key(0))))
    graph, *states = nnx.split(shapes, nnx.Param, nnx.RngState, ...)
    abstract, streams, others = states
    names = [f"{'/'.join(map(str, p))} ({type(x).__name__})" for p, x in nnx.to_flat_state(others)]

    def init(key: jax.Array) -> Any:
        return _plain(nnx.state(make_module(nnx.Rngs(key)), nnx.Param))

    def merge(parameters: Any, key: jax.Array | None = None, *, model_state: Any = ()) -> Any:
        if names and not model_state:
            raise ValueError(
                f"the module keeps variables that are no parameters: {', '.join(names)}. Give "
                "their values as model_state, see zoo.training.state.get_model_state"
            )
        filled = _filled(abstract, parameters), _filled(others, model_state)
        if key is None:
            # The streams stay abstract: a draw in evaluation fails instead of repeating itself.
            module = nnx.merge(graph, filled[0], streams, filled[1])
            module.eval()
            return module
        return nnx.merge(graph, filled[0], _seeded(streams, key), filled[1])

    return init, merge


def get_model_state(module: nnx.Module) -> dict[str, Any]:
    """The variables that no gradient moves, as a plain nested dict of arrays with string keys.

    Of a new module they are the start, ``init_model_state=lambda key:
    get_model_state(make_module(nnx.Rngs(key)))``; of a merged one that was called, the next values.

    Args:
        module: any NNX module.

    Returns:
        All variables but ``nnx.Param`` and the state of random streams.

    >>> init, merge = functional(lambda rngs: nnx.BatchNorm(3, momentum=0.9, rngs=rngs))
    >>> before = get_model_state(nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
    >>> module = merge(init(jax.random.key(0)), jax.random.key(1), model_state=before)
    >>> y = module(jnp.ones((2, 3)))
    >>> print(before["mean"], get_model_state(module)["mean"])
    [0. 0. 0.] [0.1 0.1 0.1]
    """
    return _plain(nnx.state(module, _MODEL_STATE))


def _plain(state: nnx.State) -> dict[str, Any]:
    """An NNX state as a nested dict of arrays with string keys."""
    flat = {tuple(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(state)}
    return traverse_util.unflatten_dict(flat)


def _filled(abstract: nnx.State, plain: Any) -> nnx.State:
    """The inverse of ``_plain``: the abstract state with the arrays of the nested dict."""

    def value(path: tuple[Any, ...], leaf: Any) -> Any:
        return leaf.replace(functools.reduce(operator.getitem, map(str, path), plain))

    return nnx.map_state(value, abstract)


def _seeded(streams: nnx.State, key: jax.Array) -> nnx.State:
    """Gives every random stream a key of its own (``nnx.reseed`` gives equal names equal keys)."""
    numbers = {path: number for number, (path, _) in enumerate(nnx.to_flat_state(streams))}

    def start(path: tuple[Any, ...], leaf: Any) -> Any:
        if isinstance(leaf, nnx.RngKey):
            own_key = jax.random.fold_in(key, numbers[path])
            return leaf.replace(jax.random.split(own_key, leaf.shape))
        return leaf.replace(jnp.zeros(leaf.shape, leaf.dtype))

    return nnx.map_state(start, streams)


def _build(
    init_parameters: Callable[[jax.Array], Any],
    optimizer: optax.GradientTransformation,
    init_model_state: Callable[[jax.Array], Any] | None,
    key: jax.Array,
    carry: Any,
) -> TrainState:
    parameters_key, step_key = jax.random.split(key)
    parameters = init_parameters(parameters_key)
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        parameters=parameters,
        optimizer_state=optimizer.init(parameters),
        key=step_key,
        nonfinite_steps=jnp.zeros((), jnp.int32),
        # A copy: the step donates its state, and the caller may still hold the carry.
        carry=jax.tree.map(jnp.copy, carry),
        model_state=() if init_model_state is None else init_model_state(parameters_key),
    )
    # Weak types would turn strong in the first step and compile it a second time.
    return jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, leaf.dtype), state)
