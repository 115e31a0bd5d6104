import functools
import json
import os
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.training import program
from zoo.training import Checkpointer, Loop, MetricsLog, fit, make_mesh, make_train_step
from zoo.training.mesh import GONE
from zoo.training.progress import Progress

MESH = make_mesh(devices=jax.devices()[:2])


class Tracing:
    """The program's step, shared by all tests here, with a count of its traces."""

    def __init__(self):
        self.traces = 0
        places = program.new_state(MESH).shardings
        self.step = make_train_step(self.loss_fn, program.OPTIMIZER, shardings=places)

    def loss_fn(self, *arguments, **keywords):
        self.traces += 1
        return program.loss_fn(*arguments, **keywords)

    def fit(self, batches=None, *, step=None, num_steps=12, **options):
        """A run from a new state, without a folder of its own."""
        batches = program.Batches() if batches is None else batches
        state = program.new_state(MESH)
        return fit(step or self.step, state, batches, num_steps=num_steps, mesh=MESH, **options)


@pytest.fixture(scope="module")
def tracing():
    return Tracing()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, tracing):
    folder = tmp_path_factory.mktemp("uninterrupted")
    state = program.run(folder, mesh=MESH, step=tracing.step)
    return jax.device_get(state.parameters), read_log(folder)


def read_log(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return {record["step"]: record["loss"] for record in records if "loss" in record}


def assert_same(parameters, expected):
    jax.tree.map(np.testing.assert_array_equal, parameters, expected)


def run_elsewhere(folder, *arguments, environment=()):
    """Runs the program in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.training.program", str(folder), *arguments],
        env=os.environ | dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])
def test_stopped_by_a_signal_the_same_command_ends_bit_for_bit(
    name, tmp_path, tracing, uninterrupted
):
    process = run_elsewhere(tmp_path, "--signal", name, "--at", "7")
    output, _ = process.communicate()
    expected = {"SIGTERM": 143, "SIGKILL": -signal.SIGKILL}
    assert process.returncode == expected[name], output
    with Checkpointer(tmp_path / "checkpoints") as checkpointer:
        if name == "SIGTERM":
            assert "stopped at step 8 by SIGTERM; saved in" in output
            assert checkpointer.steps()[-1] == 8
        else:
            assert set(checkpointer.steps()) <= {3, 6}
    state = program.run(tmp_path, mesh=MESH, step=tracing.step)
    parameters, losses = uninterrupted
    assert_same(jax.device_get(state.parameters), parameters)
    assert read_log(tmp_path).keys() == losses.keys()


def run_together(folder, count, *arguments):
    """Runs the program in several processes; gives their codes and outputs."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": str(count)}
    processes = [
        run_elsewhere(folder, *arguments, environment=environment | {"JAX_PROCESS_ID": str(number)})
        for number in range(count)
    ]
    # JAX alone would let one wait for the other for 300 seconds.
    outputs = [process.communicate(timeout=250)[0] for process in processes]
    return [process.returncode for process in processes], outputs


def assert_close(parameters, expected):
    """Several processes add in another order."""
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        jax.device_get(parameters),
        expected,
    )


@pytest.mark.slow
def test_two_processes_equal_one_and_agree_on_stopping(tmp_path, tracing, uninterrupted):
    """Two processes of two devices; one is told to stop, both save, one process finishes."""
    stop = ("--signal", "SIGTERM", "--at", "4", "--process", "1")
    codes, outputs = run_together(tmp_path, 2, *stop)
    assert codes == [143, 143], outputs
    assert GONE not in "".join(outputs)
    parameters, losses = uninterrupted
    found = read_log(tmp_path)
    assert list(found) == [2, 4, 6]
    state = program.run(tmp_path, mesh=MESH, step=tracing.step)
    found = read_log(tmp_path)
    assert found.keys() == losses.keys()
    for step, loss in losses.items():
        np.testing.assert_allclose(found[step], loss, rtol=1e-5)
    assert_close(state.parameters, parameters)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_one_process_is_killed_the_other_says_so_and_one_goes_on(
    killed, tmp_path, tracing, uninterrupted
):
    kill = ("--signal", "SIGKILL", "--at", "7", "--process", str(killed))
    codes, outputs = run_together(tmp_path, 2, *kill)
    assert codes[killed] == -signal.SIGKILL
    assert codes[1 - killed] not in (0, None)
    assert all(output.endswith(f"{GONE}\n") for output in outputs), outputs
    state = program.run(tmp_path, mesh=MESH, step=tracing.step)
    assert_close(state.parameters, uninterrupted[0])


def test_continued_in_this_process_it_is_the_same_and_traces_once(tmp_path, tracing, uninterrupted):
    for num_steps in (1, 5, 6, program.NUM_STEPS):
        state = program.run(tmp_path, mesh=MESH, num_steps=num_steps, step=tracing.step)
        assert state.step == num_steps
    assert_same(jax.device_get(state.parameters), uninterrupted[0])
    assert tracing.traces == 1


def test_ctrl_c_saves_a_second_one_does_not_and_handlers_come_back(tmp_path, tracing, capfd):
    def press(times):
        def before(position):
            if position == 4:
                for _ in range(times):
                    signal.raise_signal(signal.SIGINT)

        return before

    previous = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        program.run(tmp_path / "once", mesh=MESH, step=tracing.step, before=press(1))
    assert stopped.value.code == 130
    assert "stopped at step 5 by SIGINT" in capfd.readouterr().out
    with pytest.raises(KeyboardInterrupt):  # as any exception of the source
        program.run(tmp_path / "twice", mesh=MESH, step=tracing.step, before=press(2))
    for folder, last in (("once", 5), ("twice", 3)):
        with Checkpointer(tmp_path / folder / "checkpoints") as checkpointer:
            assert checkpointer.steps()[-1] == last
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == previous


def raise_at(place, number=signal.SIGTERM):
    """A source that gets a signal when it draws this batch."""
    return lambda position: position == place and signal.raise_signal(number)


@pytest.mark.parametrize("place", [0, 7, 10])
def test_the_log_of_a_stopped_run_is_that_of_one_that_was_not(
    place, tmp_path, tracing, uninterrupted, capsys
):
    """Records of two steps, stopped at steps of both kinds: no extra one, no mean over fewer."""
    run = functools.partial(program.run, tmp_path, mesh=MESH, step=tracing.step)
    with pytest.raises(SystemExit, match="143"):
        run(before=raise_at(place))
    assert f"stopped at step {place + 1} by SIGTERM" in capsys.readouterr().out
    state = run()
    assert f"continues from step {place + 1} of 12, saved in" in capsys.readouterr().out
    assert_same(jax.device_get(state.parameters), uninterrupted[0])
    assert read_log(tmp_path) == uninterrupted[1]


def test_a_continued_run_says_what_its_log_has_lost(tmp_path, tracing):
    run = functools.partial(program.run, tmp_path, mesh=MESH, step=tracing.step)
    run(num_steps=5)  # records at 2, 4 and 5
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:1]) + lines[1][:9])
    for num_steps in (7, 9):  # at 6 and 7, then at 8 and 9
        with pytest.warns(UserWarning, match=rf"lacks 2 of the {num_steps - 4} records up to step"):
            run(num_steps=num_steps)
    assert list(read_log(tmp_path)) == [2, 6, 7, 8, 9]


@pytest.mark.parametrize("when", ["evaluation", "save", "wait"])
def test_a_signal_at_the_very_end_is_not_lost(when, tmp_path, tracing, monkeypatch):
    """The run is complete and saved; what the program would do next is what is stopped."""

    def evaluate(state):
        if when == "evaluation":
            signal.raise_signal(signal.SIGTERM)
        return state, {"seen": 1.0}

    def signalled(name):
        method = getattr(Checkpointer, name)

        def wrapper(self, *arguments, **options):
            signal.raise_signal(signal.SIGTERM)
            return method(self, *arguments, **options)

        monkeypatch.setattr(Checkpointer, name, wrapper)

    with Checkpointer(tmp_path) as checkpointer, MetricsLog(tmp_path / "metrics.jsonl") as log:
        run = functools.partial(
            tracing.fit, checkpointer=checkpointer, log=log, evaluate=evaluate, num_steps=3
        )
        with monkeypatch.context() as monkeypatch:
            if when != "evaluation":
                signalled(when)
            with pytest.raises(SystemExit, match="143"):
                run()
        assert checkpointer.steps() == [3]
    assert '"seen": 1.0' in (tmp_path / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("part", "said"),
    [((1, 1), "step 11/21  loss 1  1 rows/s  ETA 0:00:20"), ((2, 4), "part 2/4  step 11/21 ")],
)
def test_the_time_left_is_by_the_whole_run(monkeypatch, capsys, part, said):
    """Nine steps of 1 s and one of 11 s: 2 s a step for the ten left and for two parts."""
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    with Progress(21, 0, "rows", part=part) as display:
        for done in range(1, 12):
            display.advance(done)
            now += {10: 11.0, 11: 0.0}.get(done, 1.0)
        display.report(11, {"loss": 1.0, "nonfinite_steps": 0}, rate=1.0)
    out = capsys.readouterr().out
    assert out.startswith(said)
    assert out.endswith("ETA 0:00:20\n" if part == (1, 1) else "ETA 0:01:44\n")


def test_the_time_left_forgets_a_slow_beginning(monkeypatch, capsys):
    """100 s for the second step, as of a first evaluation, which compiles; then 1 s a step."""
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    with Progress(100, 0, "rows") as display:
        for done in range(1, 41):
            display.advance(done)
            now += 100.0 if done == 2 else 1.0
            display.report(done, {"loss": 1.0, "nonfinite_steps": 0}, rate=1.0)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("ETA ?")
    assert lines[1].endswith("ETA 2:43:20")  # 98 steps of 100 s
    assert lines[-1].endswith("ETA 0:01:00")


class Poisoned(program.Batches):
    """Batches of which some hold a NaN."""

    def __init__(self, bad):
        super().__init__()
        self.bad = bad

    def __next__(self):
        batch = super().__next__()
        if self.position - 1 in self.bad:
            batch["x"][0, 0] = np.nan
        return batch


def test_refused_steps_are_logged_and_too_many_end_the_run(tmp_path, tracing, capsys):
    path = tmp_path / "metrics.jsonl"
    loop = Loop(log_every=4, max_nonfinite_steps=3)
    with MetricsLog(path) as log:
        state = tracing.fit(Poisoned({1, 2}), loop=loop, log=log)
        assert np.isfinite(state.parameters["layer"]["kernel"]).all()
        records = [json.loads(line) for line in path.read_text().splitlines()]
        assert [record["nonfinite_steps"] for record in records] == [2, 0, 0]
        assert all(record["loss"] > 0 for record in records)
        assert "(2 steps refused: not finite)" in capsys.readouterr().out
        with pytest.raises(FloatingPointError, match=r"step 9: .*3 steps in a row.*loss was \d"):
            tracing.fit(Poisoned({4, 6, 7, 8, 9}), loop=loop, log=log)


def test_records_are_means_and_evaluation_has_its_cadence(tmp_path, tracing):
    path = tmp_path / "metrics.jsonl"
    single = []
    step = tracing.step

    def recording(state, batch):
        state, metrics = step(state, batch)
        single.append(float(metrics["loss"]))
        return state, metrics

    def evaluate(state):
        # The state that is given back is the one that goes on.
        return state._replace(step=state.step + (state.step == 3)), {"double": 2 * int(state.step)}

    with MetricsLog(path) as log:
        log.write(3, {"loss": 0})  # of an earlier try that left no checkpoint
        loop = Loop(log_every=2, evaluate_every=3, progress=False)
        tracing.fit(step=recording, num_steps=5, log=log, loop=loop, evaluate=evaluate)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    losses = [(record["step"], record["loss"]) for record in records if "loss" in record]
    assert losses == [
        (2, pytest.approx(np.mean(single[:2]))),
        (4, pytest.approx(np.mean(single[2:4]))),
        (5, pytest.approx(single[4])),
    ]
    doubles = [(record["step"], record["double"]) for record in records if "double" in record]
    assert doubles == [(3, 6.0), (5, 12.0)]
    assert records[0]["row_weight"] == 3.5
    assert records[0]["weight"] == 4 * 28
    assert records[2]["examples_per_second"] > 0


def test_end_of_the_batches_ends_the_run_and_is_saved(tmp_path, tracing, capsys):
    def before(position):
        if position == 3:
            raise StopIteration

    with Checkpointer(tmp_path) as checkpointer:
        batches = program.Batches(before=before)
        state = tracing.fit(batches, num_steps=10, checkpointer=checkpointer)
        assert state.step == 3
        assert checkpointer.steps() == [3]
        assert "step 3/10  loss" in capsys.readouterr().out


def test_bad_arguments_are_explained(tmp_path, tracing):
    with pytest.raises(ValueError, match="log_every must be at least 1, got 0"):
        tracing.fit(loop=Loop(log_every=0))
    with pytest.raises(TypeError, match=r"must be an iterator, got list: use iter"):
        tracing.fit([program.make_batch(0)])
    with (
        Checkpointer(tmp_path) as checkpointer,
        pytest.raises(TypeError, match=r"get_state and set_state, got list_iterator"),
    ):
        tracing.fit(iter([]), checkpointer=checkpointer)


def test_bar_on_a_terminal_shows_loss_and_rate(tracing, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    tracing.fit(num_steps=4, loop=Loop(log_every=2, rate_unit="words"))
    text = capsys.readouterr().out
    assert "4/4" in text
    assert "words/s" in text
