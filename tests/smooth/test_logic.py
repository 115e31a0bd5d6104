"""Comparisons, logic and selection: closed forms, bounds, exact limits, shapes, infinities."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from scipy import special

from tests.battery import quick_jit
from zoo import smooth
from zoo.smooth.logic import soft_xor
from zoo.smooth.selection import soft_slice

INF = np.inf
equal = quick_jit(smooth.soft_equal)


def test_comparisons_by_their_formulas(double_precision):
    x, y = np.random.default_rng(0).normal(size=(2, 50))
    u = (x - y) / 0.3
    np.testing.assert_allclose(smooth.soft_greater(x, y, temperature=0.3), special.expit(u))
    np.testing.assert_allclose(smooth.soft_less(x, y, temperature=0.3), special.expit(-u))
    for tolerance in (0.0, 0.5):
        v = tolerance / 0.3
        expected = (1 + math.cosh(v)) / (np.cosh(u) + math.cosh(v))
        found = equal(x, y, temperature=0.3, tolerance=tolerance)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_comparisons_end_at_the_exact_ones_within_their_bound():
    x, y = (a.astype(np.float32) for a in np.random.default_rng(1).normal(size=(2, 200)))
    y[:20] = x[:20]
    for temperature in (1.0, 0.1, 0.01):
        for tolerance in (0.0, 0.4):
            gap = np.abs(np.abs(x - y) - tolerance)
            error = np.abs(
                equal(x, y, temperature=temperature, tolerance=tolerance)
                - (np.abs(x - y) <= tolerance)
            )
            assert (error <= 4 * np.exp(-gap / temperature) + 1e-6).all()
        error = np.abs(smooth.soft_greater(x, y, temperature=temperature) - (x > y))
        assert (error <= np.exp(-np.abs(x - y) / temperature) + 1e-6).all()
    np.testing.assert_array_equal(equal(x[:20], y[:20], temperature=0.01), np.ones(20))
    assert equal(2.5, 2.0, temperature=1e-3, tolerance=0.5) == pytest.approx(0.5, abs=1e-3)
    pairs = np.array([[INF, INF], [-INF, -INF], [INF, 1], [1, -INF]], np.float32).T
    np.testing.assert_array_equal(smooth.soft_greater(*pairs), [0.5, 0.5, 1, 1])
    np.testing.assert_array_equal(equal(*pairs), [1, 1, 0, 0])
    slopes = jax.vmap(jax.grad(smooth.soft_greater, argnums=(0, 1)))(*pairs)
    assert np.isfinite(slopes).all()


def test_dtypes_and_shapes_of_two():
    x = jnp.ones((2, 1), jnp.bfloat16)
    for function in (smooth.soft_greater, smooth.soft_equal, smooth.soft_and, smooth.soft_or):
        assert function(x, jnp.ones(3, jnp.bfloat16)).dtype == jnp.bfloat16
        assert function(x, jnp.ones(3, jnp.float32)).dtype == jnp.float32
        assert function(x, jnp.ones(3, jnp.float32)).shape == (2, 3)
    assert smooth.soft_greater(x, 1).dtype == jnp.bfloat16
    assert smooth.soft_greater(jnp.arange(3), 0.5).dtype == jnp.float32


def test_logic_is_exact_on_0_and_1_and_its_slopes_too():
    for p, q in itertools.product((0.0, 1.0), repeat=2):
        assert smooth.soft_and(p, q) == (p and q)
        assert smooth.soft_or(p, q) == (p or q)
        assert soft_xor(p, q) == (p != q)
    assert smooth.soft_not(jnp.ones(())) == 0
    for values in ([0.0, 0, 1, 0.5], [1.0, 1, 0.5, 1], [0.0, 0.25, 0.5, 0.75]):
        p = np.array(values, np.float32)
        for function, expected in (
            (smooth.soft_all, lambda p: np.prod(p)),
            (smooth.soft_any, lambda p: 1 - np.prod(1 - p)),
        ):
            value, slope = jax.value_and_grad(function)(p)
            np.testing.assert_allclose(value, expected(p), rtol=1e-6)
            # Linear in each: the slope is a difference.
            ends = [[np.where(np.arange(4) == i, e, p) for i in range(4)] for e in (1, 0)]
            high, low = ([expected(p) for p in rows] for rows in ends)
            np.testing.assert_allclose(slope, np.subtract(high, low), atol=1e-7)


def test_many_events():
    tiny = jnp.array([1e-20, 2e-20, 3e-20])
    assert smooth.soft_any(tiny) == pytest.approx(6e-20, rel=1e-6)
    p = np.random.default_rng(2).random((3, 7, 2)).astype(np.float32)
    where = np.arange(7)[:, None] < 5
    for function, numpy in (
        (smooth.soft_all, lambda p: np.prod(p, axis=1)),
        (smooth.soft_any, lambda p: 1 - np.prod(1 - p, axis=1)),
    ):
        hidden = np.where(where, p, np.nan)
        found = function(hidden, axis=1, where=where, keepdims=True)
        np.testing.assert_allclose(found[:, 0], numpy(p[:, :5]), rtol=1e-5)
    assert smooth.soft_all(jnp.zeros((2, 0))).tolist() == [1, 1]
    assert smooth.soft_any(jnp.zeros((2, 0))).tolist() == [0, 0]


def test_where_is_exact_at_its_ends_whatever_the_other_is():
    p = np.array([1, 1, 0, 0, 0.25], np.float32)
    x = np.array([3e38, 2, INF, np.nan, 1], np.float32)
    y = np.array([-3e38, np.nan, 5, -3e38, 2], np.float32)
    expected = np.array([3e38, 2, 5, -3e38, 1.75], np.float32)
    np.testing.assert_array_equal(smooth.soft_where(p, x, y), expected)
    slope = jax.grad(lambda p: smooth.soft_where(p, 3.0, 5.0))(0.0)
    assert slope == -2  # a choice that has no weight yet still pulls


def test_take_is_indexing():
    x = np.random.default_rng(3).normal(size=(2, 5, 3)).astype(np.float32)
    index = np.array([[4, 0, 1, 1], [2, 2, 3, 0]])
    one_hot = np.eye(5, dtype=np.float32)
    places = np.broadcast_to(one_hot[index][:, None], (2, 3, 4, 5))  # the items always last
    expected = np.take_along_axis(x, np.broadcast_to(index[..., None], (2, 4, 3)), 1)
    np.testing.assert_allclose(smooth.soft_take(x, places, axis=1), expected)
    np.testing.assert_allclose(smooth.soft_take(x, one_hot[2], axis=1), x[:, 2])
    np.testing.assert_allclose(
        smooth.soft_take(x[0], one_hot[[1, 0, 4]], axis=0), x[0, [1, 0, 4], [0, 1, 2]]
    )
    np.testing.assert_allclose(smooth.soft_take(x[0, :, 0], one_hot[[3, 3]]), x[0, [3, 3], 0])
    hidden = np.where(np.arange(5) == 2, -INF, x[0, :, 0])
    assert smooth.soft_take(hidden, one_hot[1]) == x[0, 1, 0]


def test_slice_is_slicing_also_at_the_end():
    x = np.random.default_rng(4).normal(size=(2, 5)).astype(np.float32)
    one_hot = np.eye(5, dtype=np.float32)
    for start in range(5):
        expected = lax.dynamic_slice_in_dim(x, start, 3, axis=1)
        np.testing.assert_allclose(soft_slice(x, one_hot[start], 3), expected)
        expected = lax.dynamic_slice_in_dim(x.T, start, 2, axis=0)
        np.testing.assert_allclose(soft_slice(x.T, one_hot[start], 2, axis=0), expected)
    mixed = 0.25 * one_hot[0] + 0.75 * one_hot[2]
    np.testing.assert_allclose(
        soft_slice(x, mixed, 2), 0.25 * x[:, :2] + 0.75 * x[:, 2:4], rtol=1e-6
    )


@pytest.mark.parametrize("kernel", ["logistic", "gaussian", "square"])
def test_clip(kernel, double_precision):
    clip = quick_jit(smooth.smooth_clip, static_argnames="kernel")
    x = np.linspace(-4, 5, 91)
    relu = smooth.smooth_relu
    for low, high in ((-1.0, 2.0), (0.5, 0.5)):
        parts = [relu(x - edge, temperature=0.3, kernel=kernel) for edge in (low, high)]
        found = np.asarray(clip(x, low, high, temperature=0.3, kernel=kernel))
        np.testing.assert_allclose(found, low + parts[0] - parts[1], atol=1e-12)
        assert (np.abs(found - np.clip(x, low, high)) <= 0.3 * math.log(2)).all()
    far = np.array([-1e9, 1e9], np.float32)  # the difference of two ramps has no digit there
    np.testing.assert_allclose(clip(far, 0.125, 0.25, kernel=kernel), [0.125, 0.25], rtol=1e-6)
    open_ended = clip(x, -INF, 2.0, kernel=kernel)
    np.testing.assert_allclose(open_ended, 2 - relu(2 - x, kernel=kernel), atol=1e-12)
    np.testing.assert_array_equal(clip(x, -INF, INF, kernel=kernel), x)
    slopes = jax.grad(lambda *a: smooth.smooth_clip(*a, kernel=kernel), argnums=(0, 1, 2))
    np.testing.assert_allclose(np.sum(slopes(0.3, -1.0, 2.0)), 1)  # it moves with all three
    np.testing.assert_allclose(slopes(0.3, -INF, INF), [1, 0, 0], atol=1e-30)
    assert np.isnan(clip(x, 1.0, 0.0, kernel=kernel)).all()
