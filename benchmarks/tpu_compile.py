"""Compiles training steps for TPU slices on a machine that has none, and says what they need.

    pip install 'zoo[train,data,tpu-aot]'
    python -m benchmarks.tpu_compile                 # every step on every slice
    python -m benchmarks.tpu_compile base v5e-16     # one of them

For each: memory of a device, operations and bytes, collectives, the compiler's own estimate of the
time. It ends with code 1 if a step does not fit, if activations are gathered, or if all layers of a
parameter are gathered at once. Nothing is computed and no array is allocated.
"""

import collections
import dataclasses
import functools
import itertools
import math
import os
import re
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU host to be asked
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh

from experiments.pretraining.config import PRESETS, Config, ModelConfig, ObjectiveConfig
from experiments.pretraining.train import make_loss, make_optimizer, transformer_config
from zoo.training import abstract_state, batch_sharding, functional, make_mesh, make_train_step
from zoo.transformer import Transformer, placement_rules

GIB = 2**30


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


class Step(NamedTuple):
    """What is compiled, and what its shapes mean."""

    function: Callable[..., Any]
    arguments: tuple
    batch: int  # rows of a batch; an array of that many rows is an activation of all devices
    layers: int


def pretraining(config: Config, vocab_size: int, mesh: Mesh) -> Step:
    """The step of `experiments.pretraining`, from shapes alone."""
    length, rows = config.data.length, config.training.batch_size
    model_config = transformer_config(
        config.model, config.objective, vocab_size=vocab_size, length=length
    )
    init, rebuild = functional(lambda rngs: Transformer(model_config, rngs=rngs))
    optimizer = make_optimizer(config.training)
    state = abstract_state(init, optimizer, mesh=mesh, rules=placement_rules(model_config))
    step = make_train_step(
        make_loss(rebuild, config, vocab_size=vocab_size),
        optimizer,
        accumulation_steps=config.training.accumulation_steps,
        compute_dtype=jnp.bfloat16,
        shardings=state.shardings,
    )
    place = batch_sharding(mesh)
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=place)
        for name, shape, dtype in (
            ("ids", (rows, length), jnp.int32),
            ("word_starts", (rows, length), bool),
            ("document_ids", (rows, length), jnp.int32),
            ("row", (rows,), jnp.int32),
        )
    }
    return Step(step, (state, batch), rows, config.model.num_layers)


BASE = PRESETS["base"]
GPT = dataclasses.replace(
    BASE,
    data=dataclasses.replace(BASE.data, length=1024),
    model=ModelConfig(  # 1.3 billion parameters
        features=2048,
        num_layers=24,
        num_heads=16,
        feedforward_features=8192,
        norm_position="pre",
        activation="gelu_tanh",
        initial_scale=0.02,
        remat="full",
    ),
    objective=ObjectiveConfig(kind="causal"),
    training=dataclasses.replace(BASE.training, batch_size=128),
)
STEPS: dict[str, Callable[[Mesh], Step]] = {
    # Vocabularies are rounded up to what the mesh divides.
    "base": functools.partial(pretraining, BASE, 30592),
    "gpt-1.3b": functools.partial(pretraining, GPT, 50304),
}

_COLLECTIVE = re.compile(
    r"= \(?(\w+)\[([\d,]*)\][^=]*? (all-gather|all-reduce|reduce-scatter|all-to-all|"
    r"collective-permute)(?:-start)?\("
)


def collectives(text: str) -> list[tuple[str, str, tuple[int, ...]]]:
    """(kind, dtype, shape of the first result) of every collective of a compiled program.

    >>> collectives("%x = bf16[8,4]{1,0} all-gather(bf16[1,4] %y), channel_id=1")
    [('all-gather', 'bf16', (8, 4))]
    """
    return [
        (kind, dtype, tuple(map(int, filter(None, shape.split(",")))))
        for dtype, shape, kind in _COLLECTIVE.findall(text)
    ]


def problems(step: Step, found: list[tuple[str, str, tuple[int, ...]]]) -> list[str]:
    """Gathers that a sharded step should not have."""
    parameters = step.arguments[0].parameters
    stacked = {
        leaf.shape
        for leaf in jax.tree.leaves(parameters)
        if leaf.ndim > 2  # [layers, in, out, …]
    }
    messages = []
    for kind, dtype, shape in found:
        if kind != "all-gather":
            continue
        if len(shape) >= 3 and shape[0] == step.batch:
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
    used = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )
    found = collectives(compiled.as_text())
    counts = collections.Counter(kind for kind, _, _ in found)
    print(f"{name} on {slice_name} ({mesh.size} devices, fsdp), {size:,} parameters")
    print(f"  traced in {traced - begin:.1f} s, compiled in {seconds:.1f} s")
    print(
        f"  memory of a device: {used / GIB:.2f} GiB of {device.memory / GIB:.0f} "
        f"(state and batch {memory.argument_size_in_bytes / GIB:.2f}, "
        f"temporary {memory.temp_size_in_bytes / GIB:.2f})"
    )
    operations = cost.get("flops", math.nan)
    print(
        f"  of a device: {operations:.3g} operations "
        f"({1e3 * operations / device.operations_per_second:.1f} ms at the peak), "
        f"{cost.get('bytes accessed', math.nan):.3g} bytes"
    )
    if "optimal_seconds" in cost:
        print(f"  the compiler's estimate: {1e3 * cost['optimal_seconds']:.1f} ms")
    print(f"  collectives in the program: {dict(counts.most_common())}")
    wrong = problems(step, found)
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
