"""Classifies texts, from pretrained weights and from scratch, at the same budget.

    python -m experiments.pretraining.finetune --pretrained runs/pretraining_reviews/bert
    python -m experiments.pretraining.finetune --pretrained runs/mine/bert --uri file:labelled.csv

The encoder is a folder in Hugging Face's format with ``tokenizer.json``, such as ``bert/`` in the
workdir of a masked-language-model run. A linear layer reads the mean of the hidden states. Both
arms see the same texts in the same order with the same schedule, once per seed; the margin is
taken seed by seed. Finished arms are kept: the same command continues with the rest. The first
classifier from pretrained weights is kept in ``classifier/``, for ``….pretraining.predict``.
"""

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from zoo._files import replace_file
from zoo.data import Pipeline, Vocabulary, open_source
from zoo.data.fingerprint import fingerprint
from zoo.training import (
    Loop,
    LossOutput,
    MetricsLog,
    TrainState,
    fit,
    functional,
    open_workdir,
    results_table,
)
from zoo.transformer import Transformer, TransformerConfig, load_bert, placement_rules
from zoo.transformer.weights import bert_config, save_transformer

from ..command_line import MAY_CHANGE, RunConfig, at_least, local_path
from ..labelled_texts import Labelled, read_labelled
from ..running import (
    Experiment,
    finish,
    held_out_means,
    is_main_process,
    on_host,
    open_mesh,
    read_records,
)
from .config import TrainingConfig
from .corpus import load_vocabulary
from .train import make_optimizer

PRETRAINED, SCRATCH = "pretrained", "from scratch"
Examples = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Fields:
    """The settings that decide the result."""

    pretrained: str = "runs/pretraining_reviews/bert"
    """Folder with config.json, model.safetensors and tokenizer.json."""
    uri: str = ""
    """Labelled texts: file:PATH of a .csv, .tsv, .jsonl or .parquet, hf:NAME, or a folder of text
    files, one class a file or subfolder; {split} stands for train and test, else a tenth is for
    the test. Empty: the reviews below."""
    text_field: str = "text"
    """Column of the text."""
    label_field: str = "label"
    """Column of the class, words or numbers."""
    positive: str = "file:$ZOO_DATA/imdb/{split}_pos.tsv.xz?columns=id,rating,text"
    """Reviews with a field text; {split} stands for train and test."""
    negative: str = "file:$ZOO_DATA/imdb/{split}_neg.tsv.xz?columns=id,rating,text"
    train_examples: int | None = None
    """So many, evenly over the classes; None: all there are, of the reviews 2,000."""
    test_examples: int | None = None
    """None: all there are, of the reviews 4,000."""
    length: int = 128
    """Tokens per text; the rest is cut off."""
    num_epochs: int = 3
    batch_size: int = 32
    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    seeds: int = 3

    def __post_init__(self) -> None:
        at_least(1, self, "train_examples", "test_examples", "num_epochs", "batch_size", "seeds")
        at_least(3, self, "length")


@dataclasses.dataclass(frozen=True)
class Config(RunConfig, Fields):
    """Fine-tuning on labelled texts."""

    workdir: str = "runs/finetune"


class Data(NamedTuple):
    """The texts, and the encoder that they are encoded for."""

    encoder: TransformerConfig
    labels: list[str]  # names of the classes
    train: Examples
    test: Examples


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
    mesh = open_mesh(config)
    data = load(config)
    experiment = build(config, mesh, data)
    weights, _ = load_bert(local_path(config.pretrained), config=data.encoder)
    starts = {PRETRAINED: nnx.to_pure_dict(nnx.state(weights, nnx.Param)), SCRATCH: None}
    workdir = open_workdir(config.workdir, config, ignore=(*MAY_CHANGE, "seeds"))
    path = workdir / "metrics.jsonl"
    shardings = experiment.abstract_state(mesh).shardings
    step = experiment.train_step(shardings)  # compiled once for all arms
    with MetricsLog(path, logger=config.loop.logger) as log:
        log.resume(experiment.num_steps)  # drops what a crash cut off
        identity = fingerprint((data, starts))
        records = read_records(path, identity)
        done = {(line["weights"], line["seed"]): line["accuracy"] for line in records}
        arms = list(itertools.product(range(config.seeds), starts.items()))
        if done and is_main_process():
            print(f"continues: {len(done)} of {len(arms)} classifiers are in {path}")
        for number, (seed, (name, start)) in enumerate(arms, start=1):
            if (name, seed) in done:
                continue
            state = experiment._replace(seed=seed).initial_state(mesh)
            if start is not None:
                place = shardings.parameters["encoder"]
                encoder = jax.device_put(start, place, may_alias=False)
                state = state._replace(parameters={**state.parameters, "encoder": encoder})
            state = fit(
                step,
                state,
                batches(config, data, seed),
                num_steps=experiment.num_steps,
                mesh=mesh,
                loop=Loop(
                    rate_unit="texts", progress=config.loop.progress, part=(number, len(arms))
                ),
            )
            values = experiment.evaluate(state)[1]
            if (name, seed) == (PRETRAINED, 0) and is_main_process():
                save_classifier(
                    workdir / "classifier", experiment, on_host(state.parameters), data, config
                )
            done[name, seed] = values["accuracy"]
            found = {"weights": name, "seed": seed, **values, "data": identity}
            log.write(experiment.num_steps, found)
            if is_main_process():
                print(f"{name}, seed {seed}: {values['accuracy']:.1%}")
    found = {name: [done[name, seed] for seed in range(config.seeds)] for name in starts}
    report(workdir, found, data)


def load(config: Config) -> Data:
    """Reads as many texts as are asked for, evenly over the classes."""
    folder = local_path(config.pretrained)
    if not folder.is_dir():
        raise ValueError(
            f"pretrained must be a folder with a BERT, such as bert/ of a run of "
            f"experiments.pretraining, got {config.pretrained!r}"
        )
    encoder = dataclasses.replace(
        bert_config(folder), head="none", pooler=False, attention_dropout=0.0
    )
    if config.length > encoder.max_positions:
        raise ValueError(
            f"length must be at most the {encoder.max_positions} positions of {config.pretrained}, "
            f"got {config.length}"
        )
    vocabulary = load_vocabulary(folder)
    splits = read_texts(config)
    labels = sorted({name for _, name in splits["train"]}, key=natural)
    counts = (config.train_examples, config.test_examples)
    defaults = (None, None) if config.uri else (2000, 4000)
    examples: dict[str, Examples] = {}
    for (split, rows), count, default in zip(splits.items(), counts, defaults, strict=True):
        by_class = [[words for words, name in rows if name == label] for label in labels]
        each = -(-(count or default or len(rows) * len(labels)) // len(labels))
        examples[split] = [
            {"ids": ids, "label": np.int32(number)}
            for number, texts in enumerate(by_class)
            for ids in encode(texts[:each], vocabulary, config.length)
        ]
    return Data(encoder, labels, **examples)


def read_texts(config: Config) -> dict[str, Labelled]:
    """Texts with the names of their classes, by split."""
    if config.uri:
        names = {"text": config.text_field, "label": config.label_field}
        advice = "name yours with --text-field and --label-field; "
        train, test = read_labelled(config.uri, **names, flag="uri", advice=advice)
        return {"train": train, "test": test}
    reviews = {"negative": config.negative, "positive": config.positive}
    return {
        split: [
            (example["text"], name)
            for name, uri in reviews.items()
            for example in open_source(uri.replace("{split}", split))
        ]
        for split in ("train", "test")
    }


def natural(name: str) -> tuple[bool, float, str]:
    """Sorts numbers by their value, before words."""
    return (False, float(name), name) if name.isdecimal() else (True, 0.0, name)


def encode(texts: Iterable[str], vocabulary: Vocabulary, length: int) -> list[np.ndarray]:
    """Ids ``[length]`` of every text between [CLS] and [SEP], padded with 0."""
    cls, sep = vocabulary.ids["[CLS]"], vocabulary.ids["[SEP]"]
    rows = ([cls, *ids[: length - 2], sep] for ids in vocabulary.encode_batch(texts))
    return [np.pad(np.array(row, np.int32), (0, length - len(row))) for row in rows]


def save_classifier(
    folder: pathlib.Path, experiment: Experiment, parameters: Any, data: Data, config: Config
) -> None:
    """Writes what :mod:`….predict` reads: the encoder, the linear layer, the tokens, the labels."""
    model = experiment.merge(parameters)
    head = {
        "classifier.weight": np.asarray(model.output_kernel[...]).T,
        "classifier.bias": np.asarray(model.output_bias[...]),
    }
    save_transformer(folder, model.encoder, architecture="bert", head=head)
    for name in ("tokenizer.json", "vocab.txt"):
        if (file := local_path(config.pretrained) / name).exists():
            replace_file(folder / name, file.read_bytes())
    content = {"labels": data.labels, "length": config.length}
    replace_file(folder / "classifier.json", json.dumps(content, ensure_ascii=False))


def batches(config: Config, data: Data, seed: int) -> Pipeline:
    """Batches of training texts."""
    return Pipeline(
        data.train,
        batch_size=min(config.batch_size, len(data.train)),
        seed=seed,
        remainder="drop",
        depends_on=data.test,
    )


def build(config: Config, mesh: Mesh, data: Data | None = None) -> Experiment:
    """One arm from random weights with seed 0; ``data`` is ``load(config)`` if None."""
    data = load(config) if data is None else data
    first = batches(config, data, 0)
    num_steps = config.num_epochs * first.batches_per_epoch
    training = TrainingConfig(
        num_steps=num_steps,
        learning_rate=config.learning_rate,
        warmup_steps=num_steps // 10,
        weight_decay=config.weight_decay,
    )
    init, merge = functional(lambda rngs: Classifier(data.encoder, len(data.labels), rngs=rngs))

    def loss(parameters: Any, batch: Any, *, key: jax.Array | None, carry: Any = ()) -> LossOutput:
        ids = batch["ids"]
        weights = jnp.ones(len(ids)) * batch.get("valid", 1)
        logits = merge(parameters)(ids, ids != 0, key=key)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        right = jnp.sum(weights * (jnp.argmax(logits, axis=-1) == batch["label"]))
        weight = jnp.sum(weights)
        return LossOutput(jnp.sum(weights * losses), weight, metrics={"accuracy": (right, weight)})

    @jax.jit
    def evaluation_loss(parameters: Any, batch: Any, **unused: Any) -> LossOutput:
        return loss(parameters, batch, key=None)

    def evaluate(state: TrainState) -> tuple[TrainState, dict[str, float]]:
        rows, test = config.batch_size, data.test
        means = held_out_means(evaluation_loss, state.parameters, test, batch_size=rows, mesh=mesh)
        return state, means

    return Experiment(
        init=init,
        merge=merge,
        loss=loss,
        optimizer=make_optimizer(training),
        batches=first,
        num_steps=num_steps,
        evaluate=evaluate,
        rate_unit="texts",
        rules=placement_rules(data.encoder),
    )


def report(workdir: pathlib.Path, arms: dict[str, list[float]], data: Data) -> None:
    """Table and summary: mean and standard deviation over seeds, and the margin."""
    margins = np.subtract(arms[PRETRAINED], arms[SCRATCH])
    spread = min(1, len(margins) - 1)  # that of a sample; one seed has none
    rows = {
        name: {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=spread))}
        for name, values in {**arms, "margin": margins}.items()
    }
    counts = {"train_examples": len(data.train), "test_examples": len(data.test)}
    results_table(
        [
            {"weights": name, "test accuracy, %": 100 * row["mean"], "±": 100 * row["std"]}
            for name, row in rows.items()
        ],
        title=f"{len(data.test):,} texts after {len(data.train):,}, {len(margins)} seeds",
    )
    most = np.bincount([int(row["label"]) for row in data.train]).argmax()
    constant = float(np.mean([row["label"] == most for row in data.test]))
    if is_main_process():
        print(f"always {data.labels[most]!r}, the most frequent class: {constant:.1%}")
        finish(workdir, {**rows, "accuracies": arms, **counts, "most_frequent": constant})
        classifier = workdir / "classifier"
        print(f'to use it: python -m {__package__}.predict {classifier} "a line of text"')


if __name__ == "__main__":
    from .. import command_line
    from . import finetune

    command_line.main(finetune.run, {"small": finetune.Config()}, __doc__)
