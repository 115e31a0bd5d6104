"""Cases of `zoo.averaging`: the average alone, and what it adds to a step of training.

A step alone has no floor but its memory traffic: parameters, updates and the average are read, the
average is written. «Adam» is the step without an average, so that `x zoo` below 1 is the overhead.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.case import Case, Floor, Program
from zoo.averaging import (
    average_init,
    lookahead,
    parameter_ema,
    post_hoc_average,
    power_law_ema,
    stochastic_weight_average,
)
from zoo.averaging.power import post_hoc_weights

DECAY = 0.999


def tree(seed: int, *, layers: int, units: int) -> dict[str, jax.Array]:
    """Square kernels and biases, as of a multi-layer perceptron."""
    generator = np.random.default_rng(seed)
    shapes = {f"kernel {i}": (units, units) for i in range(layers)}
    shapes |= {f"bias {i}": (units,) for i in range(layers)}
    scale = 1 / np.sqrt(units)
    return {
        name: jnp.asarray(scale * generator.normal(size=shape), jnp.float32)
        for name, shape in shapes.items()
    }


def entries(*, layers: int, units: int, **_: int) -> int:
    return layers * (units**2 + units)


# The average alone: (updates, average, parameters) -> average.


def alone(make: Callable[[], optax.GradientTransformation], **size: int) -> Program:
    transformation = make()

    def step(updates: Any, average: Any, parameters: Any) -> Any:
        # Debiased averages in the middle of a run, so that every program computes the same.
        state = average_init(average)._replace(
            steps=jnp.int32(10), weight=jnp.float32(1 - DECAY**10)
        )
        return transformation.update(updates, state, parameters)[1].average

    return step, (tree(0, **size), tree(1, **size), tree(2, **size))


def optax_ema(**size: int) -> Program:
    """``optax.ema`` averages what it is given: here the parameters, as its user must know."""
    rival = optax.ema(DECAY)

    def step(updates: Any, average: Any, parameters: Any) -> Any:
        biased = jax.tree.map(lambda leaf: leaf * (1 - DECAY**10), average)
        state = optax.EmaState(count=jnp.int32(10), ema=biased)
        return rival.update(optax.apply_updates(parameters, updates), state)[0]

    return step, (tree(0, **size), tree(1, **size), tree(2, **size))


def incremental_update(**size: int) -> Program:
    """Optax's helper for target networks, with the gain of a debiased average by hand."""
    gain = (1 - DECAY) / (1 - DECAY**11)

    def step(updates: Any, average: Any, parameters: Any) -> Any:
        new = optax.apply_updates(parameters, updates)
        return optax.incremental_update(new, average, gain)

    return step, (tree(0, **size), tree(1, **size), tree(2, **size))


def torch_average(**size: int) -> Program:
    try:
        import torch
        from torch.optim.swa_utils import get_ema_multi_avg_fn
    except ImportError as error:
        raise ImportError("torch") from error
    leaves = [
        [torch.tensor(np.asarray(leaf)) for leaf in tree(seed, **size).values()]
        for seed in range(3)
    ]
    gain = (1 - DECAY) / (1 - DECAY**11)
    update = get_ema_multi_avg_fn(1 - gain)

    def run() -> dict[str, np.ndarray]:
        with torch.no_grad():
            # A copy, as our program returns a new average too.
            average = [leaf.clone() for leaf in leaves[1]]
            update(average, torch._foreach_add(leaves[2], leaves[0]), 10)
        return dict(zip(tree(0, **size), (leaf.numpy() for leaf in average), strict=True))

    return run


# A step of training with the average in the optimiser.


def loss(parameters: Any, x: jax.Array) -> jax.Array:
    for name in [name for name in parameters if name.startswith("kernel")]:
        x = jnp.tanh(x @ parameters[name] + parameters[name.replace("kernel", "bias")][None])
    return jnp.mean(x**2)


def training(optimizer: optax.GradientTransformation, *, rows: int, **size: int) -> Program:
    parameters = tree(0, **size)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(rows, size["units"])), jnp.float32)

    def step(parameters: Any, state: Any, x: jax.Array) -> Any:
        updates, state = optimizer.update(jax.grad(loss)(parameters, x), state, parameters)
        return optax.apply_updates(parameters, updates), state

    return step, (parameters, optimizer.init(parameters), x)


def with_average(average: optax.GradientTransformation, **size: int) -> Program:
    return training(optax.chain(optax.adam(1e-3), average), **size)


def by_hand(**size: int) -> Program:
    """Adam, and after it ``optax.incremental_update`` of a tree carried beside the state."""
    (step, (parameters, state, x)) = training(optax.adam(1e-3), **size)

    def averaging(parameters: Any, state: Any, average: Any, x: jax.Array) -> Any:
        parameters, state = step(parameters, state, x)
        return parameters, state, optax.incremental_update(parameters, average, 1 - DECAY)

    return averaging, (parameters, state, tree(2, **_tree_size(size)), x)


def _tree_size(size: dict[str, int]) -> dict[str, int]:
    return {name: size[name] for name in ("layers", "units")}


def optax_lookahead(**size: int) -> Program:
    (_, (parameters, _, x)) = training(optax.adam(1e-3), **size)
    optimizer = optax.lookahead(optax.adam(1e-3), sync_period=5, slow_step_size=0.5)
    pair = optax.LookaheadParams.init_synced(parameters)

    def step(pair: Any, state: Any, x: jax.Array) -> Any:
        updates, state = optimizer.update(jax.grad(loss)(pair.fast, x), state, pair)
        return optax.apply_updates(pair, updates), state

    return step, (pair, optimizer.init(pair), x)


# Reconstruction from stored averages.


def stored(*, snapshots: int, **size: int) -> tuple[list[Any], list[int], list[float]]:
    averages = [tree(seed, **size) for seed in range(2 * snapshots)]
    steps = [100 * step for step in range(1, snapshots + 1) for _ in range(2)]
    return averages, steps, [0.05, 0.1] * snapshots


def reconstruction(**size: int) -> Program:
    averages, steps, widths = stored(**size)

    def combine(averages: list[Any]) -> Any:
        return post_hoc_average(averages, steps, widths, relative_std=0.15)

    return combine, (averages,)


def stack_and_contract(**size: int) -> Program:
    """All averages side by side, then one product: twice the memory."""
    averages, steps, widths = stored(**size)
    weights = post_hoc_weights(steps, widths, step=steps[-1], relative_std=0.15)
    weights = jnp.asarray(weights, jnp.float32)

    def combine(averages: list[Any]) -> Any:
        return jax.tree.map(
            lambda *leaves: jnp.tensordot(weights, jnp.stack(leaves), axes=1), *averages
        )

    return combine, (averages,)


ALONE: dict[str, Any] = {
    "sizes": {
        "small": {"layers": 8, "units": 128},
        "4 M": {"layers": 4, "units": 1024},
        "100 M": {"layers": 24, "units": 2048},
    },
    "small": ("small", "4 M"),
    "count": entries,
    "unit": "parameters",
    # Added, subtracted, scaled, added; three arrays read, one written.
    "floor": lambda **size: Floor(4 * entries(**size), 16 * entries(**size)),
}
STEP: dict[str, Any] = {
    "sizes": {
        "small": {"layers": 4, "units": 256, "rows": 256},
        "wide": {"layers": 4, "units": 1024, "rows": 1024},
        "large": {"layers": 24, "units": 2048, "rows": 4096},
    },
    "small": ("small", "wide"),
    "count": lambda rows, **_: rows,
    "unit": "rows",
}
NO_AVERAGE = {"Adam, no average": functools.partial(training, optax.adam(1e-3))}

CASES = [
    Case(
        name="averaging.parameter_ema",
        build=functools.partial(alone, functools.partial(parameter_ema, DECAY)),
        rivals={
            "optax.ema": optax_ema,
            "incremental_update": incremental_update,
            "PyTorch swa_utils": torch_average,
        },
        equal=("optax.ema", "incremental_update", "PyTorch swa_utils"),
        **ALONE,
    ),
    Case(
        name="averaging.parameter_ema training step",
        build=functools.partial(with_average, parameter_ema(DECAY)),
        rivals=NO_AVERAGE | {"incremental_update": by_hand},
        **STEP,
    ),
    Case(
        name="averaging.parameter_ema every=10 training step",
        build=functools.partial(with_average, parameter_ema(DECAY, every=10)),
        rivals=NO_AVERAGE,
        **STEP,
    ),
    Case(
        name="averaging.power_law_ema training step",
        build=functools.partial(with_average, power_law_ema(0.1)),
        rivals=NO_AVERAGE,
        **STEP,
    ),
    Case(
        name="averaging.stochastic_weight_average training step",
        build=functools.partial(with_average, stochastic_weight_average(start_step=0)),
        rivals=NO_AVERAGE,
        **STEP,
    ),
    Case(
        name="averaging.lookahead training step",
        build=functools.partial(with_average, lookahead(sync_period=5)),
        rivals=NO_AVERAGE | {"optax.lookahead": optax_lookahead},
        **STEP,
    ),
    Case(
        name="averaging.post_hoc_average",
        sizes={
            "small": {"layers": 8, "units": 128, "snapshots": 10},
            "1 M": {"layers": 4, "units": 512, "snapshots": 20},
        },
        small=("small", "1 M"),
        build=reconstruction,
        rivals={"stack and contract": stack_and_contract},
        equal=("stack and contract",),
        count=lambda snapshots, **size: 2 * snapshots * entries(**size),
        unit="parameters",
        floor=lambda snapshots, **size: Floor(
            4 * snapshots * entries(**size), 4 * (2 * snapshots + 1) * entries(**size)
        ),
    ),
]
