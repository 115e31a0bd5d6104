"""R̂ and effective sample sizes: those of ArviZ, of known laws, and what stuck chains give."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import lfilter

from zoo.energy import chain_agreement

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden/arviz.json").read_text())


def autoregression(coefficient, noise):
    return lfilter([1.0], [1.0, -coefficient], noise, axis=0)


def series(steps, chains):
    """``[S, B, …]``: series of every kind, by name."""
    generator = np.random.RandomState(0)
    noise = generator.normal(size=(steps, chains))
    last = np.arange(chains) == chains - 1
    found = {
        "normal": noise,
        "autoregressive": autoregression(0.8, noise),
        "antithetic": autoregression(-0.2, noise),
        "more than independent": autoregression(-0.7, noise),
        "heavy tails": generator.standard_cauchy(size=noise.shape),
        "one wider": noise * (1 + 2 * last),
        "one apart": noise + 2 * last,
        "one far away": noise / 100 + 1e4 * last,
        "huge": noise * 1e31,
        "ties": np.round(noise),
        "coin": np.where(np.arange(steps)[:, None] % 3 == 1, -1, np.sign(noise)),
        "trend": noise / 5 + np.linspace(0, 1, steps)[:, None],
    }
    return {name: np.asarray(values, np.float32) for name, values in found.items()}


@pytest.mark.parametrize("shape", GOLDEN["numbers"])
def test_numbers_are_those_of_arviz(shape):
    found = series(*map(int, shape.split(" × ")))
    agreement = chain_agreement(np.stack([*found.values()], axis=-1))
    expected = np.array([GOLDEN["numbers"][shape][name] for name in found]).T
    np.testing.assert_allclose(np.array(agreement), expected, rtol=1e-4)


def test_chains_that_stay_do_not_agree():
    steps, chains = 100, 4
    noise = np.random.default_rng(0).normal(size=(steps, chains)).astype(np.float32)
    stuck, apart, broken = [], [], []
    for constant in (np.float32(0.1), np.float32(1e4 / 3)):  # no mean of these is exact
        one, later = noise.copy(), noise.copy()
        one[:, 0] = later[steps // 2 :, 0] = constant
        stuck += [np.full_like(noise, constant)]
        apart += [stuck[-1] + np.arange(chains, dtype=np.float32), one, later]
    for value in (np.nan, np.inf):
        broken += [noise.copy()]
        broken[-1][3, 0] = value
    given = [*stuck, *broken, *apart, noise, noise * np.float32(1e-31)]
    found = np.array(chain_agreement(np.stack(given, axis=-1)))
    assert np.isnan(found[:, :4]).all()
    assert (found[0, 4:-2] == np.inf).all()
    assert np.isnan(found[1:, 4:-2]).all()
    # ArviZ takes what is spread less than 10⁻¹⁵ for constant.
    np.testing.assert_allclose(found[:, -1], found[:, -2], rtol=1e-5)


def test_shapes():
    found = jax.eval_shape(chain_agreement, jnp.zeros((9, 2, 3, 5)))
    assert {(leaf.shape, leaf.dtype.name) for leaf in found} == {((3, 5), "float32")}
    for shape in ((3, 4), (4,), (4, 0)):
        with pytest.raises(ValueError, match=r"must be \[S, B, \.\.\.\] with S ≥ 4 and B ≥ 1"):
            chain_agreement(jnp.zeros(shape))
