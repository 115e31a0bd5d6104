"""The training state: what one step needs from the last, as one pytree of fixed structure.

Abstract first: shapes come from ``jax.eval_shape``, the rules turn them into shardings, and one
``jax.jit`` fills every array where it belongs, so that no device ever holds a whole large model.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from zoo.training.mesh import batch_sharding, put_batch
from zoo.training.placement import Rules, path_name, shardings


class TrainState(NamedTuple):
    """All that a training run carries from step to step, and all that a checkpoint holds.

    Attributes:
        step: ``[]`` int32, batches seen.
        parameters: pytree of float32 arrays.
        optimizer_state: of the Optax transformation.
        key: ``[]`` typed key, never changed; the key of a step is ``fold_in(key, step)``.
        nonfinite_steps: ``[]`` int32, updates refused in a row because they were not finite.
        carry: pytree handed from one batch to the next, every leaf ``[B, ...]``.
    """

    step: jax.Array
    parameters: Any
    optimizer_state: Any
    key: jax.Array
    nonfinite_steps: jax.Array
    carry: Any = ()

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
) -> TrainState:
    """The state as shapes, dtypes and shardings: nothing is computed or allocated.

    It is enough to compile a step ahead of time and to restore a checkpoint.

    Args:
        init_parameters: ``(key) -> parameters``.
        optimizer: an Optax transformation.
        mesh: from ``make_mesh``.
        rules: ordered ``(pattern, PartitionSpec)`` pairs; parameters without one are replicated.
        carry: pytree of anything with global shape ``[B, ...]`` and dtype.

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
    build = functools.partial(_build, init_parameters, optimizer)
    shapes = jax.eval_shape(build, jax.eval_shape(jax.random.key, 0), ())
    for path, leaf in jax.tree.leaves_with_path(shapes.parameters):
        if not jnp.issubdtype(leaf.dtype, jnp.floating) or jnp.finfo(leaf.dtype).bits < 32:
            raise TypeError(
                f"parameter {path_name(path)!r} is {leaf.dtype}: expected float32. Keep float32 "
                "masters and give compute_dtype to make_train_step; what is not learned belongs "
                "in the loss function, the batch or the carry"
            )
    replicated: Any = NamedSharding(mesh, PartitionSpec())
    places = TrainState(
        step=replicated,
        parameters=shardings(shapes.parameters, mesh, rules),
        optimizer_state=shardings(shapes.optimizer_state, mesh, rules, strict=False),
        key=replicated,
        nonfinite_steps=replicated,
        carry=jax.tree.map(lambda _: batch_sharding(mesh), carry),
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
) -> TrainState:
    """Draws the parameters and places the whole state on the mesh.

    The values depend on ``key`` alone, not on the mesh.

    Args:
        init_parameters: ``(key) -> parameters``, a pytree of float32 arrays.
        optimizer: an Optax transformation.
        key: ``[]`` typed key; consumed.
        mesh: from ``make_mesh``.
        rules: ordered ``(pattern, PartitionSpec)`` pairs; parameters without one are replicated.
        carry: pytree of numpy arrays ``[B, ...]``, B the rows of this process alone.

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
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        raise TypeError(f"key must be a typed key such as jax.random.key(0), got {key!r}")
    carry = put_batch(carry, mesh)
    abstract = abstract_state(init_parameters, optimizer, mesh=mesh, rules=rules, carry=carry)
    build = jax.jit(_build, static_argnums=(0, 1), out_shardings=abstract.shardings)
    return build(init_parameters, optimizer, key, carry)


def functional(
    make_module: Callable[[nnx.Rngs], nnx.Module],
) -> tuple[Callable[[jax.Array], Any], Callable[..., Any]]:
    """Splits a Flax NNX module into a parameter initialiser and a way back to the module.

    Nothing is computed or allocated here; both functions work inside ``jax.jit``.

    Args:
        make_module: ``(rngs) -> module``. Its variables must be ``nnx.Param``, besides the state
            of random streams (dropout).

    Returns:
        ``init_parameters(key)``, giving the parameters as a plain nested dict with string keys, and
        ``rebuild(parameters, key=None)``, giving the module. With a key its random streams start
        from it; without one the module is in evaluation mode (``module.eval()``) and must not draw.

    Raises:
        ValueError: if the module keeps other variables, such as the running averages of BatchNorm.

    >>> init, rebuild = functional(lambda rngs: nnx.Linear(3, 4, rngs=rngs))
    >>> parameters = init(jax.random.key(0))
    >>> sorted(parameters), rebuild(parameters)(jnp.ones((2, 3))).shape
    (['bias', 'kernel'], (2, 4))
    """
    shapes: Any = nnx.eval_shape(lambda: make_module(nnx.Rngs(jax.random.key(0))))
    graph, *states = nnx.split(shapes, nnx.Param, nnx.RngState, ...)
    abstract, streams, others = states
    if foreign := nnx.to_flat_state(others):
        names = [f"{'/'.join(map(str, path))} ({type(leaf).__name__})" for path, leaf in foreign]
        raise ValueError(
            f"the module keeps variables that are no parameters: {', '.join(names)}. A step only "
            "hands on parameters and the carry: use a layer without running averages (LayerNorm, "
            "GroupNorm, batch statistics), or pass caches and states through the carry"
        )

    def init_parameters(key: jax.Array) -> dict[str, Any]:
        module = make_module(nnx.Rngs(key))
        parameters: dict[str, Any] = {}
        for path, leaf in nnx.to_flat_state(nnx.state(module, nnx.Param)):
            *parents, last = map(str, path)
            level = parameters
            for parent in parents:
                level = level.setdefault(parent, {})
            level[last] = leaf[...]
        return parameters

    def rebuild(parameters: Any, key: jax.Array | None = None) -> Any:
        def value(path: tuple[Any, ...], leaf: Any) -> Any:
            return leaf.replace(functools.reduce(operator.getitem, map(str, path), parameters))

        if key is None:
            # The streams stay abstract: a draw in evaluation fails instead of repeating itself.
            module = nnx.merge(graph, nnx.map_state(value, abstract), streams)
            module.eval()
            return module
        return nnx.merge(graph, nnx.map_state(value, abstract), _seeded(streams, key))

    return init_parameters, rebuild


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
    )
    # Weak types would turn strong in the first step and compile it a second time.
    return jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, leaf.dtype), state)
