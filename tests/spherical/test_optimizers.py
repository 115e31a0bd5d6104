"""Steps against the formula, unit norm over many steps, rows that must not move, convergence."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.battery import quick_jit
from zoo import spherical
from zoo.spherical.optimizers import riemannian_adam, riemannian_momentum

ALL = {
    "sgd": spherical.riemannian_sgd,
    "plain sgd": lambda rate: spherical.riemannian_sgd(rate, angular=False),
    "momentum": riemannian_momentum,
    "adam": riemannian_adam,
}


def unit_rows(seed, shape=(6, 4)):
    return spherical.random_uniform(jax.random.key(seed), shape, jnp.float32)


@pytest.mark.parametrize("angular", [True, False])
def test_one_step_is_the_formula(angular):
    """The fast form inside is ``retract``, in values and in gradients."""
    x, gradient = unit_rows(0), 5 * jax.random.normal(jax.random.key(9), (6, 4))
    optimizer = spherical.riemannian_sgd(0.3, angular=angular)

    def ours(x, gradient):
        return x + optimizer.update(gradient, optimizer.init(x), x)[0]

    def formula(x, gradient):
        direction = gradient / jnp.linalg.norm(gradient, axis=-1, keepdims=True)
        factor = 1 + jnp.sum(x * direction, axis=-1, keepdims=True) if angular else 1
        step = -0.3 * factor * spherical.tangent_projection(x, gradient)
        return spherical.retract(x, step)

    weights = jax.random.normal(jax.random.key(8), x.shape)

    @quick_jit
    def both(x, gradient):
        pulled = [jax.vjp(function, x, gradient) for function in (ours, formula)]
        return [(value, *pull_back(weights)) for value, pull_back in pulled]

    (found, *slopes), (expected, *slopes_of_formula) = both(x, gradient)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    for a, b in zip(slopes, slopes_of_formula, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    row, g = np.asarray(x[0]), np.asarray(gradient[0])
    factor = 1 + row @ g / np.linalg.norm(g) if angular else 1
    moved = row - 0.3 * factor * (np.eye(4) - np.outer(row, row)) @ g
    np.testing.assert_allclose(found[0], moved / np.linalg.norm(moved), atol=1e-6)


def test_angular_factor_ends():
    x = jnp.array([[0.6, 0.8]])
    optimizer = spherical.riemannian_sgd(0.1)
    for sign, factor in ((-1, 0.0), (1, 2.0)):  # -gradient along x, and against it
        gradient = sign * x + jnp.array([[-8e-5, 6e-5]])
        updates, _ = optimizer.update(gradient, optimizer.init(x), x)
        assert jnp.linalg.norm(updates) == pytest.approx(0.1 * factor * 1e-4, abs=2e-7)


@pytest.mark.parametrize("name", ALL)
def test_norms_stay_one_over_many_steps(name):
    steps = 20_000 if name == "sgd" else 2_000
    optimizer = ALL[name](optax.linear_schedule(0.3, 0.0, steps))
    x = {"float32": unit_rows(1), "bfloat16": unit_rows(1).astype(jnp.bfloat16)}

    @jax.jit
    def run(x, state, key):
        def step(carry, key):
            x, state = carry
            gradient = jax.tree.map(lambda leaf: jax.random.normal(key, leaf.shape, leaf.dtype), x)
            updates, state = optimizer.update(gradient, state, x)
            return (optax.apply_updates(x, updates), state), None

        return jax.lax.scan(step, (x, state), jax.random.split(key, steps))[0]

    x, _ = run(x, optimizer.init(x), jax.random.key(0))
    for dtype, bound in (("float32", 1e-6), ("bfloat16", 2**-7)):
        assert x[dtype].dtype == dtype
        lengths = jnp.linalg.norm(x[dtype].astype(jnp.float32), axis=1)
        assert jnp.abs(lengths - 1).max() <= bound


@pytest.mark.parametrize("name", ALL)
def test_rows_without_gradient_stay_and_the_others_find_the_nearest_point(name):
    target, x = unit_rows(3), unit_rows(4).at[5].set(0) * 1.00001  # not quite normalised
    optimizer = ALL[name](0.05)

    @jax.jit
    def run(x):
        def step(carry, _):
            x, state = carry
            gradient = (2 * (x - target)).at[:3].set(0)
            updates, state = optimizer.update(gradient, state, x)
            return (optax.apply_updates(x, updates), state), None

        return jax.lax.scan(step, (x, optimizer.init(x)), length=300)[0][0]

    found = run(x)
    assert (found[:3] == x[:3]).all()
    assert not found[5].any()
    assert jnp.sum(found * target, axis=1)[3:5].min() > 0.999


@pytest.mark.parametrize("name", ["momentum", "adam"])
@pytest.mark.parametrize("rate", [-0.5, 0.1, 2.0])
def test_memory_is_carried_by_parallel_transport(name, rate):
    optimizer, x = ALL[name](rate), unit_rows(4)
    gradient = 3 * unit_rows(5)
    updates, state = optimizer.update(gradient, optimizer.init(x), x)
    share = {"momentum": 1.0, "adam": 0.1}[name]
    before = share * spherical.tangent_projection(x, gradient)
    expected = spherical.parallel_transport(x, x + updates, before)
    np.testing.assert_allclose(state[1], expected, atol=1e-6)


def test_momentum_is_carried_along_the_geodesic():
    """With β and no new gradient the point goes on along the same great circle."""
    optimizer = riemannian_momentum(0.2, momentum=0.9)
    x = jnp.array([[1.0, 0.0, 0.0]])
    state = optimizer.init(x)
    gradient = jnp.array([[0.0, -1.0, 0.0]])
    update = jax.jit(optimizer.update)
    for _ in range(30):
        updates, state = update(gradient, state, x)
        x = optax.apply_updates(x, updates)
        gradient = jnp.zeros_like(x)
        assert jnp.sum(x * state.momentum) == pytest.approx(0, abs=1e-6)
    # The steps are arcs of tangent 0.2 · 0.9^k.
    angle = np.arctan(0.2 * 0.9 ** np.arange(30)).sum()
    np.testing.assert_allclose(x[0], [np.cos(angle), np.sin(angle), 0], atol=1e-5)


def test_bad_rates_and_leaves_are_seen():
    x = {"table": unit_rows(5), "bias": jnp.zeros(())}
    gradient = jax.tree.map(jnp.ones_like, x)
    labels = {"table": "sphere", "bias": "flat"}
    for rate in (jnp.nan, 1e30):  # the square of such a step overflows
        optimizer = optax.partition(
            {"sphere": spherical.riemannian_sgd(rate), "flat": optax.sgd(1.0)}, labels
        )
        updates, _ = optimizer.update(gradient, optimizer.init(x), x)
        assert jnp.isnan(updates["table"]).all()
        assert updates["bias"] == -1
    with pytest.raises(ValueError, match=r"momentum must be .*≥ 0 and < 1, got 1"):
        riemannian_momentum(0.1, momentum=1)
    for option, value in {"b2": 2, "b1": np.float32(-1), "epsilon": -1e-8}.items():
        with pytest.raises(ValueError, match=f"{option} must be .*≥ 0.*, got .*{value}"):
            riemannian_adam(0.1, **{option: value})


@pytest.mark.parametrize("name", ALL)
def test_leaves_that_are_no_spheres_are_refused(name):
    optimizer, x = ALL[name](0.1), {"a": unit_rows(5)}
    for leaf in (jnp.zeros(()), 0.0, np.float32(0)):
        with pytest.raises(ValueError, match=r"'bias' must be vectors .* a scalar; leave it to"):
            optimizer.init(x | {"bias": leaf})
    with pytest.raises(TypeError, match=r"'ids' must be floating-point vectors, got int32; leave"):
        optimizer.init(x | {"ids": jnp.arange(3)})
    state = optimizer.init(x)
    with pytest.raises(ValueError, match="needs the current point"):
        optimizer.update(x, state)
    with pytest.raises(ValueError, match=r"'a' must have the shape .* \[6, 4\], got \[1, 4\]"):
        optimizer.update({"a": x["a"][:1]}, state, x)
    for empty in (jnp.zeros((0, 3)), jnp.zeros((2, 0))):
        assert optimizer.update(empty, optimizer.init(empty), empty)[0].shape == empty.shape


@pytest.mark.parametrize("name", ALL)
def test_hyperparameters_may_be_traced(name):
    """``inject_hyperparams`` traces what is a number; out of its range that gives NaN."""
    x = unit_rows(6)
    injected = optax.inject_hyperparams(ALL[name])(0.1)
    state = injected.init(x)
    update = jax.jit(injected.update)
    plain = ALL[name](0.1)
    expected, _ = plain.update(x + 0.5, plain.init(x), x)
    np.testing.assert_allclose(update(x + 0.5, state, x)[0], expected, atol=1e-6)
    for option in {"momentum", "b1", "b2", "epsilon"} & state.hyperparams.keys():
        wrong = state._replace(hyperparams=state.hyperparams | {option: jnp.float32(-1)})
        assert jnp.isnan(update(x + 0.5, wrong, x)[0]).all()


@pytest.mark.parametrize("name", ALL)
def test_rows_are_unit_after_steps_of_any_length(name):
    for rate in (1e6, 1e15):
        optimizer, x = ALL[name](rate), unit_rows(7)
        for seed in (1, 2):
            updates, _ = optimizer.update(unit_rows(seed), optimizer.init(x), x)
            x = x + updates
            np.testing.assert_allclose(jnp.linalg.norm(x, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_state_keeps_its_structure_for_nested_trees(name):
    x = {"a": unit_rows(6), "b": (unit_rows(7, (2, 3, 5)), unit_rows(8, (4,)))}
    optimizer = ALL[name](optax.constant_schedule(0.1))
    state = optimizer.init(x)
    updates, after = jax.eval_shape(optimizer.update, x, state, x)
    assert jax.tree.structure(updates) == jax.tree.structure(x)
    described = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), s) for s in (state, after)]
    assert described[0] == described[1]
    assert optimizer.update({}, optimizer.init({}), {})[0] == {}
