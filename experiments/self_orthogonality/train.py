"""Trains the network with every penalty, with and without batch normalisation, for every seed."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.command_line import MAY_CHANGE
from experiments.running import fit_in, open_mesh
from experiments.self_orthogonality import ablation, figures
from experiments.self_orthogonality.config import Config, DataConfig, Method
from experiments.self_orthogonality.model import LAYERS, Classifier
from zoo.data import Pipeline, image_arrays, open_source
from zoo.orthogonal import (
    add_orthogonality_penalty,
    filter_angles,
    self_orthogonality,
    sign_correlation,
)
from zoo.orthogonal.angles import random_angle_std
from zoo.training import (
    Functional,
    LossOutput,
    TrainState,
    functional_with_state,
    init_state,
    make_train_step,
    open_workdir,
    results_table,
    write_summary,
)

EVALUATION_ROWS = 500


class Images(NamedTuple):
    """Images scaled to mean 0 and variance 1 by those to train on, and their labels."""

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


class Outcome(NamedTuple):
    """What one trained network is judged by."""

    accuracy: float  # on the test images
    angles: dict[str, np.ndarray]  # by layer, degrees
    correlation: dict[str, float]  # by layer, root mean square of V over the pairs, test images


def run(config: Config) -> None:
    """Runs the experiment; continues where an earlier run in the same folder stopped."""
    mesh = open_mesh(config.mesh, config.distributed)
    images = load(config.data)
    workdir = open_workdir(config.workdir, config, ignore=MAY_CHANGE)
    training = config.training
    source = [{"image": image, "label": label} for image, label in zip(*images.train, strict=True)]
    num_steps = training.epochs * -(-len(source) // training.batch_size)
    if jax.process_index() == 0:
        print(
            f"{config.data.uri}: {len(source):,} images to train on, {len(images.test[1]):,} to "
            f"test; {num_steps:,} steps for each of "
            f"{len(training.methods) * len(training.batch_norm) * len(training.seeds)} networks"
        )
    outcomes: dict[tuple[str, bool], list[Outcome]] = {}
    for batch_norm in training.batch_norm:
        parts = functional_with_state(functools.partial(make_network, config, images, batch_norm))
        judge = jax.jit(functools.partial(predict, parts))
        for method in training.methods:
            optimizer = make_optimizer(config, method, num_steps)
            step = None
            for seed in training.seeds:
                state = init_state(
                    parts.init_parameters,
                    optimizer,
                    key=jax.random.key(seed),
                    mesh=mesh,
                    init_model_state=parts.init_model_state,
                )
                if step is None:  # compiled once for all seeds
                    loss = make_loss(config, method, parts)
                    step = make_train_step(loss, optimizer, shardings=state.shardings)
                batches = Pipeline(source, batch_size=training.batch_size, seed=seed)
                folder = workdir / run_name(method, batch_norm, seed)
                state = fit_in(
                    folder,
                    config.loop,
                    step,
                    state,
                    batches,
                    num_steps=num_steps,
                    mesh=mesh,
                )
                outcome = evaluate(judge, state, images)
                outcomes.setdefault((method, batch_norm), []).append(outcome)
                if jax.process_index() == 0:
                    print(f"{folder.name}: test accuracy {outcome.accuracy:.2%}", flush=True)
    ablated = ablation.run(config.ablation) if config.ablation.num_steps else []
    if jax.process_index() == 0:
        report(workdir, config, outcomes, ablated, entries_of(parts))


def run_name(method: str, batch_norm: bool, seed: int) -> str:
    """The folder of one network."""
    return f"{method}-{'batch_norm' if batch_norm else 'bias'}-{seed}"


def load(data: DataConfig) -> Images:
    """The images to train and to test on, the same in every run."""
    generator = np.random.default_rng(0)
    if data.test_size is None:
        train, test = (image_arrays(open_source(data.uri, split=s)) for s in ("train", "test"))
    else:
        pictures, labels = image_arrays(open_source(data.uri))
        if data.test_size >= len(labels):
            raise ValueError(
                f"data.test_size must be smaller than the {len(labels)} images of "
                f"{data.uri}, got {data.test_size}"
            )
        order = generator.permutation(len(labels))
        parts = order[data.test_size :], order[: data.test_size]
        train, test = ((pictures[part], labels[part]) for part in parts)
    chosen = generator.permutation(len(train[1]))[: data.train_size]
    train = train[0][chosen], train[1][chosen]
    mean, deviation = train[0].mean(), train[0].std()
    return Images(*(((x - mean) / deviation, labels) for x, labels in (train, test)))


def make_network(config: Config, images: Images, batch_norm: bool, rngs: Any) -> Classifier:
    """The network for these images."""
    pictures, labels = images.train
    return Classifier(
        pictures.shape[1:],
        int(labels.max()) + 1,
        **dataclasses.asdict(config.model),
        batch_norm=batch_norm,
        rngs=rngs,
    )


def make_optimizer(config: Config, method: Method, num_steps: int) -> optax.GradientTransformation:
    """Momentum and cosine decay; penalties on the kernels alone are added to the gradient."""
    training, penalty = config.training, config.penalty
    hidden_kernels = functools.partial(
        jax.tree_util.tree_map_with_path,
        lambda path, _: path[0].key in LAYERS and path[-1].key == "kernel",
    )
    if method == "weight_decay":
        added = optax.add_decayed_weights(penalty.weight_decay, mask=hidden_kernels)
    elif method in ("soft", "off_diagonal", "spectral"):
        added = add_orthogonality_penalty(
            getattr(penalty, method), kind=method, mask=hidden_kernels
        )
    else:
        added = optax.identity()
    schedule = optax.cosine_decay_schedule(training.learning_rate, num_steps)
    clip = optax.clip_by_global_norm(training.gradient_clip)
    return optax.chain(added, clip, optax.sgd(schedule, training.momentum))


def make_loss(config: Config, method: Method, parts: Functional) -> Callable[..., LossOutput]:
    """Cross-entropy, and self-orthogonality of every hidden layer where that is the method."""
    penalty = config.penalty

    def loss_fn(
        parameters: Any, batch: Any, *, key: jax.Array, carry: Any, model_state: Any = ()
    ) -> LossOutput:
        del carry
        model = parts.rebuild(parameters, key, model_state=model_state)
        logits, responses = model(batch["image"], stop_input_gradient=penalty.stop_input_gradient)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        weight = jnp.sum(batch["valid"])
        cross_entropy = jnp.sum(jnp.where(batch["valid"], losses, 0))
        total = cross_entropy
        if method == "self_orthogonality":
            each = [
                self_orthogonality(
                    own,
                    sharpness=penalty.sharpness,
                    mean_weight=penalty.mean_weight,
                    square_weight=penalty.square_weight,
                    reduction=penalty.reduction,
                    center=penalty.center,
                )
                for own in responses.values()
            ]
            total = total + weight * penalty.self_orthogonality * sum(each)
        return LossOutput(
            total=total,
            weight=weight,
            metrics={"cross_entropy": (cross_entropy, weight)},
            model_state=parts.model_state(model),
        )

    return loss_fn


def predict(
    parts: Functional, parameters: Any, model_state: Any, images: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Classes, and V of every layer, of some images in evaluation mode."""
    logits, responses = parts.rebuild(parameters, model_state=model_state)(images)
    return jnp.argmax(logits, axis=-1), jax.tree.map(sign_correlation, responses)


def evaluate(judge: Callable[..., Any], state: TrainState, images: Images) -> Outcome:
    """Judges a trained network on the test images."""
    pictures, labels = images.test
    correct, squares = 0, {layer: [] for layer in LAYERS}
    for start in range(0, len(labels), EVALUATION_ROWS):
        rows = slice(start, start + EVALUATION_ROWS)
        classes, correlations = judge(state.parameters, state.model_state, pictures[rows])
        correct += int(np.sum(np.asarray(classes) == labels[rows]))
        for layer, matrix in correlations.items():
            pairs = np.asarray(matrix)[np.triu_indices(len(matrix), 1)]
            squares[layer].append(np.mean(pairs**2))
    kernels = {layer: state.parameters[layer]["kernel"] for layer in LAYERS}
    return Outcome(
        accuracy=correct / len(labels),
        angles={layer: np.asarray(filter_angles(kernel)) for layer, kernel in kernels.items()},
        correlation={layer: float(np.sqrt(np.mean(each))) for layer, each in squares.items()},
    )


def entries_of(parts: Functional) -> dict[str, int]:
    """The number of entries of a filter, by layer."""
    shapes = jax.eval_shape(parts.init_parameters, jax.random.key(0))
    kernels = {layer: shapes[layer]["kernel"] for layer in LAYERS}
    return {layer: kernel.size // kernel.shape[-1] for layer, kernel in kernels.items()}


def read_curves(
    workdir: pathlib.Path, config: Config
) -> tuple[dict[tuple[str, bool], np.ndarray], list[int]]:
    """Cross-entropy ``[seeds, steps]`` of every method from the records of its runs."""
    training, curves, steps = config.training, {}, []
    for method in training.methods:
        for batch_norm in training.batch_norm:
            runs = []
            for seed in training.seeds:
                path = workdir / run_name(method, batch_norm, seed) / "metrics.jsonl"
                records = [json.loads(line) for line in path.read_text().splitlines()]
                steps = [record["step"] for record in records]
                runs.append([record["cross_entropy"] for record in records])
            curves[method, batch_norm] = np.array(runs)
    return curves, steps


def report(
    workdir: pathlib.Path,
    config: Config,
    outcomes: dict[tuple[str, bool], list[Outcome]],
    ablated: list[dict[str, Any]],
    entries: dict[str, int],
) -> None:
    """Tables, pictures and summary."""
    chance = {layer: random_angle_std(entries[layer]) for layer in LAYERS}
    scores: list[dict[str, Any]] = []
    rows = [{"angles": "random filters"} | {k: f"90.0 ± {chance[k]:.1f}" for k in LAYERS}]
    angles = {}
    for (method, batch_norm), runs in outcomes.items():
        name = f"{figures.TITLES[method]}, {figures.NORMS[batch_norm]}"
        accuracies = 100 * np.array([outcome.accuracy for outcome in runs])
        spread = accuracies.std(ddof=1) if len(runs) > 1 else 0.0
        own = {layer: np.concatenate([run.angles[layer] for run in runs]) for layer in LAYERS}
        angles[method, batch_norm] = own
        rms = {layer: np.mean([run.correlation[layer] for run in runs]) for layer in LAYERS}
        scores.append(
            {"penalty": name, "accuracy, %": f"{accuracies.mean():.2f} ± {spread:.2f}"}
            | {f"V, {layer}": f"{value:.3f}" for layer, value in rms.items()}
        )
        rows.append(
            {"angles": name} | {k: f"{v.mean():.1f} ± {v.std():.1f}" for k, v in own.items()}
        )
    title = "Test images: accuracy, mean ± std over the seeds; root mean square of V by layer"
    results_table(scores, title=title)
    results_table(rows, title="Angles between filters, degrees: mean ± std over the pairs")
    ablation_rows = [
        {
            "setting": row["setting"],
            **{
                name: " / ".join(f"{value:.2f}" for value in row[name])
                for name in ("before", "after", "source")
            },
        }
        for row in ablated
    ]
    if ablated:
        results_table(
            ablation_rows,
            title=f"The loss alone, {config.ablation.num_steps} steps: mean / std / largest "
            "deviation from 90 of the angles",
        )
    curves, steps = read_curves(workdir, config)
    pictures = figures.save(
        workdir,
        {
            "angles": figures.draw_angles(angles, entries),
            "curves": figures.draw_curves(curves, steps),
        },
    )
    summary = {
        "networks": {
            run_name(method, batch_norm, seed): {
                "accuracy": outcome.accuracy,
                "angles": {k: ablation.statistics(v) for k, v in outcome.angles.items()},
                "correlation": outcome.correlation,
            }
            for (method, batch_norm), runs in outcomes.items()
            for seed, outcome in zip(config.training.seeds, runs, strict=True)
        },
        "random_angle_std": chance,
        "ablation": ablated,
        "jax": jax.__version__,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
    path = write_summary(workdir, summary)
    print("written:", ", ".join(str(item) for item in (*pictures, path)))
