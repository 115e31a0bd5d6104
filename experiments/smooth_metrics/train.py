"""Trains models of every seed, objective, setting and batch size, many in one program."""

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
WEIGHTED = "cross entropy, positives weighted"
ACCURACY = "smooth accuracy"
BATCH_F1 = "then F1 of the batch"
STREAMING_F1 = "then streaming F1"
METHODS = (CROSS_ENTROPY, WEIGHTED, ACCURACY, BATCH_F1, STREAMING_F1)
THRESHOLDS = {"f1": "", "tuned_f1": ", threshold tuned"}


class Part(NamedTuple):
    """Samples of one use, as many for every seed."""

    rows: np.ndarray  # int32 [S, N]
    targets: np.ndarray  # float32 [S, N], 0 or 1


class Split(NamedTuple):
    """The images, and which of them each seed has for what."""

    x: np.ndarray  # float32 [M, D]
    train: Part
    valid: Part
    test: Part


class Settings(NamedTuple):
    """What the validation samples choose from, ``[G]`` each."""

    rate: jax.Array
    decay: jax.Array
    positive_weight: jax.Array


class Learner(NamedTuple):
    """One objective with its settings."""

    loss: Callable[..., tuple[jax.Array, Any]]  # parameters, x, targets, state, weight -> +state
    settings: Settings


def run(config: Config) -> None:
    """Runs the experiment; skips what an earlier run in the same folder has finished."""
    training = config.training
    split = load(config)
    learners = build(config)
    workdir = open_workdir(config.workdir, config, ignore=("workdir",))
    counts = ", ".join(f"{part.rows.shape[1]:,}" for part in split[1:])
    print(
        f"{config.data.uri}: {counts} samples per seed for training, validation and test, "
        f"{split.test.targets.mean():.1%} positive, {training.num_seeds} seeds"
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
    """Draws each seed's samples, thins out the positives, and separates test and validation."""
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
    seeds: list[tuple[Part, ...]] = []
    for seed in range(training.num_seeds):
        generator = np.random.default_rng([training.seed, seed])
        order = generator.permutation(len(x))
        pieces = []
        for of_class, count in ((~positive, num_negatives), (positive, num_positives)):
            rows = order[of_class[order]][:count]
            cuts = np.cumsum([data.test_share, data.validation_share]) * len(rows)
            test, valid, train = np.split(rows, np.round(cuts).astype(int))
            pieces.append((train, valid, test))
        parts = []
        for number, both in enumerate(zip(*pieces, strict=True)):
            rows = generator.permutation(np.concatenate(both))
            noise = data.label_noise if number < 2 else 0.0  # the labels of the test are right
            parts.append(Part(rows.astype(np.int32), exchange(generator, positive[rows], noise)))
        seeds.append(tuple(parts))
    split = Split(
        x, *(Part(*map(np.stack, zip(*part, strict=True))) for part in zip(*seeds, strict=True))
    )
    for name, part in zip(("training", "validation", "test"), split[1:], strict=True):
        targets = part.targets
        if not (targets.size and (targets.any(axis=1) & ~targets.all(axis=1)).all()):
            positives = targets.sum(axis=1, dtype=int)
            raise ValueError(
                f"data: the {name} samples must hold both classes, got {positives} "
                f"positives of {targets.shape[1]}; change data.positive_share, test_share, "
                "validation_share or max_examples"
            )
    return split


def exchange(generator: np.random.Generator, positive: np.ndarray, share: float) -> np.ndarray:
    """Targets in which this share of the positives and as many negatives have the other label."""
    classes = np.flatnonzero(positive), np.flatnonzero(~positive)
    count = min(round(share * len(classes[0])), len(classes[1]))
    wrong = [generator.choice(rows, count, replace=False) for rows in classes]
    targets = positive.astype(np.float32)
    targets[np.concatenate(wrong)] = np.repeat(np.float32([0, 1]), count)
    return targets


def build(config: Config) -> dict[str, Learner]:
    """A learner for each objective; nothing is computed."""
    training = config.training

    def loss(
        name: str, parameters: Any, x: jax.Array, t: jax.Array, state: Any, weight: jax.Array
    ) -> tuple[jax.Array, Any]:
        logits = predict(parameters, x)
        p = jax.nn.sigmoid(logits)
        if name in (CROSS_ENTROPY, WEIGHTED):
            losses = optax.sigmoid_binary_cross_entropy(logits, t)
            return jnp.mean(jnp.where(t > 0, weight, 1) * losses), state
        if name == STREAMING_F1:
            decay = max(0.0, 1 - len(t) / training.remembered_examples)
            state, f1 = streaming_f1(state, p, t, decay=decay)
            return -f1, state
        metric = smooth_accuracy if name == ACCURACY else smooth_f1
        return -metric(p, t), state

    def settings(name: str) -> Settings:
        weights = training.positive_weights if name == WEIGHTED else (1.0,)
        grid = itertools.product(training.learning_rates, training.weight_decays, weights)
        return Settings(*np.float32([*grid]).T)

    return {name: Learner(functools.partial(loss, name), settings(name)) for name in METHODS}


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
    loss: Callable[..., tuple[jax.Array, Any]],
    batch_size: int,
    num_steps: int,
    settings: Settings,
    x: jax.Array,
    keys: jax.Array,
    part: Part,
    parameters: Any,
) -> Any:
    """The trained parameters ``[S, G, …]``; every argument from ``keys`` on has a seed axis."""

    def optimizer(setting: Settings) -> optax.GradientTransformation:
        mask = [{"kernel": True, "bias": False}] * len(parameters)
        return optax.adamw(setting.rate, weight_decay=setting.decay, mask=mask)

    def one_seed(key: jax.Array, part: Part, parameters: Any) -> Any:
        def step(carry: tuple, key: jax.Array) -> tuple[tuple, None]:
            chosen = jax.random.randint(key, (batch_size,), 0, len(part.rows))
            batch, targets = x[part.rows[chosen]], part.targets[chosen]

            def one_setting(setting: Settings, parameters: Any, memory: Any, state: Any) -> tuple:
                gradient, state = jax.grad(loss, has_aux=True)(
                    parameters, batch, targets, state, setting.positive_weight
                )
                updates, memory = optimizer(setting).update(gradient, memory, parameters)
                return optax.apply_updates(parameters, updates), memory, state

            return jax.vmap(one_setting)(settings, *carry), None

        memory = jax.vmap(lambda setting, own: optimizer(setting).init(own))(settings, parameters)
        state = jax.vmap(lambda _: streaming_f1_init())(settings.rate)
        start = parameters, memory, state
        return jax.lax.scan(step, start, jax.random.split(key, num_steps))[0][0]

    return jax.vmap(one_seed)(keys, part, parameters)


def train_all(
    learners: dict[str, Learner], split: Split, batch_size: int, config: Config
) -> dict[str, Any]:
    """Objective -> parameters ``[S, G, …]``; cross entropy comes before the two F1."""
    training, x = config.training, jnp.asarray(split.x)
    keys = jax.random.split(jax.random.key(training.seed), (3, training.num_seeds))
    before, after = training.pretraining_steps, training.steps

    def fit(name: str, num_steps: int, keys: jax.Array, parameters: Any) -> Any:
        loss, settings = learners[name]
        return train(loss, batch_size, num_steps, settings, x, keys, split.train, parameters)

    def start(name: str) -> Any:
        def draw(key: jax.Array) -> Any:
            return init_parameters(key, x.shape[1], training.hidden_features)

        count = len(learners[name].settings.rate)
        return jax.vmap(lambda key: jax.vmap(draw)(jnp.repeat(key, count)))(keys[0])

    pretrained = fit(CROSS_ENTROPY, before, keys[1], start(CROSS_ENTROPY))
    continued = (CROSS_ENTROPY, BATCH_F1, STREAMING_F1)
    found = {name: fit(name, after, keys[2], pretrained) for name in continued}
    found |= {
        name: fit(name, before + after, keys[1], start(name)) for name in (WEIGHTED, ACCURACY)
    }
    return {name: found[name] for name in METHODS}


def test_all(parameters: dict[str, Any], split: Split) -> dict[str, Any]:
    """Objective -> test scores, one per seed.

    The settings are those of the best validation F1, at the threshold 1/2 and again at the
    threshold that is the best on the validation samples.
    """

    @jax.jit
    def logits(parameters: Any, rows: jax.Array) -> jax.Array:
        return jax.vmap(predict, in_axes=(0, None))(parameters, jnp.asarray(split.x)[rows])

    scores: dict[str, dict[str, list[float]]] = {}
    for name, own in parameters.items():
        scores[name] = {"f1": [], "tuned_f1": [], "accuracy": [], "smooth_f1": []}
        for seed in range(len(split.test.rows)):
            model = jax.tree.map(lambda leaf, seed=seed: leaf[seed], own)
            valid_z, test_z = (
                np.asarray(logits(model, part.rows[seed])) for part in (split.valid, split.test)
            )
            valid_t, test_t = split.valid.targets[seed], split.test.targets[seed]
            cuts = {
                "f1": [0.0] * len(valid_z),
                "tuned_f1": [best_threshold(z, valid_t) for z in valid_z],
            }
            for metric, thresholds in cuts.items():
                f1 = [exact_f1(z > c, valid_t) for z, c in zip(valid_z, thresholds, strict=True)]
                best = int(np.argmax(f1))
                chosen = test_z[best] > thresholds[best]
                scores[name][metric].append(exact_f1(chosen, test_t))
                if metric == "f1":
                    scores[name]["accuracy"].append(float(np.mean(chosen == test_t)))
                    p = jax.nn.sigmoid(test_z[best])
                    scores[name]["smooth_f1"].append(float(smooth_f1(p, test_t)))
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

    def mean_and_error(values: Any) -> str:
        return f"{np.mean(values):.3f} ± {np.std(values, ddof=1) / len(values) ** 0.5:.3f}"

    def margins(scores: dict[str, Any], name: str, metric: str) -> dict[str, str]:
        own = np.array(scores[name][metric])
        return {
            f"{rival}{told}": mean_and_error(own - scores[rival][other])
            for rival in (CROSS_ENTROPY, WEIGHTED)
            for other, told in THRESHOLDS.items()
        }

    rows = [
        {"batch size": record["batch_size"], "objective": name}
        | {metric: mean_and_error(values) for metric, values in scores.items()}
        for record in records
        for name, scores in record["scores"].items()
    ]
    results_table(rows, title="Test scores, mean ± standard error over seeds")
    ahead = [
        {"batch size": record["batch_size"], "objective": name + told}
        | margins(record["scores"], name, metric)
        for record in records
        for name in (BATCH_F1, STREAMING_F1)
        for metric, told in THRESHOLDS.items()
    ]
    results_table(ahead, title="F1 less that of each rival, seed by seed")
    results_table(bias, title="F1 of one simulated scorer")
    pictures = save_figures(workdir, {"f1": figures.draw(records, bias)})
    scores = {str(record["batch_size"]): record["scores"] for record in records}
    finish(workdir, {"scores": scores, "bias": bias}, pictures)
