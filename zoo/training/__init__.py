"""What every experiment shares: mesh, state, step, loop, checkpoints, records."""

from zoo.training.checkpoint import Checkpointer
from zoo.training.fit import Loop, fit
from zoo.training.mesh import initialize_distributed, make_mesh, put_batch
from zoo.training.records import MetricsLog, open_workdir, results_table
from zoo.training.state import TrainState, functional, init_state
from zoo.training.step import LossOutput, make_train_step

__all__ = [
    "Checkpointer",
    "Loop",
    "LossOutput",
    "MetricsLog",
    "TrainState",
    "fit",
    "functional",
    "init_state",
    "initialize_distributed",
    "make_mesh",
    "make_train_step",
    "open_workdir",
    "put_batch",
    "results_table",
]
