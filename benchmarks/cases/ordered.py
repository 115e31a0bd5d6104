"""Cases of `zoo.ordered`: the gates, one ON-LSTM layer, one step of the language model.

A gradient case is a weighted sum of the outputs and its gradient with respect to every float input.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from zoo import ordered
from zoo.ordered import OnLstmParams

from ..case import (
    Case,
    Floor,
    Program,
    Rival,
    forward_and_gradient,
    make_case,
    normal,
    torch_programs,
)


def naive_cumax(x: jax.Array) -> jax.Array:
    return jnp.cumsum(jax.nn.softmax(x), axis=-1)


def gate_cases(ours: Callable[..., jax.Array], naive: Callable[..., jax.Array]) -> list[Case]:
    return forward_and_gradient(
        f"ordered.{ours.__name__}",
        ours,
        {"naive JAX": naive, "PyTorch": ours.__name__},
        lambda rows, levels: [normal(0, rows, levels)],
        sizes={
            "paper step": {"rows": 20, "levels": 115},
            "tall": {"rows": 8192, "levels": 115},
            "wide": {"rows": 1024, "levels": 16384},
        },
        small=("paper step", "tall"),
        count=lambda rows, levels: rows * levels,
        unit="entries",
    )


# One layer: B batch, T time, I inputs, D units, C chunk.


def layer_inputs(
    *, batch: int, time: int, inputs: int, units: int, chunk: int
) -> tuple[OnLstmParams, np.ndarray]:
    columns = 4 * units + 2 * (units // chunk)
    params = OnLstmParams(
        normal(0, inputs, columns) * inputs**-0.5,
        normal(1, units, columns) * units**-0.5,
        normal(2, columns) * units**-0.5,
    )
    return params, normal(3, time, batch, inputs)


def our_hidden(params: OnLstmParams, xs: jax.Array, *, chunk: int) -> jax.Array:
    return ordered.on_lstm(params, xs, chunk_size=chunk).hidden


def naive_hidden(params: OnLstmParams, xs: jax.Array, *, chunk: int) -> jax.Array:
    """A scan of the public step: the equations as they stand, all products inside."""
    units = params.recurrent_kernel.shape[0]

    def step(carry: Any, x: jax.Array) -> tuple[Any, jax.Array]:
        carry, _ = ordered.on_lstm_step(params, carry, x, chunk_size=chunk)
        return carry, carry.hidden

    zeros = jnp.zeros((xs.shape[1], units))
    carry = ordered.OnLstmCarry(zeros, zeros.reshape(len(zeros), -1, chunk))
    return lax.scan(step, carry, xs)[1]


def recurrence_hidden(params: OnLstmParams, xs: jax.Array, *, chunk: int) -> jax.Array:
    """No cell at all: the chain of recurrent products that no implementation can avoid."""
    units = params.recurrent_kernel.shape[0]
    masters = 2 * (units // chunk)
    projected = jnp.einsum("tbi,ig->tbg", xs, params.input_kernel) + params.bias[None, None]

    def step(hidden: jax.Array, row: jax.Array) -> tuple[jax.Array, jax.Array]:
        gates = row + hidden @ params.recurrent_kernel
        # The largest of the four keeps every column in use.
        hidden = jnp.max(gates[:, masters:].reshape(-1, 4, units), axis=1)
        hidden = 0.1 * hidden + jnp.max(gates[:, :masters], axis=1)[:, None] * 0.1
        return hidden, hidden

    return lax.scan(step, jnp.zeros((xs.shape[1], units)), projected)[1]


@functools.cache
def flax_layer(inputs: int, units: int) -> Any:
    """Graph, parameters and the rest of a plain LSTM of Flax."""
    cell = nnx.OptimizedLSTMCell(inputs, units, rngs=nnx.Rngs(0))
    return nnx.split(nnx.RNN(cell, time_major=True), nnx.Param, ...)


def flax_inputs(**size: int) -> tuple[Any, np.ndarray]:
    return flax_layer(size["inputs"], size["units"])[1], layer_inputs(**size)[1]


def flax_hidden(params: Any, xs: jax.Array, *, inputs: int, units: int) -> jax.Array:
    graph, _, rest = flax_layer(inputs, units)
    zeros = jnp.zeros((xs.shape[1], units))
    return nnx.merge(graph, params, rest)(xs, initial_carry=(zeros, zeros))


def layer_floor(*, batch: int, time: int, inputs: int, units: int, chunk: int) -> Floor:
    """The matrix products; parameters, inputs and hidden states touched once."""
    columns = 4 * units + 2 * (units // chunk)
    operations = 2 * time * batch * (inputs + units) * columns
    numbers = (inputs + units + 1) * columns + time * batch * (inputs + units)
    return Floor(operations, 4 * numbers)


def layer_gradient_floor(**size: int) -> Floor:
    """Two more products for each; gradients are written beside what they belong to."""
    forward = layer_floor(**size)
    return Floor(3 * forward.operations, 2 * forward.bytes)


def layer_case(*, gradient: bool) -> Case:
    widths = ("inputs", "units")
    bare = {} if gradient else {"products alone (no cell)": recurrence_hidden}
    return make_case(
        "ordered.on_lstm",
        our_hidden,
        {
            "naive scan": naive_hidden,
            **bare,
            "Flax LSTM": Rival(flax_hidden, flax_inputs, widths),
            "PyTorch ON-LSTM": "on_lstm",
            "PyTorch LSTM": Rival("Lstm", lambda **size: layer_inputs(**size)[1:], widths),
        },
        layer_inputs,
        gradient=gradient,
        argnums=(0, 1),
        options=("chunk",),
        sizes={
            "small": {"batch": 20, "time": 35, "inputs": 200, "units": 200, "chunk": 10},
            "paper": {"batch": 20, "time": 70, "inputs": 400, "units": 1150, "chunk": 10},
        },
        equal=("naive scan", "PyTorch ON-LSTM"),
        count=lambda batch, time, **_: batch * time,
        unit="tokens",
        floor=layer_gradient_floor if gradient else layer_floor,
    )


# The language model: mean cross-entropy and its gradient, without dropout.


class FlaxLanguageModel(nnx.Module):
    """Flax's own parts in the same stack: plain LSTMs, of 5 % fewer columns, and tied words."""

    def __init__(self, vocabulary: int, embed: int, units: int, depth: int):
        rngs = nnx.Rngs(0)
        self.embedding = nnx.Embed(vocabulary, embed, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros(vocabulary))
        self.layers = nnx.List(
            nnx.RNN(nnx.OptimizedLSTMCell(inputs, outputs, rngs=rngs), time_major=True)
            for inputs, outputs in itertools.pairwise([embed, *[units] * (depth - 1), embed])
        )

    def __call__(self, ids: jax.Array) -> jax.Array:
        """Logits ``[B, T, V]``."""
        xs = self.embedding(ids.T)
        for layer in self.layers:
            zeros = jnp.zeros((ids.shape[0], layer.cell.hidden_features))
            xs = layer(xs, initial_carry=(zeros, zeros))
        return self.embedding.attend(xs.swapaxes(0, 1)) + self.bias[...][None, None]


def our_model(*widths: int) -> nnx.Module:
    return ordered.OnLstmLanguageModel(*widths, chunk_size=10, rngs=nnx.Rngs(0))


def text(*, batch: int, time: int, vocabulary: int, **_: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids, and those that follow them."""
    ids = np.random.default_rng(5).integers(vocabulary, size=(batch, time + 1)).astype(np.int32)
    return ids[:, :-1], ids[:, 1:]


def model_gradient(make: Callable[..., Any], **size: int) -> Program:
    graph, params, rest = nnx.split(make(*(size[name] for name in WIDTHS)), nnx.Param, ...)

    def loss(params: Any, ids: jax.Array, targets: jax.Array) -> jax.Array:
        output = nnx.merge(graph, params, rest)(ids)
        likelihoods = jax.nn.log_softmax(getattr(output, "logits", output))
        return -jnp.mean(jnp.take_along_axis(likelihoods, targets[..., None], axis=-1))

    return jax.value_and_grad(loss), (params, *text(**size))


def torch_model_gradient(**size: int) -> Program:
    model = our_model(*(size[name] for name in WIDTHS))
    params = jax.tree.leaves(nnx.state(model, nnx.Param))
    return torch_programs().backward(torch_programs().language_model, (params, *text(**size)))


WIDTHS = ("vocabulary", "embed", "units", "depth")
SMALL = {"batch": 20, "time": 35, "vocabulary": 2000, "embed": 100, "units": 200, "depth": 2}
PAPER = {"batch": 20, "time": 70, "vocabulary": 10000, "embed": 400, "units": 1150, "depth": 3}
CASES = [
    *gate_cases(ordered.cumax, naive_cumax),
    *gate_cases(ordered.log_cumax, lambda x: jnp.log(naive_cumax(x))),
    layer_case(gradient=False),
    layer_case(gradient=True),
    Case(
        name="ordered.OnLstmLanguageModel gradient",
        sizes={"small": SMALL, "paper": PAPER},
        small=("small",),
        build=functools.partial(model_gradient, our_model),
        rivals={
            "PyTorch": torch_model_gradient,
            "Flax LSTM": functools.partial(model_gradient, FlaxLanguageModel),
        },
        equal=("PyTorch",),
        count=lambda batch, time, **_: batch * time,
        unit="tokens",
    ),
]
