"""Cases of `zoo.transformer`: the gradient of a masked-language-model step, the loss, LAMB.

A step gives the loss and the norm of its gradient, without dropout, in float32.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks.case import Case, Floor, Program
from zoo.extras import require
from zoo.transformer import (
    Transformer,
    TransformerConfig,
    bert_state_dict,
    lamb,
    masked_cross_entropy,
)

SIZES = {
    "tiny": {
        "batch": 2,
        "time": 32,
        "vocabulary": 500,
        "units": 64,
        "depth": 2,
        "heads": 2,
        "predictions": 8,
    },
    "MiniLM": {
        "batch": 8,
        "time": 128,
        "vocabulary": 30522,
        "units": 384,
        "depth": 6,
        "heads": 12,
        "predictions": 20,
    },
    "BERT-base": {
        "batch": 8,
        "time": 128,
        "vocabulary": 30522,
        "units": 768,
        "depth": 12,
        "heads": 12,
        "predictions": 20,
    },
}


def rival() -> Any:
    """The PyTorch programs, or an ImportError that says what to install."""
    require("torch", "bench")
    require("transformers", "bench")
    from benchmarks.cases import torch_bert

    return torch_bert


def config(
    *, time: int, vocabulary: int, units: int, depth: int, heads: int, **options: Any
) -> TransformerConfig:
    return TransformerConfig(
        vocab_size=vocabulary,
        features=units,
        num_layers=depth,
        num_heads=heads,
        feedforward_features=4 * units,
        max_positions=time,
        dropout=0.0,
        **options,
    )


def split(size: dict[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """What the model needs, and the rest."""
    rest = ("batch", "predictions")
    return {k: v for k, v in size.items() if k not in rest}, {k: size[k] for k in rest}


@functools.lru_cache(maxsize=1)
def model(**sizes: int) -> Transformer:
    return Transformer(config(**sizes), rngs=nnx.Rngs(0))


def batch(*, batch: int, time: int, vocabulary: int, predictions: int, **_: int) -> tuple:
    """Ids, and exactly ``predictions`` positions of each row that are predicted."""
    generator = np.random.default_rng(0)
    ids, targets = generator.integers(vocabulary, size=(2, batch, time)).astype(np.int32)
    positions = np.stack([generator.permutation(time)[:predictions] for _ in range(batch)])
    weights = np.zeros((batch, time), np.float32)
    np.put_along_axis(weights, positions, 1.0, axis=1)
    return ids, targets, weights, np.sort(positions, axis=1).astype(np.int32)


def step(*, chosen_only: bool = False, options: tuple = (), **size: int) -> Program:
    sizes, _ = split(size)
    graph, parameters = nnx.split(model(**sizes))
    if options:  # the parameters are the same for all of them
        changed = functools.partial(Transformer, config(**sizes, **dict(options)))
        graph, _ = nnx.split(nnx.eval_shape(lambda: changed(rngs=nnx.Rngs(0))))
    ids, targets, weights, positions = batch(**size)
    if chosen_only:
        targets = np.take_along_axis(targets, positions, axis=1)
        weights = np.ones_like(targets, np.float32)

    def loss(parameters: Any, ids: jax.Array, positions: jax.Array) -> jax.Array:
        wanted = positions if chosen_only else None
        logits = nnx.merge(graph, parameters)(ids, positions=wanted)
        return masked_cross_entropy(logits, jnp.asarray(targets), jnp.asarray(weights))

    def gradient(parameters: Any, ids: jax.Array, positions: jax.Array) -> Any:
        value, gradients = jax.value_and_grad(loss)(parameters, ids, positions)
        return value, optax.tree.norm(gradients)

    return gradient, (parameters, ids, positions)


def hugging_face(**size: int) -> Program:
    sizes, _ = split(size)
    ids, targets, weights, _ = batch(**size)
    return rival().gradient_step(
        bert_state_dict(model(**sizes)),
        ids,
        targets,
        weights,
        vocab_size=sizes["vocabulary"],
        hidden_size=sizes["units"],
        num_hidden_layers=sizes["depth"],
        num_attention_heads=sizes["heads"],
        intermediate_size=4 * sizes["units"],
        max_position_embeddings=sizes["time"],
        layer_norm_eps=1e-12,
    )


def step_floor(*, chosen_only: bool = False, **size: int) -> Floor:
    """The matrix products, three times; parameters read and gradients reduced once."""
    rows, units, time = size["batch"] * size["time"], size["units"], size["time"]
    layer = 2 * rows * 12 * units**2 + 4 * rows * time * units
    predicted = size["batch"] * size["predictions"] if chosen_only else rows
    head = 2 * predicted * (units**2 + units * size["vocabulary"])
    numbers = 12 * units**2 * size["depth"] + units * (size["vocabulary"] + time)
    return Floor(3 * (size["depth"] * layer + head), 8 * numbers)


def tokens(*, batch: int, time: int, **_: int) -> int:
    return batch * time


# The loss by itself: logits [rows, vocabulary].

LOSS_SIZES = {
    "small": {"rows": 64, "vocabulary": 1000},
    "BERT": {"rows": 1024, "vocabulary": 30522},
}


def loss_gradient(function: Any, *, rows: int, vocabulary: int) -> Program:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(rows, vocabulary)).astype(np.float32)
    targets = generator.integers(vocabulary, size=rows).astype(np.int32)
    weights = generator.integers(2, size=rows).astype(np.float32)
    return jax.value_and_grad(function), (logits, targets, weights)


def optax_loss(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return jnp.sum(losses * weights) / jnp.sum(weights)


# One update of LAMB.

LAMB_SIZES = {
    "small": {"units": 64, "depth": 2},
    "BERT-base": {"units": 768, "depth": 12},
}


def lamb_update(optimizer: optax.GradientTransformation, *, units: int, depth: int) -> Program:
    generator = np.random.default_rng(0)
    shapes = {"kernel": (depth, 12 * units, units), "bias": (depth, 13 * units)}
    parameters, gradients = (
        {
            "layers": {
                name: generator.normal(size=shape).astype(np.float32)
                for name, shape in shapes.items()
            }
        }
        for _ in range(2)
    )

    def update(gradients: Any, parameters: Any) -> Any:
        updates, state = optimizer.update(gradients, optimizer.init(parameters), parameters)
        return updates, state

    return update, (gradients, parameters)


CASES = [
    Case(
        name="transformer.Transformer gradient",
        sizes=SIZES,
        small=("tiny",),
        build=step,
        rivals={
            "written out": functools.partial(step, options=(("scan_layers", False),)),
            "Hugging Face": hugging_face,
        },
        equal=("written out", "Hugging Face"),
        count=tokens,
        unit="tokens",
        floor=step_floor,
    ),
    Case(
        name="transformer.Transformer gradient, logits of predicted tokens alone",
        sizes=SIZES,
        small=("tiny",),
        build=functools.partial(step, chosen_only=True),
        rivals={
            "written out": functools.partial(
                step, chosen_only=True, options=(("scan_layers", False),)
            ),
            "Hugging Face, all logits": hugging_face,
        },
        equal=("written out", "Hugging Face, all logits"),
        count=tokens,
        unit="tokens",
        floor=functools.partial(step_floor, chosen_only=True),
    ),
    Case(
        name="transformer.masked_cross_entropy gradient",
        sizes=LOSS_SIZES,
        small=("small",),
        build=functools.partial(loss_gradient, masked_cross_entropy),
        rivals={"Optax": functools.partial(loss_gradient, optax_loss)},
        equal=("Optax",),
        count=lambda rows, vocabulary: rows * vocabulary,
        unit="logits",
        floor=lambda rows, vocabulary: Floor(6 * rows * vocabulary, 8 * rows * vocabulary),
    ),
    Case(
        name="transformer.lamb update",
        sizes=LAMB_SIZES,
        small=("small",),
        build=functools.partial(lamb_update, lamb(0.01)),
        # Norms over all layers at once and with bias correction: other numbers.
        rivals={"Optax": functools.partial(lamb_update, optax.lamb(0.01, weight_decay=0.01))},
        count=lambda units, depth: depth * (12 * units + 13) * units,
        unit="parameters",
        floor=lambda units, depth: Floor(
            20 * depth * (12 * units + 13) * units, 20 * depth * (12 * units + 13) * units
        ),
    ),
]
