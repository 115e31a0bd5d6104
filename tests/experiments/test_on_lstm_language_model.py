"""The experiment as a user runs it: results, devices, mistakes; its windows, trees and baseline."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments import command_line
from experiments.on_lstm_language_model import ngram, parsing
from experiments.on_lstm_language_model.config import PRESETS, ParsingConfig, TrainingConfig
from experiments.on_lstm_language_model.train import build, keep_vocabulary, make_optimizer, run
from experiments.on_lstm_language_model.windows import RandomWindows, draw_lengths
from experiments.running import train
from tests.battery import quick_jit
from zoo.data import build_vocabulary, open_source
from zoo.ordered import OnLstmLanguageModel
from zoo.training import functional, make_mesh

FOLDER = pathlib.Path(__file__).parents[2] / "experiments" / "on_lstm_language_model"


def records(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_smoke_reaches_what_it_must(tmp_path):
    command = [sys.executable, "-m", "experiments.on_lstm_language_model", "--preset", "smoke"]
    done = subprocess.run(
        [*command, "--workdir", tmp_path],
        cwd=FOLDER.parents[1],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    expected = json.loads((FOLDER / "expected.json").read_text())
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["on_lstm"]["valid"] <= expected["valid_perplexity_at_most"]
    assert summary["unigram"]["valid"] == pytest.approx(92.77, 1e-3)
    assert "learnt" not in done.stdout
    baseline = expected["baseline_valid_perplexity"]
    assert summary["baseline"]["valid"] == pytest.approx(baseline, 1e-3)
    assert "5-gram" in done.stdout
    assert done.stdout.count("layer 2: (") == 3
    for name in ("curve.png", "trees.png", "gates.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    losses = [record["loss"] for record in records(tmp_path) if "loss" in record]
    assert losses[-1] < losses[0] - 1


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


@pytest.mark.slow
def test_eight_devices_give_the_losses_of_one(tiny, tmp_path):
    uri = next(flag for flag in tiny if "uri" in flag).partition("=")[2]
    config = PRESETS["smoke"]
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, uri=uri),
        training=dataclasses.replace(config.training, batch_size=8, num_steps=20),
        loop=dataclasses.replace(config.loop, log_every=5),
    )
    for name, mesh in (
        ("one", make_mesh(devices=jax.devices()[:1])),
        ("eight", make_mesh(fsdp=2, model=2)),
    ):
        train(build(config, mesh), mesh, tmp_path / name, config.loop)
    one, eight = records(tmp_path / "one"), records(tmp_path / "eight")
    assert len(one) > 5
    for ours, theirs in zip(eight, one, strict=True):
        for name in theirs.keys() & {"loss", "valid_perplexity"}:
            # Rounding grows: Adam divides small gradients by their own size.
            tolerance = 2e-6 if theirs["step"] <= 5 else 3e-4
            assert ours[name] == pytest.approx(theirs[name], rel=tolerance), (name, theirs["step"])


def test_build_computes_nothing_and_its_step_fits(tmp_path):
    (tmp_path / "text.txt").write_text("to be or not to be\n" * 400)
    mesh = make_mesh(fsdp=2, model=2)
    data = dataclasses.replace(PRESETS["smoke"].data, uri=f"file:{tmp_path / 'text.txt'}")
    parsing_config = PRESETS["smoke"].parsing
    config = dataclasses.replace(PRESETS["paper"], data=data, parsing=parsing_config)
    experiment = build(config, mesh)
    state = experiment.abstract_state(mesh)
    after, _ = jax.eval_shape(
        experiment.train_step(state.shardings), state, next(experiment.batches)
    )
    assert jax.tree.structure(after) == jax.tree.structure(state)
    kernel = state.parameters["layers"]["1"]["recurrent_kernel"]
    assert kernel.shape == (1150, 4 * 1150 + 2 * 115)
    assert tuple(kernel.sharding.spec) == ("fsdp", "model")


GOLD = """
( (S (NP (DT the) (NN king)) (VP (VBD came) (PP (IN to) (NP (DT the) (NN court)))) (. .)) )
( (S (NP (PRP he)) (VP (VBZ is) (ADJP (RB so) (JJ good)) (PP (IN in) (NP (CD 12) (NNS 3s))))) )
"""


@pytest.mark.slow
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
        parsing.open_treebank(ParsingConfig(treebank="tfds:wsj"))


def test_treebanks_of_other_languages(tmp_path):
    path = tmp_path / "one.fid"
    path.write_text("<S ID=1>\n(IP (NP (PN 她)) (VP (VV 笑)) (PU 。))\n", encoding="gb18030")
    config = ParsingConfig(f"file:{tmp_path}", tags="chinese", encoding="gb18030", pattern="*.fid")
    assert [tree.words for tree in parsing.open_treebank(config)] == [("她", "笑")]
    assert parsing.open_treebank(ParsingConfig()) == []


@pytest.mark.slow
def test_depths_do_not_depend_on_the_company_of_a_sentence():
    init, merge = functional(lambda rngs: OnLstmLanguageModel(9, 4, 4, 2, chunk_size=2, rngs=rngs))
    parameters = init(jax.random.key(0))
    read = parsing.make_reader(merge, end=1)
    sentences = [[2, 3, 4], [5] * 20, [6], [7, 8]]
    depths = read(parameters, sentences)
    assert [found.shape for found in depths] == [(2, len(sentence)) for sentence in sentences]
    for sentence, found in zip(sentences, depths, strict=True):
        (alone,) = read(parameters, [sentence])
        np.testing.assert_allclose(found, alone, atol=1e-6)
    ids = np.array([[1, *sentences[0]]])
    expected = quick_jit(lambda parameters: merge(parameters)(ids).depths.forget)(parameters)
    np.testing.assert_allclose(depths[0], expected[:, 0, 1:], atol=1e-6)
    assert read(parameters, []) == []


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


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--model.chunk-size=7", "chunk_size must divide the number of units 32, got 7"),
        ("--data.uri=ftp://x", "must start with one of builtin:, file:, tfds:"),
        ("--training.learning-rate=-1", "training.learning_rate must be at least 0, got -1"),
        ("--model.input-dropout=1.5", r"model.input_dropout must be in [0, 1), got 1.5"),
        ("--parsing.treebank=file:/absent.zip", "/absent.zip"),
        ("--training.random-lengths=True", "random_lengths needs sgd"),
    ],
)
def test_mistakes_end_in_one_line(flag, message, tiny, tmp_path, capsys):
    with pytest.raises(SystemExit):
        command_line.main(run, PRESETS, None, [*tiny, f"--workdir={tmp_path}", flag])
    said = capsys.readouterr()
    assert message in said.err
    assert "Traceback" not in said.err + said.out


def test_a_run_goes_on_with_its_own_vocabulary(tmp_path):
    ours, other = (build_vocabulary([text], min_count=1) for text in ("to be", "to see it"))
    keep_vocabulary(tmp_path / "vocabulary.json", ours)
    keep_vocabulary(tmp_path / "vocabulary.json", ours)
    with pytest.raises(ValueError, match=f"trained with {len(ours)} tokens"):
        keep_vocabulary(tmp_path / "vocabulary.json", other)


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
