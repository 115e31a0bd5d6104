"""Parameters of the original ON-LSTM language model, from plain arrays.

The names are those of the PyTorch state dict that https://github.com/yikangshen/Ordered-Neurons
saves; ``{name: array.numpy() for name, array in state_dict.items()}`` gives the arrays, and nothing
here needs PyTorch.

    encoder.weight                   [V, E]                word vectors; decoder.weight is the same
    decoder.bias                     [V]
    rnn.cells.<l>.ih.0.weight        [4D + 2L, I]          input kernel, transposed
    rnn.cells.<l>.hh.weight          [4D + 2L, D]          recurrent kernel, transposed
    rnn.cells.<l>.ih.0.bias, .hh.bias [4D + 2L]            added: one bias here

Its recurrent weights belong to ``inverted_weight_drop=False`` with the rate they were trained with.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import ArrayLike

from zoo.ordered.language_model import OnLstmLanguageModel


def load_original(model: OnLstmLanguageModel, arrays: Mapping[str, ArrayLike]) -> None:
    """Gives a model the parameters of the original one.

    Args:
        model: of the same sizes, with ``master_input="complement"``; changed in place.
        arrays: name -> array as in the module docstring. ``decoder.weight`` may be missing; so may
            the copies ``rnn.cells.<l>.hh._weight`` that it saves without weight drop.

    Raises:
        ValueError: if names are missing or left over, shapes differ (all are listed), the decoder
            is not tied to the word vectors, or the model has other gates.

    >>> import numpy as np
    >>> from flax import nnx
    >>> model = OnLstmLanguageModel(5, 4, 4, 1, chunk_size=2, rngs=nnx.Rngs(0))
    >>> arrays = {
    ...     "encoder.weight": np.ones((5, 4)), "decoder.bias": np.zeros(5),
    ...     "rnn.cells.0.ih.0.weight": np.ones((20, 4)), "rnn.cells.0.hh.weight": np.ones((20, 4)),
    ...     "rnn.cells.0.ih.0.bias": np.ones(20), "rnn.cells.0.hh.bias": np.ones(20)}
    >>> load_original(model, arrays)
    >>> float(model.layers[0].bias[0])
    2.0
    """
    for layer in model.layers:
        if layer.master_input != "complement":
            raise ValueError(
                "load_original: the original has master_input='complement', got a model with "
                f"{layer.master_input!r}"
            )
    expected = _expected_shapes(model)
    given = {name: np.asarray(array) for name, array in arrays.items()}
    decoder = given.pop("decoder.weight", None)
    tied = decoder is None or np.array_equal(decoder, given.get("encoder.weight", decoder))
    if not tied:
        raise ValueError(
            "load_original: decoder.weight differs from encoder.weight, expected tied weights"
        )
    copies = {f"rnn.cells.{number}.hh._weight" for number in range(len(model.layers))}
    given = {name: array for name, array in given.items() if name not in copies}
    problems = [f"missing: {name}" for name in expected if name not in given]
    problems += [f"left over: {name}" for name in given if name not in expected]
    problems += [
        f"{name}: expected shape {shape}, got {given[name].shape}"
        for name, shape in expected.items()
        if name in given and given[name].shape != shape
    ]
    if problems:
        raise ValueError(
            f"load_original: the arrays do not fit the model: {'; '.join(problems)}. "
            "Build the model with the sizes they were trained with"
        )

    def put(parameter: nnx.Param, value: np.ndarray) -> None:
        parameter[...] = jnp.asarray(value, parameter[...].dtype)

    put(model.embedding, given["encoder.weight"])
    put(model.bias, given["decoder.bias"])
    for number, layer in enumerate(model.layers):
        cell = f"rnn.cells.{number}"
        put(layer.input_kernel, given[f"{cell}.ih.0.weight"].T)
        put(layer.recurrent_kernel, given[f"{cell}.hh.weight"].T)
        put(layer.bias, given[f"{cell}.ih.0.bias"] + given[f"{cell}.hh.bias"])


def original_parameter_count(model: OnLstmLanguageModel) -> int:
    """How many parameters the original counts for a model of these sizes.

    It has two biases per layer where we have their sum. Only the sizes of the model are used.

    >>> from flax import nnx
    >>> build = lambda: OnLstmLanguageModel(10_000, 400, 1150, 3, chunk_size=10, rngs=nnx.Rngs(0))
    >>> original_parameter_count(nnx.eval_shape(build))
    25232180
    """
    return sum(int(np.prod(shape)) for shape in _expected_shapes(model).values())


def _expected_shapes(model: OnLstmLanguageModel) -> dict[str, tuple[int, ...]]:
    def shape(parameter: Any) -> tuple[int, ...]:
        return jax.tree.leaves(parameter)[0].shape

    shapes = {"encoder.weight": shape(model.embedding), "decoder.bias": shape(model.bias)}
    for number, layer in enumerate(model.layers):
        cell = f"rnn.cells.{number}"
        shapes[f"{cell}.ih.0.weight"] = shape(layer.input_kernel)[::-1]
        shapes[f"{cell}.hh.weight"] = shape(layer.recurrent_kernel)[::-1]
        shapes[f"{cell}.ih.0.bias"] = shapes[f"{cell}.hh.bias"] = shape(layer.bias)
    return shapes
