"""Trains the energy; looks at its chains along the way and at samples from noise at the end."""

import functools
import io
import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from zoo._files import replace_file
from zoo.data import Pipeline
from zoo.data.arrays import read_npy
from zoo.data.images import image_arrays
from zoo.energy import (
    contrastive_loss,
    langevin,
    replay_draw,
    replay_init,
    replay_insert,
    run_chain,
)
from zoo.energy.clipped_adam import clipped_adam
from zoo.energy.composition import energies_by_label
from zoo.energy.health import chain_health
from zoo.training import (
    Checkpointer,
    LossOutput,
    TrainState,
    functional,
    open_workdir,
    results_table,
)
from zoo.training.rollback import Rollback
from zoo.training.state import get_model_state

from ..command_line import MAY_CHANGE
from ..image_sets import head, open_splits
from ..pictures import save_figures
from ..running import Experiment, announce, finish, is_main_process, open_mesh, train
from . import uses
from .config import Config, DataConfig, TrainingConfig
from .data import outliers
from .figures import draw_energies, draw_rows, draw_samples
from .judge import auroc, encoded_distances, score, train_classifier
from .model import make_network

ROWS = 256  # images and chains that are looked at along the way
PIECE = 250  # images whose energies are computed at once


class Data(NamedTuple):
    """Labelled images, float32 ``[N, height, width, channels]`` in 0..1 and int32 ``[N]``."""

    source: Any  # of the training, as it is stored
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    others: dict[str, np.ndarray]  # images of other kinds, by name


def run(config: Config) -> None:
    """Runs the experiment; continues where an earlier run in the same folder stopped."""
    mesh = open_mesh(config)
    data = load(config)
    experiment = build(config, mesh, data)
    generate = make_generator(experiment.merge, config, data)
    workdir = open_workdir(config.workdir, config, ignore=MAY_CHANGE)
    images = f"{len(data.train[0]):,} images to train on, {len(data.test[0]):,} to test"
    energy = f"{config.model.network} energy, chains of {config.sampler.num_steps} steps"
    announce(f"{config.data.uri}: {images}; {energy}", experiment, mesh)
    limits = {
        "energy_gap": config.rollback.max_energy_gap,
        "gradient_norm_of_chains": config.rollback.max_gradient_norm,
        "excess_saturation": config.rollback.max_excess_saturation,
    }
    with Checkpointer(workdir / "good", keep=good_states(config)) as good:
        rollback = Rollback(
            good,
            experiment.abstract_state(mesh),
            first=functools.partial(experiment.initial_state, mesh),
            limits=limits,
            factor=config.rollback.factor,
        )

        def evaluate(state: TrainState) -> tuple[TrainState, dict[str, float]]:
            watched = generate(state, jax.random.key(1), count=config.evaluation.watched)
            if is_main_process():
                (workdir / "watched").mkdir(exist_ok=True)
                array = io.BytesIO()
                np.save(array, np.asarray(watched))
                replace_file(workdir / f"watched/{int(state.step)}.npy", array.getvalue())
            state, values = experiment.evaluate(state)
            return rollback(state, values), values

        state = train(experiment._replace(evaluate=evaluate), mesh, workdir, config.loop)
    key = jax.random.key(config.training.seed)
    samples = np.asarray(generate(state, key, count=config.evaluation.num_samples))
    found = {"test images": data.test[0], "samples": samples, **data.others}
    num_classes = number_of_classes(config, data)
    energy_fn = make_image_energy(experiment.merge, num_classes)
    measured = {name: np.asarray(energies(energy_fn, state, x)) for name, x in found.items()}
    if is_main_process():
        used: dict[str, Any] = {}
        if num_classes is not None:
            generate_for = functools.partial(sample_from_noise, config)
            network = frozen(experiment.merge, state)
            used = uses.show(workdir, network, generate_for, data.test, num_classes)
        report(workdir, data, found, measured, judge(config, data, found), used)


def load(config: Config) -> Data:
    """Reads the images."""
    if not config.data.uri:
        raise ValueError("--data.uri must name your images, such as 'file:FOLDER?size=28'")
    source, test_source = open_splits(config.data.uri)
    test = image_arrays(head(test_source, config.evaluation.test_images))
    return Data(source, image_arrays(source), test, outliers(config.data, test[0]))


def build(config: Config, mesh: Mesh, data: Data | None = None) -> Experiment:
    """Network, loss, optimiser, batches and evaluation; ``data`` is ``load(config)`` if None."""
    del mesh
    data = load(config) if data is None else data
    training, shape = config.training, data.train[0].shape[1:]
    num_classes = number_of_classes(config, data)
    make_module = make_network(config.model, shape, num_classes)
    init, merge = functional(make_module)
    test = np.stack(head(data.test[0], ROWS))
    measure = make_health(merge, config, num_classes)

    def evaluate(state: TrainState) -> tuple[TrainState, dict[str, float]]:
        return state, {name: float(value) for name, value in measure(state, test).items()}

    def init_model_state(key: jax.Array) -> dict[str, Any]:
        replay = replay_init(
            jnp.zeros(shape),
            capacity=config.sampler.replay_capacity,
            labels=(np.int32(0),) if config.model.conditional else (),
            storage_dtype=jnp.uint8 if config.sampler.replay_bytes else None,
        )
        return {"network": get_model_state(make_module(nnx.Rngs(key))), "replay": replay}

    return Experiment(
        init=init,
        merge=merge,
        loss=make_loss(merge, config),
        optimizer=make_optimizer(training),
        batches=Pipeline(
            data.source,
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
        init_model_state=init_model_state,
        # The rollback sees refused steps at the next evaluation.
        max_nonfinite_steps=2 * training.evaluate_every,
    )


def good_states(config: Config) -> int:
    """How many are kept: all since the oldest checkpoint, and one from before."""
    # One checkpoint more than is kept, as the newest may still be being saved.
    steps = (config.loop.keep_checkpoints + 1) * config.loop.checkpoint_every
    return 1 + math.ceil(steps / config.training.evaluate_every)


def number_of_classes(config: Config, data: Data) -> int | None:
    """K of a conditional energy, else None."""
    return 1 + int(data.train[1].max()) if config.model.conditional else None


def make_optimizer(training: TrainingConfig) -> optax.GradientTransformation:
    """The original's Adam; its rate is a part of the state, where ``Rollback`` finds it."""
    adam = optax.inject_hyperparams(clipped_adam, static_args=("b2", "eps"))
    decay = optax.cosine_decay_schedule(1.0, training.steps, alpha=0.1)
    return optax.chain(adam(learning_rate=training.learning_rate), optax.scale_by_schedule(decay))


def noisy(
    key: jax.Array, images: jax.Array, data: DataConfig, bounds: tuple[float, float] = (0.0, 1.0)
) -> jax.Array:
    """Bytes or numbers in 0..1 -> float32 within bounds, every level spread, noise added."""
    spread_key, noise_key = jax.random.split(key)
    images = images.astype(jnp.float32) / (255 if images.dtype == jnp.uint8 else 1)
    spread = jax.random.uniform(spread_key, images.shape)
    images = (images * (data.levels - 1) + spread) / data.levels
    images = images + data.noise * jax.random.normal(noise_key, images.shape)
    return jnp.clip(images, *bounds)


def make_loss(merge: Callable[..., Any], config: Config) -> Callable[..., LossOutput]:
    """Chains from the replay buffer, and the contrast of their ends with the data."""
    sampling = config.sampler

    def loss_fn(
        parameters: Any, batch: Any, *, key: jax.Array, carry: Any, model_state: Any
    ) -> LossOutput:
        del carry
        keys = jax.random.split(key, 6)
        data = noisy(keys[0], batch["image"], config.data, sampling.bounds)
        labels = (batch["label"],) if config.model.conditional else ()
        network, replay = model_state["network"], model_state["replay"]

        fresh = jax.random.uniform(keys[1], data.shape)
        start = replay_draw(keys[2], replay, fresh, labels, fresh_rate=sampling.fresh_rate)
        # In evaluation mode neither dropout nor the vectors of spectral normalisation change while
        # the chain runs, and the loss below sees the same normalised kernels.
        fixed = merge(jax.lax.stop_gradient(parameters), model_state=network)
        sampler = langevin(lambda x: fixed(x, *start.labels), **sampling.langevin_options())
        chain, info = run_chain(keys[3], sampler, sampler.init(start.samples), sampling.num_steps)
        samples = jax.lax.stop_gradient(chain.position)

        module = merge(parameters, keys[4], model_state=network)
        of_both = jax.tree.map(lambda *pair: jnp.concatenate(pair), labels, start.labels)
        energy_both = module(jnp.concatenate([data, samples]), *of_both)
        energy_data, energy_samples = jnp.split(energy_both, 2)
        loss = contrastive_loss(energy_data, energy_samples, l2=config.training.l2)
        weight = jnp.float32(len(data))
        return LossOutput(
            total=loss * weight,
            weight=weight,
            metrics={
                "energy_data": (energy_data.sum(), weight),
                "energy_samples": (energy_samples.sum(), weight),
                "gradient_norm_of_chains": (info.gradient_norm[-1].sum(), weight),
            },
            model_state={
                "network": get_model_state(module),
                "replay": replay_insert(keys[5], replay, samples, start.labels),
            },
        )

    return loss_fn


def frozen(merge: Callable[..., Any], state: TrainState) -> Callable[..., jax.Array]:
    """The network of a state, in evaluation mode."""
    return merge(state.parameters, model_state=state.model_state["network"])


def make_image_energy(
    merge: Callable[..., Any], num_classes: int | None
) -> Callable[[TrainState, jax.Array], jax.Array]:
    """``(state, images) -> [B]``: E(x), or the least E(x, y) of all labels."""

    def energy(state: TrainState, images: jax.Array) -> jax.Array:
        network = frozen(merge, state)
        if num_classes is None:
            return network(images)
        return energies_by_label(network, images, num_classes=num_classes).min(axis=1)

    return energy


@functools.partial(jax.jit, static_argnums=0)
def energies(energy: Callable[..., jax.Array], state: TrainState, images: jax.Array) -> jax.Array:
    """The energies of any number of images, piece by piece."""
    return jax.lax.map(lambda image: energy(state, image[None])[0], images, batch_size=PIECE)


def make_health(
    merge: Callable[..., Any], config: Config, num_classes: int | None
) -> Callable[[TrainState, np.ndarray], dict[str, jax.Array]]:
    """``(state, test images) -> {name: number}``: the chains of the buffer against the images."""
    energy, bounds = make_image_energy(merge, num_classes), config.sampler.bounds

    @jax.jit
    def measure(state: TrainState, test: jax.Array) -> dict[str, jax.Array]:
        draw_key, noise_key = jax.random.split(jax.random.key(0))
        replay = state.model_state["replay"]
        fresh = jnp.zeros((ROWS, *test.shape[1:]))
        labels = jax.tree.map(lambda x: jnp.zeros(ROWS, x.dtype), replay.labels)
        chains = replay_draw(draw_key, replay, fresh, labels, fresh_rate=0.0)
        data = noisy(noise_key, test, config.data, bounds)
        health = chain_health(functools.partial(energy, state), data, chains.samples, bounds=bounds)
        return {
            "energy_gap": health.energy_gap,
            "gradient_norm_of_chains": health.gradient_norm,
            "excess_saturation": health.excess_saturation,
            "learning_rate": optax.tree.get(state.optimizer_state, "learning_rate"),
        }

    return measure


def sample_from_noise(
    config: Config,
    key: jax.Array,
    energy: Callable[[jax.Array], jax.Array],
    shape: tuple[int, ...],
) -> jax.Array:
    """Chains ``[B, …]`` that start uniformly; in the last tenth the noise falls to 0."""
    options, steps = config.sampler.langevin_options(), config.evaluation.num_steps
    if options["noise_scale"] is None:
        options["noise_scale"] = np.sqrt(2 * options["step_size"]).item()
    last = max(1, steps // 10)
    falling = optax.linear_schedule(options.pop("noise_scale"), 0.0, last, steps - last)
    sampler = langevin(energy, noise_scale=falling, **options)
    start_key, chain_key = jax.random.split(key)
    start = sampler.init(jax.random.uniform(start_key, shape))
    return run_chain(chain_key, sampler, start, steps)[0].position


def make_generator(
    merge: Callable[..., Any], config: Config, data: Data
) -> Callable[..., jax.Array]:
    """``(state, key, count=…) -> samples``: chains from uniform noise, the labels in turn."""
    shape, num_classes = data.train[0].shape[1:], number_of_classes(config, data)

    @functools.partial(jax.jit, static_argnames="count")
    def generate(state: TrainState, key: jax.Array, *, count: int) -> jax.Array:
        network = frozen(merge, state)
        labels = () if num_classes is None else (jnp.arange(count) % num_classes,)
        samples = sample_from_noise(config, key, lambda x: network(x, *labels), (count, *shape))
        return jnp.clip(samples, 0, 1)

    return generate


def judge(config: Config, data: Data, found: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Scores of every kind of image under a classifier that is trained here."""
    classify = train_classifier(*data.train, config.evaluation, noise=config.data.noise)
    references = classify(data.train[0])[1]
    scores = {name: score(*classify(images), references) for name, images in found.items()}
    distances = encoded_distances(config.evaluation.encoder, found, data.train[0])
    for name, distance in distances.items():
        scores[name]["Fréchet distance on EfficientNet-Lite0 features"] = distance
    return scores


def report(
    workdir: pathlib.Path,
    data: Data,
    found: dict[str, np.ndarray],
    measured: dict[str, np.ndarray],
    scores: dict[str, dict[str, float]],
    used: dict[str, Any],
) -> None:
    """Tables, pictures and summary; ``measured`` are the energies of the images ``found``."""
    ranks = {name: auroc(measured["test images"], measured[name]) for name in data.others}
    results_table(
        [{"told from the test images": name, "AUROC": value} for name, value in ranks.items()],
        title="Outliers by their energy",
    )
    results_table(
        [{"images": name} | row for name, row in scores.items()],
        title="Under a classifier of this run",
    )
    steps = sorted(int(path.stem) for path in (workdir / "watched").glob("*.npy"))
    watched = {f"{step:,}": read_npy(workdir / f"watched/{step}.npy") for step in steps}
    drawn = {
        "samples": draw_samples(found["samples"], data.train[0]),
        "training": draw_rows(watched, "training steps"),
        "energies": draw_energies(measured),
    }
    energy = {name: values.mean() for name, values in measured.items()}
    summary = {"auroc": ranks, "scores": scores, "energy": energy, **used}
    finish(workdir, summary, save_figures(workdir, drawn))
