"""Cases of `zoo.transformer`: the gradient of a masked-language-model step, the loss, LAMB.

A step gives the loss and the norm of its gradient, without dropout, in float32.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from zoo.transformer import Transformer, masked_cross_entropy
from zoo.transformer.optimizers import STACKED, uncorrected_lamb

from ..case import Case, Floor, Program, make_case, torch_programs
from .decoding import bert

TINY = {"batch": 2, "time": 32, "vocabulary": 500, "units": 64, "depth": 2, "heads": 2}
MINI_LM = {"batch": 8, "time": 128, "vocabulary": 30522, "units": 384, "depth": 6, "heads": 12}
SIZES = {
    "tiny": {**TINY, "predictions": 8},
    "MiniLM": {**MINI_LM, "predictions": 20},
    "BERT-base": {**MINI_LM, "units": 768, "depth": 12, "predictions": 20},
}


def model(*, batch: int, predictions: int, **size: int) -> Transformer:
    return bert(**size)


def rows(*, batch: int, time: int, vocabulary: int, predictions: int, **_: int) -> tuple:
    """Ids, and exactly ``predictions`` positions per row that are predicted."""
    generator = np.random.default_rng(0)
    ids, targets = generator.integers(vocabulary, size=(2, batch, time)).astype(np.int32)
    positions = np.stack([generator.permutation(time)[:predictions] for _ in range(batch)])
    weights = np.zeros((batch, time), np.float32)
    np.put_along_axis(weights, positions, 1.0, axis=1)
    return ids, targets, weights, np.sort(positions, axis=1).astype(np.int32)


def step(*, chosen_only: bool = False, unrolled: bool = False, **size: int) -> Program:
    ours = model(**size)
    graph, parameters = nnx.split(ours)
    if unrolled:  # the parameters are the same
        config = dataclasses.replace(ours.config, scan_layers=False)
        graph, _ = nnx.split(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))))
    ids, targets, weights, positions = rows(**size)
    if chosen_only:
        targets = np.take_along_axis(targets, positions, axis=1)
        weights = np.ones_like(targets, np.float32)

    def loss(parameters: Any, ids: jax.Array, positions: jax.Array) -> jax.Array:
        logits = nnx.merge(graph, parameters)(ids, positions=positions if chosen_only else None)
        return masked_cross_entropy(logits, jnp.asarray(targets), jnp.asarray(weights))

    def gradient(parameters: Any, ids: jax.Array, positions: jax.Array) -> Any:
        value, gradients = jax.value_and_grad(loss)(parameters, ids, positions)
        return value, optax.tree.norm(gradients)

    return gradient, (parameters, ids, positions)


def hugging_face(**size: int) -> Program:
    return torch_programs().bert_step(model(**size), *rows(**size)[:3])


def step_floor(*, chosen_only: bool = False, **size: int) -> Floor:
    """The matrix products, three times; parameters read and gradients reduced once."""
    tokens, units, time = size["batch"] * size["time"], size["units"], size["time"]
    layer = 2 * tokens * 12 * units**2 + 4 * tokens * time * units
    predicted = size["batch"] * size["predictions"] if chosen_only else tokens
    head = 2 * predicted * (units**2 + units * size["vocabulary"])
    numbers = 12 * units**2 * size["depth"] + units * (size["vocabulary"] + time)
    return Floor(3 * (size["depth"] * layer + head), 8 * numbers)


def step_case(name: str, their_name: str, **options: bool) -> Case:
    build = functools.partial(step, **options)
    return Case(
        name=f"transformer.Transformer gradient{name}",
        sizes=SIZES,
        small=("tiny",),
        build=build,
        rivals={"written out": functools.partial(build, unrolled=True), their_name: hugging_face},
        equal=("written out", their_name),
        count=lambda batch, time, **_: batch * time,
        unit="tokens",
        floor=functools.partial(step_floor, **options),
    )


def logits(*, rows: int, vocabulary: int) -> list[np.ndarray]:
    """Logits, targets and weights."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(rows, vocabulary)).astype(np.float32)
    targets = generator.integers(vocabulary, size=rows).astype(np.int32)
    return [x, targets, generator.integers(2, size=rows).astype(np.float32)]


def optax_loss(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return jnp.sum(losses * weights) / jnp.sum(weights)


def trees(*, units: int, depth: int) -> list[Any]:
    """Gradients and parameters of a Transformer's layers, stacked."""
    generator = np.random.default_rng(0)
    shapes = {"kernel": (depth, 12 * units, units), "bias": (depth, 13 * units)}

    def draw() -> Any:
        normal = {n: generator.normal(size=s).astype(np.float32) for n, s in shapes.items()}
        return {"layers": normal}

    return [draw(), draw()]


def first_update(optimizer: optax.GradientTransformation) -> Any:
    return lambda gradients, parameters: optimizer.update(
        gradients, optimizer.init(parameters), parameters
    )


CASES = [
    step_case("", "Hugging Face"),
    step_case(", logits of predicted tokens alone", "Hugging Face, all logits", chosen_only=True),
    make_case(
        "transformer.masked_cross_entropy",
        masked_cross_entropy,
        {"Optax": optax_loss},
        logits,
        gradient=True,
        sizes={
            "small": {"rows": 64, "vocabulary": 1000},
            "BERT": {"rows": 1024, "vocabulary": 30522},
        },
        count=lambda rows, vocabulary: rows * vocabulary,
        unit="logits",
    ),
    make_case(
        "transformer.lamb update",
        first_update(uncorrected_lamb(0.01, stacked=STACKED)),
        # Norms over all layers together and with bias correction: other numbers.
        {"Optax": first_update(optax.lamb(0.01, weight_decay=0.01))},
        trees,
        sizes={"small": {"units": 64, "depth": 2}, "BERT-base": {"units": 768, "depth": 12}},
        equal=(),
        count=lambda units, depth: depth * (12 * units + 13) * units,
        unit="parameters",
    ),
]
