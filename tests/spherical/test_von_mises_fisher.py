"""The density against Bessel functions and closed forms; the sampler against its own density."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from zoo.spherical import random_uniform
from zoo.spherical.von_mises_fisher import random_von_mises_fisher, von_mises_fisher_log_density


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("size", [2, 3, 100])
def test_density_is_that_of_the_bessel_function(size):
    mean, kappa = jnp.eye(size)[0], np.array([1e-3, 1.0, 30.0, 600.0])
    order = size / 2 - 1
    with np.errstate(divide="ignore"):
        log_bessel = np.log(scipy.special.ive(order, kappa)) + kappa
    expected = order * np.log(kappa) - size / 2 * np.log(2 * np.pi) - log_bessel + kappa
    found = von_mises_fisher_log_density(jnp.stack([mean] * 4), jnp.stack([mean] * 4), kappa)
    finite = np.isfinite(expected)  # for a large order SciPy underflows
    assert finite.sum() >= 2
    np.testing.assert_allclose(found[finite], expected[finite], atol=1e-9)


@pytest.mark.usefixtures("double_precision")
def test_density_of_the_sphere_at_extreme_concentrations():
    mean, kappa = jnp.eye(3)[:1], jnp.array([1e5, 1e8, -1.0, 2.0])
    means = jnp.repeat(mean, 4, axis=0)
    found, pull_back = jax.vjp(lambda k: von_mises_fisher_log_density(means, means, k), kappa)
    np.testing.assert_allclose(found[:2], np.log(kappa[:2] / 2 / np.pi), rtol=1e-10)  # 4π sinh κ/κ
    assert jnp.isnan(found[2])
    slope = pull_back(jnp.eye(4)[3])[0][3]
    assert slope == pytest.approx(1 - (1 / np.tanh(2) - 1 / 2), abs=1e-8)


@pytest.mark.parametrize(("size", "kappas"), [(2, [2.0]), (3, [0.0, 10.0, np.nan]), (50, [100.0])])
def test_samples_have_the_mean_of_the_density(size, kappas):
    count = 4000
    means = jnp.repeat(jnp.eye(size)[:1], len(kappas), axis=0)
    found = random_von_mises_fisher(jax.random.key(1), means, jnp.array(kappas), (count,))
    assert found.shape == (count, len(kappas), size)
    for x, kappa in zip(np.asarray(found).swapaxes(0, 1), kappas, strict=True):
        if np.isnan(kappa):
            assert np.isnan(x).all()
            continue
        np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=1e-5)
        order = size / 2
        ratio = [scipy.special.ive(o, kappa) for o in (order, order - 1)]
        expected = ratio[0] / ratio[1] if kappa else 0.0  # uniform: 0/0 in the formula
        error = x[:, 0].std() / np.sqrt(count)
        assert abs(x[:, 0].mean() - expected) < 5 * error
        assert np.abs(x[:, 1:].mean(axis=0)).max() < 5 * x[:, 1].std() / np.sqrt(count)


def test_a_line_has_no_sphere():
    mean = jnp.ones((1,))
    with pytest.raises(ValueError, match="must have D ≥ 2 coordinates, got 1"):
        von_mises_fisher_log_density(mean, mean, 1.0)
    with pytest.raises(ValueError, match="must have D ≥ 2 coordinates, got 1"):
        random_von_mises_fisher(jax.random.key(0), mean, 1.0)


@pytest.mark.parametrize("size", [2, 3])
def test_samples_are_unit_whatever_the_mean(size):
    """Also where a random vector is parallel to it, or it is not quite a unit vector."""
    means = random_uniform(jax.random.key(3), (20_000, size)).at[0].mul(1.01).at[1].set(0)
    x = np.asarray(random_von_mises_fisher(jax.random.key(4), means, 1.0))
    assert np.isnan(x[1]).all()
    np.testing.assert_allclose(np.linalg.norm(np.delete(x, 1, axis=0), axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("size", [2, 3])
def test_concentrations_to_the_end_of_the_dtype(size):
    kappas = jnp.array([1e9, 1e19, 1e30, 3.4e38, jnp.inf, -1.0, jnp.nan])
    mean = jnp.eye(size)[0]
    x = np.asarray(random_von_mises_fisher(jax.random.key(6), mean, kappas, (200,)))
    assert np.isnan(x[:, 5:]).all()
    np.testing.assert_allclose(x[:, :5, 0], 1, atol=1e-6)
    # |x - μ|² κ is a sum of D - 1 squares of normal numbers.
    squares = np.sum((x[:, :3, 1:] * np.sqrt(kappas[:3, None])) ** 2, axis=-1)
    error = np.sqrt(2 * (size - 1) / 200)
    assert np.abs(squares.mean(axis=0) - (size - 1)).max() < 4 * error
    assert not x[:, 4, 1:].any()
    means = jnp.broadcast_to(mean, (7, size))
    density = von_mises_fisher_log_density(means, means, kappas)
    expected = (size - 1) / 2 * np.log(np.asarray(kappas[:3], float) / (2 * np.pi))
    np.testing.assert_allclose(density[:3], expected, rtol=1e-5)
    assert jnp.isnan(density[3:]).all()
