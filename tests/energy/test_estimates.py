"""Diagnostics, log Z, composition, and the clipped Adam."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zoo.energy import (
    annealed_log_normalizer,
    clamped_energy,
    clip_by_second_moment,
    clipped_adam,
    effective_sample_size,
    langevin,
    mixture_energy,
    product_energy,
    r_hat,
    run_chain,
)

KEY = jax.random.key(0)


def autoregressive(correlation, *, length=4000, chains=8, seed=0):
    """x' = ρx + √(1-ρ²)·ξ: the autocorrelation at lag t is ρ^t."""
    generator = np.random.default_rng(seed)
    x = np.empty((length, chains))
    x[0] = generator.normal(size=chains)
    for t in range(1, length):
        noise = generator.normal(size=chains)
        x[t] = correlation * x[t - 1] + np.sqrt(1 - correlation**2) * noise
    return jnp.asarray(x, jnp.float32)


@pytest.mark.parametrize("correlation", [-0.5, 0.0, 0.6, 0.9])
def test_effective_sample_size_of_a_known_chain(correlation):
    x = autoregressive(correlation)
    expected = x.size * (1 - correlation) / (1 + correlation)
    assert float(effective_sample_size(x)) == pytest.approx(expected, rel=0.2)
    assert float(r_hat(x)) == pytest.approx(1, abs=0.01)


def test_diagnostics_notice_chains_that_disagree_or_drift():
    x = autoregressive(0.0, length=200)
    apart = x + jnp.arange(8.0)[None]
    assert r_hat(apart) > 2
    assert effective_sample_size(apart) < 0.05 * x.size
    drift = x + jnp.linspace(0, 10, 200)[:, None]  # the same in every chain: halves disagree
    assert r_hat(drift) > 1.5
    both = jnp.stack([x, drift], axis=-1)
    np.testing.assert_allclose(r_hat(both), [r_hat(x), r_hat(drift)], rtol=1e-5)
    assert np.isnan(r_hat(jnp.ones((8, 2))))
    assert np.isnan(effective_sample_size(jnp.ones((8, 2))))


@pytest.mark.parametrize("function", [effective_sample_size, r_hat])
def test_diagnostics_refuse_too_little(function):
    with pytest.raises(ValueError, match=r"at least 4, got \(3, 2\)"):
        function(jnp.zeros((3, 2)))
    with pytest.raises(TypeError, match="samples must be floating-point, got int32"):
        function(jnp.zeros((8, 2), int))


def test_diagnostics_agree_with_blackjax():
    blackjax = pytest.importorskip("blackjax.diagnostics", reason="needs blackjax")
    x = autoregressive(0.7, length=500)
    theirs = blackjax.effective_sample_size(jnp.swapaxes(x, 0, 1))
    # Theirs does not split the chains.
    np.testing.assert_allclose(effective_sample_size(x), theirs, rtol=0.1)


def test_log_normalizer_of_a_gaussian_mixture():
    """Two modes of weight 1 and 3: Z = (1 + 3)·2πv."""
    variance = 0.3

    def energy(x):
        squared = jnp.stack([((x - c) ** 2).sum(axis=-1) for c in (-1.0, 1.0)])
        weights = jnp.log(jnp.array([[1.0], [3.0]]))
        return -jax.nn.logsumexp(weights - squared / (2 * variance), axis=0)

    result = annealed_log_normalizer(
        KEY, energy, (512, 2), num_steps=200, step_size=0.15, scale=1.5
    )
    exact = np.log(4 * 2 * np.pi * variance)
    weights = np.exp(np.asarray(result.log_weights, np.float64) - exact)
    error = weights.std() / np.sqrt(len(weights))
    assert abs(weights.mean() - 1) < 4 * error
    assert error < 0.05
    assert float(result.log_normalizer) == pytest.approx(exact, abs=0.1)
    assert 200 < result.effective_chains <= 512
    assert 0.3 < result.acceptance_rate < 1


def test_log_normalizer_refuses():
    with pytest.raises(ValueError, match="num_steps must be at least 1"):
        annealed_log_normalizer(KEY, lambda x: x[:, 0], (2, 1), num_steps=0, step_size=0.1)
    with pytest.raises(ValueError, match="scale must be greater than 0, got 0"):
        annealed_log_normalizer(KEY, lambda x: x[:, 0], (2, 1), num_steps=1, step_size=0.1, scale=0)


def at(center):
    return lambda x: 2 * ((x - jnp.asarray(center)[None]) ** 2).sum(axis=-1)


def test_products_and_negations_move_the_samples_there():
    both = product_energy([at([0.0, 0.0]), at([2.0, 2.0])])
    sampler = langevin(both, step_size=0.02)
    start = sampler.init(jnp.zeros((2000, 2)))
    x = run_chain(KEY, sampler, start, 200)[0].position
    # The product of N(0, 1/4) and N(2, 1/4) is N(1, 1/8).
    np.testing.assert_allclose(x.mean(axis=0), 1.0, atol=5 * np.sqrt(1 / 8 / 2000))
    away = product_energy([at([0.0, 0.0]), at([1.0, 0.0])], weights=[1.0, -0.5])
    gradient = jax.grad(lambda x: away(x).sum())(jnp.zeros((1, 2)))
    np.testing.assert_allclose(gradient, [[2.0, 0.0]], atol=1e-6)  # downhill is to the left


def test_mixture_is_the_sum_of_the_densities():
    x = jnp.array([[0.3, -0.2], [1.0, 1.0]])
    parts = [at([0.0, 0.0]), at([1.0, 1.0]), at([2.0, 0.0])]
    density = sum(np.exp(-np.asarray(part(x), np.float64)) for part in parts)
    np.testing.assert_allclose(mixture_energy(parts)(x), -np.log(density), rtol=1e-5)


def test_inpainting_moves_the_free_part_only():
    """A correlated normal: given x₀ = 3 the mean of x₁ is 0.8·3."""
    precision = np.linalg.inv(np.array([[1.0, 0.8], [0.8, 1.0]])).astype(np.float32)

    def energy(x):
        return jnp.einsum("bi,ij,bj->b", x, precision, x) / 2

    known, mask = jnp.array([[3.0, 0.0]]), jnp.array([[True, False]])
    sampler = langevin(clamped_energy(energy, known, mask), step_size=0.1)
    x = run_chain(KEY, sampler, sampler.init(jnp.zeros((2000, 2))), 100)[0].position
    x = jnp.where(mask, known, x)
    assert (x[:, 0] == 3).all()
    assert float(x[:, 1].mean()) == pytest.approx(2.4, abs=5 * 0.65 / np.sqrt(2000))


def test_composition_refuses():
    for function in (product_energy, mixture_energy):
        with pytest.raises(ValueError, match="at least one energy function, got none"):
            function([])
    with pytest.raises(ValueError, match="one for each of 1 energies, got 2"):
        product_energy([at([0.0])], weights=[1, 2])
    with pytest.raises(TypeError, match="mask must be bool, True where known, got float32"):
        clamped_energy(at([0.0]), jnp.zeros((1, 1)), jnp.zeros((1, 1)))


def test_clipped_adam_golden_table():
    """Recorded from the original optimiser's update rule: rate 3e-4, g = 1, -2, 0.05, 3, 0.2."""
    gradients = [1.0, -2.0, 0.05, 3.0, 0.2]
    bounds = [0.1, 0.312185, 0.668042, 0.597510, 1.017514]
    clipped = [0.1, -0.312185, 0.05, 0.597510, 0.2]
    weights = [-0.000299999, 0.000103960, 0.000025608, -0.000498750, -0.000687117]
    clip, adam = clip_by_second_moment(), clipped_adam()
    w = jnp.zeros(1)
    clip_state, adam_state = clip.init(w), adam.init(w)
    for g, bound, expected, weight in zip(gradients, bounds, clipped, weights, strict=True):
        limit, _ = clip.update(jnp.array([1e9]), clip_state)
        np.testing.assert_allclose(limit, bound, rtol=2e-6)
        update, clip_state = clip.update(jnp.array([g]), clip_state)
        np.testing.assert_allclose(update, expected, rtol=2e-6)
        update, adam_state = adam.update(jnp.array([g]), adam_state)
        w = optax.apply_updates(w, update)
        np.testing.assert_allclose(w, weight, rtol=0, atol=1.5e-9)


def test_clipped_adam_state_keeps_its_form_and_low_precision_its_dtype():
    parameters = {"a": jnp.ones(3, jnp.bfloat16), "b": jnp.ones((2, 2))}
    optimizer = clipped_adam(optax.constant_schedule(1e-3))
    state = optimizer.init(parameters)
    describe = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)  # noqa: E731
    update, after = jax.jit(optimizer.update)(parameters, state)
    assert describe(after) == describe(state)
    assert describe(update) == describe(parameters)
    assert state[0].second_moment["a"].dtype == jnp.float32


def test_clipped_adam_refuses():
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), got 1"):
        clip_by_second_moment(decay=1)
    with pytest.raises(ValueError, match="slack must be at least 0, got -1"):
        clip_by_second_moment(slack=-1)
