"""What both pipelines share: reading a random-access sequence of batches from a position on.

Reading ahead, worker processes and shared memory are grain's (``IterDataset.mp_prefetch``: worker w
of W makes every W-th batch). Four guards are added, without which a program would hang or end
silently: an exception is sent as a value with its traceback as text (grain sends the exception
itself, which is lost when it cannot be pickled), a worker that exits is never taken for one that
has finished, one that makes no batch is waited for a bounded time, and workers end with the program
even when that is killed.
"""

import builtins
import dataclasses
import functools
import math
import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import sys
import threading
import traceback
import weakref
from typing import Any, Literal, NoReturn, Protocol, Self

import jax
import numpy as np

from zoo import _checks as checks
from zoo.data.fingerprint import fingerprint
from zoo.extras import require

Batch = dict[str, np.ndarray]
_READY = 2  # batches that every worker process keeps ready
_GLANCE = 0.5  # seconds between two looks at the worker processes


class Batches(Protocol):
    """Batches by number, of all epochs; what the two pipelines differ in."""

    @property
    def batches_per_epoch(self) -> int:
        """Batches of one epoch."""

    def __getitem__(self, number: int, /) -> Batch:
        """Batch ``number % batches_per_epoch`` of epoch ``number // batches_per_epoch``."""


class BatchIterator:
    """An iterator over batches with a position that is one number.

    Args:
        batches: by number.
        num_epochs: when to stop; None: never.
        num_workers: processes that make batches.
        identity: the settings that decide the batches, as JSON.
        content: the data that decide them. Their fingerprint is a part of the identity, taken when
            a state is asked for or restored, so that iterators that are not resumed pay nothing.
        fingerprints: whether large data are ``"sampled"`` for it or read in ``"full"``.
        worker_timeout: seconds to wait for a batch of a worker process.
    """

    def __init__(
        self,
        batches: Batches,
        *,
        num_epochs: int | None,
        num_workers: int,
        identity: dict[str, Any],
        content: Any = None,
        fingerprints: Literal["sampled", "full"] = "sampled",
        worker_timeout: float = 600.0,
    ):
        self._batches, self._settings, self._position = batches, identity, 0
        self._content = content
        self._fingerprints = fingerprints
        checks.choice("fingerprints", fingerprints, ("sampled", "full"))
        self._worker_timeout = checks.number("worker_timeout", worker_timeout, above=0)
        self._num_workers = checks.count("num_workers", num_workers)
        self._total = sys.maxsize
        if num_epochs is not None:
            epochs = checks.count("num_epochs", num_epochs, at_least=1)
            self._total = epochs * self.batches_per_epoch
        self._live: list[Any] = []  # grain's iterator while it is open
        # For a pipeline that nobody closes: when it is dropped, or when the program ends.
        weakref.finalize(self, _close_all, self._live)

    @property
    def batches_per_epoch(self) -> int:
        """Batches of one epoch, the filled-up last one included."""
        return self._batches.batches_per_epoch

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        if self._position >= self._total:
            self.close()
            raise StopIteration
        try:
            if not self._live:
                self._live.append(self._open())
            batch = next(self._live[0])
            if isinstance(batch, _Failure):
                batch.throw()
            if self._num_workers:
                # A copy: grain's shared memory is released when the program drops the array, though
                # JAX on a CPU may still use it in place.
                batch = {name: np.array(value) for name, value in batch.items()}
        except BaseException:  # Ctrl-C too: no process stays behind
            self.close()
            raise
        self._position += 1
        return batch

    @functools.cached_property
    def _identity(self) -> dict[str, Any]:
        if self._content is None:
            return self._settings
        code = fingerprint(self._content, full=self._fingerprints == "full")
        return self._settings | {"content": f"{self._fingerprints}-{code}"}

    def get_state(self) -> dict[str, Any]:
        """The position, as JSON: the number of the next batch, and the identity of the pipeline."""
        return {"batch": self._position, "pipeline": dict(self._identity)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position at once; the numbers of workers and hosts may have changed.

        Raises:
            ValueError: the state is that of another pipeline, or past the last epoch.
        """
        plain = isinstance(state, dict)
        saved, position = (state.get("pipeline"), state.get("batch")) if plain else (None, None)
        if not isinstance(saved, dict) or type(position) is not int:
            raise ValueError(f"state must be what get_state returned, got {state!r:.200}")
        if "content" in self._identity:  # states of earlier versions do not name the content
            saved = {"content": self._identity["content"], **saved}
        names = [*self._identity, *(saved.keys() - self._identity.keys())]
        differing = [
            f"{name}={saved.get(name)!r} (here {self._identity.get(name)!r})"
            for name in names
            if saved.get(name) != self._identity.get(name)
        ]
        if differing:
            raise ValueError(
                f"state was saved by a pipeline with {', '.join(differing)}, whose batches are "
                "others; use the same data and settings, or start without the state"
            )
        if not 0 <= position <= self._total:
            raise ValueError(
                f"state is at batch {position}, but this pipeline ends after {self._total}; "
                "raise num_epochs"
            )
        self.close()
        self._position = position

    def close(self) -> None:
        """Ends the worker processes; reading on starts new ones at the same position."""
        _close_all(self._live)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def _open(self) -> Any:
        grain = require("grain", "data")
        rest = _Rest(self._batches, self._position, self._total, guarded=self._num_workers > 0)
        dataset = grain.MapDataset.source(rest).to_iter_dataset(
            grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        )
        if self._num_workers:
            flags = require("absl.flags", "data").FLAGS
            if not flags.is_parsed():  # grain reads absl flags, which only an absl program parses
                flags.mark_as_parsed()
            options = grain.MultiprocessingOptions(
                num_workers=self._num_workers, per_worker_buffer_size=_READY
            )
            dataset = dataset.mp_prefetch(options, worker_init_fn=_prepare_worker)
            return _Watched(iter(dataset), self._worker_timeout)
        return iter(dataset)


def _close_all(live: list[Any]) -> None:
    while live:
        live.pop().close()


class _Watched:
    """grain's iterator in a thread of its own, beside which the worker processes are watched.

    grain waits without end for a worker that is stopped, or that left with exit status 0.
    """

    def __init__(self, batches: Any, timeout: float):
        self._batches, self._timeout = batches, timeout
        self._others = set(multiprocessing.active_children())
        self._workers: set[Any] = set()
        self._lost = False
        self._asked: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._made: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True, name="zoo-batches").start()

    def __next__(self) -> Any:
        self._asked.put(True)
        # Looks are counted instead of the clock: a program that was stopped and goes on has not
        # waited for its workers, which were stopped with it.
        for _ in range(math.ceil(self._timeout / _GLANCE)):
            try:
                batch, failure = self._made.get(timeout=min(_GLANCE, self._timeout))
            except queue.Empty:
                self._workers |= set(multiprocessing.active_children()) - self._others
                if any(worker.exitcode == 0 for worker in self._workers):
                    self._end()
                    self._lost = True
                    raise RuntimeError(
                        "a worker process has left with exit status 0 before its batches were "
                        "made; does the source or the transform call os._exit?"
                    ) from None
                continue
            if failure is not None:
                raise failure
            return batch
        states = ", ".join(f"{worker.pid} {_state_of(worker.pid)}" for worker in self._workers)
        self._end()
        raise TimeoutError(
            f"no batch within worker_timeout={self._timeout:g} seconds (worker processes: "
            f"{states or 'none'}); does the source or the transform wait for something? Raise "
            "worker_timeout if one batch takes longer, or find the cause with num_workers=0"
        )

    def close(self) -> None:
        self._asked.put(False)
        if not self._lost:  # grain would join the thread in which it waits for the lost worker
            self._batches.close()

    def _end(self) -> None:
        """Kills the workers, for which grain would wait when it is closed."""
        for worker in self._workers:
            worker.kill()

    def _read(self) -> None:
        while self._asked.get():
            try:
                self._made.put((next(self._batches), None))
            except BaseException as error:
                self._made.put((None, error))


def _state_of(pid: int | None) -> str:
    """What a process does, as Linux says it; empty elsewhere."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8") as file:
            return next(line for line in file if line.startswith("State:"))[len("State:") :].strip()
    except (OSError, StopIteration):
        return ""


def host_rows(batch_size: int, process_index: int | None, process_count: int | None) -> range:
    """The rows of a global batch that belong to one host, by default this one."""
    if (process_index is None) != (process_count is None):
        raise ValueError("give both process_index and process_count, or neither")
    count = jax.process_count() if process_count is None else process_count
    index = jax.process_index() if process_index is None else process_index
    checks.count("process_index", index, at_most=count - 1)
    if batch_size % count:
        raise ValueError(
            f"batch_size is that of all hosts together and must be a multiple of their number, "
            f"got batch_size={batch_size} with process_count={count}"
        )
    rows = batch_size // count
    return range(index * rows, (index + 1) * rows)


class _Rest:
    """The batches from a position on, as the data source that grain reads.

    It is endless for grain: at an end grain leaves the last batch of every worker in shared memory.
    """

    def __init__(self, batches: Batches, start: int, stop: int, *, guarded: bool):
        self._batches = batches
        self._start, self._stop = start, stop
        self._guarded = guarded

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> "Batch | _Failure":
        number = self._start + index
        if number >= self._stop:  # a worker that reads ahead
            return {}
        try:
            return self._batches[number]
        except StopIteration as error:  # would be taken for the end of the data
            failure: BaseException = RuntimeError(f"StopIteration while making batch {number}")
            failure.__cause__ = error
        except BaseException as error:
            failure = error
        if not self._guarded:
            raise failure
        return _Failure.of(failure, number)


class _WorkerTraceback(Exception):
    """The traceback of a worker process, as the cause of the exception that it raised."""

    def __str__(self) -> str:
        return self.args[0]


@dataclasses.dataclass(frozen=True)
class _Failure:
    """An exception of a worker process, in parts that can always be pickled."""

    kind: str  # the nearest built-in exception type
    args: tuple[Any, ...]
    text: str  # the traceback

    @classmethod
    def of(cls, error: BaseException, number: int) -> "_Failure":
        error.add_note(f"while a worker process ({os.getpid()}) made batch {number}")
        text = "\n" + "".join(traceback.format_exception(error))
        if not isinstance(error, Exception):  # such as SystemExit: must not end the program quietly
            message = f"{type(error).__name__} in a worker process: {error}"
            return cls("RuntimeError", (message,), text)
        kind = next(base for base in type(error).__mro__ if base.__module__ == "builtins")
        plain = all(isinstance(value, str | bytes | int | float | None) for value in error.args)
        args = error.args if kind is type(error) and plain else (str(error),)
        return cls(kind.__name__, args, text)

    def throw(self) -> NoReturn:
        try:
            error = getattr(builtins, self.kind)(*self.args)
        except TypeError:  # one of the few that ask for arguments of their own
            error = RuntimeError(*self.args)
        raise error from _WorkerTraceback(self.text)


def _prepare_worker(worker_index: int, worker_count: int) -> None:
    """Initialises a worker: CPU only, exits with its parent."""
    del worker_index, worker_count
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the program's to handle
    os.environ["JAX_PLATFORMS"] = "cpu"
    jax.config.update("jax_platforms", "cpu")  # grain has imported JAX: too late for the variable
    threading.Thread(target=_end_with_program, daemon=True).start()

    # grain takes exit status 0 for a worker that has finished and would wait for its batches.
    leave, worker = os._exit, os.getpid()
    os._exit = lambda status: leave(status or int(os.getpid() == worker))


def _end_with_program() -> None:
    if (program := multiprocessing.parent_process()) is not None:
        multiprocessing.connection.wait([program.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)
