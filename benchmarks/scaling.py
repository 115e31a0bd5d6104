"""How the cost grows with the work: ``python -m benchmarks.run --scaling [pattern]``.

A curve is a case of the benchmarks at sizes of which one number grows, the others as given. The
fitted exponent is the slope of log(time) over log(size), by least squares; beside it what the
algorithm says. It is less where a fixed cost is in the time, and more where a larger problem leaves
a cache. Memory is what XLA plans for the arguments, outputs and temporaries.
"""

import fnmatch
import json
import math
import pathlib
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from zoo._files import replace_file

from . import measure
from .case import Case, discover
from .report import SCALING_HEAD, scaling_cells


class Curve(NamedTuple):
    """Sizes of a case.

    Attributes:
        case: its name.
        grows: the number that grows.
        values: what it takes.
        expected: the exponent of the time for large values, and why if that is not plain.
        size: the other numbers.
    """

    case: str
    grows: str
    values: tuple[int, ...]
    expected: str
    size: Mapping[str, Any]

    @property
    def name(self) -> str:
        """By which it is chosen."""
        return f"{self.case}, {self.grows}"


LAYER = {"batch": 16, "time": 32, "inputs": 128, "units": 128, "chunk": 8}
TOP_K = {"rows": 256, "items": 128, "k": 4}
BERT = {"batch": 4, "time": 64, "vocabulary": 2000, "units": 128, "depth": 2, "heads": 2}
BERT |= {"predictions": 8}
GENERATE = {"batch": 4, "prompt": 8, "new": 32, "vocabulary": 2000, "units": 128, "depth": 2}
GENERATE |= {"heads": 2}
NORM = {"batch": 8, "time": 64, "units": 256, "features": 32}
POSITIONS = (1024, 2048, 4096, 8192)
MLM, GENERATION = "transformer.Transformer gradient", "decoding.sample, greedy"
NORMED, NORMED_GRADIENT = (f"conditional.conditional_layer_norm{end}" for end in ("", " gradient"))
CHAIN = {"features": 8, "num_steps": 8, "batch": 16}
CURVES = (
    Curve("ordered.on_lstm", "time", (32, 64, 128, 256), "1", LAYER),
    Curve("ordered.on_lstm", "batch", (64, 128, 256, 512), "1", LAYER),
    Curve("ordered.on_lstm", "units", (128, 256, 512, 1024), "2", LAYER | {"inputs": 512}),
    Curve("ordered.cumax", "levels", (256, 1024, 4096, 16384), "1", {"rows": 512}),
    Curve("smooth.soft_top_k gradient", "items", (128, 256, 512, 1024), "1", TOP_K),
    Curve("smooth.soft_top_k gradient", "k", (4, 8, 16, 32), "1", TOP_K | {"items": 512}),
    Curve("smooth.soft_top_k threshold", "items", (256, 1024, 4096, 16384), "1", TOP_K),
    Curve("smooth.soft_rank", "items", (512, 1024, 2048, 4096), "1 (n log n)", {"rows": 32}),
    Curve("smooth.soft_sort", "items", (512, 1024, 2048, 4096), "1 (n log n)", {"rows": 32}),
    Curve("spherical.block_descent", "positions", POSITIONS, "1", {"dimension": 100}),
    Curve("spherical.block_descent", "dimension", (64, 128, 256, 512), "1", {"positions": 1024}),
    Curve("spherical.random_von_mises_fisher", "count", (10**4, 10**5, 10**6), "1",
          {"dimension": 3, "concentration": 10.0}),
    Curve(NORMED, "time", (256, 512, 1024, 2048), "1", NORM),
    Curve(NORMED_GRADIENT, "units", (256, 512, 1024, 2048), "1", NORM),
    Curve(MLM, "time", (64, 128, 256, 512), "1 to 2", BERT),
    Curve(MLM, "units", (128, 256, 512, 1024), "1 to 2", BERT),
    Curve(MLM, "depth", (2, 4, 8, 16), "1", BERT | {"vocabulary": 64}),
    Curve(MLM, "batch", (4, 8, 16, 32), "1", BERT),
    Curve("transformer.masked_cross_entropy gradient", "vocabulary", (4000, 16000, 64000), "1",
          {"rows": 64}),
    Curve(GENERATION, "new", (32, 64, 128, 256), "1 to 2", GENERATE),
    Curve(GENERATION, "vocabulary", (8000, 32000, 128000), "1", GENERATE),
    Curve("averaging.parameter_ema", "units", (256, 512, 1024), "2 (parameters)", {"layers": 8}),
    Curve("capture.hidden states", "layers", (2, 4, 8), "1",
          {"batch": 8, "tokens": 32, "units": 64, "heads": 2}),
    Curve("orthogonal.sign_correlation", "filters", (256, 512, 1024, 2048), "2", {"samples": 256}),
    Curve("orthogonal.sign_correlation", "samples", (512, 1024, 2048, 4096), "1", {"filters": 256}),
    Curve("orthogonal.add_orthogonality_penalty", "width", (64, 128, 256), "3", {}),
    Curve("energy.langevin chain", "num_steps", (8, 16, 32, 64), "1", CHAIN),
    Curve("energy.langevin chain", "batch", (16, 32, 64, 128), "1", CHAIN),
    Curve("energy.hamiltonian_monte_carlo on a Gaussian", "dimensions", (64, 128, 256), "1",
          {"chains": 64, "num_steps": 20}),
    Curve("energy.chain_agreement", "samples", (1000, 4000, 16000), "1 (n log n)",
          {"chains": 4, "components": 4}),
)  # fmt: skip


def select(pattern: str) -> list[Curve]:
    """The curves whose ``case, what grows`` contains the pattern (``*`` allowed)."""
    return [curve for curve in CURVES if fnmatch.fnmatchcase(curve.name, f"*{pattern}*")]


def exponent(values: Sequence[float], costs: Sequence[float]) -> tuple[float, float]:
    """Slope of log(cost) over log(value) by least squares, and its standard error.

    >>> slope, error = exponent([1, 2, 4, 8], [3, 12, 48, 192])
    >>> round(slope, 6), round(error, 6)
    (2.0, 0.0)
    """
    x, y = np.log(values), np.log(costs)
    x, y = x - x.mean(), y - y.mean()
    slope = float(x @ y / (x @ x))
    freedom = max(len(x) - 2, 1)
    return slope, math.sqrt(float(np.sum((y - slope * x) ** 2)) / freedom / float(x @ x))


def best_seconds(calls: Mapping[str, Callable[[], Any]], rounds: int) -> list[float]:
    """The least seconds of each call, in turns; on a CPU those of all its threads together.

    Neighbours on the machine spoil the time of the clock, least of all for small problems.
    """
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    best = dict.fromkeys(calls, math.inf)
    for _ in range(rounds + 1):  # the first one warms up
        for name, call in calls.items():
            begin, count = clock(), 0
            while not count or clock() - begin < measure.ROUND_SECONDS:
                call()
                count += 1
            best[name] = min(best[name], (clock() - begin) / count)
    return list(best.values())


def run_curve(curve: Curve, cases: Mapping[str, Case], rounds: int) -> dict[str, Any]:
    """Times the case at every value, in turns."""
    calls, memory = {}, []
    for value in curve.values:
        program = cases[curve.case].build(**{**curve.size, curve.grows: value})
        compiled = measure.compile_program(*program)
        calls[str(value)] = compiled.call
        memory.append(compiled.memory_bytes)
    seconds = best_seconds(calls, rounds)
    slope, error = exponent(curve.values, seconds)
    return {
        "case": curve.case,
        "grows": curve.grows,
        "values": curve.values,
        "size": dict(curve.size),
        "seconds": seconds,
        "memory_bytes": memory,
        "exponent": slope,
        "error": error,
        "expected": curve.expected,
        "memory_exponent": None if None in memory else exponent(curve.values, memory)[0],
        "environment": measure.environment(),
    }


def main(pattern: str, rounds: int, output: pathlib.Path | None) -> int:
    """Measures curves and prints their table; with ``output`` they are kept, one by one."""
    if not (curves := select(pattern)):
        print("no curve matches; there are:", *(curve.name for curve in CURVES), sep="\n  ")
        return 2
    jax.config.update("jax_enable_compilation_cache", False)
    cases = {case.name: case for case in discover()}
    kept: dict[str, dict[str, Any]] = {}
    if output is not None and output.exists():
        kept = {f"{row['case']}, {row['grows']}": row for row in json.loads(output.read_text())}
    print("| " + " | ".join(SCALING_HEAD) + " |\n" + "|---" * len(SCALING_HEAD) + "|")
    status = 0
    for curve in curves:
        try:
            kept[curve.name] = run_curve(curve, cases, rounds)
        except Exception:  # one that fails must not cost the others
            traceback.print_exc()
            status = 1
            continue
        print("| " + " | ".join(scaling_cells(kept[curve.name])) + " |", flush=True)
        if output is not None:
            order = [c.name for c in CURVES if c.name in kept]
            output.parent.mkdir(parents=True, exist_ok=True)
            text = ",\n".join(json.dumps(kept[name]) for name in order)
            replace_file(output, f"[\n{text}\n]\n")
    return status
