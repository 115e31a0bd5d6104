"""Steps against the formula, unit norm over many steps, rows that must not move, convergence."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zoo import spherical

ALL = {
    "sgd": lambda rate: spherical.riemannian_sgd(rate),
    "plain sgd": lambda rate: spherical.riemannian_sgd(rate, angular=False),
    "momentum": lambda rate: spherical.riemannian_momentum(rate),
    "adam": lambda rate: spherical.riemannian_adam(rate),
}


def unit_rows(seed, shape=(6, 4)):
    return spherical.random_uniform(jax.random.key(seed), shape, jnp.float32)


@pytest.mark.parametrize("angular", [True, False])
def test_one_step_is_the_formula(angular):
    x, gradient = np.asarray(unit_rows(0)), np.random.default_rng(0).normal(size=(6, 4))
    optimizer = spherical.riemannian_sgd(0.3, angular=angular)
    updates, _ = optimizer.update(jnp.asarray(gradient, jnp.float32), optimizer.init(x), x)
    for row, g, update in zip(x, gradient, updates, strict=True):
        factor = 1 + row @ g / np.linalg.norm(g) if angular else 1
        moved = row - 0.3 * factor * (np.eye(4) - np.outer(row, row)) @ g
        np.testing.assert_allclose(row + update, moved / np.linalg.norm(moved), atol=1e-6)


def test_angular_factor_ends():
    x = jnp.array([[0.6, 0.8]])
    optimizer = spherical.riemannian_sgd(0.1)
    for sign, factor in ((-1, 0.0), (1, 2.0)):  # -gradient along x, and against it
        gradient = sign * x + jnp.array([[-8e-5, 6e-5]])
        updates, _ = optimizer.update(gradient, optimizer.init(x), x)
        assert jnp.linalg.norm(updates) == pytest.approx(0.1 * factor * 1e-4, abs=2e-7)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-6), ("bfloat16", 2**-7)])
def test_norms_stay_one_over_many_steps(name, dtype, bound):
    steps = 100_000 if name == "sgd" else 5_000
    optimizer = ALL[name](optax.linear_schedule(0.3, 0.0, steps))
    x = unit_rows(1).astype(dtype)

    @jax.jit
    def run(x, state, key):
        def step(carry, key):
            x, state = carry
            gradient = jax.random.normal(key, x.shape, x.dtype)
            updates, state = optimizer.update(gradient, state, x)
            x = optax.apply_updates(x, updates)
            return (x, state), None

        return jax.lax.scan(step, (x, state), jax.random.split(key, steps))[0]

    x, _ = run(x, optimizer.init(x), jax.random.key(0))
    assert x.dtype == dtype
    assert jnp.abs(jnp.linalg.norm(x.astype(jnp.float32), axis=1) - 1).max() <= bound


@pytest.mark.parametrize("name", ALL)
def test_rows_without_gradient_do_not_move(name):
    x = unit_rows(2).at[5].set(0) * 1.00001  # neither do rows that are not quite normalised
    optimizer = ALL[name](0.1)
    state = optimizer.init(x)
    gradient = jnp.ones_like(x).at[:3].set(0)
    for _ in range(2):
        updates, state = optimizer.update(gradient, state, x)
        assert not updates[:3].any()
        assert not updates[5].any()
        assert updates[3:5].all()


@pytest.mark.parametrize("name", ALL)
def test_finds_the_nearest_point(name):
    target, x = unit_rows(3), unit_rows(4)
    optimizer = ALL[name](0.05)
    state = optimizer.init(x)
    loss = jax.jit(jax.value_and_grad(lambda x: jnp.sum((x - target) ** 2)))
    update = jax.jit(optimizer.update)
    for _ in range(300):
        _, gradient = loss(x)
        updates, state = update(gradient, state, x)
        x = optax.apply_updates(x, updates)
    assert jnp.sum(x * target, axis=1).min() > 0.999


def test_momentum_is_carried_along_the_geodesic():
    """With β and no new gradient the point goes on along the same great circle."""
    optimizer = spherical.riemannian_momentum(0.2, momentum=0.9)
    x = jnp.array([[1.0, 0.0, 0.0]])
    state = optimizer.init(x)
    gradient = jnp.array([[0.0, -1.0, 0.0]])
    for _ in range(30):
        updates, state = optimizer.update(gradient, state, x)
        x = optax.apply_updates(x, updates)
        gradient = jnp.zeros_like(x)
        assert jnp.sum(x * state.momentum) == pytest.approx(0, abs=1e-6)
    # The steps are arcs of tangent 0.2 · 0.9^k.
    angle = np.arctan(0.2 * 0.9 ** np.arange(30)).sum()
    np.testing.assert_allclose(x[0], [np.cos(angle), np.sin(angle), 0], atol=1e-5)


def test_nan_rate_shows_and_masks_leave_others_alone():
    x = {"table": unit_rows(5), "bias": jnp.zeros(())}
    gradient = jax.tree.map(jnp.ones_like, x)
    labels = {"table": "sphere", "bias": "flat"}
    optimizer = optax.partition(
        {"sphere": spherical.riemannian_sgd(jnp.nan), "flat": optax.sgd(1.0)}, labels
    )
    updates, _ = optimizer.update(gradient, optimizer.init(x), x)
    assert jnp.isnan(updates["table"]).all()
    assert updates["bias"] == -1
    plain = spherical.riemannian_sgd(0.1)
    with pytest.raises(ValueError, match=r"must be vectors .* got a scalar; leave it to another"):
        plain.update(gradient, plain.init(x), x)
    with pytest.raises(ValueError, match="needs the current point"):
        plain.update(gradient, plain.init(x))
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\), got 1"):
        spherical.riemannian_momentum(0.1, momentum=1)
    with pytest.raises(ValueError, match=r"b2 must be in \[0, 1\), got 2"):
        spherical.riemannian_adam(0.1, b2=2)


@pytest.mark.parametrize("name", ALL)
def test_state_keeps_its_structure_under_scan_and_nested_trees(name):
    x = {"a": unit_rows(6), "b": (unit_rows(7, (2, 3, 5)), unit_rows(8, (4,)))}
    optimizer = ALL[name](optax.constant_schedule(0.1))
    state = optimizer.init(x)
    updates, after = optimizer.update(x, state, x)
    assert jax.tree.structure(updates) == jax.tree.structure(x)
    described = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), s) for s in (state, after)]
    assert described[0] == described[1]
    assert optimizer.update({}, optimizer.init({}), {})[0] == {}
