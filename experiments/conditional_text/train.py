"""Trains a language model for each way to condition on a class, and measures what they learned."""

import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from zoo._files import replace_file
from zoo.data import Pipeline, Vocabulary
from zoo.decoding import guide, prefill, sample
from zoo.training import LossOutput, functional, open_workdir, results_table
from zoo.transformer import placement_rules

from ..command_line import MAY_CHANGE
from ..running import (
    Experiment,
    announce,
    decaying_adamw,
    finish,
    is_main_process,
    number_of_parameters,
    on_host,
    open_mesh,
    train,
)
from ..unigram import judged, unigram_entropy
from . import figures, metrics, texts
from .config import Config, Variant
from .model import Generator, transformer_config, with_pretrained
from .texts import SPLITS, Pieces, banned, start_of

NAMES = {"norm": "conditional norms", "prefix": "prefix token", "embedding": "added to embedding"}
SHORTEST = 3  # tokens of a sample at least
SHOWN = 10  # samples that are printed


class Data(NamedTuple):
    """Labelled texts in ids."""

    classes: list[str]
    vocabulary: Vocabulary
    training: Pieces
    held_out: Pieces


def run(config: Config) -> None:
    """Runs the experiment; continues where an earlier run in the same folder stopped."""
    mesh = open_mesh(config)
    data = load(config)
    workdir = open_workdir(config.workdir, config, ignore=MAY_CHANGE)
    if is_main_process():
        print(
            f"{config.data.uri}: {len(data.classes)} classes; {len(data.training.ids):,} pieces "
            f"for training, {len(data.held_out.ids):,} held out; {len(data.vocabulary):,} tokens"
        )
    describe = make_describer(data)
    results: dict[str, Any] = {"classes": data.classes, "held_out_text": describe(data.held_out)}
    results["unigram_perplexity"] = unigram_perplexity(data)
    for number, variant in enumerate(config.variants, start=1):
        experiment = build(config, mesh, data, variant)
        announce(f"class by {NAMES[variant]}", experiment, mesh)
        part = number, len(config.variants)
        state = train(experiment, mesh, workdir / variant, config.loop, part=part)
        parameters = on_host(state.parameters)
        samples = {
            str(scale): draw_samples(experiment.merge, parameters, data, config, scale)
            for scale in config.sampling.guidance
        }
        results[variant] = {
            "parameters": number_of_parameters(parameters),
            **held_out_perplexities(experiment.merge, parameters, data, config),
            "samples": {scale: describe(pieces) for scale, pieces in samples.items()},
        }
        if is_main_process():
            save_samples(workdir / variant / "samples.jsonl", samples, data)
    if is_main_process():
        report(workdir, results, config.variants)


def load(config: Config) -> Data:
    """Reads the texts, makes the vocabulary and cuts them into pieces."""
    labelled = texts.read(config.data.uri)
    classes = list(dict.fromkeys(label for _, label in labelled["train"]))
    vocabulary = texts.make_vocabulary(config, labelled["train"])
    if (config.sampling.top_k or 0) > len(vocabulary):
        raise ValueError(
            f"sampling.top_k must be at most the {len(vocabulary)} tokens there are, got "
            f"{config.sampling.top_k}"
        )
    training, held_out = (
        texts.cut(labelled[split], classes, vocabulary, config.data.longest) for split in SPLITS
    )
    return Data(classes, vocabulary, training, texts.some(held_out, config.data.held_out))


def build(
    config: Config, mesh: Mesh, data: Data | None = None, variant: Variant | None = None
) -> Experiment:
    """Model, loss, optimiser and batches of one variant, the first if None.

    ``data`` is ``load(config)`` if None.
    """
    data = load(config) if data is None else data
    variant = config.variants[0] if variant is None else variant
    training, num_classes = config.training, len(data.classes)
    rows = texts.pack(data.training, data.vocabulary, training.length)
    batches = Pipeline(rows, batch_size=training.batch_size, seed=training.seed, depends_on=data)
    num_steps = max(1, round(training.epochs * batches.batches_per_epoch))
    init, merge = functional(
        lambda rngs: Generator(config, variant, num_classes, data.vocabulary, rngs=rngs)
    )
    transformer = transformer_config(config, variant, num_classes, len(data.vocabulary))
    return Experiment(
        init=with_pretrained(init, config) if config.model.pretrained else init,
        merge=merge,
        loss=make_loss(merge, training.drop_label, null_label=num_classes),
        optimizer=decaying_adamw(training, num_steps),
        batches=batches,
        num_steps=num_steps,
        seed=training.seed,
        rate_unit="tokens",
        rules=placement_rules(transformer),
        compute_dtype=jnp.bfloat16 if training.bfloat16 else None,
    )


def make_loss(
    merge: Callable[..., Generator], drop_label: float, *, null_label: int
) -> Callable[..., LossOutput]:
    """Sum over the tokens of all pieces, in nats; a share of the rows gets the null label."""

    def loss_fn(parameters: Any, batch: Any, *, key: jax.Array, carry: Any) -> LossOutput:
        drop_key, key = jax.random.split(key)
        dropped = jax.random.bernoulli(drop_key, drop_label, batch["labels"].shape)
        labels = jnp.where(dropped, null_label, batch["labels"])
        losses = token_losses(merge(parameters), batch, labels, key)
        counted = (batch["pieces"] >= 0) & batch["valid"][:, None]
        return LossOutput(jnp.sum(jnp.where(counted, losses, 0)), jnp.sum(counted))

    return loss_fn


def token_losses(
    model: Generator, batch: Any, labels: jax.Array, key: jax.Array | None = None
) -> jax.Array:
    """Negative log-probability of every target, in nats: ``[B, T]``."""
    logits = model(batch["inputs"], labels, document_ids=batch["pieces"], key=key)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])


def held_out_perplexities(
    merge: Callable[..., Generator], parameters: Any, data: Data, config: Config
) -> dict[str, Any]:
    """Perplexities of the held-out pieces, of all and by class, for every label."""
    num_labels, size = len(data.classes) + 1, config.training.batch_size

    @jax.jit
    def given_each(parameters: Any, batch: Any) -> jax.Array:
        def given(label: jax.Array) -> jax.Array:
            return token_losses(merge(parameters), batch, jnp.full(size, label))

        return jax.lax.map(given, jnp.arange(num_labels))

    rows = texts.pack(data.held_out, data.vocabulary, config.training.length)
    everywhere = {"process_index": 0, "process_count": 1}  # each process scores all of them
    batches = Pipeline(rows, batch_size=size, seed=0, num_epochs=1, shuffle=False, **everywhere)
    losses = np.zeros((len(data.held_out.ids), num_labels))
    for batch in batches:
        found = np.asarray(given_each(parameters, batch))
        counted = (batch["pieces"] >= 0) & batch["valid"][:, None]
        np.add.at(losses, batch["pieces"][counted], found[:, counted].T)
    labels = data.held_out.labels
    lengths = np.array([len(ids) + 1 for ids in data.held_out.ids])
    by_class = {
        name: metrics.label_perplexities(losses[own], labels[own], lengths[own])
        for number, name in enumerate(data.classes)
        if (own := labels == number).any()
    }
    every = metrics.label_perplexities(losses, labels, lengths)
    return {"held_out": every, "held_out_by_class": by_class}


def unigram_perplexity(data: Data) -> float:
    """Of single tokens of the held-out pieces, each with its end: what a model must beat."""
    train, held_out = (
        np.concatenate([np.append(ids, data.vocabulary.end) for ids in pieces.ids])
        for pieces in (data.training, data.held_out)
    )
    return float(np.exp(unigram_entropy(train, held_out, vocab_size=len(data.vocabulary))))


def draw_samples(
    merge: Callable[..., Generator], parameters: Any, data: Data, config: Config, scale: float
) -> Pieces:
    """Samples at one scale of guidance, equally many of each class."""
    longest, sampling = config.data.longest + 1, config.sampling  # with the token that ends it
    vocabulary, num_classes = data.vocabulary, len(data.classes)

    @jax.jit
    def draw(parameters: Any, key: jax.Array, labels: jax.Array) -> Any:
        model = merge(parameters)
        prompt = jnp.full((len(labels), 1), start_of(vocabulary), jnp.int32)
        read = prefill(model, prompt, max_length=longest, condition=labels[:, None])
        if scale != 1:
            null = jnp.full((len(labels), 1), num_classes)
            plain = prefill(model, prompt, max_length=longest, condition=null)
            read = guide(read, plain, scale=scale)
        return sample(
            key,
            read.step_fn,
            read.state,
            start=read.start,
            max_length=longest,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_length=SHORTEST,
            banned=banned(vocabulary),
            end_id=vocabulary.end,
            pad_id=vocabulary.end,
        )

    labels = np.arange(sampling.count, dtype=np.int32) % num_classes
    ids: list[np.ndarray] = []
    key = jax.random.key(config.training.seed)
    for start in range(0, len(labels), sampling.batch_size):
        # Every batch has one size; surplus samples of the last are not kept.
        wanted = np.resize(labels[start : start + sampling.batch_size], sampling.batch_size)
        drawn = draw(parameters, jax.random.fold_in(key, start), wanted)
        rows = zip(np.asarray(drawn.tokens), np.asarray(drawn.lengths), strict=True)
        ids += [row[:length] for row, length in rows]
    return Pieces(ids[: len(labels)], labels)


def make_describer(data: Data) -> Callable[[Pieces], dict[str, Any]]:
    """Makes the function from texts to all numbers of them; it trains the classifier."""
    removed = banned(data.vocabulary)

    def known(pieces: Pieces) -> list[tuple[int, ...]]:
        """Tokens that a model may generate: <unk> would tell real text from samples."""
        return [tuple(i for i in ids.tolist() if i not in removed) for ids in pieces.ids]

    training = known(data.training)
    classify = metrics.train_classifier(training, data.training.labels)

    def describe(pieces: Pieces) -> dict[str, Any]:
        found = known(pieces)
        hits = classify(found) == pieces.labels
        grams, complete = metrics.copied(found, training)
        return {
            "count": len(found),
            "label accuracy": float(hits.mean()),
            "label accuracy interval": metrics.share_interval(hits),
            **{f"distinct-{n}": metrics.distinct(found, n) for n in (1, 2, 3)},
            "self-BLEU": metrics.self_bleu(found),
            "copied 8-grams": grams,
            "copied texts": complete,
            "mean length": float(np.mean([len(text) for text in found])),
        }

    return describe


def save_samples(path: pathlib.Path, samples: dict[str, Pieces], data: Data) -> None:
    """Writes all samples, one JSON object per line, and prints the first."""
    rows = []
    for scale, pieces in samples.items():
        for ids, label in zip(pieces.ids, pieces.labels, strict=True):
            text = data.vocabulary.decode(ids)
            row = {"guidance": float(scale), "label": data.classes[label], "text": text}
            rows.append(json.dumps(row, ensure_ascii=False) + "\n")
        for label, text in zip(pieces.labels[:SHOWN], pieces.ids, strict=False):
            print(f"{data.classes[label]}: {data.vocabulary.decode(text)}")
    replace_file(path, "".join(rows))


def report(workdir: pathlib.Path, results: dict[str, Any], variants: Sequence[str]) -> None:
    """Tables, picture and summary."""

    def cells(numbers: dict[str, Any], *names: str) -> dict[str, Any]:
        found = {name: numbers[name] for name in names}
        intervals = {n: f"{v[0]:.4g} … {v[1]:.4g}" for n, v in found.items() if "interval" in n}
        return found | intervals

    single = results["unigram_perplexity"]
    named = {
        judged(NAMES[variant], results[variant]["held_out"]["right"], single): results[variant]
        for variant in variants
    }
    costs = ("right", "wrong", "wrong / right", "wrong / right interval", "unconditional")
    results_table(
        [{"class by": name} | cells(own["held_out"], *costs) for name, own in named.items()],
        title="Perplexity of held-out text with the right and with wrong labels",
    )
    first, result = next(iter(named.items()))
    results_table(
        [{"class": name} | cells(own, *costs) for name, own in result["held_out_by_class"].items()],
        title=f"The same by class, {first}",
    )
    described = {"held-out text": results["held_out_text"]} | {
        f"{name}, guidance {float(scale):g}": numbers
        for name, own in named.items()
        for scale, numbers in own["samples"].items()
    }
    shares = ("distinct-1", "distinct-2", "distinct-3", "self-BLEU", "copied 8-grams")
    for columns, title in (
        (
            ("count", "mean length", "label accuracy", "label accuracy interval"),
            "Texts by an independent classifier",
        ),
        ((*shares, "copied texts"), "Diversity, and what is copied from the training text"),
    ):
        results_table(
            [{"texts": name} | cells(numbers, *columns) for name, numbers in described.items()],
            title=title,
        )
    finish(workdir, results, [figures.save(workdir, named, results["held_out_text"])])
