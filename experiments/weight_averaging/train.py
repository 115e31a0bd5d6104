"""Trains at a constant rate; evaluates the parameters and all their averages along the way."""

import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.command_line import MAY_CHANGE
from experiments.image_sets import head, open_splits
from experiments.running import fit_in, number_of_parameters, open_mesh
from experiments.weight_averaging import dirac_gan, figures
from experiments.weight_averaging.config import AveragingConfig, Config, DataConfig
from experiments.weight_averaging.resnet import ResNet
from zoo.averaging import (
    averaged_parameters,
    parameter_ema,
    post_hoc_average,
    power_law_ema,
)
from zoo.averaging.statistics import recompute_statistics
from zoo.data import Pipeline, image_arrays
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

LAST = 10  # evaluations that the spread is taken over
RAW, RUNNING = "parameters", "parameters, running statistics"


def run(config: Config) -> None:
    """Runs the experiment; continues where an earlier run in the same folder stopped."""
    mesh = open_mesh(config.mesh, config.distributed)
    training, averaging = config.training, config.averaging
    train_source, test_source = open_splits(config.data.uri)
    test_source = head(test_source, config.data.test_images)
    images, labels = image_arrays(test_source)
    batches = Pipeline(
        train_source, batch_size=training.batch_size, seed=training.seed, remainder="drop"
    )
    parts = functional_with_state(
        lambda rngs: ResNet(
            images.shape[-1],
            1 + int(labels.max()),
            **dataclasses.asdict(config.model),
            rngs=rngs,
        )
    )
    optimizer = make_optimizer(averaging, training.learning_rate)
    # The rate is constant: a longer run is the same run, going on.
    workdir = open_workdir(config.workdir, config, ignore=(*MAY_CHANGE, "training.steps"))
    state = init_state(
        parts.init_parameters,
        optimizer,
        key=jax.random.key(training.seed),
        mesh=mesh,
        init_model_state=parts.init_model_state,
    )
    step = make_train_step(make_loss(parts, config.data), optimizer, shardings=state.shardings)
    evaluation = Evaluation(
        parts,
        chunks(*image_arrays(head(train_source, config.data.statistics_images)), training),
        chunks(images, labels, training),
    )

    def evaluate(state: TrainState) -> dict[str, float]:
        if jax.process_index() == 0:
            store(workdir / "snapshots" / f"{int(state.step)}.npz", state, averaging)
        results = {RUNNING: evaluation.score(state.parameters, state.model_state)}
        results[RAW] = evaluation(state.parameters, state.model_state)
        for name in map(ema_name, averaging.decays):
            average = averaged_parameters(state.optimizer_state, path=f"^{re.escape(name)}$")
            results[name] = evaluation(average, state.model_state)
        return {f"{name} {key}": v for name, values in results.items() for key, v in values.items()}

    if jax.process_index() == 0:
        size = number_of_parameters(state.parameters)
        print(
            f"{config.data.uri}: {len(train_source):,} images to train on, {len(labels):,} to "
            f"test; ResNet-{config.model.depth} with {size:,} parameters; {training.steps:,} steps "
            f"on {mesh.size} {jax.devices()[0].device_kind} device(s)"
        )
    state = fit_in(
        workdir,
        config.loop,
        step,
        state,
        batches,
        num_steps=training.steps,
        mesh=mesh,
        evaluate=evaluate,
        evaluate_every=training.evaluate_every,
        rate_unit="images",
    )
    if jax.process_index() == 0:
        steps = sorted(read_curves(workdir / "metrics.jsonl", "accuracy")[RAW])
        post_hoc = reconstruct(
            workdir / "snapshots",
            averaging,
            steps[-LAST:],
            lambda parameters: evaluation(parameters, state.model_state),
            state.parameters,
        )
        report(workdir, post_hoc, averaging)


def ema_name(decay: float) -> str:
    """The name of an average in tables, logs and the optimiser's state."""
    return f"EMA {decay:g}"


def power_name(relative_std: float) -> str:
    """The same for a power-law average."""
    return f"power law {relative_std:g}"


def make_optimizer(
    averaging: AveragingConfig, learning_rate: float
) -> optax.GradientTransformation:
    """Adam, and behind it every average by its name."""
    return optax.named_chain(
        ("adam", optax.adam(learning_rate)),
        *((ema_name(decay), parameter_ema(decay)) for decay in averaging.decays),
        *((power_name(std), power_law_ema(std)) for std in averaging.stored_stds),
    )


def as_unit(images: jax.Array) -> jax.Array:
    """Bytes or numbers in 0..1 -> float32 in 0..1."""
    return images.astype(jnp.float32) / (255 if images.dtype == jnp.uint8 else 1)


def move_and_mirror(key: jax.Array, images: jax.Array, *, shift: int, mirror: bool) -> jax.Array:
    """Each image moved by up to ``shift`` pixels, zeros coming in, and perhaps mirrored."""

    def one(key: jax.Array, image: jax.Array) -> jax.Array:
        shift_key, mirror_key = jax.random.split(key)
        padded = jnp.pad(image, ((shift, shift), (shift, shift), (0, 0)))
        row, column = jax.random.randint(shift_key, (2,), 0, 2 * shift + 1)
        image = jax.lax.dynamic_slice(padded, (row, column, 0), image.shape)
        return jnp.where(mirror & jax.random.bernoulli(mirror_key), image[:, ::-1], image)

    return jax.vmap(one)(jax.random.split(key, len(images)), images)


def make_loss(parts: Functional, data: DataConfig) -> Callable[..., LossOutput]:
    """Sum of the cross entropies, in nats."""

    def loss_fn(
        parameters: Any, batch: Any, *, key: jax.Array, carry: Any, model_state: Any
    ) -> LossOutput:
        images = as_unit(batch["image"])
        images = move_and_mirror(key, images, shift=data.shift, mirror=data.mirror)
        module = parts.rebuild(parameters, key, model_state=model_state)
        logits = module(images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return LossOutput(
            total=losses.sum(),
            weight=jnp.float32(losses.size),
            model_state=parts.model_state(module),
        )

    return loss_fn


def chunks(images: np.ndarray, labels: np.ndarray, training: Any) -> list[tuple]:
    """A set in pieces for the device, nearly equal so that few sizes are compiled."""
    count = -(-len(labels) // training.evaluation_batch_size)
    pieces = zip(np.array_split(images, count), np.array_split(labels, count), strict=True)
    return [(jnp.asarray(image), jnp.asarray(label)) for image, label in pieces]


class Evaluation:
    """Scores parameters on the test images, with statistics made for these parameters.

    Args:
        parts: the network.
        train_chunks: images for the statistics of batch normalisation.
        test_chunks: images and labels to be scored on.
    """

    def __init__(self, parts: Functional, train_chunks: list, test_chunks: list) -> None:
        self._train_chunks, self._test_chunks = train_chunks, test_chunks

        @jax.jit
        def batch_statistics(parameters: Any, model_state: Any, images: jax.Array) -> Any:
            module = parts.rebuild(parameters, jax.random.key(0), model_state=model_state)
            module.set_attributes(nnx.BatchNorm, momentum=0.0)
            module(images)
            return parts.model_state(module)

        @jax.jit
        def sums(parameters: Any, model_state: Any, images: jax.Array, labels: jax.Array) -> Any:
            logits = parts.rebuild(parameters, model_state=model_state)(images)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return (logits.argmax(axis=-1) == labels).sum(), losses.sum()

        self._batch_statistics, self._sums = batch_statistics, sums

    def __call__(self, parameters: Any, model_state: Any) -> dict[str, float]:
        """Accuracy and loss with recomputed statistics."""
        statistics = recompute_statistics(
            functools.partial(self._batch_statistics, parameters, model_state),
            (images for images, _ in self._train_chunks),
        )
        return self.score(parameters, statistics)

    def score(self, parameters: Any, model_state: Any) -> dict[str, float]:
        """Accuracy and loss with the statistics given."""
        results = [self._sums(parameters, model_state, *chunk) for chunk in self._test_chunks]
        total = sum(len(labels) for _, labels in self._test_chunks)
        correct, losses = np.sum(jax.device_get(results), axis=0)
        return {"accuracy": float(correct / total), "loss": float(losses / total)}


def store(path: pathlib.Path, state: TrainState, averaging: AveragingConfig) -> None:
    """Writes the power-law averages of a step, leaf by leaf."""
    path.parent.mkdir(exist_ok=True)
    arrays = {}
    for std in averaging.stored_stds:
        name = power_name(std)
        average = averaged_parameters(state.optimizer_state, path=f"^{re.escape(name)}$")
        for number, leaf in enumerate(jax.tree.leaves(average)):
            arrays[f"{name}/{number}"] = np.asarray(leaf)
    np.savez(path, **arrays)


def load(path: pathlib.Path, std: float, like: Any) -> Any:
    """Reads one of the averages that ``store`` wrote."""
    structure = jax.tree.structure(like)
    with np.load(path) as arrays:
        leaves = [arrays[f"{power_name(std)}/{i}"] for i in range(structure.num_leaves)]
    return jax.tree.unflatten(structure, leaves)


def reconstruct(
    folder: pathlib.Path,
    averaging: AveragingConfig,
    steps: list[int],
    score: Callable[[Any], dict[str, float]],
    like: Any,
) -> dict[str, Any]:
    """Averages of other widths from the stored ones: all at the end, one along the way."""
    known = sorted(int(path.stem) for path in folder.glob("*.npz"))
    stored = [(step, std) for step in known for std in averaging.stored_stds]
    trees = {(step, std): load(folder / f"{step}.npz", std, like) for step, std in stored}

    def make(step: int, relative_std: float) -> dict[str, float]:
        usable = [pair for pair in stored if pair[0] <= step]
        average = post_hoc_average(
            [trees[pair] for pair in usable],
            [step for step, _ in usable],
            [std for _, std in usable],
            relative_std=relative_std,
        )
        return score(average)

    return {
        "by width": {std: make(steps[-1], std) for std in averaging.post_hoc_stds},
        "by step": {step: make(step, averaging.post_hoc_checked) for step in steps},
    }


def read_curves(metrics: pathlib.Path, key: str) -> dict[str, dict[int, float]]:
    """Test accuracy or loss by name and step."""
    curves: dict[str, dict[int, float]] = {}
    for record in map(json.loads, metrics.read_text().splitlines()):
        for name, value in record.items():
            if name.endswith(f" {key}"):
                curves.setdefault(name.removesuffix(f" {key}"), {})[record["step"]] = value
    return curves


def spread(curves: dict[str, dict[int, float]], unit: float) -> dict[str, dict[str, float]]:
    """Mean and standard deviation of the last evaluations, and its ratio to the parameters'."""
    last = {name: unit * np.array(list(curve.values())[-LAST:]) for name, curve in curves.items()}
    return {
        name: {
            "mean": float(values.mean()),
            "deviation": float(values.std()),
            "ratio": float(values.std() / last[RAW].std()),
        }
        for name, values in last.items()
    }


def report(workdir: pathlib.Path, post_hoc: dict[str, Any], averaging: AveragingConfig) -> None:
    """Tables, pictures and summary."""
    made = f"post hoc {averaging.post_hoc_checked:g}"
    curves, summary = {}, {}
    for key, unit in (("accuracy", 100.0), ("loss", 1.0)):
        curves[key] = read_curves(workdir / "metrics.jsonl", key)
        curves[key][made] = {step: score[key] for step, score in post_hoc["by step"].items()}
        summary[key] = spread(curves[key], unit)
        rows = [
            {"evaluated": name} | {column: float(f"{value:.4g}") for column, value in row.items()}
            for name, row in summary[key].items()
        ]
        results_table(rows, title=f"Test {key}{' %' * (unit > 1)}, last {LAST} evaluations")
    widths = [
        {"width": std, "accuracy %": 100 * values["accuracy"], "loss": values["loss"]}
        for std, values in post_hoc["by width"].items()
    ]
    results_table(widths, title="Power-law averages made afterwards")
    pictures = figures.save(workdir, curves["accuracy"], post_hoc["by width"])
    summary |= {
        "post_hoc": {str(std): values for std, values in post_hoc["by width"].items()},
        "dirac_gan": dirac_gan.measure(),
        "jax": jax.__version__,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
    summary_path = write_summary(workdir, summary)
    print("written:", ", ".join(str(path) for path in (*pictures, summary_path)))
