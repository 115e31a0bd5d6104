"""Cases of `zoo.ordered`: the gates, one ON-LSTM layer, one step of the language model.

A gradient case is a weighted sum of the outputs and its gradient with respect to every float input.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.case import Case, Floor, Program
from benchmarks.cases import on_lstm_programs as layers
from benchmarks.cases.on_lstm_programs import normal, rival
from zoo import ordered

# Gates: x [rows, levels], or with its weights for a gradient.


def gate(function: Callable[[jax.Array], jax.Array], *, rows: int, levels: int) -> Program:
    return function, (normal(0, rows, levels),)


def gate_gradient(function: Callable[[jax.Array], jax.Array], *, rows: int, levels: int) -> Program:
    def loss(x: jax.Array, weights: jax.Array) -> jax.Array:
        return jnp.vdot(function(x), weights)

    return jax.value_and_grad(loss), (normal(0, rows, levels), normal(1, rows, levels))


def torch_gate(name: str, *, rows: int, levels: int) -> Program:
    return rival().forward(getattr(rival(), name), [normal(0, rows, levels)])


def torch_gate_gradient(name: str, *, rows: int, levels: int) -> Program:
    (weights,) = rival().tensors([normal(1, rows, levels)], gradients=False)
    function = getattr(rival(), name)
    return rival().backward(lambda x: (function(x) * weights).sum(), [normal(0, rows, levels)])


def naive_cumax(x: jax.Array) -> jax.Array:
    return jnp.cumsum(jax.nn.softmax(x), axis=-1)


def naive_log_cumax(x: jax.Array) -> jax.Array:
    return jnp.log(naive_cumax(x))


def gate_cases(ours: Callable[..., jax.Array], naive: Callable[..., jax.Array]) -> list[Case]:
    name = ours.__name__
    partial = functools.partial
    shared: dict[str, Any] = {
        "sizes": {
            "paper step": {"rows": 20, "levels": 115},
            "tall": {"rows": 8192, "levels": 115},
            "wide": {"rows": 1024, "levels": 16384},
        },
        "small": ("paper step", "tall"),
        "equal": ("naive JAX", "PyTorch"),
        "count": lambda rows, levels: rows * levels,
        "unit": "entries",
    }
    # An entry costs a difference, an exponential, a share and two running sums.
    forward = Case(
        name=f"ordered.{name}",
        build=partial(gate, ours),
        rivals={"naive JAX": partial(gate, naive), "PyTorch": partial(torch_gate, name)},
        floor=lambda rows, levels: Floor(5 * rows * levels, 8 * rows * levels),
        **shared,
    )
    gradient = Case(
        name=f"ordered.{name} gradient",
        build=partial(gate_gradient, ours),
        rivals={
            "naive JAX": partial(gate_gradient, naive),
            "PyTorch": partial(torch_gate_gradient, name),
        },
        floor=lambda rows, levels: Floor(15 * rows * levels, 12 * rows * levels),
        **shared,
    )
    return [forward, gradient]


CASES = [
    *gate_cases(ordered.cumax, naive_cumax),
    *gate_cases(ordered.log_cumax, naive_log_cumax),
    Case(
        name="ordered.on_lstm",
        sizes=layers.SIZES,
        small=("small",),
        build=functools.partial(layers.layer, layers.our_hidden),
        rivals={
            "naive scan": functools.partial(layers.layer, layers.naive_hidden),
            "products alone (no cell)": functools.partial(layers.layer, layers.recurrence_hidden),
            "Flax LSTM": layers.flax_lstm,
            "PyTorch ON-LSTM": layers.torch_layer,
            "PyTorch LSTM": layers.torch_lstm,
        },
        equal=("naive scan", "PyTorch ON-LSTM"),
        count=layers.tokens,
        unit="tokens",
        floor=layers.layer_floor,
    ),
    Case(
        name="ordered.on_lstm gradient",
        sizes=layers.SIZES,
        small=("small",),
        build=functools.partial(layers.layer_gradient, layers.our_hidden),
        rivals={
            "naive scan": functools.partial(layers.layer_gradient, layers.naive_hidden),
            "Flax LSTM": layers.flax_lstm_gradient,
            "PyTorch ON-LSTM": layers.torch_layer_gradient,
            "PyTorch LSTM": layers.torch_lstm_gradient,
        },
        equal=("naive scan", "PyTorch ON-LSTM"),
        count=layers.tokens,
        unit="tokens",
        floor=layers.layer_gradient_floor,
    ),
    Case(
        name="ordered.OnLstmLanguageModel gradient",
        sizes=layers.MODEL_SIZES,
        small=("small",),
        build=layers.model_step,
        rivals={"PyTorch": layers.torch_model_step, "Flax LSTM": layers.flax_model_step},
        equal=("PyTorch",),
        count=layers.tokens,
        unit="tokens",
        floor=layers.model_floor,
    ),
]
