"""Smooth max, argmax, absolute value, sign, step, ReLU, floor, round: values and derivatives."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np
from scipy import integrate, special

from tests.battery import quick_jit
from zoo import smooth

X = np.array([2.0, 1.0, 4.0, 5.0, 3.0])
KERNELS = ("logistic", "gaussian", "square")
DENSITIES = {
    "logistic": lambda t: special.expit(t) * special.expit(-t),
    "gaussian": lambda t: np.exp(-t * t / 2) / math.sqrt(2 * math.pi),
    "square": lambda t: SQUARE / (2 * (t * t + SQUARE) ** 1.5),
}
SQUARE = 4 * math.log(2) ** 2
maximum = quick_jit(smooth.smooth_max, static_argnames=("axis", "keepdims"))
relu = quick_jit(smooth.smooth_relu, static_argnames="kernel")
floor, rounded = quick_jit(smooth.smooth_floor), quick_jit(smooth.smooth_round)


def test_golden_maximum(double_precision):
    x = jnp.asarray(X)
    golden = {1.0: 5.451914396, 0.5: 5.072684028, 0.2: 5.001352150, 0.1: 5.000004540}
    for temperature, expected in golden.items():
        np.testing.assert_allclose(maximum(x, temperature=temperature), expected, rtol=1e-9)
    np.testing.assert_allclose(smooth.smooth_min(-x), -5.451914396, rtol=1e-9)


@given(
    st.sampled_from([1, 2, 9]).flatmap(
        lambda n: st_np.arrays(np.float32, n, elements=st.floats(-1e4, 1e4, width=32))
    ),
    st.sampled_from([1e-2, 1.0, 1e3]),
)
def test_maximum_is_within_its_bound(x, temperature):
    above = float(maximum(x, temperature=temperature)) - float(x.max())
    rounding = 1e-6 * (1 + abs(float(x.max())) + temperature)
    assert -rounding <= above <= temperature * math.log(len(x)) + rounding


def test_maximum_lower_bounds(double_precision):
    x, p = jnp.asarray(X), np.full(5, 0.2)
    value, gradient = quick_jit(jax.value_and_grad(smooth.smooth_max))(x)
    assert value >= X.mean() + math.log(5)
    assert value >= p @ X - p @ np.log(p)
    own = np.asarray(smooth.soft_one_hot(x))  # equality at the softmax
    np.testing.assert_allclose(value, own @ X - own @ np.log(own), rtol=1e-12)
    np.testing.assert_allclose(gradient, own, rtol=1e-12)


def test_masks_and_axes():
    x = np.array([[1, 5, 2], [3, 0, 9]], np.float32)
    where = np.array([[True, False, True], [False, False, False]])
    found = np.asarray(maximum(x, where=where))
    np.testing.assert_allclose(found, [math.log(math.e + math.e**2), -np.inf], rtol=1e-6)
    assert np.asarray(quick_jit(smooth.smooth_min)(x, where=where))[1] == np.inf

    @quick_jit
    @jax.grad
    def slope(x):
        return jnp.where(where.any(-1), smooth.smooth_max(x, where=where), 0).sum()

    gradient = np.asarray(slope(x))
    assert np.isfinite(gradient).all()
    assert not gradient[~where].any()
    assert maximum(x, axis=None).shape == ()
    assert maximum(x, axis=(0, 1), keepdims=True).shape == (1, 1)
    np.testing.assert_allclose(maximum(x, axis=0), maximum(x.T), rtol=1e-6)
    # -inf takes no part, NaN is not lost.
    odd = np.array([[-np.inf, 2, 2], [-np.inf] * 3, [np.nan, 2, 2]], np.float32)
    np.testing.assert_allclose(maximum(odd), [2 + math.log(2), -np.inf, np.nan], rtol=1e-6)


def test_golden_absolute_value(double_precision):
    absolute = quick_jit(smooth.smooth_abs)
    x = jnp.array([0.0, 0.5])
    np.testing.assert_allclose(absolute(x, temperature=0.2), [0.138629436, 0.501343070], atol=1e-9)
    # The form before simplification has twice the temperature.
    np.testing.assert_allclose(absolute(x, temperature=0.4), [0.277258872, 0.531555894], atol=1e-9)
    x = jnp.linspace(-2, 2, 9)
    gradient = quick_jit(jax.grad(lambda x: smooth.smooth_abs(x, temperature=0.2).sum()))(x)
    np.testing.assert_allclose(gradient, np.tanh(np.asarray(x) / 0.2), atol=1e-14)
    np.testing.assert_allclose(smooth.smooth_sign(x, temperature=0.2), gradient, atol=1e-14)


def test_golden_relu(double_precision):
    x = np.array([-1.0, 0.0, 1.0])
    expected = [0.083315471, 0.398942280, 1.083315471]
    np.testing.assert_allclose(relu(x, kernel="gaussian"), expected, atol=1e-9)
    np.testing.assert_allclose(relu(x), np.log1p(np.exp(x)), rtol=1e-14)
    assert pytest.approx(1.921812, abs=1e-6) == SQUARE
    expected = (x + np.sqrt(x**2 + SQUARE)) / 2
    np.testing.assert_allclose(relu(x, kernel="square"), expected, rtol=1e-14)


def test_squareplus_against_softplus(double_precision):
    x = jnp.linspace(-30, 30, 6001)
    softplus = relu(x)
    assert (relu(x, kernel="square") - softplus).min() >= -1e-15
    lower = relu(x, kernel="square", temperature=0.999) - softplus
    assert lower.min() < 0  # the constant is the smallest
    best = math.sqrt(1.52382) / (2 * math.log(2))
    error = jnp.abs(relu(x, kernel="square", temperature=best) - softplus)
    assert float(error.max()) == pytest.approx(0.0759, abs=1e-4)


@pytest.mark.parametrize("kernel", KERNELS)
def test_relu_is_the_convolution_with_its_kernel(kernel, double_precision):
    for x in (-1.3, 0.0, 0.7):
        integrand = lambda t, x=x: max(x - 0.5 * t, 0) * DENSITIES[kernel](t)  # noqa: E731
        parts = [(-np.inf, 2 * x), (2 * x, np.inf)]
        expected = sum(integrate.quad(integrand, *part)[0] for part in parts)
        np.testing.assert_allclose(relu(x, temperature=0.5, kernel=kernel), expected, rtol=1e-7)


@pytest.mark.parametrize("kernel", KERNELS)
def test_relu_keeps_its_digits_far_below_zero(kernel, double_precision):
    x = np.array([-5.0, -3.0, -2.0], np.float32)
    exact = relu(x.astype(np.float64), kernel=kernel)
    np.testing.assert_allclose(relu(x, kernel=kernel), exact, rtol=1e-4)
    # (x + √(x² + b))/2 itself is 0 here in float32.
    if kernel == "square":
        far = relu(np.float32(-1e4), kernel=kernel)
        np.testing.assert_allclose(far, math.log(2) ** 2 / 1e4, rtol=1e-6)


@pytest.mark.parametrize(
    "function",
    [
        smooth.smooth_abs,
        smooth.smooth_sign,
        smooth.smooth_step,
        smooth.smooth_floor,
        *(lambda x, k=k, **o: smooth.smooth_relu(x, kernel=k, **o) for k in KERNELS),
        lambda x, **o: smooth.smooth_max(x, **o)[None],
        lambda x, **o: smooth.smooth_argmax(x, **o)[None],
    ],
)
def test_two_derivatives_in_x_and_temperature(function, double_precision):
    # Along a line in both; 0 is one of the points.
    x, direction = jnp.array([-1.2, 0.0, 0.4, 3.1]), jnp.array([1.0, 0.7, -0.5, 0.3])

    def along(s, start):
        y = function(x + s * direction, temperature=start + s / 3)
        return jnp.sum(y * jnp.arange(1.0, 1 + y.size))

    slope = jax.grad(along)
    both = quick_jit(lambda *a: (slope(*a), jax.grad(slope)(*a), along(*a)))
    step = 1e-5
    for start in (0.2, 0.3, 1.1):
        ahead, here, behind = both(step, start), both(0.0, start), both(-step, start)
        first, second = (ahead[2] - behind[2]) / (2 * step), (ahead[0] - behind[0]) / (2 * step)
        np.testing.assert_allclose(here[:2], (first, second), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("function", "hard"),
    [
        (smooth.smooth_abs, np.abs),
        (smooth.smooth_relu, lambda x: np.maximum(x, 0)),
        (smooth.smooth_sign, np.sign),
    ],
)
def test_gradients_are_finite_and_right_far_out(function, hard):
    slope = jax.grad(function)
    values = quick_jit(jax.vmap(lambda x: (function(x), slope(x), jax.grad(slope)(x))))
    for dtype in (jnp.float32, jnp.float16):
        value, first, second = values(jnp.array([-1e4, 0, 1e4], dtype))
        np.testing.assert_array_equal(value[::2], hard(np.array([-1e4, 1e4], dtype)))
        assert np.isfinite(np.asarray((first, second), np.float32)).all()


def test_slope_of_saturated_steps_keeps_its_digits(double_precision):
    # 1 - tanh² is 0 here in float32.
    for function in (smooth.smooth_sign, smooth.smooth_step):
        slope = quick_jit(jax.grad(function))
        np.testing.assert_allclose(slope(np.float32(12)), slope(np.float64(12)), rtol=1e-5)


def test_golden_floor(double_precision):
    expected = [0, 0.5, 0.475012, 7.046517, -4]
    np.testing.assert_allclose(floor(np.array([0.5, 1, 0.99, 7.7, -3.5])), expected, atol=1e-6)


def test_floor_by_its_sum_and_where_the_series_meet(double_precision):
    x, n = np.linspace(-2, 2, 41), np.arange(-60, 61)
    for temperature in (0.05, 0.2499, 0.25, 0.6):
        expected = special.expit((x[:, None] - n) / temperature).sum(axis=1) - 61
        found = floor(x, temperature=temperature)
        np.testing.assert_allclose(found, expected, atol=1e-12)
        shifted = floor(x + 0.5, temperature=temperature)
        np.testing.assert_allclose(rounded(x, temperature=temperature), shifted, atol=1e-13)


def test_stairs_approach_the_exact_ones_and_hold_everywhere():
    x = np.array([-3.3, 0.2, 1.9, 123456.4, -9e5, 2**23 + 1], np.float32)
    np.testing.assert_allclose(floor(x[:4], temperature=1e-3), np.floor(x[:4]))
    np.testing.assert_allclose(rounded(x, temperature=1e-3), np.round(x), rtol=0, atol=0)


def test_a_traced_temperature_that_is_not_positive_gives_nan():
    @quick_jit
    def every(x, temperature):
        functions = (
            smooth.smooth_max,
            smooth.smooth_abs,
            smooth.smooth_relu,
            smooth.smooth_floor,
            smooth.soft_one_hot,
            smooth.soft_rank,
            lambda x, **o: smooth.soft_top_k(x, 2, **o),
        )
        return [function(x, temperature=temperature) for function in functions]

    for temperature in (0.0, -1.0):
        for found in every(np.arange(3, dtype=np.float32), temperature):
            assert np.isnan(found).all()


def test_golden_one_hot_and_argmax(double_precision):
    x = jnp.asarray(X)
    expected = [0.031684921, 0.011656231, 0.234121657, 0.636408647, 0.086128544]
    np.testing.assert_allclose(smooth.soft_one_hot(x), expected, atol=1e-9)
    # The article counts from 1.
    np.testing.assert_allclose(smooth.smooth_argmax(x) + 1, 3.733639663, atol=1e-9)
    np.testing.assert_allclose(smooth.smooth_argmax(x, temperature=0.1) + 1, 3.999954604, atol=1e-9)
    two_peaks = jnp.array([10.0, 0, 0, 0, 10])
    np.testing.assert_allclose(smooth.smooth_argmax(two_peaks), 2, atol=1e-12)
    assert smooth.soft_one_hot(two_peaks)[2] < 1e-4  # an index without any mass


def test_axes_of_argmax():
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    argmax = quick_jit(smooth.smooth_argmax, static_argnames="axis")
    np.testing.assert_allclose(argmax(x, axis=1), argmax(x.swapaxes(1, 2)), rtol=1e-6)
    one_hot = np.asarray(quick_jit(lambda x: smooth.soft_one_hot(x, axis=0))(x))
    np.testing.assert_allclose(one_hot.sum(0), np.ones((3, 4)), rtol=1e-6)
    assert smooth.soft_one_hot(jnp.zeros((2, 0))).shape == (2, 0)
    with pytest.raises(ValueError, match="at least one item"):
        smooth.smooth_argmax(jnp.zeros((2, 0)))


@pytest.mark.parametrize("kernel", ["logistic", "gaussian", "square"])
def test_relu_is_exact_at_infinity_whatever_the_temperature(kernel):
    x = jnp.array([-jnp.inf, jnp.inf], jnp.float16)
    for temperature in (1.0, 1e30):
        found = smooth.smooth_relu(x, temperature=temperature, kernel=kernel)
        assert found.tolist() == [0, np.inf]
