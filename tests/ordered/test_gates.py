import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np

from tests.battery import quick_jit
from zoo.ordered import cumax, log_cumax

GOLDEN = json.loads(
    (pathlib.Path(__file__).parents[1] / "golden" / "on_lstm_cell.json").read_text()
)["gates_of_1_2_3_0"]

cumax = functools.partial(jax.jit, static_argnames=("axis", "reverse"))(cumax)
log_cumax = functools.partial(jax.jit, static_argnames=("axis", "reverse"))(log_cumax)


def normal(seed, *shape, scale=1.0):
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape))


def logits(levels):
    floats = st.floats(-60, 60, width=32)
    return st_np.arrays(np.float32, (4, levels), elements=floats)


@pytest.mark.parametrize(("reverse", "name"), [(False, "cumax"), (True, "reverse")])
def test_golden(reverse, name):
    got = cumax(jnp.array([1.0, 2.0, 3.0, 0.0]), reverse=reverse)
    np.testing.assert_allclose(got, GOLDEN[name], atol=1e-7)


# A few fixed sizes: every size is a compilation.
@given(st.sampled_from([1, 2, 40]).flatmap(logits), st.floats(-1e4, 1e4), st.booleans())
def test_is_monotone_and_ends_at_one(x, offset, reverse):
    y = np.asarray(cumax(x + np.float32(offset), reverse=reverse))
    y = y[:, ::-1] if reverse else y
    assert (y[:, -1] == 1).all()
    assert (np.diff(y) >= 0).all()
    assert (y >= 0).all()


def test_rounding_never_breaks_the_promises():
    # Long axes make parallel prefix sums round neighbours apart: found by the plain formula.
    x = normal(0, 500, 1000, scale=10)
    for reverse in (False, True):
        y = np.asarray(cumax(x, reverse=reverse))
        y = y[:, ::-1] if reverse else y
        assert (np.diff(y) >= 0).all()
        assert (y[:, -1] == 1).all()
        assert y.max() == 1
    plain = np.asarray(jnp.cumsum(jax.nn.softmax(x), axis=-1))
    assert (np.diff(plain) < 0).any() or (plain > 1).any()  # else this test shows nothing


def test_is_the_probability_that_the_split_is_not_after(double_precision):
    x = jnp.array([0.3, -1.0, 2.0])
    weights = np.exp(np.asarray(x))
    np.testing.assert_allclose(cumax(x), np.cumsum(weights) / weights.sum(), rtol=1e-14)
    expected_split = np.sum(np.arange(3) * weights) / weights.sum()
    np.testing.assert_allclose(np.sum(1 - cumax(x)), expected_split, rtol=1e-13)


def test_hard_limit_and_excluded_levels():
    x = jnp.array([1.0, 3.0, 2.0, -jnp.inf])
    np.testing.assert_array_equal(cumax(1e3 * x), [0, 1, 1, 1])
    np.testing.assert_array_equal(cumax(1e3 * x, reverse=True), [1, 1, 0, 0])
    assert np.isnan(cumax(jnp.full(4, -jnp.inf))).all()
    assert cumax(jnp.zeros((2, 0))).shape == (2, 0)


def test_axis():
    x = normal(1, 3, 4, 2)
    expected = jnp.cumsum(jax.nn.softmax(x, axis=1), axis=1)
    np.testing.assert_allclose(cumax(x, axis=1), expected, rtol=1e-6)
    np.testing.assert_allclose(log_cumax(x, axis=-2), jnp.log(expected), atol=1e-6)
    with pytest.raises(ValueError, match="axis must be an axis of an array with shape"):
        cumax(x, axis=3)


def test_log_is_exact_where_cumax_underflows(double_precision):
    x = jnp.array([-800.0, 0.0, -900.0])
    assert cumax(x)[0] == 0
    np.testing.assert_allclose(log_cumax(x), [-800, 0, 0], rtol=1e-14)
    np.testing.assert_allclose(log_cumax(x, reverse=True), [0, 0, -900], rtol=1e-14)


def test_second_derivative(double_precision):
    x = normal(2, 5)
    weights = jnp.arange(5.0) ** 2
    hessians = [
        quick_jit(jax.hessian(lambda x, f=f: weights @ f(x)))(x)
        for f in (cumax, lambda x: jnp.cumsum(jnp.exp(x)) / jnp.sum(jnp.exp(x)))
    ]
    np.testing.assert_allclose(*hessians, rtol=1e-10, atol=1e-12)
