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
from flax import nnx

from benchmarks.case import Case, Floor, Program
from zoo import energy
from zoo.energy.clipped_adam import clipped_adam
from zoo.energy.networks import MnistEnergy
from zoo.extras import require
from zoo.training import functional
from zoo.training.state import get_model_state

partial = functools.partial
OPTIONS = {"step_size": 10.0, "noise_scale": 0.005, "gradient_clip": 0.01, "bounds": (0.0, 1.0)}
SIZES = {
    "8 features, 5 steps of 16": {"features": 8, "num_steps": 5, "batch": 16},
    "16 features, 60 steps of 64": {"features": 16, "num_steps": 60, "batch": 64},
    "64 features, 60 steps of 128": {"features": 64, "num_steps": 60, "batch": 128},
}
GAUSSIANS = {
    "100 chains, 10 dimensions": {"chains": 100, "dimensions": 10, "num_steps": 100},
    "1000 chains, 100 dimensions": {"chains": 1000, "dimensions": 100, "num_steps": 1000},
}
IMAGE = (28, 28, 1)


@functools.cache
def network(features: int) -> tuple[Any, Any, Any]:
    """The merge function, parameters, and the vectors of the spectral normalisation."""

    def make(rngs: nnx.Rngs) -> MnistEnergy:
        return MnistEnergy(features, stem_features=features, rngs=rngs)

    generator = np.random.default_rng(0)

    def fill(init: Callable[..., Any]) -> Any:  # quicker than to compile the initialisers
        shapes = jax.eval_shape(init, jax.random.key(0))
        return jax.tree.map(lambda x: generator.normal(size=x.shape).astype(np.float32), shapes)

    init, merge = functional(make)
    return merge, fill(init), fill(lambda key: get_model_state(make(nnx.Rngs(key))))


def images(seed: int, batch: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(size=(batch, *IMAGE)).astype(np.float32)


def on_network(move: Callable[..., Any], *, features: int, num_steps: int, batch: int) -> Program:
    """``move(energy, images, number of steps)``."""
    merge, parameters, state = network(features)

    def program(parameters: Any, start: jax.Array) -> jax.Array:
        return move(merge(parameters, model_state=state), start, num_steps)

    return program, (parameters, images(0, batch))


def langevin_chain(
    energy_fn: Any, start: jax.Array, num_steps: int, key: jax.Array | None = None
) -> jax.Array:
    key = jax.random.key(0) if key is None else key
    sampler = energy.langevin(energy_fn, noise_first=True, **OPTIONS)
    return energy.run_chain(key, sampler, sampler.init(start), num_steps)[0].position


def bare_gradients(energy_fn: Any, start: jax.Array, num_steps: int) -> jax.Array:
    """K gradients, each at another place, and nothing else."""

    def step(x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return x - jax.grad(lambda x: energy_fn(x).sum())(x), None

    return jax.lax.scan(step, start, None, length=num_steps)[0]


def our_step(*, features: int, num_steps: int, batch: int) -> Program:
    """A step of the training: chain, loss, gradient, optimiser."""
    merge, parameters, state = network(features)
    optimizer = clipped_adam()

    def step(
        parameters: Any, state: Any, moments: Any, key: jax.Array, data: jax.Array, start: jax.Array
    ) -> Any:
        samples = langevin_chain(merge(parameters, model_state=state), start, num_steps, key)

        def loss(parameters: Any) -> tuple[jax.Array, Any]:
            module = merge(parameters, key, model_state=state)
            both = module(jnp.concatenate([data, samples]))
            return energy.contrastive_loss(*jnp.split(both, 2)), get_model_state(module)

        gradient, after = jax.grad(loss, has_aux=True)(parameters)
        updates, moments = optimizer.update(gradient, moments, parameters)
        return optax.apply_updates(parameters, updates), after, moments, samples

    inputs = jax.random.key(0), images(0, batch), images(1, batch)
    return step, (parameters, state, optimizer.init(parameters), *inputs)


def in_torch(name: str, *, features: int, num_steps: int, batch: int) -> Program:
    """The same of a function of ``torch_energy``."""
    require("torch", "bench")
    from benchmarks.cases import torch_energy

    function = getattr(torch_energy, name)
    return function(features, images(0, batch), images(1, batch), num_steps=num_steps)


def forward_operations(f: int) -> int:
    """Multiplications and additions of one image; padding, activations and norms left out."""
    convolutions = 784 * 9 * f + 196 * 16 * f * f + 49 * 16 * 2 * f * f + 16 * 16 * 8 * f * f
    return 2 * (convolutions + 64 * f * 2 * f + 2 * f)


def parameter_count(f: int) -> int:
    return 304 * f * f + 13 * f + 1


def chain_floor(*, features: int, num_steps: int, batch: int) -> Floor:
    """Forwards and back to the images at every step; the images in and out."""
    operations = 2 * num_steps * batch * forward_operations(features)
    return Floor(operations, 4 * (parameter_count(features) + 2 * batch * 784))


def training_floor(*, features: int, num_steps: int, batch: int) -> Floor:
    """The chain, and forwards and back to the parameters for data and samples."""
    chain = chain_floor(features=features, num_steps=num_steps, batch=batch)
    # Behind the first layer the way back has two products, one for the images and one for the
    # parameters. Parameters and second moments are read and written.
    operations = chain.operations + 2 * batch * 3 * forward_operations(features)
    return Floor(operations, 4 * (4 * parameter_count(features) + 3 * batch * 784))


# The kernels on a Gaussian, beside blackjax.


def quadratic(x: jax.Array) -> jax.Array:
    return (x**2).sum(axis=-1) / 2


def our_kernel(make: Any, *, chains: int, dimensions: int, num_steps: int) -> Program:
    sampler = make(quadratic, step_size=0.1)

    def run(start: jax.Array) -> jax.Array:
        state, _ = energy.run_chain(jax.random.key(0), sampler, sampler.init(start), num_steps)
        return state.position

    return run, (np.zeros((chains, dimensions), np.float32),)


def in_blackjax(name: str, *, chains: int, dimensions: int, num_steps: int) -> Program:
    blackjax = require("blackjax", "bench")
    if name == "mala":
        kernel = blackjax.mala(lambda x: -quadratic(x), 0.1)
        init, step_fn = kernel.init, lambda key, state: kernel.step(key, state)[0]
    else:
        kernel = blackjax.sgld(lambda x, _: jax.grad(lambda x: -quadratic(x))(x))
        init, step_fn = kernel.init, lambda key, x: kernel.step(key, x, None, 0.1)

    def run(start: jax.Array) -> Any:
        def step(state: Any, key: jax.Array) -> tuple[Any, None]:
            return jax.vmap(step_fn)(jax.random.split(key, chains), state), None

        keys = jax.random.split(jax.random.key(0), num_steps)
        return jax.lax.scan(step, jax.vmap(init)(start), keys)[0]

    return run, (np.zeros((chains, dimensions), np.float32),)


def our_replay(*, capacity: int, batch: int) -> Program:
    buffer = energy.replay_init(jnp.zeros(IMAGE), capacity=capacity)

    def turn(buffer: energy.ReplayBuffer, fresh: jax.Array) -> energy.ReplayBuffer:
        key = jax.random.key(0)
        return energy.replay_insert(key, buffer, energy.replay_draw(key, buffer, fresh).samples)

    return turn, (buffer, images(0, batch))


def network_case(name: str, build: Any, floor: Any, rivals: dict[str, Any]) -> Case:
    """A case whose unit is the gradients of its chains."""
    return Case(
        name=f"energy.{name}",
        sizes=SIZES,
        small=(*SIZES,)[:2],
        build=build,
        rivals={**rivals, "PyTorch": partial(in_torch, name.replace(" ", "_"))},
        count=lambda features, num_steps, batch: num_steps * batch,
        unit="gradients",
        floor=floor,
    )


def kernel_case(name: str, rival: str) -> Case:
    return Case(
        name=f"energy.{name} on a Gaussian",
        sizes=GAUSSIANS,
        small=(*GAUSSIANS,)[:1],
        build=partial(our_kernel, getattr(energy, name)),
        rivals={"blackjax": partial(in_blackjax, rival)},
        count=lambda chains, dimensions, num_steps: chains * num_steps,
        unit="steps",
        # A gradient, a step and 32 random bits (20 rounds of four operations, a third each).
        floor=lambda chains, dimensions, num_steps: Floor(
            30 * num_steps * chains * dimensions, 8 * chains * dimensions
        ),
    )


CASES = [
    network_case(
        "langevin chain",
        partial(on_network, langevin_chain),
        chain_floor,
        {"as many gradients": partial(on_network, bare_gradients)},
    ),
    network_case("training step", our_step, training_floor, {}),
    kernel_case("langevin", "sgld"),
    kernel_case("metropolis_langevin", "mala"),
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
        # Without donation the complete buffer is copied.
        floor=lambda capacity, batch: Floor(784 * batch, 8 * 784 * (capacity + batch)),
    ),
]
