"""``wrap_generator``: every item once, exceptions that stay, positions, and a thread that ends."""

import itertools
import subprocess
import sys
import threading
import traceback

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.data import wrap_generator


def squares(stop):
    for i in range(stop):
        yield i * i


def fail_after(stop):
    yield from range(stop)
    raise OSError("the disk is gone")


def test_every_item_goes_to_one_of_several_threads():
    taken = [[] for _ in range(4)]
    barrier = threading.Barrier(4)

    def consume(own):
        barrier.wait()
        own.extend(items)

    with wrap_generator(lambda: iter(range(500))) as items:
        threads = [threading.Thread(target=consume, args=(own,)) for own in taken]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert items.get_state() == {"items": 500}
    assert sorted(item for own in taken for item in own) == list(range(500))
    assert all(own == sorted(own) for own in taken)


def test_the_generator_runs_in_one_thread_that_ends():
    names = set()

    def generator():
        try:
            while True:
                names.add(threading.current_thread())
                yield len(names)
        finally:
            names.add(threading.current_thread())

    with wrap_generator(generator) as items:
        assert [next(items) for _ in range(9)] == [1] * 9
    (thread,) = names
    assert thread is not threading.current_thread()
    assert not thread.is_alive()
    items.close()
    assert list(items) == []


def test_exceptions_stay_with_their_traceback():
    with wrap_generator(lambda: fail_after(2)) as items:
        assert [next(items), next(items)] == [0, 1]
        depths = []
        for _ in range(30):
            with pytest.raises(OSError, match="the disk is gone") as caught:
                next(items)
            frames = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
            assert frames[-1] == "fail_after"
            depths.append(len(frames))
        # Raised again it does not grow; the thread that makes items may add its own few frames.
        assert max(depths) < 3 * min(depths)
        assert items.get_state() == {"items": 2}
        items.set_state({"items": 1})
        assert next(items) == 1
    with wrap_generator(lambda: 1 / 0) as items, pytest.raises(ZeroDivisionError):
        next(items)


@given(taken=st.integers(0, 9), position=st.integers(0, 12), prefetch=st.integers(1, 4))
@settings(max_examples=20)
def test_positions(taken, position, prefetch):
    with wrap_generator(lambda: squares(12), prefetch=prefetch) as items:
        for _ in range(taken):
            next(items)
        assert items.get_state() == {"items": taken}
        items.set_state({"items": position})
        assert list(items) == list(squares(12))[position:]
        assert next(items, None) is None
        assert items.get_state() == {"items": 12}


def test_bad_input():
    with pytest.raises(TypeError, match="function that makes an iterator, got generator"):
        wrap_generator(squares(3))
    with pytest.raises(ValueError, match="prefetch must be at least 1, got 0"):
        wrap_generator(itertools.count, prefetch=0)
    with (
        wrap_generator(lambda: squares(3)) as items,
        pytest.raises(ValueError, match="at item 5, but the generator ended after 3"),
    ):
        items.set_state({"items": 5})


@pytest.mark.parametrize("state", [{"items": 5}, {"items": -1}, {"items": "1"}, {}, None, [1]])
def test_a_refused_state_changes_nothing(state):
    with wrap_generator(lambda: squares(3)) as items:
        assert next(items) == 0
        with pytest.raises(ValueError, match=r"state (is at item 5|must be what get_state)"):
            items.set_state(state)
        assert items.get_state() == {"items": 1}
        assert list(items) == [1, 4]


def test_a_generator_that_waits_is_left_behind():
    gate, ended = threading.Event(), threading.Event()

    def waiting():
        try:
            yield 1
            gate.wait()
            yield 2
        finally:
            ended.set()

    with pytest.warns(RuntimeWarning, match=r"making an item for close_timeout=0\.05 seconds"):
        with wrap_generator(waiting, close_timeout=0.05) as items:
            assert next(items) == 1
    assert list(items) == []
    items.close()
    gate.set()
    assert ended.wait(60)  # closed when it had made its item
    with pytest.raises(ValueError, match="close_timeout must be"):
        wrap_generator(waiting, close_timeout=0)


def test_one_that_nobody_closes_is_closed():
    ended = threading.Event()

    def generator():
        try:
            yield from itertools.count()
        finally:
            ended.set()

    items = wrap_generator(generator)
    assert next(items) == 0
    del items
    assert ended.wait(60)


@pytest.mark.slow
def test_an_open_generator_does_not_keep_the_interpreter():
    program = (
        "import itertools, threading\n"
        "from zoo.data import wrap_generator\n"
        "def waiting():\n"
        "    yield 2\n"
        "    threading.Event().wait()\n"
        "items, others = wrap_generator(itertools.count), wrap_generator(waiting)\n"
        "print(next(items), next(items), next(others))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    assert (done.stdout, done.stderr) == ("0 1 2\n", "")
