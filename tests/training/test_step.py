import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from tests.training import program
from zoo.training import LossOutput, make_mesh, make_train_step, put_batch

RULES = (
    ("kernel$", PartitionSpec(None, ("fsdp", "model"))),
    ("bias$", PartitionSpec(("model", "fsdp"))),
)
ONE = make_mesh(devices=jax.devices()[:1])


def build(mesh, loss_fn=program.loss_fn, optimizer=program.OPTIMIZER, *, options=(), **state):
    """The first state on a mesh, and the step."""
    state = program.new_state(mesh, optimizer=optimizer, **state)
    step = make_train_step(loss_fn, optimizer, shardings=state.shardings, **dict(options))
    return state, step


@pytest.mark.parametrize("sizes", [{}, {"data": 2, "fsdp": 2, "model": 2}], ids=["data", "all"])
def test_every_mesh_gives_the_losses_of_one_device(sizes):
    def train(mesh):
        state, step = build(mesh, rules=RULES)
        history = []
        for seed in range(4):
            state, metrics = step(state, put_batch(program.make_batch(seed), mesh))
            history.append(jax.device_get(metrics))
        return history, state

    history, state = train(make_mesh(**sizes))
    expected, expected_state = train(ONE)
    for metrics, wanted in zip(history, expected, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), metrics, wanted)
    assert history[0]["loss"] != history[1]["loss"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        (state.parameters, state.carry),
        (expected_state.parameters, expected_state.carry),
    )


def test_gradient_is_that_of_the_mean_over_everything():
    """Against autodiff of the whole loss, and not the mean of the micro-batches' means."""
    mesh = make_mesh(devices=jax.devices()[:2])
    batch = program.make_batch(0)

    def mean(parameters, rows):
        part = {name: leaf[rows] for name, leaf in batch.items()}
        output = program.loss_fn(parameters, part, key=None, carry=())
        return output.total / jnp.maximum(output.weight, 1)

    optimizer = optax.sgd(1.0)
    for parts in (1, 4):
        options = {"accumulation_steps": parts}
        state, step = build(mesh, optimizer=optimizer, options=options, carry=False)
        before = jax.device_get(state.parameters)
        exact = jax.grad(mean)(before, slice(None))
        state, metrics = step(state, put_batch(batch, mesh))
        moved = jax.tree.map(lambda old, new: old - new, before, jax.device_get(state.parameters))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), moved, exact)
        np.testing.assert_allclose(metrics["loss"], mean(before, slice(None)), rtol=1e-5)
        np.testing.assert_allclose(metrics["row_weight"], batch["weight"].mean(), rtol=1e-6)
    means = [mean(before, slice(part, None, 4)) for part in range(4)]
    assert abs(np.mean(means) - mean(before, slice(None))) > 0.01


def test_micro_batches_and_carry_keep_their_rows():
    mesh = make_mesh(devices=jax.devices()[:2])
    seen = []

    def loss_fn(parameters, batch, *, key, carry):
        jax.debug.callback(lambda x: seen.append(x[:, 0].tolist()), batch["x"], ordered=False)
        total = (parameters["layer"]["bias"] ** 2).sum()
        return LossOutput(total, batch["x"].size, carry + batch["x"])

    x = np.arange(8, dtype=np.float32)[:, None].repeat(3, axis=1)
    state, step = build(mesh, loss_fn, options={"accumulation_steps": 2})
    state, _ = step(state, put_batch({"x": x}, mesh))
    jax.effects_barrier()
    assert sorted(seen) == [[0, 2, 4, 6], [1, 3, 5, 7]]
    np.testing.assert_array_equal(state.carry, x)


def test_accumulation_moves_no_rows_between_devices():
    mesh = make_mesh()
    state, step = build(mesh, options={"accumulation_steps": 4}, carry=False)
    batch = put_batch(program.make_batch(0, rows=32), mesh)
    text = step.lower(state.abstract, batch).compile().as_text()
    assert "all-reduce" in text
    assert not re.search("all-to-all|all-gather|collective-permute", text)


def test_low_precision_is_for_the_loss_function_only():
    seen = {}

    def loss_fn(parameters, batch, *, key, carry):
        seen["kernel"] = parameters["layer"]["kernel"].dtype
        batch = batch | {"x": batch["x"].astype(jnp.bfloat16)}
        return program.loss_fn(parameters, batch, key=key, carry=carry)

    mesh = make_mesh()
    options = {"accumulation_steps": 2, "compute_dtype": jnp.bfloat16}
    state, step = build(mesh, loss_fn, options=options, carry=False)
    before = jax.device_get(state.parameters["layer"]["kernel"])
    expected = state.abstract
    state, metrics = step(state, put_batch(program.make_batch(0, rows=16), mesh))
    assert seen["kernel"] == jnp.bfloat16
    assert state.abstract == expected
    assert metrics["loss"].dtype == jnp.float32
    moved = jax.device_get(state.parameters["layer"]["kernel"]) - before
    # Adam moves every entry by the learning rate; bfloat16 masters would round it away.
    np.testing.assert_allclose(np.abs(moved), 0.05, rtol=1e-3)


def test_state_keeps_its_form_and_is_donated_without_another_trace(caplog):
    traces = []

    def loss_fn(*arguments, **keywords):
        traces.append(1)
        return program.loss_fn(*arguments, **keywords)

    mesh = make_mesh(data=2, fsdp=2, model=2)
    state, step = build(mesh, loss_fn, rules=RULES)
    expected = state.abstract
    with jax.log_compiles():
        for seed in range(3):
            old = state
            state, metrics = step(state, put_batch(program.make_batch(seed), mesh))
            assert np.isfinite(metrics["loss"])
            assert state.abstract == expected
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old))
    assert len(traces) == 1
    compiled = [line for line in caplog.messages if "XLA compilation of jit(train_step)" in line]
    assert len(compiled) == 1


@pytest.fixture(scope="module")
def guarded():
    """A step on one device."""
    return build(ONE)[1]


def test_bad_batch_is_refused_and_the_next_one_is_taken(guarded):
    step, mesh = guarded, ONE
    good, bad = program.make_batch(0), program.make_batch(0)
    bad["x"][3, 1] = np.nan
    state = program.new_state(mesh)
    state, _ = step(state, put_batch(good, mesh))
    before = jax.device_get(state._replace(key=None))
    for refused in (1, 2):
        state, metrics = step(state, put_batch(bad, mesh))
        assert metrics["nonfinite_steps"] == refused
        assert not np.isfinite(metrics["loss"])
    after = jax.device_get(state._replace(key=None))
    assert (after.step, after.nonfinite_steps) == (3, 2)
    for name in ("parameters", "optimizer_state", "carry"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(before, name))
    state, metrics = step(state, put_batch(good, mesh))
    assert metrics["nonfinite_steps"] == state.nonfinite_steps == 0
    assert (
        jax.device_get(state.parameters["layer"]["bias"]) != before.parameters["layer"]["bias"]
    ).all()


def test_batch_of_no_weight_has_loss_and_gradient_zero(guarded):
    empty = program.make_batch(0) | {"weight": np.zeros(program.ROWS, np.float32)}
    state, metrics = guarded(program.new_state(ONE), put_batch(empty, ONE))
    assert metrics["loss"] == metrics["gradient_norm"] == metrics["nonfinite_steps"] == 0
    assert np.isfinite(state.parameters["layer"]["kernel"]).all()


def test_optimiser_gets_parameters_and_loss():
    seen = {}

    def update(updates, state, params=None, *, value, **extra):
        seen["params"] = jax.tree.structure(params)
        return jax.tree.map(lambda leaf: jnp.zeros_like(leaf) + value, updates), state

    optimizer = optax.GradientTransformationExtraArgs(lambda params: (), update)
    state, step = build(ONE, optimizer=optimizer, carry=False)
    before = np.array(state.parameters["layer"]["bias"])
    state, metrics = step(state, put_batch(program.make_batch(0), ONE))
    assert seen["params"] == jax.tree.structure(state.parameters)
    np.testing.assert_allclose(state.parameters["layer"]["bias"] - before, metrics["loss"])


ROW = jnp.zeros(8)
WRONG_OUTPUTS = {
    "mean": (ROW.sum(), TypeError, "must return a LossOutput, got"),
    "vector": (LossOutput(ROW, 8), ValueError, r"total must be a scalar sum, got shape \(8,\)"),
    "weights": (LossOutput(ROW.sum(), ROW), ValueError, r"weight must be a scalar sum"),
    "integer": (LossOutput(jnp.int32(3), 8), TypeError, "total must be a floating.*int32"),
    "metric": (LossOutput(ROW.sum(), 8, (), {"a": ROW}), TypeError, "'a' must be a pair"),
    "name": (LossOutput(ROW.sum(), 8, (), {"loss": (1, 1)}), ValueError, "'loss'.*rename"),
    "structure": (LossOutput(ROW.sum(), 8, ROW), TypeError, "carry must keep its structure"),
}


@pytest.mark.parametrize(("output", "error", "message"), WRONG_OUTPUTS.values(), ids=WRONG_OUTPUTS)
def test_wrong_output_of_the_loss_function_is_explained(output, error, message):
    abstract = program.new_state(ONE, carry=False).abstract
    step = make_train_step(lambda *_, **__: output, program.OPTIMIZER)
    with pytest.raises(error, match=message):
        jax.eval_shape(step, abstract, program.make_batch(0))


def test_carry_of_another_dtype_and_batch_that_does_not_split_are_named():
    abstract = program.new_state(ONE).abstract

    def loss_fn(parameters, batch, *, key, carry):
        return LossOutput(jnp.float32(0), 1, carry.astype(jnp.bfloat16))

    with pytest.raises(TypeError, match=r"float32\[8, 3\], became bfloat16"):
        jax.eval_shape(make_train_step(loss_fn, program.OPTIMIZER), abstract, program.make_batch(0))
    step = make_train_step(program.loss_fn, program.OPTIMIZER, accumulation_steps=3)
    with pytest.raises(ValueError, match=r"'weight' has shape \(8,\).*=3 must divide"):
        jax.eval_shape(step, abstract, program.make_batch(0))
    with pytest.raises(ValueError, match="accumulation_steps must be at least 1, got 0"):
        make_train_step(program.loss_fn, program.OPTIMIZER, accumulation_steps=0)


def test_key_of_a_step_is_folded_from_its_number_and_micro_batches_differ():
    def loss_fn(parameters, batch, *, key, carry):
        draw = jax.random.uniform(key)
        total = (parameters["layer"]["bias"] ** 2).sum()
        return LossOutput(total, 1, carry, {"draw": (draw, 1), "square": (draw**2, 1)})

    for parts in (1, 2):
        state, step = build(ONE, loss_fn, options={"accumulation_steps": parts}, carry=False)
        keys = [jax.random.fold_in(state.key, number) for number in range(2)]
        if parts == 2:
            keys = [jax.random.split(key, 2) for key in keys]
        for key in keys:
            state, metrics = step(state, program.make_batch(0))
            draws = jnp.atleast_1d(jax.vmap(jax.random.uniform)(jnp.atleast_1d(key)))
            np.testing.assert_allclose(metrics["draw"], draws.mean(), rtol=1e-6)
            np.testing.assert_allclose(metrics["square"], (draws**2).mean(), rtol=1e-6)


def test_new_state_lies_where_the_old_one_lay_whatever_the_compiler_prefers():
    def loss_fn(parameters, batch, *, key, carry):
        """Moves the bias to the model axis of the context mesh, though no rule places it there."""
        parameters["layer"]["bias"] = jax.lax.with_sharding_constraint(
            parameters["layer"]["bias"], PartitionSpec("model")
        )
        return program.loss_fn(parameters, batch, key=key, carry=carry)

    mesh = make_mesh(data=4, model=2)
    state, step = build(mesh, loss_fn, optax.sgd(0.1), carry=False)
    expected = state.abstract
    state, _ = step(state, put_batch(program.make_batch(0), mesh))
    assert state.abstract == expected
