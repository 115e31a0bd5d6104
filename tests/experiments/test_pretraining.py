"""Pretraining as a user runs it: the corpus, results, other machines, mistakes.

That a run which broke off ends bit for bit as if it had not is proved in tests/training.
"""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import command_line
from experiments.command_line import LoopConfig
from experiments.pretraining import corpus, finetune, predict, records
from experiments.pretraining.baselines import entropies
from experiments.pretraining.config import (
    PRESETS,
    DataConfig,
    ObjectiveConfig,
    TrainingConfig,
)
from experiments.pretraining.train import build, make_example, row_keys, run, warmup_and_decay
from experiments.running import read_records
from zoo.data import build_vocabulary, open_source
from zoo.data.fingerprint import fingerprint
from zoo.training import make_mesh
from zoo.transformer import Transformer, TransformerConfig
from zoo.transformer.packing import PackedRows
from zoo.transformer.weights import save_bert

# Compiling is most of the cost of these runs. On level 1 the programs are compiled in a fifth of
# the time and run nearly as fast.
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
    return [
        "--preset=smoke",
        f"--data.uri=file:{text}",
        f"--data.directory={tmp_path_factory.mktemp('corpus')}",
        "--data.length=32",
        "--model.features=16",
        "--model.feedforward-features=16",
        "--training.batch-size=8",
        "--training.num-steps=6",
        "--training.warmup-steps=2",
        "--loop.log-every=2",
        "--loop.checkpoint-every=3",
    ]


@pytest.mark.slow
def test_smoke_reaches_what_it_must(smoke, tmp_path):
    summary, expected = smoke("pretraining", "curve")
    baseline, reached = summary["baseline"], summary["transformer"]
    assert baseline == pytest.approx(expected["baseline"], abs=1e-3)
    assert reached["valid_loss"] <= expected["valid_loss_at_most"] < baseline["unigram"]
    assert reached["valid_kept_accuracy"] >= expected["kept_accuracy_at_least"]
    fine_tune_from(tmp_path / "bert", tmp_path)


def fine_tune_from(pretrained, folder):
    """Both arms learn a few reviews that one word tells apart; what is done is not done again."""
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
        loop=LoopConfig(progress=False),
    )
    finetune.run(dataclasses.replace(config, seeds=1))
    first = (folder / "finetune/metrics.jsonl").read_text()
    finetune.run(config)
    assert (folder / "finetune/metrics.jsonl").read_text().startswith(first)
    summary = json.loads((folder / "finetune/summary.json").read_text())
    pretrained, scratch = np.array(
        [summary["accuracies"][name] for name in ("pretrained", "from scratch")]
    )
    assert pretrained.shape == (2,)
    assert pretrained.mean() == summary["pretrained"]["mean"] > 0.9
    margins = pretrained - scratch
    assert summary["margin"] == pytest.approx({"mean": margins.mean(), "std": margins.std(ddof=1)})
    assert (summary["train_examples"], summary["test_examples"]) == (24, 20)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """A BERT as a masked run leaves it."""
    folder = tmp_path_factory.mktemp("bert")
    vocabulary = build_vocabulary(
        ["a good play", "one bad or plain"], split="wordpiece", max_size=60
    )
    (folder / "tokenizer.json").write_text(vocabulary.model)
    config = TransformerConfig(
        vocab_size=len(vocabulary),
        features=8,
        num_layers=1,
        num_heads=2,
        feedforward_features=8,
        max_positions=24,
        head="mlm",
    )
    save_bert(folder, Transformer(config, rngs=nnx.Rngs(0)))
    return folder


@pytest.mark.slow
def test_own_labels_in_a_table_and_a_prediction(untrained, tmp_path, capsys):
    words = {"10": "good", "9": "bad", "plain, 0": "plain"}
    rows = [(f"a {word} play", label) for label, word in words.items()] * 20
    lines = "".join(f'"{text}","{label}"\n' for text, label in rows)
    (tmp_path / "own.csv").write_text(lines)
    flags = [f"--pretrained={untrained}", f"--workdir={tmp_path}/run", "--length=12", "--seeds=1"]
    flags += [f"--uri=file:{tmp_path}/own.csv?columns=words,kind", "--text-field=words"]
    flags += ["--label-field=kind", "--num-epochs=30", "--learning-rate=0.02", "--batch-size=24"]
    command_line.main(finetune.run, {"small": finetune.Config()}, None, flags)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["most_frequent"] == pytest.approx(1 / 3)
    assert summary["pretrained"]["mean"] == 1
    assert (summary["train_examples"], summary["test_examples"]) == (54, 6)
    assert "[OPTIONS]" not in capsys.readouterr().out
    predict.main([f"{tmp_path}/run/classifier", "a plain play", "one bad play"])
    found = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [(label, text) for label, _, text in found] == [
        ("plain, 0", "a plain play"),
        ("9", "one bad play"),
    ]
    assert all(0.5 < float(share) <= 1 for _, share, _ in found)
    labels = json.loads((tmp_path / "run/classifier/classifier.json").read_text())["labels"]
    assert labels == ["9", "10", "plain, 0"]
    with pytest.raises(SystemExit, match="2"):
        predict.main([f"{tmp_path}/run", "a play"])
    assert "give the classifier/ of a run of finetune" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--pretrained=/nowhere", "must be a folder with a BERT"),
        ("--length=99", "at most the 24 positions"),
        ("--uri=file:{}/own.csv", "has a, b; name yours with --text-field and --label-field"),
    ],
)
def test_mistakes_in_fine_tuning(untrained, tmp_path, flag, message):
    (tmp_path / "own.csv").write_text("a,b\nx,1\ny,2\n")
    flags = [f"--pretrained={untrained}", "--length=12", flag.format(tmp_path)]
    config = command_line.parse(finetune.run, {"small": finetune.Config()}, None, flags)
    with pytest.raises(ValueError, match=message):
        finetune.load(config)


def test_the_usage_line_names_the_program(capsys):
    with pytest.raises(SystemExit):
        command_line.parse(finetune.run, {"small": finetune.Config()}, None, ["--help"])
    usage = capsys.readouterr().out.splitlines()[0]
    assert (
        usage == "usage: python -m experiments.pretraining.finetune [--preset NAME] [-h] [OPTIONS]"
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["masked", "causal", "prefix"])
def test_every_objective_trains(tiny, tmp_path, kind, capsys):
    """On eight devices; that losses do not depend on the mesh is proved in tests/transformer."""
    flags = [*tiny, f"--workdir={tmp_path}", f"--objective.kind={kind}"]
    flags += ["--mesh.fsdp=2", "--mesh.model=2", f"--data.separate-documents={kind == 'causal'}"]
    flags += ["--training.optimizer=lamb", "--training.lookahead=True", "--training.ema-decay=0.5"]
    command_line.main(run, PRESETS, None, flags)
    written = read_records(tmp_path / "metrics.jsonl")
    losses = [record["loss"] for record in written if "loss" in record]
    assert losses[-1] < losses[0]
    summary = json.loads((tmp_path / "summary.json").read_text())
    nothing = summary["transformer"]["valid_loss"] >= summary["baseline"]["unigram"]
    assert ("learnt" in capsys.readouterr().out) == nothing


def test_it_is_built_without_being_run(tiny, tmp_path):
    data = config_of(tiny[1].partition("file:")[2])
    config = dataclasses.replace(PRESETS["small"], data=data, workdir=str(tmp_path))
    mesh = make_mesh(data=4, model=2)
    experiment = build(config, mesh)
    state = experiment.abstract_state(mesh)
    batch = next(experiment.batches)
    step = experiment.train_step(state.shardings)
    _, metrics = jax.eval_shape(step, state, batch)
    assert metrics["loss"].shape == ()
    assert batch["ids"].shape == (config.training.batch_size, 32)


def config_of(text, **changes):
    return dataclasses.replace(DataConfig(uri=f"file:{text}", length=32, shards=3), **changes)


def test_corpus_is_the_same_however_it_is_made(text, tmp_path):
    manifest = corpus.prepare(config_of(text), tmp_path)
    shards = [shard for shard in manifest["shards"] if shard["split"] == "train"]
    assert manifest["rows"]["train"] == sum(shard["rows"] for shard in shards)
    # A run that was stopped: one file is there, one is damaged, one is missing.
    files = [tmp_path / shard["file"] for shard in shards]
    kept = files[0].stat().st_mtime_ns
    files[1].write_bytes(b"damaged")
    files[2].unlink()
    (tmp_path / "manifest.json").unlink()
    assert corpus.prepare(config_of(text), tmp_path) == manifest
    assert files[0].stat().st_mtime_ns == kept
    rows = records.RecordRows(tmp_path, "train")
    vocabulary = corpus.load_vocabulary(tmp_path)
    read = vocabulary.decode(np.concatenate([rows[i]["ids"] for i in range(3)]))
    assert read.startswith("first citizen:before we proceed any")
    with pytest.raises(ValueError, match="length: 32 there, 64 here"):
        corpus.prepare(config_of(text, length=64), tmp_path)
    # Side files that are cut off are made again; another text under the same name is refused.
    for name in ("manifest.json", files[1].with_suffix(".json").name):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-9])
    assert corpus.prepare(config_of(text), tmp_path) == manifest
    content = text.read_text()
    text.write_text("\n".join(reversed(content.splitlines())) + "\n")
    with pytest.raises(ValueError, match="was prepared of another text"):
        corpus.prepare(config_of(text), tmp_path)
    text.unlink()
    assert corpus.prepare(config_of(text), tmp_path) == manifest
    text.write_text(content)
    # The vocabulary is needed after the training, and looked at before.
    other = build_vocabulary(["other"], split="bert_characters")
    for model, message in ((other.model, "vocabulary mismatch"), ("{", "is not a vocabulary")):
        (tmp_path / "tokenizer.json").write_text(model)
        with pytest.raises(ValueError, match=message):
            corpus.prepare(config_of(text), tmp_path)


@pytest.mark.slow
def test_corpus_by_processes_of_their_own(text, tmp_path):
    alone, together = (
        corpus.prepare(config_of(text, workers=workers), tmp_path / str(workers))
        for workers in (0, 2)
    )
    assert alone == together


def test_wordpiece_words_and_documents(tmp_path):
    path = tmp_path / "reviews.tsv"
    body = "".join(f"{i}\tgreat acting here. dull plot though!\n" for i in range(60))
    path.write_text("id\ttext\n" + body)
    data = config_of(path, tokens="wordpiece", vocab_size=100, shards=1)
    corpus.prepare(data, tmp_path / "corpus")
    row = records.RecordRows(tmp_path / "corpus", "train")[0]
    vocabulary = corpus.load_vocabulary(tmp_path / "corpus")
    tokens = [vocabulary.tokens[number] for number in row["ids"]]
    assert tokens[0] == "[CLS]"
    for token, starts in zip(tokens, row["word_starts"].tolist(), strict=True):
        assert starts == (not token.startswith(("##", "[")))
    assert set(np.diff(row["document_ids"][row["document_ids"] > 0]).tolist()) <= {0, 1}


def test_damaged_records_are_refused_or_skipped(tmp_path):
    generator, shape, path = np.random.default_rng(0), (40, 21), tmp_path / "rows"
    rows = PackedRows(
        generator.integers(70_000, size=shape),
        generator.integers(2, size=shape) > 0,
        generator.integers(9, size=shape),
    )
    records.write(path, rows)
    shard = {"file": "rows", "split": "train", "rows": len(rows.ids)}
    (tmp_path / "manifest.json").write_text(json.dumps({"length": 21, "shards": [shard]}))

    def opened(**options):
        records._reader.cache_clear()
        return records.RecordRows(tmp_path, "train", **options)

    for number, row in enumerate(opened()):
        for name, value in rows._asdict().items():
            np.testing.assert_array_equal(row[name], value[number])
    content = bytearray(path.read_bytes())
    content[200] ^= 1  # within the first group of eight
    path.write_bytes(content)
    refusing = opened()
    refusing[8]
    with pytest.raises(ValueError, match="record 2 is damaged"):
        refusing[2]
    skipping = opened(corrupt="skip")
    assert (skipping.skipped, len(skipping)) == (8, 40)
    assert [row["row"] for row in skipping] == [8] * 8 + list(range(8, 40))
    assert fingerprint(skipping) == fingerprint(refusing)  # a run goes on with it
    # A file that was cut off, and one that is missing.
    path.write_bytes(content[:-30])
    with pytest.raises(ValueError, match="holds 0 records, the manifest says 40"):
        opened()
    assert opened(corrupt="skip").skipped == 40
    (tmp_path / "manifest.json").write_bytes(b'{"length": 21, "sha\xff')
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        opened()
    (tmp_path / "manifest.json").write_text(json.dumps({"length": 21, "shards": [shard]}))
    path.unlink()
    with pytest.raises(FileNotFoundError, match="prepare the corpus again"):
        opened()


def test_static_copies_are_that_many():
    rows = jnp.array([5, 9])
    keys = jax.jit(lambda seed: jax.random.key_data(row_keys(jax.random.key(seed), rows, 3)))
    draws = [keys(seed) for seed in range(30)]
    for place in range(2):
        assert len({np.asarray(draw[place]).tobytes() for draw in draws}) == 3
    batch = {"ids": jnp.full((2, 32), 7), "row": rows, "word_starts": jnp.ones((2, 32), bool)}
    fixed = functools.partial(make_example, objective=ObjectiveConfig(static_copies=1))
    example = jax.jit(functools.partial(fixed, batch=batch, vocab_size=50))
    one, two = (example(jax.random.key(seed)) for seed in (0, 1))
    np.testing.assert_array_equal(one.inputs, two.inputs)
    assert not np.array_equal(one.inputs[0], one.inputs[1])


def test_entropies_of_a_known_chain():
    generator = np.random.default_rng(0)
    chain = np.array([[0.9, 0.1], [0.3, 0.7]])  # stationary: 3/4, 1/4
    tokens = [0]
    for draw in generator.random(60_000):
        tokens.append(int(draw > chain[tokens[-1]][0]))
    rows = np.array(tokens[:60_000]).reshape(-1, 100)
    found = entropies(rows[:300], rows[300:], vocab_size=2)
    stationary = np.array([0.75, 0.25])
    unigram = -np.sum(stationary * np.log(stationary))
    bigram = -np.sum(stationary[:, None] * chain * np.log(chain))
    assert found == pytest.approx({"unigram": unigram, "bigram": bigram}, rel=0.03)


def test_the_published_settings_add_up():
    paper = PRESETS["paper"].training
    assert paper.batch_size // paper.accumulation_steps == 256
    assert paper.learning_rate == pytest.approx(5 / (2**1.5 * 1000), rel=0.01)
    assert paper.num_steps / paper.warmup_steps == 40


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--model.num-heads=3", "num_heads must divide features, got num_heads=3"),
        ("--data.uri=file:nowhere.txt", "nowhere.txt"),
        ("--objective.rate=1.5", "objective.rate must be in [0, 1), got 1.5"),
        ("--training.batch-size=0", "training.batch_size must be at least 1, got 0"),
    ],
)
def test_mistakes_end_in_one_line(refused, tiny, flag, message):
    refused("pretraining", flag if "uri" in flag else " ".join([*tiny, flag]), message)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 250])
def test_every_schedule_reaches_its_peak_and_falls_or_is_refused(num_steps):
    for warmup in {0, 1, num_steps // 2, num_steps - 1, num_steps, num_steps + 5}:
        if warmup >= num_steps:
            with pytest.raises(ValueError, match="warmup_steps must be less than num_steps"):
                TrainingConfig(num_steps=num_steps, warmup_steps=warmup)
            continue
        schedule = warmup_and_decay(0.5, warmup, num_steps)
        rates = [float(schedule(step)) for step in range(num_steps + 1)]
        assert max(rates) == rates[warmup] == 0.5
        assert rates[-1] == 0
        assert all(rate > 0 for rate in rates[1:-1])


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--training.warmup-steps=300", "warmup_steps must be less than num_steps=250"),
        ("--training.accumulation-steps=3", "accumulation_steps must divide batch_size=16"),
        ("--objective.predictions=65", "objective.predictions must be at most data.length=64"),
        ("--model.num-heads=3", "num_heads must divide features"),
        ("--model.features=0", "features must be at least 1, got 0"),
    ],
)
def test_mistakes_are_noticed_before_a_folder_is_made(flag, message, tmp_path, capsys):
    workdir = tmp_path / "run"
    with pytest.raises(SystemExit) as exit_:
        command_line.main(run, PRESETS, __doc__, ["--preset=smoke", f"--workdir={workdir}", flag])
    assert exit_.value.code == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert not workdir.exists()


def test_a_prepared_corpus_outlives_a_mistake_that_it_shows(tiny, tmp_path, capsys):
    """Its rows are too few for a batch: the corrected command need not prepare it again."""
    flags = [flag for flag in tiny if not flag.startswith("--data.directory")]
    flags += [f"--workdir={tmp_path}", "--training.batch-size=4096"]
    with pytest.raises(SystemExit):
        command_line.main(run, PRESETS, __doc__, flags)
    assert "make no batch with batch_size=4096" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]
    assert (tmp_path / "corpus" / "manifest.json").exists()
