"""The experiment as a user runs it, its readers and metrics, the three ways to tell a class."""

import gzip
import json
import lzma
import os
import pathlib
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import command_line
from experiments.conditional_text import metrics, texts
from experiments.conditional_text.config import PRESETS, Config, ModelConfig, TrainingConfig
from experiments.conditional_text.model import Generator, pretrained_config, with_pretrained
from experiments.conditional_text.train import run
from tests.battery import quick_jit
from zoo.training import functional, path_name
from zoo.transformer import Transformer, TransformerConfig, load_bert, save_bert

ROOT = pathlib.Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "experiments.conditional_text")
SENTENCES = [("a b c . d e", "new"), ("b a !", "old"), ("c d e f g h", "new"), ("a", "old")]


def test_smoke_reaches_what_it_must(tmp_path):
    done = subprocess.run(
        [*COMMAND, "--preset", "smoke", "--workdir", tmp_path],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout
    for title in ("Perplexity of held-out text", "independent classifier", "Coriolanus: "):
        assert title in done.stdout
    expected = json.loads((ROOT / "experiments/conditional_text/expected.json").read_text())
    summary = json.loads((tmp_path / "summary.json").read_text())
    norm = summary["norm"]
    assert len(summary["classes"]) == 9
    assert norm["held_out"]["right"] <= expected["right_label_perplexity_at_most"]
    low, _ = norm["held_out"]["wrong / right interval"]
    assert low >= expected["wrong_over_right_lower_end_at_least"]
    real = summary["held_out_text"]["label accuracy"]
    assert real == pytest.approx(expected["real_label_accuracy"], abs=0.01)
    samples = norm["samples"]["2.0"]
    assert samples["label accuracy"] >= expected["sample_label_accuracy_at_least"]
    assert samples["count"] == 180
    lines = (tmp_path / "norm/samples.jsonl").read_text().splitlines()
    assert "<unk>" not in " ".join(json.loads(line)["text"] for line in lines)
    assert (tmp_path / "classes.png").read_bytes().startswith(b"\x89PNG")


def small_tokens():
    config = Config(data=texts_config())
    return config, texts.make_tokens(config, SENTENCES)


def texts_config():
    return PRESETS["smoke"].data.__class__(tokens="whitespace", longest=4)


def test_pieces_end_at_a_stop_and_fill_rows_of_one_class():
    _, tokens = small_tokens()
    pieces = texts.cut(SENTENCES, ["new", "old"], tokens, longest=4)
    words = [" ".join(tokens.names[i] for i in ids) for ids in pieces.ids]
    assert words == ["a b c .", "d e", "b a !", "c d e f", "g h", "a"]
    assert pieces.labels.tolist() == [0, 0, 1, 0, 0, 1]
    rows = texts.pack(pieces, tokens, length=8)
    assert rows.labels.tolist() == [0, 0, 1]
    found = {}
    for inputs, targets, numbers, label in zip(*rows, strict=True):
        for number in set(numbers.tolist()) - {-1}:
            own = numbers == number
            assert np.ptp(np.flatnonzero(own)) == own.sum() - 1
            assert inputs[own][0] == tokens.start
            assert targets[own][-1] == tokens.end
            np.testing.assert_array_equal(inputs[own][1:], targets[own][:-1])
            assert pieces.labels[number] == label
            found[number] = targets[own][:-1].tolist()
    assert found == {number: ids.tolist() for number, ids in enumerate(pieces.ids)}


def test_plays():
    labelled = texts.read("builtin:shakespeare")
    assert [len(labelled[split]) for split in texts.SPLITS] == [6397, 700]
    names = {name for _, name in labelled["train"]}
    assert names == {*texts.PLAYS}
    speeches = dict(labelled["train"])
    assert (
        speeches[
            "O Romeo, Romeo! wherefore art thou Romeo?\n"
            "Deny thy father and refuse thy name;\n"
            "Or, if thou wilt not, be but sworn my love,\n"
            "And I'll no longer be a Capulet."
        ]
        == "Romeo and Juliet"
    )


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


def test_self_bleu_is_that_of_nltk():
    bleu = pytest.importorskip("nltk.translate.bleu_score")
    generator = np.random.default_rng(0)
    found = [tuple(generator.integers(5, size=n).tolist()) for n in (4, 6, 6, 9, 12)]
    found.append(found[2])
    smooth = bleu.SmoothingFunction(epsilon=metrics.SMOOTHING).method1
    each = [
        bleu.sentence_bleu(found[:i] + found[i + 1 :], text, smoothing_function=smooth)
        for i, text in enumerate(found)
    ]
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
    assert numbers["untold"] == pytest.approx(np.exp(1.5))
    assert numbers["classified"] == 1
    low, high = numbers["wrong / right interval"]
    assert low < np.exp(1.0) < high
    # Of a mean of 200 draws with variance 1, over lengths of 10.
    assert np.log(high / low) == pytest.approx(2 * 1.96 / np.sqrt(200) / 10, rel=0.1)
    classify = metrics.train_classifier(["ab", "abb", "cd", "ccd"] * 5, np.array([0, 0, 1, 1] * 5))
    assert classify(["aab", "dc"]).tolist() == [0, 1]


@pytest.mark.parametrize("variant", ["norm", "prefix", "embedding"])
def test_every_way_to_tell_the_class_is_heard_and_decodes_as_it_reads(variant):
    _, tokens = small_tokens()
    config = Config(
        model=ModelConfig(
            features=8, num_layers=1, num_heads=2, feedforward_features=8, condition_features=4
        ),
        training=TrainingConfig(length=64),
    )
    shapes = nnx.eval_shape(lambda: Generator(config, variant, 2, tokens, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(shapes)
    noise = np.random.default_rng(0)
    state = jax.tree.map(lambda leaf: 0.3 * noise.normal(size=leaf.shape).astype("f"), state)
    ids = jnp.array([[tokens.start, 3, 4, 5]] * 3)
    labels = jnp.array([0, 1, 2])

    @quick_jit
    def read(state):
        model = nnx.merge(graph, state)
        parts, _ = model.decode(ids, model.init_cache(3, 4), condition=labels)
        return model(ids, labels), parts

    whole, parts = read(state)
    assert whole.shape == (3, 4, tokens.size)
    np.testing.assert_allclose(whole, parts, atol=1e-4)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(whole[one] - whole[other]).max() > 1e-2


def test_a_pretrained_bert_gets_conditional_norms(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b", "c", "."]
    model = tokenizers.BertWordPieceTokenizer({name: i for i, name in enumerate(names)})
    model.save(str(tmp_path / "tokenizer.json"))
    bert = TransformerConfig(
        vocab_size=9,
        features=8,
        num_layers=1,
        num_heads=2,
        feedforward_features=8,
        max_positions=64,
    )
    save_bert(tmp_path, Transformer(bert, rngs=nnx.Rngs(0)))
    config = Config(variants=("norm",), model=ModelConfig(pretrained=str(tmp_path)))
    tokens = texts.make_tokens(config, SENTENCES)
    assert (tokens.size, tokens.start, tokens.end) == (9, 2, 3)
    ids = tokens.encode("ab c.")
    assert ids.tolist() == [5, 6, 7, 8]
    assert tokens.decode(ids) == "ab c."
    init, rebuild = functional(lambda rngs: Generator(config, "norm", 2, tokens, rngs=rngs))
    start = jax.tree.map_with_path(
        lambda path, leaf: jnp.full(leaf.shape, "kernel" not in path_name(path), leaf.dtype),
        jax.eval_shape(init, jax.random.key(1)),
    )
    parameters = with_pretrained(start, config)
    plain, _ = load_bert(tmp_path, config=pretrained_config(config))
    graph, state = nnx.split(plain)

    @jax.jit
    def both(parameters, state, ids):
        return rebuild(parameters)(ids, jnp.array([1])), nnx.merge(graph, state)(ids)

    logits, expected = both(parameters, state, ids[None])
    np.testing.assert_array_equal(logits, expected)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data.uri=file:/absent.zip"], "/absent.zip"),
        (["--data.uri=builtin:digits"], "must have the fields text and label, got ['image'"),
        (["--training.length=20"], "training.length must be more than data.longest, got 20 and 20"),
        (["--variants"], "variants must name one at least, got none"),
        (
            ["--variants", "prefix", "--model.pretrained=x"],
            "variants must be norm alone for a pretrained model",
        ),
        (["--model.dropout=1"], "model.dropout must be in [0, 1), got 1"),
    ],
)
def test_mistakes_end_in_one_line(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        command_line.main(run, PRESETS, None, ["--preset=smoke", f"--workdir={tmp_path}", *flags])
    assert exit_.value.code == 2
    said = capsys.readouterr()
    assert message in " ".join((said.err + said.out).split())
    assert "Traceback" not in said.err + said.out


def test_an_empty_class_is_refused(tmp_path):
    (tmp_path / "own.tsv").write_text("label\ttext\n" + "x\tone\n" * 57 + "y\ttwo\n" * 3)
    with pytest.raises(ValueError, match=r"texts of each in training and held out, got \['x'\]"):
        texts.read(f"file:{tmp_path}/own.tsv")
