"""What a step does exactly, what it costs, and how chains run on many devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.battery import quick_jit
from zoo.energy import (
    hamiltonian_monte_carlo,
    langevin,
    metropolis_langevin,
    run_chain,
    sample_chain,
    stochastic_gradient_langevin,
    underdamped_langevin,
)
from zoo.energy.chains import energy_and_gradient, standard_normal
from zoo.training import make_mesh
from zoo.training.mesh import batch_sharding

KEY = jax.random.key(0)
START = jnp.array([[3.0, -4.0], [0.0, 0.5]])


def quadratic(x):
    return (x**2).sum(axis=-1) / 2


def hamiltonian(energy, step_size=0.1, num_leapfrog_steps=2, **options):
    return hamiltonian_monte_carlo(
        energy, step_size=step_size, num_leapfrog_steps=num_leapfrog_steps, **options
    )


def quartic(x):
    return (x**4 + x).sum(axis=-1) / 4


def after_step(sampler, start=START):
    return quick_jit(lambda x: sampler.step(KEY, sampler.init(x))[0].position)(start)


def test_clips_act_on_components_and_on_norms_chain_by_chain():
    still = dict(noise_scale=0.0)
    x = after_step(langevin(quadratic, step_size=10.0, gradient_clip=0.01, **still))
    np.testing.assert_allclose(x, START - 0.1 * jnp.sign(START), rtol=1e-6)
    x = after_step(langevin(quadratic, step_size=1.0, gradient_norm_clip=1.0, **still))
    np.testing.assert_allclose(x[0], START[0] * (1 - 1 / 5), rtol=1e-6)  # |(3, -4)| = 5
    np.testing.assert_allclose(x[1], 0.0, atol=1e-7)  # |(0, 0.5)| is within the bound


def test_noise_first_takes_the_gradient_at_the_noised_point():
    common = dict(step_size=0.3, noise_scale=0.2)
    noise = after_step(langevin(quadratic, **common)) - 0.7 * START
    assert float(jnp.abs(noise).min()) > 0
    noised_first = after_step(langevin(quadratic, noise_first=True, **common))
    np.testing.assert_allclose(noised_first, 0.7 * (START + noise), rtol=1e-5)


def test_one_leapfrog_step_is_the_adjusted_langevin_step():
    """Of h²/2: the same proposal and the same ratio, by another formula."""
    options = dict(temperature=0.7, preconditioner=np.array([0.5, 2.0], np.float32))
    one = hamiltonian(quartic, 0.4, 1, **options)
    other = metropolis_langevin(quartic, step_size=0.4**2 / 2, **options)
    (state, info), (expected, proposal) = quick_jit(
        lambda x: [sampler.step(KEY, sampler.init(x)) for sampler in (one, other)]
    )(jax.random.normal(KEY, (64, 2)))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), info, proposal
    )
    np.testing.assert_allclose(state.position, expected.position, rtol=1e-5, atol=1e-5)
    assert info.acceptance_probability.min() < 0.9


def test_leapfrog_goes_the_way_of_newton():
    """Steps are small: the end is that of the differential equation, the energy is kept."""
    sampler = hamiltonian(quadratic, 0.01, 100)
    state, info = quick_jit(lambda x: sampler.step(KEY, sampler.init(x)))(START)
    velocity = standard_normal(jax.random.split(KEY)[0], START)
    expected = np.cos(1.0) * START + np.sin(1.0) * velocity
    np.testing.assert_allclose(state.position, expected, atol=1e-4)
    np.testing.assert_allclose(info.acceptance_probability, 1, atol=1e-3)


def test_box_holds_and_info_is_of_the_point_of_the_gradient():
    sampler = langevin(quadratic, step_size=1.0, noise_scale=3.0, bounds=(0.0, 1.0))
    state, info = run_chain(KEY, sampler, sampler.init(jnp.full((64, 2), 0.5)), 5)
    assert 0 <= state.position.min() < state.position.max() <= 1
    np.testing.assert_allclose(info.energy[0], 0.25, rtol=1e-6)
    np.testing.assert_allclose(info.gradient_norm[0], np.sqrt(0.5), rtol=1e-6)


def test_reflection_folds_as_often_as_needed():
    targets = jnp.array([[-0.25], [1.25], [2.25], [-1.5], [0.5]])
    # A constant slope carries each chain from 0.5 to its target in one step.
    sampler = langevin(
        lambda x: ((0.5 - targets) * x).sum(axis=1),
        step_size=1.0,
        noise_scale=0.0,
        bounds=(0.0, 1.0),
        boundary="reflect",
    )
    x = after_step(sampler, jnp.full((5, 1), 0.5))
    np.testing.assert_allclose(x[:, 0], [0.25, 0.75, 0.25, 0.5, 0.5], atol=1e-6)


@pytest.mark.parametrize(
    ("make", "gradients"),
    [
        (lambda energy: langevin(energy, step_size=0.1), 5),
        # These keep the gradient of the start too.
        (lambda energy: metropolis_langevin(energy, step_size=0.1), 6),
        (lambda energy: underdamped_langevin(energy, step_size=0.1, friction=1.0), 6),
        (lambda energy: hamiltonian(energy, num_leapfrog_steps=3), 16),
    ],
    ids=["langevin", "metropolis", "underdamped", "hamiltonian"],
)
def test_a_step_costs_one_gradient(make, gradients):
    calls = []

    def energy(x):
        jax.debug.callback(lambda: calls.append(1))
        return quadratic(x)

    sampler = make(energy)
    jax.block_until_ready(run_chain(KEY, sampler, sampler.init(START), 5))
    jax.effects_barrier()
    assert len(calls) == gradients


def test_chain_is_its_steps_and_thinning_keeps_every_nth():
    sampler = langevin(quadratic, step_size=0.1)
    start, step = sampler.init(START), jax.jit(sampler.step)
    state = start
    for number in range(4):
        state, info = step(jax.random.fold_in(KEY, number), state)
    run, infos = run_chain(KEY, sampler, start, 4)
    np.testing.assert_allclose(run.position, state.position, rtol=1e-6)
    np.testing.assert_allclose(infos.energy[-1], info.energy, rtol=1e-6)
    end, positions, infos = sample_chain(KEY, sampler, start, num_samples=3, thinning=4)
    assert positions.shape == (3, 2, 2)
    assert infos.energy.shape == (3, 4, 2)
    np.testing.assert_array_equal(positions[-1], end.position)
    first, _ = run_chain(jax.random.fold_in(KEY, 0), sampler, start, 4)
    np.testing.assert_allclose(positions[0], first.position, rtol=1e-6)


def test_position_may_be_any_tree():
    def energy(position):
        return (position["a"] ** 2).sum(axis=(1, 2)) + jnp.abs(position["b"])

    position = {"a": jnp.ones((3, 2, 2)), "b": jnp.ones(3)}
    for sampler in (
        langevin(energy, step_size=0.1, gradient_norm_clip=1.0),
        metropolis_langevin(energy, step_size=0.1),
        underdamped_langevin(energy, step_size=0.1, friction=1.0),
        hamiltonian(energy, preconditioner={"a": jnp.ones((2, 2)), "b": 2.0}),
    ):
        state, info = jax.eval_shape(lambda x, s=sampler: s.step(KEY, s.init(x)), position)
        assert jax.tree.map(jnp.shape, state.position) == jax.tree.map(jnp.shape, position)
        assert info.energy.shape == (3,)


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

    x = after_step(langevin(energy, step_size=0.1))
    assert np.isnan(x[0]).all()
    assert np.isfinite(x[1]).all()


def broken(x):
    """The energy of the first chain is NaN, its gradient is not."""
    return quadratic(x) + jax.lax.stop_gradient(jnp.where(x[:, 0] > 2, jnp.nan, 0.0))


def endless(x):
    """A component of its gradient is infinite."""
    infinite = jnp.where(x[:, :1] > 2, jnp.inf, 0.0) * (x - jax.lax.stop_gradient(x))
    return quadratic(x) + jnp.where(x[:, 0] > 2, infinite[:, 0], 0.0)


@pytest.mark.parametrize("energy", [broken, endless])
@pytest.mark.parametrize(
    "make",
    [
        lambda energy: langevin(energy, step_size=0.1, bounds=(-9.0, 9.0)),
        lambda energy: langevin(energy, step_size=0.1, bounds=(-9.0, 9.0), boundary="reflect"),
        lambda energy: langevin(energy, step_size=0.1, gradient_clip=0.1, noise_first=True),
        lambda energy: langevin(energy, step_size=0.1, gradient_norm_clip=0.1),
        lambda energy: underdamped_langevin(energy, step_size=0.1, friction=1.0),
        lambda energy: metropolis_langevin(energy, step_size=0.1),
        hamiltonian,
    ],
    ids=["clip", "reflect", "component", "norm", "underdamped", "metropolis", "hamiltonian"],
)
def test_what_is_not_finite_makes_its_own_chain_nan(make, energy):
    x = after_step(make(energy))
    assert np.isnan(x[0]).all()
    assert np.isfinite(x[1]).all()


def test_a_step_that_is_not_possible_gives_nan_under_jit():
    """Traced values cannot be refused."""

    def makes(h):
        def falling(step):
            return h * (step + 1)

        yield langevin(quadratic, step_size=h)
        yield langevin(quadratic, step_size=falling)
        yield langevin(quadratic, step_size=0.1, noise_scale=h)
        yield langevin(quadratic, step_size=0.1, temperature=h)
        yield langevin(quadratic, step_size=0.1, gradient_clip=h)
        yield langevin(quadratic, step_size=0.1, bounds=(0.0, h))
        yield metropolis_langevin(quadratic, step_size=h)
        yield metropolis_langevin(quadratic, step_size=0.1, temperature=h)
        yield hamiltonian(quadratic, h)
        yield hamiltonian(quadratic, temperature=h)
        yield hamiltonian(quadratic, preconditioner=jnp.maximum(h, 0))
        yield underdamped_langevin(quadratic, step_size=h, friction=1.0)
        yield underdamped_langevin(quadratic, step_size=0.1, friction=h)

    ends = quick_jit(lambda h: [s.step(KEY, s.init(START))[0].position for s in makes(h)])
    assert all(np.isnan(x).all() for x in ends(-1.0))
    assert all(np.isfinite(x).all() for x in ends(0.5))


def test_a_large_gradient_has_its_norm():
    sampler = langevin(lambda x: 1e30 * x.sum(axis=1), step_size=1e-30, gradient_norm_clip=1.0)
    _, info = sampler.step(KEY, sampler.init(START))
    np.testing.assert_allclose(info.gradient_norm, np.sqrt(2) * 1e30, rtol=1e-6)


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [((0.0, np.inf), 0.25), ((-np.inf, -1.0), -1.75), ((-np.inf, np.inf), -0.25)],
)
def test_a_wall_at_infinity_reflects_nothing(bounds, expected):
    sampler = langevin(
        lambda x: 0.75 * x[:, 0],
        step_size=1.0,
        noise_scale=0.0,
        bounds=bounds,
        boundary="reflect",
    )
    np.testing.assert_allclose(after_step(sampler, jnp.full((1, 1), 0.5)), expected)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_nothing_moves_nothing(shape):
    for sampler in (
        langevin(quadratic, step_size=0.1, gradient_norm_clip=1.0),
        metropolis_langevin(quadratic, step_size=0.1),
        underdamped_langevin(quadratic, step_size=0.1, friction=1.0),
        hamiltonian(quadratic),
    ):
        x, info = quick_jit(lambda x, s=sampler: s.step(KEY, s.init(x)))(jnp.zeros(shape))
        assert x.position.shape == shape
        assert info.energy.shape == shape[:1]


def test_data_may_be_numpy_and_is_copied():
    data = np.arange(4.0, dtype=np.float32)
    sampler = stochastic_gradient_langevin(
        quadratic,
        lambda x, d: (x[:, :1] - d[None]) ** 2,
        data,
        minibatch_size=2,
        step_size=0.01,
    )
    expected, _ = run_chain(KEY, sampler, sampler.init(START), 2)
    data[:] = 1e6
    found, _ = run_chain(KEY, sampler, sampler.init(START), 2)
    np.testing.assert_array_equal(found.position, expected.position)


def test_walls_are_never_entered_by_the_adjusted_samplers():
    def half_line(outside):
        return lambda x: jnp.where(x[:, 0] < 0, outside, x[:, 0])

    samplers = [
        make(half_line(outside), step_size=1.0)
        for make in (metropolis_langevin, hamiltonian)
        for outside in (np.inf, np.nan)
    ]
    runs = quick_jit(lambda x: [run_chain(KEY, s, s.init(x), 50) for s in samplers])
    for state, info in runs(jnp.ones((256, 1))):
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


UNADJUSTED = langevin(quadratic, step_size=0.1)
BAD_OPTIONS = {
    "step": (lambda: langevin(quadratic, step_size=0), "step_size must be .* > 0, got 0"),
    "noise": (
        lambda: langevin(quadratic, step_size=1.0, noise_scale=-1.0),
        "noise_scale must be .* ≥ 0, got -1.0",
    ),
    "cold": (
        lambda: langevin(quadratic, step_size=1.0, temperature=-1.0),
        "temperature must be .* ≥ 0, got -1.0",
    ),
    "clip": (
        lambda: langevin(quadratic, step_size=1.0, gradient_clip=0.0),
        "gradient_clip must be .* > 0",
    ),
    "bounds": (
        lambda: langevin(quadratic, step_size=1.0, bounds=(1.0, 0.0)),
        r"low < high, got \(1.0, 0.0\)",
    ),
    "wall": (
        lambda: langevin(quadratic, step_size=1.0, boundary="wrap"),
        "'clip', 'reflect'; got 'wrap'",
    ),
    "no temperature": (
        lambda: metropolis_langevin(quadratic, step_size=0.1, temperature=0),
        "temperature must be .* > 0, got 0",
    ),
    "no time": (lambda: hamiltonian(quadratic, 0), "step_size must be .* > 0, got 0"),
    "no leapfrog": (
        lambda: hamiltonian(quadratic, num_leapfrog_steps=0),
        "num_leapfrog_steps must be at least 1, got 0",
    ),
    "friction": (
        lambda: underdamped_langevin(quadratic, step_size=0.1, friction=0),
        "friction must be .* > 0, got 0",
    ),
    "no data": (
        lambda: stochastic_gradient_langevin(
            quadratic, quadratic, jnp.zeros((0, 1)), minibatch_size=1, step_size=0.1
        ),
        r"data must hold arrays \[N, ...\] of one N > 0, got first axes",
    ),
    "steps": (lambda: run_chain(KEY, UNADJUSTED, None, -1), "num_steps must be at least 0, got -1"),
    "thinning": (
        lambda: sample_chain(KEY, UNADJUSTED, None, num_samples=1, thinning=0),
        "thinning must be at least 1, got 0",
    ),
}


@pytest.mark.parametrize(("call", "message"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_bad_options(call, message):
    with pytest.raises(ValueError, match=message):
        call()


BAD_ENERGIES = {
    "summed": (lambda x: (x**2).sum(), START, ValueError, r"expected shape \(2,\), got \(\)"),
    "not summed": (lambda x: x**2, START, ValueError, r"expected shape \(2,\), got \(2, 2\)"),
    "integers": (lambda x: jnp.zeros(2, int), START, TypeError, "floating-point .* got int32"),
    "integer position": (quadratic, START.astype(int), TypeError, "position must be floating"),
    "no batch": (quadratic, jnp.float32(1.0), ValueError, r"expected leaves \[B, ...\]"),
    "no arrays": (quadratic, (), ValueError, r"of one B, got shapes \[\]"),
    "two batches": (quadratic, (START, START[:1]), ValueError, "of one B, got shapes"),
}


@pytest.mark.parametrize(
    ("energy", "position", "error", "message"), BAD_ENERGIES.values(), ids=BAD_ENERGIES
)
def test_bad_energies_and_positions(energy, position, error, message):
    with pytest.raises(error, match=message):
        energy_and_gradient(energy, position)
