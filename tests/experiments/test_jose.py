"""The experiment as a user runs it, and the mistakes a user makes."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from experiments import command_line
from experiments.jose import study
from experiments.jose.config import PRESETS
from experiments.jose.documents import read_documents
from experiments.jose.train import initial_vectors, run
from zoo import spherical
from zoo.data import Vocabulary
from zoo.data.fingerprint import fingerprint
from zoo.spherical.word2vec import load_word2vec, save_word2vec

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_smoke_reaches_what_it_must(tmp_path, capsys):
    flags = ["--preset=smoke", f"--workdir={tmp_path}", "--loop.progress=False"]
    command_line.main(run, PRESETS, None, flags)
    expected = json.loads((ROOT / "experiments/jose/expected.json").read_text())
    summary = json.loads((tmp_path / "summary.json").read_text())
    scores = summary["scores"]["all documents"]
    assert scores["knn"]["micro_f1"] >= expected["knn_micro_f1_at_least"]
    assert scores["k_means"]["purity"][0] >= expected["k_means_purity_at_least"]
    assert summary["skipped"] == expected["skipped"]
    assert "king: " in capsys.readouterr().out
    assert "test documents unseen" in summary["scores"]
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    model = spherical.load_embeddings(tmp_path / "model.safetensors")
    words, vectors = load_word2vec(tmp_path / "words.txt")
    assert words == model.vocabulary.tokens
    np.testing.assert_array_equal(vectors, model.words)
    losses = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1]["loss"] < losses[0]["loss"]
    # The same command again finds the run finished.
    before = (tmp_path / "model.safetensors").read_bytes()
    command_line.main(run, PRESETS, None, flags)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_passages_are_documents():
    documents = read_documents("builtin:shakespeare")
    assert len(documents.texts) == len(documents.labels) == len(documents.test) > 900
    assert documents.texts[0].startswith("Before we proceed any further, hear me speak.")
    assert set(documents.labels) == set(range(-1, 20))


def test_labelled_file(tmp_path):
    path = tmp_path / "posts.jsonl"
    names = ("text", "label", "group", "split")
    rows = [("a\nb", 1, "x", "train"), ("c", 0, "y", "test")]
    lines = [json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows]
    path.write_text("".join(lines))
    documents = read_documents(f"file:{path}")
    assert (documents.texts, documents.names) == (["a b", "c"], ("y", "x"))
    assert (documents.labels.tolist(), documents.test.tolist()) == ([1, 0], [False, True])


def write_posts(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"file:{path}"


def test_classes_are_numbered_without_gaps(tmp_path):
    rows = [{"text": "a", "label": label} for label in (7, -1, 2, 7, -3)]
    documents = read_documents(write_posts(tmp_path / "posts.jsonl", rows))
    assert documents.labels.tolist() == [1, -1, 0, 1, -1]
    assert documents.names == ("2", "7")


def test_tables_with_words_for_labels_and_folders_of_texts(tmp_path):
    (tmp_path / "own.csv").write_text('text,label\n"a, b",sport\nc,art\n')
    documents = read_documents(f"file:{tmp_path}/own.csv")
    assert (documents.texts, documents.names) == (["a, b", "c"], ("art", "sport"))
    assert documents.labels.tolist() == [1, 0]
    (tmp_path / "own").mkdir()
    (tmp_path / "own/1.txt").write_text("one\ntwo\n")
    (tmp_path / "own/2.txt").write_text("three\n")
    documents = read_documents(f"file:{tmp_path}/own")
    assert (documents.texts, documents.labels) == (["one", "two", "", "three"], None)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"label": 0}, "document 2 has label"),
        ({"text": "b"}, "document 2 has text"),
        ({"text": "b", "label": "x"}, "a label must be an integer.* got 'x' in document 2"),
        ({"text": "b", "label": 1, "split": "dev"}, "must be train or test, got 'dev' in doc"),
    ],
)
def test_documents_that_are_refused(tmp_path, row, message):
    uri = write_posts(tmp_path / "posts.jsonl", [{"text": "a", "label": 0}, row])
    with pytest.raises(ValueError, match=f"data.uri: .*{message}"):
        read_documents(uri)


@pytest.mark.slow
def test_few_documents_end_with_their_vectors(tmp_path, capsys):
    rows = [{"text": "a b a", "label": -1}, {"text": "b a", "label": -1, "split": "test"}]
    uri = write_posts(tmp_path / "posts.jsonl", rows)
    flags = ["--preset=smoke", f"--data.uri={uri}", "--data.min-count=1", "--loop.progress=False"]
    command_line.main(run, PRESETS, None, [*flags, f"--workdir={tmp_path / 'run'}"])
    assert "no map: fewer than 5 points" in capsys.readouterr().out
    assert load_word2vec(tmp_path / "run/words.txt")[0] == ("a", "b")
    # The same command with other documents does not go on from their vectors.
    write_posts(tmp_path / "posts.jsonl", rows[::-1])
    with pytest.raises(SystemExit):
        command_line.main(run, PRESETS, None, [*flags, f"--workdir={tmp_path / 'run'}"])
    assert "belongs to another run: text was" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["model.safetensors", "v.txt", "v.bin.gz"])
def test_vectors_to_start_from(tmp_path, name):
    words, table = ("king", "queen"), np.eye(32, dtype=np.float32)[:2]
    vocabulary = Vocabulary(words, "whitespace", special=(), counts=np.array([2, 1]))
    if name == "model.safetensors":
        model = spherical.JoseEmbeddings(table, table, table, vocabulary)
        spherical.save_embeddings(tmp_path / name, model)
    else:
        save_word2vec(tmp_path / name, words, table, binary=".bin" in name)
    config = command_line.change(PRESETS["smoke"], data={"initial": str(tmp_path / name)})
    found = initial_vectors(config)
    np.testing.assert_array_equal(found.word("queen"), table[1])


def test_study_changes_what_it_names():
    config = PRESETS["smoke"]
    for changes in study.CHANGES.values():
        expected = dataclasses.asdict(config)
        for name, value in changes.items():
            section, field = name.split(".")
            expected[section][field] = value
        assert dataclasses.asdict(study.changed(config, changes)) == expected


def test_a_study_keeps_to_its_documents(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "CHANGES", {})
    posts, folder = tmp_path / "posts.jsonl", tmp_path / "run_study"
    uri = write_posts(posts, [{"text": "a", "label": 0}])
    config = command_line.change(PRESETS["smoke"], workdir=str(tmp_path / "run"), data={"uri": uri})
    study.run(config)
    row = {"change": "as configured", "documents": fingerprint(read_documents(uri))}
    (folder / "study.jsonl").write_text(json.dumps(row) + "\n")
    study.run(config)
    write_posts(posts, [{"text": "a", "label": 1}])
    with pytest.raises(ValueError, match="rows of other documents; use another --workdir"):
        study.run(config)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data.uri=ftp://x"], "must start with one of builtin:, file:, tfds:"),
        (["--data.min-count=0"], "data.min_count must be at least 1, got 0"),
        (["--distributed.process-id=1"], "distributed: JoSE runs in one process"),
        (["--training.learning-rate=nan"], "learning_rate must be one finite number > 0, got nan"),
        (["--training.seed=-1"], "seed must be at least 0"),
        (["--training.seed=99999999999999999999"], "seed must be at least 0 and at most 922"),
        (["--training.chunk-size=50"], "chunk_size must be a multiple of block_size"),
        (["--model.window=128"], "window must be at least 1 and at most 127, got 128"),
        (["--evaluation.runs=0"], "evaluation.runs must be at least 1, got 0"),
        (["--evaluation.map-points=0"], "evaluation.map_points must be at least 5, got 0"),
        (["--data.initial=/nowhere.vec"], "/nowhere.vec"),
        (["--data.similarity=/nowhere"], "/nowhere/wordsim353/combined.csv"),
        (["--data.min-count=9999"], "min_count"),
    ],
)
def test_mistakes_end_in_one_line(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        command_line.main(run, PRESETS, None, [*flags, f"--workdir={tmp_path / 'run'}"])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
