"""A workdir in a bucket, here in ``fsspec``'s memory: refused, filled, copied, interrupted."""

import dataclasses
import itertools
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zoo.training import (
    Checkpointer,
    Loop,
    LossOutput,
    MetricsLog,
    fit,
    init_state,
    make_mesh,
    make_train_step,
    open_workdir,
    remote,
)
from zoo.training.records import leave_workdirs, write_summary

fsspec = pytest.importorskip("fsspec")
MESH = make_mesh(devices=jax.devices()[:1])


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 0


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    system = fsspec.filesystem("memory")
    yield system
    leave_workdirs(failed=False)
    if system.exists("/zoo-test"):
        system.rm("/zoo-test", recursive=True)


class Count(itertools.count):
    """Batches that can be resumed."""

    def __next__(self):
        self.place = super().__next__()
        return np.full((2, 1), 1.0, np.float32)

    def get_state(self):
        return 0

    def set_state(self, state):
        pass


def loss(parameters, batch, *, key, carry):
    return LossOutput(((batch @ parameters["kernel"] - 1) ** 2).sum(), 2)


def train(num_steps, url="memory://zoo-test/run"):
    """As an experiment does; the state's kernel."""
    optimizer = optax.sgd(0.1)

    def init(key):
        return {"kernel": jnp.zeros((1, 1))}

    state = init_state(init, optimizer, key=jax.random.key(0), mesh=MESH)
    step = make_train_step(loss, optimizer, shardings=state.shardings)
    folder = open_workdir(url, Config())
    with (
        Checkpointer(folder / "checkpoints", keep=1) as checkpointer,
        MetricsLog(folder / "metrics.jsonl") as log,
    ):
        options = {"checkpointer": checkpointer, "log": log, "mesh": MESH}
        loop = Loop(log_every=1, checkpoint_every=2, progress=False)
        state = fit(step, state, Count(), num_steps=num_steps, loop=loop, **options)
    (folder / "picture.png").write_bytes(b"png")
    write_summary(folder, {"steps": num_steps})
    return float(state.parameters["kernel"][0, 0])


def names(bucket):
    return {name.removeprefix("/zoo-test/run/") for name in bucket.find("/zoo-test/run")}


def test_a_run_that_continues_from_a_bucket_is_as_one_that_was_not_stopped(bucket, capsys):
    expected = train(6, "memory://zoo-test/other")
    leave_workdirs(failed=False)
    train(2)
    leave_workdirs(failed=False)
    left = names(bucket)
    assert {"config.json", "metrics.jsonl", "summary.json", "picture.png", remote.INDEX} < left
    assert {name.split("/")[1] for name in left if name.startswith("checkpoints/")} == {"2"}
    assert not any(name.endswith((".lock", ".part")) for name in left)
    # As on another machine: nothing here is left of it but what a killed run may leave.
    folder = remote.stage("memory://zoo-test/other")
    leave_workdirs(failed=False)
    (folder.parent / "run" / "checkpoints" / "9").mkdir()
    capsys.readouterr()
    assert train(6) == expected
    said = "".join(capsys.readouterr())
    assert "continues from step 2 of 6, saved in memory://zoo-test/run/checkpoints" in said
    lines = bucket.cat_file("/zoo-test/run/metrics.jsonl").decode().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    steps = {name.split("/")[1] for name in names(bucket) if name.startswith("checkpoints/")}
    assert steps == {"6"}  # what is gone here is gone there
    leave_workdirs(failed=False)
    with pytest.raises(ValueError, match="holds a run with other settings"):
        open_workdir("memory://zoo-test/run", Config(seed=1))


def test_a_copy_that_broke_off_is_not_taken_for_a_checkpoint(bucket, monkeypatch):
    train(2)
    leave_workdirs(failed=False)
    # A file of the next checkpoint arrives, the index does not.
    bucket.pipe("/zoo-test/run/checkpoints/4/manifest/manifest.json", b"{}")
    folder = open_workdir("memory://zoo-test/run", Config())
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["2"]


def test_what_cannot_be_written_is_refused_before_and_reported_after(bucket, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("403 Forbidden")

    with monkeypatch.context() as patch:
        patch.setattr(type(bucket), "pipe_file", broken)
        with pytest.raises(OSError, match=r"workdir cannot be written \(403 Forbidden\)"):
            open_workdir("memory://zoo-test/run", Config())
    with monkeypatch.context() as patch:
        patch.setattr(type(bucket), "put_file", broken)
        with (
            pytest.warns(UserWarning, match=r"could not be written, all of it is in .*cache"),
            pytest.raises(OSError, match="could not be written"),  # the last time
        ):
            train(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(2)  # and goes on when it can
    assert "summary.json" in names(bucket)


def test_names(bucket, tmp_path):
    folder = remote.stage("memory://zoo-test/run/")
    assert remote.url_of(folder / "a/b.png") == "memory://zoo-test/run/a/b.png"
    assert remote.url_of(tmp_path) is None
    assert remote.entered(tmp_path) == tmp_path
    # A folder beside that of the run, as some experiments make, is in the bucket too.
    open_workdir(f"{folder}_study", Config())
    leave_workdirs(failed=False)
    assert bucket.exists("/zoo-test/run_study/config.json")
    for url, message in [("gs://", "expected a bucket"), ("memory://a/../b", "may not climb")]:
        with pytest.raises(ValueError, match=message):
            remote.stage(url)
    remote.publish(tmp_path)  # is none
