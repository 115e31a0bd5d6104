"""What the experiments that train in a folder share: devices, the loop, and what is left of it."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from experiments.command_line import DistributedConfig, LoopConfig, MeshConfig
from zoo.training import (
    Checkpointer,
    MetricsLog,
    TrainState,
    fit,
    initialize_distributed,
    make_mesh,
)


def open_mesh(mesh: MeshConfig, distributed: DistributedConfig) -> Mesh:
    """Joins the other processes, if there are any, and gives the mesh of all devices."""
    initialize_distributed(**dataclasses.asdict(distributed))
    return make_mesh(**dataclasses.asdict(mesh))


def fit_in(
    folder: pathlib.Path,
    loop: LoopConfig,
    step: Callable[..., Any],
    state: TrainState,
    batches: Iterator[Any],
    **options: Any,
) -> TrainState:
    """``zoo.training.fit`` with checkpoints and a log in the folder; ``options`` are its own."""
    with (
        Checkpointer(folder / "checkpoints", keep=loop.keep_checkpoints) as checkpointer,
        MetricsLog(folder / "metrics.jsonl") as log,
    ):
        return fit(
            step,
            state,
            batches,
            checkpointer=checkpointer,
            log=log,
            checkpoint_every=loop.checkpoint_every,
            log_every=loop.log_every,
            progress=loop.progress,
            **options,
        )


def on_host(parameters: Any) -> Any:
    """The whole of parameters that may be split over devices and processes, as NumPy arrays."""
    if jax.process_count() > 1:
        parameters = multihost_utils.process_allgather(parameters, tiled=True)
    return jax.device_get(parameters)


def number_of_parameters(parameters: Any) -> int:
    """How many numbers there are."""
    return sum(leaf.size for leaf in jax.tree.leaves(parameters))
