"""Prepares the corpus, trains, and compares with the entropies of tokens and pairs of tokens."""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils

from experiments.command_line import MAY_CHANGE
from experiments.pretraining import corpus
from experiments.pretraining.baselines import entropies
from experiments.pretraining.config import Config, ModelConfig, ObjectiveConfig, TrainingConfig
from experiments.pretraining.records import RecordRows
from experiments.running import fit_in, number_of_parameters, on_host, open_mesh
from zoo.averaging import averaged_parameters, lookahead, parameter_ema
from zoo.data import Pipeline
from zoo.extras import require
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
from zoo.transformer import (
    PretrainingExample,
    Transformer,
    TransformerConfig,
    adamw,
    cross_entropy_sums,
    lamb,
    mask_tokens,
    next_tokens,
    piecewise_linear,
    placement_rules,
    save_bert,
    split_prefix,
)

PATTERNS = {"masked": "bidirectional", "causal": "causal", "prefix": "prefix"}
BASELINE_ROWS = 20_000  # training rows whose tokens are counted


def run(config: Config) -> None:
    """Runs the experiment; continues where an earlier run in the same folder stopped."""
    mesh = open_mesh(config.mesh, config.distributed)
    workdir = open_workdir(config.workdir, config, ignore=MAY_CHANGE)
    directory = corpus.directory_of(config)
    manifest = prepared(config, directory)
    rows = {
        split: RecordRows(directory, split, config.data.corrupt) for split in ("train", "valid")
    }
    training = config.training
    model_config = transformer_config(
        config.model, config.objective, vocab_size=manifest["vocab_size"], length=config.data.length
    )
    init_parameters, rebuild = functional(lambda rngs: Transformer(model_config, rngs=rngs))
    optimizer = make_optimizer(training)
    state = init_state(
        init_parameters,
        optimizer,
        key=jax.random.key(training.seed),
        mesh=mesh,
        rules=placement_rules(model_config),
    )
    loss = make_loss(rebuild, config, vocab_size=manifest["vocab_size"])
    step = make_train_step(
        loss,
        optimizer,
        accumulation_steps=training.accumulation_steps,
        compute_dtype=jnp.bfloat16 if training.bfloat16 else None,
        shardings=state.shardings,
    )
    # One mask for each held-out row, whatever the step.
    fixed = dataclasses.replace(
        config, objective=dataclasses.replace(config.objective, static_copies=1)
    )
    evaluation = jax.jit(make_loss(rebuild, fixed, vocab_size=manifest["vocab_size"], train=False))

    def evaluate(state: TrainState) -> dict[str, float]:
        batches = Pipeline(
            rows["valid"],
            batch_size=training.evaluation_batch_size,
            seed=0,
            num_epochs=1,
            shuffle=False,
        )
        parameters = state.parameters
        if training.ema_decay is not None:
            parameters = averaged_parameters(state.optimizer_state, parameters, path="average")
        sums: dict[str, np.ndarray] = {}
        for batch in batches:
            output = evaluation(parameters, put_batch(batch, mesh), key=jax.random.key(0), carry=())
            pairs = {"loss": (output.total, output.weight), **output.metrics}
            for name, pair in pairs.items():
                sums[name] = sums.get(name, 0) + np.array(jax.device_get(pair))
        return {f"valid_{n}": float(total / max(weight, 1)) for n, (total, weight) in sums.items()}

    baseline = baselines(rows, manifest["vocab_size"])
    if jax.process_index() == 0:
        size = number_of_parameters(state.parameters)
        print(
            f"{config.data.uri}: {manifest['tokens']['train']:,} tokens in "
            f"{len(rows['train']):,} rows, {manifest['vocab_size']:,} types; {size:,} parameters; "
            f"{training.num_steps:,} updates on {mesh.size} {jax.devices()[0].device_kind} devices"
        )
        if skipped := sum(part.skipped for part in rows.values()):
            print(f"{skipped:,} damaged records are skipped")
    batches = Pipeline(
        rows["train"], batch_size=training.batch_size, seed=training.seed, remainder="drop"
    )
    state = fit_in(
        workdir,
        config.loop,
        step,
        state,
        batches,
        num_steps=training.num_steps,
        mesh=mesh,
        evaluate=evaluate,
        evaluate_every=training.evaluate_every,
        rate_unit="predictions",
    )
    results = evaluate(state)
    parameters = on_host(state.parameters)
    if jax.process_index() == 0:
        if config.objective.kind == "masked" and config.model.norm_position == "post":
            export(workdir / "bert", rebuild(parameters), directory)
        report(workdir, baseline, results)


def prepared(config: Config, directory: pathlib.Path) -> dict[str, Any]:
    """The manifest of the corpus, which the first process makes and the others wait for."""
    if jax.process_index() == 0:
        corpus.prepare(config.data, directory)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("corpus")
    return corpus.prepare(config.data, directory, say=False)


def transformer_config(
    model: ModelConfig, objective: ObjectiveConfig, *, vocab_size: int, length: int
) -> TransformerConfig:
    """The model that the settings describe; with LayerNorm before each part it is a GPT-2."""
    gpt = model.norm_position == "pre"
    return TransformerConfig(
        **dataclasses.asdict(model),
        vocab_size=vocab_size,
        max_positions=length,
        mask=PATTERNS[objective.kind],  # type: ignore[arg-type]
        head="tied" if gpt else "mlm",
        num_segments=0 if gpt and objective.kind != "prefix" else 2,
    )


def make_optimizer(training: TrainingConfig) -> optax.GradientTransformation:
    """Clipping, AdamW or LAMB, Lookahead, average; warm-up and decay are linear.

    LAMB's moments are not corrected for their start, as in the original; AdamW's are.
    """
    schedule = piecewise_linear(
        {training.warmup_steps: 1.0, training.num_steps: 0.0}, scale=training.learning_rate
    )
    make = {"adamw": adamw, "lamb": lamb}[training.optimizer]
    parts: dict[str, Any] = {}
    if training.gradient_clip is not None:
        parts["clip"] = optax.clip_by_global_norm(training.gradient_clip)
    parts["descent"] = make(schedule, weight_decay=training.weight_decay)
    if training.lookahead:
        parts["lookahead"] = lookahead()
    if training.ema_decay is not None:
        parts["average"] = parameter_ema(training.ema_decay)
    return optax.named_chain(*parts.items())


def make_example(
    key: jax.Array, batch: Any, objective: ObjectiveConfig, *, vocab_size: int
) -> PretrainingExample:
    """What a batch of rows is to be read as, and what predicted."""
    ids = batch["ids"]
    keys = row_keys(key, batch["row"], objective.static_copies)

    def one(key: jax.Array, ids: jax.Array, starts: jax.Array) -> PretrainingExample:
        if objective.kind == "prefix":
            return split_prefix(key, ids, sep_id=corpus.SEP, mask=ids != corpus.PAD)
        return mask_tokens(
            key,
            ids,
            word_starts=starts if objective.whole_words else None,
            rate=objective.rate,
            vocab_size=vocab_size,
            mask_id=corpus.MASK,
            special_ids=(corpus.PAD, corpus.CLS, corpus.SEP),
        )._replace(mask=ids != corpus.PAD)

    if objective.kind == "causal":
        return next_tokens(ids, mask=ids != corpus.PAD)
    return jax.vmap(one)(keys, ids, batch["word_starts"])


def row_keys(key: jax.Array, rows: jax.Array, copies: int | None) -> jax.Array:
    """A key for each row: of this step, or one of the ``copies`` keys that the row has for ever."""
    if copies is None:
        return jax.random.split(key, len(rows))
    copy = jax.random.randint(key, rows.shape, 0, copies)

    def fixed(row: jax.Array, copy: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(0), row), copy)

    return jax.vmap(fixed)(rows, copy)


def make_loss(
    rebuild: Callable[..., Transformer], config: Config, *, vocab_size: int, train: bool = True
) -> Callable[..., LossOutput]:
    """Sums of cross-entropies in nats, and of what is right."""
    objective = config.objective
    dropout = train and config.model.dropout > 0

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
        logits = rebuild(parameters)(
            example.inputs,
            segment_ids=example.segment_ids,
            mask=example.mask,
            document_ids=batch["document_ids"] if config.data.separate_documents else None,
            positions=positions,
            key=dropout_key if dropout else None,
        )
        total, weight = cross_entropy_sums(logits, targets, weights)
        right = weights * (jnp.argmax(logits, axis=-1) == targets)
        metrics = {"accuracy": (right.sum(), weight)}
        if objective.kind == "masked":
            for name, chosen in (
                ("hidden_accuracy", inputs == corpus.MASK),
                ("kept_accuracy", inputs == targets),
            ):
                metrics[name] = (jnp.sum(right * chosen), jnp.sum(weights * chosen))
        return LossOutput(total, weight, metrics=metrics)

    return loss_fn


def baselines(rows: dict[str, RecordRows], vocab_size: int) -> dict[str, float]:
    """Entropies of the held-out rows under counts of training rows."""
    counted, held_out = (
        np.stack([part[index]["ids"] for index in range(min(len(part), BASELINE_ROWS))])
        for part in (rows["train"], rows["valid"])
    )
    is_token = ~np.isin(np.arange(vocab_size), (corpus.PAD, corpus.CLS, corpus.SEP, corpus.MASK))
    return entropies(counted, held_out, vocab_size=vocab_size, is_token=is_token)


def export(folder: pathlib.Path, model: Transformer, directory: pathlib.Path) -> None:
    """A BERT in Hugging Face's format, with its vocabulary, for fine-tuning."""
    try:
        save_bert(folder, model)
    except ImportError as error:
        print(f"no {folder}: {error}")
        return
    tokenizer = corpus.load_tokenizer(directory)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokens = [tokenizer.id_to_token(number) for number in range(tokenizer.get_vocab_size())]
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), "utf-8")


def report(workdir: pathlib.Path, baseline: dict[str, float], results: dict[str, float]) -> None:
    """Table, picture and summary."""
    table = [
        {"model": f"{name} entropy", "nats a token": value} for name, value in baseline.items()
    ]
    table.append({"model": "Transformer", "nats a token": results["valid_loss"]})
    results_table(table, title="Held-out rows")
    for name, value in results.items():
        if name.endswith("accuracy"):
            print(f"{name.removeprefix('valid_').replace('_', ' ')}: {value:.1%}")
    summary = {
        "baseline": baseline,
        "transformer": results,
        "jax": jax.__version__,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
    picture = draw(workdir, baseline)
    print("written:", picture, write_summary(workdir, summary))


def draw(workdir: pathlib.Path, baseline: dict[str, float]) -> pathlib.Path:
    """The loss by update, with the entropies it must pass."""
    figure = require("matplotlib.figure", "plot").Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for name, label in (("loss", "training rows"), ("valid_loss", "held-out rows")):
        points = [(record["step"], record[name]) for record in records if name in record]
        axes.plot(*zip(*points, strict=True), label=label, marker="o" if "valid" in name else None)
    for (name, value), style in zip(baseline.items(), (":", "--"), strict=True):
        axes.axhline(value, color="grey", linestyle=style, label=f"{name} entropy")
    axes.set_xlabel("update")
    axes.set_ylabel("cross-entropy, nats a predicted token")
    axes.legend()
    path = workdir / "curve.png"
    figure.savefig(path, dpi=120)
    return path
