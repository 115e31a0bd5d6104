"""Trains at a constant rate; evaluates the parameters and all their averages along the way."""

import dataclasses
import functools
import io
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh

from zoo._files import replace_file
from zoo.averaging import averaged_parameters, parameter_ema, post_hoc_average, power_law_ema
from zoo.averaging.statistics import recompute_statistics
from zoo.data import Pipeline
from zoo.data.arrays import read_npz
from zoo.data.images import image_arrays
from zoo.training import LossOutput, TrainState, functional, open_workdir, results_table
from zoo.training.state import get_model_state

from ..command_line import MAY_CHANGE
from ..image_sets import head, open_splits
from ..pictures import save_figures
from ..running import (
    Experiment,
    announce,
    finish,
    is_main_process,
    open_mesh,
    read_records,
    train,
)
from . import dirac_gan
from .config import AveragingConfig, Config, DataConfig
from .figures import draw_accuracy, draw_orbit, draw_widths
from .resnet import ResNet

LAST = 10  # evaluations that the spread is taken over
RAW, RUNNING = "parameters", "parameters, running statistics"


class Data(NamedTuple):
    """The images to train on, as examples, and those to evaluate with, as arrays."""

    train: Sequence[Any]
    statistics: tuple[np.ndarray, np.ndarray]  # images [N, H, W, C] and labels [N]
    test: tuple[np.ndarray, np.ndarray]


def run(config: Config) -> None:
    """Runs the experiment; continues where an earlier run in the same folder stopped."""
    mesh = open_mesh(config)
    data = load(config)
    experiment = build(config, mesh, data)
    # The rate is constant: a longer run is the same run, continued.
    workdir = open_workdir(config.workdir, config, ignore=(*MAY_CHANGE, "training.steps"))
    images = f"{len(data.train):,} images to train on, {len(data.test[1]):,} to test"
    announce(f"{config.data.uri}: {images}; ResNet-{config.model.depth}", experiment, mesh)
    state = train(experiment, mesh, workdir, config.loop)
    if is_main_process():
        made = post_hoc_scores(workdir, config.averaging, experiment, state)
        report(workdir, config.averaging, made)


def load(config: Config) -> Data:
    """Reads the images."""
    train_source, test_source = open_splits(config.data.uri)
    statistics = image_arrays(head(train_source, config.data.statistics_images))
    return Data(train_source, statistics, image_arrays(head(test_source, config.data.test_images)))


def build(config: Config, mesh: Mesh, data: Data | None = None) -> Experiment:
    """Model, loss, optimiser, batches and evaluation; ``data`` is ``load(config)`` if None."""
    data = load(config) if data is None else data
    training, (images, labels) = config.training, data.test
    # Of all images: a label that the network has no output for makes the loss NaN.
    highest = max(*labels.tolist(), *(int(example["label"]) for example in data.train))
    sizes = images.shape[-1], 1 + highest

    def make_network(rngs: nnx.Rngs) -> ResNet:
        return ResNet(*sizes, **dataclasses.asdict(config.model), rngs=rngs)

    init, merge = functional(make_network)
    score = make_score(merge, data, training.evaluation_batch_size)

    def evaluate(
        state: TrainState, averages: dict[str, Any] | None = None
    ) -> tuple[TrainState, dict[str, float]]:
        """Accuracy and loss of the parameters and their averages, or of the ones given."""
        if averages is None:
            if is_main_process():
                store(pathlib.Path(config.workdir) / "snapshots", state, config.averaging)
            names = [ema_name(decay) for decay in config.averaging.decays]
            averages = {RUNNING: state.parameters, RAW: state.parameters}
            averages |= {name: average_named(name, state) for name in names}
        values = {}
        for name, parameters in averages.items():
            found = score(parameters, state.model_state, recompute=name != RUNNING)
            values |= {f"{name} {key}": value for key, value in found.items()}
        return state, values

    return Experiment(
        init=init,
        merge=merge,
        loss=make_loss(merge, config.data),
        optimizer=make_optimizer(config.averaging, training.learning_rate),
        batches=Pipeline(
            data.train,
            batch_size=training.batch_size,
            seed=training.seed,
            remainder="drop",
            depends_on=data,
        ),
        num_steps=training.steps,
        seed=training.seed,
        evaluate=evaluate,
        evaluate_every=training.evaluate_every,
        rate_unit="images",
        init_model_state=lambda key: get_model_state(make_network(nnx.Rngs(key))),
    )


def ema_name(decay: float) -> str:
    """The name of an average in tables, logs and the optimiser's state."""
    return f"EMA {decay:g}"


def power_name(relative_std: float) -> str:
    """The same for a power-law average."""
    return f"power law {relative_std:g}"


def make_optimizer(
    averaging: AveragingConfig, learning_rate: float
) -> optax.GradientTransformation:
    """Adam, and after it every average by its name."""
    return optax.named_chain(
        ("adam", optax.adam(learning_rate)),
        *((ema_name(decay), parameter_ema(decay)) for decay in averaging.decays),
        *((power_name(std), power_law_ema(std)) for std in averaging.stored_stds),
    )


def average_named(name: str, state: TrainState) -> Any:
    """One of the averages that the optimiser keeps."""
    return averaged_parameters(state.optimizer_state, path=f"^{re.escape(name)}$")


def move_and_mirror(key: jax.Array, images: jax.Array, *, shift: int, mirror: bool) -> jax.Array:
    """Each image moved by up to ``shift`` pixels, zeros coming in, and perhaps mirrored."""

    def one(key: jax.Array, image: jax.Array) -> jax.Array:
        shift_key, mirror_key = jax.random.split(key)
        padded = jnp.pad(image, ((shift, shift), (shift, shift), (0, 0)))
        row, column = jax.random.randint(shift_key, (2,), 0, 2 * shift + 1)
        image = jax.lax.dynamic_slice(padded, (row, column, 0), image.shape)
        return jnp.where(mirror & jax.random.bernoulli(mirror_key), image[:, ::-1], image)

    return jax.vmap(one)(jax.random.split(key, len(images)), images)


def make_loss(merge: Callable[..., ResNet], data: DataConfig) -> Callable[..., LossOutput]:
    """Sum of the cross entropies, in nats."""

    def loss_fn(
        parameters: Any, batch: Any, *, key: jax.Array, carry: Any, model_state: Any
    ) -> LossOutput:
        scale = 255 if batch["image"].dtype == jnp.uint8 else 1
        images = batch["image"].astype(jnp.float32) / scale
        images = move_and_mirror(key, images, shift=data.shift, mirror=data.mirror)
        module = merge(parameters, key, model_state=model_state)
        losses = optax.softmax_cross_entropy_with_integer_labels(module(images), batch["label"])
        weight = jnp.float32(losses.size)
        return LossOutput(losses.sum(), weight, model_state=get_model_state(module))

    return loss_fn


def make_score(
    merge: Callable[..., ResNet], data: Data, batch_size: int
) -> Callable[..., dict[str, float]]:
    """Accuracy and loss of parameters on the test images.

    The statistics of batch normalisation are those of the model state, or ``recompute=True`` makes
    them for these parameters from training images.
    """

    def chunks(array: np.ndarray) -> list[jax.Array]:
        return [jnp.asarray(x) for x in np.array_split(array, -(-len(array) // batch_size))]

    known, test = chunks(data.statistics[0]), [chunks(array) for array in data.test]

    @jax.jit
    def batch_statistics(parameters: Any, model_state: Any, images: jax.Array) -> Any:
        module = merge(parameters, jax.random.key(0), model_state=model_state)
        module.set_attributes(nnx.BatchNorm, momentum=0.0)
        module(images)
        return get_model_state(module)

    @jax.jit
    def sums(parameters: Any, model_state: Any, images: jax.Array, labels: jax.Array) -> Any:
        logits = merge(parameters, model_state=model_state)(images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return (logits.argmax(axis=-1) == labels).sum(), losses.sum()

    def score(parameters: Any, model_state: Any, recompute: bool) -> dict[str, float]:
        if recompute:
            statistics = functools.partial(batch_statistics, parameters, model_state)
            model_state = recompute_statistics(statistics, known)
        results = [sums(parameters, model_state, *pair) for pair in zip(*test, strict=True)]
        correct, losses = np.sum(jax.device_get(results), axis=0) / len(data.test[1])
        return {"accuracy": float(correct), "loss": float(losses)}

    return score


def store(folder: pathlib.Path, state: TrainState, averaging: AveragingConfig) -> None:
    """Writes the power-law averages of a step, one vector each."""
    folder.mkdir(exist_ok=True)
    names = map(power_name, averaging.stored_stds)
    vectors = {name: ravel_pytree(average_named(name, state))[0] for name in names}
    archive = io.BytesIO()
    np.savez(archive, **vectors)
    replace_file(folder / f"{int(state.step)}.npz", archive.getvalue())


def reconstruct(
    folder: pathlib.Path, averaging: AveragingConfig, like: Any
) -> Callable[[int, float], Any]:
    """``(step, width) -> average``, made of what was stored until that step."""
    unravel, stored = ravel_pytree(like)[1], {}
    for step in sorted(int(path.stem) for path in folder.glob("*.npz")):
        arrays = read_npz(folder / f"{step}.npz", [*map(power_name, averaging.stored_stds)])
        stored |= {(step, std): arrays[power_name(std)] for std in averaging.stored_stds}

    def average(step: int, relative_std: float) -> Any:
        usable = {pair: vector for pair, vector in stored.items() if pair[0] <= step}
        steps, stds = zip(*usable, strict=True)
        vectors = [*usable.values()]
        return unravel(post_hoc_average(vectors, steps, stds, relative_std=relative_std))

    return average


def post_hoc_scores(
    workdir: pathlib.Path, averaging: AveragingConfig, experiment: Experiment, state: TrainState
) -> dict[str, dict[Any, dict[str, float]]]:
    """Scores of averages made of the stored ones: all widths at the end, one along the way."""
    average = reconstruct(workdir / "snapshots", averaging, state.parameters)
    steps = sorted(read_curves(workdir / "metrics.jsonl", "accuracy")[RAW])[-LAST:]

    def score(step: int, relative_std: float) -> dict[str, float]:
        _, values = experiment.evaluate(state, {"made": average(step, relative_std)})
        return {name.removeprefix("made "): value for name, value in values.items()}

    return {
        "by width": {std: score(steps[-1], std) for std in averaging.post_hoc_stds},
        "by step": {step: score(step, averaging.post_hoc_checked) for step in steps},
    }


def read_curves(metrics: pathlib.Path, key: str) -> dict[str, dict[int, float]]:
    """Test accuracy or loss by name and step."""
    curves: dict[str, dict[int, float]] = {}
    for record in read_records(metrics):
        for name in record:
            if name.endswith(f" {key}"):
                curves.setdefault(name.removesuffix(f" {key}"), {})[record["step"]] = record[name]
    if RAW not in curves:
        raise ValueError(f"{metrics} has no record of an evaluation; give another --workdir")
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


def report(workdir: pathlib.Path, averaging: AveragingConfig, made: dict[str, Any]) -> None:
    """Tables, pictures and summary."""
    curves, summary = {}, {}
    for key, unit in (("accuracy", 100.0), ("loss", 1.0)):
        curves[key] = read_curves(workdir / "metrics.jsonl", key)
        by_step = {step: score[key] for step, score in made["by step"].items()}
        curves[key][f"post hoc {averaging.post_hoc_checked:g}"] = by_step
        summary[key] = spread(curves[key], unit)
        results_table(
            [{"evaluated": name} | row for name, row in summary[key].items()],
            title=f"Test {key}{' %' * (unit > 1)}, last {LAST} evaluations",
        )
    by_width = made["by width"]
    results_table(
        [
            {"width": width, "accuracy %": 100 * row["accuracy"], "loss": row["loss"]}
            for width, row in by_width.items()
        ],
        title="Power-law averages made afterwards",
    )
    summary |= {"post_hoc": by_width, "dirac_gan": dirac_gan.measure()}
    drawn = {
        "accuracy": draw_accuracy(curves["accuracy"]),
        "post_hoc": draw_widths({width: row["loss"] for width, row in by_width.items()}),
        "dirac_gan": draw_orbit(),
    }
    finish(workdir, summary, save_figures(workdir, drawn))
