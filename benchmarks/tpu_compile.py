"""Compiles training steps for TPU slices on a machine that has none, and says what they need.

    pip install 'kexue-zoo[train,data,tpu]'
    python -m benchmarks.tpu_compile                 # every step on every slice
    python -m benchmarks.tpu_compile base v5e-16     # one of them
    python -m benchmarks.tpu_compile --record        # written into the table of README.md as well

For each: memory of a device, operations and bytes, collectives, and an estimate of the time. It
ends with code 1 if a step does not fit, if activations are gathered, if all layers of a parameter
are gathered at once, or if a large one is whole on every device. Nothing is computed and no array
is allocated.

The estimate is the longer of two times: products and convolutions at the peak, and state and batch
read and the new state written once. A step takes longer; no step takes less.
"""

import argparse
import collections
import importlib.metadata
import itertools
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU host to be asked
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # or a file in /tmp locks out the next run
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # no device could load what is in it

import jax
from jax.experimental import topologies

from zoo._files import replace_file
from zoo._paths import path_name
from zoo.training import make_mesh

from .measure import operations, planned_bytes
from .report import RESULTS as FOLDER
from .report import TPU_HEAD, tpu_cells
from .tpu_steps import STEPS, Step

GIB = 2**30
RESULTS = FOLDER / "tpu_steps.json"
SMALL = 2**24  # bytes of a matrix that may be kept whole: a thousandth of a v5e chip's memory


class Slice(NamedTuple):
    """A TPU slice; what is per second is of a device."""

    topology: str
    memory: int  # bytes of a device
    operations: float  # in bfloat16
    bandwidth: float  # bytes of its memory


# Published for Cloud TPU, a chip: v5e 16 GiB, 197 TFLOP/s, 819 GB/s; v5p 95 GiB, 459 TFLOP/s,
# 2,765 GB/s; TPU7x 192 GiB, 2,307 TFLOP/s, 7,380 GB/s, and it is two devices. The names of the
# latter two count cores: 64 chips.
SLICES = {
    "v5e-16": Slice("v5e:4x4", 16 * GIB, 197e12, 819e9),
    "v5p-128": Slice("v5p:4x4x4", 95 * GIB, 459e12, 2765e9),
    "tpu7x-128": Slice("tpu7x:4x4x4", 96 * GIB, 1153.5e12, 3690e9),
}


_COLLECTIVE = re.compile(
    r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]\{")


def collectives(text: str) -> list[tuple[str, list[tuple[str, tuple[int, ...]]]]]:
    """Kind of every collective of a compiled program, with dtype and shape of its results.

    >>> collectives("%x = (bf16[8,4]{1,0}, s32[]{}) all-gather(bf16[1,4]{1,0} %y), channel_id=1")
    [('all-gather', [('bf16', (8, 4)), ('s32', ())])]
    """
    return [
        (
            kind,
            [
                (dtype, tuple(map(int, filter(None, shape.split(",")))))
                for dtype, shape in _ARRAY.findall(results)
            ],
        )
        for results, kind in _COLLECTIVE.findall(text)
    ]


def problems(step: Step, text: str) -> list[str]:
    """What a step that shares out its parameters should not do, and this program does."""
    parameters = step.arguments[0].parameters
    leaves = jax.tree.leaves_with_path(parameters)
    messages = [
        f"{path_name(path)} {list(leaf.shape)} is whole on every device"
        for path, leaf in leaves
        if step.shared
        and path_name(path).endswith(("kernel", "embedding"))
        and leaf.sharding.is_fully_replicated
        and leaf.size * leaf.dtype.itemsize > SMALL
    ]
    stacked = {  # [layers, in, out, …]
        leaf.shape for _, leaf in leaves if leaf.ndim > 2 and not leaf.sharding.is_fully_replicated
    }
    layers = [sorted(leaf.shape[1:]) for _, leaf in leaves if leaf.ndim > 2]
    arrays = [
        array
        for kind, results in collectives(text)
        # On larger slices the compiler gathers by a sum of what is zero but for one's own share.
        if kind in ("all-gather", "all-reduce")
        for array in results
    ]
    for dtype, shape in arrays:
        if dtype[0] not in "bf":  # ids of tokens may go anywhere
            continue
        # A batch may be as large as a head.
        if sorted(shape) in layers or shape in step.gathered:
            continue
        if len(shape) >= 3 and step.batch in shape[:2]:  # [B, T, …] or [T, B, …]
            messages.append(f"activations of all devices are gathered: {dtype}{list(shape)}")
        if shape in stacked:
            messages.append(f"all layers of a parameter are gathered: {dtype}{list(shape)}")
    return messages


def check(name: str, slice_name: str) -> dict[str, Any]:
    """Compiles a step for a slice: what it needs of a device, and what is wrong with it."""
    device = SLICES[slice_name]
    topology = topologies.get_topology_desc(device.topology, "tpu")
    mesh = make_mesh(data=1, fsdp=len(topology.devices), devices=topology.devices)
    step = STEPS[name](mesh)
    traced = step.function.trace(*step.arguments)
    begin = time.perf_counter()
    compiled = traced.lower().compile()
    seconds = time.perf_counter() - begin
    memory, text = compiled.memory_analysis(), compiled.as_text()
    products = operations(traced.jaxpr.jaxpr) / mesh.size
    moved = memory.argument_size_in_bytes + memory.output_size_in_bytes
    times = {"products": products / device.operations, "memory": moved / device.bandwidth}
    bound = max(times, key=lambda what: times[what])
    used, wrong = planned_bytes(memory), problems(step, text)
    if used > device.memory:
        wrong.append(f"{used / GIB:.1f} GiB do not fit into {device.memory / GIB:.0f} GiB")
    parameters = jax.tree.leaves(step.arguments[0].parameters)
    return {
        "step": name,
        "slice": slice_name,
        "devices": mesh.size,
        "parameters": sum(math.prod(x.shape) for x in parameters),
        "state_and_batch_bytes": memory.argument_size_in_bytes,
        "memory_bytes": used,
        "memory_of_device": device.memory,
        "operations": products,
        "seconds": times[bound],
        "bound": bound,
        "compiler_seconds": (compiled.cost_analysis() or {}).get("optimal_seconds"),
        "collectives": dict(collections.Counter(k for k, _ in collectives(text)).most_common()),
        "compile_seconds": seconds,
        "versions": {p: importlib.metadata.version(p) for p in ("jax", "libtpu")},
        "wrong": wrong,
    }


def check_apart(name: str, slice_name: str) -> dict[str, Any]:
    """`check` in a process of its own: a compiler that crashes is one more thing that is wrong."""
    module = f"{__package__}.tpu_compile"  # also where it is __main__
    call = f"check({name!r}, {slice_name!r})"
    code = f"import json; from {module} import check; print(json.dumps({call}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    sys.stderr.write(done.stderr)
    return {"step": name, "slice": slice_name, "wrong": [f"it ended with {done.returncode}"]}


def record_result(record: dict[str, Any], path: pathlib.Path = RESULTS) -> None:
    """Puts a result in the place of an earlier one of the same step and slice."""
    kept = json.loads(path.read_text()) if path.exists() else []
    place = [record["step"], record["slice"]]
    kept = [other for other in kept if [other["step"], other["slice"]] != place]
    order = [*itertools.product(STEPS, SLICES)]
    kept = sorted([*kept, record], key=lambda r: order.index((r["step"], r["slice"])))
    replace_file(path, "[\n" + ",\n".join(map(json.dumps, kept)) + "\n]\n")


def main(words: Sequence[str] | None = None) -> int:
    """Checks the named steps and slices, or all; 1 if something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tpu_compile")
    parser.add_argument("names", nargs="*", help=f"of {', '.join([*STEPS, *SLICES])}")
    parser.add_argument("--record", action="store_true", help=f"into {RESULTS}")
    options = parser.parse_args(words)
    if unknown := set(options.names) - STEPS.keys() - SLICES.keys():
        parser.error(f"known are {', '.join([*STEPS, *SLICES])}, got {', '.join(sorted(unknown))}")
    steps = [name for name in STEPS if name in options.names] or STEPS
    slices = [name for name in SLICES if name in options.names] or SLICES
    status = 0
    for place in itertools.product(steps, slices):
        record = check_apart(*place)
        for name, cell in zip(TPU_HEAD, tpu_cells(record), strict=True):
            print(f"{name:<28}{cell}")
        print(flush=True)
        if options.record:
            record_result(record)
        status |= bool(record["wrong"])
    return status


if __name__ == "__main__":
    sys.exit(main())
