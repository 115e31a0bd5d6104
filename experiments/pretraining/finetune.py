"""Sentiment of reviews, from pretrained weights and from scratch, at the same budget.

    python -m experiments.pretraining.finetune --pretrained runs/pretraining/bert

The encoder is a folder in Hugging Face's format with ``tokenizer.json``, such as ``bert/`` in the
workdir of a masked-language-model run. A linear layer reads the mean of the hidden states. Both
arms see the same reviews in the same order with the same schedule, once for each seed.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.command_line import MeshConfig, at_least
from zoo.data import Pipeline, open_source
from zoo.extras import require
from zoo.training import (
    LossOutput,
    fit,
    functional,
    init_state,
    make_mesh,
    make_train_step,
    put_batch,
    results_table,
)
from zoo.transformer import (
    Transformer,
    TransformerConfig,
    adamw,
    bert_config,
    load_bert,
    piecewise_linear,
    placement_rules,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Fine-tuning on reviews."""

    pretrained: str = "runs/pretraining/bert"
    """Folder with config.json, model.safetensors and tokenizer.json."""
    positive: str = "file:$ZOO_DATA/imdb/{split}_pos.tsv.xz"
    """Reviews with a field text; {split} stands for train and test."""
    negative: str = "file:$ZOO_DATA/imdb/{split}_neg.tsv.xz"
    train_examples: int = 4000
    test_examples: int = 4000
    length: int = 128
    """Tokens of a review; the rest is cut off."""
    num_epochs: int = 3
    batch_size: int = 32
    learning_rate: float = 3e-4
    weight_decay: float = 0.01
    seeds: int = 3
    workdir: str = "runs/finetune"
    mesh: MeshConfig = MeshConfig()
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("train_examples", "test_examples", "num_epochs", "batch_size", "seeds"):
            at_least(1, name, getattr(self, name))


class Classifier(nnx.Module):
    """A linear layer on the mean of the encoder's hidden states."""

    def __init__(self, config: TransformerConfig, num_classes: int, *, rngs: nnx.Rngs):
        self.encoder = Transformer(config, rngs=rngs)
        self.output_kernel = nnx.Param(jnp.zeros((config.features, num_classes)))
        self.output_bias = nnx.Param(jnp.zeros(num_classes))

    def __call__(self, ids: jax.Array, mask: jax.Array, *, key: jax.Array | None) -> jax.Array:
        """Logits ``[B, K]``."""
        hidden = self.encoder.encode(ids, mask=mask, key=key)
        given = mask[..., None]
        mean = jnp.sum(hidden * given, axis=1) / jnp.sum(given, axis=1)
        return mean @ self.output_kernel[...] + self.output_bias[...][None]


def run(config: Config) -> None:
    """Trains both arms with every seed and shows the test accuracies."""
    mesh = make_mesh(**dataclasses.asdict(config.mesh))
    directory = pathlib.Path(config.pretrained)
    encoder = dataclasses.replace(bert_config(directory), head="none", pooler=False)
    tokenizer = require("tokenizers", "data").Tokenizer.from_file(str(directory / "tokenizer.json"))
    encode = functools.partial(encode_reviews, config, tokenizer)
    train, test = encode("train", config.train_examples), encode("test", config.test_examples)
    weights, _ = load_bert(directory, config=encoder)
    pretrained = nnx.to_pure_dict(nnx.state(weights, nnx.Param))
    arms = {"pretrained": pretrained, "from scratch": None}
    accuracies = {
        arm: [fine_tune(config, encoder, start, train, test, seed, mesh) for seed in seeds]
        for arm, start in arms.items()
        for seeds in [range(config.seeds)]
    }
    if jax.process_index() == 0:
        results_table(
            [
                {
                    "weights": arm,
                    "test accuracy": float(np.mean(values)),
                    "lowest": min(values),
                    "highest": max(values),
                }
                for arm, values in accuracies.items()
            ],
            title=f"{len(test):,} reviews, {config.seeds} seeds",
        )
        path = pathlib.Path(config.workdir) / "finetune.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"config": dataclasses.asdict(config), **accuracies}, indent=1))


def encode_reviews(config: Config, tokenizer: Any, split: str, count: int) -> list[dict[str, Any]]:
    """``count`` reviews, half of each label, as rows of ids."""
    examples = []
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    for label, uri in enumerate((config.negative, config.positive)):
        source = open_source(uri.replace("{split}", split))
        texts = [source[index]["text"] for index in range(min(len(source), count // 2))]
        for one in tokenizer.encode_batch(texts, add_special_tokens=False):
            ids = np.zeros(config.length, np.int32)
            row = [cls, *one.ids[: config.length - 2], sep]
            ids[: len(row)] = row
            examples.append({"ids": ids, "label": np.int32(label)})
    return examples


def fine_tune(
    config: Config,
    encoder: TransformerConfig,
    pretrained: Any,
    train: list[dict[str, Any]],
    test: list[dict[str, Any]],
    seed: int,
    mesh: jax.sharding.Mesh,
) -> float:
    """The test accuracy after training from ``pretrained``, or from random weights if None."""
    init, rebuild = functional(lambda rngs: Classifier(encoder, 2, rngs=rngs))
    batches = Pipeline(train, batch_size=config.batch_size, seed=seed, remainder="drop")
    num_steps = config.num_epochs * batches.batches_per_epoch
    schedule = piecewise_linear(
        {max(1, num_steps // 10): 1.0, num_steps: 0.0}, scale=config.learning_rate
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), adamw(schedule, weight_decay=config.weight_decay)
    )
    state = init_state(
        init, optimizer, key=jax.random.key(seed), mesh=mesh, rules=placement_rules(encoder)
    )
    if pretrained is not None:
        places = state.shardings.parameters["encoder"]
        state.parameters["encoder"] = jax.device_put(pretrained, places)
    step = make_train_step(make_loss(rebuild, train=True), optimizer, shardings=state.shardings)
    state = fit(
        step,
        state,
        batches,
        num_steps=num_steps,
        mesh=mesh,
        rate_unit="reviews",
        progress=config.progress,
    )
    evaluation = jax.jit(make_loss(rebuild, train=False))
    right = total = 0.0
    for batch in Pipeline(test, batch_size=config.batch_size, seed=0, num_epochs=1, shuffle=False):
        output = evaluation(state.parameters, put_batch(batch, mesh), key=state.key, carry=())
        correct, weight = output.metrics["accuracy"]
        right, total = right + float(correct), total + float(weight)
    return right / total


def make_loss(rebuild: Callable[..., Classifier], *, train: bool) -> Callable[..., LossOutput]:
    """Sum of the cross-entropies of the labels, in nats."""

    def loss_fn(parameters: Any, batch: Any, *, key: jax.Array, carry: Any) -> LossOutput:
        del carry
        ids = batch["ids"]
        logits = rebuild(parameters)(ids, ids != 0, key=key if train else None)
        weights = jnp.ones(len(ids)) * batch.get("valid", 1)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        right = jnp.sum(weights * (jnp.argmax(logits, axis=-1) == batch["label"]))
        weight = jnp.sum(weights)
        return LossOutput(jnp.sum(weights * losses), weight, metrics={"accuracy": (right, weight)})

    return loss_fn


if __name__ == "__main__":
    from experiments import command_line

    command_line.main(run, {"small": Config()}, __doc__)
