"""What the experiments share: what a run is made of, how it is trained in a folder, what it leaves.

data = load(config)                          # files -> arrays
experiment = build(config, mesh, data)       # nothing is computed
workdir = open_workdir(config.workdir, config, ignore=MAY_CHANGE)
state = train(experiment, mesh, workdir, config.loop)
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jax.typing import DTypeLike

from zoo._paths import matches
from zoo.data import Pipeline
from zoo.training import (
    Checkpointer,
    Loop,
    LossOutput,
    MetricsLog,
    TrainState,
    fit,
    init_state,
    initialize_distributed,
    make_mesh,
    make_train_step,
    put_batch,
)
from zoo.training.placement import Rules
from zoo.training.records import write_summary
from zoo.training.remote import url_of
from zoo.training.state import abstract_state

from .command_line import LoopConfig, RunConfig


class Experiment(NamedTuple):
    """What ``build(config, mesh)`` gives: everything a run needs, nothing of it computed yet.

    Attributes:
        init: ``(key) -> parameters``.
        merge: ``(parameters, …) -> module``, the way back to the model.
        loss: the loss function of ``zoo.training.make_train_step``.
        optimizer: an Optax transformation.
        batches: iterator with ``get_state`` and ``set_state``.
        num_steps: of the complete run.
        seed: of the parameters and of every step.
        evaluate: ``(state) -> (state, {name: number})``, see ``zoo.training.fit``.
        evaluate_every: in steps; None evaluates at the end alone.
        rate_unit: what the weight of the loss counts.
        rules: ordered (path pattern, axes) pairs that place the parameters.
        carry: what is handed from batch to batch, arrays ``[B, ...]`` of this process.
        init_model_state: ``(key) -> model state``, for variables that no gradient moves.
        accumulation_steps: micro-batches per batch.
        compute_dtype: such as ``jnp.bfloat16``; None computes in the parameters' dtype.
        max_nonfinite_steps: refused updates in a row that end the run.
    """

    init: Callable[[jax.Array], Any]
    merge: Callable[..., Any]
    loss: Callable[..., LossOutput]
    optimizer: optax.GradientTransformation
    batches: Iterator[Any]
    num_steps: int
    seed: int = 0
    evaluate: Callable[[TrainState], tuple[TrainState, Mapping[str, float]]] | None = None
    evaluate_every: int | None = None
    rate_unit: str = "examples"
    rules: Rules = ()
    carry: Any = ()
    init_model_state: Callable[[jax.Array], Any] | None = None
    accumulation_steps: int = 1
    compute_dtype: DTypeLike | None = None
    max_nonfinite_steps: int = 10

    def abstract_state(self, mesh: Mesh) -> TrainState:
        """Shapes, dtypes and shardings of the state."""
        return abstract_state(self.init, self.optimizer, mesh=mesh, **self._placed())

    def initial_state(self, mesh: Mesh) -> TrainState:
        """The state before the first step."""
        key = jax.random.key(self.seed)
        return init_state(self.init, self.optimizer, key=key, mesh=mesh, **self._placed())

    def train_step(self, shardings: TrainState) -> Callable[..., Any]:
        """The jitted step ``(state, batch) -> (state, metrics)``."""
        return make_train_step(
            self.loss,
            self.optimizer,
            accumulation_steps=self.accumulation_steps,
            compute_dtype=self.compute_dtype,
            shardings=shardings,
        )

    def _placed(self) -> dict[str, Any]:
        return {
            "rules": self.rules,
            "carry": self.carry,
            "init_model_state": self.init_model_state,
        }


def open_mesh(config: RunConfig) -> Mesh:
    """Joins the other processes, if there are any, and gives the mesh of all devices.

    Raises:
        ValueError: if the devices do not divide the rows of a batch of ``config.training``.
    """
    initialize_distributed(**dataclasses.asdict(config.distributed))
    mesh = make_mesh(**dataclasses.asdict(config.mesh))
    training = getattr(config, "training", None)
    if hasattr(training, "batch_size"):
        check_rows(mesh, training, "batch_size", getattr(training, "accumulation_steps", 1))
    return mesh


def check_rows(mesh: Mesh, training: Any, name: str, micro_batches: int = 1) -> None:
    """A ValueError that names the field unless the devices divide its rows evenly."""
    devices, rows = mesh.shape["data"] * mesh.shape["fsdp"], getattr(training, name)
    if rows % (devices * micro_batches):
        raise ValueError(
            f"training.{name} must be a multiple of {devices * micro_batches}, got {rows}: "
            f"{devices} device(s) see different rows, in {micro_batches} micro-batch(es)"
        )


def train(
    experiment: Experiment,
    mesh: Mesh,
    folder: pathlib.Path,
    loop: LoopConfig,
    step: Callable[..., Any] | None = None,
    part: tuple[int, int] = (1, 1),
) -> TrainState:
    """Draws the parameters, compiles the step and fits, with checkpoints and a log in the folder.

    A run that was stopped continues from its last checkpoint. ``step`` is that of an experiment
    which differs in seed and batches alone: several seeds then share one compilation.
    ``part`` says which of how many such runs this is, for the time that is left.
    """
    state = experiment.initial_state(mesh)
    step = experiment.train_step(state.shardings) if step is None else step
    with (
        Checkpointer(folder / "checkpoints", keep=loop.keep_checkpoints) as checkpointer,
        MetricsLog(folder / "metrics.jsonl", logger=loop.logger) as log,
    ):
        return fit(
            step,
            state,
            experiment.batches,
            num_steps=experiment.num_steps,
            mesh=mesh,
            loop=Loop(
                log_every=loop.log_every,
                evaluate_every=experiment.evaluate_every,
                checkpoint_every=loop.checkpoint_every,
                max_nonfinite_steps=experiment.max_nonfinite_steps,
                rate_unit=experiment.rate_unit,
                progress=loop.progress,
                part=part,
            ),
            checkpointer=checkpointer,
            log=log,
            evaluate=experiment.evaluate,
        )


def held_out_means(
    loss: Callable[..., LossOutput],
    parameters: Any,
    examples: Any,
    *,
    batch_size: int,
    mesh: Mesh,
) -> dict[str, float]:
    """Means of a loss and of its metrics over held-out examples.

    Args:
        loss: jitted, of ``make_train_step``'s form; gives the rows that are not
            ``batch["valid"]`` no weight.
        parameters: of the model.
        examples: a source for ``zoo.data.Pipeline``.
        batch_size: rows over all devices.
        mesh: that of the parameters.
    """
    sums: dict[str, np.ndarray] = {}
    for batch in Pipeline(examples, batch_size=batch_size, seed=0, num_epochs=1, shuffle=False):
        output = loss(parameters, put_batch(batch, mesh), key=jax.random.key(0), carry=())
        for name, pair in {"loss": (output.total, output.weight), **output.metrics}.items():
            sums[name] = sums.get(name, 0) + np.array(jax.device_get(pair), np.float64)
    return {name: float(total / max(weight, 1)) for name, (total, weight) in sums.items()}


def read_records(path: pathlib.Path, data: str | None = None) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``; none if there is no file.

    Args:
        path: of the file.
        data: fingerprint of the data that the records must be made of, kept in a field ``data``.

    Raises:
        ValueError: if a line is cut off or no record, with the file and the line, or if the records
            are made of other data.
    """
    if not path.exists():
        return []
    records = []
    *lines, rest = path.read_bytes().split(b"\n")
    for number, line in enumerate([*lines, *([rest] if rest else [])], start=1):
        try:
            records.append(json.loads(line))
            if not isinstance(records[-1], dict):
                raise ValueError("expected a JSON object")
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number} is damaged ({error}); delete it") from error
    if any(record.get("data", data) != data for record in records if data is not None):
        raise ValueError(
            f"{path} has records of other data: they have changed since the run began; give "
            "another --workdir"
        )
    return records


def is_main_process() -> bool:
    """Whether this process prints and writes results; on several machines one does."""
    return jax.process_index() == 0


def on_devices(mesh: Mesh) -> str:
    """The devices of a mesh in words."""
    return f"{mesh.size} {mesh.devices.flat[0].device_kind} device(s)"


def announce(what: str, experiment: Experiment, mesh: Mesh) -> None:
    """Prints what is trained, how large it is and on what."""
    if is_main_process():
        size = number_of_parameters(experiment.abstract_state(mesh).parameters)
        steps = f"{experiment.num_steps:,} steps on {on_devices(mesh)}"
        print(f"{what}; {size:,} parameters; {steps}")


def finish(
    workdir: pathlib.Path, summary: Mapping[str, Any], pictures: Sequence[pathlib.Path] = ()
) -> None:
    """Writes ``summary.json``, with JAX's version and the devices, and lists what was written."""
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    path = write_summary(workdir, {**summary, "jax": jax.__version__, "device": device})
    print("written:", ", ".join(url_of(path) or str(path) for path in (*pictures, path)))


def on_host(parameters: Any) -> Any:
    """Parameters that may be split over devices and processes, as complete NumPy arrays."""
    if jax.process_count() > 1:
        parameters = multihost_utils.process_allgather(parameters, tiled=True)
    return jax.device_get(parameters)


def number_of_parameters(parameters: Any) -> int:
    """How many numbers there are, in arrays or in their shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(parameters))


def decaying_adamw(training: Any, num_steps: int) -> optax.GradientTransformation:
    """Clipping, then AdamW with warm-up and cosine decay; kernels and embeddings decay.

    Args:
        training: has ``learning_rate``, ``weight_decay`` and ``gradient_clip``.
        num_steps: of the complete run.
    """
    # A tenth of the run; none if it has fewer than ten steps, as the first step of one has rate 0.
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, training.learning_rate, num_steps // 10, num_steps
    )
    return optax.chain(
        optax.clip_by_global_norm(training.gradient_clip),
        optax.adamw(
            schedule,
            b2=0.99,
            weight_decay=training.weight_decay,
            mask=lambda parameters: matches(parameters, "(kernel|embedding)$"),
        ),
    )
