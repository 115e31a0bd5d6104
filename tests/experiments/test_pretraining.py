"""Pretraining as a user runs it: the corpus, results, other machines, sudden ends, mistakes."""

import dataclasses
import functools
import json
import os
import pathlib
import re
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from array_record.python import array_record_module

from experiments import command_line
from experiments.pretraining import corpus, finetune, records, train
from experiments.pretraining.baselines import entropies
from experiments.pretraining.config import PRESETS, Config, DataConfig, ObjectiveConfig
from experiments.pretraining.train import make_example, row_keys, run
from zoo.data import Pipeline, open_source
from zoo.transformer import PackedRows

ROOT = pathlib.Path(__file__).parents[2]
# Compiling is most of the cost of these runs, and the draws of a model's start most of that. On
# level 1 the programs are compiled in a fifth of the time and run nearly as fast.
LEVEL = {"xla_backend_optimization_level": 1}


@pytest.fixture(scope="module", autouse=True)
def quick_to_compile():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=LEVEL))
        yield


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """The first lines of the plays."""
    path = tmp_path_factory.mktemp("text") / "tiny.txt"
    source = open_source("builtin:shakespeare", split="train")
    path.write_text("".join(source[i]["text"] + "\n" for i in range(700)))
    return path


@pytest.fixture(scope="module")
def tiny(text, tmp_path_factory):
    """Flags of a run of some seconds."""
    directory = tmp_path_factory.mktemp("corpus")
    return [
        "--preset=smoke",
        f"--data.uri=file:{text}",
        f"--data.directory={directory}",
        "--data.length=32",
        "--model.features=16",
        "--model.feedforward-features=16",
        "--training.batch-size=8",
        "--training.num-steps=6",
        "--training.warmup-steps=2",
        "--training.evaluation-batch-size=8",
        "--loop.log-every=2",
        "--loop.checkpoint-every=3",
    ]


def records_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def start(*arguments):
    """The experiment in a process of its own, on one device."""
    flags = " ".join(f"--{name}={value}" for name, value in LEVEL.items())
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.pretraining", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def on_eight(tiny, tmp_path_factory):
    """Flags and folder of an undisturbed run in this process: rows, parameters and heads split."""
    flags = [*tiny, "--mesh.fsdp=2", "--mesh.model=2"]
    workdir = tmp_path_factory.mktemp("eight")
    command_line.main(run, PRESETS, None, [*flags, f"--workdir={workdir}"])
    return flags, workdir


def test_smoke_reaches_what_it_must(tmp_path):
    command_line.main(run, PRESETS, None, ["--preset=smoke", f"--workdir={tmp_path}"])
    expected = json.loads((ROOT / "experiments/pretraining/expected.json").read_text())
    summary = json.loads((tmp_path / "summary.json").read_text())
    for name, value in expected["baseline"].items():
        assert summary["baseline"][name] == pytest.approx(value, abs=1e-3)
    assert summary["transformer"]["valid_loss"] <= expected["valid_loss_at_most"]
    assert summary["transformer"]["valid_loss"] < summary["baseline"]["unigram"]
    assert summary["transformer"]["valid_kept_accuracy"] >= expected["kept_accuracy_at_least"]
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    fine_tune_from(tmp_path / "bert", tmp_path)


def fine_tune_from(pretrained, folder):
    """Both arms learn a few reviews that one word tells apart; what was done is not done again."""
    for split in ("train", "test"):
        for name, word in (("pos", "good"), ("neg", "bad")):
            lines = "".join(f"{i}\tthe play was {word}\n" for i in range(12))
            (folder / f"{split}_{name}.tsv").write_text("id\ttext\n" + lines)
    config = finetune.Config(
        pretrained=str(pretrained),
        positive=f"file:{folder}/{{split}}_pos.tsv",
        negative=f"file:{folder}/{{split}}_neg.tsv",
        length=24,
        train_examples=24,
        test_examples=20,
        batch_size=8,
        num_epochs=6,
        learning_rate=3e-3,
        seeds=2,
        workdir=str(folder / "finetune"),
        progress=False,
    )
    finetune.run(dataclasses.replace(config, seeds=1))
    first = (folder / "finetune/metrics.jsonl").read_text()
    finetune.run(config)
    assert (folder / "finetune/metrics.jsonl").read_text().startswith(first)
    summary = json.loads((folder / "finetune/summary.json").read_text())
    arms = summary["accuracies"]
    assert {name: len(values) for name, values in arms.items()} == {
        "pretrained": 2,
        "from scratch": 2,
    }
    assert np.mean(arms["pretrained"]) == summary["pretrained"]["mean"] > 0.9
    margins = np.subtract(arms["pretrained"], arms["from scratch"])
    assert summary["margin"]["mean"] == pytest.approx(margins.mean())
    assert summary["margin"]["std"] == pytest.approx(margins.std(ddof=1))
    assert (summary["train_examples"], summary["test_examples"]) == (24, 20)


def assert_same_losses(workdir, reference):
    ours, theirs = records_of(workdir), records_of(reference)
    assert [record["step"] for record in ours] == [record["step"] for record in theirs]
    for a, b in zip(ours, theirs, strict=True):
        for name in b.keys() & {"loss", "valid_loss"}:
            assert a[name] == pytest.approx(b[name], rel=2e-5), (name, b["step"])


def test_one_device_and_two_processes_give_the_losses_of_eight(tiny, on_eight, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    several = ["--distributed.num-processes=2", "--distributed.coordinator-address", address]
    processes = [
        start(*tiny, "--workdir", tmp_path / "two", *several, f"--distributed.process-id={i}")
        for i in range(2)
    ]
    outputs = [finish(process) for process in processes]
    assert ["Transformer" in output for output in outputs] == [True, False]  # one of them speaks
    finish(start(*tiny, "--workdir", tmp_path / "one"))
    for name in ("one", "two"):
        assert_same_losses(tmp_path / name, on_eight[1])


class Interrupted(Pipeline):
    """Breaks off before the fifth batch."""

    def __next__(self):
        if self.get_state()["batch"] >= 4:
            raise RuntimeError("power cut")
        return super().__next__()


def test_a_run_that_broke_off_ends_bit_for_bit_as_if_it_had_not(on_eight, tmp_path, monkeypatch):
    flags, workdir = on_eight
    flags = [*flags, f"--workdir={tmp_path}"]
    with monkeypatch.context() as patch:
        patch.setattr(train, "Pipeline", Interrupted)
        with pytest.raises(RuntimeError, match="power cut"):
            command_line.main(run, PRESETS, None, flags)
    command_line.main(run, PRESETS, None, flags)
    # Every array of the last checkpoint has the same checksum.
    ours, theirs = (
        json.loads((folder / "checkpoints/6/manifest/data.json").read_text())["content"]["leaves"]
        for folder in (tmp_path, workdir)
    )
    assert ours == theirs
    assert records_of(tmp_path)[-1] == records_of(workdir)[-1]


@pytest.mark.parametrize("kind", ["causal", "prefix"])
def test_other_objectives(tiny, tmp_path, kind):
    flags = [
        *tiny,
        f"--workdir={tmp_path}",
        f"--objective.kind={kind}",
        "--training.optimizer=lamb",
        "--training.lookahead=True",
        "--training.ema-decay=0.5",
        "--data.separate-documents=" + str(kind == "causal"),
    ]
    command_line.main(run, PRESETS, None, flags)
    losses = [record["loss"] for record in records_of(tmp_path) if "loss" in record]
    assert losses[-1] < losses[0]


def config_of(text, **changes):
    return dataclasses.replace(DataConfig(uri=f"file:{text}", length=32, shards=3), **changes)


def test_corpus_is_the_same_however_it_is_made(text, tmp_path):
    manifest = corpus.prepare(config_of(text), tmp_path / "once", say=False)
    assert manifest["rows"]["train"] == sum(
        shard["rows"] for shard in manifest["shards"] if shard["split"] == "train"
    )
    # A run that was stopped: one file is there, one is damaged, one is missing.
    again = tmp_path / "again"
    corpus.prepare(config_of(text), again, say=False)
    files = [shard["file"] for shard in manifest["shards"] if shard["split"] == "train"]
    kept = (again / files[0]).stat().st_mtime_ns
    (again / files[1]).write_bytes(b"damaged")
    (again / files[2]).unlink()
    (again / "manifest.json").unlink()
    assert corpus.prepare(config_of(text), again, say=False) == manifest
    assert (again / files[0]).stat().st_mtime_ns == kept
    # By processes of their own.
    parallel = corpus.prepare(config_of(text, workers=2), tmp_path / "parallel", say=False)
    assert parallel == manifest
    rows = records.RecordRows(again, "train")
    tokenizer = corpus.load_tokenizer(again)
    read = "".join(tokenizer.decode(rows[i]["ids"].tolist()) for i in range(3))
    assert read.startswith("first citizen:before we proceed any")
    with pytest.raises(ValueError, match="holds a corpus prepared with"):
        corpus.prepare(config_of(text, length=64), again, say=False)


def test_wordpiece_words_and_documents(tmp_path):
    path = tmp_path / "reviews.tsv"
    body = "".join(f"{i}\tgreat acting here. dull plot though!\n" for i in range(60))
    path.write_text("id\ttext\n" + body)
    data = config_of(path, tokens="wordpiece", vocab_size=100, shards=1)
    corpus.prepare(data, tmp_path / "corpus", say=False)
    rows = records.RecordRows(tmp_path / "corpus", "train")
    tokenizer = corpus.load_tokenizer(tmp_path / "corpus")
    row = rows[0]
    tokens = [tokenizer.id_to_token(number) for number in row["ids"].tolist()]
    assert tokens[0] == "[CLS]"
    for token, starts in zip(tokens, row["word_starts"].tolist(), strict=True):
        assert starts == (not token.startswith(("##", "[")))
    assert set(np.diff(row["document_ids"][row["document_ids"] > 0]).tolist()) <= {0, 1}


def test_damaged_records_are_refused_or_skipped(text, tmp_path):
    manifest = corpus.prepare(config_of(text), tmp_path, say=False)
    shard = next(shard for shard in manifest["shards"] if shard["split"] == "train")
    whole = records.RecordRows(tmp_path, "train")
    rows = [whole[i] for i in range(shard["rows"])]
    # The file again, with one record whose content changed under its checksum.

    writer = array_record_module.ArrayRecordWriter(str(tmp_path / shard["file"]), "group_size:8")
    for number, row in enumerate(rows):
        content = records.encode(row["ids"], row["word_starts"], row["document_ids"])
        writer.write(content[:-1] + b"!" if number == 2 else content)
    writer.close()
    records._reader.cache_clear()
    refusing = records.RecordRows(tmp_path, "train")
    refusing[1]
    with pytest.raises(ValueError, match="record 2 is damaged"):
        refusing[2]
    skipping = records.RecordRows(tmp_path, "train", corrupt="skip")
    assert skipping.skipped == 1
    assert len(skipping) == len(whole) - 1
    np.testing.assert_array_equal(skipping[2]["ids"], rows[3]["ids"])
    assert skipping[2]["row"] == 3
    # A file that was cut off.
    (tmp_path / shard["file"]).write_bytes((tmp_path / shard["file"]).read_bytes()[:-30])
    records._reader.cache_clear()
    with pytest.raises(ValueError, match="holds 0 records, the manifest says"):
        records.RecordRows(tmp_path, "train")
    assert records.RecordRows(tmp_path, "train", corrupt="skip").skipped == shard["rows"]
    (tmp_path / shard["file"]).unlink()
    records._reader.cache_clear()
    with pytest.raises(FileNotFoundError, match="prepare the corpus again"):
        records.RecordRows(tmp_path, "train")


def test_a_row_survives_its_record():
    generator = np.random.default_rng(0)
    row = PackedRows(
        generator.integers(70_000, size=21), generator.integers(2, size=21) > 0, np.arange(21)
    )
    found = records.decode(records.encode(*row), 21)
    for name, value in row._asdict().items():
        np.testing.assert_array_equal(found[name], value)
    assert records.decode(records.encode(*row), 20) is None
    assert records.decode(b"", 21) is None


def test_static_copies_are_that_many():
    rows = jnp.array([5, 9])
    draws = [jax.random.key_data(row_keys(jax.random.key(seed), rows, 3)) for seed in range(30)]
    for place in range(2):
        assert len({np.asarray(draw[place]).tobytes() for draw in draws}) == 3
    batch = {"ids": jnp.full((2, 32), 7), "row": rows, "word_starts": jnp.ones((2, 32), bool)}
    one, two = (
        make_example(jax.random.key(s), batch, ObjectiveConfig(static_copies=1), vocab_size=50)
        for s in (0, 1)
    )
    np.testing.assert_array_equal(one.inputs, two.inputs)
    assert not np.array_equal(one.inputs[0], one.inputs[1])


def test_entropies_of_a_known_chain():
    generator = np.random.default_rng(0)
    chain = np.array([[0.9, 0.1], [0.3, 0.7]])  # stationary: 3/4, 1/4
    tokens = [0]
    for draw in generator.random(60_000):
        tokens.append(int(draw > chain[tokens[-1]][0]))
    rows = np.array(tokens[:60_000]).reshape(-1, 100)
    found = entropies(rows[:300], rows[300:], vocab_size=2, is_token=np.ones(2, bool))
    stationary = np.array([0.75, 0.25])
    unigram = -np.sum(stationary * np.log(stationary))
    bigram = -np.sum(stationary[:, None] * chain * np.log(chain))
    assert found["unigram"] == pytest.approx(unigram, rel=0.03)
    assert found["bigram"] == pytest.approx(bigram, rel=0.03)


def test_the_published_settings_add_up():
    paper = PRESETS["paper"]
    assert paper.training.batch_size // paper.training.accumulation_steps == 256
    assert paper.training.learning_rate == pytest.approx(5 / (2**1.5 * 1000), rel=0.01)
    assert paper.training.num_steps / paper.training.warmup_steps == 40
    assert isinstance(paper, Config)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model.num-heads=3"], "num_heads must divide features, got num_heads=3"),
        (["--data.uri=file:nowhere.txt"], "nowhere.txt"),
        (["--objective.rate=1.5"], r"objective.rate must be in \[0, 1\), got 1.5"),
        (["--training.batch-size=0"], "training.batch_size must be at least 1, got 0"),
        (["--preset=huge"], "--preset must be one of .*paper, got 'huge'"),
    ],
)
def test_mistakes_end_in_one_line(flags, message, tiny, tmp_path, capfd):
    tiny = [flag for flag in tiny if not flag.startswith("--data.") or "uri" not in flags[0]]
    with pytest.raises(SystemExit) as raised:
        command_line.main(run, PRESETS, None, [*tiny, f"--workdir={tmp_path}", *flags])
    assert raised.value.code == 2

    assert re.search(message, capfd.readouterr().err)
