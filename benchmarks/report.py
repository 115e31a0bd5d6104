"""Tables and plots of result files.

    python -m benchmarks.report                        # writes the tables of benchmarks/README.md
    python -m benchmarks.report FILE.jsonl --plot OUT.png
    python -m benchmarks.report OLD.jsonl NEW.jsonl    # the same rows before and after

Where a case was measured more than once, the last run counts.
"""

import argparse
import json
import pathlib
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from zoo._files import replace_file
from zoo.extras import require

Row = dict[str, Any]
FOLDER = pathlib.Path(__file__).parent
README, RESULTS, BOUNDS = FOLDER / "README.md", FOLDER / "results", FOLDER / "results/bounds.json"
SCALING_HEAD = ("case", "grows", "from … to", "time", "exponent", "expected", "memory, exponent")
TPU_HEAD = (
    "step",
    "slice (devices)",
    "parameters",
    "state and batch, GiB",
    "in all, GiB",
    "products, GFLOP",
    "at least, ms",
    "collectives in the program",
    "compiled in, s",
    "wrong",
)
HEAD = ("case", "program", "time of a call", "× zoo", "rate", "memory", "compile", "roofline")
BUSY = 0.05  # share of the cores that others may take before the reader is told
PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
UNITS = ((1, "s"), (1e3, "ms"), (1e6, "us"))
NOTE = (
    "Median time of one call with its quartiles; programs of a case took turns. `× zoo`: how many "
    "times ours; memory as planned by XLA; compile without tracing; roofline: least time the "
    "measured peaks allow / time, for programs that compute the same numbers."
)
CPU = " CPU times are one run on one machine: read the ratios, not the seconds."
DAGGER = f" † Other processes took more than {BUSY:.0%} of the cores: not to be trusted."


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {__package__}.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="*", type=pathlib.Path, metavar="FILE.jsonl")
    parser.add_argument("--plot", type=pathlib.Path, metavar="OUT.png")
    options = parser.parse_args(words)
    try:
        if not options.files:
            replace_file(README, filled(README.read_text()))
            return 0
        measured = [read(file) for file in options.files]
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    print(comparison(*measured) if len(measured) == 2 else "\n\n".join(map(table, measured)))
    if options.plot is not None:
        plot(measured[-1], options.plot)
    return 0


def read(path: pathlib.Path) -> list[Row]:
    """The rows of the last run of each case and size, in the order of the file.

    Raises:
        ValueError: if the file holds no rows, or a line that `benchmarks.run` did not write.
    """
    blocks: dict[tuple[str, str], list[Row]] = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            row = json.loads(line)
            key = (row["case"], row["size"])
            date, _ = row["environment"]["date"], (row["program"], row["status"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{path}, line {number} is no row of benchmarks.run ({error!r}): {line[:60]}"
            ) from error
        block = blocks.setdefault(key, [])
        if block and block[0]["environment"]["date"] != date:
            block.clear()
        block.append(row)
    if not blocks:
        raise ValueError(f"{path} holds no rows; write some with: python -m benchmarks.run")
    return [row for block in blocks.values() for row in block]


def filled(page: str) -> str:
    """The page with the table of every ``<!-- results: FILE -->`` and ``<!-- summary -->``."""

    def section(found: re.Match[str]) -> str:
        what, file = found["what"], found["file"]
        if what in RECORDS:
            text = records_table(what)
        elif what == "summary":
            text = summary([row for path in sorted(RESULTS.glob("*.jsonl")) for row in read(path)])
        else:
            text = table(read(RESULTS / f"{file}.jsonl"))
        return f"{found['begin']}\n\n{text}\n\n<!-- end -->"

    what = "|".join(["summary", "results", *RECORDS])
    marks = rf"(?P<begin><!-- (?P<what>{what})(?:: (?P<file>\w+))? -->).*?<!-- end -->"
    return re.sub(marks, section, page, flags=re.DOTALL)


def records_table(what: str) -> str:
    """The table of the records that `benchmarks.scaling` or `benchmarks.tpu_compile` kept."""
    file, head, cells = RECORDS[what]
    lines = [_line(head), _line(["---"] * len(head))]
    return "\n".join(lines + [_line(cells(r)) for r in json.loads((RESULTS / file).read_text())])


def scaling_cells(row: Row) -> tuple[str, ...]:
    """A row of the table, see `SCALING_HEAD`."""
    memory = row["memory_exponent"]
    return (
        row["case"],
        row["grows"],
        f"{row['values'][0]:,} … {row['values'][-1]:,}",
        f"{duration(row['seconds'][0])} … {duration(row['seconds'][-1])}",
        f"{row['exponent']:.2f} ± {row['error']:.2f}",
        row["expected"],
        "" if memory is None else f"{memory:.2f}",
    )


def tpu_cells(record: dict[str, Any]) -> tuple[str, ...]:
    """A row of the table, see `TPU_HEAD`."""
    if "devices" not in record:
        return record["step"], record["slice"], *[""] * (len(TPU_HEAD) - 3), record["wrong"][0]
    counts = ", ".join(f"{count} {kind}" for kind, count in record["collectives"].items())
    return (
        record["step"],
        f"{record['slice']} ({record['devices']})",
        f"{record['parameters'] / 1e6:,.2f} M",
        f"{record['state_and_batch_bytes'] / 2**30:.2f}",
        f"{record['memory_bytes'] / 2**30:.2f} of {record['memory_of_device'] / 2**30:.0f}",
        f"{record['operations'] / 1e9:,.3g}",
        f"{1e3 * record['seconds']:.3g} ({record['bound']})",
        counts or "none",
        f"{record['compile_seconds']:.0f}",
        "; ".join(record["wrong"]) or "nothing",
    )


def summary(rows: list[Row]) -> str:
    """One line per case and size: the fastest other program, and what bounds ours."""
    known = json.loads(BOUNDS.read_text())
    head = ("case", "fastest other program", "its time / zoo's", "bound by")
    lines = [_line(head), "|---|---|---:|---|"]
    for name, block in _blocks(rows).items():
        ours = block[0]
        times = {r["program"]: r["times_zoo"] for r in block[1:] if "times_zoo" in r}
        rival = min(times, key=lambda program: times[program], default="")
        bound = known.get(name) or known.get(name.split(", ")[0]) or ""
        if not bound and ours.get("counted_by") == "analytic":
            bound = f"{ours['roofline_fraction']:.0%} of the peak ({ours['bound']})"
        ratio = f"{times[rival]:.2f}{_dagger(ours)}" if rival else ""
        lines.append(_line((name, rival, ratio, bound)))
    return "\n".join(lines)


def comparison(old: list[Row], new: list[Row]) -> str:
    """Our times before and after, row by row.

    Rivals did not change: the median of their ratios says how much slower the machine was, and is
    taken out. What is left is a difference if the quartiles of the two runs do not overlap.
    """
    head = ("case", "before", "after", "after / before", "of the rivals", "verdict")
    lines = [_line(head), "|---|---:|---:|---:|---:|---|"]
    before, after = _blocks(old), _blocks(new)
    for name in {**before, **after}:
        a, b = ({r["program"]: r for r in blocks.get(name, [])} for blocks in (before, after))
        ours = [block.get("zoo", {"status": "absent"}) for block in (a, b)]
        if any(row["status"] != "ok" for row in ours):
            lines.append(_line((name, *(row["status"] for row in ours), "", "", "")))
            continue
        ratios = [
            b[rival]["median_seconds"] / a[rival]["median_seconds"]
            for rival in a.keys() & b.keys() - {"zoo"}
            if a[rival]["status"] == b[rival]["status"] == "ok"
        ]
        machine = statistics.median(ratios) if ratios else 1.0
        (low_a, high_a), (low_b, high_b) = (row["quartiles_seconds"] for row in ours)
        low_b, high_b = low_b / machine, high_b / machine
        verdict = "slower" if low_b > high_a else "faster" if high_b < low_a else "within noise"
        times = [row["median_seconds"] for row in ours]
        columns = (f"{times[1] / times[0]:.2f}", f"{machine:.2f}" if ratios else "", verdict)
        busy = _dagger(ours[0]) or _dagger(ours[1])
        lines.append(_line((name + busy, *map(duration, times), *columns)))
    return "\n".join(lines)


def table(rows: list[Row]) -> str:
    """A sentence for each machine and run, then the Markdown table."""
    busy = any((row.get("others_share") or 0) > BUSY for row in rows)
    on_cpu = any(row["environment"]["platform"] == "cpu" for row in rows)
    lines = [*(f"{line}  " for line in machines(rows)), NOTE + CPU * on_cpu + DAGGER * busy, ""]
    lines += [_line(HEAD), _line(["---", "---", *["---:"] * (len(HEAD) - 2)])]
    for name, block in _blocks(rows).items():
        names = [name + _dagger(block[0]), *[""] * (len(block) - 1)]
        lines += [_line([n, *cells(row)]) for n, row in zip(names, block, strict=True)]
    return "\n".join(lines)


def machines(rows: list[Row]) -> list[str]:
    """One sentence for each machine and state of the code; runs differ in the peaks they found."""
    runs: dict[str, list[Row]] = {}
    for environment in (row["environment"] for row in rows):
        kind = "processor" if environment["platform"] == "cpu" else "device"
        versions = environment["versions"]
        text = (
            f"{environment[kind]}, {environment['threads']} threads; jax {versions['jax']}, "
            f"torch {versions['torch']}; commit {environment['commit']}, {environment['date'][:10]}"
        )
        runs.setdefault(text, []).append(environment)
    return [
        f"{text}; measured peaks {_range(e['peak_operations']['float32'] for e in found)} GFLOP/s "
        f"float32 and {_range(e['peak_bandwidth'] for e in found)} GB/s."
        for text, found in runs.items()
    ]


def cells(row: Row) -> list[str]:
    """All columns of a program but the case."""
    if row["status"] != "ok":
        return [row["program"], row["status"], *[""] * (len(HEAD) - 3)]
    low, high = row["quartiles_seconds"]
    fraction, memory = row.get("roofline_fraction"), row.get("memory_bytes")
    return [
        row["program"],
        f"{duration(row['median_seconds'])} ({duration(low)} to {duration(high)})",
        f"{row['times_zoo']:.2f}" if "times_zoo" in row else "",
        f"{quantity(row['rate'])} {row['unit']}/s" if "rate" in row else "",
        "" if memory is None else quantity(memory, "B"),
        duration(row["compile_seconds"]) if "compile_seconds" in row else "",
        "" if fraction is None else f"{fraction:.0%} ({row['bound']})",
    ]


def duration(seconds: float) -> str:
    """Seconds with a fitting unit and three digits."""
    factor, unit = next(((f, u) for f, u in UNITS if seconds * f >= 1), UNITS[-1])
    digits = ".3g" if seconds * factor < 999.5 else ".0f"
    return f"{seconds * factor:{digits}} {unit}"


def quantity(number: float, unit: str = "") -> str:
    """A number with a decimal prefix and three digits, such as ``12.3 MB``."""
    factor, prefix = next((pair for pair in PREFIXES if number >= pair[0]), (1, ""))
    return f"{number / factor:.3g} {prefix}{unit}".rstrip()


def plot(rows: list[Row], path: pathlib.Path) -> None:
    """Bars: time relative to ours, and the share of the roofline that was reached."""
    figure = require("matplotlib.figure", "plot").Figure
    ticker = require("matplotlib.ticker", "plot")
    rows = [row for row in rows if row["status"] == "ok" and "times_zoo" in row]
    blocks = _blocks(rows)
    height = 1.2 + 0.2 * (len(rows) + 1.3 * len(blocks))
    figure = figure(figsize=(11, height), layout="constrained")
    ratios, fractions = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    labels: dict[float, str] = {}
    position = 0.0
    for name, block in blocks.items():
        position -= 1.3
        for axes in (ratios, fractions):
            axes.axhspan(position - 0.5, position + 0.5, color="0.95")
        at = {"transform": ratios.get_yaxis_transform(), "va": "center", "fontsize": 8}
        ratios.text(0.01, position, name, fontweight="bold", **at)
        for row in block:
            position -= 1
            labels[position] = row["program"]
            ratio, ours = row["times_zoo"], row["program"] == "zoo"
            color = "tab:blue" if ours else "0.65"
            # On a logarithmic axis the one honest foot of a bar is equality.
            ratios.barh(position, ratio - 1, left=1, color=color)
            side = {"ha": "left"} if ratio >= 1 else {"ha": "right"}
            text = f" {duration(row['median_seconds'])} " if ours else f" {ratio:.2f} "
            ratios.text(ratio, position, text, fontsize=7, va="center", **side)
            if "roofline_fraction" in row:
                fractions.barh(position, row["roofline_fraction"], color=color)
    ratios.set_ylim(position - 1, 0)
    ratios.set_yticks(list(labels), list(labels.values()), fontsize=7)
    ratios.axvline(1, color="tab:blue", linewidth=1)
    values = [row["times_zoo"] for row in rows]
    ratios.set_xscale("log", base=2)
    ratios.set_xlim(min([*values, 0.5]) / 1.6, max([*values, 2]) * 1.6)
    ratios.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    ratios.set_xlabel("time / time of zoo (logarithmic; right of 1 is slower than zoo)")
    fractions.set_xlim(left=0)
    fractions.xaxis.set_major_formatter(ticker.PercentFormatter(1))
    fractions.set_xlabel("share of the measured roofline")
    figure.suptitle("\n".join(machines(rows)), fontsize=8)
    figure.savefig(path, dpi=130)


def _blocks(rows: list[Row]) -> dict[str, list[Row]]:
    """The programs of each ``case, size``, ours first."""
    blocks: dict[str, list[Row]] = {}
    for row in rows:
        blocks.setdefault(f"{row['case']}, {row['size']}", []).append(row)
    return blocks


def _dagger(row: Row) -> str:
    return " †" if (row.get("others_share") or 0) > BUSY else ""


def _range(values: Iterable[float]) -> str:
    """In units of 1e9, "40" or "40 to 42"."""
    texts = [f"{value / 1e9:,.0f}" for value in sorted(values)]
    return texts[0] if texts[0] == texts[-1] else f"{texts[0]} to {texts[-1]}"


def _line(columns: Sequence[str]) -> str:
    return "| " + " | ".join(columns) + " |"


# What has a table of its own: file, columns, and what makes a row of a record.
RECORDS: dict[str, tuple[str, Sequence[str], Callable[[Row], Sequence[str]]]] = {
    "scaling": ("scaling_cpu_2_cores.json", SCALING_HEAD, scaling_cells),
    "tpu_steps": ("tpu_steps.json", TPU_HEAD, tpu_cells),
}

if __name__ == "__main__":
    sys.exit(main())
