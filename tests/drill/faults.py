"""The faults: each takes a bench and a random generator, and gives the runs that met it.

A run that a fault has stopped is followed by the same command without it; what the folder then
holds is compared with that of a run that met nothing.
"""

import contextlib
import dataclasses
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from random import Random

from tests.drill.runs import Ended, Run, contents, empty, processes_of


class NotHere(Exception):
    """This experiment, or this machine, has nothing that the fault could hit."""


@dataclasses.dataclass
class Bench:
    """One experiment, and its smoke preset as it runs when nothing goes wrong.

    Attributes:
        name: of the experiment.
        root: folder of its runs.
        seconds: that an uninterrupted run takes.
        expected: what it leaves.
        stops: seconds from SIGTERM or SIGINT to the end of a run.
    """

    name: str
    root: pathlib.Path
    seconds: float = 30.0
    expected: dict[str, object] = dataclasses.field(default_factory=dict)
    stops: list[float] = dataclasses.field(default_factory=list)

    @property
    def folder(self) -> pathlib.Path:
        """The workdir, the same for every run."""
        return self.root / "run"

    @property
    def complete(self) -> pathlib.Path:
        """A copy of the folder of the uninterrupted run."""
        return self.root / "complete"

    def begin(self) -> "Bench":
        """Runs it once, uninterrupted."""
        ended = self.start().wait()
        if ended.code:
            raise RuntimeError(f"{self.name} fails without any fault:\n{ended.output}")
        self.seconds = ended.seconds
        self.folder.rename(self.complete)
        self.expected = contents(self.complete)
        return self

    def start(self, inside: Callable[[], None] = lambda: None) -> Run:
        """Its command, in a process of its own."""
        return Run(self.name, self.folder, inside=inside)

    def end(self, run: Run) -> Ended:
        """The end of a run, in bounded time."""
        return run.wait(120 + 8 * self.seconds)

    def clear(self) -> None:
        """Back to where no run has been."""
        empty(self.folder)

    def copy(self) -> None:
        """The folder of the complete run."""
        shutil.copytree(self.complete, self.folder)

    def moment(self, random: Random) -> float:
        """Seconds after a start, anywhere in an uninterrupted run."""
        return random.uniform(0.05, 0.95) * self.seconds

    def started(self, run: Run) -> None:
        """Waits until the run is in its folder."""
        while run.is_running() and not (self.folder / "config.json").exists():
            time.sleep(0.01)

    @contextlib.contextmanager
    def mounted(self, size: int) -> Iterator[Callable[[str], None]]:
        """A small file system for the folder; gives a function that changes its options."""
        self.folder.mkdir()
        if os.geteuid() or not _mount("-t", "tmpfs", "-o", f"size={size}", "none", self.folder):
            self.folder.rmdir()
            raise NotHere("mounting needs root")
        try:
            yield lambda options: _mount("-o", f"remount,{options}", self.folder) or None
        finally:
            subprocess.run(["umount", "-l", self.folder], check=True)


def _mount(*arguments: object) -> bool:
    return not subprocess.run(["mount", *map(str, arguments)], stderr=subprocess.DEVNULL).returncode


def limited_files(bench: Bench, random: Random) -> list[Ended]:
    """No file may grow beyond a limit, as at a quota."""
    sizes = sorted(path.stat().st_size for path in bench.complete.rglob("*") if path.is_file())
    limit = int(random.uniform(sizes[len(sizes) // 4], sizes[-1]))

    def set_limit() -> None:
        import jax

        # JAX's cache of compiled programs would keep files that the limit has cut.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return [bench.end(bench.start(set_limit))]


def full_disk(bench: Bench, random: Random) -> list[Ended]:
    """The file system is full, and grows afterwards."""
    total = sum(path.stat().st_blocks for path in bench.complete.rglob("*")) * 512
    with bench.mounted(int(total * random.uniform(0.05, 0.9))) as change:
        first = bench.end(bench.start())
        change("size=1g")
        return [first, *again(bench, first)]


def read_only(bench: Bench, random: Random) -> list[Ended]:
    """The folder of a run cannot be written to, and can be afterwards."""
    with bench.mounted(1 << 30) as change:
        shutil.copytree(bench.complete, bench.folder, dirs_exist_ok=True)
        (bench.folder / "summary.json").unlink()
        change("ro")
        first = bench.end(bench.start())
        change("rw")
        return [first, *again(bench, first)]


def again(bench: Bench, first: Ended) -> list[Ended]:
    """The same command while the file system is still there; its results are moved off it."""
    second = bench.end(bench.start())
    shutil.copytree(bench.folder, bench.root / "moved")
    return [second]


def vanished(bench: Bench, random: Random) -> list[Ended]:
    """The folder is gone in the middle of the run, and back afterwards."""
    run, away = bench.start(), bench.root / "away"
    bench.started(run)
    time.sleep(bench.moment(random) / 2)
    bench.folder.rename(away)
    ended = bench.end(run)
    bench.clear()  # it may have made a new one, and ended there
    away.rename(bench.folder)
    return [ended, bench.end(bench.start())]


def _checkpoints(bench: Bench, random: Random) -> list[pathlib.Path]:
    folders = sorted({path.parents[2] for path in bench.folder.rglob("manifest/data.json")})
    if not folders:
        raise NotHere("no checkpoints")
    steps = [path for path in random.choice(folders).iterdir() if path.name.isdigit()]
    return sorted(steps, key=lambda path: int(path.name))


def _damage(folder: pathlib.Path, random: Random) -> None:
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
    for path in random.sample(sorted(files), min(len(files), random.randint(1, 3))):
        data = bytearray(path.read_bytes())
        at = random.randrange(len(data))
        if random.random() < 0.5:
            del data[at:]
        else:
            data[at] ^= 1 << random.randrange(8)
        path.write_bytes(data)


def newest_damaged(bench: Bench, random: Random) -> list[Ended]:
    """Files of the newest checkpoint are cut or have a bit flipped."""
    bench.copy()
    _damage(_checkpoints(bench, random)[-1], random)
    (bench.folder / "summary.json").unlink()
    return [bench.end(bench.start())]


def all_damaged(bench: Bench, random: Random) -> list[Ended]:
    """So are files of every checkpoint of one model."""
    bench.copy()
    steps = _checkpoints(bench, random)
    for step in steps:
        _damage(step, random)
    ended = bench.end(bench.start())
    if f"every checkpoint in {steps[0].parent} is damaged" in ended.output:
        shutil.rmtree(steps[0].parent)  # what it says
    return [ended]


def config_cut(bench: Bench, random: Random) -> list[Ended]:
    """config.json ends in the middle."""
    bench.copy()
    path = bench.folder / "config.json"
    text = path.read_bytes()
    path.write_bytes(text[: random.randrange(len(text) - 2)])
    ended = bench.end(bench.start())
    path.write_bytes(text)
    return [ended]


def log_cut(bench: Bench, random: Random) -> list[Ended]:
    """metrics.jsonl ends in the middle."""
    bench.copy()
    logs = [path for path in bench.folder.rglob("metrics*.jsonl") if path.stat().st_size]
    if not logs:
        raise NotHere("no log")
    log = random.choice(sorted(logs))
    os.truncate(log, random.randrange(log.stat().st_size))
    (bench.folder / "summary.json").unlink()
    return [bench.end(bench.start())]


def worker_killed(bench: Bench, random: Random) -> list[Ended]:
    """A worker process that makes batches is killed."""

    def with_workers() -> None:
        from zoo.data import Pipeline, StreamPipeline

        for pipeline in (Pipeline, StreamPipeline):
            pipeline.__init__.__kwdefaults__["num_workers"] = 1

    run = bench.start(with_workers)
    while run.is_running():
        if (workers := processes_of(run.pid)) and max(workers) != run.pid:
            time.sleep(random.uniform(0, 3))
            with contextlib.suppress(ProcessLookupError):
                os.kill(max(workers), signal.SIGKILL)
            return [bench.end(run)]
        time.sleep(0.02)
    bench.end(run)
    raise NotHere("no workers")


def two_at_once(bench: Bench, random: Random) -> list[Ended]:
    """The same command a second time while it is running."""
    first = bench.start()
    bench.started(first)
    second = bench.end(bench.start())
    ended = bench.end(first)
    if second.code != 2 or "another run is writing here" not in second.output:
        return [second._replace(code=1), ended]
    return [second, ended]


def clock_moved(bench: Bench, random: Random) -> list[Ended]:
    """Killed; then the clock is years off, and so are the times of all files."""
    run = bench.start()
    time.sleep(bench.moment(random))
    run.send(signal.SIGKILL)
    killed = bench.end(run)
    off = random.uniform(-1e8, 1e8)
    for path in bench.folder.rglob("*"):
        moment = path.stat().st_mtime + random.uniform(-1e8, 1e8)
        os.utime(path, (moment, moment))
    now = time.time
    return [killed, bench.end(bench.start(lambda: setattr(time, "time", lambda: now() + off)))]


def output_closed(bench: Bench, random: Random) -> list[Ended]:
    """Nobody reads the output any more."""

    def close() -> None:
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 1)
        os.dup2(writer, 2)

    return [bench.end(bench.start(close))]


def suspended(bench: Bench, random: Random) -> list[Ended]:
    """SIGSTOP, and SIGCONT a while later, three times."""
    run = bench.start()
    for _ in range(3):
        time.sleep(bench.moment(random) / 3)
        run.send(signal.SIGSTOP)
        time.sleep(0.5)
        run.send(signal.SIGCONT)
    return [bench.end(run)]


def not_finite(bench: Bench, random: Random) -> list[Ended]:
    """A gradient in about every 16th step is not finite: those steps are refused and counted."""

    def poison() -> None:
        import jax
        from jax import numpy as jnp

        from experiments import running

        make = running.make_train_step

        def poisoned(loss_fn: Callable, *arguments: object, **options: object) -> Callable:
            def loss(*inputs: object, key: jax.Array, **more: object) -> object:
                output = loss_fn(*inputs, key=key, **more)
                bad = jax.random.bits(jax.random.fold_in(key, 7)) % 16 == 0
                return output._replace(total=output.total * jnp.where(bad, jnp.nan, 1))

            return make(loss, *arguments, **options)

        running.make_train_step = poisoned

    ended = bench.end(bench.start(poison))
    if ended.code:
        return [ended]
    records = [
        record
        for name, content in contents(bench.folder).items()
        if name.endswith(".jsonl") and isinstance(content, list)
        for record in content
        if "nonfinite_steps" in record
    ]
    if not records:
        raise NotHere("no steps")
    refused = sum(record["nonfinite_steps"] for record in records)
    losses = [record["loss"] for record in records if "loss" in record]
    bench.clear()
    bench.copy()  # the numbers are others: nothing to compare
    fine = refused and None not in losses
    return [ended._replace(code=0 if fine else 1, output=f"{refused} refused: {losses[-3:]}")]


FAULTS = {
    fault.__name__.replace("_", " "): fault
    for fault in (
        *(limited_files, full_disk, read_only, vanished, newest_damaged, all_damaged, config_cut),
        *(log_cut, worker_killed, two_at_once, clock_moved, output_closed, suspended, not_finite),
    )
}
