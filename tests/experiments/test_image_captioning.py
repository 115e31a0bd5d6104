"""The captioner as a user runs it, its encoder, its data and its scores."""

import gzip
import io
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import command_line
from experiments.efficientnet import (
    DOGS,
    Convolution,
    EfficientNetLite0,
    load_efficientnet,
)
from experiments.image_captioning import data, scores
from experiments.image_captioning.config import PRESETS, Config, DataConfig, ModelConfig
from experiments.image_captioning.model import (
    Captioner,
    TrainedEncoder,
    make_captioner,
    transformer_config,
)
from experiments.image_captioning.train import make_loss, run
from zoo.data import build_word_vocabulary
from zoo.training import functional

ROOT = pathlib.Path(__file__).parents[2]


def test_smoke_reaches_what_it_must(tmp_path):
    command = [sys.executable, "-m", "experiments.image_captioning", "--preset", "smoke"]
    done = subprocess.run(
        [*command, "--workdir", tmp_path],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout
    assert "a smoke test, no measurement of captions" in done.stdout
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


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (5, 2)])
def test_a_depthwise_convolution_as_a_sum_of_shifts(size, stride):
    x = jax.random.normal(jax.random.key(1), (2, 6, 7, 3))
    layer = Convolution(size, 3, 3, stride=stride, depthwise=True, rngs=nnx.Rngs(0))
    kernel = layer.kernel[...]
    np.testing.assert_allclose(
        layer._sum_of_shifts(x, kernel), layer._convolve(x, kernel), atol=1e-5
    )


def test_the_encoder_has_the_shapes_of_lite0():
    model = nnx.eval_shape(lambda: EfficientNetLite0(rngs=nnx.Rngs(0)))
    features = jax.eval_shape(lambda model: model(jnp.zeros((2, 224, 224, 3))), model)
    assert features.shape == (2, 1280)
    kernels = [leaf for leaf in jax.tree.leaves(model) if leaf.ndim > 1]
    # The published 4,652,008 less the scales of batch normalisation, which are folded here.
    norms = sum(leaf.shape[-1] for leaf in kernels) - 1000
    assert sum(leaf.size for leaf in jax.tree.leaves(model)) == 4_652_008 - norms


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
    features = data.make_encoder(224)(model, test.images[:48])
    guesses = np.isin(np.argmax(model.logits(jnp.asarray(features)), axis=1), list(DOGS))
    assert guesses[named >= 3].mean() > 0.6
    assert guesses[named == 0].mean() < 0.1


def test_an_encoder_that_is_trained_begins_as_the_frozen_one():
    """Its loss is that of vectors made beforehand; its gradient comes through the norms."""

    class Mean(nnx.Module):
        def __init__(self):
            self.gain = nnx.Param(jnp.ones(3))

        def __call__(self, images):
            return images.mean(axis=(1, 2)) * self.gain[...][None]

    config = Config(model=ModelConfig(features=8, num_heads=1, feedforward_features=8))
    images = jax.random.randint(jax.random.key(0), (2, 4, 4, 3), 0, 256).astype(jnp.uint8)
    features = data.enlarged(images, 32).mean(axis=(1, 2))
    mean, deviation = np.asarray(features).mean(axis=0), np.asarray(features).std(axis=0)
    vectors = data.Vectors({}, mean, deviation)
    shape = transformer_config(config, 7)

    def both(rngs):
        frozen = make_captioner(config, shape, vectors, rngs=rngs)
        return Captioner(frozen.transformer, TrainedEncoder(Mean(), 32, mean, deviation))

    def frozen(rngs):
        return make_captioner(config, shape, vectors, rngs=rngs)

    words = jnp.array([[0, 1, 2], [0, 3, 4]])
    batch = {"inputs": words, "targets": words, "length": jnp.array([3, 2])}
    batch["valid"] = jnp.array([True, True])
    found = []
    for make, seen in ((both, images), (frozen, (features - mean[None]) / deviation[None])):
        init, rebuild = functional(make)
        # Norms that are at zero, as in the beginning, let nothing through.
        parameters = jax.tree.map(lambda x: x + 0.1, init(jax.random.key(1)))
        if make is both:
            eye = {"encoder": {"gain": jnp.ones(3)}, "mean": mean, "deviation": deviation}
            parameters["encoder"] = eye
        loss = make_loss(rebuild)
        shown = batch | {"image": seen}
        total = jax.jit(
            jax.value_and_grad(
                lambda p, batch, loss=loss: loss(p, batch, key=None, carry=None).total
            )
        )
        found.append(total(parameters, shown))
    (trained, gradients), (given, _) = found
    np.testing.assert_allclose(trained, given, rtol=1e-5)
    assert float(jnp.abs(gradients["encoder"]["encoder"]["gain"]).min()) > 1e-6


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
    vectors = data.vectors_of(DataConfig(), sets, tmp_path / "unused.npz")
    assert vectors.scaled["train"].shape == (1, 48)
    vocabulary = build_word_vocabulary(["grey it all over"], split="whitespace")
    rows = data.examples(vectors.scaled["train"], sets["train"], vocabulary, max_words=4)
    end, words = vocabulary.end, dict(zip(vocabulary.tokens, range(9), strict=False))
    long = [words["grey"], words["all"], words["over"], 0]
    np.testing.assert_array_equal(rows[0]["inputs"], [end, *long])
    np.testing.assert_array_equal(rows[0]["targets"], [*long, end])
    short = [words["it"], 0, words["grey"], end]
    np.testing.assert_array_equal(rows[1]["targets"][:4], short)
    # Cut captions do not learn an end that is none; whole ones do.
    assert [row["length"] for row in rows] == [4, 4]


def test_scores_by_hand():
    captions = [["a", "dog", "runs"], ["a", "a"]]
    references = [[["a", "dog", "runs", "fast"], ["the", "dog"]], [["a", "cat"], ["one", "cat"]]]
    # 4 of 5 words (the second «a» does not count), 2 of 3 pairs, 1 of 2 triples: NLTK counts one
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


def test_mistakes_end_in_one_line(tmp_path, capsys):
    for flags, message in (
        (["--data.uri=tfds:coco"], "data.uri must be builtin:digits or file:FOLDER"),
        ([f"--data.uri=file:{tmp_path}"], str(tmp_path)),
        (["--data.train-encoder=True"], "data.train_encoder needs the weights to begin with"),
        (["--data.encoder=here.npz"], "data.encoder must be file:PATH or empty, got 'here.npz'"),
        (["--model.image-dropout=1"], "model.image_dropout must be in [0, 1), got 1"),
        (["--model.num-heads=3"], "num_heads must divide features"),
    ):
        arguments = ["--preset=smoke", f"--workdir={tmp_path / 'run'}", *flags]
        with pytest.raises(SystemExit) as exit_:
            command_line.main(run, PRESETS, None, arguments)
        assert exit_.value.code == 2
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"number of search\.length_penalties must be at least 1"):
        Config(search=type(Config().search)(length_penalties=()))
