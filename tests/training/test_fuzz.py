"""Files of a run on mutated and random input: documented errors, in bounded time and memory.

ZOO_FUZZ is the number of inputs per parser.
"""

import json
import warnings
import zlib

import numpy as np
import pytest

from experiments.running import read_records
from tests.data.test_fuzz import COUNT, message_of, mutate
from zoo.training import MetricsLog, open_workdir
from zoo.training.checkpoint import read_manifest

CONFIG = {"seed": 0, "data": {"uri": "a.txt", "sizes": [1, 2]}, "rate": 0.1, "names": []}
LINES = b'{"step": 1, "loss": 0.5}\n{"step": 2, "loss": null, "x": [1]}\n{"step": 3}\n'
LEAF = {"shape": [3], "dtype": "float32", "checksum": 7}
CONTENT = {"leaves": {"a": LEAF, "b/c": LEAF}, "position": {"batch": 3, "pipeline": {}}}


def inputs(data):
    generator = np.random.default_rng(0)
    for _ in range(COUNT):
        raw = generator.random() < 0.05
        yield generator.bytes(int(generator.integers(200))) if raw else mutate(generator, data)


def test_configs(tmp_path):
    path, same = tmp_path / "config.json", 0
    (tmp_path / "summary.json").write_text("{}")
    for data in inputs(json.dumps(CONFIG, indent=2).encode()):
        path.write_bytes(data)
        message = message_of(lambda: open_workdir(tmp_path, CONFIG, lock=False))
        assert message is None or str(tmp_path) in message
        assert path.read_bytes() == data
        same += message is None
    assert 0 < same < COUNT


def test_logs(tmp_path):
    path, whole = tmp_path / "metrics.jsonl", 0
    for data in inputs(LINES):
        path.write_bytes(data)
        message = message_of(lambda: read_records(path))
        assert message is None or str(path) in message
        with warnings.catch_warnings(record=True) as caught, MetricsLog(path) as log:
            warnings.simplefilter("always")
            log.resume(2)
            log.write(3, {"loss": 1.0})
        assert all(str(path) in str(warning.message) for warning in caught)
        records = read_records(path)  # whatever it was before
        assert records[-1] == {"step": 3, "loss": 1.0}
        assert all(record["step"] <= 3 for record in records)
        whole += len(records) == 3
    assert 0 < whole < COUNT


def with_sum(content):
    return {"content": content, "crc32": zlib.crc32(json.dumps(content, sort_keys=True).encode())}


@pytest.mark.parametrize("summed", [False, True], ids=["damaged", "of another form"])
def test_manifests(summed):
    good = CONTENT if summed else with_sum(CONTENT)
    read = refused = 0
    for data in inputs(json.dumps(good).encode()):
        try:
            manifest = json.loads(data)
        except (ValueError, RecursionError):  # noticed by Orbax
            continue
        manifest = with_sum(manifest) if summed else manifest
        message = message_of(lambda manifest=manifest: read_manifest(manifest))
        refused += message is not None
        if message is None:
            read += 1
            content = read_manifest(manifest)
            assert {"leaves", "position"} <= content.keys()
            assert summed or content == CONTENT
    assert refused
    assert read
