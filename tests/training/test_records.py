import dataclasses
import json
import pathlib
import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.training import MetricsLog, open_workdir, records
from zoo.training.records import write_summary


@dataclasses.dataclass(frozen=True)
class Optimizer:
    learning_rate: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 0
    data: pathlib.Path = pathlib.Path("a.txt")
    optimizer: Optimizer | None = Optimizer()
    names: frozenset[str] = frozenset({"a", "b", "c"})


def test_same_config_enters_again_and_another_is_refused_by_field(tmp_path):
    folder = open_workdir(tmp_path / "run", Config())
    assert json.loads((folder / "config.json").read_text())["optimizer"]["betas"] == [0.9, 0.99]
    before = (folder / "config.json").read_text()
    (folder / "metrics.jsonl").write_text("{}")
    open_workdir(folder, Config())
    other = Config(seed=1, optimizer=Optimizer(learning_rate=0.2))
    message = (
        r"settings:\n  seed: 0 there, 1 here\n"
        r"  optimizer\.learning_rate: 0\.1 there, 0\.2 here\n.*--workdir"
    )
    with pytest.raises(ValueError, match=message):
        open_workdir(folder, other)
    open_workdir(folder, other, ignore=("seed", "optimizer"))
    with pytest.raises(ValueError, match=r"settings:\n  optimizer\.learning_rate: [^\n]*\nGive"):
        open_workdir(folder, other, ignore=("seed", "optimizer.betas"))
    assert (folder / "config.json").read_text() == before
    assert {path.name for path in folder.iterdir()} == {".lock", "config.json", "metrics.jsonl"}


def test_after_a_run_that_failed_at_its_start_other_settings_are_fine(tmp_path):
    open_workdir(tmp_path, Config())
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "metrics.jsonl").touch()
    open_workdir(tmp_path, Config(seed=1))
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 1


def test_fields_that_came_or_went_are_named(tmp_path):
    open_workdir(tmp_path, Config())
    (tmp_path / "metrics.jsonl").write_text("{}")
    with pytest.raises(ValueError, match=r"optimizer\.betas: \[0\.9, 0\.99\] there, absent here"):
        open_workdir(tmp_path, Config(optimizer=None))
    (tmp_path / "config.json").write_text('{"seed": ')
    with pytest.raises(ValueError, match=r"config\.json cannot be read.*--workdir"):
        open_workdir(tmp_path, Config())


def test_resumed_log_drops_later_and_torn_lines(tmp_path):
    path = tmp_path / "deep" / "metrics.jsonl"
    with MetricsLog(path) as log:
        for step in (1, 2, 3):
            log.write(step, {"loss": step / 2})
            assert len(path.read_text().splitlines()) == step  # flushed
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    with MetricsLog(path) as log:
        log.resume(2)
        log.write(3, {"loss": 7})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1.0}, {"step": 3, "loss": 7}]


def test_summary_is_strict_json_of_plain_values(tmp_path):
    summary = {
        "numpy": np.float32(0.25),
        "jax": jnp.int32(3),
        "array": np.array([1.0, np.nan]),
        "infinite": float("inf"),
        "nested": {"path": pathlib.Path("x"), "flag": np.bool_(True), "none": None},
    }
    path = write_summary(tmp_path, summary)
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {
        "numpy": 0.25,
        "jax": 3,
        "array": [1.0, None],
        "infinite": None,
        "nested": {"path": "x", "flag": True, "none": None},
    }
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_a_folder_of_a_run_needs_its_config(tmp_path):
    """Else other settings would be taken for those of the run."""
    open_workdir(tmp_path, Config())
    (tmp_path / "config.json").unlink()
    open_workdir(tmp_path, Config(seed=1))  # nothing is lost yet
    (tmp_path / "config.json.12.part").write_text("{")  # of a process that was killed
    open_workdir(tmp_path, Config(seed=2))
    for file in ("metrics.jsonl", "summary.json", "checkpoints/3/manifest/data.json"):
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
        (tmp_path / "config.json").unlink(missing_ok=True)
        with pytest.raises(ValueError, match=r"config\.json cannot be read.*restore the file"):
            open_workdir(tmp_path, Config(seed=1))
        path.unlink()


@pytest.mark.parametrize("name", ["http://host/x", "s3:/x", pathlib.Path("gs://bucket/x")])
def test_other_schemes_are_no_folders(name):
    with pytest.raises(ValueError, match="must be a folder of this machine's file system"):
        open_workdir(name, Config())


def test_damaged_lines_of_a_log_are_named_and_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    good = b'{"step": 1, "loss": 0.5}\n'
    path.write_bytes(good + b'{"step": 2, "l\xff": 1}\n[3]\n' + b"[" * 100_000 + b'\n{"step": "3"')
    with MetricsLog(path) as log:
        with pytest.warns(UserWarning, match=r"metrics\.jsonl: damaged .*: line 2, 3, 4$"):
            log.resume(9)
        log.write(10, {})
    assert path.read_bytes() == good + b'{"step": 10}\n'
    with MetricsLog(path) as log:
        with pytest.warns(UserWarning, match=r"\.jsonl lacks 2 of the 3 records up to step 9"):
            log.resume(9, count=3)
        log.write(10, {})
        assert log.count == 4


def test_the_processes_of_a_run_have_the_same_settings(tmp_path, monkeypatch):
    """Found out before there is a folder; one that is refused takes the others with it."""
    flat = records._flat(records._plain(Config(seed=1)))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(records, "_from_everywhere", lambda text: [text, json.dumps(flat)])
    with pytest.raises(ValueError, match=r"other settings:\n  seed: 0 in process 0, 1 in 1\nGive"):
        open_workdir(tmp_path / "run", Config())
    assert not (tmp_path / "run").exists()
    open_workdir(tmp_path / "run", Config(), ignore=("seed",))
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    said = iter([[json.dumps(flat)] * 2, ["holds a run with other settings", ""]])
    monkeypatch.setattr(records, "_from_everywhere", lambda text: next(said))
    with pytest.raises(ValueError, match="process 0 was refused: holds a run with other settings"):
        open_workdir(tmp_path / "run", Config(seed=1))


def test_files_that_cannot_be_written_are_named(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            with MetricsLog(tmp_path / "metrics.jsonl") as log:
                log.write(1, {"loss": 1.5})
        with pytest.raises(OSError, match="File too large") as caught_too:
            write_summary(tmp_path, {"loss": 1.5, "perplexity": 2.5})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(tmp_path / "metrics.jsonl")
    assert caught_too.value.filename == str(tmp_path / "summary.json")
