import sys

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from zoo.training import initialize_distributed, make_mesh, mesh, put_batch
from zoo.training.mesh import batch_sharding


def test_one_axis_takes_what_is_left_and_all_axes_are_auto():
    mesh = make_mesh(data=-1, fsdp=2, model=2)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "model": 2}
    assert mesh.axis_types == (AxisType.Auto,) * 3
    assert dict(make_mesh(data=2, model=-1).shape) == {"data": 2, "fsdp": 1, "model": 4}
    assert make_mesh(devices=jax.devices()[:3]).shape["data"] == 3


@pytest.mark.parametrize(
    "sizes", [{"data": 3}, {"fsdp": 3}, {"data": -1, "model": -1}, {"data": 0}, {"data": 4}]
)
def test_sizes_that_do_not_fit_are_named(sizes):
    name, size = next(iter(sizes.items()))
    with pytest.raises(ValueError, match=rf"{name}={size}.* 8 devices"):
        make_mesh(**sizes)


def test_batch_is_split_over_data_and_fsdp_and_repeated_over_model():
    mesh = make_mesh(data=2, fsdp=2, model=2)
    rows = np.arange(8.0).reshape(8, 1)
    placed = put_batch({"x": rows}, mesh)["x"]
    assert placed.sharding == batch_sharding(mesh)
    np.testing.assert_array_equal(placed, rows)
    held = sorted(shard.data.ravel().tolist() for shard in placed.addressable_shards)
    assert held == [[row, row + 1.0] for row in (0.0, 0.0, 2.0, 2.0, 4.0, 4.0, 6.0, 6.0)]


@pytest.mark.parametrize("leaf", [np.zeros((6, 2)), np.zeros(())])
def test_batch_that_does_not_divide_is_named(leaf):
    with pytest.raises(ValueError, match=r"'deep/0'.*multiple of 8"):
        put_batch({"deep": [leaf]}, make_mesh())


def test_distributed_settings_come_together(monkeypatch):
    for name in ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID"):
        monkeypatch.delenv(f"JAX_{name}", raising=False)
    initialize_distributed()
    initialize_distributed(coordinator_address="localhost:1", num_processes=1, process_id=0)
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    with pytest.raises(ValueError, match=r"together, got localhost:1, 2, None\."):
        initialize_distributed(coordinator_address="localhost:1")


@pytest.mark.parametrize("name", ["initialization_timeout", "heartbeat_timeout"])
def test_seconds_to_wait_are_positive(name):
    with pytest.raises(ValueError, match=rf"{name} .*got 0"):
        initialize_distributed(
            coordinator_address="localhost:1", num_processes=2, process_id=0, **{name: 0}
        )


def test_nobody_is_ended_while_process_0_writes_its_report(monkeypatch):
    """The others wait for it at their end; after JAX's 300 seconds all would be aborted."""
    given = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: given.update(options))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    initialize_distributed(coordinator_address="auto", heartbeat_timeout=7)
    mesh._end_well()
    assert given.pop("shutdown_timeout_seconds") > 24 * 3600
    assert given == {"initialization_timeout": 300, "heartbeat_timeout_seconds": 7}
    sys.excepthook(KeyError, KeyError("a"), None)  # one process as here goes on
