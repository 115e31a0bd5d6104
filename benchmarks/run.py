"""Runs the microbenchmarks: ``python -m benchmarks.run [pattern]``.

Prints a table, one block per case and size, and writes each finished block as JSON lines. What is
measured and how is in `benchmarks.measure`; `benchmarks.report` turns the lines into a table and a
plot. An interrupted run keeps its finished blocks.
"""

import argparse
import json
import pathlib
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import jax

from . import measure, report, scaling
from .case import Case, Program, discover, select
from .report import BUSY, HEAD

WIDTHS = (28, 36, 6, 18, 8, 8, 14)  # of the columns of benchmarks.report.cells


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}.run", description=__doc__)
    parser.add_argument("pattern", nargs="?", default="", help="part of case/size, * allowed")
    parser.add_argument("--sizes", choices=("small", "full"), default="small")
    parser.add_argument("--repeats", type=int, default=20, metavar="N", help="rounds of timing")
    parser.add_argument("--output", type=pathlib.Path, metavar="FILE.jsonl", help="appended to")
    parser.add_argument("--list", action="store_true", help="list what matches and stop")
    parser.add_argument(
        "--scaling", action="store_true", help="curves: time over size, with the fitted exponent"
    )
    options = parser.parse_args(words)
    if options.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {options.repeats}")
    if options.scaling:
        if options.list:
            print(*(curve.name for curve in scaling.select(options.pattern)), sep="\n")
            return 0
        return scaling.main(options.pattern, options.repeats, options.output)
    known = discover()
    chosen = select(options.pattern, options.sizes, known)
    if options.list or not chosen:
        listed = select(options.pattern if options.list else "", "full", known)
        names = [f"  {case.name}/{label}" for case, label in listed]
        listing = "cases:\n" + "\n".join(names)
        if options.list:
            print(listing)
            return 0
        message = f"no case matches {options.pattern!r} in --sizes {options.sizes}; {listing}"
        print(message, file=sys.stderr)
        return 2
    # A program read from disk would show no compile time.
    jax.config.update("jax_enable_compilation_cache", False)
    return run(chosen, rounds=options.repeats, output=options.output)


def run(chosen: list[tuple[Case, str]], *, rounds: int, output: pathlib.Path | None) -> int:
    """Measures the chosen cases; 1 if a program failed, 130 if interrupted."""
    environment, peaks = measured_environment()
    status = 0
    print(header(environment, rounds))
    try:
        for case, label in chosen:
            rows = measure_case(case, label, rounds, peaks)
            print(f"\n{case.name}/{label}  " + _describe(case.sizes[label]))
            for cells in (HEAD[1:], *map(report.cells, rows)):
                line = "  ".join(c.ljust(w) for c, w in zip(cells, WIDTHS, strict=True))
                print(line.rstrip(), flush=True)
            if (rows[0].get("others_share") or 0) > BUSY:
                print(
                    f"  other processes took {rows[0]['others_share']:.0%} of the cores meanwhile"
                )
            if output is not None:
                output.parent.mkdir(parents=True, exist_ok=True)
                with output.open("a") as lines:
                    for row in rows:
                        lines.write(json.dumps(row | {"environment": environment}) + "\n")
            status |= any(row["status"].startswith("failed") for row in rows)
    except KeyboardInterrupt:
        kept = f"finished blocks are in {output}" if output else "no --output was given"
        print(f"\ninterrupted; {kept}", file=sys.stderr)
        return 130
    return status


def measured_environment() -> tuple[dict[str, Any], measure.Peaks]:
    """What a reader must know, and the peaks of the device, measured now."""
    environment, others = measure.environment(), measure.Others()
    if environment["platform"] == "cpu":
        peaks = measure.measure_peaks(matrix_size=2048, copy_bytes=2**28)
    else:
        peaks = measure.measure_peaks(
            matrix_size=8192, copy_bytes=2**30, dtypes=("float32", "bfloat16")
        )
    environment["peak_operations"] = peaks.operations
    environment["peak_bandwidth"] = peaks.bandwidth
    environment["others_share"] = others.share()
    return environment, peaks


def measure_case(case: Case, label: str, rounds: int, peaks: measure.Peaks) -> list[dict[str, Any]]:
    """One row per program: ours, then the rivals."""
    size = case.sizes[label]
    rows, calls = {}, {}
    for name, build in case.programs().items():
        row: dict[str, Any] = {"case": case.name, "size": label, "parameters": dict(size)}
        rows[name] = row | {"program": name, "status": "ok", "unit": case.unit}
        try:
            calls[name], facts = prepare(build(**size))
            rows[name] |= facts
        except ImportError as error:
            missing = getattr(error.__cause__, "name", None) or error.name or error
            rows[name]["status"] = f"not installed: {missing}"
        except Exception as error:  # one broken rival must not cost the rest of the table
            traceback.print_exc()
            rows[name]["status"] = f"failed: {type(error).__name__}: {error}".splitlines()[0]
    others = measure.Others()
    timings = measure.time_in_turns(calls, rounds)
    share = others.share()
    floor, source = (case.floor(**size), "analytic") if case.floor else (None, "XLA")
    if floor is None and "zoo" in calls:
        floor = rows["zoo"].get("counted")
    for name, timing in timings.items():
        row = rows[name]
        row["median_seconds"] = timing.median
        row["best_seconds"] = timing.best
        row["quartiles_seconds"] = timing.quartiles
        row["samples"] = timing.samples
        if "zoo" in timings:
            row["times_zoo"] = timing.median / timings["zoo"].median
        if case.count is not None:
            row["rate"] = case.count(**size) / timing.median
        if floor is not None and name in ("zoo", *case.equal):  # others do other work
            seconds, bound = measure.roofline(floor, peaks)
            row |= {"operations": floor.operations, "bytes": floor.bytes, "counted_by": source}
            row |= {"roofline_fraction": seconds / timing.median, "bound": bound}
    for row in rows.values():
        row.pop("counted", None)
        row["others_share"] = share
    return list(rows.values())


def prepare(program: Program) -> tuple[Callable[[], Any], dict[str, Any]]:
    """The call to time, and what is known of it before."""
    if callable(program):
        return program, {}
    compiled = measure.compile_program(*program)
    facts = compiled._asdict()
    call = facts.pop("call")
    call()
    return call, facts | {"device_peak_bytes": measure.device_peak_bytes()}


def header(environment: dict[str, Any], rounds: int) -> str:
    """What is measured, on what, and how far to trust it."""
    row = {"environment": environment}
    text = [*report.machines([row]), f"{report.NOTE} At most {rounds} rounds."]
    if environment["platform"] == "cpu":
        text[-1] += report.CPU
    if (environment["others_share"] or 0) > BUSY:
        text.append(f"other processes took {environment['others_share']:.0%} of the cores so far")
    return "\n".join(text)


def _describe(size: Any) -> str:
    return ", ".join(f"{name}={value}" for name, value in size.items())


if __name__ == "__main__":
    sys.exit(main())
