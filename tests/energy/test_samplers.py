"""What a step does exactly, what it costs, and how chains run on many devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.energy import (
    energy_and_gradient,
    langevin,
    metropolis_langevin,
    run_chain,
    sample_chain,
    underdamped_langevin,
)
from zoo.training import batch_sharding, make_mesh


def quadratic(x):
    return (x**2).sum(axis=-1) / 2


KEY = jax.random.key(0)
START = jnp.array([[3.0, -4.0], [0.0, 0.5]])


def moved(sampler, start=START):
    state, _ = sampler.step(KEY, sampler.init(start))
    return state.position


def test_component_clip_moves_exactly_step_times_bound():
    x = moved(langevin(quadratic, step_size=10.0, noise_scale=0.0, gradient_clip=0.01))
    np.testing.assert_allclose(x, START - 0.1 * jnp.sign(START), rtol=1e-6)


def test_norm_clip_is_chain_by_chain():
    x = moved(langevin(quadratic, step_size=1.0, noise_scale=0.0, gradient_norm_clip=1.0))
    np.testing.assert_allclose(x[0], START[0] * (1 - 1 / 5), rtol=1e-6)  # |(3, -4)| = 5
    np.testing.assert_allclose(x[1], 0.0, atol=1e-7)  # |(0, 0.5)| is within the bound


def test_noise_first_takes_the_gradient_at_the_noised_point():
    common = dict(step_size=0.3, noise_scale=0.2)
    after = moved(langevin(quadratic, **common))
    before = moved(langevin(quadratic, noise_first=True, **common))
    noise = after - 0.7 * START
    assert float(jnp.abs(noise).min()) > 0
    np.testing.assert_allclose(before, 0.7 * (START + noise), rtol=1e-5)


def test_box_holds_and_info_tells_of_the_point_of_the_gradient():
    sampler = langevin(quadratic, step_size=1.0, noise_scale=3.0, bounds=(0.0, 1.0))
    state, info = run_chain(KEY, sampler, sampler.init(jnp.full((64, 2), 0.5)), 5)
    assert 0 <= state.position.min() < state.position.max() <= 1
    np.testing.assert_allclose(info.energy[0], 0.25, rtol=1e-6)
    np.testing.assert_allclose(info.gradient_norm[0], np.sqrt(0.5), rtol=1e-6)


@pytest.mark.parametrize(
    ("x", "expected"), [(-0.25, 0.25), (1.25, 0.75), (2.25, 0.25), (-1.5, 0.5), (0.5, 0.5)]
)
def test_reflection_folds_as_often_as_needed(x, expected):
    # A constant slope carries the point from 0.5 to x in one step.
    sampler = langevin(
        lambda position: (0.5 - x) * position[:, 0],
        step_size=1.0,
        noise_scale=0.0,
        bounds=(0.0, 1.0),
        boundary="reflect",
    )
    np.testing.assert_allclose(moved(sampler, jnp.full((1, 1), 0.5)), expected, atol=1e-6)


def count_gradients(make):
    """Calls of the energy at run time, of a chain of 5 steps."""
    calls = []

    def energy(x):
        jax.debug.callback(lambda: calls.append(1))
        return (x**2).sum(axis=-1) / 2

    sampler = make(energy)
    jax.block_until_ready(run_chain(KEY, sampler, sampler.init(START), 5))
    jax.effects_barrier()
    return len(calls)


def test_a_step_costs_one_gradient():
    assert count_gradients(lambda energy: langevin(energy, step_size=0.1)) == 5
    # These keep the gradient of the start too.
    assert count_gradients(lambda energy: metropolis_langevin(energy, step_size=0.1)) == 6
    assert (
        count_gradients(lambda energy: underdamped_langevin(energy, step_size=0.1, friction=1.0))
        == 6
    )


def test_chain_is_its_steps_and_thinning_keeps_every_nth():
    sampler = langevin(quadratic, step_size=0.1)
    state = sampler.init(START)
    for number in range(4):
        state, info = sampler.step(jax.random.fold_in(KEY, number), state)
    run, infos = run_chain(KEY, sampler, sampler.init(START), 4)
    np.testing.assert_allclose(run.position, state.position, rtol=1e-6)
    np.testing.assert_allclose(infos.energy[-1], info.energy, rtol=1e-6)
    end, kept, infos = sample_chain(KEY, sampler, sampler.init(START), num_samples=3, thinning=4)
    assert kept.shape == (3, 2, 2)
    assert infos.energy.shape == (3, 4, 2)
    np.testing.assert_array_equal(kept[-1], end.position)
    first, _ = run_chain(jax.random.fold_in(KEY, 0), sampler, sampler.init(START), 4)
    np.testing.assert_allclose(kept[0], first.position, rtol=1e-6)


def test_position_may_be_any_tree():
    def energy(position):
        return (position["a"] ** 2).sum(axis=(1, 2)) + jnp.abs(position["b"])

    position = {"a": jnp.ones((3, 2, 2)), "b": jnp.ones(3)}
    for sampler in (
        langevin(energy, step_size=0.1, gradient_norm_clip=1.0),
        metropolis_langevin(energy, step_size=0.1),
        underdamped_langevin(energy, step_size=0.1, friction=1.0),
    ):
        state, info = run_chain(KEY, sampler, sampler.init(position), 3)
        assert jax.tree.map(jnp.shape, state.position) == jax.tree.map(jnp.shape, position)
        assert info.energy.shape == (3, 3)


def test_chains_on_eight_devices_are_those_on_one():
    sampler = langevin(quadratic, step_size=0.1)
    start = jax.random.normal(jax.random.key(1), (16, 2))
    mesh = make_mesh()
    expected, _ = run_chain(KEY, sampler, sampler.init(start), 10)
    placed = sampler.init(jax.device_put(start, batch_sharding(mesh)))
    actual, _ = run_chain(KEY, sampler, placed, 10)
    np.testing.assert_allclose(actual.position, expected.position, rtol=1e-6)
    assert actual.position.sharding.is_equivalent_to(batch_sharding(mesh), 2)


def test_one_broken_chain_leaves_the_others_alone():
    def energy(x):
        return jnp.where(x[:, 0] > 2, jnp.nan, 1.0) * (x**2).sum(axis=-1)

    sampler = langevin(energy, step_size=0.1)
    state, _ = run_chain(KEY, sampler, sampler.init(START), 2)
    assert np.isnan(state.position[0]).all()
    assert np.isfinite(state.position[1]).all()


def test_infinite_walls_are_never_entered_by_the_adjusted_sampler():
    def half_line(x):
        return jnp.where(x[:, 0] < 0, jnp.inf, x[:, 0])

    sampler = metropolis_langevin(half_line, step_size=1.0)
    state, info = run_chain(KEY, sampler, sampler.init(jnp.ones((256, 1))), 50)
    assert state.position.min() >= 0
    assert state.energy.max() < np.inf
    assert 0 < info.acceptance_probability.mean() < 1


def test_sampler_may_close_over_traced_parameters():
    """As in a training step: the energy's parameters are tracers there."""

    @jax.jit
    def end(theta):
        sampler = langevin(lambda x: theta * quadratic(x), step_size=0.1, noise_scale=0.0)
        return run_chain(KEY, sampler, sampler.init(START), 3)[0].position

    np.testing.assert_allclose(end(2.0), START * 0.8**3, rtol=1e-6)
    np.testing.assert_allclose(end(1.0), START * 0.9**3, rtol=1e-6)


BAD_OPTIONS = {
    "step": (dict(step_size=0), "step_size must be greater than 0, got 0"),
    "negative step": (dict(step_size=-1.0), "step_size must be greater than 0, got -1.0"),
    "noise": (dict(step_size=1.0, noise_scale=-1.0), "noise_scale must be at least 0, got -1.0"),
    "cold": (dict(step_size=1.0, temperature=-1.0), "temperature must be at least 0, got -1.0"),
    "clip": (dict(step_size=1.0, gradient_clip=0.0), "gradient_clip must be greater than 0"),
    "bounds": (dict(step_size=1.0, bounds=(1.0, 0.0)), r"low < high, got \(1.0, 0.0\)"),
    "wall": (dict(step_size=1.0, boundary="wrap"), "'clip' or 'reflect', got 'wrap'"),
}


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        langevin(quadratic, **options)


def test_bad_options_of_the_others():
    with pytest.raises(ValueError, match="temperature must be greater than 0, got 0"):
        metropolis_langevin(quadratic, step_size=0.1, temperature=0)
    with pytest.raises(ValueError, match="friction must be greater than 0, got 0"):
        underdamped_langevin(quadratic, step_size=0.1, friction=0)
    with pytest.raises(ValueError, match="num_steps must be at least 0, got -1"):
        run_chain(KEY, langevin(quadratic, step_size=0.1), None, -1)
    with pytest.raises(ValueError, match="thinning must be at least 1, got 0"):
        sample_chain(KEY, langevin(quadratic, step_size=0.1), None, num_samples=1, thinning=0)


BAD_ENERGIES = {
    "summed": (lambda x: (x**2).sum(), START, ValueError, r"expected shape \(2,\), got \(\)"),
    "not summed": (lambda x: x**2, START, ValueError, r"expected shape \(2,\), got \(2, 2\)"),
    "integers": (
        lambda x: jnp.zeros(2, int),
        START,
        TypeError,
        "must return floating-point energies, got int32",
    ),
    "integer position": (quadratic, START.astype(int), TypeError, "position must be floating"),
    "no batch": (quadratic, jnp.float32(1.0), ValueError, r"expected leaves \[B, ...\]"),
    "no arrays": (quadratic, (), ValueError, "got an empty tree"),
    "two batches": (quadratic, (START, START[:1]), ValueError, "of one B, got shapes"),
}


@pytest.mark.parametrize(
    ("energy", "position", "error", "message"), BAD_ENERGIES.values(), ids=BAD_ENERGIES
)
def test_bad_energies_and_positions(energy, position, error, message):
    with pytest.raises(error, match=message):
        energy_and_gradient(energy, position)
