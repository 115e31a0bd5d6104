"""A fault drill: runs are stopped and damaged in every way, and must end as if nothing had been.

    python -m tests.drill [--kills N] [--faults N] [--experiment NAME ...] [--seed S]
    python -m tests.drill --processes 2 4 [--experiment NAME ...]

Every experiment's smoke preset runs once undisturbed. Then it is killed at random moments, and
meets the faults of ``faults.py``; the same command runs again, and what it leaves is compared: the
checksums of all arrays of the newest checkpoint, the log, the summary, the pictures and any other
file, byte for byte, but for measured times.

Verdicts: ``same``, at once or after the same command again; ``refused``, with a line that names a
file or a flag, and ``same`` once that is done; ``said``: what a log has lost was said. Bad are
``raw`` (the user saw a traceback), ``lost`` (another result, or none), ``hung`` and ``left``
(processes or files that are no results).

With ``--processes`` the same in so many: they must reach the losses of one; one is killed at a
random moment, the others must end and say so; then one, or so many, go on to the same losses.
"""

import argparse
import collections
import os
import pathlib
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import warnings

from tests.drill import processes
from tests.drill.faults import FAULTS, Bench, NotHere
from tests.drill.runs import EXPERIMENTS, Ended, differences, import_everything

GOOD, BAD = ("same", "refused", "said"), ("raw", "lost", "hung", "left")
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
KILLS_IN_A_ROW = 4  # then the run may finish, and is compared


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=24, help="over all experiments")
    parser.add_argument("--faults", type=int, default=len(FAULTS), help="for each experiment")
    parser.add_argument("--experiment", nargs="+", default=EXPERIMENTS, choices=EXPERIMENTS)
    parser.add_argument("--only", nargs="+", default=list(FAULTS), choices=FAULTS)
    parser.add_argument("--processes", nargs="+", type=int, default=[])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    import_everything()
    table, well = collections.Counter(), True  # (row, verdict) -> cases
    root = tempfile.mkdtemp(prefix="drill")  # no TemporaryDirectory: every fork would remove it
    try:
        for number, name in enumerate(options.experiment):
            bench = Bench(name, pathlib.Path(root, name))
            (bench.root / "tmp").mkdir(parents=True)
            os.environ["TMPDIR"] = tempfile.tempdir = str(bench.root / "tmp")
            if options.processes:
                if name not in processes.ALONE:
                    chance = random.Random(f"{options.seed} {name}")
                    well &= processes.drill(bench, options.processes, chance)
                continue
            kills = options.kills // len(options.experiment)
            kills += number < options.kills % len(options.experiment)
            drill(bench, kills, options, table)
            shutil.rmtree(bench.root)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    if not options.processes:
        show(table)
    return int(not well or any(table[case] for case in table if case[1] in BAD))


def drill(
    bench: Bench, kills: int, options: argparse.Namespace, table: collections.Counter
) -> None:
    """All that is done to one experiment."""
    chance = random.Random(f"{options.seed} {bench.name}")
    bench.begin()
    print(f"{bench.name}: {bench.seconds:.1f} s undisturbed", flush=True)
    while kills > 0:
        bench.clear()
        ends, phases = kill(bench, min(kills, KILLS_IN_A_ROW), chance)
        kills -= len(phases) or 1
        verdict, words = judge(bench, ends)
        for phase in phases:
            table[phase, verdict] += 1
        note(bench, ", ".join(phases), verdict, words)
    if bench.stops:
        print(f"  {bench.name}: ended at most {max(bench.stops):.1f} s after a signal", flush=True)
    names = chance.sample(options.only, min(options.faults, len(options.only)))
    for name in names:
        bench.clear()
        shutil.rmtree(bench.root / "moved", ignore_errors=True)
        begin = time.monotonic()
        try:
            verdict, words = judge(bench, FAULTS[name](bench, chance))
        except NotHere as reason:
            verdict, words = "not here", str(reason)
        table[name, verdict] += 1
        note(bench, f"{name} ({time.monotonic() - begin:.0f} s)", verdict, words)


def kill(bench: Bench, count: int, chance: random.Random) -> tuple[list[Ended], list[str]]:
    """One run, killed up to ``count`` times; gives its ends and what it was doing."""
    ends, phases = [], []
    for _ in range(count):
        run, number = bench.start(), chance.choice(SIGNALS)
        until = time.monotonic() + bench.moment(chance)
        in_a_save = chance.random() < 0.5  # whichever comes first
        while run.is_running() and time.monotonic() < until:
            if in_a_save and run.phase() == "in a save":
                time.sleep(chance.uniform(0, 0.05))
                break
            time.sleep(0.002 if in_a_save else 0.02)
        if not run.is_running():
            ends.append(bench.end(run))
            if not phases:  # from nothing, and faster than the first one
                bench.seconds = ends[-1].seconds
            break
        phase = run.phase()
        run.send(number)
        begin = time.monotonic()
        ends.append(bench.end(run))
        if number != signal.SIGKILL:
            bench.stops.append(time.monotonic() - begin)
        phases.append(f"{signal.Signals(number).name} {phase}")
    return ends, phases


def judge(bench: Bench, ends: list[Ended]) -> tuple[str, str]:
    """The verdict on the runs that met a fault, after the same command again if it must."""
    moved, refused, said = bench.root / "moved", False, False
    if ends[-1].code and not moved.exists():
        ends = [*ends, bench.end(bench.start())]
    folder = moved if moved.exists() else bench.folder
    for ended in ends:
        stopped = -ended.code in SIGNALS or ended.code in (0, 130, 143)
        if not ended.in_time:
            return "hung", ended.output[-2000:]
        if ended.children:
            return "left", f"{ended.children} processes"
        if ended.code and not stopped:
            if ended.raw or ended.code != 2 or not names_something(ended.output):
                return "raw", f"code {ended.code}: {ended.output[-3000:]}"
            refused = True
        said |= " lacks " in ended.output or "left out" in ended.output
    if ends[-1].code:
        return "lost", f"code {ends[-1].code} without a fault: {ends[-1].output[-2000:]}"
    if left := [path for path in pathlib.Path(tempfile.gettempdir()).iterdir()]:
        for path in left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return "left", f"in the folder of temporary files: {', '.join(map(str, left))}"
    if other := differences(folder, bench.expected):
        if any("left behind" in name for name in other):
            return "left", ", ".join(other)
        return "said" if said else "lost", ", ".join(other)
    words = [ended.words for ended in ends if ended.code not in (0, -signal.SIGKILL)]
    return "refused" if refused else "same", " | ".join(dict.fromkeys(words))


def names_something(output: str) -> bool:
    """Whether there is a line with an error that names a file, a folder or a flag."""
    return bool(re.search(r"^\w*(Error|Warning): .*(/|--\w|\w\.\w)", output, re.MULTILINE))


def note(bench: Bench, what: str, verdict: str, words: str) -> None:
    """A line for each case, and all that is known about a bad one."""
    text = words if verdict in BAD else words[:150]
    print(f"  {bench.name}: {what}: {verdict}{': ' if text else ''}{text}", flush=True)


def show(table: collections.Counter) -> None:
    """Rows of faults, columns of verdicts, as Markdown."""
    columns = [name for name in (*GOOD, *BAD, "not here") if any(v == name for _, v in table)]
    print(f"\n| fault | cases | {' | '.join(columns)} |\n|{' --- |' * (len(columns) + 2)}")
    rows = sorted({row for row, _ in table}, key=lambda row: (not row.startswith("SIG"), row))
    for row in [*rows, "all"]:
        counts = collections.Counter()
        for (name, verdict), number in table.items():
            counts[verdict] += number * (row in (name, "all"))
        cases = counts.total() - counts["not here"]
        print(f"| {row} | {cases} | {' | '.join(str(counts[name]) for name in columns)} |")


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*fork.*")
    sys.exit(main())
