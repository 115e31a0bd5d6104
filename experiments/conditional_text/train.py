"""Trains a language model for each way to tell the class, and measures what they learned of it."""

import json
import pathlib
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from experiments.command_line import MAY_CHANGE
from experiments.conditional_text import figures, metrics, texts
from experiments.conditional_text.config import Config, SamplingConfig, Variant
from experiments.conditional_text.model import Generator, with_pretrained
from experiments.conditional_text.texts import SPLITS, Pieces, Rows, Tokens
from experiments.running import decaying_adamw, fit_in, number_of_parameters, on_host, open_mesh
from zoo.data import Pipeline
from zoo.decoding import guide, prefill, sample
from zoo.training import (
    LossOutput,
    functional,
    init_state,
    make_train_step,
    open_workdir,
    results_table,
    write_summary,
)

RULES = (
    (r"token_embedding$", PartitionSpec(None, "fsdp")),
    (r"(query|key|value)_kernel$", PartitionSpec(None, "fsdp", "model", None)),
    (r"attention/output_kernel$", PartitionSpec(None, "model", None, "fsdp")),
    (r"expand_kernel$", PartitionSpec(None, "fsdp", "model")),
    (r"contract_kernel$", PartitionSpec(None, "model", "fsdp")),
)
NAMES = {"norm": "conditional norms", "prefix": "prefix token", "embedding": "added to embedding"}
SHORTEST = 3  # tokens of a sample at least


class Trained(NamedTuple):
    """A model after training."""

    rebuild: Callable[..., Generator]
    parameters: Any
    seconds: float  # of all steps, at their median rate


def run(config: Config) -> None:
    """Runs the experiment; continues where an earlier run in the same folder stopped."""
    mesh = open_mesh(config.mesh, config.distributed)
    labelled = texts.read(config.data.uri)
    classes = list(dict.fromkeys(label for _, label in labelled["train"]))
    tokens = texts.make_tokens(config, labelled["train"])
    training, held_out = (
        texts.cut(labelled[split], classes, tokens, config.data.longest) for split in SPLITS
    )
    held_out = texts.some(held_out, config.data.held_out)
    rows = texts.pack(training, tokens, config.training.length)
    scored = texts.pack(held_out, tokens, config.training.length)
    workdir = open_workdir(config.workdir, config, ignore=MAY_CHANGE)
    speaks = jax.process_index() == 0
    if speaks:
        filled = float((rows.pieces >= 0).mean())
        print(
            f"{config.data.uri}: {len(classes)} classes; {len(training.ids):,} pieces for training "
            f"in {len(rows.labels):,} rows ({filled:.0%} filled), {len(held_out.ids):,} held out; "
            f"{tokens.size:,} tokens known"
        )
    classify = metrics.train_classifier(known(training, tokens), training.labels)
    real = describe(known(held_out, tokens), held_out.labels, known(training, tokens), classify)
    results: dict[str, Any] = {}
    for variant in config.variants:
        trained = train(config, variant, mesh, rows, classes, tokens, workdir / variant)
        losses = score(trained, scored, len(classes), len(held_out.ids), config.training.batch_size)
        lengths = np.array([len(ids) + 1 for ids in held_out.ids])
        each = {
            name: metrics.label_perplexities(losses[own], held_out.labels[own], lengths[own])
            for number, name in enumerate(classes)
            if (own := held_out.labels == number).any()
        }
        written = {
            str(scale): write(trained, config.sampling, len(classes), tokens, config, scale)
            for scale in config.sampling.guidance
        }
        results[variant] = {
            "parameters": number_of_parameters(trained.parameters),
            "training_seconds": trained.seconds,
            "held_out": metrics.label_perplexities(losses, held_out.labels, lengths),
            "held_out_by_class": each,
            "samples": {
                scale: describe(
                    known(pieces, tokens), pieces.labels, known(training, tokens), classify
                )
                for scale, pieces in written.items()
            },
            "examples": {
                scale: examples(pieces, classes, tokens) for scale, pieces in written.items()
            },
        }
        if speaks:
            print(f"training: {trained.seconds:.0f} s")
            keep(workdir / variant / "samples.jsonl", written, classes, tokens)
    if speaks:
        report(workdir, classes, real, results)


def known(pieces: Pieces, tokens: Tokens) -> list[tuple[int, ...]]:
    """The tokens of each piece that a model may write: <unk> would tell real text from samples."""
    return [tuple(i for i in ids.tolist() if i not in tokens.banned) for ids in pieces.ids]


def train(
    config: Config,
    variant: Variant,
    mesh: Mesh,
    rows: Rows,
    classes: list[str],
    tokens: Tokens,
    workdir: pathlib.Path,
) -> Trained:
    """Trains one model, or finishes its training."""
    training = config.training
    source = [dict(zip(Rows._fields, row, strict=True)) for row in zip(*rows, strict=True)]
    batches = Pipeline(source, batch_size=training.batch_size, seed=training.seed)
    num_steps = max(1, round(training.epochs * batches.batches_per_epoch))
    init_parameters, rebuild = functional(
        lambda rngs: Generator(config, variant, len(classes), tokens, rngs=rngs)
    )
    optimizer = decaying_adamw(training, num_steps)
    state = init_state(
        init_parameters, optimizer, key=jax.random.key(training.seed), mesh=mesh, rules=RULES
    )
    if config.model.pretrained:
        state = state._replace(parameters=with_pretrained(state.parameters, config))

    step = make_train_step(
        make_loss(rebuild, training.drop_label, untold=len(classes)),
        optimizer,
        compute_dtype=jnp.bfloat16 if training.bfloat16 else None,
        shardings=state.shardings,
    )
    workdir.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
        size = number_of_parameters(state.parameters)
        print(f"class told by {NAMES[variant]}: {size:,} parameters, {num_steps:,} steps")
    state = fit_in(
        workdir,
        config.loop,
        step,
        state,
        batches,
        num_steps=num_steps,
        mesh=mesh,
        rate_unit="tokens",
    )
    parameters = on_host(state.parameters)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    rate = statistics.median(json.loads(line)["tokens_per_second"] or 0 for line in lines)
    total = num_steps * training.batch_size * training.length * (rows.pieces >= 0).mean()
    return Trained(rebuild, parameters, float(total / rate) if rate else np.nan)


def make_loss(
    rebuild: Callable[..., Generator], drop_label: float, *, untold: int
) -> Callable[..., LossOutput]:
    """Sum over the tokens of all pieces, in nats; a share of the rows is told no class."""

    def loss_fn(parameters: Any, batch: Any, *, key: jax.Array, carry: Any) -> LossOutput:
        drop_key, key = jax.random.split(key)
        dropped = jax.random.bernoulli(drop_key, drop_label, batch["labels"].shape)
        labels = jnp.where(dropped, untold, batch["labels"])
        losses = token_losses(rebuild(parameters), batch, labels, key)
        counted = (batch["pieces"] >= 0) & batch["valid"][:, None]
        return LossOutput(jnp.sum(jnp.where(counted, losses, 0)), jnp.sum(counted))

    return loss_fn


def token_losses(
    model: Generator, batch: Any, labels: jax.Array, key: jax.Array | None = None
) -> jax.Array:
    """Negative log-probability of every target, in nats: ``[B, T]``."""
    logits = model(batch["inputs"], labels, document_ids=batch["pieces"], key=key)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])


def score(
    trained: Trained, rows: Rows, num_classes: int, num_pieces: int, batch_size: int
) -> np.ndarray:
    """Nats of every piece given each class, and given none: ``[N, K + 1]``."""

    @jax.jit
    def evaluate(parameters: Any, batch: Any, labels: jax.Array) -> jax.Array:
        model = trained.rebuild(parameters)
        return jax.lax.map(lambda label: token_losses(model, batch, label), labels)

    losses = np.zeros((num_pieces, num_classes + 1))
    for start in range(0, len(rows.labels), batch_size):
        # The last batch goes back over rows that were counted.
        begin = max(0, min(start, len(rows.labels) - batch_size))
        batch = {name: value[begin : begin + batch_size] for name, value in rows._asdict().items()}
        size = len(batch["labels"])
        labels = np.tile(np.arange(num_classes + 1, dtype=np.int32)[:, None], size)
        found = np.asarray(evaluate(trained.parameters, batch, labels))[:, start - begin :]
        pieces = batch["pieces"][start - begin :]
        counted = pieces >= 0
        for label in range(num_classes + 1):
            losses[:, label] += np.bincount(
                pieces[counted], found[label][counted].astype(np.float64), minlength=num_pieces
            )
    return losses


def write(
    trained: Trained,
    sampling: SamplingConfig,
    num_classes: int,
    tokens: Tokens,
    config: Config,
    scale: float,
) -> Pieces:
    """Draws samples, as many of each class."""
    longest = config.data.longest + 1  # with the token that ends it

    @jax.jit
    def draw(parameters: Any, key: jax.Array, labels: jax.Array) -> Any:
        model = trained.rebuild(parameters)
        prompt = jnp.full((len(labels), 1), tokens.start, jnp.int32)
        read = prefill(model, prompt, max_length=longest, condition=labels)
        if scale != 1:
            untold = jnp.full_like(labels, num_classes)
            plain = prefill(model, prompt, max_length=longest, condition=untold)
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
            banned=tokens.banned,
            end_id=tokens.end,
            pad_id=tokens.end,
        )

    labels = np.arange(sampling.count, dtype=np.int32) % num_classes
    ids: list[np.ndarray] = []
    key = jax.random.key(config.training.seed)
    for start in range(0, len(labels), sampling.batch_size):
        # Every batch of one size: those of the last that are too many are not kept.
        wanted = np.resize(labels[start : start + sampling.batch_size], sampling.batch_size)
        drawn = draw(trained.parameters, jax.random.fold_in(key, start), wanted)
        rows = zip(np.asarray(drawn.tokens), np.asarray(drawn.lengths), strict=True)
        ids += [row[:length] for row, length in rows]
    return Pieces(ids[: len(labels)], labels)


def describe(
    found: list[tuple[int, ...]],
    labels: np.ndarray,
    training: list[tuple[int, ...]],
    classify: Callable[..., np.ndarray],
) -> dict[str, Any]:
    """All numbers of some texts."""
    hits = classify(found) == labels
    grams, whole = metrics.copied(found, training)
    return {
        "count": len(found),
        "label accuracy": float(hits.mean()),
        "label accuracy interval": metrics.share_interval(hits),
        **{f"distinct-{n}": metrics.distinct(found, n) for n in (1, 2, 3)},
        "self-BLEU": metrics.self_bleu(found),
        f"copied {metrics.COPIED}-grams": grams,
        "copied texts": whole,
        "mean length": float(np.mean([len(text) for text in found])),
    }


def examples(
    pieces: Pieces, classes: list[str], tokens: Tokens, count: int = 4
) -> dict[str, list[str]]:
    """The first samples of every class."""
    return {
        name: [
            tokens.decode(pieces.ids[i]) for i in np.flatnonzero(pieces.labels == number)[:count]
        ]
        for number, name in enumerate(classes)
    }


def keep(
    path: pathlib.Path, written: dict[str, Pieces], classes: list[str], tokens: Tokens
) -> None:
    """All samples, one JSON object a line."""
    lines = [
        {"guidance": float(scale), "label": classes[label], "text": tokens.decode(ids)}
        for scale, pieces in written.items()
        for ids, label in zip(pieces.ids, pieces.labels, strict=True)
    ]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "utf-8")


def report(
    workdir: pathlib.Path, classes: list[str], real: dict[str, Any], results: dict[str, Any]
) -> None:
    """Tables, samples, picture and summary."""

    def between(interval: Sequence[float], digits: int) -> str:
        return f"{interval[0]:.{digits}f} … {interval[1]:.{digits}f}"

    results_table(
        [
            {
                "class told by": NAMES[variant],
                "right label": f"{result['held_out']['right']:.2f}",
                "wrong label": f"{result['held_out']['wrong']:.2f}",
                "wrong / right": f"{result['held_out']['wrong / right']:.3f}",
                "95 %": between(result["held_out"]["wrong / right interval"], 3),
                "untold": f"{result['held_out']['untold']:.2f}",
            }
            for variant, result in results.items()
        ],
        title="Perplexity of held-out text",
    )
    first, result = next(iter(results.items()))
    results_table(
        [
            {
                "class": name,
                "right label": f"{numbers['right']:.2f}",
                "wrong label": f"{numbers['wrong']:.2f}",
                "wrong / right": f"{numbers['wrong / right']:.3f}",
                "95 %": between(numbers["wrong / right interval"], 3),
            }
            for name, numbers in result["held_out_by_class"].items()
        ],
        title=f"Perplexity of held-out text by class, {NAMES[first]}",
    )
    described = [
        ("held-out text", real),
        *(
            (f"{NAMES[variant]}, guidance {float(scale):g}", numbers)
            for variant, result in results.items()
            for scale, numbers in result["samples"].items()
        ),
    ]
    copied = (f"copied {metrics.COPIED}-grams", "copied texts")
    columns = ("distinct-1", "distinct-2", "distinct-3", "self-BLEU", *copied)
    results_table(
        [
            {
                "texts": name,
                "number": f"{numbers['count']:,}",
                "mean length": f"{numbers['mean length']:.1f}",
                "label accuracy": f"{100 * numbers['label accuracy']:.1f}",
                "95 %": between([100 * x for x in numbers["label accuracy interval"]], 1),
            }
            for name, numbers in described
        ],
        title="Texts as an independent classifier sees them, %",
    )
    results_table(
        [
            {"texts": name} | {column: f"{100 * numbers[column]:.1f}" for column in columns}
            for name, numbers in described
        ],
        title="How various texts are, and what they copy from the training text, %",
    )
    for name in classes:
        for text in next(iter(result["examples"].values()))[name][:2]:
            print(f"{name}: {text}")
    picture = figures.save(workdir, NAMES, real, results)
    summary = {
        "classes": classes,
        "held_out_text": real,
        **results,
        "jax": jax.__version__,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
    print("written:", picture, write_summary(workdir, summary))
