"""Trains the network with every penalty, with and without batch normalisation, for every seed."""

import dataclasses
import itertools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from zoo._paths import matches
from zoo.data import Pipeline, open_source
from zoo.data.images import image_arrays
from zoo.orthogonal import add_orthogonality_penalty, filter_angles, self_orthogonality
from zoo.orthogonal.angles import random_angle_std
from zoo.training import LossOutput, TrainState, functional, open_workdir, results_table
from zoo.training.state import get_model_state

from ..command_line import MAY_CHANGE
from ..pictures import save_figures
from ..running import (
    Experiment,
    finish,
    is_main_process,
    on_host,
    open_mesh,
    read_records,
    train,
)
from . import ablation, figures
from .config import Config, DataConfig, Method
from .model import LAYERS, Classifier

EVALUATION_ROWS = 500
HIDDEN_KERNELS = rf"^({'|'.join(LAYERS)})/kernel$"


class Images(NamedTuple):
    """Images scaled to mean 0 and variance 1 by those to train on, and their labels."""

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


class Network(NamedTuple):
    """One of the networks that are compared."""

    method: Method
    batch_norm: bool
    seed: int

    @property
    def name(self) -> str:
        """The folder."""
        return f"{self.method}-{'batch_norm' if self.batch_norm else 'bias'}-{self.seed}"


class Outcome(NamedTuple):
    """What one trained network is judged by."""

    values: dict[str, float]  # of the test images
    curve: np.ndarray  # [2, records], steps and cross-entropies of its training
    angles: dict[str, np.ndarray]  # by layer, degrees


def run(config: Config) -> None:
    """Runs the experiment; continues where an earlier run in the same folder stopped."""
    mesh = open_mesh(config)
    images = load(config.data)
    networks = all_networks(config)
    workdir = open_workdir(config.workdir, config, ignore=MAY_CHANGE)
    if is_main_process():
        sizes = f"{len(images.train[1]):,} images to train on, {len(images.test[1]):,} to test"
        print(f"{config.data.uri}: {sizes}; {len(networks)} networks")
    outcomes: dict[tuple[Method, bool], list[Outcome]] = {}
    for number, network in enumerate(networks, start=1):
        experiment = build(config, mesh, images, network)
        if network.seed == config.training.seeds[0]:  # all seeds share one compiled step
            step = experiment.train_step(experiment.abstract_state(mesh).shardings)
        part = number, len(networks)
        state = train(experiment, mesh, workdir / network.name, config.loop, step, part)
        values = experiment.evaluate(state)[1]
        kernels = on_host({layer: state.parameters[layer]["kernel"] for layer in LAYERS})
        if is_main_process():
            angles = {layer: np.asarray(filter_angles(kernels[layer])) for layer in LAYERS}
            curve = read_curve(workdir / network.name / "metrics.jsonl")
            outcomes.setdefault(network[:2], []).append(Outcome(values, curve, angles))
            print(f"{network.name}: {values['accuracy']:.2%} correct", flush=True)
    ablated = ablation.run(config.ablation) if config.ablation.num_steps else []
    if is_main_process():
        entries = {layer: k.size // k.shape[-1] for layer, k in kernels.items()}
        report(workdir, config, outcomes, ablated, entries)


def read_curve(path: pathlib.Path) -> np.ndarray:
    """Steps and cross-entropies of a training, [2, records]."""
    name = "cross_entropy"
    pairs = [(record["step"], record[name]) for record in read_records(path) if name in record]
    if not pairs:
        raise ValueError(f"{path} has no records; remove its folder to train that network again")
    return np.array(pairs).T


def all_networks(config: Config) -> list[Network]:
    """Every method, with and without batch normalisation, for every seed."""
    training = config.training
    pairs = itertools.product(training.batch_norm, training.methods, training.seeds)
    return [Network(method, batch_norm, seed) for batch_norm, method, seed in pairs]


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


def build(
    config: Config, mesh: Mesh, images: Images | None = None, network: Network | None = None
) -> Experiment:
    """Model, loss, optimiser, batches and evaluation of one network, the first if None.

    ``images`` are ``load(config.data)`` if None.
    """
    images = load(config.data) if images is None else images
    network = all_networks(config)[0] if network is None else network
    pictures, labels = images.train

    def make_network(rngs: nnx.Rngs) -> Classifier:
        return Classifier(
            pictures.shape[1:],
            1 + int(max(labels.max(), images.test[1].max())),
            **dataclasses.asdict(config.model),
            batch_norm=network.batch_norm,
            rngs=rngs,
        )

    init, merge = functional(make_network)
    batches = Pipeline(
        [{"image": image, "label": label} for image, label in zip(pictures, labels, strict=True)],
        batch_size=config.training.batch_size,
        seed=network.seed,
        depends_on=images,
    )
    num_steps = config.training.epochs * batches.batches_per_epoch
    return Experiment(
        init=init,
        merge=merge,
        loss=make_loss(merge, config, network.method),
        optimizer=make_optimizer(config, network.method, num_steps),
        batches=batches,
        num_steps=num_steps,
        seed=network.seed,
        evaluate=make_evaluate(merge, images),
        rate_unit="images",
        init_model_state=lambda key: get_model_state(make_network(nnx.Rngs(key))),
    )


def make_optimizer(config: Config, method: Method, num_steps: int) -> optax.GradientTransformation:
    """Momentum and cosine decay; penalties on the kernels alone are added to the gradient."""
    training, penalty = config.training, config.penalty

    def mask(parameters: Any) -> Any:
        return matches(parameters, HIDDEN_KERNELS)

    if method == "weight_decay":
        added = optax.add_decayed_weights(penalty.weight_decay, mask=mask)
    elif method in ("soft", "off_diagonal", "spectral"):
        added = add_orthogonality_penalty(getattr(penalty, method), kind=method, mask=mask)
    else:
        added = optax.identity()
    schedule = optax.cosine_decay_schedule(training.learning_rate, num_steps)
    clip = optax.clip_by_global_norm(training.gradient_clip)
    return optax.chain(added, clip, optax.sgd(schedule, training.momentum))


def make_loss(merge: Callable[..., Classifier], config: Config, method: Method) -> Callable:
    """Cross-entropy, and self-orthogonality of every hidden layer where that is the method."""
    penalty = config.penalty

    def loss_fn(
        parameters: Any, batch: Any, *, key: jax.Array, carry: Any, model_state: Any = ()
    ) -> LossOutput:
        del carry
        model = merge(parameters, key, model_state=model_state)
        logits, responses = model(batch["image"], stop_input_gradient=penalty.stop_input_gradient)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        weight = jnp.sum(batch["valid"])
        total = cross_entropy = jnp.sum(jnp.where(batch["valid"], losses, 0))
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
            total += weight * penalty.self_orthogonality * sum(each)
        return LossOutput(
            total=total,
            weight=weight,
            metrics={"cross_entropy": (cross_entropy, weight)},
            model_state=get_model_state(model),
        )

    return loss_fn


def make_evaluate(merge: Callable[..., Classifier], images: Images) -> Callable:
    """Accuracy on the test images, and by layer the root mean square of V over the pairs."""
    pictures, labels = images.test
    starts = range(0, len(labels), EVALUATION_ROWS)

    @jax.jit
    def judge(parameters: Any, model_state: Any, pictures: jax.Array, labels: jax.Array) -> tuple:
        logits, responses = merge(parameters, model_state=model_state)(pictures)
        squares = {
            layer: self_orthogonality(y, mean_weight=0.0, reduction="mean")
            for layer, y in responses.items()
        }
        return jnp.sum(jnp.argmax(logits, axis=-1) == labels), squares

    def evaluate(state: TrainState) -> tuple[TrainState, dict[str, float]]:
        chunks = ((part[i : i + EVALUATION_ROWS] for part in (pictures, labels)) for i in starts)
        judged = [judge(state.parameters, state.model_state, *chunk) for chunk in chunks]
        correct, squares = zip(*jax.device_get(judged), strict=True)
        rms = {layer: float(np.sqrt(np.mean([s[layer] for s in squares]))) for layer in LAYERS}
        return state, {"accuracy": float(sum(correct) / len(labels)), **rms}

    return evaluate


def report(
    workdir: pathlib.Path,
    config: Config,
    outcomes: dict[tuple[Method, bool], list[Outcome]],
    ablated: list[dict[str, Any]],
    entries: dict[str, int],
) -> None:
    """Tables, pictures and summary."""
    chance = {layer: random_angle_std(size) for layer, size in entries.items()}
    scores: list[dict[str, str]] = []
    rows = [{"angles": "random filters"} | {k: f"90.0 ± {chance[k]:.1f}" for k in LAYERS}]
    angles, curves, networks = {}, {}, {}
    # The first one's steps: the others may have been logged more or less often.
    steps = next(iter(outcomes.values()))[0].curve[0]
    for (method, batch_norm), group in outcomes.items():
        name = f"{figures.TITLES[method]}, {figures.NORMS[batch_norm]}"
        accuracies = 100 * np.array([outcome.values["accuracy"] for outcome in group])
        spread = accuracies.std(ddof=1) if len(group) > 1 else 0.0
        scores.append(
            {"penalty": name, "accuracy, %": f"{accuracies.mean():.2f} ± {spread:.2f}"}
            | {f"V, {k}": f"{np.mean([o.values[k] for o in group]):.3f}" for k in LAYERS}
        )
        own = {k: np.concatenate([outcome.angles[k] for outcome in group]) for k in LAYERS}
        rows.append(
            {"angles": name} | {k: f"{v.mean():.1f} ± {v.std():.1f}" for k, v in own.items()}
        )
        angles[method, batch_norm] = own
        curves[method, batch_norm] = np.array([np.interp(steps, *o.curve) for o in group])
        for seed, outcome in zip(config.training.seeds, group, strict=True):
            networks[Network(method, batch_norm, seed).name] = {
                "accuracy": outcome.values["accuracy"],
                "angles": {k: ablation.statistics(v) for k, v in outcome.angles.items()},
                "correlation": {layer: outcome.values[layer] for layer in LAYERS},
            }
    title = "Test images: accuracy, mean ± std over the seeds; root mean square of V by layer"
    results_table(scores, title=title)
    results_table(rows, title="Angles between filters, degrees: mean ± std over the pairs")
    if ablated:
        count = config.ablation.num_steps
        title = f"The loss alone, {count} steps: mean / std / largest deviation from 90"
        results_table([ablation.as_text(row) for row in ablated], title=title)
    drawn = {
        "angles": figures.draw_angles(angles, entries),
        "curves": figures.draw_curves(curves, steps),
    }
    summary = {"networks": networks, "random_angle_std": chance, "ablation": ablated}
    finish(workdir, summary, save_figures(workdir, drawn))
