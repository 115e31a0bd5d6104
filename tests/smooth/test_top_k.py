"""All soft top-k: numbers of the article, subsets by brute force, defects, limits, derivatives."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np
from jax import lax

from tests.battery import quick_jit
from zoo.smooth import soft_top_k

X = np.array([2.0, 1.0, 4.0, 5.0, 3.0])
SHIFT_INVARIANT = ("gradient", "threshold", "sigmoid", "clipped")
METHODS = (*SHIFT_INVARIANT, "recursive")
GOLDEN = {
    ("recursive", 2, 1.0): [0.141023698, 0.053174603, 0.647255272, 0.814180579, 0.344365848],
    ("recursive", 2, 0.1): [0, 0, 0.999999936, 0.9999546, 0.0000455],
    ("recursive", 3, 1.0): [0.336843084, 0.136122813, 0.886252180, 0.988605451, 0.652176472],
    ("gradient", 1, 1.0): [0.031684921, 0.011656231, 0.234121657, 0.636408647, 0.086128544],
    ("gradient", 2, 1.0): [0.115425987, 0.043341152, 0.674583406, 0.870530304, 0.296119151],
    ("gradient", 3, 1.0): [0.325416594, 0.129469696, 0.884574013, 0.956658848, 0.703880849],
    ("clipped", 1, 1.0): [0.031684921, 0.011656231, 0.234121657, 0.636408647, 0.086128544],
    ("clipped", 2, 1.0): [0.087144319, 0.032058603, 0.643914260, 1, 0.236882818],
    ("clipped", 3, 1.0): [0.244728471, 0.090030573, 1, 1, 0.665240956],
    ("sigmoid", 2, 1.0): [0.169272837, 0.069733544, 0.600898536, 0.803641375, 0.356453707],
    ("threshold", 2, 1.0): [0.106424516, 0.039151391, 0.682086213, 0.883046054, 0.289291827],
}
jitted = quick_jit(soft_top_k, static_argnames=("k", "method", "axis"))


@pytest.mark.parametrize("method", METHODS)
def test_golden(method, double_precision):
    for (own, k, temperature), expected in GOLDEN.items():
        if own == method:
            found = jitted(X, k=k, temperature=temperature, method=method)
            digits = 1e-8 if temperature == 1 else 1e-7  # as many as the source gives
            np.testing.assert_allclose(found, expected, atol=digits)


def test_golden_thresholds(double_precision):
    def laplace(u):
        return np.where(u < 0, np.exp(u) / 2, 1 - np.exp(-u) / 2)

    found = jitted(X, k=2, method="threshold")
    np.testing.assert_allclose(found, laplace(X - 3.547172138), atol=1e-9)
    found = jitted(X, k=2, method="sigmoid")
    np.testing.assert_allclose(found, 1 / (1 + np.exp(3.590789585 - X)), atol=1e-9)
    for k, threshold in ((2, 4.440189699), (3, 3.407605964)):
        found = jitted(X, k=k, method="clipped")
        np.testing.assert_allclose(found, np.minimum(1, np.exp(X - threshold)), atol=1e-9)


def brute_force(x, k):
    """Inclusion probabilities by going through all subsets."""
    subsets = list(itertools.combinations(range(len(x)), k))
    logits = np.array([x[list(subset)].sum() for subset in subsets])
    weights = np.exp(logits - logits.max())
    member = np.array([[i in subset for i in range(len(x))] for subset in subsets])
    return weights @ member / weights.sum()


@pytest.mark.parametrize("k", [4, 7])
def test_gradient_form_is_exact(k, double_precision):
    for scale in (0.3, 3.0, 30.0):
        x = scale * np.random.default_rng(0).normal(size=9)
        np.testing.assert_allclose(jitted(x, k=k), brute_force(x, k), rtol=1e-12, atol=1e-300)


@functools.partial(quick_jit, static_argnames="k")
@jax.grad
def log_space_recursion(x, k):
    """The gradient of log e_k by L_j ← logaddexp(L_j, L_{j-1} + x_i), without subtraction."""

    def step(sums, value):
        shifted = jnp.concatenate([jnp.full(1, -1e30, x.dtype), sums[:-1]])
        return jnp.logaddexp(sums, shifted + value), None

    start = jnp.full(k + 1, -1e30, x.dtype).at[0].set(0)
    return lax.scan(step, start, x)[0][-1]


@pytest.mark.slow
def test_gradient_form_agrees_with_the_recursion_in_logarithms(double_precision):
    for scale in (1.0, 1000.0):
        x = scale * np.random.default_rng(1).normal(size=200)
        expected = log_space_recursion(x, k=10)
        np.testing.assert_allclose(jitted(x, k=10), expected, atol=1e-12)
        single = x.astype(np.float32)
        tolerance = 1e-3 if scale > 1 else 1e-5
        np.testing.assert_allclose(jitted(single, k=10), expected, atol=tolerance)
        # Most of them: the same distribution seen from those left out.
        np.testing.assert_allclose(1 - jitted(-single, k=190), expected, atol=tolerance)


@pytest.mark.parametrize("method", SHIFT_INVARIANT)
@given(
    x=st_np.arrays(np.float32, (3, 8), elements=st.floats(-50, 50, width=32)),
    shift=st.sampled_from([0.0, 1000.0]),
)
def test_properties(method, x, shift):
    found = np.asarray(jitted(x + np.float32(shift), k=3, method=method))
    assert (found >= 0).all()
    assert (found <= 1 + 1e-6).all()
    np.testing.assert_allclose(found.sum(-1), 3, rtol=2e-6)
    order = np.argsort(x + np.float32(shift), axis=-1, kind="stable")
    assert (np.diff(np.take_along_axis(found, order, -1)) >= -1e-6).all()
    permuted = np.asarray(jitted(x[:, ::-1] + np.float32(shift), k=3, method=method))
    np.testing.assert_allclose(permuted[:, ::-1], found, atol=2e-6)


@pytest.mark.parametrize("method", METHODS)
def test_approaches_the_exact_one(method, double_precision):
    hard = (X >= 4).astype(float)
    found = [jitted(X, k=2, temperature=t, method=method) for t in (1.0, 0.1, 0.01)]
    errors = [np.abs(f - hard).max() for f in found]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-15


@pytest.mark.parametrize("method", SHIFT_INVARIANT)
def test_ties_share_and_all_are_all(method):
    x = [[0, 0, 0, 0, 0], [1e4, 0, 0, 0, -1e4], [-np.inf, 1, 2, -np.inf, -np.inf]]
    expected = [[0.4] * 5, [1, *[1 / 3] * 3, 0], [0, 1, 1, 0, 0]]
    found = np.asarray(jitted(np.array(x, np.float32), k=2, method=method))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert not found[2, ::3].any()
    np.testing.assert_array_equal(soft_top_k(found, 5, method=method), np.ones((3, 5)))
    half = jitted(np.array([1e4, -1e4, 9.9e3, 0, 1e4, -9e3], np.float16), k=2, method=method)
    np.testing.assert_allclose(half, [1, 0, 0, 0, 1, 0], atol=1e-6)


def test_threshold_above_all_entries(double_precision):
    # Where the article's program finds no threshold: every entry lies above it.
    x = np.array([0, 0.1, 0.2, 0.3, 0.4])
    threshold = -0.726269151
    np.testing.assert_allclose(threshold, math.log(2) - np.log(np.exp(-x).sum()))
    expected = 1 - np.exp(-(x - threshold)) / 2
    np.testing.assert_allclose(jitted(x, k=4, method="threshold"), expected, atol=1e-9)
    many = np.random.default_rng(2).normal(size=(20, 100))
    found = np.asarray(jitted(many, k=99, method="threshold"))
    np.testing.assert_allclose(found.sum(-1), 99, rtol=1e-12)


def test_threshold_form_of_one_is_the_softmax_only_below_a_half(double_precision):
    flat = np.array([0.1, 0.5, 0.3, -0.2, 0.0])
    found = jitted(flat, k=1, method="threshold")
    np.testing.assert_allclose(found, jax.nn.softmax(flat), rtol=1e-12)
    steep = jitted(X, k=1, method="threshold")
    np.testing.assert_allclose(np.asarray(steep)[3], 0.622072285, atol=1e-9)


def test_documented_defects_of_the_recursive_form(double_precision):
    x = 30 * np.random.default_rng(3).normal(size=(20, 100))
    found = np.asarray(jitted(x, k=10, method="recursive"))
    assert (found.max(-1) > 1 + 1e-6).any()
    ordered = np.take_along_axis(found, np.argsort(x, -1), -1)
    assert (np.diff(ordered) < -1e-6).any()
    np.testing.assert_allclose(found.sum(-1), 10, rtol=1e-12)


@pytest.mark.parametrize("method", ["gradient", "threshold", "clipped"])
def test_two_derivatives(method, double_precision):
    # In a direction of x and the temperature at once: one program of one number.
    x, direction = jnp.asarray(X), jnp.array([0.3, -0.8, 0.5, 0.1, -0.4])
    weights = jnp.array([1.0, -2.0, 0.5, 3.0, -1.0])

    def along(s):
        return weights @ soft_top_k(x + s * direction, 2, temperature=0.8 + s / 3, method=method)

    both = quick_jit(lambda s: (jax.grad(along)(s), jax.grad(jax.grad(along))(s), along(s)))
    step = 1e-4
    ahead, here, behind = both(step), both(0.0), both(-step)
    first, second = (ahead[2] - behind[2]) / (2 * step), (ahead[0] - behind[0]) / (2 * step)
    np.testing.assert_allclose(here[:2], (first, second), rtol=1e-6)


def test_gradient_form_is_the_covariance_of_the_subset(double_precision):
    x = np.random.default_rng(5).normal(size=6)
    jacobian = quick_jit(jax.jacobian(lambda x: soft_top_k(x, 3)))(x)
    subsets = np.array(list(itertools.combinations(range(6), 3)))
    member = np.zeros((len(subsets), 6))
    np.put_along_axis(member, subsets, 1, axis=1)
    weights = np.exp(member @ x)
    weights /= weights.sum()
    mean = weights @ member
    expected = (member * weights[:, None]).T @ member - np.outer(mean, mean)
    np.testing.assert_allclose(jacobian, expected, atol=1e-13)


def test_axis_and_temperature_scale():
    x = np.random.default_rng(7).normal(size=(4, 6, 3)).astype(np.float32)
    found = jitted(x, k=2, axis=1, temperature=0.5, method="clipped")
    last = jitted(2 * np.moveaxis(x, 1, -1), k=2, method="clipped")
    np.testing.assert_allclose(found, np.moveaxis(last, -1, 1), atol=1e-6)


@pytest.mark.parametrize(
    ("method", "items", "k"),
    [pytest.param("gradient", 13, 3, marks=pytest.mark.slow), ("sigmoid", 8, 5)],
)
def test_many_columns_are_as_few(method, items, k):
    # 256 of them have a network for the largest, and the products term by term.
    x = np.random.default_rng(8).normal(size=(256, items)).astype(np.float32)
    x[0], x[1, 3], x[2, : items - k] = 0.0, np.nan, -np.inf
    x[3] *= 1e3

    @quick_jit
    def value_and_gradient(x):
        def loss(x):
            chosen = soft_top_k(x, k, temperature=0.7, method=method)
            return jnp.sum(jnp.cos(jnp.arange(items))[None] * chosen), chosen

        return jax.value_and_grad(loss, has_aux=True)(x)

    (_, chosen), gradient = value_and_gradient(x)
    (_, chosen_alone), gradient_alone = value_and_gradient(x[:20])
    np.testing.assert_allclose(chosen[:20], chosen_alone, atol=5e-7)
    np.testing.assert_allclose(gradient[:20], gradient_alone, atol=1e-6)
    assert np.isnan(chosen).sum() == items
