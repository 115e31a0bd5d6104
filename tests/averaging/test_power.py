"""Power-law averages against their definition, and reconstruction against averages that were kept.

Numbers of the paper: arXiv 2312.02696, section 3.1: γ = 6.94 for 10 %, 16.97 for 5 %.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate

from tests.battery import quick_jit
from zoo.averaging import post_hoc_average, power_law_ema
from zoo.averaging.power import LARGEST_RELATIVE_STD, post_hoc_weights, power_law_exponent

STEPS = 2000
STORED = [(step, std) for step in range(100, STEPS + 1, 100) for std in (0.05, 0.1)]


def density(exponent, time=1.0):
    return lambda x: (exponent + 1) * x**exponent / time ** (exponent + 1) if x <= time else 0.0


@pytest.mark.parametrize(("relative_std", "exponent"), [(0.10, 6.94), (0.05, 16.97)])
def test_exponents_of_the_paper(relative_std, exponent):
    assert power_law_exponent(relative_std) == pytest.approx(exponent, abs=5e-3)


def test_largest_width():
    exponents = np.linspace(-0.9, 2, 100_001)
    widths = np.sqrt((exponents + 1) / ((exponents + 2) ** 2 * (exponents + 3)))
    assert pytest.approx(widths.max(), rel=1e-9) == LARGEST_RELATIVE_STD
    assert power_law_exponent(LARGEST_RELATIVE_STD - 1e-9) == pytest.approx(
        exponents[widths.argmax()], abs=1e-3
    )


@functools.cache
def averages_of_noise():
    """8 random walks, and their power-law averages every 100 steps, by width."""
    walk = np.random.default_rng(0).normal(size=(STEPS, 8)).cumsum(axis=0).astype(np.float32)
    averages = {std: power_law_ema(std) for std in (0.05, 0.1, 0.07, 0.15, 0.2)}

    @quick_jit
    def run(walk):
        def step(states, values):
            states = {
                std: average.update(jnp.zeros_like(values), states[std], values)[1]
                for std, average in averages.items()
            }
            return states, {std: state.average for std, state in states.items()}

        start = {std: average.init(walk[0]) for std, average in averages.items()}
        return jax.lax.scan(step, start, walk)[1]

    return walk, {std: np.asarray(found)[99::100] for std, found in run(walk).items()}


@pytest.mark.parametrize("relative_std", [0.05, 0.2])
def test_average_is_its_weighted_sum(relative_std):
    """The share of step τ is (τ^(γ+1) - (τ-1)^(γ+1)) / t^(γ+1): the integral of the profile."""
    walk, found = averages_of_noise()
    order = power_law_exponent(relative_std) + 1
    for t in (100, STEPS):
        edges = (np.arange(t + 1) / t) ** order
        expected = np.diff(edges) @ walk[:t].astype(np.float64)
        actual = found[relative_std][t // 100 - 1]
        np.testing.assert_allclose(actual, expected, atol=2e-5 * np.abs(walk).max())


@pytest.mark.parametrize(
    ("relative_std", "step"), [(0.07, STEPS), (0.15, STEPS), (0.2, STEPS), (0.15, 1500)]
)
def test_reconstruction_equals_the_average_that_was_kept(relative_std, step):
    """20 snapshots of two widths; the error is measured in the spread of the walk itself."""
    walk, found = averages_of_noise()
    averages = [found[std][step // 100 - 1] for step, std in STORED]
    steps, stds = zip(*STORED, strict=True)
    actual = post_hoc_average(averages, steps, stds, step=step, relative_std=relative_std)
    expected = found[relative_std][step // 100 - 1]
    error = np.abs(actual - expected).max()
    assert error < 3e-3 * walk.std()
    wrong = np.abs(found[0.1][step // 100 - 1] - expected).max()
    assert wrong > 10 * error  # the nearest stored one would not do


def test_a_stored_average_is_its_own_reconstruction():
    weights = post_hoc_weights([100, 200, 300], [0.05, 0.1, 0.1], step=200, relative_std=0.1)
    np.testing.assert_allclose(weights, [0, 1, 0], atol=1e-9)


def test_overlaps_are_integrals():
    """The normal equations under Σ x = 1, set up once more by numerical integration."""
    times, stds = np.array([0.4, 0.7, 1.0]), np.array([0.1, 0.2, 0.05])
    profiles = [density(power_law_exponent(s), t) for s, t in zip(stds, times, strict=True)]
    wanted = density(power_law_exponent(0.15), 0.9)

    def overlap(p, q):
        return integrate.quad(lambda x: p(x) * q(x), 0, 1, points=[0.4, 0.7, 0.9], limit=200)[0]

    gram = np.array([[overlap(p, q) for q in profiles] for p in profiles])
    system = np.block([[gram, np.ones((3, 1))], [np.ones((1, 3)), np.zeros((1, 1))]])
    right = [*(overlap(p, wanted) for p in profiles), 1]
    expected = np.linalg.solve(system, right)[:3]
    actual = post_hoc_weights(times, stds, step=0.9, relative_std=0.15)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@given(st.integers(3, 30), st.floats(0.04, 0.25))
def test_weights_sum_to_one_and_stay_small(count, relative_std):
    """Rounding of the stored parameters is magnified by no more than the sum of sizes."""
    steps = np.repeat(np.arange(1, count + 1) * 100.0, 2)
    weights = post_hoc_weights(
        steps, [0.05, 0.1] * count, step=steps[-1], relative_std=relative_std
    )
    assert weights.sum() == pytest.approx(1, abs=1e-6)
    assert np.abs(weights).sum() < 100


def test_dtypes_and_counters():
    averages = [
        {"kernel": jnp.asarray([1.0, 2.0], jnp.bfloat16), "seen": jnp.int32(n)} for n in (1, 2)
    ]
    combined = post_hoc_average(averages, [100, 200], [0.1, 0.1], relative_std=0.1)
    np.testing.assert_allclose(combined["kernel"].astype(jnp.float32), [1, 2])
    assert combined["kernel"].dtype == jnp.bfloat16
    assert combined["seen"] == 2


@pytest.mark.parametrize("relative_std", [0, -0.1, 0.31, np.nan])
def test_width_out_of_range(relative_std):
    with pytest.raises(ValueError, match=r"relative_std .* number > 0 and < 0\.300283, got"):
        power_law_ema(relative_std)


@pytest.mark.parametrize(
    ("steps", "stds", "step", "message"),
    [
        ([100, 200], [0.1], 200, r"relative_stds must have shape \[N\], where N is 2 in steps"),
        ([100], [0.1], 100, r"steps must have shape \[N\], where N is 2 in averages; got \[1\]"),
        ([100, 200], [0.1, 0.1], 300, r"step in \(0, max\(steps\)\].* got step=300"),
        ([0, 200], [0.1, 0.1], 100, "steps must be positive"),
        ([100, 200], [0.1, 0.5], 100, "relative_std must be"),
    ],
)
def test_bad_reconstruction(steps, stds, step, message):
    with pytest.raises(ValueError, match=message):
        post_hoc_average([jnp.ones(2)] * 2, steps, stds, step=step, relative_std=0.1)
    with pytest.raises(ValueError, match="steps must be positive"):
        post_hoc_weights([], [], step=1, relative_std=0.1)
