"""The exponential average against closed forms, the original's numbers, and other libraries."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.battery import quick_jit
from zoo.averaging import average_init, average_update, averaged_parameters, parameter_ema

PATH = np.concatenate([[5.0], np.cumsum(np.random.RandomState(0).randn(6))])  # θ_0 … θ_6


def follow(path, transformation):
    """Averages along a path of parameters; returns the averages after each step."""
    parameters = jnp.asarray(path[0], jnp.float32)
    state = transformation.init(parameters)
    update, averages = quick_jit(transformation.update), []
    for target in path[1:]:
        updates, state = update(jnp.float32(target) - parameters, state, parameters)
        parameters = optax.apply_updates(parameters, updates)
        averages.append(np.asarray(averaged_parameters(state)))
    return np.array(averages)


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


def test_started_and_debiased_averages_are_the_same_sum():
    # a^6 · θ_0 + Z_6 = E_6 with Z_6 = 2.191409 and D_6 = Z_6 / (1 - a^6)
    started = follow(PATH, parameter_ema(0.9, debias=False))[-1]
    debiased = follow(PATH, parameter_ema(0.9))[-1]
    assert debiased * (1 - 0.9**6) == pytest.approx(2.191409, abs=1e-6)
    assert 0.9**6 * 5 + debiased * (1 - 0.9**6) == pytest.approx(started, abs=1e-6)


@given(
    decay=st.floats(0, 0.999),
    path=st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=6),
    debias=st.booleans(),
    warmup=st.booleans(),
)
def test_any_average_is_its_weighted_sum(decay, path, debias, warmup):
    """In float64 by definition: the weight of θ_i is gain_i · Π_{j>i} decay_j."""
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
    noise = np.random.default_rng(0).normal(size=(80, 4000)).astype(np.float32)

    @quick_jit
    def run(noise):
        def step(state, value):
            return average_update(state, value, decay=0.9), None

        return jax.lax.scan(step, average_init(noise[0]), noise)[0].average

    assert np.var(run(noise)) == pytest.approx((1 - 0.9) / (1 + 0.9), rel=0.1)


def test_agrees_with_optax_ema_of_the_parameters():
    """``optax.ema`` averages what it is given as updates; given the parameters, it must be ours."""
    rival = optax.ema(0.9, debias=True)
    state, averages = rival.init(jnp.float32(0)), []
    for value in PATH[1:]:
        average, state = rival.update(jnp.float32(value), state)
        averages.append(average)
    np.testing.assert_allclose(follow(PATH, parameter_ema(0.9)), averages, rtol=1e-6)


def test_agrees_with_torch():
    torch = pytest.importorskip("torch")
    module = torch.nn.Linear(1, 1, bias=False)
    average = torch.optim.swa_utils.AveragedModel(
        module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    )
    expected = []
    for value in PATH[1:]:  # it begins with the first parameters it sees, as if they were θ_0
        with torch.no_grad():
            module.weight.fill_(value)
        average.update_parameters(module)
        expected.append(average.module.weight.item())
    ours = follow(PATH[1:], parameter_ema(0.9, debias=False))
    np.testing.assert_allclose(ours, expected[1:], rtol=1e-6)


def test_schedule_gets_the_number_of_earlier_terms():
    schedule = optax.piecewise_constant_schedule(0.5, {2: 0.5})  # 0.5, 0.5, 0.25 from then on
    expected = PATH[1]
    expected = expected + 0.5 / 0.75 * (PATH[2] - expected)
    weight = 0.75 + 0.75 * 0.25
    expected = expected + 0.75 / weight * (PATH[3] - expected)
    assert follow(PATH[:4], parameter_ema(schedule))[-1] == pytest.approx(expected, 1e-6)


def test_start_step_follows_the_parameters_until_then():
    averages = follow(PATH, parameter_ema(0.9, start_step=2))
    np.testing.assert_array_equal(averages[:2], PATH[1:3].astype(np.float32))
    np.testing.assert_allclose(averages[2:], follow(PATH[2:], parameter_ema(0.9)), rtol=1e-6)
    from_start = follow(PATH, parameter_ema(0.9, debias=False, start_step=2))
    np.testing.assert_allclose(
        from_start[2:], follow(PATH[2:], parameter_ema(0.9, debias=False)), rtol=1e-6
    )


def test_every_other_step():
    averages = follow(PATH, parameter_ema(0.9, every=2))
    np.testing.assert_array_equal(averages[0], np.float32(5))  # nothing seen: as it began
    thinned = follow(PATH[::2], parameter_ema(0.9))
    np.testing.assert_allclose(averages[1::2], thinned, rtol=1e-6)
    np.testing.assert_array_equal(averages[2::2], averages[1:-1:2])
    # The steps to leave out count, and so does their number within the thinned ones.
    late = follow(PATH, parameter_ema(0.9, every=2, start_step=3))
    np.testing.assert_allclose(late[3::2], follow(PATH[2::2], parameter_ema(0.9)), rtol=1e-6)


def test_warmup_depends_on_terms_not_on_steps():
    thinned = follow(PATH[::2], parameter_ema(0.9, warmup=True))
    np.testing.assert_allclose(
        follow(PATH, parameter_ema(0.9, warmup=True, every=2))[1::2], thinned, rtol=1e-6
    )


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
    path = np.concatenate([[1.0], np.full(50, 2.0)])
    transformation = parameter_ema(0.999, debias=False)
    parameters = jnp.asarray(1, jnp.bfloat16)
    state = transformation.init(parameters)
    naive = parameters
    for _ in path[1:]:
        _, state = transformation.update(jnp.bfloat16(1), state, parameters)
        naive = naive * jnp.bfloat16(0.999) + jnp.bfloat16(2) * jnp.bfloat16(0.001)
    assert state.average.dtype == jnp.float32
    assert float(state.average) == pytest.approx(2 - 0.999**50, rel=1e-5)
    assert float(naive) == pytest.approx(1, abs=1e-2)  # all 50 steps rounded away
    given_back = averaged_parameters(state, parameters)
    assert given_back.dtype == jnp.bfloat16


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


def test_counters_are_carried_not_averaged():
    transformation = parameter_ema(0.9)
    parameters = {"kernel": jnp.ones(2), "seen": jnp.int32(3)}
    state = transformation.init(parameters)
    updates = {"kernel": jnp.ones(2), "seen": jnp.int32(4)}
    _, state = transformation.update(updates, state, parameters)
    assert averaged_parameters(state)["seen"] == 7
    assert averaged_parameters(state)["seen"].dtype == jnp.int32


@pytest.mark.parametrize("value", [-0.1, 1.5, np.nan])
def test_scheduled_decay_out_of_range_is_nan(value):
    assert np.isnan(follow(PATH[:2], parameter_ema(lambda count: value + 0.0 * count))[-1])
    assert np.isnan(follow(PATH[:2], parameter_ema(jnp.float32(value)))[-1])


def test_scheduled_decay_of_one_holds_the_average():
    schedule = optax.piecewise_constant_schedule(0.5, {1: 2.0})  # 0.5, then 1
    averages = follow(PATH, parameter_ema(schedule))
    np.testing.assert_array_equal(averages, np.float32(PATH[1]))
    held = follow(PATH, parameter_ema(optax.constant_schedule(1.0)))
    np.testing.assert_array_equal(held, np.float32(PATH[0]))  # nothing was ever let in


def test_decay_as_an_injected_hyperparameter():
    transformation = optax.inject_hyperparams(parameter_ema)(decay=0.9, every=2)
    averages = follow(PATH, transformation)
    np.testing.assert_allclose(averages, follow(PATH, parameter_ema(0.9, every=2)), rtol=1e-4)


def test_complex_parameters():
    transformation = parameter_ema(0.5, debias=False)
    state = transformation.init(jnp.complex64(2j))
    _, state = transformation.update(jnp.complex64(2), state, jnp.complex64(0))
    assert state.average == 1 + 1j


@pytest.mark.parametrize("decay", [1.0, -0.1, 1.5, np.nan, np.float64(1), np.asarray(2.0)])
def test_decay_outside_its_range(decay):
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), got"):
        parameter_ema(decay)
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), got"):
        average_update(average_init(jnp.zeros(())), jnp.zeros(()), decay=decay)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"every": 0}, ValueError, "every must be at least 1, got 0"),
        ({"every": 2.0}, TypeError, "every must be an integer, got 2.0"),
        ({"every": True}, TypeError, "every must be an integer, got True"),
        ({"start_step": -1}, ValueError, "start_step must be at least 0, got -1"),
        ({"start_step": 0.5}, TypeError, "start_step must be an integer, got 0.5"),
    ],
)
def test_counts_out_of_range(options, error, message):
    with pytest.raises(error, match=message):
        parameter_ema(0.9, **options)
    with pytest.raises(error, match=message):
        average_update(average_init(jnp.zeros(())), jnp.zeros(()), decay=0.9, **options)


def test_parameters_are_needed():
    transformation = parameter_ema(0.9)
    state = transformation.init(jnp.zeros(2))
    with pytest.raises(ValueError, match="params must be given to update"):
        transformation.update(jnp.zeros(2), state)


def test_an_empty_tree_is_averaged_to_an_empty_tree():
    transformation = parameter_ema(0.9)
    updates, state = transformation.update({}, transformation.init({}), {})
    assert updates == averaged_parameters(state) == {}


def test_no_update_is_made_where_none_is_due():
    """every=k skips the work: the arrays pass through a conditional, not through a select."""
    transformation = parameter_ema(0.9, every=3)
    state = transformation.init(jnp.zeros(2))
    text = str(
        jax.make_jaxpr(functools.partial(transformation.update))(
            state.average, state, state.average
        )
    )
    assert "cond" in text
