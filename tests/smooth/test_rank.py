"""Ranks against all pairs in float64, at every size around a block, and their derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np

from tests.battery import quick_jit
from zoo.smooth import rank, soft_rank

jitted = quick_jit(soft_rank)


def all_pairs(x, temperature=1.0):
    return 0.5 + jax.nn.sigmoid((x[None, :] - x[:, None]) / temperature).sum(-1)


def weighted(function, x, temperature):
    return function(x, temperature=temperature) @ jnp.cos(3.0 * jnp.arange(len(x)))


value_and_slopes = quick_jit(jax.value_and_grad(weighted, argnums=(1, 2)), static_argnums=0)


@pytest.mark.parametrize("items", [31, 70])
def test_is_the_sum_over_all_pairs(items, double_precision):
    for scale in (0.01, 1.0, 1000.0):
        x = jnp.asarray(scale * np.random.default_rng(items).normal(size=items))
        np.testing.assert_allclose(jitted(x), all_pairs(x), rtol=1e-13)
        found = value_and_slopes(soft_rank, x, 0.7)
        expected = value_and_slopes(all_pairs, x, 0.7)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-11 * (1 + np.abs(b).max()))


def test_second_derivative_across_blocks(double_precision):
    x, direction = jnp.asarray(np.random.default_rng(0).normal(size=(2, 70)))

    def curvature(function):
        def along(s):
            return weighted(function, x + s * direction, 0.8)

        return quick_jit(jax.grad(jax.grad(along)))(0.0)

    np.testing.assert_allclose(curvature(soft_rank), curvature(all_pairs), rtol=1e-10)


def test_single_precision_on_long_rows(double_precision):
    x = np.random.default_rng(2).normal(size=3000)
    exact = all_pairs(jnp.asarray(x), 0.1)
    found = jitted(jnp.asarray(x, jnp.float32), temperature=0.1)
    np.testing.assert_allclose(found, exact, atol=1e-6 * len(x))


@given(
    st_np.arrays(np.float32, (2, 40), elements=st.floats(-1e3, 1e3, width=32)),
    st.sampled_from([1e-3, 1.0, 100.0]),
)
def test_properties(x, temperature):
    found = np.asarray(jitted(x, temperature=temperature), np.float64)
    np.testing.assert_allclose(found.sum(-1), 40 * 41 / 2, rtol=1e-6)
    assert (found > 0.5 - 1e-4).all()
    assert (found < 40.5 + 1e-4).all()
    order = np.argsort(-x, axis=-1, kind="stable")
    assert (np.diff(np.take_along_axis(found, order, -1)) > -1e-4).all()


def test_limits_ties_and_axes():
    x = jnp.array([[3.0, 9.0, 3.0, -2.0], [0.0, 0.0, 0.0, 0.0]])
    found = jitted(x, temperature=1e-3)
    np.testing.assert_allclose(found, [[2.5, 1, 2.5, 4], [2.5] * 4], rtol=1e-6)
    np.testing.assert_allclose(soft_rank(x.T, axis=0, temperature=1e-3), found.T, rtol=1e-6)
    assert soft_rank(jnp.zeros((2, 0))).shape == (2, 0)
    large = jnp.array([1e4, -1e4, 0.0], jnp.float16)
    ranks, gradient = quick_jit(lambda x: (soft_rank(x), jax.grad(lambda x: soft_rank(x)[0])(x)))(
        large
    )
    np.testing.assert_array_equal(ranks, [1, 3, 2])
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(("dtype", "error"), [(np.float32, 2e-9), (np.float64, 1e-14)])
def test_series_is_as_good_as_it_says(dtype, error):
    z = np.linspace(0, 1, 1001)
    series = np.array(rank._series(np.dtype(dtype)))
    found = np.vander(z, len(series) + 1, increasing=True)[:, 1:] @ series
    assert np.abs(found - z / (1 + z)).max() < error
    bound = 2 * z * (3 + np.sqrt(8)) ** -len(series)
    assert (np.abs(found - z / (1 + z)) <= bound + 1e-14).all()
    assert np.abs(series).max() <= 1
