"""One training step: exact global means, accumulation, low precision, a guard against NaN.

The loss function returns sums, not means, so that the gradient is that of

    loss = Σ total / Σ weight

over all rows of all devices and micro-batches, also when they hold unequal numbers of words. A mean
of the micro-batches' means would be another, biased loss.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from zoo import _checks as checks
from zoo._paths import path_name
from zoo.training.state import TrainState


class LossOutput(NamedTuple):
    """What a loss function returns.

    Attributes:
        total: ``[]`` floating, the sum of what is averaged (over rows, words …).
        weight: ``[]``, how many there are.
        carry: for the next batch; same structure, shapes and dtypes as the argument ``carry``.
        metrics: name -> (total, weight), reported as their ratio.
        model_state: the new model state; same structure as the argument ``model_state``.
    """

    total: jax.Array
    weight: jax.Array
    carry: Any = ()
    metrics: dict[str, tuple[jax.Array, jax.Array]] = {}  # noqa: RUF012 - never changed
    model_state: Any = ()


LossFunction = Callable[..., LossOutput]
RESERVED = ("loss", "gradient_norm", "weight", "nonfinite_steps")


def make_train_step(
    loss_fn: LossFunction,
    optimizer: optax.GradientTransformation,
    *,
    accumulation_steps: int = 1,
    compute_dtype: DTypeLike | None = None,
    shardings: TrainState | None = None,
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]:
    """Builds the jitted step ``(state, batch) -> (state, metrics)``; the state is donated.

    When the loss or the global gradient norm is not finite, parameters, optimiser state, carry and
    model state stay as they were, and ``nonfinite_steps`` counts up; a good step sets it back to 0.
    A batch of zero weight counts as one with loss and gradient 0.

    Args:
        loss_fn: ``(parameters, batch, *, key, carry) -> LossOutput``. Inside it, the mesh of
            ``shardings`` is the context mesh: ``with_sharding_constraint(x, PartitionSpec(...))``.
            If the state has a ``model_state``, it comes as a further keyword of that name, from one
            micro-batch to the next.
        optimizer: an Optax transformation; its update also gets the parameters, ``value=loss`` and
            the new ``model_state``.
        accumulation_steps: A, number of micro-batches a batch is worked through in; A must divide
            the rows of each device. Memory for activations shrinks by A, the result stays.
        compute_dtype: such as ``jnp.bfloat16``: floating parameters are cast to it for the loss
            function. Masters, sums of gradients and optimiser state keep float32. Cast the inputs
            in the loss function too: float32 inputs pull the computation back to float32.
        shardings: ``state.shardings``. Given, the new state is placed like the old one, whatever
            the compiler would prefer, so that no later call compiles again.

    Returns:
        A ``jax.jit`` function (``step.lower(...)`` works). Its metrics are ``[]`` arrays: ``loss``,
        ``gradient_norm``, ``weight``, ``nonfinite_steps`` and those of ``loss_fn``.

    Raises:
        ValueError: if accumulation_steps < 1. At the first call: TypeError or ValueError if the
            loss function's output has another form, or the batch does not split.

    >>> import numpy as np
    >>> from zoo.training import init_state, make_mesh, put_batch
    >>> def loss_fn(parameters, batch, *, key, carry):
    ...     errors = batch["x"] @ parameters["kernel"] - batch["y"]
    ...     return LossOutput((errors**2).sum(), jnp.float32(errors.size))
    >>> optimizer, mesh = optax.sgd(0.1), make_mesh()
    >>> init = lambda key: {"kernel": jnp.zeros((3, 1))}
    >>> state = init_state(init, optimizer, key=jax.random.key(0), mesh=mesh)
    >>> step = make_train_step(loss_fn, optimizer, shardings=state.shardings)
    >>> state, metrics = step(state, put_batch({"x": np.ones((8, 3)), "y": np.ones((8, 1))}, mesh))
    >>> float(metrics["loss"])
    1.0
    """
    checks.count("accumulation_steps", accumulation_steps, at_least=1)
    update = optax.with_extra_args_support(optimizer).update
    context: Any = contextlib.nullcontext
    if shardings is not None:
        place: Any = shardings.step
        context = functools.partial(jax.sharding.use_abstract_mesh, place.mesh.abstract_mesh)

    def sums(
        parameters: Any, batch: Any, key: jax.Array, carry: Any, model_state: Any
    ) -> tuple[Any, LossOutput]:
        if compute_dtype is not None:
            parameters = jax.tree.map(lambda leaf: _cast(leaf, compute_dtype), parameters)
        more = {"model_state": model_state} if jax.tree.leaves(model_state) else {}
        output = loss_fn(parameters, batch, key=key, carry=carry, **more)
        _check_output(output)
        _check_same("the carry", output.carry, carry)
        _check_same("the model state", output.model_state, model_state)
        total, weight, metrics = jax.tree.map(
            _float32, (output.total, output.weight, output.metrics)
        )
        return total, output._replace(total=total, weight=weight, metrics=metrics)

    gradient = jax.grad(sums, has_aux=True)

    def accumulated(state: TrainState, batch: Any, key: jax.Array) -> tuple[Any, LossOutput]:
        if accumulation_steps == 1:
            return gradient(state.parameters, batch, key, state.carry, state.model_state)

        def add(sums: Any, inputs: Any) -> tuple[Any, LossOutput]:
            total, model_state = sums
            more, output = gradient(state.parameters, *inputs, model_state)
            sums = jax.tree.map(jnp.add, total, more), output.model_state
            return sums, output._replace(model_state=())

        inputs = (
            _split(batch, accumulation_steps, "batch"),
            jax.random.split(key, accumulation_steps),
            _split(state.carry, accumulation_steps, "carry"),
        )
        zeros = jax.tree.map(jnp.zeros_like, state.parameters)
        (gradients, model_state), outputs = jax.lax.scan(add, (zeros, state.model_state), inputs)
        total, weight, metrics = jax.tree.map(
            lambda leaf: leaf.sum(axis=0), (outputs.total, outputs.weight, outputs.metrics)
        )
        return gradients, LossOutput(total, weight, _join(outputs.carry), metrics, model_state)

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        with context():
            gradients, output = accumulated(state, batch, jax.random.fold_in(state.key, state.step))
        loss = _ratio(output.total, output.weight)
        gradients = jax.tree.map(lambda leaf: _ratio(leaf, output.weight), gradients)
        norm = optax.tree.norm(gradients)
        more = {"value": loss, "model_state": output.model_state}
        updates, optimizer_state = update(
            gradients, state.optimizer_state, state.parameters, **more
        )
        parameters = optax.apply_updates(state.parameters, updates)

        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        old = (state.parameters, state.optimizer_state, state.carry, state.model_state)
        new = (parameters, optimizer_state, output.carry, output.model_state)
        _check_same("the optimiser state", optimizer_state, state.optimizer_state)
        parameters, optimizer_state, carry, model_state = jax.tree.map(
            lambda new_leaf, old_leaf: jax.lax.select(finite, new_leaf, old_leaf), new, old
        )
        nonfinite_steps = jnp.where(finite, 0, state.nonfinite_steps + 1).astype(jnp.int32)
        metrics = {name: _ratio(*pair) for name, pair in output.metrics.items()}
        metrics |= zip(RESERVED, (loss, norm, output.weight, nonfinite_steps), strict=True)
        step = state.step + 1
        return TrainState(
            step, parameters, optimizer_state, state.key, nonfinite_steps, carry, model_state
        ), metrics

    if shardings is None:
        return jax.jit(train_step, donate_argnums=0)
    return jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, shardings.step))


def _cast(leaf: jax.Array, dtype: DTypeLike) -> jax.Array:
    return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def _float32(value: ArrayLike) -> jax.Array:
    """At least float32, the precision that sums over many micro-batches need."""
    return jnp.asarray(value, checks.accumulator(jnp.result_type(value)))


def _ratio(total: jax.Array, weight: jax.Array) -> jax.Array:
    return total / jnp.where(weight == 0, 1, weight)


def _split(tree: Any, parts: int, what: str) -> Any:
    """[B, ...] -> [A, B/A, ...]; micro-batch a takes rows a, A+a, 2A+a and so on.

    Neighbouring rows go to different micro-batches, so that each device, which holds a block of
    rows, finds its share of every micro-batch among its own rows and sends nothing.
    """

    def split(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        if leaf.shape[0] % parts:
            raise ValueError(
                f"{what} leaf {path_name(path)!r} has shape {leaf.shape}: accumulation_steps="
                f"{parts} must divide its first axis"
            )
        leaf = leaf.reshape(leaf.shape[0] // parts, parts, *leaf.shape[1:])
        return leaf.swapaxes(0, 1)

    return jax.tree_util.tree_map_with_path(split, tree)


def _join(tree: Any) -> Any:
    """The inverse of ``_split``."""
    return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1).reshape(-1, *leaf.shape[2:]), tree)


def _check_output(output: Any) -> None:
    if not isinstance(output, LossOutput):
        raise TypeError(f"loss_fn must return a LossOutput, got {type(output).__name__}")
    sums = {"total": output.total, "weight": output.weight}
    for name, pair in output.metrics.items():
        if name in RESERVED:
            raise ValueError(f"metric {name!r}: the step itself reports {RESERVED}; rename yours")
        if not (isinstance(pair, tuple) and len(pair) == 2):
            raise TypeError(f"metric {name!r} must be a pair (total, weight), got {pair!r}")
        sums |= {f"total of metric {name!r}": pair[0], f"weight of metric {name!r}": pair[1]}
    for name, value in sums.items():
        if jnp.shape(value) != ():
            raise ValueError(
                f"loss_fn: {name} must be a scalar sum, got shape {jnp.shape(value)}; "
                "return x.sum() and how many there are"
            )
    checks.floating("loss_fn: total", output.total)


def _check_same(what: str, new: Any, old: Any) -> None:
    expected: Any = jax.tree.structure(old)
    if jax.tree.structure(new) != expected:
        raise TypeError(
            f"{what} must keep its structure from step to step: expected {expected}, got "
            f"{jax.tree.structure(new)}"
        )
    pairs = zip(jax.tree.leaves_with_path(new), jax.tree.leaves(old), strict=True)
    for (path, after), before in pairs:
        if (after.shape, after.dtype) != (before.shape, before.dtype):
            raise TypeError(
                f"{what} must keep shapes and dtypes from step to step: {path_name(path)!r} was "
                f"{before.dtype}{list(before.shape)}, became {after.dtype}{list(after.shape)}"
            )
