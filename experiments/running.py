"""What the experiments that train in a folder share: devices, the loop, and what is left of it."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax
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
    path_name,
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


def decaying_adamw(training: Any, num_steps: int) -> optax.GradientTransformation:
    """Clipping, then AdamW with warm-up and cosine decay; kernels and embeddings decay.

    Args:
        training: has ``learning_rate``, ``weight_decay`` and ``gradient_clip``.
        num_steps: of the whole run.
    """
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, training.learning_rate, max(1, num_steps // 10), num_steps
    )

    def decays(parameters: Any) -> Any:
        return jax.tree.map_with_path(
            lambda path, _: path_name(path).endswith(("kernel", "embedding")), parameters
        )

    return optax.chain(
        optax.clip_by_global_norm(training.gradient_clip),
        optax.adamw(schedule, b2=0.99, weight_decay=training.weight_decay, mask=decays),
    )
