"""Cases of `zoo.energy`: a chain against its bare gradients, the training step, the kernels.

B chains, K steps. The network is that of the original for MNIST.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.case import Case, Floor, Program
from zoo import energy
from zoo.energy.clipped_adam import clipped_adam
from zoo.energy.networks import MnistEnergy
from zoo.extras import require
from zoo.training import functional_with_state

partial = functools.partial
OPTIONS = {"step_size": 10.0, "noise_scale": 0.005, "gradient_clip": 0.01, "bounds": (0.0, 1.0)}
SIZES = {
    "8 features, 5 steps of 16": {"features": 8, "num_steps": 5, "batch": 16},
    "16 features, 60 steps of 64": {"features": 16, "num_steps": 60, "batch": 64},
    "64 features, 60 steps of 128": {"features": 64, "num_steps": 60, "batch": 128},
}
SMALL = ("8 features, 5 steps of 16", "16 features, 60 steps of 64")
IMAGE = (28, 28, 1)


def rival() -> Any:
    """The PyTorch programs, or an ImportError that says what to install."""
    require("torch", "bench")
    from benchmarks.cases import torch_energy

    return torch_energy


@functools.cache
def network(features: int) -> tuple[Any, Any, Any]:
    """The functional network, its parameters and the vectors of its spectral normalisation."""
    parts = functional_with_state(
        lambda rngs: MnistEnergy(features, stem_features=features, rngs=rngs)
    )
    generator = np.random.default_rng(0)

    def fill(init: Callable[..., Any]) -> Any:  # quicker than to compile the initialisers
        shapes = jax.eval_shape(init, jax.random.key(0))
        return jax.tree.map(lambda x: generator.normal(size=x.shape).astype(np.float32), shapes)

    return parts, fill(parts.init_parameters), fill(parts.init_model_state)


def images(seed: int, batch: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(size=(batch, *IMAGE)).astype(np.float32)


def forward_operations(features: int) -> int:
    """Multiplications and additions of one image; padding, activations and norms left out."""
    f = features
    positions_times_weights = (
        784 * 9 * f + 196 * 16 * f * f + 49 * 16 * 2 * f * f + 16 * 16 * 8 * f * f
    )
    return 2 * (positions_times_weights + 64 * f * 2 * f + 2 * f)


def parameter_count(features: int) -> int:
    f = features
    return 9 * f + 16 * f * f + 32 * f * f + 128 * f * f + 128 * f * f + 4 * f + 1


def chain_floor(*, features: int, num_steps: int, batch: int) -> Floor:
    """Forwards and back to the images at every step; the images in and out."""
    operations = 2 * num_steps * batch * forward_operations(features)
    return Floor(operations, 4 * (parameter_count(features) + 2 * batch * 784))


def training_floor(*, features: int, num_steps: int, batch: int) -> Floor:
    """The chain, and forwards and back to the parameters for data and samples."""
    chain = chain_floor(features=features, num_steps=num_steps, batch=batch)
    # Behind the first layer the way back has two products, one for the images and one for the
    # parameters.
    return Floor(
        chain.operations + 2 * batch * 3 * forward_operations(features),
        4 * (8 * parameter_count(features) + 3 * batch * 784),
    )


# A chain of K steps.


def our_chain(*, features: int, num_steps: int, batch: int) -> Program:
    parts, parameters, state = network(features)

    def chain(parameters: Any, start: jax.Array) -> jax.Array:
        frozen = parts.rebuild(parameters, model_state=state)
        sampler = energy.langevin(frozen, noise_first=True, **OPTIONS)
        return energy.run_chain(jax.random.key(0), sampler, sampler.init(start), num_steps)[
            0
        ].position

    return chain, (parameters, images(0, batch))


def bare_gradients(*, features: int, num_steps: int, batch: int) -> Program:
    """K gradients, each at another place, and nothing else."""
    parts, parameters, state = network(features)

    def descend(parameters: Any, start: jax.Array) -> jax.Array:
        frozen = parts.rebuild(parameters, model_state=state)

        def step(x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return x - jax.grad(lambda x: frozen(x).sum())(x), None

        return jax.lax.scan(step, start, None, length=num_steps)[0]

    return descend, (parameters, images(0, batch))


def torch_chain(*, features: int, num_steps: int, batch: int) -> Program:
    return rival().chain(features, images(0, batch), num_steps=num_steps)


# A step of the training.


def our_step(*, features: int, num_steps: int, batch: int) -> Program:
    parts, parameters, state = network(features)
    optimizer = clipped_adam()

    def step(
        parameters: Any, state: Any, moments: Any, key: jax.Array, data: jax.Array, start: jax.Array
    ) -> Any:
        frozen = parts.rebuild(parameters, model_state=state)
        sampler = energy.langevin(frozen, noise_first=True, **OPTIONS)
        chain, _ = energy.run_chain(key, sampler, sampler.init(start), num_steps)

        def loss(parameters: Any) -> tuple[jax.Array, Any]:
            module = parts.rebuild(parameters, key, model_state=state)
            both = module(jnp.concatenate([data, chain.position]))
            return energy.contrastive_loss(*jnp.split(both, 2)), parts.model_state(module)

        gradient, state = jax.grad(loss, has_aux=True)(parameters)
        updates, moments = optimizer.update(gradient, moments, parameters)
        return optax.apply_updates(parameters, updates), state, moments, chain.position

    moments = optimizer.init(parameters)
    inputs = images(0, batch), images(1, batch)
    return step, (parameters, state, moments, jax.random.key(0), *inputs)


def torch_step(*, features: int, num_steps: int, batch: int) -> Program:
    inputs = images(0, batch), images(1, batch)
    return rival().training_step(features, *inputs, num_steps=num_steps)


# The kernels on a Gaussian, beside blackjax.

GAUSSIANS = {
    "100 chains, 10 dimensions": {"chains": 100, "dimensions": 10, "num_steps": 100},
    "1000 chains, 100 dimensions": {"chains": 1000, "dimensions": 100, "num_steps": 1000},
}


def quadratic(x: jax.Array) -> jax.Array:
    return (x**2).sum(axis=-1) / 2


def our_kernel(
    make: Callable[..., energy.Sampler], *, chains: int, dimensions: int, num_steps: int
) -> Program:
    sampler = make(quadratic, step_size=0.1)

    def run(start: jax.Array) -> jax.Array:
        state, _ = energy.run_chain(jax.random.key(0), sampler, sampler.init(start), num_steps)
        return state.position

    return run, (np.zeros((chains, dimensions), np.float32),)


def blackjax_mala(*, chains: int, dimensions: int, num_steps: int) -> Program:
    kernel = require("blackjax", "bench").mala(lambda x: -quadratic(x), 0.1)

    def run(start: jax.Array) -> jax.Array:
        def step(state: Any, key: jax.Array) -> tuple[Any, None]:
            return jax.vmap(kernel.step)(jax.random.split(key, chains), state)[0], None

        keys = jax.random.split(jax.random.key(0), num_steps)
        return jax.lax.scan(step, jax.vmap(kernel.init)(start), keys)[0].position

    return run, (np.zeros((chains, dimensions), np.float32),)


def blackjax_sgld(*, chains: int, dimensions: int, num_steps: int) -> Program:
    kernel = require("blackjax", "bench").sgld(lambda x, _: jax.grad(lambda x: -quadratic(x))(x))

    def run(start: jax.Array) -> jax.Array:
        def one(key: jax.Array, x: jax.Array) -> jax.Array:
            return kernel.step(key, kernel.init(x), None, 0.1)

        def step(x: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
            return jax.vmap(one)(jax.random.split(key, chains), x), None

        keys = jax.random.split(jax.random.key(0), num_steps)
        return jax.lax.scan(step, start, keys)[0]

    return run, (np.zeros((chains, dimensions), np.float32),)


def kernel_floor(*, chains: int, dimensions: int, num_steps: int) -> Floor:
    """A gradient, a step and a random bit of 32 (20 rounds of four operations, a third each)."""
    return Floor(30 * num_steps * chains * dimensions, 8 * chains * dimensions)


def kernel_case(
    name: str, make: Callable[..., energy.Sampler], rivals: dict[str, Callable[..., Program]]
) -> Case:
    return Case(
        name=f"energy.{name} on a Gaussian",
        sizes=GAUSSIANS,
        small=("100 chains, 10 dimensions",),
        build=partial(our_kernel, make),
        rivals=rivals,
        count=lambda chains, dimensions, num_steps: chains * num_steps,
        unit="steps",
        floor=kernel_floor,
    )


# Replay.


def our_replay(*, capacity: int, batch: int) -> Program:
    buffer = energy.replay_init(jnp.zeros(IMAGE), capacity=capacity)

    def turn(buffer: energy.ReplayBuffer, fresh: jax.Array) -> energy.ReplayBuffer:
        key = jax.random.key(0)
        draw = energy.replay_draw(key, buffer, fresh)
        return energy.replay_insert(key, buffer, draw.samples)

    return turn, (buffer, images(0, batch))


CASES = [
    Case(
        name="energy.langevin chain",
        sizes=SIZES,
        small=SMALL,
        build=our_chain,
        rivals={
            "as many gradients": bare_gradients,
            "PyTorch": torch_chain,
        },
        count=lambda features, num_steps, batch: num_steps * batch,
        unit="gradients",
        floor=chain_floor,
    ),
    Case(
        name="energy.training step",
        sizes=SIZES,
        small=SMALL,
        build=our_step,
        rivals={"PyTorch": torch_step},
        count=lambda features, num_steps, batch: num_steps * batch,
        unit="gradients",
        floor=training_floor,
    ),
    kernel_case("langevin", energy.langevin, {"blackjax": blackjax_sgld}),
    kernel_case("metropolis_langevin", energy.metropolis_langevin, {"blackjax": blackjax_mala}),
    Case(
        name="energy.replay_draw and replay_insert",
        sizes={
            "128 of 1,000": {"capacity": 1000, "batch": 128},
            "128 of 10,000": {"capacity": 10_000, "batch": 128},
        },
        small=("128 of 1,000",),
        build=our_replay,
        rivals={},
        count=lambda capacity, batch: batch,
        unit="chains",
        # Without donation the whole buffer is copied.
        floor=lambda capacity, batch: Floor(784 * batch, 8 * 784 * (capacity + batch)),
    ),
]
