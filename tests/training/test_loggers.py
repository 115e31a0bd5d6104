"""The records of a run as TensorBoard and Weights & Biases get them, beside the JSON lines."""

import json
import struct
import sys
import types

import numpy as np
import pytest

from zoo.training import MetricsLog

RECORDS = [(1, {"loss": np.float32(2), "note": "text"}), (2, {"loss": 1.5, "accepted": True})]


def write(path, logger, records=RECORDS, resume=None):
    with MetricsLog(path, logger=logger) as log:
        if resume is not None:
            log.resume(resume)
        for step, values in records:
            log.write(step, values)


def test_tensorboard_hides_what_a_run_that_goes_on_writes_again(tmp_path):
    event = pytest.importorskip("tensorboardX.proto.event_pb2").Event
    path = tmp_path / "metrics.jsonl"
    write(path, "tensorboard", resume=0)
    write(path, "tensorboard", [(2, {"loss": 1.25})], resume=1)
    assert len(path.read_text().splitlines()) == 2
    files, events = sorted((tmp_path / "tensorboard").iterdir()), []
    for file in files:
        data = file.read_bytes()
        while data:  # length, checksum, event, checksum
            (size,) = struct.unpack("<Q", data[:8])
            events.append(event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    hidden = [e.step for e in events if e.session_log.status == 1]  # from this step on
    assert hidden == [2]
    scalars = [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]
    assert scalars == [(1, "loss", 2.0), (2, "loss", 1.5), (2, "loss", 1.25)]


def test_weights_and_biases_goes_on_with_the_same_run(tmp_path, monkeypatch):
    started, logged = [], []

    class Run:
        def log(self, values, step):
            logged.append((step, values))

        def finish(self):
            logged.append("finished")

    def init(**options):
        started.append(options)
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    (tmp_path / "config.json").write_text('{"seed": 3}')
    path = tmp_path / "part" / "metrics.jsonl"
    write(path, "wandb", resume=0)
    write(path, "wandb", [(3, {"loss": 1.0})], resume=2)
    write(path, "wandb", [], resume=0)  # from the beginning: another run
    ids = [options["id"] for options in started]
    assert ids[0] == ids[1] != ids[2] == json.loads((path.parent / "wandb.json").read_text())["id"]
    assert started[0] == {
        "project": "zoo",
        "id": ids[0],
        "name": "part",
        "dir": str(path.parent),
        "config": {"seed": 3},
        "resume": "allow",
    }
    assert logged == [
        (1, {"loss": 2.0}),
        (2, {"loss": 1.5}),
        "finished",
        (3, {"loss": 1.0}),
        *["finished"] * 2,
    ]


@pytest.mark.parametrize(("logger", "module"), [("tensorboard", "tensorboardX"), ("wandb",) * 2])
def test_a_missing_logger_names_the_extra(tmp_path, monkeypatch, logger, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"kexue-zoo\[logging\]"):
        MetricsLog(tmp_path / "metrics.jsonl", logger=logger)
