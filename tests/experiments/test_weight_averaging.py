"""The experiment as a user runs it, and its parts: data, network, orbit, snapshots."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.image_sets import head, open_splits
from experiments.weight_averaging import dirac_gan
from experiments.weight_averaging.config import PRESETS, AveragingConfig
from experiments.weight_averaging.train import (
    Data,
    build,
    make_optimizer,
    move_and_mirror,
    reconstruct,
    spread,
    store,
)
from tests.battery import quick_jit
from zoo.training import init_state, make_mesh


@pytest.mark.slow
def test_smoke_reaches_what_it_must(smoke, tmp_path):
    summary, expected = smoke("weight_averaging", "accuracy", "post_hoc", "dirac_gan")
    means = {name: row["mean"] for name, row in summary["accuracy"].items()}
    assert means.keys() == expected["mean_accuracy_at_least"].keys()
    for name, least in expected["mean_accuracy_at_least"].items():
        assert means[name] >= least, name
    orbit = summary["dirac_gan"]
    assert orbit["time average over radius"] <= expected["time_average_over_radius_at_most"]
    assert len(list((tmp_path / "snapshots").iterdir())) == 20


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--model.depth=9", "model.depth must be one of 8, 14, 20, …, got 9"),
        ("--data.test-images=0", "data.test_images must be at least 1, got 0"),
        ("--data.uri=file:/absent/set.npz", "/absent/set.npz"),
        ("--averaging.decays=1.0", "averaging.decays must be some in [0, 1), got (1.0,)"),
    ],
)
def test_mistakes_end_in_one_line(refused, flag, message):
    refused("weight_averaging", flag, message)


@pytest.mark.slow
def test_build_gives_the_network_of_the_paper_and_computes_nothing():
    """0.27 M parameters (arXiv 1512.03385, table 6)."""
    images = np.zeros((10, 32, 32, 3), np.uint8), np.arange(10)
    examples = [{"image": images[0][0], "label": 0}] * 64
    mesh = make_mesh()
    experiment = build(PRESETS["paper"], mesh, Data(examples, images, images))
    state = experiment.abstract_state(mesh)
    assert sum(leaf.size for leaf in jax.tree.leaves(state.parameters)) == 269_722
    assert len(state.parameters["blocks"]) == 9
    assert [*state.optimizer_state] == [
        "adam",
        *("EMA 0.99", "EMA 0.999", "EMA 0.9999"),
        *("power law 0.05", "power law 0.1"),
    ]
    step = experiment.train_step(state.shardings)
    after, _ = jax.eval_shape(step, state, next(experiment.batches))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    # An output for every label, also one that is rare.
    rare = Data([*examples, {"image": images[0][0], "label": 12}], images, images)
    leaves = jax.tree.leaves(build(PRESETS["smoke"], mesh, rare).abstract_state(mesh).parameters)
    assert (13,) in [leaf.shape for leaf in leaves]


def test_splits_of_the_digits():
    train, test = open_splits("builtin:digits")
    assert (len(train), len(test), len(head(test, 100))) == (1437, 360, 100)
    seen = {example["image"].tobytes() for example in train}
    assert not any(example["image"].tobytes() in seen for example in test)
    assert {int(example["label"]) for example in head(train, 50)} == set(range(10))
    assert head(train, None) is train


def test_splits_of_an_archive(tmp_path):
    images = {"x_train": np.zeros((4, 2, 2)), "x_test": np.zeros((2, 2, 2))}
    np.savez(tmp_path / "set.npz", **images, y_train=np.arange(4), y_test=np.arange(2))
    train, test = open_splits(f"file:{tmp_path}/set.npz")
    assert (len(train), len(test)) == (4, 2)


@pytest.mark.slow
def test_augmentation_moves_and_mirrors():
    image = np.zeros((1, 9, 9, 1), np.float32)
    image[0, 4, 4:6] = [[1], [2]]  # a 1 with a 2 on its right
    keys = jax.random.split(jax.random.key(0), 400)
    move = jax.vmap(lambda key: move_and_mirror(key, image, shift=4, mirror=True)[0, ..., 0])
    moved = np.asarray(quick_jit(move)(keys))
    one, two = ([np.argwhere(image == mark) for image in moved] for mark in (1, 2))
    places = np.concatenate(one)
    assert places.min(axis=0).tolist() == [0, 0]
    assert places[:, 0].max() == 8
    left = [b[0, 1] < a[0, 1] for a, b in zip(one, two, strict=True) if len(a) and len(b)]
    assert 0.4 < np.mean(left) < 0.6
    plain = move_and_mirror(keys[0], image, shift=0, mirror=False)
    np.testing.assert_array_equal(plain, image)


def test_snapshots_and_what_is_made_of_them(tmp_path):
    """Constant parameters: every average of any width is the parameters."""
    averaging = AveragingConfig()
    parameters = {"kernel": jnp.arange(3.0), "bias": jnp.ones((2, 1))}
    optimizer = make_optimizer(averaging, 0.0)
    state = init_state(lambda key: parameters, optimizer, key=jax.random.key(0), mesh=make_mesh())
    for step in (10, 20):
        store(tmp_path, state._replace(step=step), averaging)
    for step, width in ((10, 0.07), (20, 0.2)):
        average = reconstruct(tmp_path, averaging, parameters)(step, width)
        for name, leaf in parameters.items():
            np.testing.assert_allclose(average[name], leaf, rtol=1e-5)


def test_table_takes_the_last_ten():
    curves = {
        name: {step: 0.1 if step < 5 else 0.5 + height * (step % 2) for step in range(15)}
        for name, height in {"parameters": 0.1, "EMA": 0.02}.items()
    }
    rows = spread(curves, 100.0)
    assert rows["parameters"] == pytest.approx({"mean": 55, "deviation": 5, "ratio": 1})
    assert rows["EMA"] == pytest.approx({"mean": 51, "deviation": 1, "ratio": 0.2})


# The Dirac GAN (article 6583): numbers of the reference.


def test_average_shrinks_an_orbit_of_period_4_pi():
    """In the direction of the original's start, (0.1, 0.2)."""
    step, memory = dirac_gan.PERIOD / 128, 2 * dirac_gan.PERIOD
    points = dirac_gan.orbit((0.001, 0.002), time=16 * dirac_gan.PERIOD, step=step)
    radius = np.linalg.norm(points, axis=1)
    np.testing.assert_allclose(points[128], points[0], atol=1e-4 * radius[0])
    assert np.abs(points[64] - points[0]).max() > radius[0]
    assert np.linalg.norm(points[: 4 * 128].mean(axis=0)) <= 1e-3 * radius[0]
    averaged = np.linalg.norm(dirac_gan.averages(points, memory=memory, step=step), axis=1)
    expected = 1 / np.sqrt(1 + (memory / 2) ** 2)
    assert dirac_gan.expected_shrinkage(memory) == pytest.approx(expected)
    np.testing.assert_allclose(averaged[-128:] / radius[-128:], expected, rtol=0.02)


def test_larger_orbits_spiral_in():
    """d(φ² + θ²)/dt = -(φ θ)² to the fourth order: only the linear part has closed orbits."""
    step = 1e-3
    points = dirac_gan.orbit((0.3, 0.2), time=step, step=step)
    change = np.diff((points**2).sum(axis=1))[0] / step
    assert change == pytest.approx(-((0.3 * 0.2) ** 2), rel=0.02)
