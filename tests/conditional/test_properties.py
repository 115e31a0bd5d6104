"""Conditional norms against float64, over dtypes, magnitudes, ties, masks, NaN and infinities."""

import functools

import hypothesis.extra.numpy as arrays
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.battery import quick_jit
from zoo.conditional import conditional_layer_norm
from zoo.conditional.layer_norm import conditional_rms_norm, drop_condition

pytestmark = pytest.mark.slow  # many examples each

ROWS, FEATURES, EPSILON = 3, 2, 1e-6
# Few of each, as every one is compiled.
CASES = [(1, "float32"), (5, "float32"), (5, "float16")]
ROUNDING = {"float32": 1e-5, "float16": 2e-3}
numbers = st.integers(-2, 2).map(float) | st.floats(-2, 2, width=16)


def draws(*shape):
    return arrays.arrays(np.float64, shape, elements=numbers)


@st.composite
def arguments(draw):
    """Rows with ties, each with a magnitude and a mean of its own, and small other arguments."""
    units, dtype = draw(st.sampled_from(CASES))
    powers = st.integers(-30, 50) if dtype != "float16" else st.integers(-10, 8)
    scale = 2.0 ** draw(arrays.arrays(np.int64, (ROWS, 1), elements=powers))
    mean = draw(arrays.arrays(np.float64, (ROWS, 1), elements=st.sampled_from([0, 1, 100])))
    x = jnp.asarray(scale * (draw(draws(ROWS, units)) + mean), dtype)
    small = [draw(draws(ROWS, FEATURES)), *(draw(draws(units)) for _ in range(2))]
    kernels = [draw(draws(FEATURES, units)) for _ in range(2)]
    mask = draw(arrays.arrays(np.bool_, (ROWS, units)))
    return x, [jnp.asarray(a, jnp.float32) for a in (*small, *kernels)], jnp.asarray(mask)


def by_definition(x, condition, scale, bias, scale_kernel, bias_kernel, mask, centred):
    """Float64; with what the roundings of n can be."""
    mask = mask | ~mask.any(axis=-1, keepdims=True)
    count = mask.sum(axis=-1, keepdims=True)

    def mean(a):
        return np.where(mask, a, 0).sum(axis=-1, keepdims=True) / count

    centre = x - mean(x) if centred else x
    n = centre / np.sqrt(mean(centre**2) + EPSILON)
    gain, shift = scale + condition @ scale_kernel, bias + condition @ bias_kernel
    return gain * n + shift, np.abs(gain * n) + np.abs(shift) + np.abs(gain) + 1


@functools.cache
def compiled(centred):
    def norm(x, small, mask):
        condition, scale, bias, scale_kernel, bias_kernel = small
        options = {"epsilon": EPSILON, "mask": mask}
        if not centred:
            return conditional_rms_norm(x, condition, scale, scale_kernel, **options)
        return conditional_layer_norm(
            x, condition, scale, bias, scale_kernel, bias_kernel, **options
        )

    def run(x, small, mask, weights):
        y, pull_back = jax.vjp(lambda x, small: norm(x, small, mask), x, small)
        return y, *pull_back(weights.astype(y.dtype))

    return quick_jit(run)


@pytest.mark.parametrize("centred", [True, False])
@given(given=arguments(), fill=st.sampled_from([0.0, np.nan, np.inf, -np.inf, 3e38]))
def test_norms(centred, given, fill):
    x, small, mask = given
    exact = [np.asarray(a.astype(jnp.float32), np.float64) for a in (x, *small)]
    if not centred:
        exact[3], exact[5] = 0 * exact[3], 0 * exact[5]
    wide_mask = np.asarray(mask)
    # Rows without a true entry count as constant: nothing of x is left.
    exact[0] = np.where(wide_mask.any(axis=-1, keepdims=True), exact[0], 0)
    expected, size = by_definition(*exact, wide_mask, centred)
    weights = jnp.asarray(np.where(wide_mask, np.cos(np.arange(mask.size)).reshape(mask.shape), 0))
    hidden = jnp.where(mask, x, jnp.float32(fill).astype(x.dtype))
    y, dx, dsmall = compiled(centred)(hidden, small, mask, weights)
    assert y.dtype == dx.dtype == x.dtype
    counts = wide_mask | ~wide_mask.any(axis=-1, keepdims=True)
    # A mean that is large beside the spread leaves the digits of x itself.
    found = np.asarray(y.astype(jnp.float32), np.float64)
    error = np.abs(found - expected) / size
    assert error[counts].max(initial=0) < ROUNDING[str(x.dtype)], (found, expected)
    assert np.isnan(found[~counts]).all() or np.isfinite(fill)
    # What is masked is in no derivative, whatever it holds.
    _, reference, rest = compiled(centred)(jnp.where(mask, x, 0), small, mask, weights)
    for a, b in zip(jax.tree.leaves((dx, dsmall)), jax.tree.leaves((reference, rest)), strict=True):
        np.testing.assert_array_equal(
            np.where(np.isfinite(b), a, 0), np.where(np.isfinite(b), b, 0)
        )


@pytest.mark.parametrize("centred", [True, False])
@given(given=arguments(), place=st.integers(0, 4), value=st.sampled_from([np.nan, np.inf, -np.inf]))
def test_what_is_not_finite_makes_its_own_row_nan(centred, given, place, value):
    x, small, mask = given
    mask = jnp.ones_like(mask)
    weights = jnp.ones(x.shape)
    before, *_ = compiled(centred)(x, small, mask, weights)
    after, *_ = compiled(centred)(x.at[1, place % x.shape[1]].set(value), small, mask, weights)
    assert np.isnan(np.asarray(after[1].astype(jnp.float32))).all()
    np.testing.assert_array_equal(after[::2], before[::2])


drop = quick_jit(lambda key, condition, rate: drop_condition(key, condition, rate=rate))


@given(
    condition=arrays.arrays(
        np.float32, (4, 2, 3), elements=st.floats(-9, 9, width=32) | st.just(np.inf)
    ),
    rate=st.sampled_from([0.0, 0.5, 1.0, 1.5, -0.1]),
    seed=st.integers(0, 99),
)
def test_conditions_stay_or_are_zero(condition, rate, seed):
    found = np.asarray(drop(jax.random.key(seed), condition, rate))
    kept = (found == condition).all(axis=(1, 2))
    dropped = (found == 0).all(axis=(1, 2)) if 0 <= rate <= 1 else np.isnan(found).all(axis=(1, 2))
    assert (kept | dropped).all()
    assert rate not in (0, 1) or (kept if rate == 0 else dropped).all()
