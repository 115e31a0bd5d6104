"""Dual averaging against the published recursion and blackjax; what disturbs it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.energy import adapt_step_size, hamiltonian_monte_carlo
from zoo.energy.adaptation import dual_averaging_init, dual_averaging_update

KEY = jax.random.key(0)
ACCEPTED = np.random.default_rng(0).uniform(size=30)


def test_the_published_recursion():
    """Algorithm 5, in double precision, with blackjax's iterates where it is installed."""
    state, h0, target = dual_averaging_init(0.3), 0.3, 0.65
    error, average = 0.0, 0.0
    iterates = []
    for t, accepted in enumerate(ACCEPTED, 1):
        state = dual_averaging_update(state, accepted, target_acceptance=target)
        error = (1 - 1 / (t + 10)) * error + (target - accepted) / (t + 10)
        log_step = np.log(10 * h0) - np.sqrt(t) / 0.05 * error
        average = t**-0.75 * log_step + (1 - t**-0.75) * average
        iterates.append(log_step)
        np.testing.assert_allclose(state.log_step_size, log_step, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(state.log_average, average, rtol=1e-4, atol=1e-5)
    optimizers = pytest.importorskip("blackjax.optimizers.dual_averaging", reason="needs blackjax")
    init, update, _ = optimizers.dual_averaging()
    theirs = init(h0)
    for accepted, log_step in zip(ACCEPTED, iterates, strict=True):
        theirs = update(theirs, target - accepted)
        np.testing.assert_allclose(theirs.log_x, log_step, rtol=1e-4, atol=1e-5)


def test_nothing_is_accepted_or_always():
    """The step stays a number, and goes the other way when that ends."""
    for accepted, bound in ((0.0, 1e-30), (1.0, 1e30)):
        state = dual_averaging_init(1.0)
        update = jax.jit(lambda s, a: dual_averaging_update(s, a, target_acceptance=0.5))
        for _ in range(100):
            state = update(state, accepted)
        assert jnp.exp(state.log_step_size) == pytest.approx(bound, rel=1e-3)
        for _ in range(400):
            state = update(state, 1 - accepted)
        assert np.sign(state.log_step_size) == -np.sign(np.log(bound))


def test_lost_chains_do_not_count():
    def energy(x):
        return jnp.where(x[:, 0] > 50, jnp.nan, (x**2).sum(axis=-1) / 2)

    def adapted(start):
        return adapt_step_size(
            KEY,
            lambda h: hamiltonian_monte_carlo(energy, step_size=h, num_leapfrog_steps=3),
            start,
            num_steps=60,
        )

    start = jnp.zeros((8, 2))
    found = adapted(start.at[3].set(99.0))
    assert np.isnan(found.state.position[3]).all()
    assert np.isfinite(np.delete(found.state.position, 3, axis=0)).all()
    assert 0.3 < found.step_size < 3
    assert np.isnan(adapted(start + 99.0).step_size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"num_steps": 1, "step_size": 0.0}, "step_size must be .* > 0, got 0.0"),
        ({"num_steps": 1, "target_acceptance": 1}, "target_acceptance must be .* < 1, got 1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        adapt_step_size(KEY, None, None, **options)
