"""Several processes on one machine: the result of one, one of them killed, the run continued."""

import pathlib
import random
import signal
import socket
import time

from tests.drill.faults import Bench
from tests.drill.runs import Ended, Run, contents
from zoo.training.mesh import GONE

# Trained in one process, on all of its devices.
ALONE = ("energy_plane", "smooth_metrics", "jose")
HEARTBEAT = 20  # seconds


def start(bench: Bench, count: int) -> list[Run]:
    """The command in ``count`` processes, each with its own number."""
    if count == 1:
        return [bench.start()]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = {"coordinator-address": f"localhost:{port}", "num-processes": count}
    flags["heartbeat-timeout"] = HEARTBEAT
    given = [f"--distributed.{name}={value}" for name, value in flags.items()]
    return [
        Run(bench.name, bench.folder, (*given, f"--distributed.process-id={number}"))
        for number in range(count)
    ]


def run(bench: Bench, count: int) -> list[Ended]:
    """To the end."""
    return [bench.end(each) for each in start(bench, count)]


def kill_one(bench: Bench, count: int, chance: random.Random) -> tuple[list[Ended], float, str]:
    """One is killed while the run is in its folder; ends, seconds until all have ended, phase."""
    runs = start(bench, count)
    bench.started(runs[0])
    time.sleep(chance.uniform(0, bench.seconds * count))
    phase, victim = runs[0].phase(), chance.choice(runs)
    victim.send(signal.SIGKILL)
    begin = time.monotonic()
    ends = [bench.end(each) for each in runs]
    return ends, time.monotonic() - begin, f"process {runs.index(victim)} {phase}"


def numbers(folder: pathlib.Path) -> dict[str, float]:
    """Every loss of the logs, by file and step."""
    return {
        f"{name} {record['step']}": record["loss"]
        for name, records in contents(folder).items()
        if name.endswith(".jsonl") and isinstance(records, list)
        for record in records
        if record.get("loss") is not None
    }


def deviation(bench: Bench) -> float:
    """Largest relative difference of a logged loss from that of one process."""
    expected, found = numbers(bench.complete), numbers(bench.folder)
    if expected.keys() != found.keys():
        return float("nan")
    return max(abs(found[name] / loss - 1) for name, loss in expected.items())


def drill(bench: Bench, counts: list[int], chance: random.Random) -> bool:
    """Prints a line for each case; gives whether all went well."""
    bench.begin()
    well = True

    def say(what: str, ends: list[Ended], more: str = "", *, killed: bool = False) -> None:
        nonlocal well
        if killed:
            fine = all(end.in_time and end.code != 2 for end in ends)
            fine &= all(end.code == 0 or GONE in end.output for end in ends)
        else:
            fine = all(end.in_time and end.code == 0 for end in ends)
        well &= fine
        codes = ", ".join(str(end.code) for end in ends)
        said = {line for end in ends if end.code > 0 for line in end.errors}
        print(
            f"  {bench.name}: {what}: codes {codes}{more}", *sorted(said), sep="\n    ", flush=True
        )
        for end in () if fine else ends:
            print(end.output[-3000:])

    for count in counts:
        bench.clear()
        ends = run(bench, count)
        say(f"{count} processes", ends, f"; losses within {deviation(bench):.1e}")
        for then in (1, *counts):
            bench.clear()
            ends, seconds, phase = kill_one(bench, count, chance)
            say(f"{count} processes, killed: {phase}", ends, f" in {seconds:.1f} s", killed=True)
            ends = run(bench, then)
            say(f"  {then} go on", ends, f"; losses within {deviation(bench):.1e}")
    return well
