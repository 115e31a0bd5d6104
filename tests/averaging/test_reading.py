"""One average of parameters and model state, of several groups, and back into a module."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.battery import quick_jit
from zoo.averaging import (
    average_init,
    average_update,
    averaged_module,
    averaged_parameters,
    parameter_ema,
    power_law_ema,
    stochastic_weight_average,
)
from zoo.training import LossOutput, functional, init_state, make_mesh, make_train_step, put_batch
from zoo.training.state import get_model_state

XS = np.random.default_rng(0).normal(1, 2, size=(3, 8, 2)).astype("f")


class Network(nnx.Module):
    """Parameters, running statistics, a key and a counter."""

    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(2, 3, rngs=rngs), nnx.BatchNorm(3, rngs=rngs)])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        linear, norm = self.layers
        return self.dropout(norm(linear(x)))


@pytest.fixture(scope="module")
def trained():
    """States of a network after each of three steps, and the network after them."""
    model, states = Network(nnx.Rngs(0)), []

    @nnx.jit
    def step(model, x):
        gradient = nnx.grad(lambda model: (model(x) ** 2).sum())(model)
        moved = jax.tree.map(lambda p, g: p - 0.01 * g, nnx.state(model, nnx.Param), gradient)
        nnx.update(model, moved)

    for x in XS:
        states.append(jax.tree.map(jnp.copy, nnx.state(model)))
        step(model, x)
    return model, [*states[1:], jax.tree.map(jnp.copy, nnx.state(model))]


def mean_of(states, decay):
    """By definition, in float64; what is no float is that of the last."""
    weights = [decay ** (len(states) - 1 - i) for i in range(len(states))]

    def leaf(*leaves):
        if not jnp.issubdtype(leaves[0].dtype, jnp.floating):
            return leaves[-1]
        return np.average([np.asarray(x, np.float64) for x in leaves], axis=0, weights=weights)

    return jax.tree.map(leaf, *states)


def assert_near(actual, expected):
    """By the order of the leaves; keys by their data."""
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, e = jax.random.key_data(a), jax.random.key_data(e)
        np.testing.assert_allclose(a, e, rtol=2e-5, atol=1e-6)


def test_everything_that_a_module_holds(trained):
    model, states = trained
    before = jax.tree.map(jnp.copy, nnx.state(model))
    average = average_init(nnx.state(model))
    for state in states:
        average = average_update(average, state, decay=0.5)
    evaluated = averaged_module(model, average)
    assert_near(nnx.state(evaluated), mean_of(states, 0.5))
    assert evaluated.dropout.rngs.count[...] == 3
    assert_near(nnx.state(model), before)  # the model itself is not changed
    y = nnx.view(evaluated, deterministic=True, use_running_average=True)(XS[0])
    scale = evaluated.layers[1].scale[...] / np.sqrt(evaluated.layers[1].var[...] + 1e-5)
    linear = XS[0] @ evaluated.layers[0].kernel[...] + evaluated.layers[0].bias[...][None]
    expected = (linear - evaluated.layers[1].mean[...][None]) * scale[None]
    expected += evaluated.layers[1].bias[...][None]
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_statistics_may_be_the_newest_instead(trained):
    model, states = trained

    mask = {"dropout": False, "layers": {0: True, 1: False}}
    average = average_init(states[0], debias=False)
    for state in states[1:]:
        average = average_update(average, state, decay=0.5, every=2, mask=mask)
    found = nnx.state(averaged_module(model, average))
    assert_near(found["layers"][1]["mean"], states[-1]["layers"][1]["mean"])
    expected = 0.5 * (states[0]["layers"][0]["kernel"][...] + states[2]["layers"][0]["kernel"][...])
    assert_near(found["layers"][0]["kernel"], [expected])


def test_a_transformation_that_is_given_the_model_state():
    mask = {"layers": {"0": True, "1": False}}  # of the parameters
    init, merge = functional(Network)
    start = get_model_state(Network(nnx.Rngs(0)))
    optimizer = optax.chain(optax.sgd(0.01), parameter_ema(0.5, mask=mask, model_state=start))

    def loss_fn(parameters, batch, *, key, carry, model_state):
        model = merge(parameters, key, model_state=model_state)
        return LossOutput(
            (model(batch) ** 2).sum(), jnp.float32(8), model_state=get_model_state(model)
        )

    mesh = make_mesh()
    options = {"key": jax.random.key(0), "mesh": mesh, "init_model_state": lambda key: start}
    state = init_state(init, optimizer, **options)
    step, states = make_train_step(loss_fn, optimizer, shardings=state.shardings), []
    for x in XS:
        state, _ = step(state, put_batch(x, mesh))
        states.append(jax.tree.map(jnp.copy, (state.parameters, state.model_state)))
    expected = mean_of(states, 0.5)
    parameters, model_state = averaged_parameters(state.optimizer_state, states[-1])
    expected[0]["layers"]["1"] = states[-1][0]["layers"]["1"]
    assert_near((parameters, model_state), expected)
    module = averaged_module(merge(*states[-1][:1], model_state=states[-1][1]), state)
    assert_near(get_model_state(module), expected[1])
    assert_near(module.layers[0].kernel, [expected[0]["layers"]["0"]["kernel"]])


def test_the_optimizer_of_nnx_passes_the_model_state_on():
    model = nnx.BatchNorm(2, rngs=nnx.Rngs(0))
    statistics = nnx.state(model, nnx.BatchStat)
    transformation = stochastic_weight_average(start_step=0, model_state=nnx.as_pure(statistics))
    optimizer = nnx.Optimizer(model, transformation, wrt=nnx.Param)
    for value in (1.0, 4.0):
        model.mean[...] = jnp.full(2, value)
        gradient = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
        optimizer.update(model, gradient, model_state=nnx.state(model, nnx.BatchStat))
    found = averaged_module(model, optimizer.opt_state)
    np.testing.assert_allclose(found.mean[...], 2.5)
    np.testing.assert_allclose(found.bias[...], 1.5)  # of 1 and 2


def test_groups_of_parameters_come_together():
    tree = {"head": {"kernel": jnp.ones(2)}, "body": [jnp.ones(3), jnp.zeros(1)]}
    labels = {"head": "fast", "body": ["slow", "fast"]}
    groups = {
        "fast": optax.chain(optax.sgd(1.0), parameter_ema(0.5)),
        "slow": optax.chain(optax.sgd(0.1), power_law_ema(0.1)),
    }
    optimizer = optax.multi_transform(groups, labels)
    state, update = optimizer.init(tree), quick_jit(optimizer.update)
    alone = {name: transformation.init(tree) for name, transformation in groups.items()}
    for _ in range(2):
        for name, transformation in groups.items():
            _, alone[name] = transformation.update(tree, alone[name], tree)
        updates, state = update(tree, state, tree)
        tree = optax.apply_updates(tree, updates)
        fast, slow = (averaged_parameters(alone[name]) for name in ("fast", "slow"))
        expected = {"head": fast["head"], "body": [slow["body"][0], fast["body"][1]]}
        assert_near(averaged_parameters(state), expected)
        assert_near(averaged_parameters(state, tree), expected)
    with pytest.raises(ValueError, match="parameters must be given, as the mask left some out"):
        averaged_parameters(state, path="fast")
    kept = averaged_parameters(state, tree, path="fast")
    assert kept["body"][0] is tree["body"][0]


def test_variables_of_linen_in_one_average():
    variables = {"params": {"kernel": jnp.ones(2)}, "batch_stats": {"mean": jnp.ones(2)}}
    average = average_init(variables, debias=False)
    newest = jax.tree.map(lambda x: 3 * x, variables)
    found = average_update(average, newest, decay=0.5).average
    np.testing.assert_array_equal(jax.tree.leaves(found), 2)
    mask = {"params": True, "batch_stats": False}
    found = average_update(average, newest, decay=0.5, mask=mask).average
    np.testing.assert_array_equal(found["batch_stats"]["mean"], 3)


def test_what_cannot_be_read_is_said():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"must hold one average, got 0"):
        averaged_module(model, optax.sgd(0.1).init({}))
    with pytest.raises(ValueError, match=r"model must be .* \['offset'\] are on one side only"):
        averaged_module(model, average_init({"offset": jnp.ones(1)}))
    ema = parameter_ema(0.5, model_state={"mean": jnp.ones(1)})
    parameters = {"kernel": jnp.ones(1)}
    with pytest.raises(ValueError, match=r"model_state must be given to update.* got None"):
        ema.update(parameters, ema.init(parameters), parameters)
