"""Fingerprints: what changes them, what does not, and that no run continues with other data."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest

from zoo.data import Pipeline, StreamPipeline, Vocabulary, open_source
from zoo.data import fingerprint as module
from zoo.data.fingerprint import fingerprint
from zoo.data.sources import fingerprint_of


@dataclasses.dataclass
class Record:
    x: int


class Source:
    """Examples that have to be read, one of which is damaged."""

    def __len__(self):
        return 1000

    def __getitem__(self, index):
        if index == 0:
            raise OSError("damaged")
        return {"x": index}


DIFFERENT = [
    *(None, 0, 1, 1.0, True, "1", b"1", [1], [[1]], {"a": 1}, {"a": 2}, {"b": 1}, {1}, {2}),
    *(np.array([1]), np.array([1], np.int32), np.array([[1]]), np.array([2]), np.zeros(0)),
    *(["ab"], ["a", "b"], ["b", "a"], [["a"], "b"], "ab", "\ud800", range(3), range(4)),
    *(np.array(["a", None], object), np.float32(1), np.array([1 + 2j]), Record(1), Record(2)),
    *(print, Source(), Vocabulary(("<unk>", "<eos>"), "words")),
]


def test_everything_that_differs_has_its_own():
    assert len({fingerprint(value) for value in DIFFERENT}) == len(DIFFERENT)
    for value in DIFFERENT:
        assert fingerprint(value) == fingerprint(value)
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    columns = np.arange(12).reshape(3, 4)
    assert fingerprint(columns[:, ::2]) == fingerprint(columns[:, ::2].copy())
    assert fingerprint("é") == "356ace8062ff49d38af4717f"  # in every version


def test_what_is_large_is_sampled(monkeypatch):
    monkeypatch.setattr(module, "_WHOLE", 100)
    monkeypatch.setattr(module, "_BLOCKS", 5)
    monkeypatch.setattr(module, "_BLOCK", 10)
    monkeypatch.setattr(module, "_IN_MEMORY", 5)
    for data in (np.arange(400, dtype=np.uint8), list(range(40))):
        changed = {}
        for place in range(len(data)):
            other = data.copy()
            other[place] = 99
            changed[place] = fingerprint(other) != fingerprint(data)
            seen = fingerprint(other, full=True) != fingerprint(data, full=True)
            assert seen == (other[place] != data[place])
        assert (changed[0], changed[len(data) - 1]) == (True, True)
        assert not all(changed.values())
        assert fingerprint(data[::-1]) != fingerprint(data)
        assert fingerprint(data[:-1]) != fingerprint(data)


def flip(path):
    with np.load(path) as archive:
        arrays = dict(archive)
    np.savez(path, **arrays | {"y_train": 1 - arrays["y_train"]})


def reverse(path):
    path.write_text("\n".join(reversed(path.read_text().splitlines())) + "\n")


def held_out(path):
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-1], lines[-1][::-1]]) + "\n")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        *(("a.npz", flip), ("a.txt", reverse), ("a.tsv", reverse), ("a.jsonl", reverse)),
        ("a.txt", held_out),
    ],
)
def test_a_run_does_not_continue_with_other_data(tmp_path, name, change):
    path, copy = tmp_path / name, tmp_path / "copies" / name
    rows = [f"{i}\tword{i}" for i in range(100)]
    if name.endswith("npz"):
        np.savez(path, x_train=np.ones((100, 2, 2)), y_train=np.arange(100) % 2)
    elif name.endswith("jsonl"):
        path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    else:
        path.write_text("\n".join(["id\ttext", *rows[1:-1], rows[0]]) + "\n")
    copy.parent.mkdir()

    def pipeline(path):
        return Pipeline(open_source(f"file:{path}", split="train"), batch_size=4, seed=0)

    state = json.loads(json.dumps(pipeline(path).get_state()))
    own = fingerprint_of(f"file:{path}")
    shutil.copy(path, copy)
    os.utime(copy, (0, 0))  # times and places make no difference
    pipeline(copy).set_state(state)
    assert fingerprint_of(f"file:{copy}") == own
    change(path)
    with pytest.raises(ValueError, match="content='sampled-"):
        pipeline(path).set_state(state)
    assert fingerprint_of(f"file:{path}") != own
    # a state of an earlier version, which did not name the content
    del state["pipeline"]["content"]
    pipeline(path).set_state(state)


def test_what_a_pipeline_depends_on():
    examples = [{"x": i} for i in range(9)]
    for new in (
        lambda **options: Pipeline(examples, batch_size=2, seed=0, **options),
        lambda **options: StreamPipeline(range(9), batch_size=2, num_steps=2, seed=0, **options),
    ):
        state = new(depends_on={"test": np.zeros(3)}).get_state()
        new(depends_on={"test": np.zeros(3)}).set_state(state)
        with pytest.raises(ValueError, match="content="):
            new(depends_on={"test": np.ones(3)}).set_state(state)
    full = Pipeline(examples, batch_size=2, seed=0, fingerprints="full")
    assert full.get_state()["pipeline"]["content"].startswith("full-")


def test_fingerprints_of_uris(tmp_path):
    for split in ("train", "valid"):
        (tmp_path / f"{split}.txt").write_text(split)
    uri = f"file:{tmp_path}/{{split}}.txt"
    codes = {fingerprint_of(uri)}
    (tmp_path / "test.txt").write_text("held out")
    codes.add(fingerprint_of(uri))
    codes.add(fingerprint_of("builtin:digits"))
    codes.add(fingerprint_of(f"file:{tmp_path}/test.txt"))
    codes.add(fingerprint_of(f"file:{tmp_path}"))
    assert len(codes) == 5
    with pytest.raises(FileNotFoundError, match="cannot read the data file"):
        fingerprint_of("file:nowhere/{split}.txt")
