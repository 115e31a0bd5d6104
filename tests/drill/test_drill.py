"""The drill at a small count, and that it notices what it is for."""

import json
import subprocess
import sys

import pytest

from tests.drill.__main__ import GOOD, judge, names_something
from tests.drill.faults import Bench
from tests.drill.runs import Ended, contents, differences


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fault"), [("on_lstm_logic", "newest damaged"), ("energy_plane", "two at once")]
)
def test_the_fastest_experiments_are_drilled(name, fault):
    """A kill and a fault; all of them by hand, see the README."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.drill", "--kills", "1"),
            *("--experiment", name, "--only", fault),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    *_, last = done.stdout.splitlines()
    assert last.startswith("| all |")
    assert int(last.split("|")[2]) >= 1, done.stdout  # a run may end before it is killed


def ended(code=0, output="", *, in_time=True, children=0):
    return Ended(code, output, 1.0, in_time, children)


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """A run that left a log, a summary, a picture and a checkpoint."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    found = Bench("energy_plane", tmp_path)
    manifest = found.folder / "checkpoints" / "9" / "manifest"
    manifest.mkdir(parents=True)
    content = {"leaves": {"a": {"checksum": 1}}, "position": {"batches": 9, "records": 1}}
    (manifest / "data.json").write_text(json.dumps({"content": content}))
    (found.folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2, "rows_per_second": 3}\n')
    (found.folder / "summary.json").write_text('{"accuracy": 1, "seconds": 5}')
    (found.folder / "map.png").write_bytes(b"picture")
    found.expected = contents(found.folder)
    return found


def edit(path, old, new):
    path.write_text(path.read_text().replace(old, new))


def test_a_run_that_is_the_same_is_good(bench):
    edit(bench.folder / "summary.json", '"seconds": 5', '"seconds": 6')
    edit(bench.folder / "metrics.jsonl", "3", "4")
    (bench.folder / ".lock").touch()
    assert judge(bench, [ended(-9), ended(143), ended()]) == ("same", "")
    refusal = (
        "OSError: [Errno 28] No space left on device: '/runs/x'\n(ZOO_TRACEBACK=1 shows where.)"
    )
    assert judge(bench, [ended(2, refusal), ended()])[0] == "refused"


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("summary.json", '"accuracy": 1', '"accuracy": 2'),
        ("metrics.jsonl", '"loss": 2', '"loss": 2.5'),
        ("map.png", "picture", "pictures"),
        ("checkpoints/9/manifest/data.json", '"checksum": 1', '"checksum": 2'),
        ("checkpoints/9/manifest/data.json", '"batches": 9', '"batches": 8'),
    ],
)
def test_another_result_is_noticed(bench, file, old, new):
    edit(bench.folder / file, old, new)
    assert judge(bench, [ended()])[0] == "lost"
    said = "metrics.jsonl lacks 1 of the 2 records"
    assert judge(bench, [ended(0, said)])[0] == "said"


def test_what_is_bad_is_noticed(bench):
    assert judge(bench, [ended(in_time=False)])[0] == "hung"
    assert judge(bench, [ended(children=1)])[0] == "left"
    assert (
        judge(bench, [ended(1, "Traceback (most recent call last):\nKeyError"), ended()])[0]
        == "raw"
    )
    assert judge(bench, [ended(2, "OSError: [Errno 27] File too large"), ended()])[0] == "raw"
    (bench.folder / "summary.json.7.part").touch()
    assert judge(bench, [ended()]) == ("left", "summary.json.7.part is left behind")
    (bench.folder / "summary.json.7.part").unlink()
    (bench.folder / "checkpoints" / "10.orbax-checkpoint-tmp").mkdir()
    assert judge(bench, [ended()])[0] == "left"
    (bench.folder / "checkpoints" / "10.orbax-checkpoint-tmp").rmdir()
    (bench.root / "tmp" / "x").touch()
    assert judge(bench, [ended()])[0] == "left"
    (bench.folder / "summary.json").unlink()
    assert differences(bench.folder, bench.expected) == ["summary.json is not the same"]
    assert judge(bench, [ended()])[0] not in GOOD


def test_a_refusal_names_something():
    assert names_something("ValueError: /runs/x/config.json cannot be read")
    assert names_something("a line\nBlockingIOError: another run; give another --workdir\n")
    assert not names_something("OSError: File too large")
    assert not names_something("")
