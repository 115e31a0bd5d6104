"""The experiment as a user runs it: results, other machines, sudden ends, mistakes."""

import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments import command_line
from experiments.on_lstm_language_model import ngram, parsing
from experiments.on_lstm_language_model.config import (
    PRESETS,
    Config,
    ModelConfig,
    TrainingConfig,
)
from experiments.on_lstm_language_model.train import make_optimizer, run
from experiments.on_lstm_language_model.windows import RandomWindows, draw_lengths
from zoo.data import build_vocabulary, open_source
from zoo.ordered import OnLstmLanguageModel
from zoo.training import functional

ROOT = pathlib.Path(__file__).parents[2]
MODULE = "experiments.on_lstm_language_model"


def start(*arguments, code=None, **environment):
    """The experiment in a process of its own; ``code`` runs first."""
    command = [sys.executable, "-m", MODULE]
    if code is not None:
        main = f"import runpy; runpy.run_module({MODULE!r}, run_name='__main__', alter_sys=True)"
        command = [sys.executable, "-c", f"{code}\n{main}"]
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process, returncode=0):
    output = process.communicate(timeout=600)[0]
    assert process.returncode == returncode, output
    return output


def records(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Flags of a run of some seconds, on the first lines of the plays."""
    text = tmp_path_factory.mktemp("text") / "tiny.txt"
    source = open_source("builtin:shakespeare", split="train")
    text.write_text("".join(source[i]["text"] + "\n" for i in range(600)))
    return [
        "--preset=smoke",
        f"--data.uri=file:{text}",
        "--training.batch-size=8",
        "--training.num-steps=20",
        "--loop.log-every=5",
        "--loop.checkpoint-every=10",
    ]


@pytest.fixture(scope="module")
def reference(tiny, tmp_path_factory):
    """The folder of an undisturbed run on one device."""
    workdir = tmp_path_factory.mktemp("reference")
    finish(start(*tiny, "--workdir", workdir))
    return workdir


def test_smoke_reaches_what_it_must(tmp_path):
    output = finish(start("--preset", "smoke", "--workdir", tmp_path))
    expected = json.loads((ROOT / "experiments/on_lstm_language_model/expected.json").read_text())
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["on_lstm"]["valid"] <= expected["valid_perplexity_at_most"]
    assert summary["baseline"]["valid"] == pytest.approx(
        expected["baseline_valid_perplexity"], 1e-3
    )
    assert "5-gram" in output
    assert output.count("layer 2: (") == 3
    for name in ("curve.png", "trees.png", "gates.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["data"]["uri"] == "builtin:shakespeare"
    losses = [record["loss"] for record in records(tmp_path) if "loss" in record]
    assert losses[-1] < losses[0] - 1


def assert_same_run(workdir, reference, *, exact):
    """Two runs wrote the same losses: to the last bit, or to float32 rounding in another order.

    Rounding grows from step to step (Adam divides small gradients by their own size), 1e-7 at the
    first steps becomes 1e-4 after two dozen.
    """
    ours, theirs = records(workdir), records(reference)
    assert [record["step"] for record in ours] == [record["step"] for record in theirs]
    for a, b in zip(ours, theirs, strict=True):
        for name in b.keys() & {"loss", "valid_perplexity"}:
            tolerance = 0 if exact else 2e-6 if b["step"] <= 5 else 3e-4
            assert a[name] == pytest.approx(b[name], rel=tolerance, abs=0), (name, b["step"])


def checksums(workdir):
    """The checksums of every array of the last checkpoint, as the checkpoint holds them."""
    newest = max((workdir / "checkpoints").iterdir(), key=lambda path: int(path.name))
    return json.loads((newest / "manifest" / "data.json").read_text())["content"]["leaves"]


def test_eight_devices_give_the_losses_of_one(tiny, reference, tmp_path):
    # In this process, which has eight; parameters and batch are split.
    flags = [*tiny, "--workdir", str(tmp_path), "--mesh.fsdp=2", "--mesh.model=2"]
    command_line.main(run, PRESETS, None, flags)
    assert_same_run(tmp_path, reference, exact=False)


def test_two_processes_give_the_losses_of_one(tiny, reference, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = [*tiny, "--workdir", tmp_path, "--distributed.num-processes=2"]
    flags += ["--distributed.coordinator-address", address]
    processes = [start(*flags, f"--distributed.process-id={i}") for i in range(2)]
    outputs = [finish(process) for process in processes]
    assert "ON-LSTM" in outputs[0]
    assert "ON-LSTM" not in outputs[1]  # one of them speaks
    assert_same_run(tmp_path, reference, exact=False)


def test_bfloat16_and_accumulation_stay_near(tiny, reference, tmp_path):
    flags = ["--training.bfloat16=True", "--training.accumulation-steps=2"]
    finish(start(*tiny, *flags, "--workdir", tmp_path))
    for ours, theirs in zip(records(tmp_path), records(reference), strict=True):
        if "loss" in ours:
            assert ours["loss"] != theirs["loss"]
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.02)


KILL = """
import os, signal
import experiments.on_lstm_language_model.train as train
make = train.make_train_step
def make_deadly(*args, **kwargs):
    step, calls = make(*args, **kwargs), []
    def deadly(state, batch):
        calls.append(0)
        if len(calls) == {at}:
            os.kill(os.getpid(), signal.{signal})
        return step(state, batch)
    return deadly
train.make_train_step = make_deadly
"""


@pytest.mark.parametrize(("name", "at", "code"), [("SIGKILL", 17, -9), ("SIGTERM", 13, 143)])
def test_ended_at_any_step_the_same_command_ends_alike(name, at, code, tiny, reference, tmp_path):
    flags = [*tiny, "--workdir", tmp_path]
    ended = finish(start(*flags, code=KILL.format(at=at, signal=name)), code)
    if code > 0:
        assert f"stopped at step {at} by SIGTERM" in ended
    assert not (tmp_path / "summary.json").exists()
    finish(start(*flags))
    ours, theirs = ((path / "summary.json").read_text() for path in (tmp_path, reference))
    assert ours == theirs
    if name == "SIGKILL":
        assert_same_run(tmp_path, reference, exact=True)
    assert checksums(tmp_path) == checksums(reference)


GOLD = """
( (S (NP (DT the) (NN king)) (VP (VBD came) (PP (IN to) (NP (DT the) (NN court)))) (. .)) )
( (S (NP (PRP he)) (VP (VBZ is) (ADJP (RB so) (JJ good)) (PP (IN in) (NP (CD 12) (NNS 3s))))) )
"""


def test_published_training_and_scores_against_a_treebank(tiny, tmp_path, capsys):
    (tmp_path / "gold.mrg").write_text(GOLD)
    flags = [
        *tiny,
        f"--workdir={tmp_path / 'run'}",
        f"--parsing.treebank=file:{tmp_path / 'gold.mrg'}",
        "--training.optimizer=nt_asgd",
        "--training.patience=1",
        "--training.learning-rate=5",
        "--training.epochs=5",
        "--training.random-lengths=True",
        "--training.activation-penalty=2",
        "--training.temporal-penalty=1",
        "--model.inverted-weight-drop=False",
        "--model.recurrent-dropout=0.2",
    ]
    command_line.main(run, PRESETS, None, flags)
    valid = [r["valid_perplexity"] for r in records(tmp_path / "run") if "valid_perplexity" in r]
    assert valid[-1] < valid[0]
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    names = [row["trees"] for row in summary["parsing"]]
    ours = [f"layer {n}, {rule}" for n in (1, 2) for rule in ("greedy", "unbiased")]
    assert names[:4] == ours
    assert {"right branching", "left branching", "balanced"} < set(names)
    assert "not held out" in capsys.readouterr().out
    assert (tmp_path / "run/gold.png").exists()


def test_sentences_of_a_treebank_are_read_like_the_text():
    vocabulary = build_vocabulary(["the king N"], split="whitespace")
    ids = parsing.encode_sentences([["The", "king", "1990", "absent"]], vocabulary)
    assert [vocabulary.tokens[i] for i in ids[0]] == ["the", "king", "N", "<unk>"]
    with pytest.raises(ValueError, match="file:PATH of a treebank, got 'tfds:wsj'"):
        parsing.open_treebank("tfds:wsj")


def test_depths_do_not_depend_on_the_company_of_a_sentence():
    init, rebuild = functional(
        lambda rngs: OnLstmLanguageModel(9, 4, 4, 2, chunk_size=2, rngs=rngs)
    )
    parameters = init(jax.random.key(0))
    read = parsing.make_reader(rebuild, end=1)
    sentences = [[2, 3, 4], [5] * 20, [6], [7, 8]]
    depths = read(parameters, sentences)
    for sentence, found in zip(sentences, depths, strict=True):
        ids = np.array([[1, *sentence]])
        alone = rebuild(parameters)(ids).depths.forget[:, 0, 1:]
        assert found.shape == (2, len(sentence))
        np.testing.assert_allclose(found, alone, atol=1e-6)


def test_random_windows_count_every_token_once():
    ids = np.arange(500)
    batches = RandomWindows(ids, batch_size=4, num_steps=20, seed=3)
    assert batches.lengths[:-1].sum() < 125 <= batches.lengths.sum()
    for _ in range(2):
        epoch = [next(batches) for _ in range(batches.batches_per_epoch)]
        targets = np.concatenate([batch["targets"][batch["valid"]] for batch in epoch])
        np.testing.assert_array_equal(np.sort(targets), ids[1:])
        assert [batch["start"].all() for batch in epoch] == [True] + [False] * (len(epoch) - 1)
        for batch, length in zip(epoch, batches.lengths, strict=True):
            assert batch["inputs"].shape == (4, batches.lengths.max())
            np.testing.assert_array_equal(batch["mask"].sum(axis=1), length)
        for before, after, length in zip(epoch[:-1], epoch[1:], batches.lengths, strict=False):
            np.testing.assert_array_equal(after["inputs"][:, 0], before["targets"][:, length - 1])


def test_lengths_of_windows_follow_their_law():
    lengths = draw_lengths(700_000, num_steps=70, seed=0)
    short = lengths < 52
    # 10,000 draws, 5 % of them short: five standard deviations are 1.1 % of all, and 0.25 or 1.1
    # of the means. Lengths are cut to integers, which takes half away.
    assert abs(short.mean() - 0.05) < 0.011
    assert abs(lengths[~short].mean() - 69.5) < 0.25
    assert abs(lengths[short].mean() - 34.5) < 1.2
    assert draw_lengths(1000, num_steps=1, seed=0).min() == 5


def test_the_rate_follows_the_length_of_the_window():
    training = TrainingConfig(
        optimizer="sgd", random_lengths=True, learning_rate=3.0, num_steps=70, gradient_clip=1e9
    )
    optimizer = make_optimizer(training, 10, np.array([70, 35]))
    state = optimizer.init(np.float32(0))
    updates = []
    for _ in range(3):
        update, state = optimizer.update(np.float32(1), state, np.float32(0))
        updates.append(float(update))
    assert updates == pytest.approx([-3.0, -1.5, -3.0])


def fails(capsys, *flags):
    """Runs in this process; returns what was said."""
    with pytest.raises(SystemExit) as exit_:
        command_line.main(run, PRESETS, None, [str(flag) for flag in flags])
    assert exit_.value.code == 2
    said = capsys.readouterr()
    assert "Traceback" not in said.err + said.out
    return said.err + said.out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model.chunk-size=7"], "chunk_size must divide the number of units 32, got 7"),
        (["--data.uri=ftp://x"], "must start with one of builtin:, file:, tfds:"),
        (["--data.uri=file:/absent/text.txt"], "/absent/text.txt"),
        (["--training.learning-rate=-1"], "training.learning_rate must be at least 0, got -1"),
        (["--model.input-dropout=1.5"], r"model.input_dropout must be in [0, 1), got 1.5"),
        (
            ["--preset=huge"],
            "--preset must be one of small, smoke, penn_treebank, paper, got 'huge'",
        ),
        (["--no-such-flag=1"], "--no-such-flag"),
        (["--parsing.treebank=file:/absent.zip"], "/absent.zip"),
        (["--mesh.data=3"], "3"),
    ],
)
def test_mistakes_end_in_one_line(flags, message, tiny, tmp_path, capsys):
    assert message in fails(capsys, *tiny, "--workdir", tmp_path, *flags)


def test_empty_text(tiny, tmp_path, capsys):
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    said = fails(capsys, *tiny, f"--data.uri=file:{empty}", "--workdir", tmp_path / "run")
    assert str(empty) in said
    assert "empty" in said


def test_invalid_utf8_is_located(tiny, tmp_path, capsys):
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"to be\nor \xff not\n" * 9)
    said = fails(capsys, *tiny, f"--data.uri=file:{bad}", "--workdir", tmp_path / "run")
    assert "line 2" in said
    assert "byte offset 9" in said


def test_workdir_of_another_config(tiny, reference, capsys):
    said = fails(capsys, *tiny, "--workdir", reference, "--training.seed=1")
    assert "training.seed: 0 there, 1 here" in said


def test_vocabulary_mismatch_on_resume(tiny, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be\n" * 400)
    flags = [*tiny, f"--data.uri=file:{text}", "--data.min-count=1", "--workdir", tmp_path / "run"]
    command_line.main(run, PRESETS, None, list(map(str, flags)))
    capsys.readouterr()
    text.write_text("to see or not to see it\n" * 400)
    assert "trained with 6 tokens" in fails(capsys, *flags)


def test_a_diverging_run_is_stopped(tiny, tmp_path, capsys):
    flags = [*tiny, "--workdir", tmp_path, "--training.optimizer=sgd"]
    said = fails(capsys, *flags, "--training.learning-rate=1e38", "--training.gradient-clip=1e38")
    assert "FloatingPointError" in said
    assert "learning rate" in said


def test_config_is_nested_and_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().model.num_layers = 3
    with pytest.raises(ValueError, match="random_lengths needs sgd or nt_asgd, got adamw"):
        TrainingConfig(random_lengths=True)
    with pytest.raises(ValueError, match=r"model\.num_layers must be at least 1, got 0"):
        ModelConfig(num_layers=0)


def kneser_ney_by_definition(train, history, word, vocab_size, order):
    """One probability from the formula in Chen & Goodman, counted anew by brute force."""

    def grams(n):
        return [tuple(train[i : i + n]) for i in range(len(train) - n + 1)]

    def counts(n):
        kept = grams(n) if n == order else [gram[1:] for gram in set(grams(n + 1))]
        return {gram: kept.count(gram) for gram in set(kept)}

    def probability(n):
        if n == 0:
            return 1 / vocab_size
        table = counts(n)
        tally = [sum(c == k for c in table.values()) for k in range(5)]
        base = tally[1] / max(tally[1] + 2 * tally[2], 1)
        discount = {0: 0.0}
        for k in (1, 2, 3):
            d = k - (k + 1) * base * tally[k + 1] / max(tally[k], 1)
            discount[k] = min(max(d, 0.1), k)
        context = tuple(history[len(history) - n + 1 :])
        after = [c for gram, c in table.items() if gram[:-1] == context]
        if not after:
            return probability(n - 1)
        own = table.get((*context, word), 0)
        reserved = sum(discount[min(c, 3)] for c in after)
        kept = max(own - discount[min(own, 3)], 0)
        return (kept + reserved * probability(n - 1)) / sum(after)

    return probability(order)


def test_baseline_is_modified_kneser_ney():
    generator = np.random.default_rng(0)
    train = generator.choice(5, size=60, p=[0.4, 0.3, 0.15, 0.1, 0.05])
    orders = ngram.fit_kneser_ney(train, vocab_size=6, order=3)
    for history in ([0, 1], [4, 4], [1, 5]):
        texts = [np.array([*history, word]) for word in range(6)]
        ours = [ngram.probabilities(orders, text, vocab_size=6)[-1] for text in texts]
        assert sum(ours) == pytest.approx(1)
        theirs = [kneser_ney_by_definition(train, history, word, 6, 3) for word in range(6)]
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_baseline_sums_to_one_on_the_plays_and_needs_enough_text():
    text = np.random.default_rng(1).zipf(1.5, 3000) % 50
    orders = ngram.fit_kneser_ney(text[:2000], vocab_size=50)
    history = text[2000:2004]
    each = [np.append(history, word) for word in range(50)]
    total = sum(ngram.probabilities(orders, ids, vocab_size=50)[-1] for ids in each)
    assert total == pytest.approx(1)
    with pytest.raises(ValueError, match="at least 5 tokens is needed, got 3"):
        ngram.fit_kneser_ney(text[:3], vocab_size=50)
