"""The density against Bessel functions and closed forms; the sampler against its own density."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from zoo.spherical import random_von_mises_fisher, von_mises_fisher_log_density


def mean_vector(size):
    return np.eye(size)[0]


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("size", [2, 3, 5, 100])
def test_density_is_that_of_the_bessel_function(size):
    mean = jnp.asarray(mean_vector(size))
    for kappa in (1e-3, 1.0, 30.0, 600.0):
        order = size / 2 - 1
        log_bessel = np.log(scipy.special.ive(order, kappa)) + kappa
        expected = order * np.log(kappa) - size / 2 * np.log(2 * np.pi) - log_bessel + kappa
        if np.isfinite(expected):  # for a large order SciPy underflows
            found = von_mises_fisher_log_density(mean, mean, kappa)
            assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.usefixtures("double_precision")
def test_density_of_the_sphere_at_extreme_concentrations():
    mean = jnp.asarray(mean_vector(3))
    for kappa in (1e5, 1e8):  # Z = 4π sinh κ / κ
        found = von_mises_fisher_log_density(mean, mean, kappa)
        assert found == pytest.approx(np.log(kappa / 2 / np.pi), rel=1e-10)
    assert jnp.isnan(von_mises_fisher_log_density(mean, mean, -1.0))
    slope = jax.grad(lambda k: von_mises_fisher_log_density(mean, mean, k))(2.0)
    assert slope == pytest.approx(1 - (1 / np.tanh(2) - 1 / 2), abs=1e-8)


@pytest.mark.parametrize(("size", "kappa"), [(2, 2.0), (3, 0.0), (3, 10.0), (50, 100.0)])
def test_samples_have_the_mean_of_the_density(size, kappa):
    count = 4000
    mean = jnp.asarray(mean_vector(size), jnp.float32)
    x = np.asarray(random_von_mises_fisher(jax.random.key(1), mean, kappa, (count,)))
    assert x.shape == (count, size)
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=1e-5)
    order = size / 2
    ratio = [scipy.special.ive(o, kappa) for o in (order, order - 1)]
    expected = ratio[0] / ratio[1] if kappa else 0.0  # uniform: 0/0 in the formula
    error = x[:, 0].std() / np.sqrt(count)
    assert abs(x[:, 0].mean() - expected) < 5 * error
    assert np.abs(x[:, 1:].mean(axis=0)).max() < 5 * x[:, 1].std() / np.sqrt(count)


def test_bad_input():
    mean = jnp.ones((1,))
    with pytest.raises(ValueError, match="must have D ≥ 2 coordinates, got 1"):
        von_mises_fisher_log_density(mean, mean, 1.0)
    with pytest.raises(ValueError, match="must have D ≥ 2 coordinates, got 1"):
        random_von_mises_fisher(jax.random.key(0), mean, 1.0)
    nan = random_von_mises_fisher(jax.random.key(0), jnp.array([1.0, 0.0]), jnp.nan)
    assert jnp.isnan(nan).all()
