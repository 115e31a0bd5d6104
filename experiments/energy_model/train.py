"""Trains the energy; looks at its chains along the way and at samples from noise at the end."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.command_line import MAY_CHANGE
from experiments.energy_model import figures, two_dimensional, uses
from experiments.energy_model.config import Config, PlaneConfig, SamplerConfig, TrainingConfig
from experiments.energy_model.data import outliers
from experiments.energy_model.judge import auroc, encoded_distances, train_judge
from experiments.energy_model.model import make_network
from experiments.image_sets import head, open_splits
from experiments.running import fit_in, number_of_parameters, open_mesh
from zoo.data import Pipeline, image_arrays
from zoo.energy import (
    Rollback,
    Sampler,
    chain_health,
    clipped_adam,
    contrastive_loss,
    energies_by_label,
    langevin,
    replay_draw,
    replay_init,
    replay_insert,
    run_chain,
)
from zoo.training import (
    Checkpointer,
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

ROWS = 256  # images and chains that are looked at along the way
PIECE = 250  # images whose energies are computed at once


def run(config: Config | PlaneConfig) -> None:
    """Runs the experiment; continues where an earlier run in the same folder stopped."""
    if isinstance(config, PlaneConfig):
        two_dimensional.run(config)
        return
    mesh = open_mesh(config.mesh, config.distributed)
    training = config.training
    train_source, test_source = open_splits(config.data.uri)
    train = image_arrays(train_source)
    test = image_arrays(head(test_source, config.evaluation.test_images))
    others = outliers(config.data, test[0])
    shape = train[0].shape[1:]
    num_classes = 1 + int(train[1].max()) if config.model.conditional else None
    parts = functional_with_state(make_network(config.model, shape, num_classes))
    optimizer = make_optimizer(training)
    workdir = open_workdir(config.workdir, config, ignore=MAY_CHANGE)
    batches = Pipeline(
        train_source, batch_size=training.batch_size, seed=training.seed, remainder="drop"
    )
    state = init_state(
        parts.init_parameters,
        optimizer,
        key=jax.random.key(training.seed),
        mesh=mesh,
        init_model_state=lambda key: {
            "network": parts.init_model_state(key),
            "replay": replay_init(
                jnp.zeros(shape),
                capacity=config.sampler.replay_capacity,
                labels=(np.int32(0),) if config.model.conditional else (),
                storage_dtype=jnp.uint8 if config.sampler.replay_bytes else None,
            ),
        },
    )
    step = make_train_step(make_loss(parts, config), optimizer, shardings=state.shardings)
    generate = make_generator(parts, config, shape, num_classes)
    energy = make_image_energy(parts, num_classes)
    watched = np.stack(head(test[0], ROWS))
    evaluate = Evaluation(energy, config, watched, generate, workdir / "watched")
    if jax.process_index() == 0:
        size = number_of_parameters(state.parameters)
        print(
            f"{config.data.uri}: {len(train[0]):,} images to train on, {len(test[0]):,} to test; "
            f"{config.model.network} energy with {size:,} parameters; {training.steps:,} steps of "
            f"{config.sampler.num_steps} on {mesh.size} {jax.devices()[0].device_kind} device(s)"
        )
    with Checkpointer(workdir / "good", keep=1) as good:
        rollback = Rollback(
            good,
            state,
            limits={
                "energy_gap": config.rollback.max_energy_gap,
                "gradient_norm_of_chains": config.rollback.max_gradient_norm,
                "excess_saturation": config.rollback.max_excess_saturation,
            },
            factor=config.rollback.factor,
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
            after_evaluation=rollback,
            rate_unit="images",
            # The rollback sees refused steps at the next evaluation.
            max_nonfinite_steps=2 * training.evaluate_every,
        )
    if jax.process_index() == 0:
        samples = np.asarray(
            generate(state, jax.random.key(training.seed), count=config.evaluation.num_samples)
        )
        of_images = functools.partial(energies, energy, state)
        more: dict[str, Any] = {}
        if num_classes is not None:
            more = uses.show(
                workdir,
                frozen(parts, state),
                functools.partial(make_sampler, sampler=config.sampler, **quiet_end(config)),
                test,
                num_classes=num_classes,
                num_steps=config.evaluation.num_steps,
            )
        report(workdir, config, samples, train, test[0], others, of_images, more)


def make_optimizer(training: TrainingConfig) -> optax.GradientTransformation:
    """The original's Adam; its rate is a part of the state, where ``Rollback`` finds it."""
    adam = optax.inject_hyperparams(clipped_adam, static_args=("b1", "b2", "eps"))
    decay = optax.cosine_decay_schedule(1.0, training.steps, alpha=0.1)
    return optax.chain(adam(learning_rate=training.learning_rate), optax.scale_by_schedule(decay))


def make_sampler(
    energy_fn: Callable[[jax.Array], jax.Array], sampler: SamplerConfig, **changes: Any
) -> Sampler:
    """The chains of the training, or with changes those of the generation."""
    options = {
        "step_size": sampler.step_size,
        "noise_scale": sampler.noise_scale,
        "noise_first": sampler.noise_first,
        "gradient_clip": sampler.gradient_clip,
        "bounds": sampler.bounds,
    }
    return langevin(energy_fn, **(options | changes))


def noisy(
    key: jax.Array,
    images: jax.Array,
    levels: int,
    noise: float,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> jax.Array:
    """Bytes or numbers in 0..1 -> float32 within bounds, every level spread, noise added."""
    spread_key, noise_key = jax.random.split(key)
    images = images.astype(jnp.float32) / (255 if images.dtype == jnp.uint8 else 1)
    images = (images * (levels - 1) + jax.random.uniform(spread_key, images.shape)) / levels
    images = images + noise * jax.random.normal(noise_key, images.shape)
    return jnp.clip(images, *bounds)


def make_loss(parts: Functional, config: Config) -> Callable[..., LossOutput]:
    """Chains from the replay buffer, and the contrast of their ends with the data."""
    sampling = config.sampler

    def loss_fn(
        parameters: Any, batch: Any, *, key: jax.Array, carry: Any, model_state: Any
    ) -> LossOutput:
        del carry
        keys = jax.random.split(key, 6)
        data = noisy(
            keys[0], batch["image"], config.data.levels, config.data.noise, sampling.bounds
        )
        labels = (batch["label"],) if config.model.conditional else ()
        rows = len(data)
        network, replay = model_state["network"], model_state["replay"]

        fresh = jax.random.uniform(keys[1], data.shape)
        start = replay_draw(keys[2], replay, fresh, labels, fresh_rate=sampling.fresh_rate)
        # In evaluation mode: neither dropout nor the vectors of spectral normalisation move while
        # the chain runs, and the loss below sees the same normalised kernels.
        still = parts.rebuild(jax.lax.stop_gradient(parameters), model_state=network)
        sampler = make_sampler(lambda x: still(x, *start.labels), sampling)
        chain, info = run_chain(keys[3], sampler, sampler.init(start.samples), sampling.num_steps)
        samples = jax.lax.stop_gradient(chain.position)

        module = parts.rebuild(parameters, keys[4], model_state=network)
        of_both = jax.tree.map(lambda *pair: jnp.concatenate(pair), labels, start.labels)
        both = module(jnp.concatenate([data, samples]), *of_both)
        of_data, of_samples = both[:rows], both[rows:]
        loss = contrastive_loss(of_data, of_samples, l2=config.training.l2)
        weight = jnp.float32(rows)
        return LossOutput(
            total=loss * weight,
            weight=weight,
            metrics={
                "energy_data": (of_data.sum(), weight),
                "energy_samples": (of_samples.sum(), weight),
                "gradient_norm_of_chains": (info.gradient_norm[-1].sum(), weight),
            },
            model_state={
                "network": parts.model_state(module),
                "replay": replay_insert(keys[5], replay, samples, start.labels),
            },
        )

    return loss_fn


def frozen(parts: Functional, state: TrainState) -> Callable[..., jax.Array]:
    """The network as it stands, in evaluation mode."""
    return parts.rebuild(state.parameters, model_state=state.model_state["network"])


def make_image_energy(
    parts: Functional, num_classes: int | None
) -> Callable[[TrainState, jax.Array], jax.Array]:
    """``(state, images) -> [B]``: E(x), or the least E(x, y) of all labels."""

    def energy(state: TrainState, images: jax.Array) -> jax.Array:
        network = frozen(parts, state)
        if num_classes is None:
            return network(images)
        return energies_by_label(network, images, num_classes=num_classes).min(axis=1)

    return energy


@functools.partial(jax.jit, static_argnums=0)
def energies(
    energy: Callable[[TrainState, jax.Array], jax.Array], state: TrainState, images: jax.Array
) -> jax.Array:
    """The energies of any number of images, piece by piece."""
    return jax.lax.map(lambda image: energy(state, image[None])[0], images, batch_size=PIECE)


def quiet_end(config: Config) -> dict[str, Any]:
    """What the sampler of the generation changes: no noise at the end."""
    steps, scale = config.evaluation.num_steps, config.sampler.noise_scale
    scale = np.sqrt(2 * config.sampler.step_size).item() if scale is None else scale
    return {"noise_scale": lambda step: scale * jnp.clip(10 * (1 - step / steps), 0, 1)}


def make_generator(
    parts: Functional, config: Config, shape: tuple[int, ...], num_classes: int | None
) -> Callable[..., jax.Array]:
    """``(state, key, count=…) -> samples``: chains from uniform noise, the labels in turn."""

    @functools.partial(jax.jit, static_argnames="count")
    def generate(state: TrainState, key: jax.Array, *, count: int) -> jax.Array:
        network = frozen(parts, state)
        labels = () if num_classes is None else (jnp.arange(count) % num_classes,)
        sampler = make_sampler(lambda x: network(x, *labels), config.sampler, **quiet_end(config))
        start_key, chain_key = jax.random.split(key)
        start = sampler.init(jax.random.uniform(start_key, (count, *shape)))
        samples = run_chain(chain_key, sampler, start, config.evaluation.num_steps)[0].position
        return jnp.clip(samples, 0, 1)

    return generate


class Evaluation:
    """Looks at the chains of the buffer, and at a few from noise, whose samples it keeps.

    Args:
        energy: ``(state, images) -> [B]``.
        config: of the run.
        test: ``[N, height, width, channels]``.
        generate: from ``make_generator``.
        folder: for the samples, a file an evaluation.
    """

    def __init__(
        self,
        energy: Callable[[TrainState, jax.Array], jax.Array],
        config: Config,
        test: np.ndarray,
        generate: Callable[..., jax.Array],
        folder: pathlib.Path,
    ) -> None:
        self._test, self._folder = jnp.asarray(test), folder
        self._generate = functools.partial(generate, count=config.evaluation.watched)

        @jax.jit
        def health(state: TrainState, test: jax.Array) -> dict[str, jax.Array]:
            draw_key, noise_key = jax.random.split(jax.random.key(0))
            replay = state.model_state["replay"]
            noise = jnp.zeros((ROWS, *test.shape[1:]))
            labels = jax.tree.map(lambda x: jnp.zeros(ROWS, x.dtype), replay.labels)
            chains = replay_draw(draw_key, replay, noise, labels, fresh_rate=0.0)
            bounds = config.sampler.bounds
            data = noisy(noise_key, test, config.data.levels, config.data.noise, bounds)
            found = chain_health(
                functools.partial(energy, state), data, chains.samples, bounds=bounds
            )
            return {
                "energy_gap": found.energy_gap,
                "gradient_norm_of_chains": found.gradient_norm,
                "excess_saturation": found.excess_saturation,
                "learning_rate": optax.tree.get(state.optimizer_state, "learning_rate"),
            }

        self._health = health

    def __call__(self, state: TrainState) -> dict[str, float]:
        """The health of the chains, by name."""
        watched = np.asarray(self._generate(state, jax.random.key(1)))
        if jax.process_index() == 0:
            self._folder.mkdir(exist_ok=True)
            np.save(self._folder / f"{int(state.step)}.npy", watched)
        return {name: float(v) for name, v in self._health(state, self._test).items()}


def report(
    workdir: pathlib.Path,
    config: Config,
    samples: np.ndarray,
    train: tuple[np.ndarray, np.ndarray],
    test: np.ndarray,
    others: dict[str, np.ndarray],
    energy: Callable[[np.ndarray], jax.Array],
    more: dict[str, Any],
) -> None:
    """Tables, pictures and summary; ``more`` goes into it as it is."""
    found = {"test images": test, "samples": samples, **others}
    measured = {name: np.asarray(energy(images)) for name, images in found.items()}
    ranks = {name: auroc(measured["test images"], measured[name]) for name in others}
    results_table(
        [{"told from the test images": name, "AUROC": value} for name, value in ranks.items()],
        title="Outliers by their energy",
    )
    judge = train_judge(*train, config.evaluation, noise=config.data.noise)
    scores = {name: judge.scores(images) for name, images in found.items()}
    for name, distance in encoded_distances(config.evaluation.encoder, found, train[0]).items():
        scores[name]["Fréchet distance on EfficientNet-Lite0 features"] = distance
    results_table(
        [{"images": name} | row for name, row in scores.items()],
        title="Under a classifier of this run",
    )
    sheets = {int(path.stem): np.load(path) for path in (workdir / "watched").glob("*.npy")}
    pictures = figures.save(workdir, samples, train[0], sheets, measured)
    summary = write_summary(
        workdir,
        {
            "auroc": ranks,
            "scores": scores,
            "energy": {name: values.mean() for name, values in measured.items()},
            **more,
            "jax": jax.__version__,
            "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        },
    )
    print("written:", ", ".join(str(path) for path in (*pictures, summary)))
