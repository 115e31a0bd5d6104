import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from tests.training import program
from zoo.training import abstract_state, functional, init_state, make_mesh

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


class Network(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(11)])
        self.dropouts = nnx.List([nnx.Dropout(0.5, rngs=rngs) for _ in range(2)])

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x

    def masks(self):
        return [dropout(jnp.ones(64)) for dropout in self.dropouts]


def test_functional_module_is_the_module():
    before = len(jax.live_arrays())
    init, rebuild = functional(Network)
    assert len(jax.live_arrays()) == before
    parameters = jax.jit(init)(jax.random.key(3))
    assert parameters["layers"]["10"]["kernel"].shape == (4, 4)
    x = jnp.arange(8.0).reshape(2, 4)
    expected = Network(nnx.Rngs(jax.random.key(3)))(x)
    np.testing.assert_allclose(
        jax.jit(lambda parameters, x: rebuild(parameters)(x))(parameters, x), expected, rtol=1e-5
    )
    # every parameter is used where it came from
    gradients = jax.grad(lambda parameters: rebuild(parameters)(x).sum())(parameters)
    assert jax.tree.structure(gradients) == jax.tree.structure(parameters)


def test_random_streams_follow_the_key_and_differ_from_each_other():
    init, rebuild = functional(Network)
    parameters = init(jax.random.key(0))
    first, second = rebuild(parameters, jax.random.key(1)).masks()
    again, _ = rebuild(parameters, jax.random.key(1)).masks()
    other, _ = rebuild(parameters, jax.random.key(2)).masks()
    np.testing.assert_array_equal(first, again)
    assert (first != second).any()
    assert (first != other).any()
    np.testing.assert_array_equal(rebuild(parameters).masks()[0], 1.0)  # evaluation: no dropout


def test_running_averages_are_refused():
    with pytest.raises(ValueError, match=r"mean \(BatchStat\).*GroupNorm"):
        functional(lambda rngs: nnx.BatchNorm(4, rngs=rngs))
