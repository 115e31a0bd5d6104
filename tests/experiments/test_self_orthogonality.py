"""The experiment as a user runs it: results, eight devices, mistakes, other data."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.running import read_records
from experiments.self_orthogonality import train
from experiments.self_orthogonality.config import METHODS, PRESETS, Config, DataConfig
from zoo.training import make_mesh

NETWORK = "self_orthogonality-batch_norm-0"


@pytest.mark.slow
def test_smoke_reaches_what_it_must_on_eight_devices_and_on_one(smoke, tmp_path, monkeypatch):
    summary, expected = smoke("self_orthogonality", "angles", "curves")
    accuracy = summary["networks"][NETWORK]["accuracy"]
    assert accuracy >= expected["test_accuracy_at_least"]
    assert summary["random_angle_std"] == pytest.approx(expected["random_angle_std"], abs=0.01)
    std = {row["setting"]: row["after"][1] for row in summary["ablation"]}
    assert len(std) == 8
    assert std["correlated, λ₁ = 0"] <= expected["second_term_alone_std_at_most"]
    assert std["correlated, λ₂ = 0"] >= expected["first_term_alone_std_at_least"]

    # V and the statistics of batch normalisation are those of the global batch.
    preset = dataclasses.replace(PRESETS["smoke"], workdir=str(tmp_path / "one"))
    ablation = dataclasses.replace(preset.ablation, num_steps=0)
    one = dataclasses.replace(preset, ablation=ablation)
    monkeypatch.setattr(train, "open_mesh", lambda _: make_mesh(devices=jax.devices()[:1]))
    train.run(one)
    folders = (tmp_path, pathlib.Path(one.workdir))
    ours, theirs = (
        [record["loss"] for record in read_records(folder / NETWORK / "metrics.jsonl")[:-1]]
        for folder in folders
    )
    np.testing.assert_allclose(ours, theirs, rtol=5e-3)
    before = (folders[1] / "summary.json").read_text()
    assert abs(json.loads(before)["networks"][NETWORK]["accuracy"] - accuracy) < 0.03
    train.run(one)  # nothing is left to train: the checkpoint is read and judged
    assert (folders[1] / "summary.json").read_text() == before


def test_what_a_method_adds_to_the_gradient():
    """The kernels of the hidden layers feel a penalty, nothing else does."""
    generator = np.random.default_rng(0)
    kernel = jnp.asarray(generator.normal(size=(4, 3)), jnp.float32)
    layers = {n: {"kernel": kernel, "bias": jnp.ones(3)} for n in ("first", "dense", "out")}
    zeros = jax.tree.map(jnp.zeros_like, layers)
    for method in METHODS:
        optimizer = train.make_optimizer(Config(), method, 10)
        updates, _ = jax.jit(optimizer.update)(zeros, optimizer.init(layers), layers)
        for name, own in updates.items():
            penalised = name != "out" and method not in ("none", "self_orthogonality")
            assert np.any(own["kernel"]) == penalised
            assert not np.any(own["bias"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--data.test-size=1797", "data.test_size must be smaller than the 1797 images"),
        ("--data.uri=file:/absent/images.npz", "/absent/images.npz"),
        ("--penalty.soft=-1", "penalty.soft must be at least 0, got -1"),
        ("--training.methods srip", "srip"),
    ],
)
def test_mistakes_end_in_one_line(flags, message, refused):
    refused("self_orthogonality", flags, message)


@pytest.mark.parametrize("uri", ["fashion_mnist", "cifar10/cifar10_10k_2k.npz"])
def test_real_images(uri, data_directory):
    data = DataConfig(uri=f"file:{data_directory / uri}", train_size=100, test_size=None)
    images = train.load(data)
    pictures, labels = images.train
    assert len(pictures) == len(labels) == 100
    assert pictures.mean() == pytest.approx(0, abs=1e-4)
    assert pictures.std() == pytest.approx(1, abs=1e-4)
    assert set(images.test[1]) == set(range(10))


def test_cut_sets_do_not_overlap_and_are_the_same_again():
    images = train.load(DataConfig(test_size=500))
    assert [len(part[1]) for part in images] == [1297, 500]
    train_rows = {row.tobytes() for row in images.train[0]}
    # The digits hold a few pictures twice; the cut itself takes every number once.
    assert sum(row.tobytes() in train_rows for row in images.test[0]) < 5
    again = train.load(DataConfig(test_size=500))
    np.testing.assert_array_equal(again.train[1], images.train[1])
