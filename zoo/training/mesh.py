"""One mesh for every machine: a laptop, a GPU box, a pod slice.

The mesh always has the three axes ``data``, ``fsdp`` and ``model``. The batch is split over
``data`` and ``fsdp`` together; parameters are placed over ``fsdp`` and ``model`` by the rules of
``zoo.training.placement``. An axis of size one costs nothing, so the same script runs anywhere.
"""

import atexit
import contextlib
import functools
import math
import os
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from zoo import _checks as checks
from zoo._paths import path_name

AXES = ("data", "fsdp", "model")
BATCH_AXES = ("data", "fsdp")

# What a process of several says last that ends before its run.
GONE = (
    "This process ends before its run does: for the reason above, or because another process of "
    "the run is gone or never came. The same command in every process goes on from the last "
    "checkpoint."
)
_last_words: list[subprocess.Popen[bytes]] = []


def initialize_distributed(
    *,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    initialization_timeout: int = 300,
    heartbeat_timeout: int = 60,
) -> None:
    """Joins the processes of one run; does nothing when there is only one.

    Call it before anything touches a device. When a process is gone, the others end as soon as they
    notice: at once where the connection breaks, else after ``heartbeat_timeout``. JAX ends them
    from C++; a line behind its dump says what that means.

    Args:
        coordinator_address: ``"host:port"`` of process 0, or ``"auto"`` where JAX finds the other
            processes itself (Cloud TPU, Slurm, Open MPI); default ``$JAX_COORDINATOR_ADDRESS``.
        num_processes: how many processes take part; default ``$JAX_NUM_PROCESSES``.
        process_id: this one's number, from 0; default ``$JAX_PROCESS_ID``.
        initialization_timeout: seconds to wait for the others at the start.
        heartbeat_timeout: seconds without a sign of life after which a process counts as gone, and
            the others end.

    Raises:
        ValueError: if only some of the three are known, or one is not of its form.

    >>> initialize_distributed(num_processes=1)
    """
    given = (coordinator_address, num_processes, process_id)
    variables = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    address, count, number = (
        os.environ.get(variable) if value is None else value
        for value, variable in zip(given, variables, strict=True)
    )
    for name, value in (
        ("initialization_timeout", initialization_timeout),
        ("heartbeat_timeout", heartbeat_timeout),
    ):
        checks.count(name, value, at_least=1)
    join = functools.partial(
        _join,
        initialization_timeout=initialization_timeout,
        heartbeat_timeout_seconds=heartbeat_timeout,
    )
    if address == "auto":
        join()
        return
    if (address, count, number) == (None,) * 3 or str(count).strip() == "1":
        return
    if address is None or count is None or number is None:
        raise ValueError(
            "several processes need coordinator_address, num_processes and process_id together, "
            f"got {address}, {count}, {number}. Give them as arguments or as {variables}, or "
            "coordinator_address='auto' on Cloud TPU."
        )
    address = str(address)
    if not re.fullmatch(r"[^\s:]+:\d+|\[[^\s\]]+\]:\d+", address):
        raise ValueError(f"coordinator_address must be 'host:port' or 'auto', got {address!r}")
    try:
        processes, own = int(count), int(number)
    except ValueError:
        processes = own = -1
    if not 0 <= own < processes:
        raise ValueError(
            "num_processes must be a whole number and process_id one from 0 to num_processes - 1, "
            f"got {count!r} and {number!r}"
        )
    join(coordinator_address=address, num_processes=processes, process_id=own)


def _join(**options: Any) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # read on CPU only
    # It catches SIGTERM from here on, so that nothing stops a run before its first step.
    jax.config.update("jax_enable_preemption_service", False)
    with contextlib.suppress(OSError):  # no such shell
        # C++ may end this process without a word of Python: the shell sees the pipe close.
        last_words = subprocess.Popen(
            ["/bin/sh", "-c", 'read word || echo "$0" >&2', GONE],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        _last_words.append(last_words)
        atexit.register(_end_well)
    show = sys.excepthook

    def leave(*error: Any) -> None:
        show(*error)
        leave_distributed(1)

    sys.excepthook = leave
    # The others wait at their end for process 0, which may be writing its report, as long as that
    # takes: JAX would end them all. What fails does not come to that end, it leaves.
    jax.distributed.initialize(shutdown_timeout_seconds=10**7, **options)


def _end_well() -> None:
    """Nothing is to be said at the end of this process."""
    while _last_words:
        with contextlib.suppress(OSError):
            _last_words.pop().communicate(b"well\n")


def leave_distributed(code: int, *, seconds: float = 10.0) -> None:
    """Ends this process, which has failed, if it is one of several; the others then end, too.

    JAX would wait at its end for the others, which may be waiting for this one. An exception that
    nobody catches comes here by itself.

    Args:
        code: of the exit.
        seconds: to wait for the others, which may be about to end for the same reason.
    """
    if not jax.distributed.is_initialized():
        return
    print(GONE, file=sys.stderr)
    _end_well()
    leaving = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    leaving.start()
    leaving.join(seconds)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def make_mesh(
    *, data: int = -1, fsdp: int = 1, model: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """The mesh over all devices of all processes, with axes ``data``, ``fsdp`` and ``model``.

    Args:
        data: number of groups that see different rows of the batch and hold complete parameters.
        fsdp: number of devices that see different rows and may also share out the parameters.
        model: number of devices that see the same rows and may share out the parameters.
            One of the three may be -1: it takes the devices that are left.
        devices: use these only (default: all).

    Returns:
        A mesh whose axes are all ``AxisType.Auto``.

    Raises:
        ValueError: if the sizes do not multiply to the number of devices.

    >>> dict(make_mesh(devices=jax.devices()[:1]).shape)
    {'data': 1, 'fsdp': 1, 'model': 1}
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = [data, fsdp, model]
    if sizes.count(-1) == 1:
        sizes[sizes.index(-1)] = len(devices) // max(1, -math.prod(sizes))
    if min(sizes) < 1 or math.prod(sizes) != len(devices):
        raise ValueError(
            f"mesh sizes {data=}, {fsdp=}, {model=} do not fit {len(devices)} devices: expected "
            "positive sizes whose product is the number of devices, at most one of them -1 "
            "(it takes what is left). Change a size, or pass devices= to use fewer."
        )
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch ``[B, ...]``: axis 0 over ``data`` and ``fsdp``."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Puts this process's rows of a batch on its devices.

    Args:
        batch: pytree of numpy arrays ``[B, ...]``, B the rows of this process alone.
        mesh: from ``make_mesh``.

    Returns:
        The same tree of global arrays ``[B · processes, ...]``, split over ``data`` and ``fsdp``.

    Raises:
        ValueError: if a leaf has no batch axis, or one that its devices do not divide.

    >>> put_batch({"x": np.zeros((8, 3))}, make_mesh())["x"].shape
    (8, 3)
    """
    shards = _local_shards(mesh)
    for path, leaf in jax.tree.leaves_with_path(batch):
        if np.ndim(leaf) == 0 or np.shape(leaf)[0] % shards:
            raise ValueError(
                f"batch leaf {path_name(path)!r} has shape {np.shape(leaf)}: expected axis 0 to "
                f"be the batch and a multiple of {shards}, the number of devices of this process "
                "that see different rows. Change the batch size or drop the last, smaller batch."
            )
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), batch
    )


@functools.lru_cache
def _local_shards(mesh: Mesh) -> int:
    """Number of different row blocks that the devices of this process hold."""
    places: Any = batch_sharding(mesh).addressable_devices_indices_map((mesh.size,))
    return len({rows.start for (rows,) in places.values()})
