"""The training loop: runs a step over batches, and survives being stopped in any way.

It is built so that the devices never wait for the host: steps are dispatched ahead, and metrics are
read only when they are logged. A run that is stopped (SIGTERM, Ctrl-C) saves first; one that is
killed goes back to its last checkpoint. Both continue bit for bit when the same command runs again,
because the state, the data position and the key of every step are restored.
"""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from zoo import _checks as checks
from zoo.training.checkpoint import Checkpointer
from zoo.training.mesh import put_batch
from zoo.training.progress import Progress
from zoo.training.records import MetricsLog
from zoo.training.signals import StopSignals
from zoo.training.state import TrainState

# Steps dispatched but not done. A few keep the devices busy; more would only hold more batches in
# their memory and delay Ctrl-C.
STEPS_AHEAD = 4


class Loop(NamedTuple):
    """How often a run logs, evaluates and saves, in steps.

    Attributes:
        log_every: steps between two records, each of means over the accepted steps since the last.
        evaluate_every: None evaluates at the end alone.
        checkpoint_every: None saves at the end alone.
        max_nonfinite_steps: refused updates in a row that end the run.
        rate_unit: what ``weight`` counts, for the display.
        progress: show a bar on a terminal, else a line per record.
    """

    log_every: int = 50
    evaluate_every: int | None = None
    checkpoint_every: int | None = None
    max_nonfinite_steps: int = 10
    rate_unit: str = "examples"
    progress: bool = True


def fit(
    step: Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]],
    state: TrainState,
    batches: Iterator[Any],
    *,
    num_steps: int,
    mesh: Mesh,
    loop: Loop = Loop(),
    checkpointer: Checkpointer | None = None,
    log: MetricsLog | None = None,
    evaluate: Callable[[TrainState], tuple[TrainState, Mapping[str, float]]] | None = None,
) -> TrainState:
    """Trains until ``num_steps`` steps are done in all, or the batches end.

    With a checkpointer it first restores the newest undamaged checkpoint, with the position of the
    batches, and saves at the end. SIGTERM and Ctrl-C finish the step, save, and leave through
    ``SystemExit`` (143, 130); a second one leaves at once. Several processes agree on stopping when
    they log.

    Args:
        step: from ``make_train_step``.
        state: from ``init_state``; consumed, as the step donates it.
        batches: iterator of pytrees of numpy arrays ``[B, ...]``, B the rows of this process. With
            a checkpointer it also has ``get_state() -> position`` (JSON, the same on every
            process) and ``set_state(position)``, as ``zoo.data.Pipeline`` has.
        num_steps: the step to stop at, counted from the very first start.
        mesh: of the state.
        loop: how often it logs, evaluates and saves.
        checkpointer: keeps the run; without one nothing is saved.
        log: gets every record and every evaluation.
        evaluate: ``(state) -> (state, {name: number})``; consumes the state and returns the one to
            go on with, usually the same, with equal structure and shardings. It runs at the end and
            every ``loop.evaluate_every`` steps, on all processes.

    Returns:
        The state after the last step.

    Raises:
        ValueError: if a number is not positive.
        TypeError: if the batches cannot be resumed but a checkpointer is given.
        FloatingPointError: after ``loop.max_nonfinite_steps`` refused updates in a row.
        SystemExit: when stopped by a signal.

    >>> import itertools, optax
    >>> from zoo.training import LossOutput, init_state, make_mesh, make_train_step
    >>> def loss_fn(parameters, batch, *, key, carry):
    ...     errors = batch @ parameters["kernel"] - 1.0
    ...     return LossOutput((errors**2).sum(), errors.size)
    >>> init = lambda key: {"kernel": jax.numpy.zeros((3, 1))}
    >>> optimizer, mesh = optax.sgd(0.1), make_mesh()
    >>> state = init_state(init, optimizer, key=jax.random.key(0), mesh=mesh)
    >>> step = make_train_step(loss_fn, optimizer, shardings=state.shardings)
    >>> batches = itertools.repeat(np.ones((8, 3), np.float32))
    >>> state = fit(step, state, batches, num_steps=20, mesh=mesh, loop=Loop(progress=False))
    >>> state.parameters["kernel"].sum().round(3)
    Array(1., dtype=float32)
    """
    for name, value in {"num_steps": num_steps, **loop._asdict()}.items():
        if name not in ("rate_unit", "progress") and value is not None:
            checks.count(name, value, at_least=1)
    positioned = _check_batches(batches, resumable=checkpointer is not None)
    if checkpointer is not None:
        state = _restore(checkpointer, state, positioned)
    first = done = logged = evaluated = saved = int(state.step)
    if log is not None:
        log.resume(first)
    window = _Window(mesh, loop.max_nonfinite_steps)
    ended, stop = False, 0

    def is_due(last: int, every: int | None) -> bool:
        """Every so many steps, and at the end for the steps since the last time."""
        return done > last and (ended or (every is not None and done % every == 0))

    with (
        StopSignals() as signals,
        Progress(num_steps, done, loop.rate_unit, shown=loop.progress) as display,
    ):
        while not ended:
            batch = next(batches, None) if done < num_steps and not stop else None
            ended = batch is None
            if not ended:
                state, metrics = step(state, put_batch(batch, mesh))
                done += 1
                window.add(done, metrics)
                display.advance(done)
            if is_due(logged, loop.log_every):
                logged = done
                record, rate, pace = window.read()
                display.report(done, record, rate=rate, pace=pace)
                if log is not None:
                    log.write(done, {**record, f"{loop.rate_unit}_per_second": rate})
            if is_due(evaluated, loop.evaluate_every) and not (ended and stop and done < num_steps):
                evaluated = done
                if evaluate is not None:
                    with window.paused():
                        state, values = evaluate(state)
                    if log is not None:
                        log.write(done, values)
            if is_due(saved, loop.checkpoint_every):
                saved = done
                if checkpointer is not None:
                    with window.paused():
                        checkpointer.save(state, position=positioned.get_state())
            if not ended and (jax.process_count() == 1 or done % loop.log_every == 0):
                stop = _agreed(signals.received)

        if checkpointer is not None:
            checkpointer.wait()
        if stop:
            if jax.process_index() == 0:
                kept = f"saved in {checkpointer.directory}" if checkpointer else "nothing saved"
                name = signal.Signals(stop).name
                print(f"stopped at step {done} by {name}; {kept}; the same command continues")
            raise SystemExit(128 + stop)
    return state


class _Window:
    """The metrics since the last log step, read from the devices all at once."""

    def __init__(self, mesh: Mesh, max_nonfinite_steps: int) -> None:
        self._max_nonfinite_steps = max_nonfinite_steps
        # Several CPU devices share one pool of threads: steps that overlap may wait forever.
        one_by_one = mesh.devices.flat[0].platform == "cpu" and len(mesh.local_devices) > 1
        self._steps_ahead = 0 if one_by_one else STEPS_AHEAD
        self._entries: list[tuple[int, dict[str, jax.Array]]] = []
        self._timed_from = 1  # the first step compiles: it is left out of the rate
        self._clock = time.perf_counter()
        self._last_loss = math.nan

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        self._entries.append((step, metrics))
        if len(self._entries) == self._timed_from:
            jax.block_until_ready(metrics)
            self._clock = time.perf_counter()
        elif len(self._entries) > self._steps_ahead:
            self._entries[-self._steps_ahead - 1][1]["loss"].block_until_ready()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves what runs inside out of the rate."""
        begin = time.perf_counter()
        yield
        self._clock += time.perf_counter() - begin

    def read(self) -> tuple[dict[str, float], float, float]:
        """Gives the means over the accepted steps, weight per second and steps per second."""
        values = jax.device_get([metrics for _, metrics in self._entries])
        seconds = time.perf_counter() - self._clock
        accepted = []
        for (step, _), metrics in zip(self._entries, values, strict=True):
            if metrics["nonfinite_steps"] >= self._max_nonfinite_steps:
                raise FloatingPointError(
                    f"step {step}: loss or gradient were not finite in "
                    f"{self._max_nonfinite_steps} steps in a row; the last finite loss was "
                    f"{self._last_loss:.6g}. The parameters are those before these steps. Lower "
                    "the learning rate, clip the gradient (optax.clip_by_global_norm), or look "
                    "at the batches of these steps for bad values."
                )
            if metrics["nonfinite_steps"] == 0:
                accepted.append(metrics)
                self._last_loss = float(metrics["loss"])
        count = len(accepted) or math.nan
        record = {
            name: sum(float(metrics[name]) for metrics in accepted) / count
            for name in ("loss", *sorted(values[0].keys() - {"loss"}))
        }
        record["nonfinite_steps"] = len(values) - len(accepted)
        timed = values[self._timed_from :]
        rate = sum(float(metrics["weight"]) for metrics in timed) / seconds
        self._entries.clear()
        self._timed_from = 0
        self._clock = time.perf_counter()
        return record, rate, len(timed) / seconds


def _agreed(signal_number: int) -> int:
    """The same answer on every process: a signal to one stops all."""
    if jax.process_count() == 1:
        return signal_number
    return int(multihost_utils.process_allgather(np.int32(signal_number)).max())


def _check_batches(batches: Any, *, resumable: bool) -> Any:
    if not hasattr(batches, "__next__"):
        raise TypeError(f"batches must be an iterator, got {type(batches).__name__}: use iter(...)")
    if resumable and not (hasattr(batches, "get_state") and hasattr(batches, "set_state")):
        raise TypeError(
            f"a run with a checkpointer needs batches with get_state and set_state, got "
            f"{type(batches).__name__}: use zoo.data.Pipeline, or train without a checkpointer"
        )
    return batches


def _restore(checkpointer: Checkpointer, state: TrainState, batches: Any) -> TrainState:
    if not checkpointer.steps():
        return state
    like = state.abstract
    for leaf in jax.tree.leaves(state):
        leaf.delete()  # two states at once may not fit in memory
    restored = checkpointer.restore(like)
    if restored is None:
        raise RuntimeError(f"the checkpoints in {checkpointer.directory} vanished meanwhile")
    state, position = restored
    batches.set_state(position)
    return state
