"""The average as a part of an optimiser: nested, masked, sharded, saved, donated."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from tests.battery import quick_jit
from zoo._paths import path_name
from zoo.averaging import (
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
    put_batch,
)

PARAMETERS = {"kernel": jnp.arange(6.0).reshape(3, 2) / 7, "bias": jnp.ones(2)}


def loss(parameters, x):
    return jnp.sum(jnp.tanh(x @ parameters["kernel"] + parameters["bias"][None]) ** 2)


def train(optimizer, steps=5, jit=quick_jit):
    """Steps on fixed data; returns the parameters after each, the first before, and the state."""
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(steps, 4, 3)), jnp.float32)

    @jit
    def step(parameters, state, x):
        updates, state = optimizer.update(jax.grad(loss)(parameters, x), state, parameters)
        return optax.apply_updates(parameters, updates), state

    path, state = [PARAMETERS], optimizer.init(PARAMETERS)
    for x in xs:
        parameters, state = step(path[-1], state, x)
        path.append(parameters)
    return path, state


def assert_equal(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def assert_near(actual, expected):
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, actual, expected)


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
def test_the_parameters_are_those_without_an_average(every):
    """Compiled, with all optimisations: not one bit may differ."""
    optimizer = optax.chain(optax.adam(0.1), parameter_ema(0.99, every=every))
    with_average, _ = train(optimizer, steps=20, jit=jax.jit)
    without, _ = train(optax.adam(0.1), steps=20, jit=jax.jit)
    assert_equal(with_average, without)


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


NESTED = {
    "chain": lambda ema: optax.chain(optax.clip(1.0), optax.chain(optax.sgd(0.1), ema)),
    "named chain": lambda ema: optax.named_chain(("sgd", optax.sgd(0.1)), ("average", ema)),
    "inject_hyperparams": lambda ema: optax.inject_hyperparams(
        lambda learning_rate: optax.chain(optax.sgd(learning_rate), ema)
    )(learning_rate=0.1),
    "MultiSteps": lambda ema: optax.MultiSteps(optax.chain(optax.sgd(0.1), ema), 1),
    "masked": lambda ema: optax.masked(optax.chain(optax.sgd(0.1), ema), lambda tree: True),
    "partition": lambda ema: optax.chain(
        optax.partition({"a": optax.sgd(0.1), "b": optax.adam(0.1)}, {"kernel": "a", "bias": "b"}),
        ema,
    ),
}


@pytest.mark.parametrize("name", NESTED)
def test_found_at_any_depth(name):
    state = NESTED[name](parameter_ema(0.7)).init(PARAMETERS)
    assert_equal(averaged_parameters(state), PARAMETERS)


def test_found_in_the_optimizer_of_nnx():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.chain(optax.sgd(0.1), parameter_ema(0.5)), wrt=nnx.Param)
    before = model.kernel[...]
    gradient = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    optimizer.update(model, gradient)
    optimizer.update(model, gradient)
    # θ_1 = θ - 0.1 and θ_2 = θ - 0.2 with weights 1/3 and 2/3
    average = averaged_parameters(optimizer.opt_state)
    assert_near(average["kernel"][...], before - 0.5 / 3)
    nnx.update(model, averaged_parameters(optimizer.opt_state, nnx.state(model, nnx.Param)))
    assert_near(model.kernel[...], before - 0.5 / 3)


def test_none_and_several_are_errors():
    with pytest.raises(ValueError, match=r"opt_state must hold one average, got 0.*chain param"):
        averaged_parameters(optax.adam(0.1).init(PARAMETERS))
    two = optax.named_chain(
        ("adam", optax.adam(0.1)), ("fast", parameter_ema(0.5)), ("slow", parameter_ema(0.9))
    )
    path, state = train(two)
    with pytest.raises(ValueError, match=r"got 2 of the averages at \['fast', 'slow'\]; .*choose"):
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
    leaves = {path_name(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(state[1])}
    inner = {"steps": (), "weight": (), "average/kernel": (3, 2)}  # no memory for the bias
    assert leaves == {f"inner_state/{name}": shape for name, shape in inner.items()}
    with pytest.raises(ValueError, match="parameters must be given, as the mask"):
        averaged_parameters(state)
    average = averaged_parameters(state, path[-1])
    assert_equal(average["bias"], path[-1]["bias"])
    assert_near(average["kernel"], average_of(path, 0.7)["kernel"])


def test_other_parameters_than_those_averaged():
    state = parameter_ema(0.9).init(PARAMETERS)
    with pytest.raises(ValueError, match=r"\['bias'\] are on one side only, got \['kernel'\]"):
        averaged_parameters(state, {"kernel": PARAMETERS["kernel"]})


def test_mask_of_a_complete_branch():
    parameters = {"head": {"kernel": jnp.ones(2), "bias": jnp.ones(1)}, "body": jnp.ones(3)}
    transformation = parameter_ema(0.5, debias=False, mask={"head": False, "body": True})
    state = transformation.init(parameters)
    _, state = transformation.update(parameters, state, parameters)
    average = averaged_parameters(state, jax.tree.map(lambda x: 2 * x, parameters))
    head = {"kernel": 2 * jnp.ones(2), "bias": 2 * jnp.ones(1)}
    assert_equal(average, {"head": head, "body": 1.5 * jnp.ones(3)})


@pytest.mark.parametrize("mask", [False, {"kernel": False, "bias": False}, lambda tree: False])
def test_mask_that_leaves_nothing(mask):
    with pytest.raises(ValueError, match="mask must select at least one parameter, got False"):
        parameter_ema(0.9, mask=mask).init(PARAMETERS)


def test_the_average_does_not_alias_the_parameters():
    """Both may be donated in one call, right after init."""
    optimizer = optax.chain(optax.sgd(0.1), parameter_ema(0.7))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(parameters, state):
        updates, state = optimizer.update(parameters, state, parameters)
        return optax.apply_updates(parameters, updates), state

    parameters = jax.tree.map(jnp.copy, PARAMETERS)
    carry = step(*step(parameters, optimizer.init(parameters)))
    assert jax.tree.leaves(parameters)[0].is_deleted()
    assert jnp.isfinite(averaged_parameters(carry[1])["bias"]).all()


OPTIMIZER = optax.named_chain(
    ("sgd", optax.sgd(0.1)), ("ema", parameter_ema(0.7)), ("thinned", parameter_ema(0.7, every=2))
)


def start(mesh):
    def init(key):
        return {"kernel": jax.random.normal(key, (8, 4)), "bias": jnp.zeros(4)}

    def loss_fn(parameters, batch, *, key, carry):
        errors = jnp.tanh(batch["x"]) @ parameters["kernel"] + parameters["bias"][None]
        return LossOutput((errors**2).sum(), jnp.float32(errors.size))

    rules = [("kernel$", PartitionSpec("fsdp", "model"))]
    state = init_state(init, OPTIMIZER, key=jax.random.key(0), mesh=mesh, rules=rules)
    return state, make_train_step(loss_fn, OPTIMIZER, shardings=state.shardings)


def run(state, step, mesh, steps):
    for number in steps:
        x = np.random.default_rng(number).normal(size=(8, 8)).astype(np.float32)
        state, _ = step(state, put_batch({"x": x}, mesh))
    return state


def test_sharded_like_the_parameters_and_equal_to_one_device():
    results = []
    for mesh in (make_mesh(fsdp=2, model=2), make_mesh(devices=jax.devices()[:1])):
        state, step = start(mesh)
        eager = parameter_ema(0.9).init(state.parameters).average
        state = run(state, step, mesh, range(4))
        averages = [averaged_parameters(state, path=name) for name in ("ema", "thinned")]
        for name, parameter in state.parameters.items():
            for average in (eager, *averages):
                assert average[name].sharding == parameter.sharding
        results.append(jax.device_get(averages))
    assert_near(*results)


@pytest.mark.slow
def test_saved_with_the_optimiser(tmp_path):
    """4 steps = 2 steps, save, restore (here or on another mesh), 2 steps; to the last bit."""
    mesh = make_mesh(fsdp=2, model=2)
    state, step = start(mesh)
    state = run(state, step, mesh, range(2))
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(state, position=2)
        restored, _ = checkpointer.restore(start(mesh)[0])
        elsewhere, _ = checkpointer.restore(start(make_mesh())[0])
    assert_equal(*(jax.device_get(s.optimizer_state) for s in (elsewhere, state)))
    pair = (run(state, step, mesh, range(2, 4)), run(restored, step, mesh, range(2, 4)))
    assert_equal(*(jax.device_get(s.optimizer_state) for s in pair))


def test_cost_is_one_more_array_read_and_written():
    """What XLA counts: 4 operations and 3 arrays (θ, average in, average out) per parameter.

    A forward and backward pass takes 6 operations per parameter and example, so that this is under
    3 % from some batch size on.
    """
    parameters = {"kernel": jnp.ones((64, 48)), "bias": jnp.ones(48)}
    count = sum(leaf.size for leaf in jax.tree.leaves(parameters))

    def cost(optimizer):
        def step(parameters, state, x):
            updates, state = optimizer.update(jax.grad(loss)(parameters, x), state, parameters)
            return optax.apply_updates(parameters, updates), state

        lowered = jax.jit(step).lower(parameters, optimizer.init(parameters), jnp.ones((16, 64)))
        analysis = lowered.compile().cost_analysis()
        return np.array([analysis["flops"], analysis["bytes accessed"]])

    more = cost(optax.chain(optax.adam(0.1), parameter_ema(0.99))) - cost(optax.adam(0.1))
    assert (more <= np.array([4.1, 12.1]) * count).all()
