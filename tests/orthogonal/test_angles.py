"""Angles between filters, and the distribution of random ones."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.battery import quick_jit
from zoo.orthogonal import KernelAxes, filter_angles
from zoo.orthogonal.angles import random_angle_density, random_angle_std

angles_of = quick_jit(filter_angles, static_argnames="axes")
density_of = quick_jit(random_angle_density, static_argnames="dimension")


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_equal_to_scipy():
    distance = pytest.importorskip("scipy.spatial.distance")
    w = normal(0, 7, 5)
    cosines = 1 - distance.pdist(w.T.astype(np.float64), "cosine")  # in the same order
    np.testing.assert_allclose(angles_of(w), np.degrees(np.arccos(cosines)), atol=1e-3)


@given(st.integers(0, 10**6), st.floats(-30, 30), st.floats(1, 179))
def test_length_and_sign(seed, magnitude, angle):
    """Two filters at a known angle, of any length; a turned sign is the supplement."""
    base = np.linalg.qr(normal(seed, 4, 2))[0]
    first = base[:, 0]
    second = math.cos(math.radians(angle)) * base[:, 0] + math.sin(math.radians(angle)) * base[:, 1]
    pair = np.stack([first * 10.0**magnitude, second], axis=1).astype(np.float32)
    assert float(angles_of(pair)[0]) == pytest.approx(angle, abs=2e-3)
    pair[:, 1] *= -1
    assert float(angles_of(pair)[0]) == pytest.approx(180 - angle, abs=2e-3)


def test_parallel_filters_and_filters_of_zeros():
    w = np.array([[1, 2, -3, 0], [2, 4, -6, 0]], np.float32)
    found = np.asarray(angles_of(w))
    np.testing.assert_allclose(found[[0, 1, 3]], [0, 180, 180], atol=0.05)
    assert np.isnan(found[[2, 4, 5]]).all()


@pytest.mark.parametrize("entries", [2, 27, 2000])
def test_small_angles_are_as_exact_as_others(entries):
    """Where the cosine has lost the digits: 0.1° at 1 - 1e-6, of which float32 knows 16 steps."""
    exact, pairs = [], []
    for number, angle in enumerate((0, 1e-3, 0.1, 1, 8, 25, 26, 90, 154, 179.9, 180)):
        first, second = np.linalg.qr(normal(number, entries, 2).astype(float))[0].T
        turn = np.cos(np.radians(angle)) * first + np.sin(np.radians(angle)) * second
        pair = np.stack([first, 3e-4 * turn], axis=1).astype(np.float32)
        u, v = (pair / np.linalg.norm(pair.astype(float), axis=0)).T
        exact.append(np.degrees(2 * np.arctan2(np.linalg.norm(u - v), np.linalg.norm(u + v))))
        pairs.append(pair)
    found = angles_of(np.stack(pairs), axes=KernelAxes(batch=0))[:, 0]
    np.testing.assert_allclose(found, exact, atol=1e-3)


def test_gradients_beside_parallel_filters_and_filters_of_zeros():
    w = normal(3, 4, 6)
    w[:, 1], w[:, 2], w[:, 3] = 2 * w[:, 0], -w[:, 0], 0
    weights = normal(4, 15)
    others = [0, 4, 5]
    slope = quick_jit(jax.grad(lambda w, weights: jnp.nansum(weights * filter_angles(w))))
    assert np.isfinite(slope(w, weights)).all()
    np.testing.assert_array_equal(slope(w, weights)[:, 3], 0)
    alone = quick_jit(jax.grad(lambda w, weights: jnp.sum(weights * filter_angles(w))))
    first, second = np.triu_indices(6, 1)
    among = np.isin(first, others) & np.isin(second, others)
    np.testing.assert_allclose(
        slope(w, np.where(among, weights, 0))[:, others],
        alone(w[:, others], weights[among]),
        rtol=1e-4,
        atol=1e-4,
    )


def test_density_at_the_ends_and_of_nan():
    degrees = np.array([0, 180, -1, 181, np.inf, np.nan], np.float32)
    for dimension in (2, 3, 4, 5, 100):
        density = np.asarray(random_angle_density(degrees, dimension=dimension))
        np.testing.assert_array_equal(density[:2], np.float32(1 / 180) if dimension == 2 else 0)
        np.testing.assert_array_equal(density[2:5], 0)
        assert np.isnan(density[5])


def test_layouts_and_stacks():
    kernel = normal(1, 3, 3, 2, 4)
    expected = angles_of(kernel.reshape(18, 4))
    np.testing.assert_allclose(angles_of(kernel), expected, atol=1e-3)
    torch_layout = kernel.transpose(3, 2, 0, 1)
    found = angles_of(torch_layout, axes=KernelAxes(filters=0))
    np.testing.assert_allclose(found, expected, atol=1e-3)
    stacked = angles_of(np.stack([kernel, 2 * kernel[..., ::-1]]), axes=KernelAxes(batch=0))
    assert stacked.shape == (2, 6)
    np.testing.assert_allclose(stacked[1], expected[np.array([5, 4, 2, 3, 1, 0])], atol=1e-3)
    assert angles_of(kernel[..., :1]).shape == (0,)


# n: variance in radians², as the article tabulates it.
VARIANCES = {
    3: 0.467401,
    10: 0.110661,
    20: 0.0525832,
    50: 0.0204053,
    100: 0.0101007,
    200: 0.00502508,
    1000: 0.001001,
}


def test_golden_variances():
    found = [math.radians(random_angle_std(dimension)) ** 2 for dimension in VARIANCES]
    np.testing.assert_allclose(found, list(VARIANCES.values()), rtol=5e-6)  # as printed there


@pytest.mark.parametrize("dimension", [2, 27, 576])
def test_density_has_the_moments(dimension):
    edges = np.linspace(-1, 181, 20_201)
    degrees = (edges[1:] + edges[:-1]) / 2
    density = np.asarray(density_of(degrees.astype(np.float32), dimension=dimension))
    assert not density[np.abs(degrees - 90) > 90].any()
    weights = density * np.diff(edges)
    assert weights.sum() == pytest.approx(1, rel=1e-4)
    assert weights @ degrees == pytest.approx(90, rel=1e-4)
    deviation = math.sqrt(weights @ (degrees - 90) ** 2)
    assert deviation == pytest.approx(random_angle_std(dimension), rel=1e-3)


def test_random_filters_follow_the_distribution():
    dimension, filters = 27, 200
    found = np.asarray(angles_of(normal(2, dimension, filters)))
    assert found.mean() == pytest.approx(90, abs=0.3)
    # Pairs that share a filter are uncorrelated, so that the error is that of independent ones.
    expected = random_angle_std(dimension)
    assert found.std() == pytest.approx(expected, abs=5 * expected / math.sqrt(2 * found.size))
