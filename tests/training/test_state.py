import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from tests.training import program
from zoo.training import (
    LossOutput,
    functional,
    init_state,
    make_mesh,
    make_train_step,
    put_batch,
)
from zoo.training.state import abstract_state, get_model_state

RULES = (("kernel$", PartitionSpec(None, "fsdp")),)


def test_values_do_not_depend_on_the_mesh_but_places_do():
    one = program.new_state(make_mesh(devices=jax.devices()[:1]))
    many = program.new_state(make_mesh(data=2, fsdp=2, model=2), rules=RULES)
    jax.tree.map(
        np.testing.assert_array_equal,
        *(state._replace(key=jax.random.key_data(state.key)) for state in (one, many)),
    )
    kernel = many.parameters["layer"]["kernel"]
    assert kernel.sharding.spec == PartitionSpec(None, "fsdp")
    assert kernel.addressable_shards[0].data.shape == (3, 2)
    assert many.optimizer_state[0].mu["layer"]["kernel"].sharding == kernel.sharding
    assert many.carry.sharding.spec == PartitionSpec(("data", "fsdp"))


def test_abstract_state_is_the_state_without_memory():
    mesh = make_mesh(data=2, fsdp=4)
    before = len(jax.live_arrays())
    carry = jax.ShapeDtypeStruct((program.ROWS, 3), jnp.float32)
    abstract = abstract_state(
        program.init_parameters, program.OPTIMIZER, mesh=mesh, rules=RULES, carry=carry
    )
    assert len(jax.live_arrays()) == before
    assert abstract == program.new_state(mesh, rules=RULES).abstract


def test_state_shares_no_buffer_with_what_it_was_made_from():
    key, carry = jax.random.key(0), jnp.zeros((8, 3))
    mesh = make_mesh(devices=jax.devices()[:1])
    state = init_state(
        program.init_parameters, optax.sgd(0.1), key=key, mesh=mesh, carry=(carry, carry)
    )
    jax.jit(lambda state: state, donate_argnums=0)(state)
    assert not key.is_deleted()
    assert not carry.is_deleted()


def test_raw_key_and_low_precision_parameters_are_refused():
    mesh = make_mesh()
    with pytest.raises(TypeError, match=r"jax\.random\.key\(0\)"):
        init_state(program.init_parameters, optax.sgd(0.1), key=jax.random.PRNGKey(0), mesh=mesh)
    for dtype in (jnp.bfloat16, jnp.int32):
        with pytest.raises(TypeError, match=rf"'deep/kernel' is {jnp.dtype(dtype)}.*compute_dtype"):
            abstract_state(
                lambda key, dtype=dtype: {"deep": {"kernel": jnp.zeros(3, dtype)}},
                optax.sgd(0.1),
                mesh=mesh,
            )


class Shift(nnx.Module):
    def __init__(self, amount):
        self.bias = nnx.Param(jnp.full(4, amount))


class Network(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(4, 4, rngs=rngs)
        self.shifts = nnx.List([Shift(float(i)) for i in range(11)])
        self.dropouts = nnx.List([nnx.Dropout(0.5, rngs=rngs) for _ in range(2)])

    def __call__(self, x):
        return self.dense(x) * jnp.stack([shift.bias[...] for shift in self.shifts])[:, None]

    def masks(self):
        return [dropout(jnp.ones(64)) for dropout in self.dropouts]


def test_functional_module_is_the_module():
    before = len(jax.live_arrays())
    init, merge = functional(Network)
    assert len(jax.live_arrays()) == before
    parameters = jax.jit(init)(jax.random.key(3))
    assert parameters["shifts"]["10"]["bias"].tolist() == [10.0] * 4
    x = jnp.arange(8.0).reshape(2, 4)
    expected = Network(nnx.Rngs(jax.random.key(3)))(x[None])
    found = jax.jit(lambda parameters, x: merge(parameters)(x[None]))(parameters, x)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_random_streams_follow_the_key_and_differ_from_each_other():
    init, merge = functional(Network)
    parameters = init(jax.random.key(0))
    first, second = merge(parameters, jax.random.key(1)).masks()
    again, _ = merge(parameters, jax.random.key(1)).masks()
    other, _ = merge(parameters, jax.random.key(2)).masks()
    np.testing.assert_array_equal(first, again)
    assert (first != second).any()
    assert (first != other).any()
    np.testing.assert_array_equal(merge(parameters).masks()[0], 1.0)  # evaluation: no dropout


def test_running_averages_are_refused_where_nothing_hands_them_on():
    init, merge = functional(lambda rngs: nnx.BatchNorm(4, rngs=rngs))
    with pytest.raises(ValueError, match=r"mean \(BatchStat\).*get_model_state"):
        merge(init(jax.random.key(0)), jax.random.key(0))


class Normalized(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(3, momentum=0.9, rngs=rngs)
        self.dense = nnx.Linear(3, 1, rngs=rngs)

    def __call__(self, x):
        return self.dense(self.norm(x))


INIT, MERGE = functional(Normalized)


def normalized_loss(parameters, batch, *, key, carry, model_state):
    module = MERGE(parameters, key, model_state=model_state)
    errors = (module(batch["x"]) - 1) ** 2
    return LossOutput(errors.sum(), jnp.float32(len(errors)), model_state=get_model_state(module))


def normalized_state(mesh):
    return init_state(
        INIT,
        optax.sgd(0.1),
        key=jax.random.key(0),
        mesh=mesh,
        init_model_state=lambda key: get_model_state(Normalized(nnx.Rngs(key))),
    )


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_running_averages_follow_the_batches_of_all_devices(accumulation_steps):
    mesh = make_mesh()
    x = np.random.default_rng(0).normal(2.0, 3.0, (32, 3)).astype(np.float32)
    state = normalized_state(mesh)
    step = make_train_step(
        normalized_loss,
        optax.sgd(0.1),
        shardings=state.shardings,
        accumulation_steps=accumulation_steps,
    )
    state, _ = step(state, put_batch({"x": x}, mesh))
    mean, variance = np.zeros(3), np.ones(3)
    for part in (x[i::accumulation_steps] for i in range(accumulation_steps)):
        mean = 0.9 * mean + 0.1 * part.mean(axis=0)
        variance = 0.9 * variance + 0.1 * part.var(axis=0)
    np.testing.assert_allclose(state.model_state["norm"]["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(state.model_state["norm"]["var"], variance, rtol=1e-5)
    # A bad batch leaves them alone.
    before = jax.device_get(state.model_state)
    state, metrics = step(state, put_batch({"x": x * np.float32("nan")}, mesh))
    assert metrics["nonfinite_steps"] == 1
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.model_state), before)


def test_evaluation_uses_the_running_averages_and_leaves_them():
    parameters, model_state = (
        INIT(jax.random.key(0)),
        {"norm": {"mean": jnp.full(3, 2.0), "var": jnp.full(3, 4.0)}},
    )
    module = MERGE(parameters, model_state=model_state)
    dense = parameters["dense"]
    expected = (5.0 - 2.0) / np.sqrt(4.0 + 1e-5) * dense["kernel"].sum() + dense["bias"]
    np.testing.assert_allclose(
        module(jnp.full((2, 3), 5.0)), expected[None].repeat(2, 0), rtol=1e-5
    )
    jax.tree.map(np.testing.assert_array_equal, get_model_state(module), model_state)


def test_lost_model_state_is_named():
    def forgetful(*arguments, **options):
        return normalized_loss(*arguments, **options)._replace(model_state=())

    step = make_train_step(forgetful, optax.sgd(0.1))
    with pytest.raises(TypeError, match="the model state must keep its structure"):
        jax.eval_shape(step, normalized_state(make_mesh()), {"x": np.ones((4, 3), np.float32)})
