"""Cases of `zoo.ordered`: the gates, one ON-LSTM layer, one step of the language model.

A gradient case is a weighted sum of the outputs and its gradient with respect to every float input.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.case import Case, Floor, Program
from benchmarks.cases import on_lstm_programs as programs
from benchmarks.cases.on_lstm_programs import normal, rival
from zoo import ordered


def gradient(forward: Callable[..., Program]) -> Callable[..., Program]:
    """The program whose value is a weighted sum of the outputs, with its gradient."""

    def build(**size: int) -> Program:
        function, inputs = forward(**size)

        def loss(weights: jax.Array, *inputs: Any) -> jax.Array:
            return jnp.vdot(function(*inputs), weights)

        weights = normal(4, *jax.eval_shape(function, *inputs).shape)
        argnums = tuple(range(1, 1 + len(inputs)))
        return jax.value_and_grad(loss, argnums=argnums), (weights, *inputs)

    return build


def both(
    name: str,
    ours: Callable[..., Program],
    in_jax: dict[str, Callable[..., Program]],
    in_torch: dict[str, Callable[..., tuple]],
    floors: dict[str, Callable[..., Floor]],
    **shared: Any,
) -> list[Case]:
    """The forward and the gradient case of one function; rivals in PyTorch are function, arrays."""

    def thunk(build: Callable[..., tuple], forward: bool, **size: int) -> Program:
        function, arrays = build(**size)
        if forward:
            return rival().forward(function, arrays)
        return rival().backward(function, arrays, functools.partial(normal, 4))

    return [
        Case(
            name=f"ordered.{name}{suffix}",
            build=change(ours),
            rivals={rival_name: change(build) for rival_name, build in in_jax.items()}
            | {
                rival_name: functools.partial(thunk, build, not suffix)
                for rival_name, build in in_torch.items()
            },
            floor=floors.get(suffix),
            **shared,
        )
        for suffix, change in (("", lambda build: build), (" gradient", gradient))
    ]


def gate_cases(ours: Callable[..., jax.Array], naive: Callable[..., jax.Array]) -> list[Case]:
    def build(function: Callable[..., jax.Array], *, rows: int, levels: int) -> Program:
        return function, (normal(0, rows, levels),)

    def in_torch(*, rows: int, levels: int) -> tuple:
        return getattr(rival(), ours.__name__), [normal(0, rows, levels)]

    return both(
        ours.__name__,
        functools.partial(build, ours),
        {"naive JAX": functools.partial(build, naive)},
        {"PyTorch": in_torch},
        # An entry costs a difference, an exponential, a share and two running sums.
        {
            "": lambda rows, levels: Floor(5 * rows * levels, 8 * rows * levels),
            " gradient": lambda rows, levels: Floor(15 * rows * levels, 12 * rows * levels),
        },
        sizes={
            "paper step": {"rows": 20, "levels": 115},
            "tall": {"rows": 8192, "levels": 115},
            "wide": {"rows": 1024, "levels": 16384},
        },
        small=("paper step", "tall"),
        equal=("naive JAX", "PyTorch"),
        count=lambda rows, levels: rows * levels,
        unit="entries",
    )


def naive_cumax(x: jax.Array) -> jax.Array:
    return jnp.cumsum(jax.nn.softmax(x), axis=-1)


CASES = [
    *gate_cases(ordered.cumax, naive_cumax),
    *gate_cases(ordered.log_cumax, lambda x: jnp.log(naive_cumax(x))),
    *both(
        "on_lstm",
        functools.partial(programs.layer, programs.our_hidden),
        {
            "naive scan": functools.partial(programs.layer, programs.naive_hidden),
            "products alone (no cell)": functools.partial(
                programs.layer, programs.recurrence_hidden
            ),
            "Flax LSTM": programs.flax_lstm,
        },
        {"PyTorch ON-LSTM": programs.torch_layer, "PyTorch LSTM": programs.torch_lstm},
        {"": programs.layer_floor, " gradient": programs.layer_gradient_floor},
        sizes=programs.SIZES,
        small=("small",),
        equal=("naive scan", "PyTorch ON-LSTM"),
        count=programs.tokens,
        unit="tokens",
    ),
    Case(
        name="ordered.OnLstmLanguageModel gradient",
        sizes=programs.MODEL_SIZES,
        small=("small",),
        build=programs.model_step,
        rivals={"PyTorch": programs.torch_model_step, "Flax LSTM": programs.flax_model_step},
        equal=("PyTorch",),
        count=programs.tokens,
        unit="tokens",
        floor=programs.model_floor,
    ),
]
