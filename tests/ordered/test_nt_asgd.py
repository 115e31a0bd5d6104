import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.ordered.nt_asgd import nt_asgd, nt_asgd_parameters, observe_validation

observe = jax.jit(observe_validation)


def original_trigger(losses, patience):
    """Position of the validation that starts the averaging, with a list that grows."""
    seen = []
    for n, loss in enumerate(losses):
        if len(seen) > patience and loss > min(seen[:-patience]):
            return n
        seen.append(loss)
    return None


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.sampled_from([1, 2, 5]))
def test_triggers_like_the_original(losses, patience):
    state = nt_asgd(patience=patience).init(jnp.zeros(2))
    triggered = []
    for loss in losses:
        state = observe(state, float(loss))
        triggered.append(bool(state.triggered))
    expected = original_trigger(losses, patience)
    first = len(losses) if expected is None else expected
    assert triggered == [n >= first for n in range(len(losses))]


def test_averages_from_the_trigger_on_and_leaves_the_steps_alone():
    optimizer = optax.chain(optax.sgd(0.1), nt_asgd(patience=1))
    plain = optax.sgd(0.1)
    parameters = {"kernel": jnp.array([1.0, -2.0])}
    twin, state, twin_state = parameters, optimizer.init(parameters), plain.init(parameters)
    structure = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)
    step = jax.jit(optimizer.update)
    visited = []
    for n in range(8):
        if n == 3:
            for loss in (3.0, 3.0, 4.0):
                state = observe(state, loss)
        gradient = {"kernel": jnp.cos(3.0 * n + parameters["kernel"])}
        updates, state = step(gradient, state, parameters)
        parameters = optax.apply_updates(parameters, updates)
        updates, twin_state = plain.update(gradient, twin_state, twin)
        twin = optax.apply_updates(twin, updates)
        np.testing.assert_allclose(parameters["kernel"], twin["kernel"], rtol=1e-6)
        visited.append(parameters["kernel"])
        evaluated = nt_asgd_parameters(state, parameters)["kernel"]
        expected = visited[-1] if n < 3 else np.mean(visited[3:], axis=0)
        np.testing.assert_allclose(evaluated, expected, rtol=1e-5, atol=1e-6)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == structure
    assert int(state[-1].terms) == 5


def test_a_broken_validation_is_no_improvement():
    state = nt_asgd(patience=1).init(jnp.zeros(2))
    for loss in (3.0, 2.0, np.nan):
        state = observe(state, loss)
    assert state.triggered


def test_bad_input():
    with pytest.raises(ValueError, match="patience must be at least 1, got 0"):
        nt_asgd(patience=0)
    optimizer = nt_asgd()
    state = optimizer.init(jnp.zeros(2))
    with pytest.raises(ValueError, match="update needs the parameters, got None"):
        optimizer.update(jnp.zeros(2), state)
    with pytest.raises(ValueError, match="exactly one NtAsgdState, got 2"):
        observe_validation((state, state), 1.0)
    with pytest.raises(ValueError, match="exactly one NtAsgdState, got 0"):
        nt_asgd_parameters(optax.EmptyState(), jnp.zeros(2))


def test_half_precision_is_averaged_in_single():
    optimizer = nt_asgd(patience=1)
    parameters = jnp.ones(1, jnp.bfloat16)
    state = optimizer.init(parameters)
    state = state._replace(triggered=jnp.array(True))
    for _ in range(100):
        _, state = optimizer.update(jnp.zeros(1, jnp.bfloat16), state, parameters)
        parameters = jnp.full(1, 1.5, jnp.bfloat16)
    assert state.average.dtype == jnp.float32
    np.testing.assert_allclose(state.average, 1.495, rtol=1e-6)
    assert nt_asgd_parameters(state, parameters).dtype == jnp.bfloat16
