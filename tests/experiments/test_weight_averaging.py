"""The experiment as a user runs it, and its parts: data, network, orbit, snapshots."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import command_line
from experiments.image_sets import head, open_splits
from experiments.weight_averaging import dirac_gan, figures
from experiments.weight_averaging.config import PRESETS, AveragingConfig
from experiments.weight_averaging.resnet import ResNet
from experiments.weight_averaging.train import (
    load,
    make_optimizer,
    move_and_mirror,
    reconstruct,
    run,
    spread,
    store,
)
from tests.battery import quick_jit
from zoo.averaging import averaged_parameters
from zoo.training import functional_with_state, init_state, make_mesh

ROOT = pathlib.Path(__file__).parents[2]
MODULE = "experiments.weight_averaging"
KILL = """
import os, signal
import experiments.weight_averaging.train as train
make = train.make_train_step
def make_deadly(*args, **kwargs):
    step, calls = make(*args, **kwargs), []
    def deadly(state, batch):
        calls.append(0)
        if len(calls) == 110:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(state, batch)
    return deadly
train.make_train_step = make_deadly
"""


def start(workdir, *, code="", returncode=0):
    main = f"import runpy; runpy.run_module({MODULE!r}, run_name='__main__', alter_sys=True)"
    flags = ["--preset", "smoke", "--workdir", str(workdir)]
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{main}", *flags],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == returncode, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The folder of an undisturbed run, and what it printed."""
    workdir = tmp_path_factory.mktemp("smoke")
    return workdir, start(workdir)


def test_smoke_reaches_what_it_must(smoke):
    workdir, output = smoke
    expected = json.loads((ROOT / "experiments/weight_averaging/expected.json").read_text())
    summary = json.loads((workdir / "summary.json").read_text())
    means = {name: row["mean"] for name, row in summary["accuracy"].items()}
    assert means.keys() == expected["mean_accuracy_at_least"].keys()
    for name, least in expected["mean_accuracy_at_least"].items():
        assert means[name] >= least, name
    orbit = summary["dirac_gan"]
    assert orbit["time average over radius"] <= expected["time_average_over_radius_at_most"]
    assert "post hoc 0.15" in output
    for name in ("accuracy.png", "post_hoc.png", "dirac_gan.png"):
        assert (workdir / name).read_bytes().startswith(b"\x89PNG")
    assert len(list((workdir / "snapshots").iterdir())) == 20


def test_killed_and_started_again_it_ends_alike(smoke, tmp_path):
    start(tmp_path, code=KILL, returncode=-9)
    assert not (tmp_path / "summary.json").exists()
    start(tmp_path)
    summaries = [(folder / "summary.json").read_text() for folder in (tmp_path, smoke[0])]
    assert summaries[0] == summaries[1]


def test_mistakes_end_in_one_line(tmp_path, capsys):
    for flag, message in (
        ("--model.depth=9", "model.depth must be one of 8, 14, 20, …, got 9"),
        ("--data.test-images=0", "data.test_images must be at least 1, got 0"),
        ("--data.uri=file:/absent/set.npz", "/absent/set.npz"),
        ("--preset=huge", "--preset must be one of small, smoke, cifar10, paper"),
    ):
        with pytest.raises(SystemExit):
            command_line.main(run, PRESETS, None, [flag, "--workdir", str(tmp_path)])
        said = capsys.readouterr()
        assert message in said.err + said.out
        assert "Traceback" not in said.err + said.out


def test_decays_are_checked():
    with pytest.raises(ValueError, match=r"averaging\.decays must be in \[0, 1\), got 1\.0"):
        AveragingConfig(decays=(0.9, 1.0))


def test_splits_of_the_digits():
    train, test = open_splits("builtin:digits")
    assert (len(train), len(test), len(head(test, 100))) == (1437, 360, 100)
    seen = {example["image"].tobytes() for example in train}
    assert not any(example["image"].tobytes() in seen for example in test)
    assert {int(example["label"]) for example in head(train, 50)} == set(range(10))
    assert head(train, None) is train


def test_splits_of_an_archive(tmp_path):
    images = np.arange(6, dtype=np.uint8).repeat(4).reshape(6, 2, 2)
    labels = np.arange(6)
    np.savez(
        tmp_path / "set.npz",
        x_train=images[:4],
        y_train=labels[:4],
        x_test=images[4:],
        y_test=labels[4:],
    )
    train, test = open_splits(f"file:{tmp_path}/set.npz")
    assert [int(example["label"]) for example in train] == [0, 1, 2, 3]
    assert [int(example["label"]) for example in test] == [4, 5]


def test_network_of_the_paper():
    """0.27 M parameters (arXiv 1512.03385, table 6); 32 × 32 images end in 64 maps of 8 × 8."""
    parts = functional_with_state(lambda rngs: ResNet(3, 10, depth=20, width=16, rngs=rngs))
    shapes = jax.eval_shape(parts.init_parameters, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 269_722
    state = jax.eval_shape(parts.init_model_state, jax.random.key(0))
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    logits = jax.eval_shape(
        lambda p, s, x: parts.rebuild(p, model_state=s)(x), shapes, state, images
    )
    assert logits.shape == (2, 10)
    blocks = [path[1].key for path, _ in jax.tree.leaves_with_path(shapes["blocks"])]
    assert len(shapes["blocks"]) == 9, blocks


def test_augmentation_moves_and_mirrors():
    image = np.zeros((1, 9, 9, 1), np.float32)
    image[0, 4, 4:6] = [[1], [2]]  # a 1 with a 2 on its right
    keys = jax.random.split(jax.random.key(0), 400)
    moved = np.asarray(
        quick_jit(jax.vmap(lambda key: move_and_mirror(key, image, shift=4, mirror=True)[0]))(keys)
    )[..., 0]
    rows, columns = zip(
        *(np.argwhere(one == 1)[0] for one in moved if (one == 1).any()), strict=True
    )
    assert min(rows) == 0
    assert max(rows) == 8
    assert min(columns) == 0
    left = [
        np.argwhere(one == 2)[0, 1] < np.argwhere(one == 1)[0, 1]
        for one in moved
        if (one == 1).any() and (one == 2).any()
    ]
    assert 0.4 < np.mean(left) < 0.6
    plain = move_and_mirror(keys[0], image, shift=0, mirror=False)
    np.testing.assert_array_equal(plain, image)


def test_snapshots_and_what_is_made_of_them(tmp_path):
    """Constant parameters: every average of any width is the parameters."""
    averaging = AveragingConfig(post_hoc_stds=(0.07, 0.2))
    optimizer = make_optimizer(averaging, 0.0)
    parameters = {"kernel": jnp.arange(3.0)}
    state = init_state(lambda key: parameters, optimizer, key=jax.random.key(0), mesh=make_mesh())
    for step in (10, 20, 30):
        store(tmp_path / "snapshots" / f"{step}.npz", state._replace(step=step), averaging)
    found = load(tmp_path / "snapshots" / "20.npz", 0.1, parameters)
    np.testing.assert_array_equal(found["kernel"], parameters["kernel"])

    def score(average):
        np.testing.assert_allclose(average["kernel"], parameters["kernel"], rtol=1e-5)
        return {"accuracy": 0.5}

    made = reconstruct(tmp_path / "snapshots", averaging, [20, 30], score, parameters)
    assert made == {
        "by width": {0.07: {"accuracy": 0.5}, 0.2: {"accuracy": 0.5}},
        "by step": {20: {"accuracy": 0.5}, 30: {"accuracy": 0.5}},
    }


def test_every_average_is_found_by_its_name():
    averaging = AveragingConfig(decays=(0.9, 0.99, 0.999))
    state = make_optimizer(averaging, 1e-3).init({"kernel": jnp.ones(2)})
    assert [*state] == [
        "adam",
        "EMA 0.9",
        "EMA 0.99",
        "EMA 0.999",
        "power law 0.05",
        "power law 0.1",
    ]
    assert averaged_parameters(state, path="^EMA 0.9$")["kernel"].shape == (2,)


def test_table_takes_the_last_ten():
    curves = {
        "parameters": {step: 0.1 if step < 5 else 0.5 + 0.1 * (step % 2) for step in range(15)},
        "EMA": {step: 0.1 if step < 5 else 0.5 + 0.02 * (step % 2) for step in range(15)},
    }
    rows = spread(curves, 100.0)
    assert rows["parameters"] == pytest.approx({"mean": 55, "deviation": 5, "ratio": 1})
    assert rows["EMA"] == pytest.approx({"mean": 51, "deviation": 1, "ratio": 0.2})


# The Dirac GAN (article 6583): numbers of the reference.


@pytest.fixture(scope="module")
def small_orbit():
    """16 periods from a start in the direction of the original's (0.1, 0.2), and its step."""
    step = dirac_gan.PERIOD / 128
    return dirac_gan.orbit((0.001, 0.002), time=16 * dirac_gan.PERIOD, step=step), step


def test_the_orbit_has_period_4_pi(small_orbit):
    points, _ = small_orbit
    np.testing.assert_allclose(points[128], points[0], atol=1e-4 * np.linalg.norm(points[0]))
    assert np.abs(points[64] - points[0]).max() > np.linalg.norm(points[0])


def test_the_orbit_is_that_of_a_library_solver():
    integrate = pytest.importorskip("scipy.integrate")
    for start_ in ((0.1, 0.2), (0.2, 0.1)):
        ours = dirac_gan.orbit(start_, time=100, step=0.1)
        theirs = integrate.solve_ivp(
            lambda time, point: dirac_gan.velocity(point), (0, 100), start_, rtol=1e-10, atol=1e-12
        )
        np.testing.assert_allclose(ours[-1], theirs.y[:, -1], atol=1e-6)


def test_time_average_is_the_equilibrium(small_orbit):
    """Over whole periods, within 1e-3 of the radius."""
    points, _ = small_orbit
    mean = points[: 4 * 128].mean(axis=0)
    assert np.linalg.norm(mean) <= 1e-3 * np.linalg.norm(points[0])


def test_average_shrinks_the_orbit(small_orbit):
    points, step = small_orbit
    memory = 2 * dirac_gan.PERIOD
    averaged = dirac_gan.averages(points, memory=memory, step=step)
    shrinkage = np.linalg.norm(averaged[-128:], axis=1) / np.linalg.norm(points[-128:], axis=1)
    expected = 1 / np.sqrt(1 + (memory / 2) ** 2)
    assert dirac_gan.expected_shrinkage(memory) == pytest.approx(expected)
    np.testing.assert_allclose(shrinkage, expected, rtol=0.02)


def test_larger_orbits_spiral_in():
    """d(φ² + θ²)/dt = -(φ θ)² to the fourth order: a closed orbit is the linear part's alone."""
    step = 1e-3
    points = dirac_gan.orbit((0.3, 0.2), time=step, step=step)
    change = np.diff((points**2).sum(axis=1))[0] / step
    assert change == pytest.approx(-((0.3 * 0.2) ** 2), rel=0.02)


def test_pictures_are_drawn():
    curves = {"parameters": {1: 0.1, 2: 0.2}, "EMA 0.9": {1: 0.1, 2: 0.3}, "post hoc": {2: 0.3}}
    assert figures.draw_accuracy(curves).legends
    assert len(figures.draw_widths({0.1: {"loss": 0.3}, 0.2: {"loss": 0.2}}).axes) == 1
