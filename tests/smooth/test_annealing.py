"""Schedules that arrive where they should, and hardening that ends at the exact operator."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.battery import quick_jit
from zoo.smooth import harden, soft_one_hot, straight_through, temperature_schedule


@pytest.mark.parametrize("shape", ["geometric", "linear", "cosine"])
def test_schedule(shape):
    schedule = temperature_schedule(2.0, 0.1, 50, shape=shape)
    values = np.array([schedule(step) for step in range(61)])
    np.testing.assert_allclose(values[0], 2)
    assert (values[50:] == np.float32(0.1)).all()
    assert (np.diff(values[:51]) < 0).all()
    middle = {"geometric": 0.2**0.5, "linear": 1.05, "cosine": 1.05}[shape]
    np.testing.assert_allclose(values[25], middle, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(schedule)(jnp.int32(30)), values[30], rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 0.1, 5), "start must be positive, got 0"),
        ((1.0, -0.1, 5), "end must be positive, got -0.1"),
        ((1.0, 0.1, 0), "num_steps must be at least 1, got 0"),
    ],
)
def test_schedule_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        temperature_schedule(*arguments)
    with pytest.raises(ValueError, match="shape must be one of geometric, linear, cosine"):
        temperature_schedule(1.0, 0.1, 5, shape="steps")


def hardened(x, temperature, hardness):
    soft = soft_one_hot(x, temperature=temperature)
    hard = jax.nn.one_hot(jnp.argmax(x), 9)
    return harden(hard, soft, hardness)


def test_annealing_ends_at_the_exact_operator():
    x = jax.random.normal(jax.random.key(0), (9,))
    temperature = temperature_schedule(1.0, 0.3, 80)
    hardness = optax.linear_schedule(0.0, 1.0, 20, transition_begin=80)
    exact = np.zeros(9)
    exact[np.argmax(np.asarray(x))] = 1
    compiled = quick_jit(hardened)
    errors = [
        np.abs(compiled(x, temperature(step), hardness(step)) - exact).max()
        for step in (0, 40, 80, 90, 100)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0  # to the last bit
    assert errors[-2] > 0
    slope = quick_jit(jax.grad(lambda x: hardened(x, 0.3, 1.0) @ jnp.arange(9.0)))(x)
    soft = quick_jit(jax.grad(lambda x: soft_one_hot(x, temperature=0.3) @ jnp.arange(9.0)))(x)
    np.testing.assert_allclose(slope, soft, atol=1e-6)
    assert np.abs(slope).max() > 0.01


def test_straight_through_is_exact_and_takes_trees():
    hard, soft = jnp.float32(0.1), jnp.float32(1e6)
    assert straight_through(hard, soft) == hard
    assert soft + (hard - soft) != hard  # the usual trick is not
    out = straight_through({"a": hard}, {"a": soft})
    assert out["a"] == hard
    slope = jax.grad(lambda x: straight_through(3.0 * x, x**2))(2.0)
    assert slope == 4
    second = jax.grad(jax.grad(lambda x: straight_through(3.0 * x, x**3)))(2.0)
    assert second == 12
    half = harden(jnp.float16(1), jnp.float16(0), 0.5)
    assert half.dtype == jnp.float16
    assert half == 0.5
