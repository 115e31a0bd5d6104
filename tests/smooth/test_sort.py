"""Sorting: the matrix by its formula, the bound attained, exact limits, masks, derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from tests.battery import quick_jit
from zoo import _cpu
from zoo.smooth import soft_argsort, soft_median, soft_quantile, soft_sort

INF, NAN = np.inf, np.nan
sort = quick_jit(soft_sort, static_argnames=("descending", "axis"))
argsort = quick_jit(soft_argsort, static_argnames="descending")
quantile = quick_jit(soft_quantile, static_argnames=("axis", "method", "keepdims"))
median = quick_jit(soft_median)


def matrix(x, temperature):
    weights = np.exp(-np.abs(np.sort(x)[:, None] - x[None]) / temperature)
    return weights / weights.sum(1, keepdims=True)


@quick_jit
def both(x, values, temperature):
    options = {"temperature": temperature, "axis": 1}
    by_matrix = jnp.einsum("bpci,bic->bpc", soft_argsort(x, **options), values)
    return soft_sort(x, values=values, **options), by_matrix, soft_sort(x, **options)


def test_is_the_product_with_its_matrix(double_precision):
    x, values = np.random.default_rng(0).normal(size=(2, 2, 70, 3))
    for temperature in (0.05, 1.0):
        by_recurrence, by_matrix, own = both(x, values, temperature)
        expected = matrix(x[1, :, 2], temperature)
        np.testing.assert_allclose(by_recurrence[1, :, 2], expected @ values[1, :, 2], rtol=1e-10)
        np.testing.assert_allclose(own[1, :, 2], expected @ x[1, :, 2], rtol=1e-11)
        np.testing.assert_allclose(by_recurrence, by_matrix, rtol=1e-10)


@pytest.mark.slow
def test_derivatives_are_those_of_the_matrix(double_precision):
    x, weights = np.random.default_rng(1).normal(size=(2, 9))

    def along(s, by_matrix):
        x_s, temperature = x + s * np.cos(np.arange(9)), 0.6 + s
        if by_matrix:
            return weights @ soft_argsort(x_s, temperature=temperature) @ x_s
        return weights @ soft_sort(x_s, temperature=temperature)

    both_orders = lambda m: jax.jvp(jax.grad(lambda s: along(s, m)), (0.0,), (1.0,))  # noqa: E731
    np.testing.assert_allclose(*quick_jit(lambda: [both_orders(m) for m in (True, False)])())


def test_bound_is_attained_and_sorted(double_precision):
    for n in (2, 10, 500):
        w = float(special.lambertw((n - 1) / np.e).real)
        assert w < np.log(n)
        x = np.append(np.full(n - 1, 0.3 * (1 + w)), 0.0)
        np.testing.assert_allclose(sort(x, temperature=0.3)[0], 0.3 * w, rtol=1e-12)
        x = np.random.default_rng(n).normal(size=n)
        y = np.asarray(sort(x, temperature=0.3))
        assert (np.diff(y) >= 0).all()
        assert np.abs(y - np.sort(x)).max() <= 0.3 * w


def test_many_items_near_each_other_keep_their_digits():
    # A decay of e^{-1e-6} has no digit of the gap in single precision.
    x = 1e-6 * np.arange(100_000)
    weights = np.exp(-x)
    expected = weights @ x / weights.sum()
    np.testing.assert_allclose(sort(x.astype(np.float32))[0], expected, atol=3e-6)


def test_limits_ties_infinities_nan_and_order():
    x = np.array([[3, 9, 3, -2], [INF, 1, -INF, INF], [NAN, 0, 1, 2], [0, 0, 0, 0]], np.float32)
    expected = np.array([[-2, 3, 3, 9], [-INF, 1, INF, INF], [NAN] * 4, [0] * 4])
    np.testing.assert_array_equal(sort(x, temperature=1e-3), expected)
    falling = sort(x.T, temperature=1e-3, axis=0, descending=True)
    np.testing.assert_array_equal(falling, expected[:, ::-1].T)
    permutations = argsort(x, temperature=1e-3)
    np.testing.assert_array_equal(permutations[1, :2], [[0, 0, 1, 0], [0, 1, 0, 0]])
    np.testing.assert_array_equal(permutations[1, 2:], [[0.5, 0, 0, 0.5]] * 2)
    assert np.isnan(permutations[2]).all()
    # All tie: each is the mean, and so are the derivatives.
    np.testing.assert_allclose(quick_jit(jax.jacobian(soft_sort))(x[3]), np.full((4, 4), 0.25))
    for shape in ((0,), (2, 0), (1,)):
        assert soft_sort(jnp.zeros(shape)).shape == shape
    assert soft_argsort(jnp.zeros((2, 0))).shape == (2, 0, 0)
    half = np.array([6e4, -6e4, 5.9e4], np.float16)
    np.testing.assert_array_equal(soft_sort(half), np.sort(half))


@pytest.mark.slow
def test_masked_items_come_last_and_count_nowhere():
    x = np.array([2.0, NAN, 4.0, 5.0, INF], np.float32)
    where = np.array([True, False, True, True, False])
    short = x[where]
    for options, fill in (({}, INF), ({"descending": True}, -INF)):
        y = np.asarray(sort(x, where=where, **options))
        np.testing.assert_allclose(y[:3], sort(short, **options), rtol=1e-6)
        assert (y[3:] == fill).all()
    rows = np.asarray(argsort(x, where=where))
    np.testing.assert_allclose(rows[:3, where], argsort(short), rtol=1e-6)
    assert not rows[3:].any()
    assert not rows[:, ~where].any()
    np.testing.assert_allclose(
        sort(x, where=where, values=np.arange(5, dtype=np.float32)),
        rows @ np.arange(5),
        rtol=1e-6,
    )
    np.testing.assert_allclose(median(x, where=where), median(short), rtol=1e-6)
    value, slope = quick_jit(jax.value_and_grad(soft_median))(x, where=np.zeros(5, bool))
    assert np.isnan(value)
    assert not slope.any()


@pytest.mark.parametrize("method", ["linear", "lower", "higher", "nearest", "midpoint"])
def test_quantiles_end_at_the_exact_ones(method):
    x = np.random.default_rng(3).normal(size=(2, 8, 3)).astype(np.float32)
    q = np.array([[0.0, 0.1], [0.5, 1.0]], np.float32)
    options = {"axis": 1, "method": method}
    found = quantile(x, q, temperature=1e-4, **options)
    np.testing.assert_allclose(found, np.quantile(x, q, **options), rtol=1e-4)
    kept = quantile(x, 0.3, keepdims=True, temperature=1e-4, **options)
    assert kept.shape == (2, 1, 3)
    np.testing.assert_allclose(kept, np.quantile(x, 0.3, keepdims=True, **options), rtol=1e-4)


def test_quantiles_that_there_are_not():
    traced = quantile
    assert np.isnan(traced(np.ones(3, np.float32), np.float32([-0.1, 1.1, NAN]))).all()
    slope = quick_jit(jax.grad(soft_quantile, argnums=1))(
        jnp.array([0.0, 1.0, 10.0]), 0.75, temperature=0.1
    )
    np.testing.assert_allclose(slope, 2 * 9, rtol=1e-3)  # N - 1 places in all
    x = np.array([-INF, 0, 1, INF], np.float32)
    np.testing.assert_array_equal(traced(x, np.float32([0, 1 / 3, 1])), [-INF, *sort(x)[1:4:2]])


def test_network_sorts_as_the_library():
    keys = np.random.default_rng(4).integers(-3, 3, (37, 256)).astype(np.float32)
    keys[::7], keys[3::9] = INF, -INF
    payload = np.arange(keys.size, dtype=np.float32).reshape(keys.shape)

    @quick_jit
    def run(keys, payload):
        pull = jax.vjp(lambda p: _cpu.sort(keys, p)[1], payload)[1]
        return *_cpu.sort(keys, payload), pull(payload)[0]

    for count in (2, 37):
        found, moved, back = (np.asarray(a) for a in run(keys[:count], payload[:count]))
        np.testing.assert_array_equal(found, np.sort(keys[:count], axis=0))
        order = (moved // 256).astype(int)
        np.testing.assert_array_equal(np.take_along_axis(keys[:count], order, 0), found)
        np.testing.assert_array_equal(np.sort(order, axis=0)[:, 0], np.arange(count))
        np.testing.assert_array_equal(np.take_along_axis(back, order, 0), payload[:count])


def test_many_items_far_from_one_keep_their_digits():
    """The weight e^{-10} of 1,000 items ten units below: 1 - e^{-10} has no digits of it."""
    x = np.append(np.zeros(1000), 10.0)
    weights = np.exp(-np.abs(x - 10))
    expected = weights @ x / weights.sum()
    y = sort(x.astype(np.float32))
    np.testing.assert_allclose(y[-1], expected, rtol=1e-6)
    value, _ = jax.jvp(soft_sort, (jnp.float32(x),), (jnp.ones(1001),))
    np.testing.assert_allclose(value, y, rtol=1e-6)


def test_floats_are_sorted_by_their_bits():
    x = np.array(
        [3.0, -0.0, np.inf, -1e-40, 0.0, -np.inf, 1e-40, -2.5, np.nan, -np.nan], np.float32
    )
    np.testing.assert_array_equal(jax.jit(_cpu.sort)(x)[0], np.sort(x))
    narrow, expected = _cpu.sort(x.astype(jnp.bfloat16))[0], np.sort(x).astype(jnp.bfloat16)
    np.testing.assert_array_equal(*(a.astype(np.float32) for a in (narrow, expected)))
