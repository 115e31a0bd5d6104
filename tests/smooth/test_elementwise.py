"""Smooth maximum, absolute value, sign, step, ReLU, floor, round: values, limits, derivatives."""

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
    "square": lambda t: smooth_square(t),
}
maximum = jax.jit(smooth.smooth_max)


def smooth_square(t):
    b = 4 * math.log(2) ** 2
    return b / (2 * (t * t + b) ** 1.5)


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [(1.0, 5.451914396), (0.5, 5.072684028), (0.2, 5.001352150), (0.1, 5.000004540)],
)
def test_golden_maximum(temperature, expected, double_precision):
    x = jnp.asarray(X)
    found = smooth.smooth_max(x, temperature=temperature)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    found = smooth.smooth_min(-x, temperature=temperature)
    np.testing.assert_allclose(found, -expected, rtol=1e-9)


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


def test_maximum_approaches_the_exact_one(double_precision):
    errors = [smooth.smooth_max(jnp.asarray(X), temperature=t) - 5 for t in (1.0, 0.1, 0.01)]
    assert errors[0] > errors[1] > errors[2] >= 0
    bounds = np.array([1.0, 0.1, 0.01]) * math.log(5)
    assert (np.array(errors) <= bounds).all()


def test_maximum_lower_bounds(double_precision):
    x, p = jnp.asarray(X), np.full(5, 0.2)
    assert smooth.smooth_max(x) >= X.mean() + math.log(5)
    assert smooth.smooth_max(x) >= p @ X - p @ np.log(p)
    own = np.asarray(smooth.soft_one_hot(x))  # equality at the softmax
    np.testing.assert_allclose(smooth.smooth_max(x), own @ X - own @ np.log(own), rtol=1e-12)
    np.testing.assert_allclose(jax.grad(smooth.smooth_max)(x), own, rtol=1e-12)


def test_masks_and_axes():
    x = jnp.array([[1.0, 5.0, 2.0], [3.0, 0.0, 9.0]])
    where = jnp.array([[True, False, True], [False, False, False]])
    found = smooth.smooth_max(x, where=where)
    np.testing.assert_allclose(found[0], math.log(math.e + math.e**2), rtol=1e-6)
    assert found[1] == -jnp.inf
    assert smooth.smooth_min(x, where=where)[1] == jnp.inf
    gradient = jax.grad(lambda x: smooth.smooth_max(x, where=where)[0])(x)
    assert np.isfinite(gradient).all()
    assert gradient[0, 1] == 0
    nothing = jax.grad(
        lambda x: jnp.where(where.any(-1), smooth.smooth_max(x, where=where), 0).sum()
    )
    assert np.isfinite(nothing(x)).all()
    assert smooth.smooth_max(x, axis=None).shape == ()
    assert smooth.smooth_max(x, axis=(0, 1), keepdims=True).shape == (1, 1)
    np.testing.assert_allclose(smooth.smooth_max(x, axis=0), smooth.smooth_max(x.T))
    # -inf takes no part, NaN is not lost.
    assert smooth.smooth_max(jnp.array([-jnp.inf, 2.0])) == 2
    assert smooth.smooth_max(jnp.array([-jnp.inf, -jnp.inf])) == -jnp.inf
    assert jnp.isnan(smooth.smooth_max(jnp.array([jnp.nan, 2.0])))


def test_golden_absolute_value(double_precision):
    found = smooth.smooth_abs(jnp.array([0.0, 0.5]), temperature=0.2)
    np.testing.assert_allclose(found, [0.138629436, 0.501343070], atol=1e-9)
    # The form before simplification is the one of half the temperature's double.
    other = smooth.smooth_abs(jnp.array([0.0, 0.5]), temperature=0.4)
    np.testing.assert_allclose(other, [0.277258872, 0.531555894], atol=1e-9)
    gradient = jax.vmap(jax.grad(lambda x: smooth.smooth_abs(x, temperature=0.2)))
    x = jnp.linspace(-2, 2, 9)
    np.testing.assert_allclose(gradient(x), np.tanh(np.asarray(x) / 0.2), atol=1e-14)
    np.testing.assert_allclose(smooth.smooth_sign(x, temperature=0.2), gradient(x), atol=1e-14)


def test_golden_relu(double_precision):
    x = jnp.array([-1.0, 0.0, 1.0])
    found = smooth.smooth_relu(x, kernel="gaussian")
    np.testing.assert_allclose(found, [0.083315471, 0.398942280, 1.083315471], atol=1e-9)
    np.testing.assert_allclose(smooth.smooth_relu(x), np.log1p(np.exp(np.asarray(x))), rtol=1e-14)
    b = 4 * math.log(2) ** 2
    assert b == pytest.approx(1.921812, abs=1e-6)
    found = smooth.smooth_relu(x, kernel="square")
    np.testing.assert_allclose(found, (np.asarray(x) + np.sqrt(x**2 + b)) / 2, rtol=1e-14)


def test_squareplus_against_softplus(double_precision):
    x = jnp.linspace(-30, 30, 6001)
    softplus = smooth.smooth_relu(x)
    above = smooth.smooth_relu(x, kernel="square") - softplus
    assert above.min() >= -1e-15
    lower = smooth.smooth_relu(x, kernel="square", temperature=0.999) - softplus
    assert lower.min() < 0  # the constant is the smallest
    best = math.sqrt(1.52382) / (2 * math.log(2))
    error = jnp.abs(smooth.smooth_relu(x, kernel="square", temperature=best) - softplus)
    assert float(error.max()) == pytest.approx(0.0759, abs=1e-4)


@pytest.mark.parametrize("kernel", KERNELS)
def test_relu_is_the_convolution_with_its_kernel(kernel, double_precision):
    for x in (-1.3, 0.0, 0.7):
        integrand = lambda t, x=x: max(x - 0.5 * t, 0) * DENSITIES[kernel](t)  # noqa: E731
        parts = [(-np.inf, 2 * x), (2 * x, np.inf)]
        expected = sum(integrate.quad(integrand, *part)[0] for part in parts)
        found = smooth.smooth_relu(jnp.array(x), temperature=0.5, kernel=kernel)
        np.testing.assert_allclose(found, expected, rtol=1e-7)


@pytest.mark.parametrize("kernel", KERNELS)
def test_relu_keeps_its_digits_far_below_zero(kernel, double_precision):
    x = jnp.array([-5.0, -3.0, -2.0], jnp.float32)
    exact = smooth.smooth_relu(x.astype(jnp.float64), kernel=kernel)
    np.testing.assert_allclose(smooth.smooth_relu(x, kernel=kernel), exact, rtol=1e-4)
    # (x + √(x² + b))/2 itself is 0 here in float32.
    if kernel == "square":
        far = smooth.smooth_relu(jnp.array(-1e4, jnp.float32), kernel=kernel)
        np.testing.assert_allclose(far, math.log(2) ** 2 / 1e4, rtol=1e-6)


@pytest.mark.parametrize(
    "function",
    [
        smooth.smooth_abs,
        smooth.smooth_sign,
        smooth.smooth_step,
        smooth.smooth_floor,
        smooth.smooth_round,
        *(lambda x, k=k, **o: smooth.smooth_relu(x, kernel=k, **o) for k in KERNELS),
        lambda x, **o: smooth.smooth_max(x, **o)[None],
        lambda x, **o: smooth.smooth_argmax(x, **o)[None],
        smooth.soft_one_hot,
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


@pytest.mark.parametrize("function", [smooth.smooth_abs, smooth.smooth_relu, smooth.smooth_sign])
def test_gradients_are_finite_and_right_far_out(function):
    for dtype in (jnp.float32, jnp.float16, jnp.bfloat16):
        x = jnp.array([-1e4, 0, 1e4], dtype)
        values, gradients = jax.vmap(jax.value_and_grad(function))(x)
        hard = {"smooth_abs": jnp.abs, "smooth_relu": jax.nn.relu, "smooth_sign": jnp.sign}
        expected = hard[function.__name__](x)
        np.testing.assert_array_equal(values[::2], expected[::2])
        assert np.isfinite(np.asarray(gradients, np.float32)).all()
        second = jax.vmap(jax.grad(jax.grad(function)))(x)
        assert np.isfinite(np.asarray(second, np.float32)).all()


def test_slope_of_saturated_steps_keeps_its_digits(double_precision):
    # 1 - tanh² is 0 here in float32.
    x = jnp.array(12.0, jnp.float32)
    for function in (smooth.smooth_sign, smooth.smooth_step):
        exact = jax.grad(function)(x.astype(jnp.float64))
        np.testing.assert_allclose(jax.grad(function)(x), exact, rtol=1e-5)


def test_golden_floor(double_precision):
    x = jnp.array([0.5, 1.0, 0.99, 7.7, -3.5])
    expected = [0, 0.5, 0.475012, 7.046517, -4]
    np.testing.assert_allclose(smooth.smooth_floor(x), expected, atol=1e-6)


def test_floor_by_its_sum_and_where_the_series_meet(double_precision):
    x = jnp.linspace(-2, 2, 41)
    n = np.arange(-60, 61)
    for temperature in (0.05, 0.2499, 0.25, 0.6):
        steps = special.expit((np.asarray(x)[:, None] - n) / temperature)
        expected = steps.sum(axis=1) - 61
        found = smooth.smooth_floor(x, temperature=temperature)
        np.testing.assert_allclose(found, expected, atol=1e-12)
        found = smooth.smooth_round(x, temperature=temperature)
        np.testing.assert_allclose(
            found, smooth.smooth_floor(x + 0.5, temperature=temperature), atol=1e-13
        )


def test_stairs_approach_the_exact_ones_and_hold_everywhere():
    x = jnp.array([-3.3, 0.2, 1.9, 123456.4, -9e5])
    np.testing.assert_allclose(smooth.smooth_floor(x[:4], temperature=1e-3), jnp.floor(x[:4]))
    np.testing.assert_allclose(smooth.smooth_round(x, temperature=1e-3), jnp.round(x))
    assert smooth.smooth_round(jnp.float32(2**23 + 1)) == 2**23 + 1


def test_a_traced_temperature_that_is_not_positive_gives_nan():
    for temperature in (0.0, -1.0):
        for function in (
            smooth.smooth_max,
            smooth.smooth_abs,
            smooth.smooth_relu,
            smooth.smooth_floor,
            smooth.soft_one_hot,
            smooth.soft_rank,
            lambda x, **o: smooth.soft_top_k(x, 2, **o),
        ):
            found = jax.jit(lambda x, t, f=function: f(x, temperature=t))(
                jnp.arange(3.0), temperature
            )
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
    x = jax.random.normal(jax.random.key(0), (2, 3, 4))
    np.testing.assert_allclose(
        smooth.smooth_argmax(x, axis=1), smooth.smooth_argmax(x.swapaxes(1, 2))
    )
    np.testing.assert_allclose(smooth.soft_one_hot(x, axis=0).sum(0), np.ones((3, 4)), rtol=1e-6)
    assert smooth.soft_one_hot(jnp.zeros((2, 0))).shape == (2, 0)
    with pytest.raises(ValueError, match="at least one item"):
        smooth.smooth_argmax(jnp.zeros((2, 0)))
