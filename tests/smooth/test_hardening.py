"""Straight-through values are exact, and hardening ends at the exact operator."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.battery import quick_jit
from zoo.smooth import soft_one_hot, straight_through
from zoo.smooth.hardening import harden


def harden_choice(x, temperature, hardness):
    soft = soft_one_hot(x, temperature=temperature)
    return harden(jax.nn.one_hot(jnp.argmax(x), 9), soft, hardness)


def test_annealing_ends_at_the_exact_operator():
    x = jax.random.normal(jax.random.key(0), (9,))
    temperature = optax.exponential_decay(1.0, 80, 0.3, end_value=0.3)
    hardness = optax.linear_schedule(0.0, 1.0, 20, transition_begin=80)
    exact = np.eye(9)[np.argmax(np.asarray(x))]
    compiled = quick_jit(harden_choice)
    errors = [
        np.abs(compiled(x, temperature(step), hardness(step)) - exact).max()
        for step in (0, 40, 80, 90, 100)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0  # to the last bit
    assert errors[-2] > 0
    slope = quick_jit(jax.grad(lambda x: harden_choice(x, 0.3, 1.0) @ jnp.arange(9.0)))(x)
    soft = quick_jit(jax.grad(lambda x: soft_one_hot(x, temperature=0.3) @ jnp.arange(9.0)))(x)
    np.testing.assert_allclose(slope, soft, atol=1e-6)
    assert np.abs(slope).max() > 0.01


def test_straight_through_is_exact_and_takes_trees():
    hard, soft = jnp.float32(0.1), jnp.float32(1e6)
    assert straight_through({"a": hard}, {"a": soft})["a"] == hard
    assert soft + (hard - soft) != hard  # the usual trick is not exact
    assert jax.grad(lambda x: straight_through(3.0 * x, x**2))(2.0) == 4
    assert jax.grad(jax.grad(lambda x: straight_through(3.0 * x, x**3)))(2.0) == 12
    half = harden(jnp.float16(1), jnp.float16(0), 0.5)
    assert half.dtype == jnp.float16
    assert half == 0.5
