"""Class-conditional text generation: readers, packing, metrics, and the three ways to condition."""

import gzip
import json
import lzma
import pathlib
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.conditional_text import metrics, texts
from experiments.conditional_text.config import Config, DataConfig, ModelConfig, TrainingConfig
from experiments.conditional_text.model import transformer_config
from experiments.conditional_text.train import Data, build
from tests.battery import quick_jit
from zoo.training import make_mesh
from zoo.transformer import Transformer, TransformerConfig, load_bert
from zoo.transformer.weights import save_bert

ROOT = pathlib.Path(__file__).parents[2]
SENTENCES = [("a b c . d e", "new"), ("b a !", "old"), ("c d e f g h", "new"), ("a", "old")]
SIZES = {"features": 8, "num_layers": 1, "num_heads": 2, "feedforward_features": 8}
TINY = Config(
    data=DataConfig(tokens="whitespace", longest=4),
    model=ModelConfig(condition_features=4, dropout=0.0, **SIZES),
    training=TrainingConfig(length=8, batch_size=2),
)


def tiny_data(config=TINY):
    classes = ["new", "old"]
    vocabulary = texts.make_vocabulary(config, SENTENCES)
    pieces = texts.cut(SENTENCES, classes, vocabulary, longest=4)
    return Data(classes, vocabulary, pieces, pieces)


@pytest.mark.slow
def test_smoke_reaches_what_it_must(tmp_path):
    command = [sys.executable, "-m", "experiments.conditional_text", "--preset=smoke"]
    subprocess.run([*command, f"--workdir={tmp_path}"], cwd=ROOT, check=True)
    expected = json.loads((ROOT / "experiments/conditional_text/expected.json").read_text())
    summary = json.loads((tmp_path / "summary.json").read_text())
    norm, samples = summary["norm"], summary["norm"]["samples"]["2.0"]
    assert len(summary["classes"]) == 9
    assert norm["held_out"]["right"] <= expected["right_label_perplexity_at_most"]
    assert norm["held_out"]["right"] < summary["unigram_perplexity"]
    low, _ = norm["held_out"]["wrong / right interval"]
    assert low >= expected["wrong_over_right_lower_end_at_least"]
    real = summary["held_out_text"]["label accuracy"]
    assert real == pytest.approx(expected["real_label_accuracy"], abs=0.01)
    assert samples["label accuracy"] >= expected["sample_label_accuracy_at_least"]
    assert samples["count"] == 180
    assert "<unk>" not in (tmp_path / "norm/samples.jsonl").read_text()
    assert (tmp_path / "classes.png").read_bytes().startswith(b"\x89PNG")


def test_pieces_end_at_a_stop_and_fill_rows_of_one_class():
    _, vocabulary, pieces, _ = tiny_data()
    words = [vocabulary.decode(ids) for ids in pieces.ids]
    assert words == ["a b c .", "d e", "b a !", "c d e f", "g h", "a"]
    assert pieces.labels.tolist() == [0, 0, 1, 0, 0, 1]
    rows = texts.pack(pieces, vocabulary, length=8)
    assert [row["labels"].item() for row in rows] == [0, 0, 1]
    found = {}
    for inputs, targets, numbers, label in map(dict.values, rows):
        for number in set(numbers.tolist()) - {-1}:
            own = numbers == number
            assert np.ptp(np.flatnonzero(own)) == own.sum() - 1
            assert inputs[own][0] == targets[own][-1] == vocabulary.end
            np.testing.assert_array_equal(inputs[own][1:], targets[own][:-1])
            assert pieces.labels[number] == label
            found[number] = targets[own][:-1].tolist()
    assert found == {number: ids.tolist() for number, ids in enumerate(pieces.ids)}


def test_plays():
    labelled = texts.read("builtin:shakespeare")
    assert [len(labelled[split]) for split in texts.SPLITS] == [6397, 700]
    assert {name for _, name in labelled["train"]} == {*texts.PLAYS}
    speech = (
        "O Romeo, Romeo! wherefore art thou Romeo?\nDeny thy father and refuse thy name;\n"
        "Or, if thou wilt not, be but sworn my love,\nAnd I'll no longer be a Capulet."
    )
    assert dict(labelled["train"])[speech] == "Romeo and Juliet"


def test_sets_by_their_form(tmp_path):
    with zipfile.ZipFile(tmp_path / "polarity.zip", "w") as archive:
        archive.writestr("rt.pos", "good \n" * 20)
        archive.writestr("rt.neg", "bad \n" * 10)
    found = texts.read(f"file:{tmp_path}/polarity.zip")
    assert found["held out"] == [("bad", "negative"), ("good", "positive"), ("good", "positive")]
    with zipfile.ZipFile(tmp_path / "reviews.zip", "w") as archive:
        for split in ("train", "valid", "test"):
            archive.writestr(f"x.{split}.data", "很好\t1\n不好\t0\n")
    found = texts.read(f"file:{tmp_path}/reviews.zip")
    assert found["train"] == [("很好", "positive"), ("不好", "negative")]
    assert len(found["held out"]) == 4
    for part in ("train", "dev", "test"):
        with gzip.open(tmp_path / f"{part}.txt.gz", "wt") as file:
            file.write("(3 (2 A) (4 (4 lovely) (2 film)))\n(2 (2 a) (2 b))\n(0 (2 No) (1 one))\n")
    found = texts.read(f"file:{tmp_path}")
    assert found["train"] == [("a lovely film", "positive"), ("no one", "negative")]
    for part in ("train_pos", "train_neg", "test_pos", "test_neg"):
        with lzma.open(tmp_path / f"{part}.tsv.xz", "wt") as file:
            file.write(f"0\t9\t{part}<br />it\n")
    found = texts.read(f"file:{tmp_path}")
    assert found["held out"] == [("test_neg it", "negative"), ("test_pos it", "positive")]
    (tmp_path / "own.tsv").write_text("label\ttext\n" + "x\tone\ny\ttwo\n" * 30)
    assert len(texts.read(f"file:{tmp_path}/own.tsv")["held out"]) == 6
    (tmp_path / "own.tsv").write_text("label\ttext\n" + "x\tone\n" * 57 + "y\ttwo\n" * 3)
    assert ("two", "y") in texts.read(f"file:{tmp_path}/own.tsv")["held out"]
    for rest in ("", "y\ttwo\n"):  # one class; a class with nothing left to train on
        (tmp_path / "own.tsv").write_text("label\ttext\n" + "x\tone\n" * 9 + rest)
        with pytest.raises(ValueError, match=r"two classes or more, each with several texts"):
            texts.read(f"file:{tmp_path}/own.tsv")
    with pytest.raises(ValueError, match=r"fields text and label, .* has a, b; where the first"):
        texts.read(f"file:{tmp_path}/own.tsv?columns=a,b")
    (tmp_path / "own.tsv").write_text("label\ttext\n \tone\n")
    with pytest.raises(ValueError, match=r"example 1 of .* has no text or no label"):
        texts.read(f"file:{tmp_path}/own.tsv")
    (tmp_path / "files/b").mkdir(parents=True)
    (tmp_path / "files/a.txt").write_text("one\ntwo\n\n \nthree\n")
    (tmp_path / "files/b/x.txt").write_text("four\n" * 4)
    found = texts.read(f"file:{tmp_path}/files")  # a class a file, or a folder of files
    assert sorted(found["train"] + found["held out"]) == [
        *[("four", "b")] * 4,
        ("one\ntwo", "a"),
        ("three", "a"),
    ]


def test_self_bleu_is_that_of_nltk():
    bleu = pytest.importorskip("nltk.translate.bleu_score")
    generator = np.random.default_rng(0)
    found = [tuple(generator.integers(5, size=n).tolist()) for n in (4, 6, 6, 9, 12)]
    found.append(found[2])
    options = {"smoothing_function": bleu.SmoothingFunction(epsilon=metrics.SMOOTHING).method1}
    others = [found[:i] + found[i + 1 :] for i in range(len(found))]
    each = [bleu.sentence_bleu(*pair, **options) for pair in zip(others, found, strict=True)]
    assert metrics.self_bleu(found) == pytest.approx(np.mean(each), abs=1e-12)


def test_other_metrics():
    found = ["abab", "abc"]
    assert metrics.distinct(found, 1) == pytest.approx(3 / 7)
    assert metrics.distinct(found, 2) == pytest.approx(3 / 5)
    assert metrics.copied(found, ["abc", "cab"], n=2) == (4 / 5, 1 / 2)
    low, high = metrics.share_interval(np.array([True] * 90 + [False] * 10))
    assert (low, high) == (pytest.approx(0.8256, abs=1e-4), pytest.approx(0.9448, abs=1e-4))
    labels = np.array([0, 1] * 100)
    lengths = np.full(200, 10)
    losses = np.full((200, 3), 20.0)
    losses[:, 2] = 15.0
    losses[np.arange(200), labels] = 10.0 + np.random.default_rng(0).normal(size=200)
    numbers = metrics.label_perplexities(losses, labels, lengths)
    assert numbers["wrong"] == pytest.approx(np.exp(2.0))
    assert numbers["unconditional"] == pytest.approx(np.exp(1.5))
    assert numbers["classified"] == 1
    low, high = numbers["wrong / right interval"]
    assert low < np.exp(1.0) < high
    # Of a mean of 200 draws with variance 1, over lengths of 10.
    assert np.log(high / low) == pytest.approx(2 * 1.96 / np.sqrt(200) / 10, rel=0.1)
    classify = metrics.train_classifier(["ab", "abb", "cd", "ccd"] * 5, np.array([0, 0, 1, 1] * 5))
    assert classify(["aab", "dc"]).tolist() == [0, 1]


@pytest.mark.parametrize("variant", ["norm", "prefix", "embedding"])
def test_every_variant_depends_on_the_class_and_decodes_as_it_reads(variant):
    data = tiny_data()
    experiment = build(TINY, make_mesh(), data, variant)
    noise = np.random.default_rng(0)
    parameters = jax.tree.map(
        lambda leaf: 0.3 * noise.normal(size=leaf.shape).astype("f"),
        jax.eval_shape(experiment.init, jax.random.key(0)),
    )
    ids = jnp.array([[data.vocabulary.end, 3, 4, 5]] * 3)
    labels = jnp.array([0, 1, 2])

    @quick_jit
    def read(parameters, batch):
        model = experiment.merge(parameters)
        parts, _ = model.decode(ids, model.init_cache(3, 4), condition=labels[:, None])
        loss = experiment.loss(parameters, batch, key=jax.random.key(0), carry=())
        return model(ids, labels), parts, loss

    logits, parts, loss = read(parameters, next(experiment.batches))
    assert logits.shape == (3, 4, len(data.vocabulary))
    np.testing.assert_allclose(logits, parts, atol=1e-4)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(logits[one] - logits[other]).max() > 1e-2
    assert 1 < loss.total / loss.weight < 10


@pytest.mark.slow
def test_a_pretrained_bert_gets_conditional_norms(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b", "c", "."]
    model = tokenizers.BertWordPieceTokenizer({name: i for i, name in enumerate(names)})
    model.save(str(tmp_path / "tokenizer.json"))
    bert = TransformerConfig(vocab_size=9, max_positions=64, **SIZES)
    save_bert(tmp_path, Transformer(bert, rngs=nnx.Rngs(0)))
    config = Config(
        variants=("norm",),
        model=ModelConfig(pretrained=str(tmp_path), dropout=0.0),
        training=TrainingConfig(length=64, batch_size=2),
    )
    data = tiny_data(config)
    vocabulary = data.vocabulary
    assert (texts.start_of(vocabulary), vocabulary.end) == (2, 3)
    assert texts.banned(vocabulary) == (0, 1, 2, 4)
    ids = vocabulary.encode("ab c.")
    assert ids.tolist() == [5, 6, 7, 8]
    experiment = build(config, make_mesh(), data)
    causal = transformer_config(config, "norm", 2, len(vocabulary))
    graph, state = nnx.split(load_bert(tmp_path, config=causal)[0])

    @jax.jit
    def both(state, ids):
        model = experiment.merge(experiment.init(jax.random.key(1)))
        return model(ids, jnp.array([1])), nnx.merge(graph, state)(ids)

    logits, expected = both(state, ids[None])
    np.testing.assert_array_equal(logits, expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: texts.read("builtin:digits"),
            "must have the fields text and label, builtin:digits has image",
        ),
        (
            lambda: Config(training=TrainingConfig(length=48)),
            "training.length must be more than data.longest, got 48 and 48",
        ),
        (
            lambda: Config(variants=("prefix",), model=ModelConfig(pretrained=".")),
            "variants must be norm alone for a pretrained model",
        ),
        (lambda: Config(variants=()), "variants must hold at least one"),
    ],
)
def test_mistakes_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
