"""Trains the language model, compares it with a 5-gram model, and scores the trees it sees."""

import dataclasses
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
from experiments.on_lstm_language_model import figures, ngram, parsing
from experiments.on_lstm_language_model.config import Config, DataConfig, TrainingConfig
from experiments.on_lstm_language_model.windows import RandomWindows
from experiments.running import fit_in, number_of_parameters, open_mesh
from zoo.data import (
    StreamPipeline,
    Vocabulary,
    build_character_vocabulary,
    build_word_vocabulary,
    check_vocabulary,
    encode_lines,
    open_source,
    train_subword_vocabulary,
)
from zoo.ordered import (
    GoldTree,
    OnLstmLanguageModel,
    Tree,
    activation_penalty,
    depths_to_tree,
    nt_asgd,
    nt_asgd_parameters,
    observe_validation,
)
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

SPLITS = ("train", "valid", "test")

# The columns of the kernels and the rows of the table are what grows with the model.
RULES = (
    (r"embedding$", PartitionSpec("model", "fsdp")),
    (r"kernel$", PartitionSpec("fsdp", "model")),
)


def run(config: Config) -> None:
    """Runs the experiment; continues where an earlier run in the same folder stopped."""
    mesh = open_mesh(config.mesh, config.distributed)
    sources = {split: open_source(config.data.uri, split=split) for split in SPLITS}
    vocabulary = build_vocabulary(sources["train"], config.data)
    ids = {split: encode_lines(source, vocabulary) for split, source in sources.items()}
    gold = parsing.open_treebank(config.parsing.treebank) if config.parsing.treebank else []
    training = config.training
    windows = RandomWindows if training.random_lengths else StreamPipeline
    batches = windows(
        ids["train"],
        batch_size=training.batch_size,
        num_steps=training.num_steps,
        seed=training.seed,
    )
    num_steps = training.epochs * batches.batches_per_epoch
    init_parameters, rebuild = functional(
        lambda rngs: OnLstmLanguageModel(
            len(vocabulary), **dataclasses.asdict(config.model), rngs=rngs
        )
    )
    lengths = batches.lengths if isinstance(batches, RandomWindows) else None
    optimizer = make_optimizer(training, num_steps, lengths)

    workdir = open_workdir(config.workdir, config, ignore=MAY_CHANGE)
    keep_vocabulary(workdir / "vocabulary.json", vocabulary)
    state = init_state(
        init_parameters,
        optimizer,
        key=jax.random.key(training.seed),
        mesh=mesh,
        rules=RULES,
        carry=local_carries(rebuild, init_parameters, training.batch_size),
    )
    step = make_train_step(
        make_loss(rebuild, training),
        optimizer,
        accumulation_steps=training.accumulation_steps,
        compute_dtype=jnp.bfloat16 if training.bfloat16 else None,
        shardings=state.shardings,
    )
    evaluation_loss = jax.jit(make_loss(rebuild))
    averaging = training.optimizer == "nt_asgd"

    def evaluated(state: TrainState) -> Any:
        """The parameters that count."""
        if averaging:
            return nt_asgd_parameters(state.optimizer_state, state.parameters)
        return state.parameters

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=state.shardings)
    def observe(state: TrainState, loss: float) -> TrainState:
        return state._replace(optimizer_state=observe_validation(state.optimizer_state, loss))

    def evaluate(state: TrainState, split: str = "valid") -> dict[str, float]:
        rows = training.evaluation_batch_size
        held_out = StreamPipeline(
            ids[split],
            batch_size=rows,
            num_steps=training.num_steps,
            seed=0,
            num_epochs=1,
            shuffle_offset=False,
        )
        carry = put_batch(local_carries(rebuild, init_parameters, rows), mesh)
        parameters = evaluated(state)
        total = weight = 0.0
        for batch in held_out:
            output = evaluation_loss(parameters, put_batch(batch, mesh), key=state.key, carry=carry)
            carry = output.carry
            total, weight = total + float(output.total), weight + float(output.weight)
        return {f"{split}_perplexity": float(np.exp(total / weight))}

    if jax.process_index() == 0:
        size = number_of_parameters(state.parameters)
        print(
            f"{config.data.uri}: {len(ids['train']):,} tokens, {len(vocabulary):,} types; "
            f"{size:,} parameters; {num_steps:,} steps on {mesh.size} "
            f"{jax.devices()[0].device_kind} device(s)"
        )
    orders = ngram.fit_kneser_ney(ids["train"], vocab_size=len(vocabulary))
    baseline = {
        split: ngram.perplexity(orders, ids[split], vocab_size=len(vocabulary))
        for split in SPLITS[1:]
    }
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
        after_evaluation=(
            (lambda state, values: observe(state, np.log(values["valid_perplexity"])))
            if averaging
            else None
        ),
        rate_unit="tokens",
    )
    ours = {split: evaluate(state, split)[f"{split}_perplexity"] for split in SPLITS[1:]}
    parameters = evaluated(state)
    read = parsing.make_reader(rebuild, end=vocabulary.end)
    sentences = choose_sentences(sources["valid"], vocabulary)
    trees = [
        [depths_to_tree(depths, words) for depths in layers]
        for words, layers in zip(
            sentences,
            read(parameters, parsing.encode_sentences(sentences, vocabulary)) if sentences else [],
            strict=True,
        )
    ]
    gates = None
    if sentences and config.model.master_input != "none":
        gates = read_gates(rebuild, parameters, sentences[0], vocabulary)
    table, compared = [], None
    if gold:
        depths = read(parameters, parsing.encode_sentences([t.words for t in gold], vocabulary))
        table = parsing.table_of_scores(depths, gold)
        compared = next(
            (pair for pair in zip(depths, gold, strict=True) if 7 <= len(pair[1].words) <= 12), None
        )
    if jax.process_index() == 0:
        report(workdir, baseline, ours, sentences, trees, gates, table, compared)


def build_vocabulary(source: Any, data: DataConfig) -> Vocabulary:
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
    rebuild: Callable[..., OnLstmLanguageModel], training: TrainingConfig | None = None
) -> Callable:
    """Sum of the negative log probabilities of the next tokens, in nats.

    With the settings of a training also dropout and the penalties on the last layer's states, which
    are then part of the loss; without them this is the loss of an evaluation.
    """

    def loss_fn(parameters: Any, batch: Any, *, key: jax.Array, carry: Any) -> LossOutput:
        def fresh(leaf: jax.Array) -> jax.Array:
            start = jnp.expand_dims(batch["start"], tuple(range(1, leaf.ndim)))
            return jnp.where(start, jnp.zeros_like(leaf), leaf)

        model = rebuild(parameters)
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


def local_carries(rebuild: Callable, init_parameters: Callable, rows: int) -> Any:
    """Zero carries for this process's share of ``rows``."""
    local = rows // jax.process_count()
    shapes = jax.eval_shape(
        lambda key: rebuild(init_parameters(key)).initial_carries(local), jax.random.key(0)
    )
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
    rebuild: Callable, parameters: Any, sentence: list[str], vocabulary: Vocabulary
) -> list[np.ndarray]:
    """The master forget gates ``[words, levels]`` of each layer, after an end of line."""
    ids = np.array([[vocabulary.end, *parsing.encode_sentences([sentence], vocabulary)[0]]])
    layers = jax.jit(lambda parameters, ids: rebuild(parameters).master_gates(ids))(parameters, ids)
    return [np.asarray(gates.forget[0, 1:]) for gates in layers]


def report(
    workdir: pathlib.Path,
    baseline: dict[str, float],
    ours: dict[str, float],
    sentences: list[list[str]],
    trees: list[list[Tree]],
    gates: list[np.ndarray] | None,
    table: list[dict[str, str | float]],
    compared: tuple[np.ndarray, GoldTree] | None,
) -> None:
    """Tables, trees, pictures and summary."""
    results_table(
        [
            {"model": name, **{f"{split} perplexity": numbers[split] for split in SPLITS[1:]}}
            for name, numbers in (("5-gram, modified Kneser-Ney", baseline), ("ON-LSTM", ours))
        ],
        title="Held-out text, same vocabulary",
    )
    for sentence_trees in trees:
        for number, tree in enumerate(sentence_trees, start=1):
            print(f"layer {number}: {figures.brackets(tree)}")
    if table:
        # In two, for the width of a terminal: how well brackets agree, and what they are like.
        scores = [name for name in table[0] if "F1" in name]
        for names, title in (
            (scores, "Brackets of the layers against the treebank, %"),
            ([name for name in table[0] if name not in scores], "Recall by label, %, and depth"),
        ):
            results_table(
                [{"trees": row["trees"]} | {name: row[name] for name in names} for row in table],
                title=title,
            )
        print(parsing.NOTE)
    pictures = figures.save(workdir, baseline["valid"], sentences, gates, trees, compared)
    summary = {
        "baseline": baseline,
        "on_lstm": ours,
        "trees": [[figures.brackets(tree) for tree in layers] for layers in trees],
        "parsing": table,
        "jax": jax.__version__,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
    if table:
        summary["parsing_note"] = parsing.NOTE
    summary_path = write_summary(workdir, summary)
    print("written:", ", ".join(str(path) for path in (*pictures, summary_path)))
