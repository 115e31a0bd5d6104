"""Stochastic weight averaging, Lookahead, and the statistics of averaged networks."""

import functools

import flax.linen as linen
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
    averaged_parameters,
    lookahead,
    recompute_statistics,
    stochastic_weight_average,
)
from zoo.training import (
    LossOutput,
    functional_with_state,
    init_state,
    make_mesh,
    make_train_step,
    put_batch,
)

CURVATURE = jnp.array([1.0, 0.1])


def descend(optimizer, steps, parameters=(1.0, -2.0), gradient=lambda x: CURVATURE * x):
    """Compiled steps; returns all parameters along the way and the states after each step."""
    parameters = jnp.asarray(parameters, jnp.float32)
    state = optimizer.init(parameters)

    @quick_jit
    def step(parameters, state):
        updates, state = optimizer.update(gradient(parameters), state, parameters)
        return optax.apply_updates(parameters, updates), state

    path, states = [parameters], []
    for _ in range(steps):
        parameters, state = step(parameters, state)
        path.append(parameters)
        states.append(state)
    return np.array(path), states


# Stochastic weight averaging.


def test_mean_of_every_kth_after_the_start():
    optimizer = optax.chain(optax.sgd(0.5), stochastic_weight_average(start_step=4, every=3))
    path, states = descend(optimizer, 14)
    np.testing.assert_array_equal(averaged_parameters(states[2]), path[3])
    for last, terms in ((6, [6]), (9, [6, 9]), (11, [6, 9]), (12, [6, 9, 12])):
        np.testing.assert_allclose(
            averaged_parameters(states[last - 1]), path[terms].mean(axis=0), rtol=1e-6
        )


def test_agrees_with_torch():
    swa = pytest.importorskip("torch").optim.swa_utils
    torch = pytest.importorskip("torch")
    module = torch.nn.Linear(2, 1, bias=False)
    average = swa.AveragedModel(module)
    optimizer = optax.chain(optax.sgd(0.5), stochastic_weight_average(start_step=0))
    path, states = descend(optimizer, 7)
    for values in path[1:]:
        with torch.no_grad():
            module.weight.copy_(torch.tensor(values)[None])
        average.update_parameters(module)
    theirs = average.module.weight.detach().numpy()[0]
    np.testing.assert_allclose(averaged_parameters(states[-1]), theirs, rtol=1e-6)


def test_a_long_mean_keeps_its_terms():
    """Decays computed as n / (n + 1) and subtracted from 1 would be off by 1e-2 at n = 1e5."""

    @quick_jit
    def run():
        transformation = stochastic_weight_average(start_step=0)

        def step(state, index):
            _, state = transformation.update(jnp.float32(0), state, index)
            return state, None

        indices = jnp.arange(100_000, dtype=jnp.float32)
        return jax.lax.scan(step, transformation.init(indices[0]), indices)[0].average

    assert float(run()) == pytest.approx(99_999 / 2, rel=1e-5)


# Lookahead.


@pytest.mark.parametrize("period", [1, 3, 5])
@pytest.mark.parametrize("size", [0.5, 0.8, 1.0])
def test_lookahead_is_that_of_optax(period, size):
    ours, states = descend(
        optax.chain(optax.adam(0.1), lookahead(sync_period=period, slow_step_size=size)), 12
    )
    rival = optax.lookahead(optax.adam(0.1), sync_period=period, slow_step_size=size)
    pair = optax.LookaheadParams.init_synced(jnp.asarray(ours[0]))
    state = rival.init(pair)
    update = quick_jit(rival.update)
    for step in range(1, 13):
        updates, state = update(CURVATURE * pair.fast, state, pair)
        pair = optax.apply_updates(pair, updates)
        np.testing.assert_allclose(ours[step], pair.fast, rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(
            averaged_parameters(states[step - 1]), pair.slow, rtol=2e-5, atol=1e-6
        )


def test_lookahead_by_its_two_loops():
    """Algorithm 1 of the paper in NumPy."""
    ours, _ = descend(optax.chain(optax.sgd(0.3), lookahead(sync_period=4)), 12)
    slow = np.array([1.0, -2.0])
    for outer in range(3):
        fast = slow.copy()
        for inner in range(4):
            fast = fast - 0.3 * np.asarray(CURVATURE) * fast
            if inner < 3:
                np.testing.assert_allclose(ours[4 * outer + inner + 1], fast, rtol=1e-5)
        slow = slow + 0.5 * (fast - slow)
        np.testing.assert_allclose(ours[4 * outer + 4], slow, rtol=1e-5)


def test_lookahead_does_not_begin_at_zero():
    """With slow parameters begun at 0, a first synchronisation would halve the parameters."""
    path, states = descend(
        optax.chain(optax.sgd(0.1), lookahead(sync_period=2)), 2, gradient=jnp.zeros_like
    )
    np.testing.assert_array_equal(path[2], path[0])
    np.testing.assert_array_equal(averaged_parameters(states[-1]), path[0])


def test_lookahead_keeps_a_wide_slow_copy_of_narrow_parameters():
    optimizer = optax.chain(optax.sgd(1.0), lookahead(sync_period=1, slow_step_size=1e-3))
    parameters = jnp.asarray([1.0], jnp.bfloat16)
    state = optimizer.init(parameters)
    for _ in range(20):
        updates, state = optimizer.update(jnp.asarray([-1.0], jnp.bfloat16), state, parameters)
        assert updates.dtype == jnp.bfloat16
        parameters = optax.apply_updates(parameters, updates)
    # Each step goes 1e-3 on from the rounded parameters; in bfloat16 none would get anywhere.
    assert float(averaged_parameters(state)[0]) > 1.015


def test_lookahead_out_of_range_traced():
    optimizer = lookahead(sync_period=1, slow_step_size=jnp.float32(1.5))
    state = optimizer.init(jnp.ones(2))
    assert jnp.isnan(optimizer.update(jnp.ones(2), state, jnp.ones(2))[0]).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sync_period": 0}, ValueError, "sync_period must be at least 1, got 0"),
        ({"sync_period": 2.5}, TypeError, "sync_period must be an integer, got 2.5"),
        ({"slow_step_size": 0}, ValueError, r"slow_step_size must be in \(0, 1\], got 0"),
        ({"slow_step_size": 1.1}, ValueError, r"slow_step_size must be in \(0, 1\], got 1.1"),
    ],
)
def test_lookahead_bad_input(options, error, message):
    with pytest.raises(error, match=message):
        lookahead(**options)


# Statistics.


class Normalised(nnx.Module):
    """Two batch normalisations with different momenta around a layer."""

    def __init__(self, rngs):
        self.inner = nnx.BatchNorm(3, momentum=0.9, rngs=rngs)
        self.layer = nnx.Linear(3, 2, rngs=rngs)
        self.outer = nnx.BatchNorm(2, momentum=0.99, rngs=rngs)

    def __call__(self, x):
        return self.outer(self.layer(self.inner(x)))


PARTS = functional_with_state(lambda rngs: Normalised(rngs))


@quick_jit
def batch_statistics(parameters, state, batch):
    module = PARTS.rebuild(parameters, jax.random.key(0), model_state=state)
    module.set_attributes(nnx.BatchNorm, momentum=0.0)
    module(batch)
    return PARTS.model_state(module)


@pytest.fixture(scope="module")
def network():
    key = jax.random.key(1)
    return PARTS.init_parameters(key), PARTS.init_model_state(key)


def batches_of(rows, sizes):
    return jnp.split(rows, np.cumsum(sizes)[:-1])


@pytest.mark.parametrize("sizes", [(30,), (10, 10, 10), (2, 4, 24), (1,) * 30])
def test_statistics_are_those_of_all_rows(sizes, network):
    rows = jnp.asarray(np.random.default_rng(0).normal(3, 2, size=(30, 3)), jnp.float32)
    found = recompute_statistics(
        functools.partial(batch_statistics, *network), batches_of(rows, sizes)
    )
    np.testing.assert_allclose(found["inner"]["mean"], rows.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found["inner"]["var"], rows.var(axis=0), rtol=1e-4)
    assert jax.tree.structure(found) == jax.tree.structure(network[1])


def test_recomputed_statistics_normalise_the_data(network):
    rows = jnp.asarray(np.random.default_rng(0).normal(3, 2, size=(64, 3)), jnp.float32)
    found = recompute_statistics(functools.partial(batch_statistics, *network), [rows])
    y = PARTS.rebuild(network[0], model_state=found)(rows)
    np.testing.assert_allclose(y.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(y.var(axis=0), 1, atol=1e-3)


def test_statistics_of_linen():
    model = linen.BatchNorm(use_running_average=False, momentum=0.0)
    rows = jnp.asarray(np.random.default_rng(0).normal(3, 2, size=(30, 3)), jnp.float32)
    variables = model.init(jax.random.key(0), rows)

    @quick_jit
    def one(batch):
        return model.apply(variables, batch, mutable=["batch_stats"])[1]["batch_stats"]

    found = recompute_statistics(one, batches_of(rows, (10, 20)))
    np.testing.assert_allclose(found["mean"], rows.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found["var"], rows.var(axis=0), rtol=1e-4)


def test_other_statistics_are_means_over_rows():
    batches = [jnp.zeros((3, 1)), jnp.ones((1, 1))]
    found = recompute_statistics(lambda batch: {"level": batch.mean()}, batches)
    assert float(found["level"]) == 0.25


def test_statistics_of_nothing():
    with pytest.raises(ValueError, match="batches must hold at least one batch, got none"):
        recompute_statistics(lambda batch: {}, [])
    with pytest.raises(TypeError, match="must return a nested dict with string keys, got tuple"):
        recompute_statistics(lambda batch: (batch,), [jnp.ones((2, 1))])


def test_statistics_averaged_in_the_training_state():
    """The cheap way: an average of the running averages, carried as a part of the model's state."""
    decay = 0.8

    def init_model_state(key):
        statistics = PARTS.init_model_state(key)
        return {"statistics": statistics, "average": average_init(statistics)}

    def loss_fn(parameters, batch, *, key, carry, model_state):
        module = PARTS.rebuild(parameters, key, model_state=model_state["statistics"])
        total = (module(batch["x"]) ** 2).sum()
        statistics = PARTS.model_state(module)
        average = average_update(model_state["average"], statistics, decay=decay)
        new = {"statistics": statistics, "average": average}
        return LossOutput(total, jnp.float32(len(batch["x"])), model_state=new)

    mesh = make_mesh(devices=jax.devices()[:2])
    state = init_state(
        PARTS.init_parameters,
        optax.sgd(0.1),
        key=jax.random.key(0),
        mesh=mesh,
        init_model_state=init_model_state,
    )
    step = make_train_step(loss_fn, optax.sgd(0.1), shardings=state.shardings)
    seen = []
    for seed in range(3):
        x = np.random.default_rng(seed).normal(seed, 1, size=(4, 3)).astype(np.float32)
        state, _ = step(state, put_batch({"x": x}, mesh))
        seen.append(np.asarray(state.model_state["statistics"]["inner"]["mean"]))
    weights = decay ** np.arange(3)[::-1]
    average = averaged_parameters(state.model_state)
    expected = np.average(seen, axis=0, weights=weights)
    np.testing.assert_allclose(average["inner"]["mean"], expected, rtol=1e-5)
