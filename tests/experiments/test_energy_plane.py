"""Energies on the plane: exact densities, their divergence, and chains that learn one."""

import json
import pathlib

import numpy as np
import pytest
from scipy.special import softmax

from experiments.energy_plane import figures, train
from experiments.energy_plane.config import Config
from tests.battery import quick_jit


def test_targets_and_divergence_on_the_grid():
    cells = train.grid(200)
    radius = np.linalg.norm(cells, axis=2)
    rings = train.normalized(train.rings(cells))
    assert (rings * (radius < 1.05)).sum() == pytest.approx(0.5, abs=0.01)
    mixture = train.normalized(train.mixture(cells))
    assert (mixture * (cells[..., 0] > 0)).sum() == pytest.approx(0.5, abs=1e-6)
    # A normal law read at another temperature: KL = log τ + 1/τ - 1 in two dimensions.
    energy = radius**2 / (2 * 0.3**2)
    exact = softmax(-energy)
    assert train.divergence(exact, energy) == pytest.approx(0, abs=1e-12)
    for temperature in (0.5, 2.0):
        expected = np.log(temperature) + 1 / temperature - 1
        found = train.divergence(exact, energy, temperature)
        assert found == pytest.approx(expected, abs=1e-3)


def parts(learner):
    """Its seeds, and the function of seeds, cells and temperature, compiled quickly."""
    return learner.args, quick_jit(learner.func.__wrapped__)


@pytest.mark.slow
def test_persistent_chains_learn_a_density_at_their_temperature():
    """A broad normal law: the energy of chains at a quarter is to be read at a quarter."""
    config = Config(features=16, steps=300, learning_rate=5e-3, step_size=0.05, cells=40, runs=1)
    radius = np.linalg.norm(train.grid(config.cells), axis=2)
    exact = softmax(-(radius**2) / (2 * 0.6**2))
    seeds, learn = parts(train.make_learner(config, 5, persistent=True))
    for temperature in (1.0, 0.25):
        (energy,) = np.asarray(learn(*seeds, exact, temperature))
        assert train.divergence(exact, energy, temperature) < 0.1
    assert train.divergence(exact, energy) > 0.3


@pytest.mark.slow
def test_smoke_reaches_what_it_must(smoke):
    summary, expected = smoke("energy_plane", "densities", "temperature")
    for name, most in expected["persistent_kl_at_most"].items():
        assert summary["divergence"][name]["persistent, 10 steps"]["mean"] <= most


def test_every_number_has_its_runs():
    """Runs are those of consecutive seeds; the table says mean and deviation."""
    config = Config(features=4, steps=2, batch_size=8, cells=5, seed=7, runs=2)
    exact, ((seeds,), learn) = np.full((5, 5), 1 / 25), parts(train.make_learner(config, 1))
    np.testing.assert_array_equal(seeds, [7, 8])
    both, following = np.asarray(learn(seeds, exact, 1.0)), np.asarray(learn(seeds + 1, exact, 1.0))
    np.testing.assert_allclose(both[1], following[0], rtol=1e-5)
    assert not np.allclose(both[0], both[1])
    assert train.said(train.spread([1.0, 2.0])) == "1.500 ± 0.707"
    assert train.said(train.spread([1.0])) == "1.000"


def test_the_tables_are_those_of_the_runs():
    """The README's numbers are in ``results.json``, which two runs of the default wrote."""
    folder = pathlib.Path(train.__file__).parent
    text = " ".join((folder / "README.md").read_text().split())
    versions = json.loads((folder / "results.json").read_text())
    for kind in versions["0.10.2"]["divergence"]["rings"]:
        cells = [
            train.said(summary["divergence"][name][kind])
            for summary in versions.values()
            for name in ("rings", "mixture")
        ]
        assert f"| {kind} | {' | '.join(cells)} |" in text
    for summary in versions.values():
        persistent = summary["divergence"]["mixture"]["persistent, 10 steps"]["runs"]
        *first, last = (f"{value:.3f}" for value in persistent)
        assert f"{', '.join(first)} and {last}" in text
    for rows in versions["0.10.2"]["temperature"].values():
        *first, last = (
            "{mean:.2f} ± {deviation:.2f}".format(**row["best read at"]) for row in rows.values()
        )
        assert f"{', '.join(first)} and {last}" in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--cells=1", "cells must be at least 2, got 1"),
        ("--runs=0", "runs must be at least 1, got 0"),
        ("--temperatures 1 0", "temperatures must be one finite number > 0, got 0.0"),
        ("--step-size=nan", "step_size must be one finite number > 0, got nan"),
    ],
)
def test_a_mistake_ends_in_one_line(refused, flags, message):
    refused("energy_plane", flags, message)


def test_pictures_are_drawn():
    density = {"exact": np.ones((4, 4)), "short\nKL 1": np.ones((4, 4))}
    assert len(figures.draw_densities({"rings": density, "mixture": density}).axes) == 4
    curves = {1.0: np.ones(3), 0.5: np.ones(3)}
    drawn = figures.draw_temperature(np.array([0.1, 1, 2]), {"rings": curves, "mixture": curves})
    assert len(drawn.axes[0].lines) == 4
