"""Sentiment of reviews, from pretrained weights and from scratch, at the same budget.

    python -m experiments.pretraining.finetune --pretrained runs/pretraining_reviews/bert

The encoder is a folder in Hugging Face's format with ``tokenizer.json``, such as ``bert/`` in the
workdir of a masked-language-model run. A linear layer reads the mean of the hidden states. Both
arms see the same reviews in the same order with the same schedule, once for each seed; the margin
is that of each seed with itself. What is done is kept: the same command goes on with the rest.
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
from jax.sharding import Mesh

from experiments.command_line import MAY_CHANGE, MeshConfig, at_least
from zoo.data import Pipeline, open_source
from zoo.extras import require
from zoo.training import (
    LossOutput,
    MetricsLog,
    fit,
    functional,
    init_state,
    make_mesh,
    make_train_step,
    open_workdir,
    put_batch,
    results_table,
    write_summary,
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

PRETRAINED, SCRATCH = "pretrained", "from scratch"
Reviews = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Config:
    """Fine-tuning on reviews."""

    pretrained: str = "runs/pretraining_reviews/bert"
    """Folder with config.json, model.safetensors and tokenizer.json."""
    positive: str = "file:$ZOO_DATA/imdb/{split}_pos.tsv.xz?columns=id,rating,text"
    """Reviews with a field text; {split} stands for train and test."""
    negative: str = "file:$ZOO_DATA/imdb/{split}_neg.tsv.xz?columns=id,rating,text"
    train_examples: int = 2000
    test_examples: int = 4000
    length: int = 128
    """Tokens of a review; the rest is cut off."""
    num_epochs: int = 3
    batch_size: int = 32
    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    seeds: int = 3
    workdir: str = "runs/finetune"
    mesh: MeshConfig = MeshConfig()
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("train_examples", "test_examples", "num_epochs", "batch_size", "seeds"):
            at_least(1, name, getattr(self, name))
        at_least(3, "length", self.length)


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
    train, test = (
        encode_reviews(config, tokenizer, split, count)
        for split, count in (("train", config.train_examples), ("test", config.test_examples))
    )
    weights, _ = load_bert(directory, config=encoder)
    starts = {PRETRAINED: nnx.to_pure_dict(nnx.state(weights, nnx.Param)), SCRATCH: None}
    workdir = open_workdir(config.workdir, config, ignore=(*MAY_CHANGE, "progress", "seeds"))
    path = workdir / "metrics.jsonl"
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    accuracies = {(line["weights"], line["seed"]): line["accuracy"] for line in done}
    fine_tune = make_fine_tune(config, encoder, train, test, mesh)
    with MetricsLog(path) as log:
        for seed in range(config.seeds):
            for name, start in starts.items():
                if (name, seed) not in accuracies:
                    step, accuracy = fine_tune(start, seed)
                    accuracies[name, seed] = accuracy
                    log.write(step, {"weights": name, "seed": seed, "accuracy": accuracy})
                    if jax.process_index() == 0:
                        print(f"{name}, seed {seed}: {accuracy:.1%} of {len(test):,} reviews")
    arms = {name: [accuracies[name, seed] for seed in range(config.seeds)] for name in starts}
    report(config, workdir, arms, len(train), len(test))


def encode_reviews(config: Config, tokenizer: Any, split: str, count: int) -> Reviews:
    """``count`` reviews, half of each label, as rows of ids."""
    examples = []
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    for label, uri in enumerate((config.negative, config.positive)):
        source = open_source(uri.replace("{split}", split))
        texts = [source[index]["text"] for index in range(min(len(source), -(-count // 2)))]
        for one in tokenizer.encode_batch(texts, add_special_tokens=False):
            ids = np.zeros(config.length, np.int32)
            row = [cls, *one.ids[: config.length - 2], sep]
            ids[: len(row)] = row
            examples.append({"ids": ids, "label": np.int32(label)})
    return examples


def make_fine_tune(
    config: Config, encoder: TransformerConfig, train: Reviews, test: Reviews, mesh: Mesh
) -> Callable[[Any, int], tuple[int, float]]:
    """A function of start weights (random if None) and seed: steps and the test accuracy."""
    init, rebuild = functional(lambda rngs: Classifier(encoder, 2, rngs=rngs))
    batches = functools.partial(Pipeline, train, batch_size=config.batch_size, remainder="drop")
    num_steps = config.num_epochs * batches(seed=0).batches_per_epoch
    schedule = piecewise_linear(
        {max(1, num_steps // 10): 1.0, num_steps: 0.0}, scale=config.learning_rate
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), adamw(schedule, weight_decay=config.weight_decay)
    )
    fresh = functools.partial(
        init_state, init, optimizer, mesh=mesh, rules=placement_rules(encoder)
    )
    places = fresh(key=jax.random.key(0)).shardings
    step = make_train_step(make_loss(rebuild, train=True), optimizer, shardings=places)
    evaluation = jax.jit(make_loss(rebuild, train=False))

    def fine_tune(start: Any, seed: int) -> tuple[int, float]:
        state = fresh(key=jax.random.key(seed))
        if start is not None:
            moved = jax.device_put(start, places.parameters["encoder"], may_alias=False)
            state = state._replace(parameters={**state.parameters, "encoder": moved})
        state = fit(
            step,
            state,
            batches(seed=seed),
            num_steps=num_steps,
            mesh=mesh,
            rate_unit="reviews",
            progress=config.progress,
        )
        right = total = 0.0
        held_out = Pipeline(test, batch_size=config.batch_size, seed=0, num_epochs=1, shuffle=False)
        for batch in held_out:
            output = evaluation(state.parameters, put_batch(batch, mesh), key=state.key, carry=())
            correct, weight = output.metrics["accuracy"]
            right, total = right + float(correct), total + float(weight)
        return num_steps, right / total

    return fine_tune


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


def report(
    config: Config, workdir: pathlib.Path, arms: dict[str, list[float]], trained: int, tested: int
) -> None:
    """Table and summary: mean and standard deviation over seeds, and the margin."""
    margins = np.subtract(arms[PRETRAINED], arms[SCRATCH])
    spread = 1 if config.seeds > 1 else 0  # that of a sample; one seed has none
    rows = {
        name: {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=spread))}
        for name, values in {**arms, "margin": margins}.items()
    }
    results_table(
        [
            {"weights": name, "test accuracy, %": 100 * row["mean"], "±": 100 * row["std"]}
            for name, row in rows.items()
        ],
        title=f"{tested:,} reviews after {trained:,}, {config.seeds} seeds",
    )
    summary = {
        **rows,
        "accuracies": arms,
        "train_examples": trained,
        "test_examples": tested,
        "jax": jax.__version__,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
    path = write_summary(workdir, summary)
    if jax.process_index() == 0:
        print("written:", path)


if __name__ == "__main__":
    from experiments import command_line

    command_line.main(run, {"small": Config()}, __doc__)
