"""Makes a Markdown table and a plot of a result file: ``python -m benchmarks.report FILE.jsonl``.

Where a case was measured more than once, the last run counts.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.run import BUSY, duration, quantity
from zoo.extras import require

HEAD = ("case", "program", "time of a call", "× zoo", "rate", "memory", "compile", "roofline")


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("file", type=pathlib.Path, metavar="FILE.jsonl")
    parser.add_argument("--plot", type=pathlib.Path, metavar="OUT.png")
    options = parser.parse_args(words)
    try:
        rows = read(options.file)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    print(table(rows))
    if options.plot is not None:
        plot(rows, options.plot)
    return 0


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of the last run of each case and size, in the order of the file.

    Raises:
        ValueError: if the file holds no rows, or a line that `benchmarks.run` did not write.
    """
    blocks: dict[tuple[str, str], list[dict[str, Any]]] = {}
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


def table(rows: list[dict[str, Any]]) -> str:
    """A sentence for each machine and run, then the Markdown table."""
    lines = [f"{line}  " for line in machines(rows)]
    lines.append(
        "Median time of one call with its quartiles; programs of a case took turns. `× zoo`: how "
        "many times ours; memory as planned by XLA; compile without tracing; roofline: least time "
        "the measured peaks allow / time, for programs that compute the same numbers."
    )
    if any(row["environment"]["platform"] == "cpu" for row in rows):
        lines[-1] += " CPU times are one run on one machine: read the ratios, not the seconds."
    if any((row.get("others_share") or 0) > BUSY for row in rows):
        lines[-1] += (
            f" † Other processes took more than {BUSY:.0%} of the cores: not to be trusted."
        )
    lines += ["", _line(HEAD), _line(["---", "---", *["---:"] * (len(HEAD) - 2)])]
    before = None
    for row in rows:
        name = f"{row['case']}, {row['size']}" + " †" * ((row.get("others_share") or 0) > BUSY)
        lines.append(_line([name if name != before else "", *cells(row)]))
        before = name
    return "\n".join(lines)


def machines(rows: list[dict[str, Any]]) -> list[str]:
    """One sentence for each machine and state of the code; runs differ in the peaks they found."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        environment = row["environment"]
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


def _range(values: Iterable[float]) -> str:
    """In units of 1e9, «40» or «40 to 42»."""
    texts = [f"{value / 1e9:,.0f}" for value in sorted(values)]
    return texts[0] if texts[0] == texts[-1] else f"{texts[0]} to {texts[-1]}"


def cells(row: dict[str, Any]) -> list[str]:
    """All columns but the case."""
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


def plot(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Bars: time relative to ours, and the share of the roofline that was reached."""
    figure_module, ticker = (
        require("matplotlib.figure", "plot"),
        require("matplotlib.ticker", "plot"),
    )
    rows = [row for row in rows if row["status"] == "ok" and "times_zoo" in row]
    blocks: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        blocks.setdefault(f"{row['case']}, {row['size']}", []).append(row)
    height = 1.2 + 0.2 * (len(rows) + 1.3 * len(blocks))
    figure = figure_module.Figure(figsize=(11, height), layout="constrained")
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


def _line(columns: Sequence[str]) -> str:
    return "| " + " | ".join(columns) + " |"


if __name__ == "__main__":
    sys.exit(main())
