"""Trains both models on short formulas, tests them on longer ones, and reads out their trees."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from experiments.command_line import MAY_CHANGE
from experiments.on_lstm_logic import figures
from experiments.on_lstm_logic.batches import PairBatches, encode
from experiments.on_lstm_logic.config import Config, TrainingConfig
from experiments.on_lstm_logic.logic import (
    Corpus,
    Pair,
    count_operators,
    gold_tree,
    open_corpus,
)
from experiments.on_lstm_logic.model import PairClassifier
from experiments.running import fit_in, number_of_parameters, open_mesh
from zoo.ordered import GoldTree, Tree, depths_to_tree, parsing_table, prune_tree
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

ENCODERS = {"on_lstm": "ON-LSTM", "lstm": "plain LSTM"}
RULES = ((r"(layer|inner)/.*kernel$", PartitionSpec("fsdp", "model")),)
TREES = 1000  # formulas whose trees are scored
LABELS = ("not", "and, or", "operand")


class Result(NamedTuple):
    """Of one model and seed."""

    accuracy: dict[int, float]  # number of operators -> share of right relations in the test pairs
    trees: dict[str, list[Tree]]  # rule -> a tree for each formula


def run(config: Config) -> None:
    """Runs the experiment; continues where an earlier run in the same folder stopped."""
    mesh = open_mesh(config.mesh, config.distributed)
    corpus = open_corpus(**dataclasses.asdict(config.data))
    workdir = open_workdir(config.workdir, config, ignore=(*MAY_CHANGE, "training.seeds"))
    formulas = choose_formulas(corpus)
    gold = list(map(gold_tree, formulas))
    results: dict[str, list[Result]] = {}
    for encoder, name in ENCODERS.items():
        train = make_trainer(config, encoder, corpus, formulas, mesh=mesh)
        results[name] = [
            train(seed, workdir / f"{encoder}_{seed}") for seed in range(config.training.seeds)
        ]
    if jax.process_index() == 0:
        report(workdir, corpus, results, gold, seen=config.data.train_operators)


def make_trainer(
    config: Config, encoder: str, corpus: Corpus, formulas: list[str], *, mesh: Mesh
) -> Callable[[int, pathlib.Path], Result]:
    """Gives ``(seed, folder) -> result``: trains and tests; all seeds share what is compiled."""
    training, loop = config.training, config.loop
    make_batches = functools.partial(PairBatches, corpus.train, batch_size=training.batch_size)
    steps_per_epoch = make_batches(seed=0).batches_per_epoch
    init_parameters, rebuild = functional(
        lambda rngs: PairClassifier(encoder, **dataclasses.asdict(config.model), rngs=rngs)
    )
    optimizer = make_optimizer(training, steps_per_epoch)
    init = functools.partial(init_state, init_parameters, optimizer, mesh=mesh, rules=RULES)
    shardings = init(key=jax.random.key(0)).shardings
    step = make_train_step(make_loss(rebuild), optimizer, shardings=shardings)
    count = make_count(rebuild, num_groups=1 + max(corpus.test))

    def accuracy(state: TrainState, groups: dict[int, list[Pair]]) -> dict[int, float]:
        held_out = PairBatches(
            [pair for pairs in groups.values() for pair in pairs],
            [group for group, pairs in groups.items() for _ in pairs],
            batch_size=training.evaluation_batch_size,
            num_epochs=1,
            shuffle=False,
        )
        counts = [count(state.parameters, put_batch(batch, mesh)) for batch in held_out]
        right, total = np.sum(jax.device_get(counts), axis=0)
        return {group: float(right[group] / total[group]) for group in groups}

    def train(seed: int, folder: pathlib.Path) -> Result:
        state = init(key=jax.random.key(seed))
        num_steps = training.epochs * steps_per_epoch
        if jax.process_index() == 0:
            size = number_of_parameters(state.parameters)
            print(
                f"{ENCODERS[encoder]}, seed {seed}: {len(corpus.train):,} pairs, {size:,} "
                f"parameters; {num_steps:,} steps on {mesh.size} "
                f"{jax.devices()[0].device_kind} device(s)"
            )
        state = fit_in(
            folder,
            loop,
            step,
            state,
            make_batches(seed=seed),
            num_steps=num_steps,
            mesh=mesh,
            evaluate=lambda state: {"valid_accuracy": accuracy(state, {0: corpus.valid})[0]},
            evaluate_every=steps_per_epoch,
            rate_unit="pairs",
        )
        trees = read_trees(rebuild, state.parameters, formulas)
        return Result(accuracy(state, corpus.test), trees)

    return train


def make_optimizer(training: TrainingConfig, steps_per_epoch: int) -> optax.GradientTransformation:
    """Clipping, weight decay in the gradient as published, Adam, and a schedule."""
    num_steps = training.epochs * steps_per_epoch
    rate: Any = training.learning_rate
    slower = optax.identity()
    if training.schedule == "cosine":
        rate = optax.warmup_cosine_decay_schedule(
            init_value=0.0,
            peak_value=training.learning_rate,
            warmup_steps=max(1, num_steps // 20),
            decay_steps=num_steps,
        )
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


def make_loss(rebuild: Callable[..., PairClassifier]) -> Callable:
    """Sum of the negative log probabilities of the relations, in nats."""

    def loss_fn(parameters: Any, batch: Any, *, key: jax.Array, carry: Any) -> LossOutput:
        logits = rebuild(parameters)(batch, key=key)
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


def make_count(rebuild: Callable[..., PairClassifier], *, num_groups: int) -> Callable:
    """Compiled: the numbers of right relations and of pairs, by group, [2, num_groups]."""

    @jax.jit
    def count(parameters: Any, batch: Any) -> jax.Array:
        right = rebuild(parameters)(batch).argmax(axis=-1) == batch["relation"]
        both = jnp.stack([right & batch["valid"], batch["valid"]]).astype(jnp.int32)
        return jnp.zeros((2, num_groups), jnp.int32).at[:, batch["group"]].add(both)

    return count


def choose_formulas(corpus: Corpus) -> list[str]:
    """Different formulas of the validation pairs that have at least two operators."""
    formulas = (formula for pair in corpus.valid for formula in pair[1:])
    return list(dict.fromkeys(f for f in formulas if count_operators(f) >= 2))[:TREES]


def read_trees(rebuild: Callable, parameters: Any, formulas: list[str]) -> dict[str, list[Tree]]:
    """The trees of the depths over all tokens, from which the parentheses are then taken out."""
    ids, _ = encode(formulas)
    depths = np.asarray(jax.jit(lambda p, ids: rebuild(p).depths(ids))(parameters, ids))
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
    results: dict[str, list[Result]],
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
        number: max(map([pair.relation for pair in pairs].count, "#<>=^|v")) / len(pairs)
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
    means = {
        title: {
            name: np.average(values[:, chosen], axis=1, weights=counts[chosen])
            for name, values in accuracy.items()
        }
        for title, chosen in (
            (f"0 to {seen}", ~longer),
            (f"{seen + 1} and more", longer),
        )
        if chosen.any()
    }
    for title, values in means.items():
        rows.append(
            {"operators": title, "test pairs": ""}
            | {name: spread(shares) for name, shares in values.items()}
        )
    results_table(rows, title="Right relations in percent, mean ± standard deviation")
    trees = tree_rows(results, gold)
    shown = ("trees", "sentence F1", "corpus F1", "depth", *LABELS)
    results_table(
        [{name: row[name] for name in shown} for row in trees],
        title="Trees against the parentheses, F1 and recall in percent, mean over seeds",
    )
    pictures = figures.save(workdir, accuracy, majority, results, gold, seen=seen)
    summary = {
        "accuracy": {
            name: [result.accuracy for result in of_seeds] for name, of_seeds in results.items()
        },
        "mean_accuracy": means,
        "majority": majority,
        "trees": trees,
        "jax": jax.__version__,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
    summary_path = write_summary(workdir, summary)
    print("written:", ", ".join(str(path) for path in (*pictures, summary_path)))


def spread(shares: np.ndarray) -> str:
    """Mean of the seeds, and their standard deviation if there are several, in percent."""
    mean = f"{100 * shares.mean():.1f}"
    return mean if len(shares) == 1 else f"{mean} ± {100 * shares.std(ddof=1):.1f}"


def tree_rows(results: dict[str, list[Result]], gold: list[GoldTree]) -> list[dict[str, Any]]:
    """The parsing table, each model's row the mean over its seeds."""
    predicted = {
        (name, rule, seed): trees
        for name, of_seeds in results.items()
        for seed, result in enumerate(of_seeds)
        for rule, trees in result.trees.items()
    }
    table = parsing_table(predicted, gold, labels=LABELS)
    ours, baselines = table[: len(predicted)], table[len(predicted) :]
    rows: list[dict[str, Any]] = []
    for name in results:
        for rule in ("greedy", "unbiased"):
            same = [row for row in ours if row["trees"][:2] == (name, rule)]
            mean = {
                key: float(np.mean([r[key] for r in same])) for key in same[0] if key != "trees"
            }
            rows.append({"trees": f"{name}, {rule}"} | mean)
    return rows + baselines
