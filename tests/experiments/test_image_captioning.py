"""The captioner: its encoder, its data, its loss and its scores."""

import gzip
import io
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.efficientnet import (
    DOGS,
    EfficientNetLite0,
    enlarge,
    load_efficientnet,
    make_encoder,
)
from experiments.image_captioning import data, scores
from experiments.image_captioning.config import Config, DataConfig, ModelConfig, SearchConfig
from experiments.image_captioning.model import (
    Captioner,
    TrainedEncoder,
    make_captioner,
    transformer_config,
)
from experiments.image_captioning.train import Data, build, make_loss
from tests.battery import quick_jit
from zoo import _cpu
from zoo.data import build_vocabulary
from zoo.training import functional, make_mesh

ROOT = pathlib.Path(__file__).parents[2]
TINY = ModelConfig(features=8, num_layers=1, num_heads=1, feedforward_features=8)


@pytest.mark.slow
def test_smoke_reaches_what_it_must(tmp_path):
    command = [sys.executable, "-m", "experiments.image_captioning", "--preset=smoke"]
    subprocess.run([*command, f"--workdir={tmp_path}"], cwd=ROOT, check=True)
    expected = json.loads((ROOT / "experiments/image_captioning/expected.json").read_text())
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["digits_named"] >= expected["digits_named_at_least"]
    rows = list(summary["test"].values())
    greedy, beams, others, people, nearest = (row["BLEU-4"] for row in rows)
    assert greedy >= expected["greedy_bleu_4_at_least"]
    assert beams >= expected["beam_bleu_4_at_least"]
    assert others < beams - expected["more_than_for_another_picture_by"]
    assert people == pytest.approx(expected["people_bleu_4"], abs=0.01)
    assert nearest > people
    assert (tmp_path / "captions.png").read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / "captions.txt").read_text().splitlines()) == 90


def test_it_is_built_without_being_run():
    pictures = np.random.default_rng(0).uniform(size=(3, 2, 2, 1))
    captioned = data.Captioned(pictures, [[["a", "b"]], [["b"]], [["a"]]])
    sets = {split: captioned for split in data.SPLITS}
    vocabulary = build_vocabulary(["a b"], split="whitespace")
    config = Config(model=TINY)
    vectors = data.vectors_of(config.data, sets)
    built = build(config, make_mesh(), Data(sets, vocabulary, vectors))
    abstract = built.abstract_state(make_mesh())
    batch = next(built.batches)
    loss = jax.eval_shape(built.loss, abstract.parameters, batch, key=abstract.key, carry=())
    assert (loss.total.shape, batch["image"].shape, batch["valid"].sum()) == ((), (64, 4), 3)


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (5, 2)])
def test_a_depthwise_convolution_as_a_sum_of_shifts(size, stride):
    keys = jax.random.split(jax.random.key(1))
    x = jax.random.normal(keys[0], (2, 6, 7, 3))
    kernel = jax.random.normal(keys[1], (size, size, 1, 3))
    expected = jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=3,
    )
    found = _cpu.depthwise_convolution(x, kernel, stride=stride)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_encoder_has_the_shapes_of_lite0():
    model = nnx.eval_shape(lambda: EfficientNetLite0(rngs=nnx.Rngs(0)))
    features = jax.eval_shape(lambda model: model(jnp.zeros((2, 224, 224, 3))), model)
    assert features.shape == (2, 1280)
    kernels = [leaf for leaf in jax.tree.leaves(model) if leaf.ndim > 1]
    # The published 4,652,008 less the scales of batch normalisation, which are folded here.
    norms = sum(leaf.shape[-1] for leaf in kernels) - 1000
    assert sum(leaf.size for leaf in jax.tree.leaves(model)) == 4_652_008 - norms


@pytest.mark.slow
def test_the_encoder_knows_dogs(data_directory):
    """As the table of the data says of 240 pictures; here 48, for the time of a test."""
    weights = data_directory / "efficientnet_lite0" / "efficientnet_lite0_fp16conv.npz"
    folder = data_directory / "flickr8k"
    if not (weights.is_file() and folder.is_dir()):
        pytest.skip("put efficientnet_lite0/ and flickr8k/ into the folder of real data")
    test = data.read(f"file:{folder}")["test"]
    assert [len(test.captions), {len(own) for own in test.captions}] == [1000, {5}]
    named = np.array([sum("dog" in words for words in own) for own in test.captions[:48]])
    model = load_efficientnet(weights)
    features = make_encoder(224)(model, test.images[:48])
    guesses = np.isin(np.argmax(model.classes(jnp.asarray(features)), axis=1), list(DOGS))
    assert guesses[named >= 3].mean() > 0.6
    assert guesses[named == 0].mean() < 0.1


@pytest.mark.slow
def test_an_encoder_that_is_trained_begins_as_the_frozen_one():
    """Its loss is that of vectors made beforehand; its gradient comes through the norms."""

    class Mean(nnx.Module):
        def __init__(self):
            self.gain = nnx.Param(jnp.ones(3))

        def __call__(self, images):
            return images.mean(axis=(1, 2)) * self.gain[...][None]

    config = Config(model=TINY)
    images = jax.random.randint(jax.random.key(0), (2, 4, 4, 3), 0, 256).astype(jnp.uint8)
    features = np.asarray(enlarge(images, 32).mean(axis=(1, 2)))
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    vectors = data.Vectors({}, mean, deviation)

    def frozen(rngs):
        return make_captioner(config, transformer_config(config, 7), vectors, rngs=rngs)

    def trained(rngs):
        encoder = TrainedEncoder(Mean(), 32, mean, deviation)
        return Captioner(frozen(rngs).transformer, encoder)

    words = jnp.array([[0, 1, 2], [0, 3, 4]])
    batch = {"inputs": words, "targets": words, "length": jnp.array([3, 2])}
    batch["valid"] = jnp.array([True, True])

    def loss_and_gradient(make, images):
        init, merge = functional(make)
        loss = make_loss(merge)

        @quick_jit
        def both(key, images):
            start = init(key)
            # Norms before training ignore the condition: move their kernels away from 0.
            moved = jax.tree.map(lambda x: x + 0.1, start["transformer"])

            def total(parameters):
                shown = batch | {"image": images}
                return loss(parameters, shown, key=None, carry=None).total

            return jax.value_and_grad(total)(start | {"transformer": moved})

        return both(jax.random.key(1), images)

    expected, _ = loss_and_gradient(frozen, (features - mean) / deviation)
    total, gradient = loss_and_gradient(trained, images)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert float(jnp.abs(gradient["encoder"]["encoder"]["gain"]).min()) > 1e-6


def test_weights_of_another_network_are_refused(tmp_path):
    np.savez(tmp_path / "other.npz", **{"_bn0.weight": np.ones(3)})
    with pytest.raises(ValueError, match=r"has no array '_bn0.running_var'.*EfficientNet-Lite0"):
        load_efficientnet(tmp_path / "other.npz")
    names = ("weight", "bias", "running_mean", "running_var")
    norm = {f"_bn0.{name}": np.ones(7) for name in names}
    np.savez(tmp_path / "other.npz", **norm, **{"_conv_stem.weight": np.ones((7, 3, 3, 3))})
    with pytest.raises(ValueError, match=r"expected a weight \(3, 3, 3, 32\), got \(3, 3, 3, 7\)"):
        load_efficientnet(tmp_path / "other.npz")


def test_pictures_and_captions_are_brought_together(tmp_path):
    """A folder in the form of Flickr8k, its captions in another order than its pictures."""
    from PIL import Image

    parts = []
    for shade in (10, 120, 240):
        part = io.BytesIO()
        Image.new("RGB", (4, 4), (shade,) * 3).save(part, "JPEG", quality=90)
        parts.append(part.getvalue())
    np.savez(
        tmp_path / data.ARCHIVE,
        jpeg=np.frombuffer(b"".join(parts), np.uint8),
        offsets=np.cumsum([0, *map(len, parts)]),
        names=np.array([b"a.jpg", b"b.jpg", b"c.jpg"]),
        split=np.array([2, 0, 1], np.uint8),
    )
    with gzip.open(tmp_path / data.CAPTIONS, "wt") as lines:
        lines.write("c.jpg#0\tWhite .\nb.jpg#0\tGrey all over , isn't it ?\nb.jpg#1\tIt 's grey\n")
        lines.write("a.jpg#0\tA black one\n")
    sets = data.read(f"file:{tmp_path}")
    shades = {split: part.images.mean() for split, part in sets.items()}
    assert shades == pytest.approx({"train": 120, "valid": 240, "test": 10}, abs=2)
    assert sets["train"].captions == [[["grey", "all", "over", "isn't", "it"], ["it", "s", "grey"]]]
    assert sets["test"].captions == [[["a", "black", "one"]]]
    vectors = data.vectors_of(DataConfig(), sets)
    assert vectors.scaled["train"].shape == (1, 48)
    vocabulary = build_vocabulary(["grey it all over"], split="whitespace")
    rows = data.examples(vectors.scaled["train"], sets["train"], vocabulary, max_words=4)
    end, words = vocabulary.end, dict(zip(vocabulary.tokens, range(9), strict=False))
    long = [words["grey"], words["all"], words["over"], 0]
    np.testing.assert_array_equal(rows[0]["inputs"], [end, *long])
    np.testing.assert_array_equal(rows[0]["targets"], [*long, end])
    short = [words["it"], 0, words["grey"], end]
    np.testing.assert_array_equal(rows[1]["targets"][:4], short)
    # Cut captions do not learn an end that is none; complete ones do.
    assert [row["length"] for row in rows] == [4, 4]


def test_features_are_kept_for_their_pictures_and_weights(tmp_path, monkeypatch):
    made = []

    def encode(model, images):
        made.append(model)
        return images.mean(axis=(1, 2))

    monkeypatch.setattr(data, "load_efficientnet", lambda path: path.read_bytes())
    monkeypatch.setattr(data, "make_encoder", lambda size: encode)
    weights, store = tmp_path / "weights.npz", tmp_path / "features.npz"
    config = DataConfig(encoder=f"file:{weights}")
    images = np.arange(96, dtype=np.uint8).reshape(2, 4, 4, 3)

    def encoded(content=b"1", images=images):
        weights.write_bytes(content)
        made.clear()
        data.vectors_of(config, {"train": data.Captioned(images, [])}, store)
        return made

    assert [len(encoded()), len(encoded())] == [1, 0]
    assert encoded(b"2") == [b"2"]
    assert encoded(b"2", images[::-1]) == [b"2"]
    store.write_bytes(store.read_bytes()[:-30])
    assert [len(encoded(b"2", images[::-1])), len(encoded(b"2", images[::-1]))] == [1, 0]


def test_scores_by_hand():
    captions = [["a", "dog", "runs"], ["a", "a"]]
    references = [[["a", "dog", "runs", "fast"], ["the", "dog"]], [["a", "cat"], ["one", "cat"]]]
    # 4 of 5 words (the second "a" does not count), 2 of 3 pairs, 1 of 2 triples: NLTK counts one
    # for a caption that is too short to have any. No caption is too short: of two references that
    # are as close in length, the shorter one counts.
    found = scores.bleu(captions, references)
    assert found["BLEU-1"] == pytest.approx(100 * 4 / 5)
    assert found["BLEU-2"] == pytest.approx(100 * np.sqrt(4 / 5 * 2 / 3))
    assert found["BLEU-3"] == pytest.approx(100 * (4 / 5 * 2 / 3 * 1 / 2) ** (1 / 3))
    assert found["BLEU-4"] == 0
    assert scores.bleu([[], []], references)["BLEU-1"] == 0
    each = scores.each_bleu(captions, references)
    assert each[0] > each[1]
    assert scores.variety([*captions, ["a", "a"]], references) == {
        "distinct": pytest.approx(2 / 3),
        "copied": 0,
    }
    assert scores.variety([["a", "cat"]], references)["copied"] == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: data.read("tfds:coco"), "data.uri must be builtin:digits or file:FOLDER"),
        (lambda: DataConfig(train_encoder=True), "data.train_encoder needs the weights"),
        (lambda: DataConfig(encoder="here.npz"), "data.encoder must be file:PATH or empty, got"),
        (lambda: SearchConfig(length_penalties=()), "search.length_penalties must hold at least"),
    ],
)
def test_mistakes_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_what_is_missing_is_named_before_anything_is_trained(refused, tmp_path, monkeypatch):
    flags = f"--data.uri=file:{tmp_path} --data.encoder=file:{tmp_path}/encoder.npz"
    refused("image_captioning", flags, f"there is no {tmp_path}/{data.ARCHIVE}, ")
    refused("image_captioning", flags, f"{tmp_path}/encoder.npz; the README of image_captioning")
    monkeypatch.setitem(sys.modules, "nltk.translate.bleu_score", None)
    refused("image_captioning", "", "module 'nltk.translate.bleu_score'")
