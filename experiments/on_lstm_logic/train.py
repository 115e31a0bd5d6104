"""Trains both models on short formulas, tests them on longer ones, and reads out their trees."""

import collections
import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from zoo.ordered import depths_to_tree
from zoo.ordered.treebank import GoldTree
from zoo.ordered.trees import Tree, prune_tree
from zoo.training import LossOutput, TrainState, functional, open_workdir, put_batch, results_table

from ..command_line import MAY_CHANGE
from ..running import (
    Experiment,
    check_rows,
    finish,
    is_main_process,
    number_of_parameters,
    on_devices,
    open_mesh,
    train,
)
from ..trees import tree_table
from . import figures
from .batches import PairBatches, encode
from .config import Config, TrainingConfig
from .logic import Corpus, Pair, count_operators, gold_tree, open_corpus
from .model import Encoder, PairClassifier

ENCODERS: dict[Encoder, str] = {"on_lstm": "ON-LSTM", "lstm": "plain LSTM"}
RULES = ((r"(layer|inner)/.*kernel$", PartitionSpec("fsdp", "model")),)
TREES = 1000  # formulas whose trees are scored
LABELS = ("not", "and, or", "operand")


class Result(NamedTuple):
    """Of one model and seed."""

    accuracy: dict[int, float]  # number of operators -> share of right relations in the test pairs
    trees: dict[str, list[Tree]]  # rule -> a tree for each formula


def run(config: Config) -> None:
    """Runs the experiment; continues where an earlier run in the same folder stopped."""
    mesh = open_mesh(config)
    check_rows(mesh, config.training, "evaluation_batch_size")
    corpus = open_corpus(**dataclasses.asdict(config.data))
    formulas = choose_formulas(corpus)
    workdir = open_workdir(config.workdir, config, ignore=(*MAY_CHANGE, "training.seeds"))
    results: dict[str, list[Result]] = collections.defaultdict(list)
    for encoder, name in ENCODERS.items():
        experiment = build(config, mesh, encoder, corpus)
        abstract = experiment.abstract_state(mesh)
        step = experiment.train_step(abstract.shardings)  # compiled once for all seeds
        for seed in range(config.training.seeds):
            part = sum(map(len, results.values())) + 1, len(ENCODERS) * config.training.seeds
            if is_main_process():
                size = number_of_parameters(abstract.parameters)
                print(
                    f"{name}, seed {seed}: {len(corpus.train):,} pairs, {size:,} parameters; "
                    f"{experiment.num_steps:,} steps on {on_devices(mesh)}"
                )
            seeded = experiment._replace(seed=seed, batches=make_batches(config, corpus, seed))
            state = train(seeded, mesh, workdir / f"{encoder}_{seed}", config.loop, step, part)
            accuracy = experiment.evaluate(state, corpus.test)[1]
            trees = read_trees(experiment.merge, state.parameters, formulas)
            results[name].append(Result(accuracy, trees))
    if is_main_process():
        gold = [gold_tree(formula) for formula in formulas]
        report(workdir, corpus, results, gold, seen=config.data.train_operators)


def build(
    config: Config, mesh: Mesh, encoder: Encoder = "on_lstm", corpus: Corpus | None = None
) -> Experiment:
    """A model with seed 0, loss, optimiser, batches and evaluation; None opens the corpus."""
    corpus = open_corpus(**dataclasses.asdict(config.data)) if corpus is None else corpus
    training = config.training
    batches = make_batches(config, corpus, seed=0)
    init, merge = functional(
        lambda rngs: PairClassifier(encoder, **dataclasses.asdict(config.model), rngs=rngs)
    )
    count = make_count(merge, num_groups=1 + len(corpus.test))

    def evaluate(
        state: TrainState, groups: Mapping[Any, list[Pair]] | None = None
    ) -> tuple[TrainState, dict[Any, float]]:
        """The share of right relations of each group, the validation pairs if None."""
        groups = {"valid_accuracy": corpus.valid} if groups is None else groups
        held_out = PairBatches(
            [pair for pairs in groups.values() for pair in pairs],
            [number for number, pairs in enumerate(groups.values()) for _ in pairs],
            batch_size=training.evaluation_batch_size,
            num_epochs=1,
        )
        counts = [count(state.parameters, put_batch(batch, mesh)) for batch in held_out]
        right, total = np.sum(jax.device_get(counts), axis=0)
        return state, {
            name: float(right[number] / total[number]) for number, name in enumerate(groups)
        }

    return Experiment(
        init=init,
        merge=merge,
        loss=make_loss(merge),
        optimizer=make_optimizer(training, batches.batches_per_epoch),
        batches=batches,
        num_steps=training.epochs * batches.batches_per_epoch,
        evaluate=evaluate,
        evaluate_every=batches.batches_per_epoch,
        rate_unit="pairs",
        rules=RULES,
    )


def make_batches(config: Config, corpus: Corpus, seed: int) -> PairBatches:
    """The pairs to train on, in an order of the seed's own."""
    return PairBatches(
        corpus.train, batch_size=config.training.batch_size, seed=seed, depends_on=corpus
    )


def make_optimizer(training: TrainingConfig, steps_per_epoch: int) -> optax.GradientTransformation:
    """Clipping, weight decay in the gradient as published, Adam, and a schedule."""
    num_steps = training.epochs * steps_per_epoch
    rate: Any = training.learning_rate
    slower = optax.identity()
    if training.schedule == "cosine":
        # A twentieth of the run; none if it is shorter, as the first step of a warm-up has rate 0.
        rate = optax.warmup_cosine_decay_schedule(0.0, rate, num_steps // 20, num_steps)
    else:
        slower = optax.contrib.reduce_on_plateau(
            factor=0.5, patience=2, accumulation_size=steps_per_epoch
        )
    return optax.chain(
        optax.clip_by_global_norm(training.gradient_clip),
        optax.add_decayed_weights(training.weight_decay),
        optax.adam(rate, eps=1e-9),
        slower,
    )


def make_loss(merge: Callable[..., PairClassifier]) -> Callable[..., LossOutput]:
    """Sum of the negative log probabilities of the relations, in nats."""

    def loss_fn(parameters: Any, batch: Any, *, key: jax.Array, carry: Any) -> LossOutput:
        logits = merge(parameters)(batch, key=key)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["relation"])
        right = (logits.argmax(axis=-1) == batch["relation"]) & batch["valid"]
        weight = jnp.sum(batch["valid"])
        return LossOutput(
            total=jnp.sum(jnp.where(batch["valid"], losses, 0)),
            weight=weight,
            carry=carry,
            metrics={"accuracy": (jnp.sum(right), weight)},
        )

    return loss_fn


def make_count(merge: Callable[..., PairClassifier], *, num_groups: int) -> Callable:
    """Compiled: the numbers of right relations and of pairs, by group, [2, num_groups]."""

    @jax.jit
    def count(parameters: Any, batch: Any) -> jax.Array:
        right = merge(parameters)(batch).argmax(axis=-1) == batch["relation"]
        both = jnp.stack([right & batch["valid"], batch["valid"]]).astype(jnp.int32)
        return jnp.zeros((2, num_groups), jnp.int32).at[:, batch["group"]].add(both)

    return count


def choose_formulas(corpus: Corpus) -> list[str]:
    """Different formulas of the validation pairs that have at least two operators."""
    formulas = (formula for pair in corpus.valid for formula in pair[1:])
    return list(dict.fromkeys(f for f in formulas if count_operators(f) >= 2))[:TREES]


def read_trees(merge: Callable, parameters: Any, formulas: list[str]) -> dict[str, list[Tree]]:
    """The trees of the depths over all tokens, from which the parentheses are then taken out."""
    ids, _ = encode(formulas)
    depths = np.asarray(jax.jit(lambda p, ids: merge(p).depths(ids))(parameters, ids))
    trees: dict[str, list[Tree]] = {"greedy": [], "unbiased": []}
    for formula, row in zip(formulas, depths, strict=True):
        tokens = formula.split()
        keep = [token not in "()" for token in tokens]
        for rule, found in trees.items():
            tree = depths_to_tree(row[: len(tokens)], tokens, rule=rule)
            found.append(prune_tree(tree, keep))
    return trees


def report(
    workdir: pathlib.Path,
    corpus: Corpus,
    results: Mapping[str, list[Result]],
    gold: list[GoldTree],
    *,
    seen: int,
) -> None:
    """Tables, pictures and summary; ``seen`` operators were the most in training."""
    accuracy = {  # [seeds, numbers of operators]
        name: np.array([list(result.accuracy.values()) for result in of_seeds])
        for name, of_seeds in results.items()
    }
    majority = {
        number: max(collections.Counter(p.relation for p in pairs).values()) / len(pairs)
        for number, pairs in corpus.test.items()
    }
    rows = [
        {"operators": str(number), "test pairs": len(corpus.test[number])}
        | {name: spread(values[:, i]) for name, values in accuracy.items()}
        | {"majority": f"{100 * majority[number]:.1f}"}
        for i, number in enumerate(corpus.test)
    ]
    longer = np.array([number > seen for number in corpus.test])
    counts = np.array([len(pairs) for pairs in corpus.test.values()])
    means: dict[str, dict[str, np.ndarray]] = {}
    for title, chosen in ((f"0 to {seen}", ~longer), (f"{seen + 1} and more", longer)):
        if chosen.any():
            means[title] = {
                name: np.average(values[:, chosen], axis=1, weights=counts[chosen])
                for name, values in accuracy.items()
            }
            shown = {name: spread(shares) for name, shares in means[title].items()}
            rows.append({"operators": title, "test pairs": "", **shown})
    results_table(rows, title="Right relations in percent, mean ± standard deviation")
    predicted = {
        f"{name}, {rule}": [result.trees[rule] for result in of_seeds]
        for name, of_seeds in results.items()
        for rule in ("greedy", "unbiased")
    }
    trees = tree_table(predicted, gold, LABELS)
    shown = ("trees", "sentence F1", "corpus F1", "depth", *LABELS)
    title = "Trees against the parentheses, F1 and recall in percent, mean over seeds"
    results_table([{name: row[name] for name in shown} for row in trees], title=title)
    pictures = figures.save(workdir, accuracy, majority, results, gold, seen=seen)
    summary = {
        "accuracy": {name: [r.accuracy for r in of_seeds] for name, of_seeds in results.items()},
        "mean_accuracy": means,
        "majority": majority,
        "trees": trees,
    }
    finish(workdir, summary, pictures)


def spread(shares: np.ndarray) -> str:
    """Mean of the seeds, and their standard deviation if there are several, in percent."""
    mean = f"{100 * shares.mean():.1f}"
    return mean if len(shares) == 1 else f"{mean} ± {100 * shares.std(ddof=1):.1f}"
