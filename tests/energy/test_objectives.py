"""Losses against the reference's numbers, identities and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.battery import quick_jit
from zoo.energy import contrastive_loss, denoising_score_matching_loss, langevin
from zoo.energy.health import chain_health
from zoo.energy.objectives import (
    classifier_energy,
    nearest_neighbor_entropy,
    recovery_energy,
    sampler_kl_loss,
    softplus_contrastive_loss,
    weighted_contrastive_loss,
)

KEY = jax.random.key(0)
ENERGIES = st.lists(st.floats(-3, 3), min_size=1, max_size=5)


@given(plus=ENERGIES, minus=ENERGIES, l2=st.floats(0.1, 4))
def test_regularised_contrastive_loss_is_a_least_squares_discriminator(plus, minus, l2):
    with jax.enable_x64(True):
        loss = contrastive_loss(jnp.array(plus), jnp.array(minus), l2=l2)
        target = 1 / (2 * l2)
        squares = np.mean((np.array(plus) + target) ** 2) + np.mean((np.array(minus) - target) ** 2)
        np.testing.assert_allclose(loss, l2 * squares - target, rtol=0, atol=1e-13)
        assert loss >= -target - 1e-13


def test_the_articles_sign_is_refused_and_why():
    with pytest.raises(ValueError, match=r"l2 must be .* ≥ 0, got -1; both squares are added"):
        contrastive_loss(jnp.zeros(1), jnp.zeros(1), l2=-1)
    # With that sign the loss falls without end as the samples' energies grow.
    energies = jnp.array([1.0, 10.0, 100.0])
    printed = -energies - energies**2
    ours = jax.vmap(lambda e: contrastive_loss(jnp.zeros(1), e[None]))(energies)
    assert (jnp.diff(printed) < 0).all()
    assert (jnp.diff(ours) > 0).all()


def test_gradient_with_regularisation():
    """(1 + 2aE⁺)·dE⁺ - (1 - 2aE⁻)·dE⁻, each over its batch."""
    plus, minus = jnp.array([0.3, -0.2]), jnp.array([0.5])
    gradients = jax.grad(lambda p, m: contrastive_loss(p, m, l2=0.7), argnums=(0, 1))(plus, minus)
    np.testing.assert_allclose(gradients[0], (1 + 1.4 * plus) / 2, rtol=1e-6)
    np.testing.assert_allclose(gradients[1], -(1 - 1.4 * minus), rtol=1e-6)


def test_weights_of_the_likeliest_samples():
    minus = jnp.array([0.1, 0.4, -0.2])
    gradient = jax.grad(lambda m: weighted_contrastive_loss(jnp.zeros(1), m, l2=0.0))(minus)
    np.testing.assert_allclose(-gradient, [0.32354, 0.239684, 0.436733], rtol=2e-6)
    # energies far apart neither overflow nor vanish
    far = weighted_contrastive_loss(jnp.zeros(1), jnp.array([-1e30, 1e30]), l2=0.0)
    np.testing.assert_allclose(far, 1e30, rtol=1e-3)


def test_softplus_form():
    plus, minus = jnp.array([1.0, -2.0]), jnp.array([0.5, 3.0])
    expected = np.log1p(np.exp(np.array([0.5, -5.0]))).mean() + 0.5 * (2.5 + 4.625)
    np.testing.assert_allclose(softplus_contrastive_loss(plus, minus, l2=0.5), expected, rtol=1e-6)


def test_exact_samples_give_the_gradient_of_the_likelihood():
    """On a grid Z is a sum: the gradient of the exact likelihood is the contrastive one."""
    with jax.enable_x64(True):
        grid = jnp.linspace(-4, 4, 401)
        data = jnp.array([0.3, -1.2, 0.8])

        def energy(theta, x):
            return theta[0] * x**2 / 2 + theta[1] * jnp.cos(2 * x)

        def negative_log_likelihood(theta):
            return energy(theta, data).mean() + jax.nn.logsumexp(-energy(theta, grid))

        theta = jnp.array([0.7, 0.4])
        probability = jax.nn.softmax(-energy(theta, grid))

        def contrastive(theta):
            # Samples in their exact proportions: the mean over them is the model's mean.
            weighted = energy(theta, grid) * probability * len(grid)
            return contrastive_loss(energy(theta, data), weighted, l2=0.0)

        exact = quick_jit(jax.grad(negative_log_likelihood))(theta)
        np.testing.assert_allclose(quick_jit(jax.grad(contrastive))(theta), exact, rtol=1e-10)


def test_fixed_point_scales_with_the_effective_temperature():
    """Data of deviation 1 and E = θx²/2: the chains match the data at θ* ≈ s²/(2h)."""
    step, noise = 10.0, 0.005
    exact = (1 - 1 / np.sqrt(1 + noise**2)) / step
    assert exact == pytest.approx(noise**2 / (2 * step), rel=1e-4)
    # One step of a chain with the data's law, noise first: variance (1 + s²)(1 - hθ)² = 1 at θ*.
    sampler = langevin(
        lambda x: exact * (x**2).sum(axis=-1) / 2,
        step_size=step,
        noise_scale=noise,
        noise_first=True,
    )
    with jax.enable_x64(True):
        x = jax.random.normal(KEY, (1000, 1), jnp.float64)
        state, _ = sampler.step(jax.random.key(1), sampler.init(x))
        drift = float((state.position**2).mean() / (x**2).mean()) - 1
    assert abs(drift) < 5 * 2 * noise / np.sqrt(1000)


@pytest.mark.parametrize("differentiated", [1, 2])
def test_kl_term_is_the_derivative_through_the_chain(differentiated):
    step, theta, start = 0.1, 0.8, jnp.array([[1.5], [-0.5]])

    def loss(theta, differentiated_steps=differentiated):
        return sampler_kl_loss(
            KEY,
            lambda theta, x: theta * (x**4).sum(axis=-1) / 4,
            theta,
            start,
            make_sampler=lambda e: langevin(e, step_size=step, noise_scale=0.0),
            num_steps=2,
            differentiated_steps=differentiated_steps,
        )[0]

    # x' = x - hθx³ and dx'/dθ = (1 - 3hθx²)·dx/dθ - hx³
    x0 = np.array([1.5, -0.5])
    x1 = x0 - step * theta * x0**3
    x2 = x1 - step * theta * x1**3
    first = -step * x0**3 if differentiated == 2 else 0.0
    second = (1 - 3 * step * theta * x1**2) * first - step * x1**3
    value, slope = quick_jit(jax.value_and_grad(loss))(theta)
    np.testing.assert_allclose(value, (theta * x2**4 / 4).mean(), rtol=1e-5)
    np.testing.assert_allclose(slope, (theta * x2**3 * second).mean(), rtol=1e-5)
    with pytest.raises(ValueError, match="must be at least 1 and at most 2, got 3"):
        loss(theta, differentiated_steps=3)


def test_nearest_neighbor_entropy_and_its_gradient():
    samples, references = jnp.array([[1.0, 0.0], [5.0, 4.0]]), jnp.array([[0.0, 0.0], [5.0, 2.0]])
    np.testing.assert_allclose(
        nearest_neighbor_entropy(samples, references), np.log([1.0, 2.0]).mean(), rtol=1e-6
    )
    gradient = jax.grad(nearest_neighbor_entropy)(samples, references)
    np.testing.assert_allclose(gradient, [[0.5, 0], [0, 0.25]], atol=1e-7)  # away from the nearest
    same = jax.grad(nearest_neighbor_entropy)(references, references)
    np.testing.assert_array_equal(same, 0.0)


@pytest.mark.parametrize(
    ("offset", "spread", "size"), [(0.0, 1.0, 1), (100.0, 1e-2, 8), (1e4, 1.0, 3), (0.0, 1e-3, 64)]
)
def test_nearest_is_found_among_near_ones(offset, spread, size):
    """Where the product of matrices loses the digits that tell neighbours apart."""
    generator = np.random.default_rng(0)
    points = (offset + spread * generator.normal(size=(300, size))).astype(np.float32)
    copies = nearest_neighbor_entropy(jnp.array(points[:50]), jnp.array(points))
    np.testing.assert_allclose(copies, np.log(1e-6), rtol=1e-6)
    distances = np.linalg.norm(points[:50, None].astype(np.float64) - points[None, 50:], axis=2)
    expected = np.log(np.maximum(distances.min(axis=1), 1e-6)).mean()
    found = nearest_neighbor_entropy(jnp.array(points[:50]), jnp.array(points[50:]))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_means_of_nothing():
    nothing = jnp.zeros((0, 2))
    assert np.isnan(nearest_neighbor_entropy(nothing, jnp.ones((3, 2))))
    assert np.isnan(contrastive_loss(jnp.zeros(0), jnp.zeros(0)))
    with pytest.raises(ValueError, match=r"at least one, got shape \(0, 2\)"):
        nearest_neighbor_entropy(jnp.ones((3, 2)), nothing)
    with pytest.raises(ValueError, match=r"\[\.\.\., K\] with K > 0, got \(2, 0\)"):
        classifier_energy(jnp.zeros((2, 0)))
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        sampler_kl_loss(KEY, None, None, None, make_sampler=None, num_steps=0)


def test_a_traced_strength_is_that_of_a_number():
    loss = jax.jit(lambda l2: contrastive_loss(jnp.array([1e30]), jnp.array([1.0]), l2=l2))
    assert loss(0.0) == contrastive_loss(jnp.array([1e30]), jnp.array([1.0]), l2=0) == 1e30
    assert np.isnan(loss(-1.0))
    with pytest.raises(ValueError, match="l2 must be"):
        contrastive_loss(jnp.zeros(1), jnp.zeros(1), l2=np.float32(-1))


def test_classifier_energies_are_consistent():
    logits = jnp.array([[1.0, 2.0, -1.0], [0.0, 0.5, 3.0]])
    given_class = jnp.stack(
        [classifier_energy(logits, jnp.full(2, k, jnp.int32)) for k in range(3)], axis=-1
    )
    np.testing.assert_allclose(
        classifier_energy(logits), -jax.nn.logsumexp(-given_class, axis=-1), rtol=1e-6
    )
    assert np.isnan(classifier_energy(logits, jnp.array([3, -1]))).all()
    with pytest.raises(ValueError, match=r"labels: expected shape \(2,\), got \(1,\)"):
        classifier_energy(logits, jnp.array([0]))
    with pytest.raises(TypeError, match="labels must be an array of integers, got float32"):
        classifier_energy(logits, jnp.zeros(2))


def test_score_matching_finds_the_energy_of_the_blurred_data():
    """N(0, v) blurred by σ is N(0, v + σ²): among θx²/2 the best has θ = 1/(v + σ²)."""
    variance, noise = 2.0, 0.5
    data = np.sqrt(variance) * jax.random.normal(KEY, (20_000, 1))

    def loss(theta):
        return denoising_score_matching_loss(
            jax.random.key(1), lambda x: theta * (x**2).sum(axis=-1) / 2, data, noise_scale=noise
        )

    # The loss is quadratic in θ: its minimum from slope and curvature.
    slope, curvature = quick_jit(jax.value_and_grad(jax.grad(loss)))(0.0)
    assert -slope / curvature == pytest.approx(1 / (variance + noise**2), rel=0.03)
    with pytest.raises(ValueError, match=r"noise_scale must be .* > 0, got 0"):
        denoising_score_matching_loss(KEY, lambda x: x[:, 0], data, noise_scale=0)


def test_chain_health_in_closed_form():
    data, samples = jnp.array([0.0, 1.0]), jnp.array([2.0, -2.0, 3.0, 3.0])
    health = chain_health(lambda x: x**2 / 2, data, samples, bounds=(-3.0, 3.0))
    assert health.energy_gap == pytest.approx((2 + 2 + 4.5 + 4.5) / 4 - 0.25)
    assert health.gradient_norm == pytest.approx(2.5)
    assert health.excess_saturation == 0.5
    assert chain_health(lambda x: x**2 / 2, data, samples).excess_saturation == 0
    broken = chain_health(lambda x: x**2 / 2, data, samples.at[0].set(jnp.nan), bounds=(-3.0, 3.0))
    assert np.isnan(broken).all()
    with pytest.raises(ValueError, match=r"bounds must be \(low, high\)"):
        chain_health(lambda x: x**2 / 2, data, samples, bounds=(1.0, 0.0))


def test_recovery_energy_pulls_to_the_noisy_copy():
    noisy = jnp.array([[2.0, 0.0]])
    energy = recovery_energy(lambda x: (x**2).sum(axis=-1) / 2, noisy, noise_scale=0.5)
    gradient = jax.grad(lambda x: energy(x).sum())(jnp.ones((1, 2)))
    np.testing.assert_allclose(gradient, 1 + (1 - noisy) / 0.25, rtol=1e-6)


@pytest.mark.parametrize(
    "loss", [contrastive_loss, softplus_contrastive_loss, weighted_contrastive_loss]
)
def test_bad_energies(loss):
    with pytest.raises(TypeError, match="energy_data must be a floating-point array, got int32"):
        loss(jnp.arange(2), jnp.zeros(2))
    with pytest.raises(ValueError, match=r"energy_samples must have shape \[.\], got \[2, 1\]"):
        loss(jnp.zeros(2), jnp.zeros((2, 1)))


def test_softplus_needs_pairs():
    with pytest.raises(ValueError, match=r"where B is 2 in energy_data; got \[3\]"):
        softplus_contrastive_loss(jnp.zeros(2), jnp.zeros(3))
