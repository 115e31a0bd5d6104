"""A plain Python generator, made safe for several consumers and for stopping.

A generator cannot be advanced by two threads at once, loses its position with its process, and a
thread that runs it ahead can keep the interpreter from ending. Here one background thread owns the
generator; every item goes to exactly one consumer; the position is the number of items handed out,
and restoring it replays the generator that far. A generator that waits for ever keeps neither
``close`` nor the end of the program waiting. Data that can be read by index are restored at
once instead: see :class:`zoo.data.Pipeline`. After kexue.fm/archives/6575, on generators and
multiprocessing.
"""

import atexit
import collections
import concurrent.futures
import itertools
import queue
import threading
import time
import types
import warnings
import weakref
from collections.abc import Callable, Generator, Iterator
from typing import Any, Self

from zoo import _checks as checks

_EXIT_WAIT = 2.0  # seconds that the end of the program waits for generators that make an item


def wrap_generator(
    factory: Callable[[], Iterator[Any]], *, prefetch: int = 2, close_timeout: float = 10.0
) -> "SafeGenerator":
    """Runs a generator in a background thread, safely for consumers in any number of threads.

    An exception of the generator reaches the consumer whose turn it is, with its traceback, and
    every later one. After ``close`` there are no more items, as with a generator.

    Args:
        factory: makes the generator; called again when a position is restored, so it must give the
            same items each time.
        prefetch: items to have ready, at least 1.
        close_timeout: seconds that ``close`` waits for the item that is being made. A generator
            cannot be interrupted: after them a RuntimeWarning is given, and the generator is closed
            when it has made its item, or ends with the program.

    Returns:
        An iterator with ``get_state``, ``set_state`` and ``close``, and a context manager.

    Raises:
        ValueError: prefetch is less than 1, or close_timeout not above 0.
        TypeError: factory is not callable, for instance a generator that was already started.

    >>> with wrap_generator(lambda: iter("abc")) as items:
    ...     print(next(items), items.get_state(), list(items))
    a {'items': 1} ['b', 'c']
    """
    if not callable(factory):
        raise TypeError(
            f"factory must be a function that makes an iterator, got {type(factory).__name__}; "
            "pass the generator function itself, without calling it"
        )
    return SafeGenerator(
        factory,
        checks.count("prefetch", prefetch, at_least=1),
        checks.number("close_timeout", close_timeout, above=0),
    )


class SafeGenerator:
    """What :func:`wrap_generator` returns."""

    def __init__(self, factory: Callable[[], Iterator[Any]], prefetch: int, close_timeout: float):
        self._factory = factory
        self._prefetch = prefetch
        self._close_timeout = close_timeout
        self._lock = threading.Lock()
        self._ahead: collections.deque[concurrent.futures.Future[Any]] = collections.deque()
        self._thread: _Thread | None = None
        self._start(0)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        with self._lock:
            if self._thread is None:  # closed
                raise StopIteration
            results, first = self._results, self._ahead.popleft()
            self._ahead.append(self._thread.submit(next, results))
        item, failure, traceback = first.result()
        if failure is not None:
            raise failure.with_traceback(traceback)
        with self._lock:
            if results is self._results:  # not moved by set_state meanwhile
                self._count += 1
        return item

    def get_state(self) -> dict[str, int]:
        """The position: how many items were handed out."""
        return {"items": self._count}

    def set_state(self, state: dict[str, int]) -> None:
        """Runs a new generator to a position, O(n).

        Raises:
            ValueError: the state is none, or the generator ends before it. The position stays.
        """
        position = state.get("items") if isinstance(state, dict) else None
        if type(position) is not int or position < 0:
            raise ValueError(f"state must be what get_state returned, got {state!r:.200}")
        with self._lock:
            self._start(position)

    def close(self) -> None:
        """Closes the generator in its own thread and ends the thread; safe to call twice.

        Waits ``close_timeout`` seconds for the item that is being made.
        """
        with self._lock:
            self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def _start(self, position: int) -> None:
        """Puts a new generator in the place of the one there is, unless it fails on its way."""
        thread, results = _Thread(), _results(self._factory)
        try:
            if position:
                thread.submit(_skip, results, position).result()
        except BaseException:
            thread.submit(results.close)
            thread.end()
            raise
        self._stop()
        self._thread, self._results, self._count = thread, results, position
        self._end = weakref.finalize(self, _finish, thread, results)  # for one that nobody closes
        for _ in range(self._prefetch):
            self._ahead.append(thread.submit(next, results))

    def _stop(self) -> None:
        if self._thread is None:
            return
        for item in self._ahead:
            item.cancel()
        self._ahead.clear()
        self._end.detach()
        thread, self._thread = self._thread, None
        closed = thread.submit(self._results.close)
        thread.end()
        try:
            closed.result(self._close_timeout)
        except concurrent.futures.TimeoutError:
            if closed.done():  # the generator's own
                raise
            warnings.warn(
                f"the generator has been making an item for close_timeout={self._close_timeout:g} "
                "seconds; it is left to its thread, which ends when the item is made or with the "
                "program",
                RuntimeWarning,
                stacklevel=3,
            )
            return
        thread.join(self._close_timeout)


class _Thread:
    """Runs in order what it is given; other than an executor's, it ends with the program."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True, name="zoo-generator")
        self._thread.start()
        _alive.add(self)

    def submit(self, function: Callable[..., Any], *args: Any) -> "concurrent.futures.Future[Any]":
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self._work.put((future, function, args))
        return future

    def end(self) -> None:
        """Ends the thread after what it was given."""
        self._work.put(None)

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            future, function, args = work
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function(*args))
                except BaseException as error:
                    future.set_exception(error)
            del work, future, function, args  # nothing is kept while the thread waits


_alive: weakref.WeakSet[_Thread] = weakref.WeakSet()


def _finish(thread: _Thread, results: Any) -> None:
    thread.submit(results.close)
    thread.end()


@atexit.register
def _end_threads() -> None:
    """A thread in the middle of compiled code had better not be cut off."""
    stop = time.monotonic() + _EXIT_WAIT
    for thread in list(_alive):
        thread.end()
    for thread in list(_alive):
        thread.join(max(0.0, stop - time.monotonic()))


Result = tuple[Any, BaseException | None, types.TracebackType | None]


def _results(factory: Callable[[], Iterator[Any]]) -> Generator[Result, None, None]:
    """Every item; then, without end, the exception that a later consumer would else not see."""
    iterator = None
    try:
        iterator = iter(factory())
        for item in iterator:
            yield item, None, None
        failure: BaseException = StopIteration()
    except GeneratorExit:
        raise
    except BaseException as error:
        failure = error
    finally:
        if (close := getattr(iterator, "close", None)) is not None:
            close()
    yield from itertools.repeat((None, failure, failure.__traceback__))


def _skip(results: Iterator[Result], position: int) -> None:
    for number, (_, failure, _) in enumerate(itertools.islice(results, position)):
        if isinstance(failure, StopIteration):
            raise ValueError(
                f"state is at item {position}, but the generator ended after {number}; "
                "the factory must give the same items each time"
            )
        if failure is not None:
            raise failure
