"""Compiles training steps for TPU slices on a machine that has none, and says what they need.

    pip install 'zoo[train,data,tpu-aot]'
    python -m benchmarks.tpu_compile                 # every step on every slice
    python -m benchmarks.tpu_compile base v5e-16     # one of them

For each: memory of a device, operations and bytes, collectives, the compiler's own estimate of the
time. It ends with code 1 if a step does not fit, if activations are gathered, if all layers of a
parameter are gathered at once, or if a large one is whole on every device. Nothing is computed and
no array is allocated.
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
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU host to be asked
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # or a file in /tmp locks out the next run
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import optax
from jax.experimental import topologies
from jax.sharding import Mesh

from experiments.on_lstm_language_model import config as on_lstm_config
from experiments.on_lstm_language_model import train as on_lstm_train
from experiments.pretraining.config import PRESETS, Config, ModelConfig, ObjectiveConfig
from experiments.pretraining.train import make_loss, make_optimizer, transformer_config
from zoo.ordered import OnLstmLanguageModel
from zoo.training import (
    Rules,
    abstract_state,
    batch_sharding,
    functional,
    make_mesh,
    make_train_step,
    path_name,
)
from zoo.transformer import Transformer, placement_rules

GIB = 2**30
SMALL = 0.01  # share of all parameters that a matrix may have and yet be kept whole


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
    shared: bool  # whether the devices share out the parameters


def training_step(
    mesh: Mesh,
    init_parameters: Callable,
    loss_fn: Callable,
    optimizer: optax.GradientTransformation,
    batch: Mapping[str, tuple[tuple[int, ...], Any]],
    *,
    rules: Rules = (),
    carry: Any = (),
    init_model_state: Callable | None = None,
    **options: Any,
) -> Step:
    """The step of an experiment from shapes alone; ``batch`` is name -> (shape, dtype)."""
    state = abstract_state(
        init_parameters,
        optimizer,
        mesh=mesh,
        rules=rules,
        carry=carry,
        init_model_state=init_model_state,
    )
    step = make_train_step(loss_fn, optimizer, shardings=state.shardings, **options)
    place = batch_sharding(mesh)
    arrays = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=place)
        for name, (shape, dtype) in batch.items()
    }
    rows = next(iter(arrays.values())).shape[0] // options.get("accumulation_steps", 1)
    return Step(step, (state, arrays), rows, bool(rules))


def pretraining(config: Config, vocab_size: int, mesh: Mesh) -> Step:
    """Of `experiments.pretraining`."""
    length, rows = config.data.length, config.training.batch_size
    model_config = transformer_config(
        config.model, config.objective, vocab_size=vocab_size, length=length
    )
    init, rebuild = functional(lambda rngs: Transformer(model_config, rngs=rngs))
    return training_step(
        mesh,
        init,
        make_loss(rebuild, config, vocab_size=vocab_size),
        make_optimizer(config.training),
        {
            "ids": ((rows, length), jnp.int32),
            "word_starts": ((rows, length), bool),
            "document_ids": ((rows, length), jnp.int32),
            "row": ((rows,), jnp.int32),
        },
        rules=placement_rules(model_config),
        accumulation_steps=config.training.accumulation_steps,
        compute_dtype=jnp.bfloat16,
    )


def ordered_language_model(mesh: Mesh) -> Step:
    """Of `experiments.on_lstm_language_model`, on the vocabulary of the Penn Treebank."""
    config = on_lstm_config.PRESETS["penn_treebank"]
    rows, length, vocab_size = 8 * mesh.size, config.training.num_steps, 10_000
    init, rebuild = functional(
        lambda rngs: OnLstmLanguageModel(vocab_size, **dataclasses.asdict(config.model), rngs=rngs)
    )
    return training_step(
        mesh,
        init,
        on_lstm_train.make_loss(rebuild, config.training),
        on_lstm_train.make_optimizer(config.training, 1000, None),
        {
            "inputs": ((rows, length), jnp.int32),
            "targets": ((rows, length), jnp.int32),
            "valid": ((rows, length), bool),
            "start": ((rows,), bool),
        },
        rules=on_lstm_train.RULES,
        carry=on_lstm_train.local_carries(rebuild, init, rows),
        compute_dtype=jnp.bfloat16,
    )


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
    "on-lstm": ordered_language_model,
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


def problems(step: Step, text: str) -> list[str]:
    """What a step that shares out its parameters should not do, and this program does."""
    parameters = step.arguments[0].parameters
    leaves = jax.tree.leaves_with_path(parameters)
    total = sum(leaf.size for _, leaf in leaves)
    messages = [
        f"{path_name(path)} {list(leaf.shape)} is whole on every device"
        for path, leaf in leaves
        if step.shared
        and path_name(path).endswith(("kernel", "embedding"))
        and leaf.sharding.is_fully_replicated
        and leaf.size > SMALL * total
    ]
    stacked = {leaf.shape for _, leaf in leaves if leaf.ndim > 2}  # [layers, in, out, …]
    for kind, dtype, shape in collectives(text):
        if kind != "all-gather" or dtype[0] not in "bf":  # ids of tokens may go anywhere
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
    used = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )
    text = compiled.as_text()
    counts = collections.Counter(kind for kind, _, _ in collectives(text))
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
