"""Log Z, composition, and the clipped Adam."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.battery import quick_jit
from zoo.energy import (
    denoising_score_matching_loss,
    langevin,
    run_chain,
    stochastic_gradient_langevin,
)
from zoo.energy.clipped_adam import clipped_adam, scale_by_clipped_rms, second_moment_bound
from zoo.energy.composition import (
    clamped_energy,
    energies_by_label,
    mixture_energy,
    product_energy,
)
from zoo.energy.health import chain_health
from zoo.energy.likelihood import annealed_log_normalizer
from zoo.energy.objectives import recovery_energy, sampler_kl_loss

KEY = jax.random.key(0)


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
    with pytest.raises(ValueError, match=r"scale must be .* > 0, got 0"):
        annealed_log_normalizer(KEY, lambda x: x[:, 0], (2, 1), num_steps=1, step_size=0.1, scale=0)
    with pytest.raises(ValueError, match=r"shape must be \(B, ...\)"):
        annealed_log_normalizer(KEY, lambda x: x[:, 0], (), num_steps=1, step_size=0.1)


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
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        energies_by_label(lambda x, _: x[:, 0], jnp.zeros((1, 1)), num_classes=0)
    with pytest.raises(TypeError, match="mask must be bool, True where known, got float32"):
        clamped_energy(at([0.0]), jnp.zeros((1, 1)), jnp.zeros((1, 1)))


SCALAR = {
    "product": lambda e: product_energy([at([0.0]), e])(jnp.ones((2, 1))),
    "mixture": lambda e: mixture_energy([at([0.0]), e])(jnp.ones((2, 1))),
    "labels": lambda e: energies_by_label(lambda x, _: e(x), jnp.ones((2, 1)), num_classes=2),
    "recovery": lambda e: recovery_energy(e, jnp.ones((2, 1)), noise_scale=1.0)(jnp.ones((2, 1))),
    "annealed": lambda e: annealed_log_normalizer(KEY, e, (2, 1), num_steps=1, step_size=0.1),
    "kl": lambda e: sampler_kl_loss(
        KEY,
        lambda _, x: e(x),
        0.0,
        jnp.ones((2, 1)),
        make_sampler=lambda e: langevin(e, step_size=0.1),
        num_steps=1,
    ),
    "prior": lambda e: one_step(
        stochastic_gradient_langevin(
            e, lambda x, d: x - d[None], jnp.ones(3), minibatch_size=2, step_size=0.1
        )
    ),
    "health": lambda e: chain_health(e, jnp.ones((2, 1)), jnp.ones((2, 1))),
    "score matching": lambda e: denoising_score_matching_loss(
        KEY, e, jnp.ones((2, 1)), noise_scale=1.0
    ),
}


def one_step(sampler):
    return sampler.step(KEY, sampler.init(jnp.ones((2, 1))))


@pytest.mark.parametrize("use", SCALAR.values(), ids=SCALAR)
def test_an_energy_that_is_no_vector_is_refused_everywhere(use):
    with pytest.raises(ValueError, match=r"must give one energy per chain: expected shape \(2,\)"):
        use(lambda x: (x**2).sum())
    with pytest.raises(ValueError, match=r"expected shape \(2,\), got \(1,\)"):
        use(lambda x: (x**2).sum(keepdims=True)[0])
    with pytest.raises(TypeError, match="floating-point energies, got int32"):
        use(lambda x: jnp.zeros(2, int))


def test_wrappers_refuse_what_would_broadcast():
    x = jnp.ones((2, 1))
    with pytest.raises(ValueError, match=r"weights: .* shape \(2,\), .* got \(3,\)"):
        product_energy([at([0.0])], weights=[jnp.ones(3)])(x)
    with pytest.raises(ValueError, match=r"known and mask must broadcast .* got \(3, 2, 1\)"):
        clamped_energy(at([0.0]), jnp.ones((3, 2, 1)), jnp.array(True))(x)
    with pytest.raises(ValueError, match=r"expected the shape of noisy, \(1, 1\), got \(2, 1\)"):
        recovery_energy(at([0.0]), x[:1], noise_scale=1.0)(x)
    with pytest.raises(ValueError, match=r"chain and example: expected shape \(2, 2\), got \(2,\)"):
        one_step(
            stochastic_gradient_langevin(
                at([0.0]), lambda x, d: x[:, 0], jnp.ones(3), minibatch_size=2, step_size=0.1
            )
        )
    with pytest.raises(ValueError, match="weights must be one finite number, got"):
        product_energy([at([0.0])], weights=[np.float32(np.nan)])


def test_a_log_normalizer_of_an_impossible_step_is_nan():
    estimate = quick_jit(
        lambda h, s: (
            annealed_log_normalizer(
                KEY, at([0.0]), (4, 1), num_steps=2, step_size=h, scale=s
            ).log_normalizer
        )
    )
    assert np.isfinite(estimate(0.1, 1.0))
    assert np.isnan([estimate(-0.1, 1.0), estimate(0.1, 0.0)]).all()


def test_clipped_adam_golden_table():
    """Recorded from the original optimiser's update rule: rate 3e-4, g = 1, -2, 0.05, 3, 0.2."""
    gradients = [1.0, -2.0, 0.05, 3.0, 0.2]
    bounds = [0.1, 0.312185, 0.668042, 0.597510, 1.017514]
    clipped = [0.1, -0.312185, 0.05, 0.597510, 0.2]
    weights = [-0.000299999, 0.000103960, 0.000025608, -0.000498750, -0.000687117]
    optimizer = clipped_adam()
    w = jnp.zeros(1)
    state, update = optimizer.init(w), jax.jit(optimizer.update)
    for g, bound, expected, weight in zip(gradients, bounds, clipped, weights, strict=True):
        moments = state[0]
        limit = second_moment_bound(moments.rms.nu, 1 - 0.999 ** (int(moments.step) + 1))
        np.testing.assert_allclose(limit, bound, rtol=2e-6)
        np.testing.assert_allclose(np.clip(g, -limit, limit), expected, rtol=2e-6)
        updates, state = update(jnp.array([g]), state)
        w = optax.apply_updates(w, updates)
        np.testing.assert_allclose(w, weight, rtol=0, atol=1.5e-9)


def test_clipped_adam_state_keeps_its_form_and_low_precision_its_dtype():
    parameters = {"a": jnp.ones(3, jnp.bfloat16), "b": jnp.ones((2, 2))}
    optimizer = clipped_adam(optax.constant_schedule(1e-3))
    state = optimizer.init(parameters)
    describe = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)  # noqa: E731
    update, after = jax.jit(optimizer.update)(parameters, state)
    assert describe(after) == describe(state)
    assert describe(update) == describe(parameters)
    assert state[0].rms.nu["a"].dtype == jnp.float32


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.999])
def test_clipped_adam_takes_its_numbers_from_the_state(decay):
    """As ``optax.inject_hyperparams`` hands them, traced."""
    gradients = {"w": jnp.array([1.0, -2.0])}
    injected = optax.inject_hyperparams(clipped_adam)(learning_rate=0.1, b2=decay)
    plain = clipped_adam(0.1, b2=decay)
    states = injected.init(gradients), plain.init(gradients)
    for _ in range(2):
        found, first = jax.jit(injected.update)(gradients, states[0])
        expected, second = jax.jit(plain.update)(gradients, states[1])
        states = first, second
        # 1 - 0.999 in single precision
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), found, expected)
    state = states[0]._replace(hyperparams=states[0].hyperparams | {"b2": jnp.float32(1.5)})
    assert np.isnan(jax.jit(injected.update)(gradients, state)[0]["w"]).all()


def test_clipped_adam_refuses():
    with pytest.raises(ValueError, match=r"decay must be .* ≥ 0 and < 1, got 1"):
        scale_by_clipped_rms(decay=1)
