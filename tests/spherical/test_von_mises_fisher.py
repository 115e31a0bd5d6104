"""The density against Bessel functions and closed forms; the sampler against its own density."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

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
