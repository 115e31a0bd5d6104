import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.ordered.regularization import activation_penalty, dropout, weight_drop


def test_dropout_law():
    x = jnp.ones((50, 40, 10))
    y = dropout(jax.random.key(1), x, rate=0.3, shared_axes=(0,))
    assert (y == y[:1]).all()
    assert set(np.unique(y)) == {0, np.float32(1 / 0.7)}
    kept = (y[0] > 0).sum()
    # 400 draws kept with 0.7: five standard deviations are 46.
    assert abs(int(kept) - 280) < 46


def test_weight_drop_of_both_kinds():
    kernel = np.random.default_rng(2).normal(size=(50, 40)).astype(np.float32)
    key = jax.random.key(3)
    inverted = weight_drop(key, kernel, rate=0.25)
    original = weight_drop(key, kernel, rate=0.25, inverted=False)
    # The same mask; what stays is as it was in the one, divided by 1 - rate in the other.
    np.testing.assert_array_equal(inverted == 0, original == 0)
    np.testing.assert_array_equal(original[original != 0], kernel[original != 0])
    np.testing.assert_allclose(inverted, original / 0.75, rtol=1e-6)
    # 2,000 draws: five standard deviations are 97.
    assert abs(int((original == 0).sum()) - 500) < 97
    np.testing.assert_array_equal(weight_drop(None, kernel, rate=0.25), kernel)
    np.testing.assert_allclose(
        weight_drop(None, kernel, rate=0.25, inverted=False), 0.75 * kernel, rtol=1e-6
    )
    with pytest.raises(ValueError, match=r"weight_drop: rate must be one finite number.*got -0.1"):
        weight_drop(None, kernel, rate=-0.1)


def test_mean_of_the_penalties_is_that_of_the_source():
    hidden = np.random.default_rng(4).normal(size=(3, 7, 5)).astype(np.float32)
    expected = 2 * np.mean(hidden**2) + 1 * np.mean((hidden[:, 1:] - hidden[:, :-1]) ** 2)
    np.testing.assert_allclose(np.mean(activation_penalty(hidden)), expected, rtol=1e-5)
    only_temporal = activation_penalty(hidden, activation=0.0, temporal=3.0)
    assert (only_temporal[:, 0] == 0).all()
    one_step = activation_penalty(hidden[:, :1])
    np.testing.assert_allclose(one_step[:, 0], 2 * np.mean(hidden[:, 0] ** 2, axis=-1), rtol=1e-6)
