"""Trains the captioner, generates captions by greedy and beam search, and scores them."""

import functools
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from zoo._files import replace_file
from zoo.data import Pipeline, Vocabulary, build_vocabulary
from zoo.decoding import beam_search, prefill, sample
from zoo.extras import require
from zoo.training import (
    LossOutput,
    TrainState,
    functional,
    open_workdir,
    results_table,
)
from zoo.transformer import placement_rules

from ..command_line import MAY_CHANGE, local_path
from ..running import (
    Experiment,
    announce,
    decaying_adamw,
    finish,
    held_out_means,
    is_main_process,
    on_host,
    open_mesh,
    train,
)
from . import figures, scores
from .config import Config
from .data import (
    ARCHIVE,
    CAPTIONS,
    Captioned,
    Vectors,
    digits_named,
    examples,
    read,
    vectors_of,
)
from .model import Captioner, make_captioner, transformer_config

NORM_RULES = (  # of the bottleneck between the image vector and each norm
    (r"layers/\w+_norm/hidden_kernel$", PartitionSpec(None, "fsdp", None)),
    (r"layers/\w+_norm/(scale|bias)_kernel$", PartitionSpec(None, None, "fsdp")),
)
SHOWN = 300  # test pictures among which the sheet shows the best and the worst

Captions = list[list[str]]  # words by picture
Writer = Callable[..., Captions]


class Data(NamedTuple):
    """Pictures with captions, and how both are read."""

    sets: dict[str, Captioned]  # by split
    vocabulary: Vocabulary
    vectors: Vectors


class Results(NamedTuple):
    """What the report shows."""

    captions: Captions  # of the test pictures, by beam search
    bleu: dict[str, dict[str, float]]  # of these, of greedy ones and of baselines
    penalties: dict[str, dict[str, float]]  # BLEU of held-out pictures by length penalty
    perplexity: float  # of held-out captions
    digits_named: float | None  # share of captions with the right digit


def run(config: Config) -> None:
    """Runs the experiment; continues where an earlier run in the same folder stopped."""
    mesh = open_mesh(config)
    check_needs(config)
    workdir = open_workdir(config.workdir, config, ignore=MAY_CHANGE)
    data = load(config, workdir / "features.npz")
    if config.search.beam_size > len(data.vocabulary):
        raise ValueError(
            f"search.beam_size must be at most the {len(data.vocabulary)} words there are, got "
            f"{config.search.beam_size}"
        )
    experiment = build(config, mesh, data)
    captions = sum(map(len, data.sets["train"].captions))
    pictures = f"{len(data.sets['train'].images):,} pictures with {captions:,} captions"
    words = f"{len(data.vocabulary):,} words"
    announce(f"{config.data.uri}: {pictures}, {words}", experiment, mesh)
    if is_main_process() and config.data.uri == "builtin:digits":
        print("Digits with captions from templates: a smoke test, no measurement of captions.")
    state = train(experiment, mesh, workdir, config.loop)
    state, values = experiment.evaluate(state)
    write = make_writer(experiment.merge, on_host(state.parameters), data.vocabulary, config)
    if is_main_process():
        report(workdir, data, caption(config, data, write, values["valid_perplexity"]))


def check_needs(config: Config) -> None:
    """An error that names what is missing, before anything is read or trained."""
    require("nltk.translate.bleu_score", "data")  # scores the captions at the end
    flickr8k = config.data.uri.startswith("file:")
    if flickr8k:
        require("PIL.Image", "data")
    files = [local_path(config.data.uri) / name for name in (ARCHIVE, CAPTIONS)] if flickr8k else []
    files += [local_path(config.data.encoder)] if config.data.encoder else []
    if missing := [os.fspath(file) for file in files if not file.exists()]:
        raise FileNotFoundError(
            f"there is no {', '.join(missing)}; the README of image_captioning says what they are, "
            "`python -m zoo.data.fetch flickr8k efficientnet_lite0` fetches what can be fetched"
        )


def load(config: Config, store: pathlib.Path | None = None) -> Data:
    """Reads pictures and captions; the features of an encoder are kept in the file ``store``."""
    sets = read(config.data.uri)
    lines = [" ".join(words) for own in sets["train"].captions for words in own]
    vocabulary = build_vocabulary(lines, split="whitespace", min_count=config.data.min_count)
    return Data(sets, vocabulary, vectors_of(config.data, sets, store))


def model_inputs(config: Config, data: Data, split: str) -> np.ndarray:
    """What the model sees of the pictures: themselves if it trains the encoder, else vectors."""
    return data.sets[split].images if config.data.train_encoder else data.vectors.scaled[split]


def build(config: Config, mesh: Mesh, data: Data | None = None) -> Experiment:
    """Model, loss, optimiser, batches and evaluation; ``data`` is ``load(config)`` if None."""
    data = load(config) if data is None else data
    training, vocabulary = config.training, data.vocabulary
    training_set, held_out = (
        examples(
            model_inputs(config, data, split), data.sets[split], vocabulary, config.data.max_words
        )
        for split in ("train", "valid")
    )
    batches = Pipeline(
        training_set,
        batch_size=training.batch_size,
        seed=training.seed,
        depends_on=(data.sets, vocabulary),
    )
    num_steps = training.epochs * batches.batches_per_epoch
    transformer = transformer_config(config, len(vocabulary))
    init, merge = functional(
        lambda rngs: make_captioner(config, transformer, data.vectors, rngs=rngs)
    )
    evaluation_loss = jax.jit(make_loss(merge))

    def evaluate(state: TrainState) -> tuple[TrainState, dict[str, float]]:
        rows = training.batch_size
        means = held_out_means(
            evaluation_loss, state.parameters, held_out, batch_size=rows, mesh=mesh
        )
        return state, {"valid_perplexity": float(np.exp(means["loss"]))}

    return Experiment(
        init=init,
        merge=merge,
        loss=make_loss(merge, config),
        optimizer=decaying_adamw(training, num_steps),
        batches=batches,
        num_steps=num_steps,
        seed=training.seed,
        evaluate=evaluate,
        evaluate_every=batches.batches_per_epoch,
        rate_unit="words",
        rules=(*placement_rules(transformer), *NORM_RULES),
        compute_dtype=jnp.bfloat16 if training.bfloat16 else None,
    )


def make_loss(merge: Callable[..., Captioner], config: Config | None = None) -> Callable:
    """Sum of the negative log probabilities of the next words, in nats.

    With a config it has dropout and label smoothing; without one it is the loss of an evaluation.
    """

    def loss_fn(parameters: Any, batch: Any, *, key: jax.Array, carry: Any) -> LossOutput:
        model, smoothing = merge(parameters), 0.0
        image = model.condition(batch["image"])
        if config is None:
            key = None
        else:
            key, image_key = jax.random.split(key)
            kept = 1 - config.model.image_dropout
            mask = jax.random.bernoulli(image_key, kept, image.shape)
            image = jnp.where(mask, image / kept, 0)
            smoothing = config.training.label_smoothing
        logits = model.transformer(batch["inputs"], condition=image, key=key)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
        if smoothing:
            # Against the uniform distribution: mean_v of -log p_v.
            uniform = jax.nn.logsumexp(logits, axis=-1) - logits.mean(axis=-1)
            losses = (1 - smoothing) * losses + smoothing * uniform
        place = jnp.arange(losses.shape[1])[None]
        counted = (place < batch["length"][:, None]) & batch["valid"][:, None]
        return LossOutput(jnp.sum(jnp.where(counted, losses, 0)), jnp.sum(counted))

    return loss_fn


def make_writer(
    merge: Callable[..., Captioner], parameters: Any, vocabulary: Vocabulary, config: Config
) -> Writer:
    """Makes ``write(images, beam_size=…, length_penalty=…)``, the captions of pictures."""
    longest, end = config.data.max_words + 1, vocabulary.end  # with the end token
    rules = {"max_length": longest, "end_id": end, "pad_id": end, "banned": (vocabulary.unknown,)}

    @functools.partial(jax.jit, static_argnames="beam_size")
    def search(parameters: Any, images: jax.Array, penalty: jax.Array, *, beam_size: int) -> Any:
        model, prompt = merge(parameters), jnp.full((len(images), 1), end)
        read = prefill(
            model.transformer, prompt, max_length=longest, condition=model.condition(images)
        )
        options = {"start": read.start, **rules}
        if beam_size == 1:
            key = jax.random.key(0)
            return sample(key, read.step_fn, read.state, temperature=0, **options).tokens
        found = beam_search(
            read.step_fn,
            read.state,
            state_axes=read.state_axes,
            beam_size=beam_size,
            num_results=1,
            length_penalty=penalty,
            **options,
        )
        return found.tokens[:, 0]

    def write(images: np.ndarray, *, beam_size: int = 1, length_penalty: float = 0.0) -> Captions:
        rows, penalty = config.search.batch_size, jnp.float32(length_penalty)
        padded = np.concatenate([images, np.repeat(images[-1:], -len(images) % rows, axis=0)])
        parts = [
            search(parameters, padded[i : i + rows], penalty, beam_size=beam_size)
            for i in range(0, len(padded), rows)
        ]
        tokens = np.concatenate(parts)[: len(images)].tolist()
        return [[vocabulary.tokens[n] for n in row if n != end] for row in tokens]

    return write


def caption(config: Config, data: Data, write: Writer, perplexity: float) -> Results:
    """Captions of the test pictures with the length penalty that is best on the held-out ones."""
    references = {split: part.captions for split, part in data.sets.items()}
    images = {split: model_inputs(config, data, split) for split in ("valid", "test")}
    size = config.search.beam_size
    tried = {
        penalty: scores.bleu(
            write(images["valid"], beam_size=size, length_penalty=penalty), references["valid"]
        )
        for penalty in config.search.length_penalties
    }
    penalty = max(tried, key=lambda value: tried[value]["BLEU-4"])
    beams = write(images["test"], beam_size=size, length_penalty=penalty)
    test, vectors = references["test"], data.vectors.scaled
    table = {
        "greedy": scores.bleu(write(images["test"]), test),
        f"beam {size}, length penalty {penalty:g}": scores.bleu(beams, test),
        "the same captions, each for the next picture": scores.bleu(beams[-1:] + beams[:-1], test),
        **scores.baselines(test, references["train"], vectors["test"], vectors["train"]),
    }
    penalties = {str(value): found for value, found in tried.items()}
    named = digits_named(beams, test) if config.data.uri == "builtin:digits" else None
    return Results(beams, table, penalties, perplexity, named)


def report(workdir: pathlib.Path, data: Data, results: Results) -> None:
    """Table, captions, the sheet and the summary."""
    captions, test = results.captions, data.sets["test"]
    results_table(
        [{"captions": name} | values for name, values in results.bleu.items()],
        title=f"{len(captions):,} test pictures, BLEU in percent",
    )
    for words, own in list(zip(captions, test.captions, strict=True))[:5]:
        print(f"  {' '.join(words)}   ({' '.join(own[0])})")
    if results.digits_named is not None:
        print(f"{results.digits_named:.1%} of the captions name the digit that is there.")
    replace_file(workdir / "captions.txt", "".join(" ".join(own) + "\n" for own in captions))
    shown = (captions[:SHOWN], test.captions[:SHOWN])
    picture = figures.save(workdir, test.images[:SHOWN], *shown, scores.each_bleu(*shown))
    summary = {
        "test": results.bleu,
        "length_penalties_on_valid": results.penalties,
        "valid_perplexity": results.perplexity,
        "variety": scores.variety(captions, data.sets["train"].captions),
        "digits_named": results.digits_named,
    }
    finish(workdir, summary, [picture])
