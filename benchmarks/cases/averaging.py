"""Cases of `zoo.averaging`: the average alone, and what it adds to a step of training.

A step alone has no floor but its memory traffic: parameters, updates and the average are read, the
average is written. "Adam" is the step without an average, so that `x zoo` below 1 is the overhead.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from zoo.averaging import (
    average_init,
    lookahead,
    parameter_ema,
    post_hoc_average,
    power_law_ema,
    stochastic_weight_average,
)
from zoo.averaging.power import post_hoc_weights

from ..case import Case, Floor, Program, make_case

DECAY = 0.999
GAIN = (1 - DECAY) / (1 - DECAY**11)  # of the eleventh term of a debiased average


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


# The average alone, after ten terms: (updates, average, parameters) -> average.


def trees(**size: int) -> list[Any]:
    return [tree(seed, **size) for seed in range(3)]


def zoo_ema(updates: Any, average: Any, parameters: Any) -> Any:
    weight = jnp.float32(1 - DECAY**10)
    state = average_init(average)._replace(steps=jnp.int32(10), weight=weight)
    return parameter_ema(DECAY).update(updates, state, parameters)[1].average


def optax_ema(updates: Any, average: Any, parameters: Any) -> Any:
    """``optax.ema`` averages what it is given: here the parameters, as its user must know."""
    biased = jax.tree.map(lambda leaf: leaf * (1 - DECAY**10), average)
    state = optax.EmaState(count=jnp.int32(10), ema=biased)
    return optax.ema(DECAY).update(optax.apply_updates(parameters, updates), state)[0]


def incremental_update(updates: Any, average: Any, parameters: Any) -> Any:
    """Optax's helper for target networks, with the gain of a debiased average by hand."""
    return optax.incremental_update(optax.apply_updates(parameters, updates), average, GAIN)


def nnx_ema(updates: Any, average: Any, parameters: Any) -> Any:
    """Flax's own, of variables, with the gain of a debiased average by hand."""
    ema = nnx.EMA(jax.tree.map(nnx.Param, average), decay=1 - GAIN)
    ema.update(jax.tree.map(nnx.Param, optax.apply_updates(parameters, updates)))
    return jax.tree.map(lambda leaf: leaf[...], nnx.to_pure_dict(ema.params))


# A step of training with the average in the optimiser.

ADAM = optax.adam(1e-3)


def loss(parameters: Any, x: jax.Array) -> jax.Array:
    for name in [name for name in parameters if name.startswith("kernel")]:
        x = jnp.tanh(x @ parameters[name] + parameters[name.replace("kernel", "bias")][None])
    return jnp.mean(x**2)


def training(*optimizers: optax.GradientTransformation, rows: int, **size: int) -> Program:
    optimizer, parameters = optax.chain(*optimizers), tree(0, **size)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(rows, size["units"])), jnp.float32)

    def step(parameters: Any, state: Any, x: jax.Array) -> Any:
        updates, state = optimizer.update(jax.grad(loss)(parameters, x), state, parameters)
        return optax.apply_updates(parameters, updates), state

    return step, (parameters, optimizer.init(parameters), x)


def by_hand(*, rows: int, **size: int) -> Program:
    """Adam, and after it ``optax.incremental_update`` of a tree carried beside the state."""
    step, (parameters, state, x) = training(ADAM, rows=rows, **size)

    def averaging(parameters: Any, state: Any, average: Any, x: jax.Array) -> Any:
        parameters, state = step(parameters, state, x)
        return parameters, state, optax.incremental_update(parameters, average, 1 - DECAY)

    return averaging, (parameters, state, tree(2, **size), x)


def optax_lookahead(**size: int) -> Program:
    _, (parameters, _, x) = training(ADAM, **size)
    optimizer = optax.lookahead(ADAM, sync_period=5, slow_step_size=0.5)
    pair = optax.LookaheadParams.init_synced(parameters)

    def step(pair: Any, state: Any, x: jax.Array) -> Any:
        updates, state = optimizer.update(jax.grad(loss)(pair.fast, x), state, pair)
        return optax.apply_updates(pair, updates), state

    return step, (pair, optimizer.init(pair), x)


def step_case(name: str, average: optax.GradientTransformation, **rivals: Any) -> Case:
    return Case(
        name=f"averaging.{name} training step",
        build=functools.partial(training, ADAM, average),
        rivals={"Adam, no average": functools.partial(training, ADAM), **rivals},
        sizes={
            "small": {"layers": 4, "units": 256, "rows": 256},
            "wide": {"layers": 4, "units": 1024, "rows": 1024},
            "large": {"layers": 24, "units": 2048, "rows": 4096},
        },
        small=("small", "wide"),
        count=lambda rows, **_: rows,
        unit="rows",
    )


# Reconstruction from stored averages.


def snapshots(*, snapshots: int, **size: int) -> list[Any]:
    return [[tree(seed, **size) for seed in range(2 * snapshots)]]


def reconstruct(averages: list[Any], *, stacked: bool = False) -> Any:
    """Ours, or all averages side by side and one product, which takes twice the memory."""
    count = len(averages) // 2
    steps = [100 * step for step in range(1, count + 1) for _ in range(2)]
    widths = [0.05, 0.1] * count
    if not stacked:
        return post_hoc_average(averages, steps, widths, relative_std=0.15)
    weights = post_hoc_weights(steps, widths, step=steps[-1], relative_std=0.15)
    weights = jnp.asarray(weights, jnp.float32)
    return jax.tree.map(lambda *x: jnp.tensordot(weights, jnp.stack(x), axes=1), *averages)


CASES = [
    make_case(
        "averaging.parameter_ema",
        zoo_ema,
        {
            "optax.ema": optax_ema,
            "incremental_update": incremental_update,
            "nnx.EMA": nnx_ema,
            "PyTorch swa_utils": "swa_utils",
        },
        trees,
        sizes={
            "small": {"layers": 8, "units": 128},
            "4 M": {"layers": 4, "units": 1024},
            "100 M": {"layers": 24, "units": 2048},
        },
        small=("small", "4 M"),
        count=entries,
        unit="parameters",
        # Added, subtracted, scaled, added; three arrays read, one written.
        floor=lambda **size: Floor(4 * entries(**size), 16 * entries(**size)),
    ),
    step_case("parameter_ema", parameter_ema(DECAY), incremental_update=by_hand),
    step_case("parameter_ema every=10", parameter_ema(DECAY, every=10)),
    step_case("power_law_ema", power_law_ema(0.1)),
    step_case("stochastic_weight_average", stochastic_weight_average(start_step=0)),
    step_case("lookahead", lookahead(sync_period=5), **{"optax.lookahead": optax_lookahead}),
    make_case(
        "averaging.post_hoc_average",
        reconstruct,
        {"stack and contract": functools.partial(reconstruct, stacked=True)},
        snapshots,
        sizes={
            "small": {"layers": 8, "units": 128, "snapshots": 10},
            "1 M": {"layers": 4, "units": 512, "snapshots": 20},
        },
        small=("small", "1 M"),
        count=lambda snapshots, **size: 2 * snapshots * entries(**size),
        unit="parameters",
    ),
]
