"""The exponential average against closed forms, the original's numbers, and other libraries."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.battery import quick_jit
from zoo.averaging import average_init, average_update, averaged_parameters, parameter_ema

PATH = np.concatenate([[5.0], np.cumsum(np.random.RandomState(0).randn(6))])  # θ_0 … θ_6


def follow(path, transformation):
    """Averages along a path of parameters, after each step."""
    targets = jnp.asarray(path, jnp.float32)

    @quick_jit
    def run(targets):
        def step(carry, target):
            parameters, state = carry
            updates, state = transformation.update(target - parameters, state, parameters)
            carry = optax.apply_updates(parameters, updates), state
            return carry, averaged_parameters(state)

        return jax.lax.scan(step, (targets[0], transformation.init(targets[0])), targets[1:])[1]

    return np.asarray(run(targets))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"debias": False}, 4.848614),
        ({"debias": True}, 4.676912),
        ({"debias": False, "warmup": True}, 6.216884),
    ],
)
def test_numbers_of_the_original(options, expected):
    np.testing.assert_allclose(PATH[1:4], [1.764052, 2.164210, 3.142948], atol=5e-7)
    assert follow(PATH, parameter_ema(0.9, **options))[-1] == pytest.approx(expected, abs=1e-6)


@settings(max_examples=15)
@given(
    decay=st.floats(0, 0.999),
    path=st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=6),
    debias=st.booleans(),
    warmup=st.booleans(),
)
def test_any_average_is_its_weighted_sum(decay, path, debias, warmup):
    """In float64 by definition: the weight of θ_i is share_i · Π_{j>i} decay_j."""
    n = np.arange(1, len(path))
    decays = np.minimum(decay, (1 + n) / (10 + n)) if warmup else np.full(len(n), decay)
    weights = [(1 - decays[i]) * np.prod(decays[i + 1 :]) for i in range(len(n))]
    expected = np.dot(weights, path[1:])
    expected = expected / sum(weights) if debias else expected + np.prod(decays) * path[0]
    state = average_init(jnp.float32(path[0]), debias=debias)
    # Not compiled: every draw has another decay.
    with jax.disable_jit():
        for value in path[1:]:
            state = average_update(state, jnp.float32(value), decay=decay, warmup=warmup)
    assert float(state.average) == pytest.approx(expected, rel=1e-5, abs=1e-5 * np.abs(path).max())
    assert float(state.weight) == pytest.approx(sum(weights) if debias else 1, rel=1e-5)


def test_first_debiased_average_is_the_parameters_to_the_last_bit():
    state = average_update(average_init(jnp.float32(1e7)), jnp.float32(0.1), decay=0.9999)
    assert state.average == np.float32(0.1)


def test_a_constant_stays_to_the_last_bit():
    for debias in (True, False):
        averages = follow([0.1] * 40, parameter_ema(0.99, debias=debias))
        np.testing.assert_array_equal(averages, np.float32(0.1))


def test_lag_behind_a_drift():
    # a · s / (1 - a), here 0.9 · 2 / 0.1 = 18
    assert follow(2.0 * np.arange(300), parameter_ema(0.9))[-1] == pytest.approx(2 * 299 - 18, 1e-5)


def test_variance_of_averaged_noise():
    """(1 - a) / (1 + a) of the variance; 4000 independent paths leave 2 % of standard error."""
    noise = np.random.default_rng(0).normal(size=(80, 4000))
    averaged = follow(noise, parameter_ema(0.9))[-1]
    assert np.var(averaged) == pytest.approx((1 - 0.9) / (1 + 0.9), rel=0.1)


def test_agrees_with_optax_ema_of_the_parameters():
    """``optax.ema`` averages what it is given as updates; given the parameters, it must be ours."""
    rival = optax.ema(0.9, debias=True)
    state, averages = rival.init(jnp.float32(0)), []
    for value in PATH[1:]:
        average, state = rival.update(jnp.float32(value), state)
        averages.append(average)
    np.testing.assert_allclose(follow(PATH, parameter_ema(0.9)), averages, rtol=1e-6)


def test_schedule_gets_the_number_of_earlier_terms():
    schedule = optax.piecewise_constant_schedule(0.5, {2: 0.5})  # 0.5, 0.5, 0.25 from then on
    expected = PATH[1]
    expected = expected + 0.5 / 0.75 * (PATH[2] - expected)
    weight = 0.75 + 0.75 * 0.25
    expected = expected + 0.75 / weight * (PATH[3] - expected)
    assert follow(PATH[:4], parameter_ema(schedule))[-1] == pytest.approx(expected, 1e-6)


def test_start_step_follows_the_parameters_until_then():
    for debias in (True, False):
        averages = follow(PATH, parameter_ema(0.9, debias=debias, start_step=2))
        np.testing.assert_array_equal(averages[:2], PATH[1:3].astype(np.float32))
        late = follow(PATH[2:], parameter_ema(0.9, debias=debias))
        np.testing.assert_allclose(averages[2:], late, rtol=1e-6)


def test_every_other_step():
    averages = follow(PATH, parameter_ema(0.9, every=2))
    np.testing.assert_array_equal(averages[0], np.float32(PATH[1]))  # no term yet
    thinned = follow(PATH[::2], parameter_ema(0.9))
    np.testing.assert_allclose(averages[1::2], thinned, rtol=1e-6)
    np.testing.assert_array_equal(averages[2::2], averages[1:-1:2])
    # start_step counts steps, and the number of terms starts behind it.
    late = follow(PATH, parameter_ema(0.9, every=2, start_step=3))
    np.testing.assert_allclose(late[3::2], follow(PATH[2::2], parameter_ema(0.9)), rtol=1e-6)


def test_warmup_depends_on_terms_not_on_steps():
    thinned = follow(PATH[::2], parameter_ema(0.9, warmup=True))
    averages = follow(PATH, parameter_ema(0.9, warmup=True, every=2))
    np.testing.assert_allclose(averages[1::2], thinned, rtol=1e-6)


def test_long_averages_keep_their_precision():
    """Decay 1 - 1e-6 over 1e5 steps; each of them rounds the average to 6e-8 of itself."""

    @quick_jit
    def run(state):
        def step(state, index):
            return average_update(state, index / 1e5, decay=1 - 1e-6), None

        return jax.lax.scan(step, state, jnp.arange(1e5, dtype=jnp.float32))[0]

    state = run(average_init(jnp.float32(0)))
    n = np.arange(100_000)
    weights = (1 - 1e-6) ** (n[::-1])
    assert float(state.weight) == pytest.approx(1 - (1 - 1e-6) ** 100_000, rel=1e-4)
    assert float(state.average) == pytest.approx(np.average(n / 1e5, weights=weights), rel=1e-3)


def test_a_bfloat16_average_would_not_move_ours_does():
    transformation = parameter_ema(0.999, debias=False)
    parameters = naive = jnp.asarray(1, jnp.bfloat16)
    state = transformation.init(parameters)
    for _ in range(50):
        _, state = transformation.update(jnp.bfloat16(1), state, parameters)
        naive = naive * jnp.bfloat16(0.999) + jnp.bfloat16(2) * jnp.bfloat16(0.001)
    assert state.average.dtype == jnp.float32
    assert float(state.average) == pytest.approx(2 - 0.999**50, rel=1e-5)
    assert float(naive) == pytest.approx(1, abs=1e-2)  # all 50 steps rounded away
    assert averaged_parameters(state, parameters).dtype == jnp.bfloat16


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_averages_the_parameters_as_they_are_stored(dtype):
    """Compiled, XLA may skip the rounding of a sum that it also uses wide; not here."""
    transformation = parameter_ema(0.0)
    parameters, updates = jnp.asarray([1.0, 3.0], dtype), jnp.asarray([1e-3, 2e-3], dtype)
    state = transformation.init(parameters)
    for update in (transformation.update, jax.jit(transformation.update)):
        _, new = update(updates, state, parameters)
        stored = optax.apply_updates(parameters, updates)
        np.testing.assert_array_equal(new.average, stored.astype(jnp.float32))


def test_counters_are_carried_and_complex_numbers_averaged():
    transformation = parameter_ema(0.5, debias=False)
    parameters = {"kernel": jnp.complex64(2j), "seen": jnp.int32(3)}
    state = transformation.init(parameters)
    updates = {"kernel": jnp.complex64(2 - 2j), "seen": jnp.int32(4)}
    _, state = transformation.update(updates, state, parameters)
    assert state.average["kernel"] == 1 + 1j
    assert state.average["seen"] == 7
    assert state.average["seen"].dtype == jnp.int32


@pytest.mark.parametrize("value", [-0.1, 1.5, np.nan])
def test_traced_decay_out_of_range_is_nan(value):
    assert np.isnan(follow(PATH[:2], parameter_ema(lambda count: value + 0.0 * count))[-1])
    init = average_init(jnp.float32(1))
    update = quick_jit(lambda decay: average_update(init, jnp.float32(2), decay=decay))
    assert np.isnan(update(value).average)


def test_scheduled_decay_of_one_holds_the_average():
    schedule = optax.piecewise_constant_schedule(0.5, {1: 2.0})  # 0.5, then 1
    np.testing.assert_array_equal(follow(PATH, parameter_ema(schedule)), np.float32(PATH[1]))
    held = follow(PATH, parameter_ema(optax.constant_schedule(1.0)))
    np.testing.assert_array_equal(held, np.float32(PATH[0]))  # there was never a term


def test_decay_and_counts_as_injected_hyperparameters():
    transformation = optax.inject_hyperparams(parameter_ema)(decay=0.9, every=2)
    averages = follow(PATH, transformation)
    np.testing.assert_allclose(averages, follow(PATH, parameter_ema(0.9, every=2)), rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        *(
            ({"decay": decay}, ValueError, "decay must be one finite number ≥ 0 and < 1, got")
            for decay in (1.0, -0.1, np.nan, np.float64(1), np.asarray(2.0), jnp.float32(1.5))
        ),
        ({"every": 0}, ValueError, "every must be at least 1, got 0"),
        ({"every": 2.0}, TypeError, "every must be an integer, got 2.0"),
        ({"every": True}, TypeError, "every must be an integer, got True"),
        ({"start_step": -1}, ValueError, "start_step must be at least 0, got -1"),
        ({"start_step": 0.5}, TypeError, "start_step must be an integer, got 0.5"),
    ],
)
def test_bad_options(options, error, message):
    options = {"decay": 0.9} | options
    with pytest.raises(error, match=message):
        parameter_ema(**options)
    with pytest.raises(error, match=message):
        average_update(average_init(jnp.zeros(())), jnp.zeros(()), **options)


def test_parameters_are_needed():
    transformation = parameter_ema(0.9)
    with pytest.raises(ValueError, match="params must be given to update"):
        transformation.update(jnp.zeros(2), transformation.init(jnp.zeros(2)))


def test_an_empty_tree_is_averaged_to_an_empty_tree():
    transformation = parameter_ema(0.9)
    updates, state = transformation.update({}, transformation.init({}), {})
    assert updates == averaged_parameters(state) == {}


def test_no_update_is_made_where_none_is_due():
    """every=k skips the work: the arrays pass through a conditional, not through a select."""
    transformation = parameter_ema(0.9, every=3)
    state = transformation.init(jnp.zeros(2))
    arguments = state.average, state, state.average
    assert "cond" in str(jax.make_jaxpr(transformation.update)(*arguments))
