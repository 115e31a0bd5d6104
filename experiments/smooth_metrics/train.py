"""Trains one model per seed, objective and batch size, all seeds in one program."""

import functools
import itertools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zoo.data import open_source
from zoo.data.fingerprint import fingerprint
from zoo.data.images import image_arrays
from zoo.smooth import smooth_accuracy, smooth_f1
from zoo.smooth.streaming import streaming_f1, streaming_f1_init
from zoo.training import MetricsLog, open_workdir, results_table

from ..pictures import save_figures
from ..running import finish, read_records
from . import figures
from .bias import bias_table
from .config import Config

CROSS_ENTROPY = "cross entropy"
TUNED = "cross entropy, threshold tuned"
ACCURACY = "smooth accuracy"
BATCH_F1 = "then F1 of the batch"
STREAMING_F1 = "then streaming F1"
METHODS = (CROSS_ENTROPY, TUNED, ACCURACY, BATCH_F1, STREAMING_F1)


class Split(NamedTuple):
    """The same numbers of samples for every seed."""

    train_x: np.ndarray  # [S, N, D]
    train_t: np.ndarray  # [S, N], 0 or 1
    test_x: np.ndarray
    test_t: np.ndarray


class Learner(NamedTuple):
    """One objective with its optimiser."""

    init: Callable[[jax.Array], Any]  # key -> parameters
    loss: Callable[..., tuple[jax.Array, Any]]  # (parameters, x, targets, state) -> loss, state
    optimizer: optax.GradientTransformation


def run(config: Config) -> None:
    """Runs the experiment; skips what an earlier run in the same folder has finished."""
    training = config.training
    split = load(config)
    learners = build(config, split)
    workdir = open_workdir(config.workdir, config, ignore=("workdir",))
    print(
        f"{config.data.uri}: {split.train_x.shape[1]:,} training and {split.test_x.shape[1]:,} "
        f"test samples per seed, {split.train_t.mean():.1%} positive, {training.num_seeds} seeds"
    )
    with MetricsLog(workdir / "metrics.jsonl") as log:
        log.resume(len(training.batch_sizes))  # drops what a crash cut off
        data = fingerprint(split)
        done = {record["batch_size"]: record for record in read_records(log.path, data)}
        for number, size in enumerate(training.batch_sizes, 1):
            if size in done:
                continue
            parameters = train_all(learners, split, size, config)
            scores = test_all(parameters, split)
            done[size] = {"batch_size": size, "scores": scores, "data": data}
            log.write(number, done[size])
            f1 = ", ".join(f"{name} {np.mean(s['f1']):.3f}" for name, s in scores.items())
            print(f"batch size {size}: test F1 {f1}", flush=True)
    key = jax.random.key(training.seed)
    bias = bias_table(config.bias, key, remembered_examples=training.remembered_examples)
    report(workdir, [done[size] for size in training.batch_sizes], bias)


def load(config: Config) -> Split:
    """Draws each seed's samples, thins out the positives, and separates training from test."""
    data, training = config.data, config.training
    images, labels = image_arrays(open_source(data.uri))
    x = images.reshape(len(images), -1).astype(np.float32)
    x = (x - x.mean()) / x.std()
    positive = labels == data.positive_class
    if not positive.any() or positive.all():
        raise ValueError(
            f"data.positive_class must be one of the labels of {data.uri}, got "
            f"{data.positive_class}"
        )
    num_negatives = int(min(data.max_examples, len(x)) * (1 - positive.mean()))
    num_positives = round(num_negatives * data.positive_share / (1 - data.positive_share))
    parts = []
    for seed in range(training.num_seeds):
        generator = np.random.default_rng([training.seed, seed])
        order = generator.permutation(len(x))
        train, test = [], []
        for of_class, count in ((~positive, num_negatives), (positive, num_positives)):
            rows = order[of_class[order]][:count]
            cut = round(len(rows) * data.test_share)
            train.append(rows[cut:])
            test.append(rows[:cut])
        train, test = (generator.permutation(np.concatenate(rows)) for rows in (train, test))
        parts.append((x[train], positive[train], x[test], positive[test]))
    split = Split(*(np.stack(part).astype(np.float32) for part in zip(*parts, strict=True)))
    for name, targets in {"training": split.train_t, "test": split.test_t}.items():
        if not (targets.size and (targets.any(axis=1) & ~targets.all(axis=1)).all()):
            positives = targets.sum(axis=1, dtype=int)
            raise ValueError(
                f"data: the {name} samples must hold both classes, got {positives} "
                f"positives of {targets.shape[1]}; change data.positive_share, test_share or "
                "max_examples"
            )
    return split


def build(config: Config, split: Split | None = None) -> dict[str, Learner]:
    """A learner for each objective; ``split`` is ``load(config)`` if None."""
    split = load(config) if split is None else split
    training, features = config.training, split.train_x.shape[-1]

    def init(key: jax.Array) -> list[dict[str, jax.Array]]:
        return init_parameters(key, features, training.hidden_features)

    def loss(name: str, parameters: Any, x: jax.Array, t: jax.Array, state: Any) -> tuple:
        logits = predict(parameters, x)
        p = jax.nn.sigmoid(logits)
        if name == CROSS_ENTROPY:
            return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, t)), state
        if name == STREAMING_F1:
            decay = max(0.0, 1 - len(t) / training.remembered_examples)
            state, f1 = streaming_f1(state, p, t, decay=decay)
            return -f1, state
        metric = smooth_accuracy if name == ACCURACY else smooth_f1
        return -metric(p, t), state

    optimizer = optax.adam(training.learning_rate)
    names = (CROSS_ENTROPY, ACCURACY, BATCH_F1, STREAMING_F1)
    return {name: Learner(init, functools.partial(loss, name), optimizer) for name in names}


def init_parameters(key: jax.Array, features: int, hidden: int) -> list[dict[str, jax.Array]]:
    """A linear model, or one with a hidden layer; zeros last."""
    sizes = [features, *([hidden] if hidden else []), 1]
    layers = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        key, own = jax.random.split(key)
        kernel = jax.random.normal(own, (fan_in, fan_out)) * fan_in**-0.5
        layers.append({"kernel": kernel, "bias": jnp.zeros(fan_out)})
    layers[-1]["kernel"] *= 0
    return layers


def predict(parameters: list[dict[str, jax.Array]], x: jax.Array) -> jax.Array:
    """Logits [B]."""
    for number, layer in enumerate(parameters):
        x = jax.nn.relu(x) if number else x
        x = x @ layer["kernel"] + layer["bias"][None]
    return x[:, 0]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def train(
    learner: Learner,
    batch_size: int,
    num_steps: int,
    keys: jax.Array,
    parameters: Any,
    x: jax.Array,
    targets: jax.Array,
) -> Any:
    """The trained parameters; every argument from ``keys`` on has a seed axis."""

    def one_seed(key: jax.Array, parameters: Any, x: jax.Array, targets: jax.Array) -> Any:
        def step(carry: tuple, key: jax.Array) -> tuple[tuple, None]:
            parameters, optimizer_state, state = carry
            rows = jax.random.randint(key, (batch_size,), 0, len(x))
            gradient, state = jax.grad(learner.loss, has_aux=True)(
                parameters, x[rows], targets[rows], state
            )
            updates, optimizer_state = learner.optimizer.update(gradient, optimizer_state)
            return (optax.apply_updates(parameters, updates), optimizer_state, state), None

        carry = parameters, learner.optimizer.init(parameters), streaming_f1_init()
        return jax.lax.scan(step, carry, jax.random.split(key, num_steps))[0][0]

    return jax.vmap(one_seed)(keys, parameters, x, targets)


def train_all(
    learners: dict[str, Learner], split: Split, batch_size: int, config: Config
) -> dict[str, Any]:
    """Objective -> parameters with a seed axis; cross entropy comes before the two F1."""
    training = config.training
    keys = jax.random.split(jax.random.key(training.seed), (3, training.num_seeds))
    start = jax.vmap(learners[CROSS_ENTROPY].init)(keys[0])
    before, after = training.pretraining_steps, training.steps

    def fit(name: str, num_steps: int, keys: jax.Array, parameters: Any) -> Any:
        data = jnp.asarray(split.train_x), jnp.asarray(split.train_t)
        return train(learners[name], batch_size, num_steps, keys, parameters, *data)

    pretrained = fit(CROSS_ENTROPY, before, keys[1], start)
    continued = (CROSS_ENTROPY, BATCH_F1, STREAMING_F1)
    return {name: fit(name, after, keys[2], pretrained) for name in continued} | {
        ACCURACY: fit(ACCURACY, before + after, keys[1], start)
    }


def test_all(parameters: dict[str, Any], split: Split) -> dict[str, Any]:
    """Method -> test scores, one per seed."""
    logits, f1 = jax.jit(jax.vmap(predict)), jax.vmap(smooth_f1)
    scores = {}
    for name in METHODS:
        own = parameters[CROSS_ENTROPY if name == TUNED else name]
        train_z, test_z = (np.asarray(logits(own, x)) for x in (split.train_x, split.test_x))
        threshold = np.zeros(len(test_z))
        if name == TUNED:
            pairs = zip(train_z, split.train_t, strict=True)
            threshold = np.array([best_threshold(z, t) for z, t in pairs])
        chosen = test_z > threshold[:, None]
        scores[name] = {
            "f1": [exact_f1(c, t) for c, t in zip(chosen, split.test_t, strict=True)],
            "accuracy": np.mean(chosen == split.test_t, axis=1).tolist(),
            "smooth_f1": f1(jax.nn.sigmoid(test_z), split.test_t).tolist(),
        }
    return scores


def exact_f1(chosen: np.ndarray, targets: np.ndarray) -> float:
    """0 if nothing is chosen."""
    return float(2 * np.sum(chosen * targets) / max(np.sum(chosen) + np.sum(targets), 1))


def best_threshold(logits: np.ndarray, targets: np.ndarray) -> float:
    """The logit above which F1 on these samples is the largest."""
    order = np.argsort(-logits)
    hits = np.cumsum(targets[order])
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + targets.sum())
    best = int(np.argmax(f1))
    after = logits[order[min(best + 1, len(order) - 1)]]
    return float((logits[order[best]] + after) / 2)


def report(workdir: pathlib.Path, records: list[dict[str, Any]], bias: list[dict]) -> None:
    """Tables, picture and summary."""

    def mean_and_error(values: list[float]) -> str:
        return f"{np.mean(values):.3f} ± {np.std(values, ddof=1) / len(values) ** 0.5:.3f}"

    rows = [
        {"batch size": record["batch_size"], "objective": name}
        | {metric: mean_and_error(values) for metric, values in scores.items()}
        for record in records
        for name, scores in record["scores"].items()
    ]
    results_table(rows, title="Test scores at threshold 1/2, mean ± standard error over seeds")
    results_table(bias, title="F1 of one simulated scorer")
    pictures = save_figures(workdir, {"f1": figures.draw(records, bias)})
    scores = {str(record["batch_size"]): record["scores"] for record in records}
    finish(workdir, {"scores": scores, "bias": bias}, pictures)
