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

from experiments.command_line import MAY_CHANGE
from experiments.on_lstm_language_model import figures, ngram, parsing
from experiments.on_lstm_language_model.config import Config, DataConfig, TrainingConfig
from experiments.on_lstm_language_model.windows import RandomWindows
from experiments.running import (
    Experiment,
    finish,
    is_main_process,
    number_of_parameters,
    on_devices,
    open_mesh,
    train,
)
from zoo.data import (
    Source,
    StreamPipeline,
    Vocabulary,
    build_character_vocabulary,
    build_word_vocabulary,
    check_vocabulary,
    encode_lines,
    open_source,
    train_subword_vocabulary,
)
from zoo.ordered import OnLstmLanguageModel, depths_to_tree
from zoo.ordered.nt_asgd import nt_asgd, nt_asgd_parameters, observe_validation
from zoo.ordered.regularization import activation_penalty
from zoo.ordered.treebank import GoldTree
from zoo.ordered.trees import Tree
from zoo.training import (
    LossOutput,
    TrainState,
    functional,
    open_workdir,
    put_batch,
    results_table,
)

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


class Results(NamedTuple):
    """What the report shows."""

    baseline: dict[str, float]  # perplexity by split
    ours: dict[str, float]
    sentences: list[list[str]]
    trees: list[list[Tree]]  # by sentence and layer
    gates: list[np.ndarray] | None  # [words, levels] by layer, of the first sentence
    table: list[dict[str, str | float]]  # scores against the treebank
    compared: tuple[np.ndarray, GoldTree] | None


def run(config: Config) -> None:
    """Runs the experiment; continues where an earlier run in the same folder stopped."""
    mesh = open_mesh(config)
    data = load(config)
    experiment = build(config, mesh, data)
    workdir = open_workdir(config.workdir, config, ignore=MAY_CHANGE)
    keep_vocabulary(workdir / "vocabulary.json", data.vocabulary)
    if is_main_process():
        size = number_of_parameters(experiment.abstract_state(mesh).parameters)
        print(
            f"{config.data.uri}: {len(data.ids['train']):,} tokens, {len(data.vocabulary):,} "
            f"types; {size:,} parameters; {experiment.num_steps:,} steps on {on_devices(mesh)}"
        )
    baseline = ngram_perplexities(data)
    state = train(experiment, mesh, workdir, config.loop)
    ours = {split: experiment.evaluate(state, split)[1] for split in SPLITS[1:]}
    ours = {split: values[f"{split}_perplexity"] for split, values in ours.items()}
    parameters = parameters_that_count(state, config.training)
    results = Results(baseline, ours, *parse(experiment.merge, parameters, data, config))
    if is_main_process():
        report(workdir, results)


def load(config: Config) -> Data:
    """Reads the texts and the treebank, and makes the vocabulary of the training text."""
    sources = {split: open_source(config.data.uri, split=split) for split in SPLITS}
    vocabulary = make_vocabulary(sources["train"], config.data)
    ids = {split: encode_lines(source, vocabulary) for split, source in sources.items()}
    treebank = config.parsing.treebank
    return Data(sources, vocabulary, ids, parsing.open_treebank(treebank) if treebank else [])


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
    )
    num_steps = training.epochs * batches.batches_per_epoch
    init, merge = functional(
        lambda rngs: OnLstmLanguageModel(
            len(data.vocabulary), **dataclasses.asdict(config.model), rngs=rngs
        )
    )
    evaluation_loss = jax.jit(make_loss(merge))

    def evaluate(state: TrainState, split: str = "valid") -> tuple[TrainState, dict[str, float]]:
        rows = training.evaluation_batch_size
        held_out = StreamPipeline(
            data.ids[split],
            batch_size=rows,
            num_steps=training.num_steps,
            seed=0,
            num_epochs=1,
            shuffle_offset=False,
        )
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


def parse(merge: Callable[..., Any], parameters: Any, data: Data, config: Config) -> tuple:
    """The fields of ``Results`` from ``sentences`` on: trees, gates and their scores."""
    read = parsing.make_reader(merge, end=data.vocabulary.end)
    sentences = choose_sentences(data.sources["valid"], data.vocabulary)
    encoded = parsing.encode_sentences(sentences, data.vocabulary)
    trees = [
        [depths_to_tree(depths, words) for depths in layers]
        for words, layers in zip(
            sentences, read(parameters, encoded) if encoded else [], strict=True
        )
    ]
    gates = None
    if sentences and config.model.master_input != "none":
        gates = read_gates(merge, parameters, sentences[0], data.vocabulary)
    if not data.gold:
        return sentences, trees, gates, [], None
    words = [tree.words for tree in data.gold]
    depths = read(parameters, parsing.encode_sentences(words, data.vocabulary))
    pairs = zip(depths, data.gold, strict=True)
    compared = next((pair for pair in pairs if 7 <= len(pair[1].words) <= 12), None)
    return sentences, trees, gates, parsing.table_of_scores(depths, data.gold), compared


def make_vocabulary(source: Any, data: DataConfig) -> Vocabulary:
    """The vocabulary of the training text as the config asks for it."""
    if data.tokens == "characters":
        return build_character_vocabulary(source)
    if data.tokens == "subwords":
        return train_subword_vocabulary(source, size=data.max_vocabulary or 8000)
    return build_word_vocabulary(
        source,
        max_size=data.max_vocabulary,
        min_count=data.min_count,
        lowercase=data.lowercase,
        split=data.tokens,
    )


def keep_vocabulary(path: pathlib.Path, vocabulary: Vocabulary) -> None:
    """Saves the vocabulary of a new run, or checks that a run goes on with its own."""
    if path.exists():
        check_vocabulary(Vocabulary.load(path).digest, vocabulary)
    elif jax.process_index() == 0:
        vocabulary.save(path)


def make_optimizer(
    training: TrainingConfig, num_steps: int, lengths: np.ndarray | None = None
) -> optax.GradientTransformation:
    """Clipping, then AdamW with warm-up and cosine decay, or SGD as published.

    ``lengths`` [batches of an epoch] are those of the windows, which scale the rate of SGD.
    """
    clip = optax.clip_by_global_norm(training.gradient_clip)
    if training.optimizer != "adamw":
        decay = optax.add_decayed_weights(training.weight_decay)
        rate: Any = training.learning_rate
        if lengths is not None:
            rates = jnp.asarray(rate * lengths / training.num_steps, jnp.float32)
            rate = lambda step: rates[step % len(rates)]  # noqa: E731
        sgd = [clip, decay, optax.sgd(rate)]
        if training.optimizer == "nt_asgd":
            sgd.append(nt_asgd(patience=training.patience))
        return optax.chain(*sgd)
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=training.learning_rate,
        warmup_steps=max(1, num_steps // 10),
        decay_steps=num_steps,
    )
    # A memory of 100 steps for the squares: a run has only some hundred.
    return optax.chain(clip, optax.adamw(schedule, b2=0.99, weight_decay=training.weight_decay))


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

        model = merge(parameters)
        # The text of an epoch does not follow on that of the one before it.
        carry = jax.tree.map(fresh, carry)
        output = model(
            batch["inputs"],
            carry,
            key=None if training is None else key,
            mask=batch.get("mask"),
        )
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
            # Kept as it came: in bfloat16 the carry is still handed on in float32.
            carry=jax.tree.map(
                lambda new, old: jax.lax.stop_gradient(new).astype(old.dtype),
                output.carries,
                carry,
            ),
        )

    return loss_fn


def local_carries(merge: Callable, init: Callable, rows: int) -> Any:
    """Zero carries for this process's share of ``rows``."""
    local = rows // jax.process_count()
    shapes = jax.eval_shape(lambda key: merge(init(key)).initial_carries(local), jax.random.key(0))
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def choose_sentences(source: Any, vocabulary: Vocabulary, count: int = 3) -> list[list[str]]:
    """The first lines of held-out text with 7 to 12 tokens that are all in the vocabulary."""
    sentences = []
    for example in source:
        ids = vocabulary.encode(example["text"])
        if 7 <= len(ids) <= 12 and vocabulary.unknown not in ids:
            sentences.append([vocabulary.tokens[number] for number in ids])
        if len(sentences) == count:
            break
    return sentences


def read_gates(
    merge: Callable, parameters: Any, sentence: list[str], vocabulary: Vocabulary
) -> list[np.ndarray]:
    """The master forget gates ``[words, levels]`` of each layer, after an end of line."""
    ids = np.array([[vocabulary.end, *parsing.encode_sentences([sentence], vocabulary)[0]]])
    layers = jax.jit(lambda parameters, ids: merge(parameters).master_gates(ids))(parameters, ids)
    return [np.asarray(gates.forget[0, 1:]) for gates in layers]


def report(workdir: pathlib.Path, results: Results) -> None:
    """Tables, trees, pictures and summary."""
    perplexities = (("5-gram, modified Kneser-Ney", results.baseline), ("ON-LSTM", results.ours))
    results_table(
        [
            {"model": name, **{f"{split} perplexity": numbers[split] for split in SPLITS[1:]}}
            for name, numbers in perplexities
        ],
        title="Held-out text, same vocabulary",
    )
    for layers in results.trees:
        for number, tree in enumerate(layers, start=1):
            print(f"layer {number}: {figures.brackets(tree)}")
    if table := results.table:
        # In two, for the width of a terminal: how well brackets agree, and what they are like.
        scores = [name for name in table[0] if "F1" in name]
        others = [name for name in table[0] if name not in scores]
        for names, title in (
            (["trees", *scores], "Brackets of the layers against the treebank, %"),
            (others, "Recall by label, %, and depth"),
        ):
            results_table([{name: row[name] for name in names} for row in table], title=title)
        print(parsing.NOTE)
    pictures = figures.save(
        workdir,
        results.baseline["valid"],
        results.sentences,
        results.gates,
        results.trees,
        results.compared,
    )
    summary = {
        "baseline": results.baseline,
        "on_lstm": results.ours,
        "trees": [[figures.brackets(tree) for tree in layers] for layers in results.trees],
        "parsing": table,
    }
    finish(workdir, summary | ({"parsing_note": parsing.NOTE} if table else {}), pictures)
