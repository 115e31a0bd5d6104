"""Programs of one ON-LSTM layer and of its language model: ours, in JAX, Flax and PyTorch."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from benchmarks.case import Floor, Program
from zoo import ordered
from zoo.extras import require
from zoo.ordered import OnLstmParams


def rival() -> Any:
    """The PyTorch programs, or an ImportError that says what to install."""
    require("torch", "bench")
    from benchmarks.cases import torch_on_lstm

    return torch_on_lstm


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# One layer: B batch, T time, I inputs, D units, C chunk.

SIZES = {
    "small": {"batch": 20, "time": 35, "inputs": 200, "units": 200, "chunk": 10},
    "paper": {"batch": 20, "time": 70, "inputs": 400, "units": 1150, "chunk": 10},
}


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


def our_hidden(params: OnLstmParams, xs: jax.Array, *, chunk_size: int) -> jax.Array:
    return ordered.on_lstm(params, xs, chunk_size=chunk_size).hidden


def naive_hidden(params: OnLstmParams, xs: jax.Array, *, chunk_size: int) -> jax.Array:
    """A scan of the public step: the equations as they stand, all products inside."""
    units = params.recurrent_kernel.shape[0]

    def step(carry: Any, x: jax.Array) -> tuple[Any, jax.Array]:
        carry, _ = ordered.on_lstm_step(params, carry, x, chunk_size=chunk_size)
        return carry, carry.hidden

    zeros = jnp.zeros((xs.shape[1], units))
    carry = ordered.OnLstmCarry(zeros, zeros.reshape(len(zeros), -1, chunk_size))
    return lax.scan(step, carry, xs)[1]


def recurrence_hidden(params: OnLstmParams, xs: jax.Array, *, chunk_size: int) -> jax.Array:
    """No cell at all: the chain of recurrent products that no implementation can avoid."""
    units = params.recurrent_kernel.shape[0]
    columns = params.bias.shape[0]
    projected = jnp.einsum("tbi,ig->tbg", xs, params.input_kernel) + params.bias[None, None]

    def step(hidden: jax.Array, row: jax.Array) -> tuple[jax.Array, jax.Array]:
        gates = row + hidden @ params.recurrent_kernel
        # The largest of the four keeps every column in use.
        hidden = jnp.max(gates[:, columns - 4 * units :].reshape(-1, 4, units), axis=1)
        hidden = 0.1 * hidden + jnp.max(gates[:, : columns - 4 * units], axis=1)[:, None] * 0.1
        return hidden, hidden

    return lax.scan(step, jnp.zeros((xs.shape[1], units)), projected)[1]


def layer(function: Callable[..., jax.Array], *, chunk: int, **size: int) -> Program:
    return functools.partial(function, chunk_size=chunk), layer_inputs(chunk=chunk, **size)


def flax_lstm(**size: int) -> Program:
    cell = nnx.OptimizedLSTMCell(size["inputs"], size["units"], rngs=nnx.Rngs(0))
    graph, params, rest = nnx.split(nnx.RNN(cell, time_major=True), nnx.Param, ...)

    def function(params: Any, xs: jax.Array) -> jax.Array:
        zeros = jnp.zeros((size["batch"], size["units"]))
        return nnx.merge(graph, params, rest)(xs, initial_carry=(zeros, zeros))

    return function, (params, layer_inputs(**size)[1])


def torch_layer(*, chunk: int, **size: int) -> tuple:
    params, xs = layer_inputs(chunk=chunk, **size)
    return functools.partial(rival().on_lstm, chunk_size=chunk), [*params, xs]


def torch_lstm(**size: int) -> tuple:
    layer = rival().Lstm(size["inputs"], size["units"], device=rival().DEVICE)
    return layer, [layer_inputs(**size)[1]]


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


def tokens(*, batch: int, time: int, **_: int) -> int:
    return batch * time


# The language model: mean cross-entropy and its gradient, without dropout.

MODEL_SIZES = {
    "small": {"batch": 20, "time": 35, "vocabulary": 2000, "embed": 100, "units": 200, "depth": 2},
    "paper": {
        **{"batch": 20, "time": 70},
        **{"vocabulary": 10000, "embed": 400, "units": 1150, "depth": 3},
    },
}


def model_inputs(*, batch: int, time: int, vocabulary: int, **_: int) -> np.ndarray:
    text = np.random.default_rng(5).integers(vocabulary, size=(batch, time + 1))
    return text.astype(np.int32)


def our_model(*, vocabulary: int, embed: int, units: int, depth: int) -> Any:
    return ordered.OnLstmLanguageModel(
        vocabulary, embed, units, depth, chunk_size=10, rngs=nnx.Rngs(0)
    )


def widths(**size: int) -> dict[str, int]:
    return {name: size[name] for name in ("vocabulary", "embed", "units", "depth")}


def model_step(**size: int) -> Program:
    return cross_entropy_step(
        our_model(**widths(**size)), lambda model, ids: model(ids).logits, size
    )


def cross_entropy_step(model: Any, read: Callable[..., jax.Array], size: dict[str, int]) -> Program:
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    text = model_inputs(**size)

    def loss(params: Any, ids: jax.Array, targets: jax.Array) -> jax.Array:
        logits = read(nnx.merge(graph, params, rest), ids)
        likelihoods = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)
        return -jnp.mean(likelihoods)

    return jax.value_and_grad(loss), (params, text[:, :-1], text[:, 1:])


class FlaxLanguageModel(nnx.Module):
    """Flax's own parts in the same stack: plain LSTMs, of 5 % fewer columns, and tied words."""

    def __init__(self, *, vocabulary: int, embed: int, units: int, depth: int):
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


def flax_model_step(**size: int) -> Program:
    model = FlaxLanguageModel(**widths(**size))
    return cross_entropy_step(model, lambda model, ids: model(ids), size)


def torch_model_step(**size: int) -> Program:
    text = model_inputs(**size)
    params = jax.tree.leaves(nnx.state(our_model(**widths(**size)), nnx.Param))
    return rival().language_model_backward(params, text[:, :-1], text[:, 1:], chunk_size=10)


def model_floor(
    *, batch: int, time: int, vocabulary: int, embed: int, units: int, depth: int
) -> Floor:
    operations, moved = 3 * 2 * batch * time * embed * vocabulary, 8 * embed * vocabulary
    for inputs, outputs in itertools.pairwise([embed, *[units] * (depth - 1), embed]):
        size = {"batch": batch, "time": time, "inputs": inputs, "units": outputs, "chunk": 10}
        one = layer_gradient_floor(**size)
        operations, moved = operations + one.operations, moved + one.bytes
    return Floor(operations, moved)
