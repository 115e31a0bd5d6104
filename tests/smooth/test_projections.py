"""Projections: optimality conditions, scikit-learn, numbers of others, sparse derivatives."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.isotonic import isotonic_regression

from tests.battery import quick_jit
from zoo.smooth.projections import project_permutahedron, project_simplex

simplex, permutahedron = quick_jit(project_simplex), quick_jit(project_permutahedron)


def test_simplex_is_optimal(double_precision):
    generator = np.random.default_rng(0)
    for scale in (0.1, 1.0, 100.0):
        x = scale * generator.normal(size=(20, 7))
        y = np.asarray(simplex(x, temperature=0.5))
        np.testing.assert_allclose(y.sum(-1), 1, rtol=1e-12)
        assert (y >= 0).all()
        # What is not 0 is 2x less one number, and that is above the rest.
        threshold = np.where(y > 0, 2 * x - y, -np.inf).max(-1, keepdims=True)
        np.testing.assert_allclose(np.where(y > 0, 2 * x - y - threshold, 0), 0, atol=1e-11)
        assert (np.where(y > 0, -np.inf, 2 * x) <= threshold + 1e-11).all()


def test_simplex_of_large_infinite_masked_and_tied_items():
    x = np.array([[1.36762051e8, 1.59594639e8], [np.inf, np.inf], [-np.inf, 3], [3e38, -3e38]])
    found = simplex(x.astype(np.float32))
    np.testing.assert_array_equal(found, [[0, 1], [0.5, 0.5], [0, 1], [1, 0]])
    np.testing.assert_array_equal(simplex(np.full(2, -np.inf, np.float32)), [0, 0])
    masked = project_simplex(jnp.array([np.nan, 1.0, 1.5]), where=np.array([False, True, True]))
    np.testing.assert_allclose(masked, [0, 0.25, 0.75])
    assert np.isnan(simplex(np.array([np.nan, 1], np.float32))).all()


def test_simplex_derivative_is_sparse():
    jacobian = quick_jit(jax.jacobian(project_simplex))(np.array([0.3, 0.1, -2.0], np.float32))
    np.testing.assert_allclose(jacobian, [[0.5, -0.5, 0], [-0.5, 0.5, 0], [0, 0, 0]])


def test_permutahedron_by_isotonic_regression(double_precision):
    generator = np.random.default_rng(1)
    for n, scale in itertools.product((1, 2, 9, 60), (0.1, 1.0, 30.0)):
        x, w = scale * generator.normal(size=(2, n))
        order = np.argsort(-x)
        expected = np.empty(n)
        falling = isotonic_regression(x[order] + np.sort(-w), increasing=False)
        expected[order] = x[order] - falling
        np.testing.assert_allclose(permutahedron(x, w), expected, atol=1e-11)
    assert permutahedron(np.zeros((2, 0)), np.zeros(0)).shape == (2, 0)


def test_permutahedron_is_nearest_in_three_dimensions(double_precision):
    x, w = np.array([0.4, 1.9, 1.7]), np.array([1.0, 2.0, 3.0])
    y = np.asarray(permutahedron(x, w))
    corners = np.array(list(itertools.permutations(w)))
    assert ((corners - y) @ (x - y) <= 1e-12).all()  # no corner lies on the side of x
    np.testing.assert_allclose(y.sum(), w.sum())


def test_ranks_of_others():
    # As torchsort prints them for regularization_strength 1, 0.1 and 10.
    x, ranks = np.array([1.0, -2, 2, 3, 0.5, -1], np.float32), np.arange(1.0, 7, dtype=np.float32)
    for strength, expected in (
        (1.0, [3.8750, 1.0000, 4.8750, 5.8750, 3.3750, 2.0000]),
        (0.1, [4.0, 1.0, 5.0, 6.0, 3.0, 2.0]),
        (10.0, [3.5417, 3.2417, 3.6417, 3.7417, 3.4917, 3.3417]),
    ):
        np.testing.assert_allclose(permutahedron(x / strength, ranks), expected, atol=5e-5)
    np.testing.assert_array_equal(permutahedron(1e6 * x, ranks), [4, 1, 5, 6, 3, 2])  # exact
    np.testing.assert_allclose(permutahedron(ranks, x * 1e-2), np.sort(x) * 1e-2, rtol=1e-6)


def test_permutahedron_derivatives_are_those_of_the_blocks():
    x, w = np.array([0.0, 0.1, 5.0], np.float32), np.array([3.0, 1.0, 2.0], np.float32)
    in_x, in_w = quick_jit(jax.jacobian(project_permutahedron, argnums=(0, 1)))(x, w)
    np.testing.assert_allclose(in_x, [[0.5, -0.5, 0], [-0.5, 0.5, 0], [0, 0, 0]])
    np.testing.assert_allclose(in_w, [[0, 0.5, 0.5], [0, 0.5, 0.5], [1, 0, 0]])
    spoiled = permutahedron(np.array([[0, 1, np.inf], [3, 2, 1]], np.float32), w)
    np.testing.assert_array_equal(np.isnan(spoiled).all(-1), [True, False])
