"""The average as a part of an optimiser: nested, masked, sharded, saved, donated."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from tests.battery import quick_jit
from zoo.averaging import (
    AverageState,
    average_init,
    average_update,
    averaged_parameters,
    parameter_ema,
    power_law_ema,
    stochastic_weight_average,
)
from zoo.training import (
    Checkpointer,
    LossOutput,
    init_state,
    make_mesh,
    make_train_step,
    path_name,
    put_batch,
)

PARAMETERS = {"kernel": jnp.arange(6.0).reshape(3, 2) / 7, "bias": jnp.ones(2)}
WIDE_PARAMETERS = {"kernel": jnp.ones((64, 48)), "bias": jnp.ones(48)}


def loss(parameters, x):
    return jnp.sum(jnp.tanh(x @ parameters["kernel"] + parameters["bias"][None]) ** 2)


def train(optimizer, steps=5, parameters=PARAMETERS):
    """Compiled steps on fixed data; returns all parameters along the way and the last state."""
    state = optimizer.init(parameters)
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(steps, 4, 3)), jnp.float32)

    @quick_jit
    def step(parameters, state, x):
        updates, state = optimizer.update(jax.grad(loss)(parameters, x), state, parameters)
        return optax.apply_updates(parameters, updates), state

    path = [parameters]
    for x in xs:
        parameters, state = step(parameters, state, x)
        path.append(parameters)
    return path, state


def assert_equal(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def assert_near(actual, expected):
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6), actual, expected
    )


def average_of(path, decay):
    state = average_init(path[0])
    for parameters in path[1:]:
        state = average_update(state, parameters, decay=decay)
    return state.average


def test_updates_pass_through_untouched():
    updates = {"kernel": jnp.full((3, 2), 1e-30), "bias": jnp.array([jnp.inf, -0.0])}
    for transformation in (
        parameter_ema(0.9),
        power_law_ema(0.1),
        stochastic_weight_average(start_step=3),
    ):
        out, _ = transformation.update(updates, transformation.init(PARAMETERS), PARAMETERS)
        assert out is updates


@pytest.mark.parametrize("every", [1, 2])
def test_the_raw_parameters_are_those_without_an_average(every):
    """Compiled, with all optimisations: not one bit may differ."""

    def run(optimizer):
        @jax.jit
        def step(carry, x):
            parameters, state = carry
            updates, state = optimizer.update(jax.grad(loss)(parameters, x), state, parameters)
            return (optax.apply_updates(parameters, updates), state), None

        xs = jnp.asarray(np.random.default_rng(0).normal(size=(30, 4, 3)), jnp.float32)
        carry = (PARAMETERS, optimizer.init(PARAMETERS))
        for x in xs:
            carry, _ = step(carry, x)
        return carry[0]

    plain = optax.adam(0.1)
    assert_equal(run(optax.chain(plain, parameter_ema(0.99, every=every))), run(plain))


def test_averages_what_apply_updates_makes():
    path, state = train(optax.chain(optax.adam(0.1), parameter_ema(0.7)))
    assert_near(averaged_parameters(state), average_of(path, 0.7))


def test_inside_multi_steps_only_real_steps_count():
    inner = optax.chain(optax.adam(0.1), parameter_ema(0.7))
    path, state = train(optax.MultiSteps(inner, 2), steps=6)
    assert_equal(path[1], path[0])
    assert_near(averaged_parameters(state), average_of(path[::2], 0.7))


def test_behind_multi_steps_with_its_period():
    steps = optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation()
    path, state = train(optax.chain(steps, parameter_ema(0.7, every=2)), steps=6)
    assert_near(averaged_parameters(state), average_of(path[::2], 0.7))


def test_refused_steps_do_not_count():
    optimizer = optax.apply_if_finite(optax.chain(optax.sgd(0.1), parameter_ema(0.7)), 5)
    parameters = jnp.ones(2)
    state = optimizer.init(parameters)
    for gradient in (1.0, jnp.nan, 1.0):
        updates, state = optimizer.update(jnp.full(2, gradient), state, parameters)
        parameters = optax.apply_updates(parameters, updates)
    np.testing.assert_allclose(
        averaged_parameters(state), average_of([1.0, 0.9, 0.8], 0.7) * np.ones(2), rtol=1e-6
    )


NESTED = {
    "chain": lambda ema: optax.chain(optax.clip(1.0), optax.chain(optax.sgd(0.1), ema)),
    "named chain": lambda ema: optax.named_chain(("sgd", optax.sgd(0.1)), ("average", ema)),
    "inject_hyperparams": lambda ema: optax.inject_hyperparams(
        lambda learning_rate: optax.chain(optax.sgd(learning_rate), ema)
    )(learning_rate=0.1),
    "MultiSteps": lambda ema: optax.MultiSteps(optax.chain(optax.sgd(0.1), ema), 1),
    "apply_if_finite": lambda ema: optax.apply_if_finite(optax.chain(optax.sgd(0.1), ema), 3),
    "masked": lambda ema: optax.masked(optax.chain(optax.sgd(0.1), ema), lambda tree: True),
    "partition": lambda ema: optax.chain(
        optax.partition({"a": optax.sgd(0.1), "b": optax.adam(0.1)}, {"kernel": "a", "bias": "b"}),
        ema,
    ),
}


@pytest.mark.parametrize("name", NESTED)
def test_found_wherever_it_is_nested(name):
    path, state = train(NESTED[name](parameter_ema(0.7)), steps=3)
    assert_near(averaged_parameters(state), average_of(path, 0.7))


def test_found_in_the_optimizer_of_nnx():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.chain(optax.sgd(0.1), parameter_ema(0.5)), wrt=nnx.Param)
    before = model.kernel[...]
    gradient = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    optimizer.update(model, gradient)
    optimizer.update(model, gradient)
    state = optimizer.opt_state
    average = averaged_parameters(state)
    # θ_1 = θ - 0.1 and θ_2 = θ - 0.2 with weights 1/3 and 2/3
    np.testing.assert_allclose(average["kernel"][...], before - 0.5 / 3, rtol=1e-5, atol=1e-6)
    nnx.update(model, averaged_parameters(state, nnx.state(model, nnx.Param)))
    np.testing.assert_allclose(model.kernel[...], before - 0.5 / 3, rtol=1e-5, atol=1e-6)


def test_none_and_several_are_errors():
    with pytest.raises(ValueError, match=r"must hold one average, got 0; chain parameter_ema"):
        averaged_parameters(optax.adam(0.1).init(PARAMETERS))
    two = optax.named_chain(
        ("adam", optax.adam(0.1)), ("fast", parameter_ema(0.5)), ("slow", parameter_ema(0.9))
    )
    path, state = train(two)
    with pytest.raises(ValueError, match=r"got 2 of the averages at \['fast', 'slow'\]; choose"):
        averaged_parameters(state)
    with pytest.raises(ValueError, match=r"one average at a path with 'mean', got 0 of the averag"):
        averaged_parameters(state, path="mean")
    assert_near(averaged_parameters(state, path="slow"), average_of(path, 0.9))
    assert_near(averaged_parameters(state, path="^fast$"), average_of(path, 0.5))


@pytest.mark.parametrize(
    "mask", [{"kernel": True, "bias": False}, lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree)]
)
def test_mask(mask):
    optimizer = optax.chain(optax.adam(0.1), parameter_ema(0.7, mask=mask))
    path, state = train(optimizer)
    plain, _ = train(optax.adam(0.1))
    assert_equal(path[-1], plain[-1])
    leaves = [leaf.shape for leaf in jax.tree.leaves(state[1])]
    assert sorted(leaves) == [(), (), (3, 2)]  # no memory for the bias
    with pytest.raises(ValueError, match="parameters must be given, as the mask"):
        averaged_parameters(state)
    average = averaged_parameters(state, path[-1])
    assert_equal(average["bias"], path[-1]["bias"])
    assert_near(average["kernel"], average_of(path, 0.7)["kernel"])


def test_other_parameters_than_those_averaged():
    state = parameter_ema(0.9).init(PARAMETERS)
    with pytest.raises(ValueError, match=r"got others: \['bias'\] are on one side only"):
        averaged_parameters(state, {"kernel": PARAMETERS["kernel"]})


def test_mask_of_a_whole_branch():
    parameters = {"head": {"kernel": jnp.ones(2), "bias": jnp.ones(1)}, "body": jnp.ones(3)}
    transformation = parameter_ema(0.5, debias=False, mask={"head": False, "body": True})
    state = transformation.init(parameters)
    updates = jax.tree.map(jnp.ones_like, parameters)
    _, state = transformation.update(updates, state, parameters)
    average = averaged_parameters(state, optax.apply_updates(parameters, updates))
    assert_equal(
        average,
        {"head": {"kernel": 2 * jnp.ones(2), "bias": 2 * jnp.ones(1)}, "body": 1.5 * jnp.ones(3)},
    )


@pytest.mark.parametrize("mask", [False, {"kernel": False, "bias": False}, lambda tree: False])
def test_mask_that_leaves_nothing(mask):
    with pytest.raises(ValueError, match="mask must select at least one parameter"):
        parameter_ema(0.9, mask=mask).init(PARAMETERS)


def test_the_average_does_not_alias_the_parameters():
    """Both may be donated in one call, right after init."""
    optimizer = optax.chain(optax.sgd(0.1), parameter_ema(0.7))

    def step(parameters, state):
        updates, state = optimizer.update(parameters, state, parameters)
        return optax.apply_updates(parameters, updates), state

    step = jax.jit(step, donate_argnums=(0, 1))
    parameters = jax.tree.map(jnp.copy, PARAMETERS)
    carry = step(parameters, optimizer.init(parameters))
    carry = step(*carry)
    assert jax.tree.leaves(parameters)[0].is_deleted()
    assert jnp.isfinite(averaged_parameters(carry[1])["bias"]).all()


def loss_fn(parameters, batch, *, key, carry):
    errors = jnp.tanh(batch["x"]) @ parameters["kernel"] + parameters["bias"][None] - batch["y"]
    return LossOutput((errors**2).sum(), jnp.float32(errors.size))


def start(mesh, optimizer):
    def init(key):
        return {"kernel": jax.random.normal(key, (8, 4)), "bias": jnp.zeros(4)}

    rules = [("kernel$", PartitionSpec("fsdp", "model"))]
    state = init_state(init, optimizer, key=jax.random.key(0), mesh=mesh, rules=rules)
    return state, make_train_step(loss_fn, optimizer, shardings=state.shardings)


def batches(mesh, count):
    generator = np.random.default_rng(0)
    for _ in range(count):
        x = generator.normal(size=(8, 8)).astype(np.float32)
        yield put_batch({"x": x, "y": x[:, :4]}, mesh)


OPTIMIZER = optax.named_chain(
    ("adam", optax.adam(0.1)),
    ("ema", parameter_ema(0.7)),
    ("thinned", parameter_ema(0.7, every=2)),
)


def test_sharded_like_the_parameters_and_equal_to_one_device():
    results = []
    for mesh in (make_mesh(fsdp=2, model=2), make_mesh(devices=jax.devices()[:1])):
        state, step = start(mesh, OPTIMIZER)
        for batch in batches(mesh, 4):
            state, _ = step(state, batch)
            average = averaged_parameters(state.optimizer_state, path="ema")
            jax.tree.map(
                lambda a, p: a.sharding == p.sharding or pytest.fail(f"{a.sharding}"),
                average,
                state.parameters,
            )
        results.append(jax.device_get(average))
        thinned = averaged_parameters(state, path="thinned")
        assert thinned["kernel"].sharding == state.parameters["kernel"].sharding
    assert len(make_mesh(fsdp=2, model=2).devices.flat) == 8
    assert_near(*results)


def test_eager_init_keeps_the_place_of_the_parameters():
    mesh = make_mesh(fsdp=2, model=2)
    state, _ = start(mesh, optax.sgd(0.1))
    average = parameter_ema(0.9).init(state.parameters).average
    assert average["kernel"].sharding == state.parameters["kernel"].sharding


def test_saved_with_the_optimiser(tmp_path):
    """4 steps = 2 steps, save, restore (here or on another mesh), 2 steps; to the last bit."""
    mesh = make_mesh(fsdp=2, model=2)
    state, step = start(mesh, OPTIMIZER)
    data = list(batches(mesh, 4))
    for batch in data[:2]:
        state, _ = step(state, batch)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(state, position=2)
        fresh, _ = start(mesh, OPTIMIZER)
        restored, _ = checkpointer.restore(fresh)
        elsewhere, _ = checkpointer.restore(start(make_mesh(), OPTIMIZER)[0])
    for path in ("ema", "thinned"):
        expected = jax.device_get(averaged_parameters(state, path=path))
        assert_equal(jax.device_get(averaged_parameters(restored, path=path)), expected)
        assert_equal(jax.device_get(averaged_parameters(elsewhere, path=path)), expected)
    for batch in data[2:]:
        state, _ = step(state, batch)
        restored, _ = step(restored, batch)
    assert_equal(
        jax.device_get(jax.tree.leaves(restored.optimizer_state)),
        jax.device_get(jax.tree.leaves(state.optimizer_state)),
    )


def test_paths_end_like_those_of_the_parameters():
    state = parameter_ema(0.9, mask={"kernel": True, "bias": False}).init(PARAMETERS)
    names = [path_name(path) for path, _ in jax.tree.leaves_with_path(state)]
    assert "inner_state/average/kernel" in names


def test_an_ensemble_has_an_average_each():
    transformation = parameter_ema(0.5)
    ensemble = jnp.arange(3.0)
    state = jax.vmap(transformation.init)(ensemble)
    _, state = jax.vmap(transformation.update)(jnp.ones(3), state, ensemble)
    np.testing.assert_allclose(averaged_parameters(state), ensemble + 1)
    assert isinstance(state, AverageState)


def test_compiles_once():
    transformation = parameter_ema(0.9, start_step=1, every=2, warmup=True)
    traces = []

    @jax.jit
    def step(state, parameters):
        traces.append(0)
        return transformation.update(parameters, state, parameters)[1]

    state = jax.jit(transformation.init)(PARAMETERS)
    for _ in range(3):
        state = step(state, PARAMETERS)
    assert len(traces) == 1


@pytest.mark.parametrize("average", [parameter_ema(0.99), power_law_ema(0.1)])
def test_cost_is_one_more_array_read_and_written(average):
    """What XLA counts: 4 operations and 3 arrays (θ, average in, average out) a parameter.

    Behind 6 operations a parameter and row of the batch this is under 3 % from some rows on.
    """
    count = sum(leaf.size for leaf in jax.tree.leaves(WIDE_PARAMETERS))

    def cost(optimizer):
        def step(parameters, state, x):
            updates, state = optimizer.update(jax.grad(loss)(parameters, x), state, parameters)
            return optax.apply_updates(parameters, updates), state

        x = jnp.ones((16, 64))
        lowered = jax.jit(step).lower(WIDE_PARAMETERS, optimizer.init(WIDE_PARAMETERS), x)
        analysis = lowered.compile().cost_analysis()
        return analysis["flops"], analysis["bytes accessed"]

    with_flops, with_bytes = cost(optax.chain(optax.adam(0.1), average))
    flops, bytes_ = cost(optax.adam(0.1))
    assert with_flops - flops <= 4.1 * count
    assert with_bytes - bytes_ <= 12.1 * count
