"""Trains the language model, compares it with a 5-gram model, and scores the trees it sees."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from zoo.data import (
    Source,
    StreamPipeline,
    Vocabulary,
    build_vocabulary,
    encode_lines,
    open_source,
)
from zoo.data.vocabulary import check_vocabulary
from zoo.ordered import OnLstmLanguageModel, nt_asgd
from zoo.ordered.nt_asgd import nt_asgd_parameters, observe_validation
from zoo.ordered.regularization import activation_penalty
from zoo.ordered.treebank import GoldTree
from zoo.training import LossOutput, TrainState, functional, open_workdir, put_batch, results_table

from ..command_line import MAY_CHANGE
from ..running import (
    Experiment,
    announce,
    check_rows,
    decaying_adamw,
    finish,
    is_main_process,
    open_mesh,
    train,
)
from ..unigram import judged, unigram_entropy
from . import figures, ngram, parsing
from .config import Config, DataConfig, TrainingConfig
from .windows import RandomWindows

SPLITS = ("train", "valid", "test")

# The columns of the kernels and the rows of the table are what grows with the model.
RULES = (
    (r"embedding$", PartitionSpec("model", "fsdp")),
    (r"kernel$", PartitionSpec("fsdp", "model")),
)


class Data(NamedTuple):
    """The texts and what they are read with."""

    sources: dict[str, Source]  # by split
    vocabulary: Vocabulary
    ids: dict[str, np.ndarray]  # int32 [N] by split
    gold: list[GoldTree]


def run(config: Config) -> None:
    """Runs the experiment; continues where an earlier run in the same folder stopped."""
    mesh = open_mesh(config)
    check_rows(mesh, config.training, "evaluation_batch_size")
    data = load(config)
    experiment = build(config, mesh, data)
    workdir = open_workdir(config.workdir, config, ignore=MAY_CHANGE)
    keep_vocabulary(workdir / "vocabulary.json", data.vocabulary)
    text = f"{len(data.ids['train']):,} tokens, {len(data.vocabulary):,} types"
    announce(f"{config.data.uri}: {text}", experiment, mesh)
    baseline, single = ngram_perplexities(data), unigram_perplexities(data)
    state = train(experiment, mesh, workdir, config.loop)
    ours = {split: experiment.evaluate(state, split)[1] for split in SPLITS[1:]}
    ours = {split: values[f"{split}_perplexity"] for split, values in ours.items()}
    parameters = parameters_that_count(state, config.training)
    seen = parsing.read_trees(
        experiment.merge, parameters, data.sources["valid"], data.vocabulary, data.gold
    )
    if is_main_process():
        report(workdir, baseline, single, ours, seen)


def load(config: Config) -> Data:
    """Reads the texts and the treebank, and makes the vocabulary of the training text."""
    sources = {split: open_source(config.data.uri, split=split) for split in SPLITS}
    vocabulary = make_vocabulary(sources["train"], config.data)
    ids = {split: encode_lines(source, vocabulary) for split, source in sources.items()}
    return Data(sources, vocabulary, ids, parsing.open_treebank(config.parsing))


def build(config: Config, mesh: Mesh, data: Data | None = None) -> Experiment:
    """Model, loss, optimiser, batches and evaluation; ``data`` is ``load(config)`` if None."""
    data = load(config) if data is None else data
    training = config.training
    windows = RandomWindows if training.random_lengths else StreamPipeline
    batches = windows(
        data.ids["train"],
        batch_size=training.batch_size,
        num_steps=training.num_steps,
        seed=training.seed,
        depends_on=(data.vocabulary, data.ids),
    )
    num_steps = training.epochs * batches.batches_per_epoch
    init, merge = functional(
        lambda rngs: OnLstmLanguageModel(
            len(data.vocabulary), **dataclasses.asdict(config.model), rngs=rngs
        )
    )
    evaluation_loss = jax.jit(make_loss(merge))

    rows = training.evaluation_batch_size

    def read_held_out(split: str) -> StreamPipeline:
        return StreamPipeline(
            data.ids[split],
            batch_size=rows,
            num_steps=training.num_steps,
            seed=0,
            num_epochs=1,
            shuffle_offset=False,
        )

    for split in SPLITS[1:]:  # a text that is too short is found out before the training
        read_held_out(split).close()

    def evaluate(state: TrainState, split: str = "valid") -> tuple[TrainState, dict[str, float]]:
        held_out = read_held_out(split)
        carry = put_batch(local_carries(merge, init, rows), mesh)
        parameters = parameters_that_count(state, training)
        total = weight = 0.0
        for batch in held_out:
            output = evaluation_loss(parameters, put_batch(batch, mesh), key=state.key, carry=carry)
            carry = output.carry
            total, weight = total + float(output.total), weight + float(output.weight)
        loss = total / weight
        if split == "valid" and training.optimizer == "nt_asgd":
            observed = observe_validation(state.optimizer_state, loss)
            state = state._replace(optimizer_state=observed)
        return state, {f"{split}_perplexity": float(np.exp(loss))}

    return Experiment(
        init=init,
        merge=merge,
        loss=make_loss(merge, training),
        optimizer=make_optimizer(training, num_steps, getattr(batches, "lengths", None)),
        batches=batches,
        num_steps=num_steps,
        seed=training.seed,
        evaluate=evaluate,
        evaluate_every=batches.batches_per_epoch,
        rate_unit="tokens",
        rules=RULES,
        carry=local_carries(merge, init, training.batch_size),
        accumulation_steps=training.accumulation_steps,
        compute_dtype=jnp.bfloat16 if training.bfloat16 else None,
    )


def parameters_that_count(state: TrainState, training: TrainingConfig) -> Any:
    """The average that NT-ASGD keeps, or the parameters themselves."""
    if training.optimizer == "nt_asgd":
        return nt_asgd_parameters(state.optimizer_state, state.parameters)
    return state.parameters


def ngram_perplexities(data: Data) -> dict[str, float]:
    """Perplexity of a 5-gram model on the held-out splits."""
    size = len(data.vocabulary)
    orders = ngram.fit_kneser_ney(data.ids["train"], vocab_size=size)
    return {
        split: ngram.perplexity(orders, data.ids[split], vocab_size=size) for split in SPLITS[1:]
    }


def unigram_perplexities(data: Data) -> dict[str, float]:
    """Perplexity of single tokens on the held-out splits: what a model must beat."""
    train, size = data.ids["train"], len(data.vocabulary)
    return {
        split: float(np.exp(unigram_entropy(train, data.ids[split], vocab_size=size)))
        for split in SPLITS[1:]
    }


def make_vocabulary(source: Any, data: DataConfig) -> Vocabulary:
    """The vocabulary of the training text as the config asks for it."""
    return build_vocabulary(
        source,
        split=data.tokens,
        max_size=data.max_vocabulary or (8000 if data.tokens == "subwords" else None),
        min_count=1 if data.tokens in ("characters", "subwords") else data.min_count,
        lowercase=data.lowercase and data.tokens not in ("characters", "subwords"),
    )


def keep_vocabulary(path: pathlib.Path, vocabulary: Vocabulary) -> None:
    """Saves the vocabulary of a new run, or checks that a run goes on with its own."""
    if path.exists():
        check_vocabulary(Vocabulary.load(path).digest, vocabulary)
    elif is_main_process():
        vocabulary.save(path)


def make_optimizer(
    training: TrainingConfig, num_steps: int, lengths: np.ndarray | None = None
) -> optax.GradientTransformation:
    """AdamW with warm-up and cosine decay, or SGD as published, both with clipping.

    ``lengths`` [batches of an epoch] are those of the windows, which scale the rate of SGD.
    """
    if training.optimizer == "adamw":
        return decaying_adamw(training, num_steps)
    rate: Any = training.learning_rate
    if lengths is not None:
        rates = jnp.asarray(rate * lengths / training.num_steps, jnp.float32)
        rate = lambda step: rates[step % len(rates)]  # noqa: E731
    sgd = [
        optax.clip_by_global_norm(training.gradient_clip),
        optax.add_decayed_weights(training.weight_decay),
        optax.sgd(rate),
    ]
    averaging = [nt_asgd(patience=training.patience)] if training.optimizer == "nt_asgd" else []
    return optax.chain(*sgd, *averaging)


def make_loss(
    merge: Callable[..., OnLstmLanguageModel], training: TrainingConfig | None = None
) -> Callable:
    """Sum of the negative log probabilities of the next tokens, in nats.

    With the settings of a training also dropout and the penalties on the last layer's states, which
    are then part of the loss; without them this is the loss of an evaluation.
    """

    def loss_fn(parameters: Any, batch: Any, *, key: jax.Array, carry: Any) -> LossOutput:
        def fresh(leaf: jax.Array) -> jax.Array:
            start = jnp.expand_dims(batch["start"], tuple(range(1, leaf.ndim)))
            return jnp.where(start, jnp.zeros_like(leaf), leaf)

        def handed_on(new: jax.Array, old: jax.Array) -> jax.Array:
            return jax.lax.stop_gradient(new).astype(old.dtype)  # float32 in bfloat16 training too

        # The text of an epoch does not follow on that of the one before it.
        carry = jax.tree.map(fresh, carry)
        key = None if training is None else key
        output = merge(parameters)(batch["inputs"], carry, key=key, mask=batch.get("mask"))
        losses = optax.softmax_cross_entropy_with_integer_labels(output.logits, batch["targets"])
        if training is not None and (training.activation_penalty or training.temporal_penalty):
            losses += activation_penalty(
                output.features,
                activation=training.activation_penalty,
                temporal=training.temporal_penalty,
            )
        return LossOutput(
            total=jnp.sum(jnp.where(batch["valid"], losses, 0)),
            weight=jnp.sum(batch["valid"]),
            carry=jax.tree.map(handed_on, output.carries, carry),
        )

    return loss_fn


def local_carries(merge: Callable, init: Callable, rows: int) -> Any:
    """Zero carries for this process's share of ``rows``."""
    local = rows // jax.process_count()
    shapes = jax.eval_shape(lambda key: merge(init(key)).initial_carries(local), jax.random.key(0))
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def report(
    workdir: pathlib.Path,
    baseline: dict[str, float],
    single: dict[str, float],
    ours: dict[str, float],
    seen: parsing.Seen,
) -> None:
    """Tables, trees, pictures and summary."""
    perplexities = (
        ("single words", single),
        ("5-gram, modified Kneser-Ney", baseline),
        (judged("ON-LSTM", ours["valid"], single["valid"]), ours),
    )
    results_table(
        [
            {"model": name, **{f"{split} perplexity": numbers[split] for split in SPLITS[1:]}}
            for name, numbers in perplexities
        ],
        title="Held-out text, same vocabulary",
    )
    for layers in seen.trees:
        for number, tree in enumerate(layers, start=1):
            print(f"layer {number}: {figures.brackets(tree)}")
    summary = {
        "unigram": single,
        "baseline": baseline,
        "on_lstm": ours,
        "trees": [[figures.brackets(tree) for tree in layers] for layers in seen.trees],
        "parsing": seen.table,
    }
    if seen.table:
        # In two, for the width of a terminal: how well brackets agree, and what they are like.
        scores = [name for name in seen.table[0] if "F1" in name]
        others = [name for name in seen.table[0] if name not in scores]
        for names, title in (
            (["trees", *scores], "Brackets of the layers against the treebank, %"),
            (others, "Recall by label, %, and depth"),
        ):
            results_table([{name: row[name] for name in names} for row in seen.table], title=title)
        print(parsing.NOTE)
        summary["parsing_note"] = parsing.NOTE
    finish(workdir, summary, figures.save(workdir, baseline["valid"], seen))
