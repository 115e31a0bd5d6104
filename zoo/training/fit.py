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
from zoo.training.progress import Progress, say
from zoo.training.records import MetricsLog
from zoo.training.signals import StopSignals
from zoo.training.state import TrainState

# Steps dispatched but not done. A few keep the devices busy; more would only hold more batches in
# their memory and delay Ctrl-C.
STEPS_AHEAD = 4
MOST_STEPS = 2**31 - 1  # the state counts them in int32


class Loop(NamedTuple):
    """How often a run logs, evaluates and saves, in steps.

    Attributes:
        log_every: steps between two records, each of means over the accepted steps since the last.
        evaluate_every: None evaluates at the end alone.
        checkpoint_every: None saves at the end alone.
        max_nonfinite_steps: refused updates in a row that end the run.
        rate_unit: what ``weight`` counts, for the display.
        progress: show a bar on a terminal, else a line per record.
        part: which of how many runs of equal length this is; the time left is that of all.
    """

    log_every: int = 50
    evaluate_every: int | None = None
    checkpoint_every: int | None = None
    max_nonfinite_steps: int = 10
    rate_unit: str = "examples"
    progress: bool = True
    part: tuple[int, int] = (1, 1)


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
    batches, and saves at the end. SIGTERM, Ctrl-C and a terminal that hangs up finish the step,
    save, and leave through ``SystemExit`` (143, 130, 129); a second Ctrl-C leaves at once. Several
    processes agree on stopping when they log. The log of a run that was stopped or killed, and then
    continued, holds the same records as that of one which was not, but for the rate.

    Args:
        step: from ``make_train_step``.
        state: from ``init_state``; consumed, as the step donates it.
        batches: iterator of pytrees of numpy arrays ``[B, ...]``, B the rows of this process. With
            a checkpointer it also has ``get_state() -> position`` (JSON, the same on every
            process) and ``set_state(position)``, as ``zoo.data.Pipeline`` has. With an attribute
            ``expected_steps`` progress is shown as a share of that number.
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
    checks.count("num_steps", num_steps, at_least=1, at_most=MOST_STEPS)
    for name, value in loop._asdict().items():
        if name not in ("rate_unit", "progress", "part") and value is not None:
            checks.count(name, value, at_least=1)
    positioned = _check_batches(batches, resumable=checkpointer is not None)
    window = _Window(mesh, loop.max_nonfinite_steps)
    records: int | None = 0
    if checkpointer is not None:
        state, records = _restore(checkpointer, state, positioned, window)
    first = done = logged = evaluated = saved = int(state.step)
    if log is not None:
        log.resume(first, records)
    expected = min(num_steps, getattr(batches, "expected_steps", num_steps))  # they may end before
    if first and checkpointer is not None and jax.process_index() == 0:
        where = f"step {first} of {expected}, saved in {checkpointer.place}"
        say(f"continues from {where}" if first < expected else f"was complete: {where}")
    ended, stop = False, 0

    def is_due(last: int, every: int | None) -> bool:
        """Every so many steps, and at the end for the steps since the last time."""
        return done > last and (ended or (every is not None and done % every == 0))

    with (
        StopSignals() as signals,
        Progress(expected, done, loop.rate_unit, part=loop.part, shown=loop.progress) as display,
    ):
        while not ended:
            batch = next(batches, None) if done < num_steps and not stop else None
            ended = batch is None
            if not ended:
                state, metrics = step(state, put_batch(batch, mesh))
                done += 1
                window.add(done, metrics)
                display.advance(done)
            # A run that is stopped leaves the records to the one that continues: the log is then
            # that of a run that was not stopped.
            if not stop:
                if is_due(logged, loop.log_every):
                    logged = done
                    record, rate = window.read()
                    display.report(done, record, rate=rate)
                    if log is not None:
                        log.write(done, {**record, f"{loop.rate_unit}_per_second": rate})
                if is_due(evaluated, loop.evaluate_every):
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
                        position = {"batches": positioned.get_state(), "window": window.get_state()}
                        position["records"] = None if log is None else log.count
                        checkpointer.save(state, position=position)
            if not ended and (jax.process_count() == 1 or done % loop.log_every == 0):
                # The last step is done in any case: its record, evaluation and save come first.
                stop = _agreed(signals.received) if done < num_steps else 0

        if checkpointer is not None:
            checkpointer.wait()
        stop = stop or _agreed(signals.received)  # also one that came in the last save
        if stop:
            if jax.process_index() == 0:
                kept = f"saved in {checkpointer.place}" if checkpointer else "nothing saved"
                name = signal.Signals(stop).name
                say(f"stopped at step {done} by {name}; {kept}; the same command continues")
            raise SystemExit(128 + stop)
    return state


class _Window:
    """Sums of the metrics since the last record; a checkpoint keeps them for the next one."""

    def __init__(self, mesh: Mesh, max_nonfinite_steps: int) -> None:
        self._max_nonfinite_steps = max_nonfinite_steps
        # Several CPU devices share one pool of threads: steps that overlap may wait forever.
        one_by_one = mesh.devices.flat[0].platform == "cpu" and len(mesh.local_devices) > 1
        self._steps_ahead = 0 if one_by_one else STEPS_AHEAD
        self._entries: list[tuple[int, dict[str, jax.Array]]] = []  # not read yet
        self._sums: dict[str, float] = {}
        self._accepted = self._refused = 0
        self._untimed = 1  # the first step compiles: it is left out of the rate
        self._timed_weight = 0.0
        self._clock = time.perf_counter()
        self._last_loss = math.nan

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        self._entries.append((step, metrics))
        if len(self._entries) == self._untimed:
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

    def read(self) -> tuple[dict[str, float], float]:
        """Gives the means over the accepted steps and the weight per second, and starts anew."""
        self._fold()
        seconds = time.perf_counter() - self._clock
        names = ("loss", *sorted(self._sums.keys() - {"loss"}))
        record = {name: self._sums[name] / (self._accepted or math.nan) for name in names}
        record["nonfinite_steps"] = self._refused
        rate = self._timed_weight / seconds
        self._sums = {}
        self._accepted = self._refused = 0
        self._timed_weight = 0.0
        self._clock = time.perf_counter()
        return record, rate

    def get_state(self) -> dict[str, Any]:
        """What the next record is made of so far, as JSON."""
        self._fold()
        return {"sums": self._sums, "accepted": self._accepted, "refused": self._refused}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self._sums = dict(state["sums"])
        self._accepted, self._refused = state["accepted"], state["refused"]

    def _fold(self) -> None:
        """Reads the metrics from the devices, all at once, and adds them to the sums."""
        values = jax.device_get([metrics for _, metrics in self._entries])
        for (step, _), metrics in zip(self._entries, values, strict=True):
            if metrics["nonfinite_steps"] >= self._max_nonfinite_steps:
                raise FloatingPointError(
                    f"step {step}: loss or gradient were not finite in "
                    f"{self._max_nonfinite_steps} steps in a row; the last finite loss was "
                    f"{self._last_loss:.6g}. The parameters are those before these steps. Lower "
                    "the learning rate, clip the gradient (optax.clip_by_global_norm), or look "
                    "at the batches of these steps for bad values."
                )
            accepted = metrics["nonfinite_steps"] == 0
            for name, value in metrics.items():
                self._sums[name] = self._sums.get(name, 0.0) + (float(value) if accepted else 0.0)
            if accepted:
                self._last_loss = float(metrics["loss"])
            self._accepted += bool(accepted)
            self._refused += not accepted
        self._timed_weight += sum(float(metrics["weight"]) for metrics in values[self._untimed :])
        self._untimed = max(0, self._untimed - len(values))
        self._entries.clear()


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


def _restore(
    checkpointer: Checkpointer, state: TrainState, batches: Any, window: _Window
) -> tuple[TrainState, int | None]:
    """The newest checkpoint, or the state that there is; and the records that its log had."""
    if not checkpointer.steps():
        return state, 0
    like = state.abstract
    for leaf in jax.tree.leaves(state):
        leaf.delete()  # two states at once may not fit in memory
    restored = checkpointer.restore(like)
    if restored is None:
        raise RuntimeError(f"the checkpoints in {checkpointer.directory} vanished meanwhile")
    state, position = restored
    records = None
    if isinstance(position, dict) and position.keys() - {"records"} == {"batches", "window"}:
        window.set_state(position["window"])
        records = position.get("records")
        position = position["batches"]  # else: of a version that kept nothing but this
    batches.set_state(position)
    return state, records
