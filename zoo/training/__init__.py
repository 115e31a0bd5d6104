"""What every experiment shares: mesh, state, step, loop, checkpoints, records."""

from zoo.training.checkpoint import Checkpointer
from zoo.training.fit import Loop, fit
from zoo.training.mesh import batch_sharding, initialize_distributed, make_mesh, put_batch
from zoo.training.placement import Rules, path_name, shardings
from zoo.training.records import MetricsLog, open_workdir, results_table, write_summary
from zoo.training.state import (
    Functional,
    TrainState,
    abstract_state,
    functional,
    functional_with_state,
    init_state,
)
from zoo.training.step import LossOutput, make_train_step

__all__ = [
    "Checkpointer",
    "Functional",
    "Loop",
    "LossOutput",
    "MetricsLog",
    "Rules",
    "TrainState",
    "abstract_state",
    "batch_sharding",
    "fit",
    "functional",
    "functional_with_state",
    "init_state",
    "initialize_distributed",
    "make_mesh",
    "make_train_step",
    "open_workdir",
    "path_name",
    "put_batch",
    "results_table",
    "shardings",
    "write_summary",
]
