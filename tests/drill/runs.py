"""Runs of an experiment's smoke preset in processes of their own, and what makes two runs equal."""

import atexit
import contextlib
import importlib
import io
import json
import os
import pathlib
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from experiments import command_line

EXPERIMENTS = (
    *("energy_plane", "smooth_metrics", "weight_averaging", "on_lstm_logic"),
    *("on_lstm_language_model", "jose", "pretraining", "energy_model"),
    *("conditional_text", "image_captioning", "self_orthogonality"),
)
# What a run measures of the machine; everything else must be the same.
MEASURED = re.compile(r"seconds$|_per_second$")
LEFTOVERS = re.compile(r"\.part$|orbax-checkpoint-tmp|~$")


def import_everything() -> None:
    """Once, before any run is forked: a run then takes no time to import."""
    for name in EXPERIMENTS:
        importlib.import_module(f"experiments.{name}.train")
    for module in (*command_line.NEEDED, "matplotlib.backends.backend_agg", "tyro"):
        importlib.import_module(module)
    importlib.import_module("orbax.checkpoint.experimental.v1")


class Ended(NamedTuple):
    """A process that has ended, or was ended because it took too long."""

    code: int  # negative: by this signal
    output: str
    seconds: float
    in_time: bool
    children: int  # processes that outlived it

    @property
    def words(self) -> str:
        """The last line that says something."""
        lines = [line for line in self.output.splitlines() if line.strip()]
        return next((line for line in reversed(lines) if "ZOO_TRACEBACK" not in line), "")

    @property
    def errors(self) -> list[str]:
        """The first 150 letters of lines that name an error."""
        lines = re.findall(r"^[\w.]*Error: .*", self.output, re.MULTILINE)
        return [line[:150] for line in lines]

    @property
    def raw(self) -> bool:
        """Whether the user is shown Python's or C++'s insides."""
        return "Traceback (most recent" in self.output or "Check failure stack" in self.output


class Run:
    """``python -m experiments.NAME --preset smoke --workdir FOLDER``, forked from this process."""

    def __init__(
        self,
        name: str,
        folder: pathlib.Path,
        flags: tuple[str, ...] = (),
        *,
        inside: Callable[[], None] = lambda: None,
    ) -> None:
        self.began = time.monotonic()
        self.folder = folder
        self._output = folder.with_name(f"{folder.name}.output.{time.monotonic_ns()}")
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            self._become(name, ["--preset=smoke", f"--workdir={folder}", *flags], inside)

    def _become(self, name: str, arguments: list[str], inside: Callable[[], None]) -> None:
        code = 1
        try:
            os.setsid()
            signal.signal(signal.SIGINT, signal.default_int_handler)  # nohup ignores it
            file = os.open(self._output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(file, 1)
            os.dup2(file, 2)
            sys.stdout, sys.stderr = (
                io.TextIOWrapper(io.FileIO(number, "w", closefd=False), write_through=True)
                for number in (1, 2)
            )
            inside()
            presets = importlib.import_module(f"experiments.{name}.config").PRESETS
            run = importlib.import_module(f"experiments.{name}.train").run
            command_line.main(run, presets, None, arguments)
            code = 0
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else int(left.code is not None)
        except KeyboardInterrupt:
            code = 130
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:  # what the interpreter does at its end
            with contextlib.suppress(BaseException):
                threading._shutdown()
                atexit._run_exitfuncs()
            os._exit(code)

    def output(self) -> str:
        """What it has printed so far."""
        try:
            return self._output.read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def send(self, number: int) -> None:
        """A signal, if it is still running."""
        os.kill(self.pid, number)  # it is not reaped before ``wait``

    def wait(self, limit: float = 600.0) -> Ended:
        """Its end; after ``limit`` seconds it is killed."""
        until = time.monotonic() + limit
        while self.is_running() and time.monotonic() < until:
            time.sleep(0.02)
        in_time = not self.is_running()
        if not in_time:
            os.killpg(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        seconds = time.monotonic() - self.began
        patience = time.monotonic() + 5  # a worker notices within seconds that its parent is gone
        while (children := processes_of(self.pid)) and time.monotonic() < patience:
            time.sleep(0.1)
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        ended = Ended(
            os.waitstatus_to_exitcode(status), self.output(), seconds, in_time, len(children)
        )
        self._output.unlink(missing_ok=True)
        return ended

    def phase(self) -> str:
        """What it is doing, as far as one can see from outside."""
        if any(self.folder.glob("**/*.orbax-checkpoint-tmp")):
            return "in a save"
        steps = re.findall(r"^step (\d+)/(\d+)", self.output(), re.MULTILINE)
        if not steps:
            return "before a step is logged"
        return "in steps" if steps[-1][0] != steps[-1][1] else "after the steps"


def processes_of(session: int) -> list[int]:
    """The processes of a session, zombies left out."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, own = path.read_text().rpartition(")")[2].split()[:4]
            if int(own) == session and state != "Z":
                found.append(int(path.parent.name))
    return found


def contents(folder: pathlib.Path) -> dict[str, object]:
    """What a run leaves: of each file its content, of checkpoints the checksums of the newest."""
    found: dict[str, object] = {}
    inside = {path.parents[2] for path in folder.rglob("manifest/data.json")}
    for checkpoints in inside:
        found[str(checkpoints.relative_to(folder))] = _newest(checkpoints)
    for path in sorted(folder.rglob("*")):
        name, above = str(path.relative_to(folder)), {path, *path.parents}
        if LEFTOVERS.search(name):
            found[name] = "left"
        elif path.is_dir() or path.name == ".lock" or above & inside:
            continue
        elif path.suffix in (".json", ".jsonl"):
            text = path.read_text()
            lines = text.splitlines() if path.suffix == ".jsonl" else [text]
            found[name] = [_without_measured(json.loads(line)) for line in lines]
        else:
            found[name] = path.read_bytes()
    return found


def _newest(checkpoints: pathlib.Path) -> object:
    step = max(int(path.name) for path in checkpoints.iterdir() if path.name.isdigit())
    content = json.loads((checkpoints / str(step) / "manifest" / "data.json").read_text())
    content = content.get("content", content)
    position = content["position"]
    return step, content["leaves"], position["batches"] if isinstance(position, dict) else position


def _without_measured(tree: object) -> object:
    if isinstance(tree, dict):
        items = tree.items()
        return {k: _without_measured(v) for k, v in items if not MEASURED.search(k)}
    return [_without_measured(item) for item in tree] if isinstance(tree, list) else tree


def differences(folder: pathlib.Path, expected: dict[str, object]) -> list[str]:
    """Names of what is not as expected."""
    found = contents(folder)
    names = found.keys() | expected.keys()
    return sorted(
        f"{name} is {'left behind' if LEFTOVERS.search(name) else 'not the same'}"
        for name in names
        if name not in found or name not in expected or found[name] != expected[name]
    )


def empty(folder: pathlib.Path) -> None:
    """Removes a folder, also one that may not be written to."""
    if folder.exists():
        os.chmod(folder, 0o700)
        shutil.rmtree(folder)
