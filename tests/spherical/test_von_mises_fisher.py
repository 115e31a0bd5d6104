"""Density and moments against Bessel functions and SciPy, samples against both, fits, means."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats

from tests.battery import quick_jit
from zoo.spherical import fit_von_mises_fisher, frechet_mean, logarithmic_map
from zoo.spherical.von_mises_fisher import (
    random_von_mises_fisher,
    von_mises_fisher_entropy,
    von_mises_fisher_log_density,
    von_mises_fisher_mean,
)

double = pytest.mark.usefixtures("double_precision")
fit, frechet = quick_jit(fit_von_mises_fisher), quick_jit(frechet_mean)


def ratio(size, kappa):
    """A(κ) by Bessel functions, and the logarithm of I_{D/2-1}(κ) e^{-κ}."""
    with np.errstate(divide="ignore", invalid="ignore"):
        above, below = (scipy.special.ive(order, kappa) for order in (size / 2, size / 2 - 1))
        return above / below, np.log(below)


@double
@pytest.mark.parametrize("size", [2, 3, 100])
def test_density_and_moments_are_those_of_the_bessel_function(size):
    kappa = np.array([1e-3, 1.0, 0.45 * size, 0.55 * size, 300.0, 1e4])
    mean = jnp.stack([jnp.eye(size)[0]] * len(kappa))

    @quick_jit
    def found(kappa):
        density = von_mises_fisher_log_density(mean, mean, kappa)
        entropy = von_mises_fisher_entropy(kappa, size=size)
        return density, von_mises_fisher_mean(mean, kappa)[:, 0], entropy

    density, length, entropy = found(kappa)
    expected_length, log_bessel = ratio(size, kappa)
    order = size / 2 - 1
    expected = order * np.log(kappa) - size / 2 * np.log(2 * np.pi) - log_bessel
    finite = np.isfinite(expected)  # for a large order SciPy underflows
    assert finite.sum() >= 4
    np.testing.assert_allclose(density[finite], expected[finite], atol=1e-9)
    np.testing.assert_allclose(length[finite], expected_length[finite], rtol=1e-12)
    entropies = [scipy.stats.vonmises_fisher(mean[0], k).entropy() for k in kappa[finite]]
    np.testing.assert_allclose(entropy[finite], entropies, atol=1e-9)


@double
def test_density_and_entropy_at_extreme_concentrations():
    kappa = jnp.array([1e5, 1e8, -1.0, 2.0, 0.0])
    means = jnp.stack([jnp.eye(3)[0]] * 5)

    @quick_jit
    def both(kappa):
        density, pull_back = jax.vjp(lambda k: von_mises_fisher_log_density(means, means, k), kappa)
        return density, pull_back(jnp.eye(5)[3])[0][3], von_mises_fisher_entropy(kappa, size=3)

    density, slope, entropy = both(kappa)
    np.testing.assert_allclose(density[:2], np.log(kappa[:2] / 2 / np.pi), rtol=1e-10)
    np.testing.assert_allclose(entropy[:2], 1 - density[:2], rtol=1e-9)  # an exponential law
    assert entropy[4] == pytest.approx(np.log(4 * np.pi))
    assert jnp.isnan(density[2])
    assert jnp.isnan(entropy[2])
    assert slope == pytest.approx(1 - (1 / np.tanh(2) - 1 / 2), abs=1e-8)  # 4π sinh κ/κ


KAPPAS = jnp.array([0.0, 2.0, 30.0, 1e9, 1e19, 1e30, 3.4e38, jnp.inf, -1.0, jnp.nan])


@pytest.mark.parametrize("size", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 50))])
def test_samples_have_the_law_of_the_density(size):
    count = 2000
    # Means that are not quite unit vectors, and one without a direction.
    means = (1.5 * jnp.stack([jnp.eye(size)[0]] * (len(KAPPAS) + 1))).at[-1].set(0)
    kappas = jnp.append(KAPPAS, 1.0)
    draw = lambda key: random_von_mises_fisher(key, means, kappas, (count,))  # noqa: E731
    x = np.asarray(quick_jit(draw)(jax.random.key(1)))
    assert x.shape == (count, len(kappas), size)
    assert np.isnan(x[:, -3:]).all()
    np.testing.assert_allclose(np.linalg.norm(x[:, :-3], axis=-1), 1, atol=1e-5)
    for k in range(3):
        expected = np.nan_to_num(ratio(size, np.asarray(kappas[k], float))[0])
        along, across = x[:, k, 0], x[:, k, 1:]
        assert abs(along.mean() - expected) < 5 * along.std() / np.sqrt(count)
        assert np.abs(across.mean(axis=0)).max() < 5 * across.std() / np.sqrt(count)
    # |x - μ|² κ is a sum of D - 1 squares of normal numbers.
    squares = np.sum((x[:, 3:6, 1:] * np.sqrt(kappas[3:6, None])) ** 2, axis=-1)
    error = np.sqrt(2 * (size - 1) / count)
    assert np.abs(squares.mean(axis=0) - (size - 1)).max() < 4 * error
    np.testing.assert_allclose(x[:, 3:8, 0], 1, atol=1e-6)
    assert not x[:, 7, 1:].any()
    density = quick_jit(von_mises_fisher_log_density)(
        means[3:10] / 1.5, means[3:10] / 1.5, kappas[3:10]
    )
    expected = (size - 1) / 2 * np.log(np.asarray(kappas[3:6], float) / (2 * np.pi))
    np.testing.assert_allclose(density[:3], expected, rtol=1e-5)
    assert jnp.isnan(density[3:]).all()


@double
@pytest.mark.parametrize("size", [2, pytest.param(7, marks=pytest.mark.slow)])
def test_samples_move_with_their_quantile(size):
    """Of one key the share of samples beyond each stays as it is while κ changes."""
    kappas, mean = jnp.array([0.0, 0.5, 8.0]), jnp.eye(size)[0]

    def draw(kappa):
        return random_von_mises_fisher(jax.random.key(1), mean, kappa, (5,))[..., 0]

    cosines, slopes = quick_jit(lambda kappas: jax.jvp(draw, (kappas,), (jnp.ones(3),)))(kappas)
    integral = functools.partial(scipy.integrate.quad, epsabs=0, epsrel=1e-10, limit=200)
    for kappa, column, found in zip(kappas.tolist(), cosines.T, slopes.T, strict=True):
        mean_cosine = np.nan_to_num(ratio(size, kappa)[0])

        def density(phi, kappa=kappa):
            return np.exp(kappa * np.cos(phi) - kappa) * np.sin(phi) ** (size - 2)

        def moving(phi, density=density, mean_cosine=mean_cosine):
            return (np.cos(phi) - mean_cosine) * density(phi)

        for cosine, slope in zip(column, found, strict=True):
            phi = np.arccos(cosine)
            moved = integral(moving, phi, np.pi)[0]  # of the share beyond
            assert slope == pytest.approx(-moved / density(phi) * np.sin(phi), rel=1e-6)


@pytest.mark.slow
@double
def test_gradients_of_samples_are_those_of_expectations():
    count = 2000
    mean, weights = jnp.array([0.6, 0.0, 0.8]), jnp.array([1.0, 2.0, -1.0])

    @quick_jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def estimate(mean, kappa):
        x = random_von_mises_fisher(jax.random.key(2), mean, kappa, (count,))
        values = (x @ weights) ** 2
        return jnp.mean(values), values.std() / count**0.5

    # E (w·x)² = (w·μ)² (1 - 3A/κ) + |w|² A/κ on the sphere, with A = coth κ - 1/κ.
    def exact(mean, kappa):
        share = (1 / jnp.tanh(kappa) - 1 / kappa) / kappa
        return (weights @ mean / jnp.linalg.norm(mean)) ** 2 * (1 - 3 * share) + 6 * share

    (value, error), slopes = estimate(mean, 4.0)
    expected, exact_slopes = jax.value_and_grad(exact, argnums=(0, 1))(mean, 4.0)
    assert abs(value - expected) < 5 * error
    for found, slope in zip(slopes, exact_slopes, strict=True):
        np.testing.assert_allclose(found, slope, atol=8 * float(error))
    for kappa in (0.0, jnp.inf):
        assert all(jnp.isfinite(slope).all() for slope in estimate(mean, kappa)[1])


def points(size, kappa, count=60):
    direction = np.eye(size)[-1]
    return scipy.stats.vonmises_fisher(direction, kappa).rvs(count, random_state=int(kappa))


@double
@pytest.mark.parametrize("size", [2, 20])
def test_the_fit_is_the_likeliest(size):
    weights = np.random.default_rng(0).integers(1, 4, 60)
    x = np.stack([points(size, kappa) for kappa in (0.5, 5.0, 500.0)])
    found = fit(x)
    for sample, mean, kappa in zip(x, *found, strict=True):
        expected_mean, expected = scipy.stats.vonmises_fisher.fit(sample)
        np.testing.assert_allclose(mean, expected_mean, atol=1e-12)
        assert kappa == pytest.approx(expected, rel=1e-9)
    weighted = fit(x[1], weights=jnp.asarray(weights, float))
    repeated = fit_von_mises_fisher(np.repeat(x[1], weights, axis=0))
    for ours, theirs in zip(weighted, repeated, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-15)


@double
def test_the_frechet_mean_is_the_least():
    samples = jnp.asarray(np.stack([points(4, 2.0), points(4, 50.0)]))
    shares = jnp.asarray(np.random.default_rng(0).random(60))

    @quick_jit
    def mean_and_slope(x):
        mean = frechet_mean(x, weights=shares)
        return mean, shares @ logarithmic_map(jnp.broadcast_to(mean, x.shape), x)

    for sample in samples:
        mean, slope = mean_and_slope(sample)
        assert np.linalg.norm(mean) == pytest.approx(1)
        np.testing.assert_allclose(slope, 0, atol=1e-13)
    # Of two points it divides the way between them; and one that weighs nothing.
    angles = np.zeros(60)
    angles[:2] = 0.0, 1.2
    weights = np.zeros(60)
    weights[:2] = 3.0, 1.0
    found = frechet(np.stack([np.cos(angles), np.sin(angles)], -1), weights=jnp.asarray(weights))
    np.testing.assert_allclose(found, [np.cos(0.3), np.sin(0.3)], atol=1e-12)


def moved(step):
    """Estimates of points that move along the sphere."""
    x = jnp.asarray(points(3, 5.0, 6))
    direction = jnp.cos(jnp.arange(18.0)).reshape(6, 3)
    y = x + step * (direction - jnp.sum(direction * x, axis=1, keepdims=True) * x)
    y /= jnp.linalg.norm(y, axis=1, keepdims=True)
    along = jnp.sum(jnp.cos(jnp.arange(3.0)) * frechet_mean(y))
    return jnp.stack([along, fit_von_mises_fisher(y).concentration])


@pytest.mark.slow
@double
def test_derivatives_of_estimates():
    values = quick_jit(lambda step: jax.jvp(moved, (step,), (1.0,)))
    (ahead, _), (behind, _), (_, slope) = values(1e-5), values(-1e-5), values(0.0)
    np.testing.assert_allclose(slope, (ahead - behind) / 2e-5, rtol=1e-6)


@double
@pytest.mark.slow
def test_second_derivatives_of_estimates():
    slopes = jax.jacrev(moved)
    values = quick_jit(lambda step: jax.jvp(slopes, (step,), (1.0,)))
    (ahead, _), (behind, _), (_, curvature) = values(1e-5), values(-1e-5), values(0.0)
    np.testing.assert_allclose(curvature, (ahead - behind) / 2e-5, rtol=1e-5)


def test_estimates_at_their_ends():
    opposite, equal = jnp.array([[1.0, 0, 0], [-1, 0, 0]]), jnp.array([[0.0, 1, 0]] * 2)
    both = quick_jit(lambda x, w: (*fit_von_mises_fisher(x, weights=w), frechet_mean(x, weights=w)))
    weights = jnp.ones(2)
    *law, between = both(opposite, weights)
    assert [a.tolist() for a in law] == [[0, 0, 0], 0]
    assert abs(between[0]) < 1e-6  # a quarter turn from both
    *law, there = both(equal, weights)
    assert [a.tolist() for a in law] == [[0, 1, 0], np.inf]
    np.testing.assert_allclose(there, equal[0], atol=1e-7)
    for bad in (both(equal, 0 * weights), both(equal * jnp.nan, weights)):
        assert all(jnp.isnan(found).all() for found in bad)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: von_mises_fisher_log_density(*[jnp.ones(1)] * 2, 1.0), "D ≥ 2 coordinates, got 1"),
        (lambda: random_von_mises_fisher(jax.random.key(0), jnp.ones(1), 1.0), "D ≥ 2 .* got 1"),
        (lambda: von_mises_fisher_entropy(1.0, size=1), "size must be at least 2, got 1"),
        (lambda: fit_von_mises_fisher(jnp.ones((3, 1))), "D ≥ 2 coordinates, got 1"),
        (
            lambda: fit_von_mises_fisher(jnp.ones(3)),
            r"x must have shape \[..., N, D\] .* got \[3\]",
        ),
        (lambda: frechet_mean(jnp.ones((0, 3))), r"at least one point, got \[0, 3\]"),
        (
            lambda: frechet_mean(jnp.ones((4, 2, 3)), weights=jnp.ones(4)),
            r"weights must have shape \[4, 2\] or \[N\] = \[2\], .* got \[4\]",
        ),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
