"""Compile time, steady time, memory and the roofline of one machine.

Steady time is the wall-clock time of one call from Python until its outputs are ready, so it holds
the cost of the dispatch. Programs that are compared are timed in turns, round by round, so that
whatever else the machine does hits all of them.

The roofline is the larger of operations / peak operations a second and bytes / bandwidth. Both
peaks are measured here, on one large matrix product and one large array that is read and written;
a program that works inside a cache may beat the second.
"""

import datetime
import importlib.metadata
import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params

from .case import Floor

ROUND_SECONDS = 0.02  # fast programs run several times a round
GROUP_SECONDS = 90.0  # slow groups stop early, but not before MIN_ROUNDS
MIN_ROUNDS = 5


class Timing(NamedTuple):
    """Seconds of one call over all samples."""

    best: float
    median: float
    quartiles: tuple[float, float]
    samples: int


class Peaks(NamedTuple):
    """What the device reached when asked for one thing only."""

    operations: dict[str, float]  # a second, by dtype
    bandwidth: float  # bytes a second, read and written


class Compiled(NamedTuple):
    """A JAX program ready to run, and what making it cost."""

    call: Callable[[], Any]
    trace_seconds: float
    compile_seconds: float  # lowering and compilation
    memory_bytes: int | None  # arguments, outputs and temporaries
    counted: Floor | None  # XLA's own count


def compile_program(function: Callable[..., Any], arguments: tuple) -> Compiled:
    """Traces and compiles from nothing: caches of earlier programs are dropped first."""
    arguments = jax.device_put(arguments)
    jax.clear_caches()
    start = time.perf_counter()
    traced = jax.jit(function).trace(*arguments)
    middle = time.perf_counter()
    compiled = traced.lower().compile()
    end = time.perf_counter()
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    counted = None
    if cost.get("bytes accessed"):
        counted = Floor(int(cost.get("flops", 0)), int(cost["bytes accessed"]))
    return Compiled(
        lambda: jax.block_until_ready(compiled(*arguments)),
        trace_seconds=middle - start,
        compile_seconds=end - middle,
        memory_bytes=None if memory is None else planned_bytes(memory),
        counted=counted,
    )


def planned_bytes(memory: Any) -> int:
    """Arguments, outputs and temporaries of a compiled program, from its memory analysis."""
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return kept + memory.temp_size_in_bytes


def time_in_turns(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, Timing]:
    """Times each call once a round (more often if it is fast), after a warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    typical = {}
    for name, call in calls.items():
        call()
        typical[name] = _seconds(call)
    start = time.perf_counter()
    for index in range(rounds):
        for name, call in calls.items():
            if typical[name] < ROUND_SECONDS:
                call()  # the caches and threads of the program before it are no part of it
            for _ in range(max(1, min(50, int(ROUND_SECONDS / max(typical[name], 1e-9))))):
                seconds[name].append(_seconds(call))
        if index + 1 >= MIN_ROUNDS and time.perf_counter() - start > GROUP_SECONDS:
            break
    return {name: _summary(samples) for name, samples in seconds.items()}


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _summary(samples: list[float]) -> Timing:
    if len(samples) == 1:
        return Timing(samples[0], samples[0], (samples[0], samples[0]), 1)
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Timing(min(samples), middle, (low, high), len(samples))


class Others:
    """The share of the processor that went to anybody else since this object was made.

    Frameworks suffer differently when their threads wait for a core (those that spin at a barrier
    lose most), so a busy machine spoils even the ratios. Known on Linux only.
    """

    def __init__(self) -> None:
        self._start = self._clocks()

    def share(self) -> float | None:
        """Between 0 and 1; None where it is not known."""
        if self._start is None or (now := self._clocks()) is None:
            return None
        (total, idle, own), before = now, self._start
        elapsed = max(total - before[0], 1e-9)
        busy = elapsed - (idle - before[1])
        return min(1.0, max(0.0, (busy - (own - before[2])) / elapsed))

    @staticmethod
    def _clocks() -> tuple[float, float, float] | None:
        """Core seconds in all, idle, and ours."""
        try:
            with open("/proc/stat") as lines:
                ticks = [int(word) for word in lines.readline().split()[1:9]]
        except (OSError, ValueError):
            return None
        second = os.sysconf("SC_CLK_TCK")
        return sum(ticks) / second, sum(ticks[3:5]) / second, time.process_time()


def measure_peaks(
    *, matrix_size: int, copy_bytes: int, dtypes: Sequence[str] = ("float32",)
) -> Peaks:
    """The best of several square matrix products and copies on the default device."""
    product = jax.jit(jnp.matmul)
    operations = {}
    for dtype in dtypes:
        x = jnp.ones((matrix_size, matrix_size), dtype)
        operations[dtype] = 2 * matrix_size**3 / _best(lambda _, x=x: product(x, x), x)
    # In place: memory that a process touches for the first time is slow for another reason.
    increment = jax.jit(lambda x: x + 1, donate_argnums=0)
    flat = jnp.zeros(copy_bytes // 4, jnp.float32)
    moved = 2 * flat.nbytes
    return Peaks(operations, moved / _best(increment, flat))


def _best(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> float:
    """The fewest seconds of a function that is fed its own result."""
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        x = jax.block_until_ready(function(x))
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def roofline(floor: Floor, peaks: Peaks) -> tuple[float, str]:
    """The least seconds the device could take, and which of its two limits sets them."""
    compute = floor.operations / peaks.operations.get(floor.dtype, peaks.operations["float32"])
    memory = floor.bytes / peaks.bandwidth
    return (compute, "compute") if compute >= memory else (memory, "memory")


def operations(jaxpr: Any) -> float:
    """Multiplications and additions of all products and convolutions, loops as often as they run.

    The compiler's own count takes the body of a loop once.

    >>> times = lambda x, _: (x @ x, None)
    >>> run = lambda x: jax.lax.scan(times, x, length=5)
    >>> operations(jax.make_jaxpr(run)(jax.numpy.eye(4)).jaxpr)
    640.0
    """
    total = 0.0
    for equation in jaxpr.eqns:
        shapes = [variable.aval.shape for variable in equation.invars if hasattr(variable, "aval")]
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            size = math.prod(shapes[0][axis] for axis in contracted)
            total += 2 * size * math.prod(equation.outvars[0].aval.shape)
        elif equation.primitive.name == "conv_general_dilated":
            numbers = equation.params["dimension_numbers"]
            out = equation.outvars[0].aval.shape
            features = shapes[1][numbers.rhs_spec[0]]
            total += 2 * math.prod(out) / features * math.prod(shapes[1])
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        inner = jaxprs_in_params(equation.params)
        total += times * sum(map(operations, inner))
    return total


def environment() -> dict[str, Any]:
    """What a reader must know to believe a number."""
    versions = {"python": platform.python_version()}
    for package in ("jax", "jaxlib", "flax", "numpy", "torch"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    device = jax.devices()[0]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "versions": versions,
        "platform": device.platform,
        "device": device.device_kind,
        "processor": _processor(),
        "threads": cores(),
        "load_at_start": round(os.getloadavg()[0], 2),
    }


def cores() -> int:
    """Processor cores this process may use, and the number of threads every program is given."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_peak_bytes() -> int | None:
    """The most memory the device held since the process began, where it keeps count."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str:
    def git(*words: str) -> str:
        directory = os.path.dirname(os.path.abspath(__file__))
        command = ["git", "-C", directory, *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "../zoo", ".")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
