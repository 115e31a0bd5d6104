"""The experiment as a user runs it, and its parts: data, scores, labels, pictures."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx

from experiments.command_line import change
from experiments.energy_model import figures, judge, uses
from experiments.energy_model.config import PRESETS, DataConfig, ModelConfig
from experiments.energy_model.data import outliers
from experiments.energy_model.judge import auroc, frechet_distance
from experiments.energy_model.model import make_network
from experiments.energy_model.train import Data, build, load, noisy, sample_from_noise
from experiments.image_sets import head, open_splits
from tests.battery import quick_jit
from zoo.data.images import image_arrays
from zoo.training import make_mesh, put_batch

MESH = make_mesh(devices=jax.devices()[:1])


@pytest.mark.slow
def test_smoke_reaches_what_it_must(smoke, tmp_path):
    summary, expected = smoke("energy_model", "samples", "training", "energies")
    for name, least in expected["auroc_at_least"].items():
        assert summary["auroc"][name] >= least, name
    scores = summary["scores"]
    assert scores["samples"]["class entropy"] >= expected["class_entropy_at_least"]
    distances = {name: row["Fréchet distance"] for name, row in scores.items()}
    assert distances["test images"] < distances["samples"] < distances["uniform noise"]
    assert {path.stem for path in (tmp_path / "watched").iterdir()} == {"100", "200"}
    kept = {path.name for path in (tmp_path / "good").iterdir() if path.is_dir()}
    assert kept == {"100", "200"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--model.network=mnist", "model.network=mnist takes images of 28 × 28 × 1, got (8, 8"),
        ("--model.network=mnist --model.conditional=True", "the network mnist takes no labels"),
        ("--sampler.step-size=0", "step_size must be one finite number > 0, got 0"),
        ("--sampler.bounds 0.1 1", "sampler.bounds must hold 0..1, got (0.1, 1.0)"),
        ("--model.reference=0", "must be > 0 and the network dense, got 0.0 and dense"),
        ("--model.reference=1 --model.network=resnet", "dense, got 1.0 and resnet"),
        ("--data.outliers=file:/absent/set.npz", "/absent/set.npz"),
    ],
)
def test_mistakes_end_in_one_line(refused, flags, message):
    refused("energy_model", flags, message)


def zeros(*shape, num_classes):
    """A set of 256 black images."""
    images = np.zeros((256, *shape), np.float32), np.arange(256, dtype=np.int32) % num_classes
    return Data([{"image": images[0][0], "label": np.int32(0)}] * 256, images, images, {})


def test_a_step_is_known_from_shapes_alone():
    experiment = build(PRESETS["small"], MESH, zeros(8, 8, 1, num_classes=10))
    state = experiment.abstract_state(MESH)
    step = experiment.train_step(state.shardings)
    after, metrics = jax.eval_shape(step, state, put_batch(next(experiment.batches), MESH))
    shapes = functools.partial(jax.tree.map, lambda leaf: (leaf.shape, leaf.dtype))
    assert shapes(after) == shapes(state)
    assert {"loss", "energy_data", "gradient_norm_of_chains"} <= metrics.keys()


# Data.


def test_outliers_are_what_they_are_called():
    test = image_arrays(head(open_splits("builtin:digits")[1], 40))[0]
    assert test.shape == (40, 8, 8, 1)
    others = outliers(DataConfig(), test)
    assert [*others] == ["uniform noise", "shuffled pixels", "photographs"]
    for images in others.values():
        assert images.shape == test.shape
        assert images.dtype == np.float32
        assert 0 <= images.min() < images.max() <= 1
    shuffled = others["shuffled pixels"]
    assert not np.array_equal(shuffled, test)
    np.testing.assert_array_equal(np.sort(shuffled.reshape(40, -1)), np.sort(test.reshape(40, -1)))
    colour = outliers(DataConfig(), np.zeros((4, 213, 200, 3), np.float32))["photographs"]
    assert np.ptp(colour, axis=-1).max() > 0.1
    for shape in ((2, 8, 8, 2), (2, 500, 8, 3)):
        with pytest.raises(ValueError, match=r"photographs are smaller or of other channels"):
            outliers(DataConfig(), np.zeros(shape, np.float32))


def test_a_folder_of_pictures(tmp_path):
    """What ``--preset images`` reads: pictures of any size, the class is the folder."""
    pictures = pytest.importorskip("PIL.Image")
    for name, colour in (("cat", (200, 9, 9)), ("dog", (9, 200, 9))):
        (tmp_path / name).mkdir()
        for n in range(20):
            pictures.new("RGB", (20 + n, 30), colour).save(tmp_path / name / f"{n}.png")
    config = change(
        PRESETS["images"], data={"uri": f"file:{tmp_path}?size=9"}, training={"batch_size": 4}
    )
    data = load(config)
    assert data.train[0].shape == (36, 9, 9, 3)
    np.testing.assert_array_equal(data.train[1], data.train[0][:, 0, 0, 1] > 0.5)
    experiment = build(config, MESH, data)
    assert experiment.abstract_state(MESH).parameters["kernels"]
    with pytest.raises(ValueError, match="must name your images"):
        load(PRESETS["images"])


def test_another_set_as_outliers(tmp_path):
    images = np.arange(6, dtype=np.uint8).repeat(64).reshape(6, 8, 8)
    np.savez(tmp_path / "other.npz", x_test=images, y_test=np.arange(6))
    data = DataConfig(outliers=f"file:{tmp_path}/other.npz")
    others = outliers(data, np.zeros((3, 8, 8, 1), np.float32))
    np.testing.assert_allclose(others["other.npz"][:, 0, 0, 0] * 255, [0, 2, 5])
    with pytest.raises(ValueError, match=r"expected images of \(9, 9, 1\) .* got \(8, 8, 1\)"):
        outliers(data, np.zeros((3, 9, 9, 1), np.float32))


def test_levels_are_spread_over_their_shares():
    images = np.repeat(np.arange(17, dtype=np.float32) / 16, 400).reshape(17, 20, 20, 1)
    blur = quick_jit(
        lambda key: [noisy(key, images, DataConfig(noise=noise)) for noise in (0.0, 0.1)]
    )
    spread, blurred = (np.asarray(found) for found in blur(jax.random.key(0)))
    for level, values in enumerate(spread):
        assert level / 17 <= values.min() < values.max() <= (level + 1) / 17
        assert values.std() == pytest.approx(1 / 17 / np.sqrt(12), rel=0.1)
    assert blurred[8].std() == pytest.approx(np.hypot(0.1, 1 / 17 / np.sqrt(12)), rel=0.1)


def test_noise_stays_within_the_bounds():
    black, data = np.zeros((4, 28, 28, 1), np.uint8), DataConfig(levels=256, noise=0.2)
    free, half = ((-1.0, 2.0), 0.2), ((0.0, 1.0), 0.2 * np.sqrt(0.5 - 0.5 / np.pi))
    blur = quick_jit(lambda key: [noisy(key, black, data, box) for box, _ in (free, half)])
    for (bounds, deviation), found in zip((free, half), blur(jax.random.key(0)), strict=True):
        blurred = np.asarray(found)
        assert bounds[0] <= blurred.min() <= blurred.max() <= bounds[1]
        assert blurred.std() == pytest.approx(deviation, rel=0.05)


def test_the_first_energy_is_that_of_the_reference():
    make = make_network(ModelConfig(features=4, reference=0.5), (2, 2, 1))
    images = np.arange(8, dtype=np.float32).reshape(2, 2, 2, 1) / 8
    expected = (images**2).sum(axis=(1, 2, 3)) / (2 * 0.5**2) - 2
    found = quick_jit(lambda images: make(nnx.Rngs(0))(images))(images)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


# The judge.


def test_frechet_distance_of_known_laws():
    linalg = pytest.importorskip("scipy.linalg")
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(500, 4)), generator.normal(size=(400, 4)) * 2 + 1
    first = first @ generator.normal(size=(4, 4))
    means = first.mean(0) - second.mean(0)
    c, d = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    expected = means @ means + np.trace(c + d - 2 * linalg.sqrtm(c @ d).real)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(first[:, :1], first[:, :1] + 3) == pytest.approx(9)


def test_ranks_and_scores():
    assert auroc(np.array([0.0, 1.0]), np.array([2.0, 3.0])) == 1
    assert auroc(np.array([0.0, 2.0]), np.array([1.0, 3.0])) == 0.75
    features, references = np.array([[0.0, 1], [3.0, 1]]), np.array([[1.0, 1], [9.0, 1]])
    found = judge.score(np.array([[0.9, 0.1], [0.3, 0.7]]), features, references)
    assert found["class entropy"] == pytest.approx(np.log(2))
    assert found["certainty"] == pytest.approx(0.8)
    assert found["nearest neighbour"] == pytest.approx(1.5)


def test_distance_on_the_encoder_s_features(tmp_path, monkeypatch, capsys):
    path = tmp_path / "weights.npz"
    images = np.random.default_rng(0).uniform(size=(50, 2, 2, 3)).astype(np.float32)
    assert judge.encoded_distances("", {"same": images}, images) == {}
    assert judge.encoded_distances(f"file:{path}", {"same": images}, images) == {}
    assert f"no file {path}" in capsys.readouterr().out
    path.touch()
    monkeypatch.setattr(judge, "load_efficientnet", lambda path: path)
    monkeypatch.setattr(judge, "make_encoder", lambda size: lambda _, x: x.reshape(len(x), -1))
    found = judge.encoded_distances(f"file:{path}", {"same": images, "moved": images + 2}, images)
    assert found["same"] == pytest.approx(0, abs=0.1)
    assert found["moved"] == pytest.approx(12 * (2 * 255) ** 2, rel=1e-4)


# Labels.


def test_chains_keep_the_label_they_began_with():
    sampler = {"num_steps": 1, "replay_capacity": 16, "fresh_rate": 0.0}
    config = change(PRESETS["conditional"], model={"features": 4}, sampler=sampler)
    experiment = build(config, MESH, zeros(2, 2, 1, num_classes=3))
    state = quick_jit(lambda key: experiment.init_model_state(key))(jax.random.key(0))
    parameters, loss = quick_jit(experiment.init)(jax.random.key(0)), quick_jit(experiment.loss)
    for label in (1, 2):
        batch = {"image": np.zeros((8, 2, 2, 1), np.uint8), "label": np.full(8, label, np.int32)}
        out = loss(parameters, batch, key=jax.random.key(0), carry=None, model_state=state)
        state = out.model_state
    assert int(state["replay"].filled) == 16
    np.testing.assert_array_equal(state["replay"].labels[0], 1)


@pytest.mark.slow
def test_uses_of_a_known_energy(tmp_path):
    """E(x, y) = 50·|x - m_y|²: every answer is known."""

    def network(x, y):
        return 50 * ((x - (1 + y.reshape(-1, 1, 1, 1)) / 4) ** 2).sum(axis=(1, 2, 3))

    labels = np.arange(21) % 3
    images = np.broadcast_to((1 + labels.reshape(-1, 1, 1, 1)) / 4, (21, 2, 2, 1))
    sampler, evaluation = {"step_size": 0.005, "noise_scale": 0.0}, {"num_steps": 60}
    config = change(PRESETS["conditional"], sampler=sampler, evaluation=evaluation)
    test = images.astype(np.float32), labels
    found = uses.show(tmp_path, network, functools.partial(sample_from_noise, config), test, 3)
    assert found["label_accuracy"] == 1
    expected = {
        "0": [0, 12.5],
        "1": [12.5, 0],
        "0 and 1": [3.125, 3.125],
        "0, not 1": [12.5, 50],
        "1, not 0": [50, 12.5],
    }
    assert [row["composition"] for row in found["compositions"]] == [*expected]
    energies = [[row["E(x, 0)"], row["E(x, 1)"]] for row in found["compositions"]]
    np.testing.assert_allclose(energies, [*expected.values()], atol=1e-3)
    errors = found["hidden_half_errors"]
    assert errors["its label"] == pytest.approx(0, abs=1e-4)
    assert errors["another label"] == pytest.approx(np.sqrt((14 / 16 + 6 / 4) / 20), rel=1e-3)
    assert (tmp_path / "uses.png").read_bytes().startswith(b"\x89PNG")


# Pictures.


def test_pictures_are_drawn():
    images = np.linspace(0, 1, 12 * 4).reshape(12, 2, 2, 1)
    sheet = figures.tile(images, 4)
    assert sheet.shape == (9, 12, 1)
    np.testing.assert_array_equal(sheet[3:5, 0:2], images[4])
    assert figures.draw_rows({"1": images, "2": images}).axes[0].get_yticks().shape == (2,)
