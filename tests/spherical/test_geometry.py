"""The sphere in float64: closed forms, inverses, and the places where naive formulas break."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.battery import quick_jit
from zoo import spherical

distance, exponential, logarithm, transport = map(
    quick_jit,
    (
        spherical.geodesic_distance,
        spherical.exponential_map,
        spherical.logarithmic_map,
        spherical.parallel_transport,
    ),
)
pytestmark = pytest.mark.usefixtures("double_precision")

# Tangent of an angle: identical, nearly parallel, anything, nearly antipodal, antipodal.
ANGLES = [0.0, 1e-12, 1e-6, 0.3, 1.5, np.pi - 1e-6, np.pi - 1e-9]


def frame(seed, size=5):
    """A unit vector, and a unit tangent there."""
    basis, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(size, 2)))
    return jnp.asarray(basis[:, 0]), jnp.asarray(basis[:, 1])


def at(x, e, angle):
    return jnp.cos(angle) * x + jnp.sin(angle) * e


@pytest.mark.parametrize("angle", ANGLES)
def test_distance_is_exact_at_all_angles(angle):
    x, e = frame(0)
    assert distance(x, at(x, e, angle)) == pytest.approx(angle, abs=4e-16)


@pytest.mark.parametrize("angle", ANGLES)
def test_logarithm_undoes_the_exponential(angle):
    x, e = frame(1)
    y = exponential(x, angle * e)
    np.testing.assert_allclose(y, at(x, e, angle), atol=1e-15)
    v = logarithm(x, y)
    assert jnp.linalg.norm(v) == pytest.approx(angle, abs=1e-15)
    # Near the antipode the direction is only as good as y is: 1e-16 / (π - angle).
    np.testing.assert_allclose(v, angle * e, atol=1e-15 + 1e-15 / max(np.pi - angle, 1e-3) * 1e7)
    np.testing.assert_allclose(exponential(x, v), y, atol=1e-15)


@pytest.mark.parametrize("angle", [*ANGLES, np.pi])
def test_transport_keeps_lengths_and_turns_the_geodesic_with_itself(angle):
    x, e = frame(2)
    other = spherical.normalize(spherical.tangent_projection(e, frame(3)[0]))
    other = spherical.normalize(spherical.tangent_projection(x, other))
    y = -x if angle == np.pi else at(x, e, angle)
    for v in (e, other):
        moved = transport(x, y, v)
        assert jnp.linalg.norm(moved) == pytest.approx(1)
        assert moved @ y == pytest.approx(0, abs=1e-15)
    if angle < np.pi - 1e-3:
        v = transport(x, y, e)
        np.testing.assert_allclose(v, -jnp.sin(angle) * x + jnp.cos(angle) * e, atol=1e-12)
        usual = other - (y @ other) / (1 + x @ y) * (x + y)
        np.testing.assert_allclose(transport(x, y, other), usual, atol=1e-12)


def test_antipodes_have_one_shortest_way():
    x, _ = frame(4)
    v = logarithm(x, -x)
    assert jnp.linalg.norm(v) == pytest.approx(np.pi)
    assert v @ x == pytest.approx(0, abs=1e-15)
    np.testing.assert_allclose(exponential(x, v), -x, atol=1e-15)
    moved = transport(x, -x, v)
    np.testing.assert_allclose(moved, -v, atol=1e-14)  # goes on in its direction, seen from -x


def test_gradients_are_finite_where_formulas_are_singular():
    x, e = frame(5)

    @quick_jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def slopes(a, b, y):
        return (
            spherical.geodesic_distance(a, b)
            + jnp.sum(spherical.logarithmic_map(a, b) * e)
            + jnp.sum(spherical.exponential_map(a, b - y) * e)
            + jnp.sum(spherical.parallel_transport(a, b, e) * e)
        )

    for y in (x, at(x, e, 1e-15), -x):
        assert all(jnp.isfinite(slope).all() for slope in slopes(x, y, y))
    # What is smooth there has its slope: the logarithm of a point near x is the step itself.
    slope = quick_jit(jax.jacobian(lambda b: spherical.logarithmic_map(x, b)))(x)
    np.testing.assert_allclose(slope, jnp.eye(5) - jnp.outer(x, x), atol=1e-14)


@hypothesis.given(length=st.floats(1e-4, 1e-2), seed=st.integers(0, 99))
def test_retraction_is_the_exponential_to_third_order(length, seed):
    x, e = frame(seed)
    gap = spherical.retract(x, length * e) - spherical.exponential_map(x, length * e)
    assert jnp.linalg.norm(gap) <= length**3 / 3 * 1.01 + 1e-15


@hypothesis.given(exponent=st.floats(-300, 300), seed=st.integers(0, 99))
def test_normalize_at_any_scale(exponent, seed):
    direction = np.random.default_rng(seed).normal(size=4)
    x = spherical.normalize(jnp.asarray(direction * 10.0**exponent))
    np.testing.assert_allclose(x, direction / np.linalg.norm(direction), rtol=1e-12)


def test_zero_vectors():
    zero = jnp.zeros(3)
    assert not spherical.normalize(zero).any()
    assert not jax.grad(lambda x: spherical.normalize(x).sum())(zero).any()
    assert spherical.geodesic_distance(zero, zero) == 0
    assert jnp.isfinite(spherical.logarithmic_map(zero, zero)).all()
    x = spherical.retract(jnp.array([1.0, 0, 0]), jnp.array([-1.0, 0, 0]))
    assert not x.any()


def test_random_uniform_has_the_moments_of_the_sphere():
    x = np.asarray(spherical.random_uniform(jax.random.key(0), (20000, 3)))
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=1e-12)
    # Each coordinate of the 2-sphere is uniform in ±1; five standard errors.
    bound = 5 / np.sqrt(20000)
    assert np.abs(x.mean(axis=0)).max() < bound * np.sqrt(1 / 3)
    assert np.abs((x**2).mean(axis=0) - 1 / 3).max() < bound * np.sqrt(1 / 5 - 1 / 9)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((3, 0), {}, r"shape must end with D ≥ 1 coordinates, got \(3, 0\)"),
        ((-1, 3), {}, "shape must be at least 0, got -1"),
        ((2.5, 3), {}, "shape must be an integer, got 2.5"),
        (3, {}, "shape must be a tuple of integers, got 3"),
        ((3,), {"dtype": jnp.int32}, "dtype must be a floating-point array, got int32"),
        ((3,), {"key": jax.random.PRNGKey(0)}, "key must be a typed key"),
    ],
)
def test_random_uniform_refuses(shape, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        spherical.random_uniform(**{"key": jax.random.key(0), "shape": shape} | options)
