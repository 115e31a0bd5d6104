"""A plain Python generator, made safe for several consumers and for stopping.

A generator cannot be advanced by two threads at once, loses its position with its process, and a
thread that runs it ahead can keep the interpreter from ending. Here one background thread owns the
generator; every item goes to exactly one consumer; the position is the number of items handed out,
and restoring it replays the generator that far. Data that can be read by index are restored at
once instead: see :class:`zoo.data.Pipeline`. After kexue.fm/archives/6575, on generators and
multiprocessing.
"""

import collections
import concurrent.futures
import itertools
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any, Self

from zoo import _checks as checks


def wrap_generator(factory: Callable[[], Iterator[Any]], *, prefetch: int = 2) -> "SafeGenerator":
    """Runs a generator in a background thread, safely for consumers in any number of threads.

    An exception of the generator reaches the consumer whose turn it is, with its traceback, and
    every later one. After ``close`` there are no more items, as with a generator.

    Args:
        factory: makes the generator; called again when a position is restored, so it must give the
            same items each time.
        prefetch: items to have ready, at least 1.

    Returns:
        An iterator with ``get_state``, ``set_state`` and ``close``, and a context manager.

    Raises:
        ValueError: prefetch is less than 1.
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
    return SafeGenerator(factory, checks.count("prefetch", prefetch, at_least=1))


class SafeGenerator:
    """What :func:`wrap_generator` returns."""

    def __init__(self, factory: Callable[[], Iterator[Any]], prefetch: int):
        self._factory = factory
        self._prefetch = prefetch
        self._lock = threading.Lock()
        self._ahead: collections.deque[concurrent.futures.Future[Any]] = collections.deque()
        self._start(0)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        with self._lock:
            if not self._ahead:  # closed
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
        """Runs a new generator to a position, O(n); a ValueError if it ends before that."""
        with self._lock:
            self._stop()
            self._start(state["items"])

    def close(self) -> None:
        """Closes the generator in its own thread and ends the thread; safe to call twice.

        Waits for the item that is being made: a generator cannot be interrupted.
        """
        with self._lock:
            self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def _start(self, position: int) -> None:
        self._count = position
        self._results: Any = _results(self._factory)
        # The idle thread of an executor ends with the interpreter; one at a full queue does not.
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="zoo-generator")
        if position:
            self._thread.submit(_skip, self._results, position).result()
        for _ in range(self._prefetch):
            self._ahead.append(self._thread.submit(next, self._results))

    def _stop(self) -> None:
        if self._results is None:
            return
        for item in self._ahead:
            item.cancel()
        self._ahead.clear()
        self._thread.submit(self._results.close).result()
        self._thread.shutdown()
        self._results = None


Result = tuple[Any, BaseException | None, types.TracebackType | None]


def _results(factory: Callable[[], Iterator[Any]]) -> Iterator[Result]:
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
