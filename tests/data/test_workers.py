"""Worker processes: the same batches as without, and failures that are raised instead of a hang."""

import functools
import multiprocessing
import os
import posix
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from zoo.data import Pipeline, StreamPipeline, open_source

pytestmark = pytest.mark.slow


class Awkward(ValueError):
    """An exception that cannot be copied to another process."""

    def __init__(self, number, *, hook):
        super().__init__(f"example {number} is awkward")
        self.hook = hook


def describe(example):
    import jax

    assert os.environ["JAX_PLATFORMS"] == "cpu"
    assert jax.default_backend() == "cpu"
    return {"x": example["x"], "process": os.getpid()}


def awkward():
    raise Awkward(5, hook=lambda: None)


def leave():  # not a partial of os._exit, which would keep the one from before it is guarded
    os._exit(0)


def leave_quietly():  # as a library in C may
    posix._exit(0)


def stop():
    os.kill(os.getpid(), signal.SIGSTOP)


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def at_five(act, example):
    if example["x"] == 5:
        act()
    return example


def numbers(length):
    return [{"x": np.int32(i)} for i in range(length)]


def test_batches_do_not_depend_on_workers():
    options = {"batch_size": 3, "seed": 4, "num_epochs": 2}
    expected = list(Pipeline(numbers(10), **options))
    with Pipeline(numbers(10), **options, transform=describe, num_workers=2) as pipeline:
        first = [next(pipeline) for _ in range(3)]
        state = pipeline.get_state()
        batches = first + list(pipeline)
        # New processes at a position in the middle of an epoch.
        pipeline.set_state(state)
        resumed = next(pipeline)
    assert len(batches) == len(expected) == 8
    for batch, other in zip([*batches, resumed], [*expected, expected[3]], strict=True):
        assert type(batch["x"]) is np.ndarray
        np.testing.assert_array_equal(batch["x"], other["x"])
        np.testing.assert_array_equal(batch["valid"], other["valid"])
    assert len({process for batch in batches for process in batch["process"]}) == 2
    assert os.getpid() not in {process for batch in batches for process in batch["process"]}


def test_streams_and_files_travel_to_workers(tmp_path):
    path = tmp_path / "numbers.txt"
    path.write_text("".join(f"{i}\n" for i in range(9)))
    source = open_source(f"file:{path}")
    options = {"batch_size": 4, "seed": 0, "num_epochs": 1}
    with Pipeline(source, **options, num_workers=1) as pipeline:
        batches = list(pipeline)
    assert sorted(x for batch in batches for x in batch["text"][batch["valid"]]) == list(
        "012345678"
    )

    ids = np.arange(50)
    options = {"batch_size": 2, "num_steps": 5, "seed": 1, "num_epochs": 1}
    with StreamPipeline(ids, **options, num_workers=1) as pipeline:
        for batch, other in zip(pipeline, StreamPipeline(ids, **options), strict=True):
            for name in other:
                np.testing.assert_array_equal(batch[name], other[name])


@pytest.mark.parametrize(
    ("act", "kind", "message"),
    [
        (awkward, ValueError, "example 5 is awkward"),
        (sys.exit, RuntimeError, "SystemExit in a worker process"),
        (leave, RuntimeError, "terminated unexpectedly with exit code 1"),
        (kill, RuntimeError, "terminated unexpectedly with exit code -9"),
        (leave_quietly, RuntimeError, "left with exit status 0 before its batches were made"),
    ],
)
def test_a_failing_worker_is_reported(act, kind, message):
    transform = functools.partial(at_five, act)
    with Pipeline(
        numbers(8), batch_size=2, seed=0, shuffle=False, transform=transform, num_workers=1
    ) as pipeline:
        with pytest.raises(kind, match=message) as caught:
            list(pipeline)
        assert pipeline.get_state()["batch"] <= 2
    if act is awkward:
        text = str(caught.value.__cause__)
        assert "raise Awkward(5, hook=lambda: None)" in text
        assert "while reading example 5" in text
        assert "made batch 2" in text
        assert pipeline.get_state()["batch"] == 2


def test_a_worker_that_is_stopped_is_waited_for_a_bounded_time():
    transform = functools.partial(at_five, stop)
    options = {"batch_size": 2, "seed": 0, "shuffle": False, "worker_timeout": 12}
    with Pipeline(numbers(8), **options, transform=transform, num_workers=1) as pipeline:
        with pytest.raises(TimeoutError, match=r"worker_timeout=12 .* \(worker processes: \d+"):
            list(pipeline)
        assert pipeline.get_state()["batch"] <= 2
    assert not multiprocessing.active_children()
    with pytest.raises(ValueError, match="worker_timeout must be"):
        Pipeline(numbers(8), batch_size=2, seed=0, worker_timeout=0)


PROGRAM = """
    import multiprocessing, os, signal, sys
    from zoo.data import Pipeline

    if __name__ == "__main__":
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs
        pipeline = Pipeline([{"x": i} for i in range(99)], batch_size=4, seed=0, num_workers=2)
        next(pipeline)
        print(*[child.pid for child in multiprocessing.active_children()], flush=True)
        if sys.argv[1] == "interrupt":
            signal.raise_signal(signal.SIGINT)
        elif sys.argv[1] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("end", ["quietly", "interrupt", "kill"])
def test_no_process_outlives_the_program(tmp_path, end):
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(PROGRAM))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    # Reading ends with the last process that holds the pipe, so one that stayed would time out.
    done = subprocess.run(
        [sys.executable, path, end], env=environment, capture_output=True, text=True, timeout=120
    )
    assert len(done.stdout.split()) == 2
    assert done.returncode == {"quietly": 0, "interrupt": -signal.SIGINT, "kill": -9}[end]
    if end == "quietly":
        assert done.stderr == ""
    elif end == "interrupt":
        assert done.stderr.count("Traceback") == 1
