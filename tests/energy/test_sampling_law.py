"""Every kernel against the law it is known to have, by p-values over independent chains.

All chains of a test are independent and only their ends are used, so that B ends are B independent
samples and the tests of variance and distribution are exact.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from zoo.energy import (
    adapt_step_size,
    chain_agreement,
    hamiltonian_monte_carlo,
    langevin,
    metropolis_langevin,
    run_chain,
    sample_chain,
    stochastic_gradient_langevin,
    underdamped_langevin,
)

CHAINS = 4096
LEAST = 1e-4  # p-value; seeds are fixed, so a test that passes always passes
STIFFNESS = jnp.array([1.0, 4.0])


def quadratic(x):
    return (STIFFNESS[None] * x**2).sum(axis=-1) / 2


def ends(sampler, *, num_steps, seed=0, start=None, chains=CHAINS):
    start = jnp.zeros((chains, 2)) if start is None else start
    state, _ = run_chain(jax.random.key(seed), sampler, sampler.init(start), num_steps)
    return np.asarray(state.position, np.float64)


def assert_normal(samples, variance, mean=0.0):
    """Mean, variance and shape of independent samples of N(mean, variance)."""
    count = len(samples)
    z = (samples.mean() - mean) / np.sqrt(variance / count)
    assert 2 * stats.norm.sf(abs(z)) > LEAST, f"mean {samples.mean()} for {mean}"
    ratio = ((samples - mean) ** 2).sum() / variance
    tail = 2 * min(stats.chi2.cdf(ratio, count), stats.chi2.sf(ratio, count))
    assert tail > LEAST, f"variance {samples.var()} for {variance}"
    assert stats.kstest((samples - mean) / np.sqrt(variance), "norm").pvalue > LEAST


def variance_of(stiffness, step, noise, noise_first=False):
    q = (1 - step * stiffness) ** 2
    return noise**2 * (q if noise_first else 1) / (1 - q)


@pytest.mark.parametrize(("noise_first", "noise_scale"), [(False, None), (True, 0.1)])
def test_unadjusted_langevin_has_the_law_of_its_discretisation(noise_first, noise_scale):
    step, temperature = 0.3, 0.5
    sampler = langevin(
        quadratic,
        step_size=step,
        temperature=temperature,
        noise_scale=noise_scale,
        noise_first=noise_first,
    )
    x = ends(sampler, num_steps=60)
    noise = np.sqrt(2 * step * temperature) if noise_scale is None else noise_scale
    for column, stiffness in enumerate((1.0, 4.0)):
        assert_normal(x[:, column], variance_of(stiffness, step, noise, noise_first))
    # The published check: step 0.3, noise 0.1, stiffness 1 give 0.00961, noise first.
    assert variance_of(1.0, 0.3, 0.1, noise_first=True) == pytest.approx(0.00961, abs=5e-6)


def test_preconditioner_changes_the_pace_and_not_the_law():
    sampler = langevin(quadratic, step_size=0.2, preconditioner=1 / STIFFNESS)
    x = ends(sampler, num_steps=40)
    for column, stiffness in enumerate((1.0, 4.0)):
        # In units of the standard deviation both components make the same steps.
        assert_normal(x[:, column], 1 / (stiffness * (1 - 0.2 / 2)))


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (metropolis_langevin, {"step_size": 0.4}),
        (hamiltonian_monte_carlo, {"step_size": 0.6, "num_leapfrog_steps": 3}),
    ],
)
def test_adjusted_samplers_are_exact_at_any_step(make, options):
    metric = jnp.array([0.5, 0.3])
    sampler = make(quadratic, temperature=0.5, preconditioner=metric, **options)
    x = ends(sampler, num_steps=60)
    for column, stiffness in enumerate((1.0, 4.0)):
        assert_normal(x[:, column], 0.5 / stiffness)


def test_adjusted_langevin_on_a_double_well():
    """Two unequal wells: the law on a grid, by χ² over its deciles."""

    def double_well(x):
        return ((x**2 - 1) ** 2 * 2 + x / 2).sum(axis=-1)

    grid = np.linspace(-3, 3, 6001)
    weights = np.exp(-(2 * (grid**2 - 1) ** 2 + grid / 2))
    distribution = np.cumsum(weights) / weights.sum()
    edges = np.interp(np.linspace(0.1, 0.9, 9), distribution, grid)
    # A spread start: half the work of crossing is done.
    start = jnp.linspace(-1.5, 1.5, CHAINS)[:, None]
    sampler = metropolis_langevin(double_well, step_size=0.15)
    x = ends(sampler, num_steps=400, start=start)[:, 0]
    counts = np.bincount(np.searchsorted(edges, x), minlength=10)
    assert stats.chisquare(counts).pvalue > LEAST
    assert 0.5 < distribution[3000] < 0.75  # the left well is heavier: not a symmetric toy


@pytest.mark.slow
def test_adapted_steps_are_accepted_as_often_as_wanted():
    """From steps that are 10⁵ times too small or too large; then the law is exact."""

    def make(step_size):
        return hamiltonian_monte_carlo(quadratic, step_size=step_size, num_leapfrog_steps=4)

    found = []
    for first in (1e-5, 1e5):
        start = jnp.zeros((CHAINS, 2))
        adapted = adapt_step_size(jax.random.key(0), make, start, num_steps=300, step_size=first)
        found.append(float(adapted.step_size))
        late = np.asarray(adapted.info.acceptance_probability)[200:]
        assert late.mean() == pytest.approx(0.8, abs=0.04)
    assert found[0] == pytest.approx(found[1], rel=0.15)
    x = ends(make(found[0]), num_steps=30, start=adapted.state.position)
    for column, stiffness in enumerate((1.0, 4.0)):
        assert_normal(x[:, column], 1 / stiffness)


def test_underdamped_positions_are_exact_on_quadratics_and_velocities_as_stated():
    step, temperature = 0.8, 0.5
    sampler = underdamped_langevin(quadratic, step_size=step, friction=1.0, temperature=temperature)
    state, _ = run_chain(jax.random.key(0), sampler, sampler.init(jnp.zeros((CHAINS, 2))), 60)
    x, v = (np.asarray(part, np.float64) for part in (state.position, state.velocity))
    for column, stiffness in enumerate((1.0, 4.0)):
        assert_normal(x[:, column], temperature / stiffness)
        assert_normal(v[:, column], temperature * (1 - step**2 * stiffness / 4))


def test_reflection_keeps_the_law_in_the_box_and_clipping_piles_up_at_the_walls():
    flat = dict(step_size=0.01, noise_scale=0.2, bounds=(-1.0, 2.0))
    reflected = ends(
        langevin(lambda x: 0 * x.sum(axis=-1), boundary="reflect", **flat), num_steps=400
    )
    for column in range(2):
        assert stats.kstest((reflected[:, column] + 1) / 3, "uniform").pvalue > LEAST
    clipped = ends(langevin(lambda x: 0 * x.sum(axis=-1), **flat), num_steps=400)
    assert clipped.min() == -1
    assert clipped.max() == 2
    assert np.isin(clipped, [-1, 2]).mean() > 0.05


def test_schedules_follow_the_step_number():
    """Temperature 0 in the end: what noise there was has died away."""
    sampler = langevin(
        quadratic,
        step_size=lambda step: 0.1 + 0.1 * (step >= 50),
        temperature=lambda step: jnp.where(step < 50, 1.0, 0.0),
    )
    start = sampler.init(jnp.ones((4, 2)))
    state, _ = run_chain(jax.random.key(0), sampler, start, 50)
    later, _ = run_chain(jax.random.key(1), sampler, state, 3)
    factor = (1 - 0.2 * STIFFNESS[None]) ** 3
    np.testing.assert_allclose(later.position, state.position * factor, rtol=1e-5)
    assert int(later.step) == 53


def test_minibatch_langevin_samples_the_posterior():
    """The mean of a normal: prior N(0, 1), N examples of variance 1."""
    data = 1.0 + jax.random.normal(jax.random.key(9), (20,))
    precision = 1.0 + 20
    mean = float(data.sum() / precision)
    step = 0.1 / precision
    sampler = stochastic_gradient_langevin(
        lambda x: (x**2).sum(axis=-1) / 2,
        lambda x, d: (x - d[None]) ** 2 / 2,
        data,
        minibatch_size=10,
        step_size=step,
    )
    # The chains share their minibatches: keep every chain's noise, average over many steps.
    _, x, _ = sample_chain(
        jax.random.key(0),
        sampler,
        sampler.init(jnp.full((256, 1), mean)),
        num_samples=400,
        thinning=5,
    )
    x = np.asarray(x[20:, :, 0], np.float64)
    assert x.mean() == pytest.approx(mean, abs=0.01)
    # x' = (1 - h·precision)·x + noise; a minibatch's mean has the variance s²/n around the data's.
    shrink = (1 - step * precision) ** 2
    gradient_noise = (step * 20) ** 2 * float(data.var()) / 10
    expected = (2 * step + gradient_noise) / (1 - shrink)
    assert x.var() == pytest.approx(expected, rel=0.05)


@pytest.mark.slow
def test_kernels_agree_with_blackjax():
    """Early in the chain, where both laws still depend on the start: two samples of one law."""
    blackjax = pytest.importorskip("blackjax", reason="needs blackjax")
    chains, num_steps, step_size = 2048, 5, 0.3

    def log_density(x):
        return -quadratic(x[None])[0]

    adjusted = blackjax.mala(log_density, step_size)
    hamiltonian = blackjax.hmc(log_density, step_size, np.ones(2, np.float32), 3)
    unadjusted = blackjax.sgld(lambda x, batch: jax.grad(log_density)(x))

    @jax.jit
    def theirs(start):
        def step(carry, key):
            *states, x = carry
            keys = jax.random.split(key, chains)
            moved = [
                jax.vmap(kernel.step)(keys, state)
                for kernel, state in zip(kernels, states, strict=True)
            ]
            x = jax.vmap(lambda k, x: unadjusted.step(k, x, (), step_size))(keys, x)
            return (*[m[0] for m in moved], x), [m[1].acceptance_rate for m in moved]

        kernels = adjusted, hamiltonian
        carry = (*[jax.vmap(kernel.init)(start) for kernel in kernels], start)
        keys = jax.random.split(jax.random.key(5), num_steps)
        (*states, x), accepted = jax.lax.scan(step, carry, keys)
        return [*[state.position for state in states], x], accepted

    start = jnp.full((chains, 2), 1.5)
    their_ends, their_acceptance = jax.tree.map(np.asarray, theirs(start))
    our_ends, our_acceptance = [], []
    for sampler in (
        metropolis_langevin(quadratic, step_size=step_size),
        hamiltonian_monte_carlo(quadratic, step_size=step_size, num_leapfrog_steps=3),
    ):
        state, info = run_chain(jax.random.key(0), sampler, sampler.init(start), num_steps)
        our_ends.append(np.asarray(state.position))
        our_acceptance.extend(np.asarray(info.acceptance_probability))
    sampler = langevin(quadratic, step_size=step_size)
    our_ends.append(ends(sampler, num_steps=num_steps, start=start))
    for ours, others in zip(our_ends, their_ends, strict=True):
        for column in range(2):
            assert stats.ks_2samp(ours[:, column], others[:, column]).pvalue > LEAST
    for ours, others in zip(our_acceptance, np.concatenate(their_acceptance), strict=True):
        spread = np.hypot(ours.std(), others.std()) / np.sqrt(chains)
        assert abs(ours.mean() - others.mean()) < 4 * spread + 1e-6


@pytest.mark.slow
def test_kept_positions_suit_the_diagnostics_of_blackjax():
    """On a quadratic the chain is autoregressive: its effective sample size is known."""
    diagnostics = pytest.importorskip("blackjax.diagnostics", reason="needs blackjax")
    sampler = langevin(lambda x: (x**2).sum(axis=-1) / 2, step_size=0.4)
    start = sampler.init(jnp.zeros((8, 1)))
    _, x, _ = sample_chain(jax.random.key(0), sampler, start, num_samples=1000)
    expected = x.size * (1 - 0.6) / (1 + 0.6)
    with jax.numpy_rank_promotion("allow"):
        found = [
            float(jax.jit(lambda x, f=f: f(x, chain_axis=1, sample_axis=0))(x))
            for f in (diagnostics.rhat, diagnostics.ess_bulk, diagnostics.ess_tail)
        ]
    assert found[:2] == [pytest.approx(1, abs=0.01), pytest.approx(expected, rel=0.2)]
    r_hat, of_mean, *of_bulk_and_tail = (float(leaf[0]) for leaf in chain_agreement(x))
    assert [r_hat, *of_bulk_and_tail] == pytest.approx(found, rel=1e-3)
    assert of_mean == pytest.approx(expected, rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_rounded_once_a_step(dtype):
    """Steps that are small beside the spacing of the numbers keep their law."""
    sampler = metropolis_langevin(lambda x: (x**2).sum(axis=-1) / 2, step_size=0.01)
    start = jax.random.normal(jax.random.key(1), (CHAINS, 2)).astype(dtype)
    x = ends(sampler, num_steps=300, start=start)
    x = x + 2.0**-9 * np.random.default_rng(0).uniform(-1, 1, x.shape) * np.abs(x)  # no ties
    assert_normal(x[:, 0], 1.0)
