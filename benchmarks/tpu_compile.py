"""Compiles training steps for TPU slices on a machine that has none, and says what they need.

    pip install 'kexue-zoo[train,data,tpu]'
    python -m benchmarks.tpu_compile                 # every step on every slice
    python -m benchmarks.tpu_compile base v5e-16     # one of them

For each: memory of a device, operations and bytes, collectives, the compiler's own estimate of the
time. It ends with code 1 if a step does not fit, if activations are gathered, if all layers of a
parameter are gathered at once, or if a large one is whole on every device. Nothing is computed and
no array is allocated.
"""

import collections
import itertools
import math
import os
import re
import sys
import time
from typing import Any, NamedTuple

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU host to be asked
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # or a file in /tmp locks out the next run
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # no device could load what is in it

import jax
from jax.experimental import topologies
from jax.extend.core import jaxprs_in_params

from zoo._paths import path_name
from zoo.training import make_mesh

from .measure import planned_bytes
from .tpu_steps import STEPS, Step

GIB = 2**30
SMALL = 2**24  # bytes of a matrix that may be kept whole: a thousandth of a v5e chip's memory


class Slice(NamedTuple):
    """A TPU slice."""

    topology: str
    memory: int  # bytes of a device
    operations_per_second: float  # of a device, in bfloat16


# Published for Cloud TPU: 16 GiB and 197 TFLOP/s a v5e chip; 95 GiB and 459 TFLOP/s a v5p chip. A
# v5p-128 counts cores: 64 chips.
SLICES = {
    "v5e-16": Slice("v5e:4x4", 16 * GIB, 197e12),
    "v5p-128": Slice("v5p:4x4x4", 95 * GIB, 459e12),
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


def check(name: str, slice_name: str) -> list[str]:
    """Compiles a step for a slice, prints what it needs, and gives what is wrong with it."""
    device = SLICES[slice_name]
    topology = topologies.get_topology_desc(device.topology, "tpu")
    mesh = make_mesh(data=1, fsdp=len(topology.devices), devices=topology.devices)
    step = STEPS[name](mesh)
    size = sum(math.prod(x.shape) for x in jax.tree.leaves(step.arguments[0].parameters))
    begin = time.perf_counter()
    lowered = step.function.lower(*step.arguments)
    traced = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - traced
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    used = planned_bytes(memory)
    text = compiled.as_text()
    counts = collections.Counter(kind for kind, _ in collectives(text))
    print(f"{name} on {slice_name} ({mesh.size} devices, fsdp), {size:,} parameters")
    print(f"  traced in {traced - begin:.1f} s, compiled in {seconds:.1f} s")
    print(
        f"  memory of a device: {used / GIB:.2f} GiB of {device.memory / GIB:.0f} "
        f"(state and batch {memory.argument_size_in_bytes / GIB:.2f}, "
        f"temporary {memory.temp_size_in_bytes / GIB:.2f})"
    )
    products = operations(step.function.trace(*step.arguments).jaxpr.jaxpr) / mesh.size
    print(
        f"  of a device: {products:.3g} operations of products and convolutions, "
        f"{1e3 * products / device.operations_per_second:.2f} ms at the peak; "
        f"{cost.get('bytes accessed', math.nan):.3g} bytes, loops counted once"
    )
    if cost.get("optimal_seconds", -1) > 0:  # the compiler gives a negative time for some loops
        print(f"  the compiler's estimate: {1e3 * cost['optimal_seconds']:.2f} ms")
    print(f"  collectives in the program: {dict(counts.most_common())}")
    wrong = problems(step, text)
    if used > device.memory:
        wrong.append(f"{used / GIB:.1f} GiB do not fit into {device.memory / GIB:.0f} GiB")
    for message in wrong:
        print(f"  WRONG: {message}")
    return wrong


def main(arguments: list[str]) -> None:
    """Checks the named steps and slices, or all."""
    unknown = set(arguments) - STEPS.keys() - SLICES.keys()
    if unknown:
        sys.exit(f"known are {', '.join([*STEPS, *SLICES])}, got {', '.join(sorted(unknown))}")
    steps = [name for name in STEPS if name in arguments] or list(STEPS)
    slices = [name for name in SLICES if name in arguments] or list(SLICES)
    wrong = [check(*pair) for pair in itertools.product(steps, slices)]
    sys.exit(1 if any(wrong) else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
