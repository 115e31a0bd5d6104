"""Trains one model a seed, objective and batch size, all seeds in one program; tests and draws."""

import functools
import itertools
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.smooth_metrics import figures
from experiments.smooth_metrics.bias import bias_table
from experiments.smooth_metrics.config import Config, DataConfig, TrainingConfig
from zoo.data import open_source
from zoo.data.images import image_arrays
from zoo.smooth import smooth_accuracy, smooth_f1
from zoo.smooth.streaming import streaming_f1, streaming_f1_init
from zoo.training import MetricsLog, open_workdir, results_table, write_summary

CROSS_ENTROPY = "cross entropy"
TUNED = "cross entropy, threshold tuned"
ACCURACY = "smooth accuracy"
BATCH_F1 = "then F1 of the batch"
STREAMING_F1 = "then streaming F1"
METHODS = (CROSS_ENTROPY, TUNED, ACCURACY, BATCH_F1, STREAMING_F1)


class Split(NamedTuple):
    """One row a seed; the same numbers of rows for all."""

    train_x: np.ndarray  # [S, N, D]
    train_t: np.ndarray  # [S, N], 0 or 1
    test_x: np.ndarray
    test_t: np.ndarray


def run(config: Config) -> None:
    """Runs the experiment; skips what an earlier run in the same folder has finished."""
    workdir = open_workdir(config.workdir, config, ignore=("workdir",))
    split = load(config.data, config.training)
    done = finished(workdir / "metrics.jsonl")
    share = split.train_t.mean()
    print(
        f"{config.data.uri}: {split.train_x.shape[1]:,} training and {split.test_x.shape[1]:,} "
        f"test rows a seed, {share:.1%} positive, {config.training.num_seeds} seeds"
    )
    with MetricsLog(workdir / "metrics.jsonl", resume_step=len(done)) as log:
        for size in config.training.batch_sizes:
            if size in {record["batch_size"] for record in done}:
                continue
            scores = train_all(split, size, config.training)
            done.append({"batch_size": size, "scores": scores})
            log.write(len(done), done[-1])
            f1 = ", ".join(f"{name} {np.mean(s['f1']):.3f}" for name, s in scores.items())
            print(f"batch size {size}: test F1 {f1}", flush=True)
    bias = bias_table(
        config.bias,
        jax.random.key(config.training.seed),
        remembered_examples=config.training.remembered_examples,
    )
    report(workdir, done, bias)


def finished(path: pathlib.Path) -> list[dict[str, Any]]:
    """The records of an earlier run; a batch size is recorded when all of it is done."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:  # cut off by a crash
            break
    return records


def load(data: DataConfig, training: TrainingConfig) -> Split:
    """Draws each seed's rows, thins out the positives, and cuts training from test rows."""
    images, labels = image_arrays(open_source(data.uri))
    x = images.reshape(len(images), -1).astype(np.float32)
    x = (x - x.mean()) / x.std()
    is_positive = labels == data.positive_class
    if not is_positive.any() or is_positive.all():
        raise ValueError(
            f"data.positive_class must be one of the labels of {data.uri}, got "
            f"{data.positive_class}"
        )
    parts = []
    for seed in range(training.num_seeds):
        generator = np.random.default_rng([training.seed, seed])
        order = generator.permutation(len(x))
        negatives, positives = order[~is_positive[order]], order[is_positive[order]]
        fewest = int(min(data.max_examples, len(x)) * (1 - is_positive.mean()))
        negatives = negatives[:fewest]
        wanted = round(len(negatives) * data.positive_share / (1 - data.positive_share))
        positives = positives[:wanted]
        pieces = [_cut(negatives, data.test_share), _cut(positives, data.test_share)]
        train, test = (generator.permutation(np.concatenate(p)) for p in zip(*pieces, strict=True))
        parts.append((x[train], is_positive[train], x[test], is_positive[test]))
    return Split(*(np.stack(part).astype(np.float32) for part in zip(*parts, strict=True)))


def _cut(rows: np.ndarray, test_share: float) -> tuple[np.ndarray, np.ndarray]:
    size = round(len(rows) * test_share)
    return rows[size:], rows[:size]


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


def objective(name: str, decay: float) -> Callable[..., tuple[jax.Array, Any]]:
    """``(logits, targets, state) -> (loss, state)``."""

    def loss(logits: jax.Array, targets: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        if name == CROSS_ENTROPY:
            return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, targets)), state
        p = jax.nn.sigmoid(logits)
        if name == ACCURACY:
            return -smooth_accuracy(p, targets), state
        if name == BATCH_F1:
            return -smooth_f1(p, targets), state
        state, f1 = streaming_f1(state, p, targets, decay=decay)
        return -f1, state

    return loss


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def train(
    name: str,
    batch_size: int,
    num_steps: int,
    learning_rate: float,
    decay: float,
    key: jax.Array,
    parameters: Any,
    x: jax.Array,
    targets: jax.Array,
) -> Any:
    """Adam on one objective, for all seeds: every argument from ``key`` on has a seed axis."""
    optimizer = optax.adam(learning_rate)
    loss = objective(name, decay)

    def one_seed(key: jax.Array, parameters: Any, x: jax.Array, targets: jax.Array) -> Any:
        def step(carry: tuple, key: jax.Array) -> tuple[tuple, None]:
            parameters, optimizer_state, state = carry
            rows = jax.random.randint(key, (batch_size,), 0, len(x))
            gradient, state = jax.grad(
                lambda p: loss(predict(p, x[rows]), targets[rows], state), has_aux=True
            )(parameters)
            updates, optimizer_state = optimizer.update(gradient, optimizer_state)
            return (optax.apply_updates(parameters, updates), optimizer_state, state), None

        carry = parameters, optimizer.init(parameters), streaming_f1_init()
        return jax.lax.scan(step, carry, jax.random.split(key, num_steps))[0][0]

    return jax.vmap(one_seed)(key, parameters, x, targets)


def train_all(split: Split, batch_size: int, training: TrainingConfig) -> dict[str, Any]:
    """Method -> test scores, one a seed."""
    keys = jax.random.split(jax.random.key(training.seed), (3, training.num_seeds))
    features = split.train_x.shape[-1]
    start = jax.vmap(lambda key: init_parameters(key, features, training.hidden_features))(keys[0])
    x, targets = jnp.asarray(split.train_x), jnp.asarray(split.train_t)
    decay = max(0.0, 1 - batch_size / training.remembered_examples)

    def fit(name: str, steps: int, keys: jax.Array, parameters: Any) -> Any:
        return train(
            name, batch_size, steps, training.learning_rate, decay, keys, parameters, x, targets
        )

    pretrained = fit(CROSS_ENTROPY, training.pretraining_steps, keys[1], start)
    trained = {
        name: fit(name, training.steps, keys[2], pretrained)
        for name in (CROSS_ENTROPY, BATCH_F1, STREAMING_F1)
    }
    both = training.pretraining_steps + training.steps
    trained[ACCURACY] = fit(ACCURACY, both, keys[1], start)
    logits = jax.jit(jax.vmap(predict))
    scores = {}
    for name in METHODS:
        parameters = trained[CROSS_ENTROPY if name == TUNED else name]
        train_z, test_z = (np.asarray(logits(parameters, s)) for s in (x, split.test_x))
        threshold = np.zeros(len(test_z))
        if name == TUNED:
            pairs = zip(train_z, split.train_t, strict=True)
            threshold = np.array([best_threshold(z, t) for z, t in pairs])
        chosen = test_z > threshold[:, None]
        scores[name] = {
            "f1": [f1_of(c, t) for c, t in zip(chosen, split.test_t, strict=True)],
            "accuracy": np.mean(chosen == split.test_t, axis=1).tolist(),
            "smooth_f1": [
                float(smooth_f1(jax.nn.sigmoid(z), t))
                for z, t in zip(jnp.asarray(test_z), jnp.asarray(split.test_t), strict=True)
            ],
        }
    return scores


def f1_of(chosen: np.ndarray, targets: np.ndarray) -> float:
    """Exact F1; 0 if nothing is chosen."""
    return float(2 * np.sum(chosen * targets) / max(np.sum(chosen) + np.sum(targets), 1))


def best_threshold(logits: np.ndarray, targets: np.ndarray) -> float:
    """The logit above which F1 on these rows is the largest."""
    order = np.argsort(-logits)
    hits = np.cumsum(targets[order])
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + targets.sum())
    best = int(np.argmax(f1))
    after = logits[order[min(best + 1, len(order) - 1)]]
    return float((logits[order[best]] + after) / 2)


def report(workdir: pathlib.Path, records: list[dict[str, Any]], bias: list[dict]) -> None:
    """Tables, picture and summary."""
    rows = []
    for record in sorted(records, key=lambda record: record["batch_size"]):
        for name, scores in record["scores"].items():
            rows.append(
                {"batch size": record["batch_size"], "objective": name}
                | {
                    metric: f"{np.mean(values):.3f} ± {standard_error(values):.3f}"
                    for metric, values in scores.items()
                }
            )
    results_table(rows, title="Test scores at threshold 1/2, mean ± standard error over seeds")
    results_table(bias, title="F1 of one simulated scorer")
    picture = figures.draw(records, bias)
    picture.savefig(workdir / "f1.png", dpi=100)
    summary = {
        "scores": {str(record["batch_size"]): record["scores"] for record in records},
        "bias": bias,
        "jax": jax.__version__,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
    print("written:", workdir / "f1.png", write_summary(workdir, summary))


def standard_error(values: list[float]) -> float:
    """Of the mean over the seeds."""
    return float(np.std(values, ddof=1) / len(values) ** 0.5)
