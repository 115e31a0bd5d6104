"""Trains the captioner, writes captions by greedy and beam search, and scores them."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

from experiments.command_line import MAY_CHANGE
from experiments.image_captioning import data, figures, scores
from experiments.image_captioning.config import Config
from experiments.image_captioning.model import Captioner, make_captioner, transformer_config
from experiments.running import decaying_adamw, fit_in, number_of_parameters, on_host, open_mesh
from zoo.data import Pipeline, Vocabulary, build_word_vocabulary
from zoo.decoding import beam_search, prefill, sample
from zoo.training import (
    LossOutput,
    TrainState,
    functional,
    init_state,
    make_train_step,
    open_workdir,
    put_batch,
    results_table,
    write_summary,
)
from zoo.transformer import placement_rules

NORM_RULES = (  # of the bottleneck between the image vector and each norm
    (r"layers/\w+_norm/hidden_kernel$", PartitionSpec(None, "fsdp", None)),
    (r"layers/\w+_norm/(scale|bias)_kernel$", PartitionSpec(None, None, "fsdp")),
)
SHOWN = 300  # pictures of the test from which the sheet takes the best and the worst

Writer = Callable[..., list[list[str]]]


def run(config: Config) -> None:
    """Runs the experiment; continues where an earlier run in the same folder stopped."""
    mesh = open_mesh(config.mesh, config.distributed)
    sets = data.read(config.data.uri)
    lines = [" ".join(words) for own in sets["train"].captions for words in own]
    vocabulary = build_word_vocabulary(
        lines, min_count=config.data.min_count, lowercase=False, split="whitespace"
    )
    transformer = transformer_config(config, len(vocabulary))
    workdir = open_workdir(config.workdir, config, ignore=MAY_CHANGE)
    vectors = data.vectors_of(config.data, sets, workdir / "features.npz")
    # What the model looks at: an encoder that learns needs the pictures.
    seen = (
        {split: part.images for split, part in sets.items()}
        if config.data.train_encoder
        else vectors.scaled
    )
    examples = {
        split: data.examples(seen[split], sets[split], vocabulary, config.data.max_words)
        for split in ("train", "valid")
    }
    training = config.training
    batches = Pipeline(examples["train"], batch_size=training.batch_size, seed=training.seed)
    num_steps = training.epochs * batches.batches_per_epoch
    init_parameters, rebuild = functional(
        lambda rngs: make_captioner(config, transformer, vectors, rngs=rngs)
    )
    optimizer = decaying_adamw(training, num_steps)
    state = init_state(
        init_parameters,
        optimizer,
        key=jax.random.key(training.seed),
        mesh=mesh,
        rules=(*placement_rules(transformer), *NORM_RULES),
    )
    step = make_train_step(
        make_loss(rebuild, config),
        optimizer,
        compute_dtype=jnp.bfloat16 if training.bfloat16 else None,
        shardings=state.shardings,
    )
    evaluation_loss = jax.jit(make_loss(rebuild))

    def evaluate(state: TrainState) -> dict[str, float]:
        held_out = Pipeline(
            examples["valid"], batch_size=training.batch_size, seed=0, num_epochs=1, shuffle=False
        )
        total = weight = 0.0
        for batch in held_out:
            output = evaluation_loss(
                state.parameters, put_batch(batch, mesh), key=state.key, carry=None
            )
            total, weight = total + float(output.total), weight + float(output.weight)
        return {"valid_perplexity": float(np.exp(total / weight))}

    if jax.process_index() == 0:
        size = number_of_parameters(state.parameters)
        print(
            f"{config.data.uri}: {len(seen['train']):,} pictures with {len(lines):,} captions, "
            f"{len(vocabulary):,} words; {size:,} parameters; {num_steps:,} steps on {mesh.size} "
            f"{jax.devices()[0].device_kind} device(s)"
        )
        if config.data.uri == "builtin:digits":
            print("Digits with captions from templates: a smoke test, no measurement of captions.")
    state = fit_in(
        workdir,
        config.loop,
        step,
        state,
        batches,
        num_steps=num_steps,
        mesh=mesh,
        evaluate=evaluate,
        evaluate_every=batches.batches_per_epoch,
        rate_unit="words",
    )
    perplexity = evaluate(state)["valid_perplexity"]
    parameters = on_host(state.parameters)
    write = make_writer(rebuild, parameters, vocabulary, config)
    if jax.process_index() == 0:
        report(workdir, config, sets, vectors.scaled, seen, write, perplexity)


def make_loss(rebuild: Callable[..., Captioner], config: Config | None = None) -> Callable:
    """Sum of the negative log probabilities of the next words, in nats.

    With a config there are dropout and label smoothing, as in training; without this is the loss of
    an evaluation.
    """

    def loss_fn(parameters: Any, batch: Any, *, key: jax.Array, carry: Any) -> LossOutput:
        model, smoothing = rebuild(parameters), 0.0
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
            even = jax.nn.logsumexp(logits, axis=-1) - logits.mean(axis=-1)
            losses = (1 - smoothing) * losses + smoothing * even
        place = jnp.arange(losses.shape[1])[None]
        counted = (place < batch["length"][:, None]) & batch["valid"][:, None]
        return LossOutput(jnp.sum(jnp.where(counted, losses, 0)), jnp.sum(counted))

    return loss_fn


def make_writer(
    rebuild: Callable[..., Captioner], parameters: Any, vocabulary: Vocabulary, config: Config
) -> Writer:
    """Makes ``write(images, beam_size=…, length_penalty=…)``, captions of pictures as words."""
    longest = config.data.max_words + 1  # with the end token
    rules = {
        "max_length": longest,
        "end_id": vocabulary.end,
        "pad_id": vocabulary.end,
        "banned": (vocabulary.unknown,),
    }

    @functools.partial(jax.jit, static_argnames="beam_size")
    def search(
        parameters: Any, images: jax.Array, length_penalty: jax.Array, *, beam_size: int
    ) -> jax.Array:
        model = rebuild(parameters)
        prompt, condition = jnp.full((len(images), 1), vocabulary.end), model.condition(images)
        read = prefill(model.transformer, prompt, max_length=longest, condition=condition)
        if beam_size == 1:
            greedy = sample(
                jax.random.key(0),
                read.step_fn,
                read.state,
                start=read.start,
                temperature=0,
                **rules,
            )
            return greedy.tokens
        found = beam_search(
            read.step_fn,
            read.state,
            start=read.start,
            state_axes=read.state_axes,
            beam_size=beam_size,
            num_results=1,
            length_penalty=length_penalty,
            **rules,
        )
        return found.tokens[:, 0]

    def write(
        images: np.ndarray, *, beam_size: int = 1, length_penalty: float = 0.0
    ) -> list[list[str]]:
        rows = config.search.batch_size
        padded = np.concatenate([images, np.repeat(images[-1:], -len(images) % rows, axis=0)])
        penalty = jnp.float32(length_penalty)
        tokens = np.concatenate(
            [
                search(parameters, padded[i : i + rows], penalty, beam_size=beam_size)
                for i in range(0, len(padded), rows)
            ]
        )[: len(images)]
        return [
            [vocabulary.tokens[token] for token in row if token != vocabulary.end] for row in tokens
        ]

    return write


def report(
    workdir: pathlib.Path,
    config: Config,
    sets: dict[str, data.Captioned],
    vectors: dict[str, np.ndarray],
    seen: dict[str, np.ndarray],
    write: Writer,
    perplexity: float,
) -> None:
    """Writes captions of the test pictures, scores them, and draws the sheet."""
    references = {split: part.captions for split, part in sets.items()}
    size = config.search.beam_size
    tried = {
        penalty: scores.bleu(
            write(seen["valid"], beam_size=size, length_penalty=penalty), references["valid"]
        )
        for penalty in config.search.length_penalties
    }
    penalty = max(tried, key=lambda value: tried[value]["BLEU-4"])
    greedy = write(seen["test"])
    beams = write(seen["test"], beam_size=size, length_penalty=penalty)
    test = references["test"]
    table = {
        "greedy": scores.bleu(greedy, test),
        f"beam {size}, length penalty {penalty:g}": scores.bleu(beams, test),
        "the same captions, each for the next picture": scores.bleu(beams[-1:] + beams[:-1], test),
        **scores.baselines(test, references["train"], vectors["test"], vectors["train"]),
    }
    results_table(
        [{"captions": name} | values for name, values in table.items()],
        title=f"{len(test):,} test pictures, BLEU in percent",
    )
    summary: dict[str, Any] = {
        "test": table,
        "length_penalties_on_valid": {str(value): found for value, found in tried.items()},
        "valid_perplexity": perplexity,
        "variety": scores.variety(beams, references["train"]),
        "jax": jax.__version__,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
    if config.data.uri == "builtin:digits":
        summary["digits_named"] = data.digits_named(beams, test)
        print(f"{summary['digits_named']:.1%} of the captions name the digit that is there.")
    for words, own in list(zip(beams, test, strict=True))[:5]:
        print(f"  {' '.join(words)}   ({' '.join(own[0])})")
    each = scores.each_bleu(beams[:SHOWN], test[:SHOWN])
    picture = figures.sheet(
        workdir / "captions.png", sets["test"].images[:SHOWN], beams[:SHOWN], test[:SHOWN], each
    )
    with (workdir / "captions.txt").open("w", encoding="utf-8") as lines:
        lines.writelines(" ".join(words) + "\n" for words in beams)
    print("written:", picture, write_summary(workdir, summary))
