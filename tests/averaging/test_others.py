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
    parameter_ema,
    stochastic_weight_average,
)
from zoo.averaging.statistics import recompute_statistics
from zoo.training import functional
from zoo.training.state import get_model_state

CURVATURE = jnp.array([1.0, 0.1])


def descend(optimizer, steps, gradient=lambda x: CURVATURE * x):
    """All parameters along the way, and the averages after each step."""
    parameters = jnp.array([1.0, -2.0])

    @quick_jit
    def run(parameters):
        def step(carry, _):
            parameters, state = carry
            updates, state = optimizer.update(gradient(parameters), state, parameters)
            parameters = optax.apply_updates(parameters, updates)
            return (parameters, state), (parameters, averaged_parameters(state))

        return jax.lax.scan(step, (parameters, optimizer.init(parameters)), length=steps)[1]

    path, averages = run(parameters)
    return np.concatenate([parameters[None], path]), np.asarray(averages)


# Stochastic weight averaging.


def test_mean_of_every_kth_after_the_start():
    optimizer = optax.chain(optax.sgd(0.5), stochastic_weight_average(start_step=4, every=3))
    path, averages = descend(optimizer, 14)
    np.testing.assert_array_equal(averages[2], path[3])
    for last, terms in ((6, [6]), (9, [6, 9]), (11, [6, 9]), (12, [6, 9, 12])):
        np.testing.assert_allclose(averages[last - 1], path[terms].mean(axis=0), rtol=1e-6)


@pytest.mark.slow  # importing torch takes longer than all other tests of this file
def test_means_and_exponential_averages_agree_with_torch():
    torch = pytest.importorskip("torch")
    utilities = torch.optim.swa_utils
    module = torch.nn.Linear(2, 1, bias=False)
    exponential = utilities.get_ema_multi_avg_fn(0.9)
    for theirs, ours in (
        (utilities.AveragedModel(module), stochastic_weight_average(start_step=0)),
        # It starts with the first parameters it sees, as if they were θ_0.
        (
            utilities.AveragedModel(module, multi_avg_fn=exponential),
            parameter_ema(0.9, debias=False, start_step=1),
        ),
    ):
        path, averages = descend(optax.chain(optax.sgd(0.5), ours), 7)
        for values in path[1:]:
            with torch.no_grad():
                module.weight.copy_(torch.tensor(values)[None])
            theirs.update_parameters(module)
        expected = theirs.module.weight.detach().numpy()[0]
        np.testing.assert_allclose(averages[-1], expected, rtol=1e-6)


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


@pytest.mark.parametrize(("period", "size"), [(1, 1.0), (3, 0.8), (5, 0.5)])
def test_lookahead_is_that_of_optax(period, size):
    path, averages = descend(
        optax.chain(optax.adam(0.1), lookahead(sync_period=period, slow_step_size=size)), 12
    )
    rival = optax.lookahead(optax.adam(0.1), sync_period=period, slow_step_size=size)

    @quick_jit
    def run(start):
        def step(carry, _):
            pair, state = carry
            updates, state = rival.update(CURVATURE * pair.fast, state, pair)
            pair = optax.apply_updates(pair, updates)
            return (pair, state), pair

        pair = optax.LookaheadParams.init_synced(start)
        return jax.lax.scan(step, (pair, rival.init(pair)), length=12)[1]

    pairs = run(path[0])
    np.testing.assert_allclose(path[1:], pairs.fast, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(averages, pairs.slow, rtol=2e-5, atol=1e-6)


def test_lookahead_does_not_start_at_zero():
    """With slow parameters that start at 0, the first synchronisation would halve them."""
    optimizer = optax.chain(optax.sgd(0.1), lookahead(sync_period=2))
    path, averages = descend(optimizer, 2, gradient=jnp.zeros_like)
    np.testing.assert_array_equal(path[2], path[0])
    np.testing.assert_array_equal(averages[-1], path[0])


def test_lookahead_keeps_a_wide_slow_copy_of_narrow_parameters():
    optimizer = optax.chain(optax.sgd(1.0), lookahead(sync_period=1, slow_step_size=1e-3))
    parameters = jnp.asarray([1.0], jnp.bfloat16)
    state = optimizer.init(parameters)
    update = quick_jit(optimizer.update)
    for _ in range(20):
        updates, state = update(jnp.asarray([-1.0], jnp.bfloat16), state, parameters)
        assert updates.dtype == jnp.bfloat16
        parameters = optax.apply_updates(parameters, updates)
    # Each step adds 1e-3 to the rounded parameters; in bfloat16 none would change anything.
    assert float(averaged_parameters(state)[0]) > 1.015


def test_lookahead_out_of_range_traced():
    @quick_jit
    def run(size):
        optimizer = lookahead(sync_period=1, slow_step_size=size)
        return optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)), jnp.ones(2))[0]

    for size in (1.5, 0.0):
        assert jnp.isnan(run(size)).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sync_period": 0}, ValueError, "sync_period must be at least 1, got 0"),
        ({"sync_period": 2.5}, TypeError, "sync_period must be an integer, got 2.5"),
        ({"slow_step_size": 0}, ValueError, "slow_step_size must be .* > 0 and ≤ 1, got 0"),
        ({"slow_step_size": 1.1}, ValueError, "slow_step_size must be .* > 0 and ≤ 1, got 1.1"),
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


init, merge = functional(Normalised)
EXAMPLES = jnp.asarray(np.random.default_rng(0).normal(3, 2, size=(12, 3)), jnp.float32)


@pytest.fixture(scope="module")
def network():
    """Parameters and model state, and the statistics of one batch."""
    key = jax.random.key(1)
    parameters, state = init(key), get_model_state(Normalised(nnx.Rngs(key)))

    @quick_jit
    def batch_statistics(batch):
        module = merge(parameters, key, model_state=state)
        module.set_attributes(nnx.BatchNorm, momentum=0.0)
        module(batch)
        return get_model_state(module)

    return parameters, state, batch_statistics


@pytest.mark.parametrize("sizes", [(2, 4, 6), (1,) * 12])
def test_statistics_are_those_of_all_examples_and_normalise_them(sizes, network):
    parameters, state, batch_statistics = network
    batches = jnp.split(EXAMPLES, np.cumsum(sizes)[:-1])
    found = recompute_statistics(batch_statistics, batches)
    np.testing.assert_allclose(found["inner"]["mean"], EXAMPLES.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found["inner"]["var"], EXAMPLES.var(axis=0), rtol=1e-4)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    inner = merge(parameters, model_state=found).inner(EXAMPLES)
    np.testing.assert_allclose(inner.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(inner.var(axis=0), 1, atol=1e-3)


def test_statistics_of_linen():
    model = linen.BatchNorm(use_running_average=False, momentum=0.0)
    variables = model.init(jax.random.key(0), EXAMPLES)
    one = quick_jit(lambda x: model.apply(variables, x, mutable=["batch_stats"])[1]["batch_stats"])
    found = recompute_statistics(one, jnp.split(EXAMPLES, 2))
    np.testing.assert_allclose(found["mean"], EXAMPLES.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found["var"], EXAMPLES.var(axis=0), rtol=1e-4)


def test_other_statistics_are_means_over_examples():
    batches = [jnp.zeros((3, 1)), jnp.ones((1, 1))]
    found = recompute_statistics(lambda batch: {"level": batch.mean()}, batches)
    assert float(found["level"]) == 0.25


def test_statistics_of_nothing():
    with pytest.raises(ValueError, match=r"batches must .* one batch with an example, got none"):
        recompute_statistics(lambda batch: {}, [jnp.ones((0, 2))])
    with pytest.raises(TypeError, match="must return a nested dict, got tuple"):
        recompute_statistics(lambda batch: (batch,), [jnp.ones((2, 1))])


def test_statistics_can_be_averaged_like_parameters(network):
    """The cheap way: an average of the running averages."""
    _, state, batch_statistics = network
    seen = [batch_statistics(x) for x in jnp.split(EXAMPLES, 6)]
    update = quick_jit(functools.partial(average_update, decay=0.8))
    average = functools.reduce(update, seen, average_init(state)).average
    means = [np.asarray(statistics["inner"]["mean"]) for statistics in seen]
    expected = np.average(means, axis=0, weights=0.8 ** np.arange(6)[::-1])
    np.testing.assert_allclose(average["inner"]["mean"], expected, rtol=1e-5)
