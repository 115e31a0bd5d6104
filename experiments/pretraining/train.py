"""Prepares the corpus, trains, and compares with the entropies of tokens and pairs of tokens."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from zoo._files import replace_file
from zoo.averaging import averaged_parameters, lookahead, parameter_ema
from zoo.data import Pipeline
from zoo.training import LossOutput, TrainState, functional, open_workdir, results_table
from zoo.transformer import (
    Transformer,
    TransformerConfig,
    mask_tokens,
    next_tokens,
    placement_rules,
    split_prefix,
)
from zoo.transformer.loss import cross_entropy_sums
from zoo.transformer.objectives import PretrainingExample
from zoo.transformer.optimizers import STACKED, excluding, uncorrected_lamb
from zoo.transformer.weights import save_bert

from ..command_line import MAY_CHANGE, change
from ..pictures import new_figure, save_figures
from ..running import (
    Experiment,
    announce,
    finish,
    held_out_means,
    is_main_process,
    on_host,
    open_mesh,
    read_records,
    train,
)
from ..unigram import judged
from . import corpus
from .baselines import entropies
from .config import Config, ObjectiveConfig, TrainingConfig
from .records import RecordRows

PATTERNS = {"masked": "bidirectional", "causal": "causal", "prefix": "prefix"}
# Where the corpus lies and how it is read; what it holds belongs to the checkpoints' identity.
CORPUS_MAY_CHANGE = ("data.directory", "data.workers", "data.corrupt")
NO_BERT = (
    "no bert/ for fine-tuning: BERT's form is objective.kind masked with model.norm_position post, "
    "as in the presets smoke, reviews, base and paper"
)
BASELINE_ROWS = 20_000  # training rows whose tokens are counted


class Data(NamedTuple):
    """A prepared corpus."""

    rows: dict[str, Any]  # by split, a source of rows: ids, word_starts, document_ids, row
    vocab_size: int


def run(config: Config) -> None:
    """Runs the experiment; continues where an earlier run in the same folder stopped."""
    mesh = open_mesh(config)
    check_text(config)
    transformer_config(config, vocab_size=corpus.MASK + 1)  # refuses sizes before a folder is made
    data = load(config)
    experiment = build(config, mesh, data)
    workdir = open_workdir(config.workdir, config, ignore=(*MAY_CHANGE, *CORPUS_MAY_CHANGE))
    skipped = sum(rows.skipped for rows in data.rows.values())
    rows = f"{len(data.rows['train']):,} rows, {skipped:,} damaged ones skipped"
    announce(f"{config.data.uri}: {rows}; {data.vocab_size:,} types", experiment, mesh)
    baseline = count_entropies(data)
    state = train(experiment, mesh, workdir, config.loop)
    results = experiment.evaluate(state)[1]
    parameters = on_host(state.parameters)
    if is_main_process():
        if config.objective.kind == "masked" and config.model.norm_position == "post":
            export(workdir / "bert", experiment.merge(parameters), corpus.directory_of(config))
        else:
            print(NO_BERT)
        report(workdir, baseline, results)


def check_text(config: Config) -> None:
    """Raises a ValueError if the builtin text would be read more than a thousand times."""
    training, characters = config.training, 1.1e6
    tokens = training.num_steps * training.batch_size * config.data.length
    if config.data.uri.startswith("builtin:") and tokens > 1000 * characters:
        raise ValueError(
            f"data.uri must name a large text for this preset, got {config.data.uri!r}: "
            f"{training.num_steps:,} updates of {training.batch_size:,} rows would read its "
            f"million characters about {tokens / characters:,.0f} times; give --data.uri file:PATH"
        )


def load(config: Config) -> Data:
    """The corpus, prepared if it is not there."""
    directory = corpus.directory_of(config)
    manifest = corpus.prepare(config.data, directory)
    rows = {
        split: RecordRows(directory, split, config.data.corrupt) for split in ("train", "valid")
    }
    return Data(rows, manifest["vocab_size"])


def build(config: Config, mesh: Mesh, data: Data | None = None) -> Experiment:
    """Model, loss, optimiser, batches and evaluation; ``data`` is ``load(config)`` if None."""
    data = load(config) if data is None else data
    training = config.training
    model_config = transformer_config(config, data.vocab_size)
    init, merge = functional(lambda rngs: Transformer(model_config, rngs=rngs))
    # Evaluation masks every held-out row in one way, whatever the step.
    fixed = change(config, objective={"static_copies": 1}, model={"dropout": 0.0})
    evaluation_loss = jax.jit(make_loss(merge, fixed, data.vocab_size))

    rows = training.batch_size // training.accumulation_steps

    def evaluate(state: TrainState) -> tuple[TrainState, dict[str, float]]:
        parameters = state.parameters
        if training.ema_decay is not None:
            parameters = averaged_parameters(state.optimizer_state, parameters, path="average")
        valid = data.rows["valid"]
        means = held_out_means(evaluation_loss, parameters, valid, batch_size=rows, mesh=mesh)
        return state, {f"valid_{name}": value for name, value in means.items()}

    return Experiment(
        init=init,
        merge=merge,
        loss=make_loss(merge, config, data.vocab_size),
        optimizer=make_optimizer(training),
        batches=Pipeline(
            data.rows["train"],
            batch_size=training.batch_size,
            seed=training.seed,
            remainder="drop",
            depends_on=data,
        ),
        num_steps=training.num_steps,
        seed=training.seed,
        evaluate=evaluate,
        evaluate_every=training.evaluate_every,
        rate_unit="predictions",
        rules=placement_rules(model_config),
        accumulation_steps=training.accumulation_steps,
        compute_dtype=jnp.bfloat16 if training.bfloat16 else None,
    )


def transformer_config(config: Config, vocab_size: int) -> TransformerConfig:
    """The model of these settings; with LayerNorm before each part it is a GPT-2."""
    gpt = config.model.norm_position == "pre"
    return TransformerConfig(
        **dataclasses.asdict(config.model),
        vocab_size=vocab_size,
        max_positions=config.data.length,
        mask=PATTERNS[config.objective.kind],  # type: ignore[arg-type]
        head="tied" if gpt else "mlm",
        num_segments=0 if gpt and config.objective.kind != "prefix" else 2,
    )


def warmup_and_decay(peak: float, warmup_steps: int, num_steps: int) -> optax.Schedule:
    """Linear from 0 to the peak, and from there linear to 0 after the last step."""
    if warmup_steps == 0:
        return optax.linear_schedule(peak, 0.0, num_steps)
    warmup = optax.linear_schedule(0.0, peak, warmup_steps)
    decay = optax.linear_schedule(peak, 0.0, num_steps - warmup_steps)
    return optax.join_schedules([warmup, decay], [warmup_steps])


def make_optimizer(training: TrainingConfig) -> optax.GradientTransformation:
    """Clipping, AdamW or LAMB, Lookahead, average.

    LAMB's moments are not bias-corrected, as in the original; AdamW's are.
    """
    schedule = warmup_and_decay(training.learning_rate, training.warmup_steps, training.num_steps)
    parts: dict[str, Any] = {}
    if training.gradient_clip is not None:
        parts["clip"] = optax.clip_by_global_norm(training.gradient_clip)
    if training.optimizer == "lamb":
        parts["descent"] = uncorrected_lamb(
            schedule, weight_decay=training.weight_decay, stacked=STACKED
        )
    else:
        decay = training.weight_decay
        parts["descent"] = optax.adamw(schedule, eps=1e-6, weight_decay=decay, mask=excluding())
    if training.lookahead:
        parts["lookahead"] = lookahead()
    if training.ema_decay is not None:
        parts["average"] = parameter_ema(training.ema_decay)
    return optax.named_chain(*parts.items())


def make_example(
    key: jax.Array, batch: Any, objective: ObjectiveConfig, *, vocab_size: int
) -> PretrainingExample:
    """Inputs and targets of a batch of rows."""
    ids = batch["ids"]
    given = ids != corpus.PAD
    if objective.kind == "causal":
        return next_tokens(ids, mask=given)
    keys = row_keys(key, batch["row"], objective.static_copies)
    if objective.kind == "prefix":
        cut = jax.vmap(lambda *row: split_prefix(row[0], row[1], sep_id=corpus.SEP, mask=row[2]))
        return cut(keys, ids, given)

    def mask(key: jax.Array, ids: jax.Array, word_starts: jax.Array) -> PretrainingExample:
        return mask_tokens(
            key,
            ids,
            word_starts=word_starts if objective.whole_words else None,
            rate=objective.rate,
            vocab_size=vocab_size,
            mask_id=corpus.MASK,
            special_ids=(corpus.PAD, corpus.CLS, corpus.SEP),
        )

    return jax.vmap(mask)(keys, ids, batch["word_starts"])._replace(mask=given)


def row_keys(key: jax.Array, rows: jax.Array, copies: int | None) -> jax.Array:
    """A key per row: of this step, or one of the ``copies`` keys that always belong to the row."""
    if copies is None:
        return jax.random.split(key, len(rows))
    copy = jax.random.randint(key, rows.shape, 0, copies)

    def fixed(row: jax.Array, copy: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(0), row), copy)

    return jax.vmap(fixed)(rows, copy)


def make_loss(
    merge: Callable[..., Transformer], config: Config, vocab_size: int
) -> Callable[..., LossOutput]:
    """Sums of cross-entropies in nats, and of right predictions."""
    objective = config.objective

    def loss_fn(parameters: Any, batch: Any, *, key: jax.Array, carry: Any) -> LossOutput:
        del carry
        example_key, dropout_key = jax.random.split(key)
        example = make_example(example_key, batch, objective, vocab_size=vocab_size)
        weights = example.weights
        if "valid" in batch:  # the last batch of held-out rows is filled up with copies
            weights &= batch["valid"][:, None]
        inputs, targets, positions = example.inputs, example.targets, None
        if objective.predictions is not None:
            weights, positions = jax.lax.top_k(weights.astype(jnp.int32), objective.predictions)
            inputs, targets = (jnp.take_along_axis(x, positions, axis=1) for x in (inputs, targets))
        logits = merge(parameters)(
            example.inputs,
            segment_ids=example.segment_ids,
            mask=example.mask,
            document_ids=batch["document_ids"] if config.data.separate_documents else None,
            positions=positions,
            key=dropout_key if config.model.dropout > 0 else None,
        )
        total, weight = cross_entropy_sums(logits, targets, weights)
        right = weights * (jnp.argmax(logits, axis=-1) == targets)
        metrics = {"accuracy": (right.sum(), weight)}
        if objective.kind == "masked":
            kinds = {"hidden_accuracy": inputs == corpus.MASK, "kept_accuracy": inputs == targets}
            for name, chosen in kinds.items():
                metrics[name] = (jnp.sum(right * chosen), jnp.sum(weights * chosen))
        return LossOutput(total, weight, metrics=metrics)

    return loss_fn


def count_entropies(data: Data) -> dict[str, float]:
    """Entropies of the held-out rows under counts of training rows."""
    counted, held_out = (
        np.stack([rows[index]["ids"] for index in range(min(len(rows), BASELINE_ROWS))])
        for rows in (data.rows["train"], data.rows["valid"])
    )
    special = corpus.PAD, corpus.CLS, corpus.SEP, corpus.MASK
    return entropies(counted, held_out, vocab_size=data.vocab_size, special=special)


def export(folder: pathlib.Path, model: Transformer, directory: pathlib.Path) -> None:
    """Writes a BERT in Hugging Face's format, with its vocabulary, for fine-tuning."""
    try:
        save_bert(folder, model)
    except ImportError as error:
        print(f"no {folder}: {error}")
        return
    vocabulary = corpus.load_vocabulary(directory)
    replace_file(folder / "tokenizer.json", vocabulary.model)
    replace_file(folder / "vocab.txt", "".join(f"{t}\n" for t in vocabulary.tokens))


def report(workdir: pathlib.Path, baseline: dict[str, float], results: dict[str, float]) -> None:
    """Table, picture and summary."""
    values = {f"{name} entropy": value for name, value in baseline.items()}
    loss = results["valid_loss"]
    values[judged("Transformer", loss, baseline["unigram"])] = loss
    results_table(
        [{"model": name, "nats per token": value} for name, value in values.items()],
        title="Held-out rows",
    )
    for name, value in results.items():
        if name.endswith("accuracy"):
            print(f"{name.removeprefix('valid_').replace('_', ' ')}: {value:.1%}")
    curve = draw_curve(read_records(workdir / "metrics.jsonl"), baseline)
    summary = {"baseline": baseline, "transformer": results}
    finish(workdir, summary, save_figures(workdir, {"curve": curve}))


def draw_curve(records: list[dict[str, Any]], baseline: dict[str, float]) -> Any:
    """The loss by update, with the entropies it must pass."""
    figure = new_figure(7, 4)
    axes = figure.subplots()
    for name, label, marker in (("loss", "training", None), ("valid_loss", "held-out", "o")):
        points = [(record["step"], record[name]) for record in records if name in record]
        axes.plot(*zip(*points, strict=True), label=f"{label} rows", marker=marker)
    for (name, value), style in zip(baseline.items(), (":", "--"), strict=True):
        axes.axhline(value, color="grey", linestyle=style, label=f"{name} entropy")
    axes.set(xlabel="update", ylabel="cross-entropy, nats per predicted token")
    axes.legend()
    return figure
