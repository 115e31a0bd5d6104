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

from zoo import energy
from zoo.energy.clipped_adam import clipped_adam
from zoo.energy.networks import MnistEnergy
from zoo.extras import require
from zoo.training import functional
from zoo.training.state import get_model_state

from ..case import Case, Floor, Program, make_case, normal, torch_programs

partial = functools.partial
OPTIONS = {"step_size": 10.0, "noise_scale": 0.005, "gradient_clip": 0.01, "bounds": (0.0, 1.0)}
IMAGE = (28, 28, 1)
LEAPFROG_STEPS = 10


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
    """The program of this name in `torch_programs`."""
    both = images(0, batch), images(1, batch)
    return getattr(torch_programs(), name)(*both, features=features, num_steps=num_steps)


def chain_floor(*, features: int, num_steps: int, batch: int) -> Floor:
    """Forwards and back to the images at every step; parameters in, the images in and out.

    Padding, activations and norms are left out.
    """
    f = features
    convolutions = 784 * 9 * f + 196 * 16 * f * f + 49 * 16 * 2 * f * f + 16 * 16 * 8 * f * f
    forward = 2 * (convolutions + 64 * f * 2 * f + 2 * f)
    parameters = 304 * f * f + 13 * f + 1
    return Floor(2 * num_steps * batch * forward, 4 * (parameters + 2 * batch * 784))


# The kernels on a Gaussian, beside blackjax.


def quadratic(x: jax.Array) -> jax.Array:
    return (x**2).sum(axis=-1) / 2


def origin(*, chains: int, dimensions: int, num_steps: int) -> list[np.ndarray]:
    return [np.zeros((chains, dimensions), np.float32)]


def on_gaussian(make: Any, start: jax.Array, *, num_steps: int) -> jax.Array:
    sampler = make(quadratic, step_size=0.1)
    state, _ = energy.run_chain(jax.random.key(0), sampler, sampler.init(start), num_steps)
    return state.position


def in_blackjax(name: str, start: jax.Array, *, num_steps: int) -> Any:
    blackjax = require("blackjax", "bench")
    if name == "sgld":
        kernel = blackjax.sgld(lambda x, _: jax.grad(lambda x: -quadratic(x))(x))
        init, step_fn = kernel.init, lambda key, x: kernel.step(key, x, None, 0.1)
    else:
        masses = np.ones(start.shape[1], np.float32)
        options = {"mala": (0.1,), "hmc": (0.1, masses, LEAPFROG_STEPS)}[name]
        kernel = getattr(blackjax, name)(lambda x: -quadratic(x), *options)
        init, step_fn = kernel.init, lambda key, state: kernel.step(key, state)[0]

    def step(state: Any, key: jax.Array) -> tuple[Any, None]:
        return jax.vmap(step_fn)(jax.random.split(key, len(start)), state), None

    keys = jax.random.split(jax.random.key(0), num_steps)
    return jax.lax.scan(step, jax.vmap(init)(start), keys)[0]


def kernel_case(name: str, rival: str, **options: Any) -> Case:
    return make_case(
        f"energy.{name} on a Gaussian",
        partial(on_gaussian, partial(getattr(energy, name), **options)),
        {"blackjax": partial(in_blackjax, rival)},
        origin,
        options=("num_steps",),
        sizes={
            "100 chains, 10 dimensions": {"chains": 100, "dimensions": 10, "num_steps": 100},
            "1000 chains, 100 dimensions": {"chains": 1000, "dimensions": 100, "num_steps": 1000},
        },
        equal=(),
        count=lambda chains, dimensions, num_steps: chains * num_steps,
        unit="steps",
    )


def positions(*, samples: int, chains: int, components: int) -> list[np.ndarray]:
    return [normal(0, samples, chains, components)]


def blackjax_agreement(x: jax.Array) -> Any:
    diagnostics = require("blackjax.diagnostics", "bench")
    measures = diagnostics.rhat, diagnostics.ess_bulk, diagnostics.ess_tail
    with jax.numpy_rank_promotion("allow"):
        return [measure(x, chain_axis=1, sample_axis=0) for measure in measures]


def replay(*, capacity: int, batch: int) -> list[Any]:
    """A buffer and images to begin chains with."""
    return [energy.replay_init(jnp.zeros(IMAGE), capacity=capacity), images(0, batch)]


def turn(buffer: energy.ReplayBuffer, fresh: jax.Array) -> energy.ReplayBuffer:
    key = jax.random.key(0)
    return energy.replay_insert(key, buffer, energy.replay_draw(key, buffer, fresh).samples)


NETWORK: dict[str, Any] = {
    "sizes": {
        "8 features, 5 steps of 16": {"features": 8, "num_steps": 5, "batch": 16},
        "16 features, 60 steps of 64": {"features": 16, "num_steps": 60, "batch": 64},
        "64 features, 60 steps of 128": {"features": 64, "num_steps": 60, "batch": 128},
    },
    "small": ("8 features, 5 steps of 16", "16 features, 60 steps of 64"),
    "count": lambda features, num_steps, batch: num_steps * batch,  # gradients of the chains
    "unit": "gradients",
}
CASES = [
    Case(
        name="energy.langevin chain",
        build=partial(on_network, langevin_chain),
        rivals={
            "as many gradients": partial(on_network, bare_gradients),
            "PyTorch": partial(in_torch, "langevin_chain"),
        },
        floor=chain_floor,
        **NETWORK,
    ),
    Case(
        name="energy.training step",
        build=our_step,
        rivals={"PyTorch": partial(in_torch, "energy_step")},
        **NETWORK,
    ),
    kernel_case("langevin", "sgld"),
    kernel_case("metropolis_langevin", "mala"),
    kernel_case("hamiltonian_monte_carlo", "hmc", num_leapfrog_steps=LEAPFROG_STEPS),
    make_case(
        "energy.chain_agreement",
        energy.chain_agreement,
        {"blackjax": blackjax_agreement},
        positions,
        sizes={
            "4 chains of 1,000, 10 components": {"samples": 1000, "chains": 4, "components": 10},
            "16 chains of 1,000, 100 components": {
                "samples": 1000,
                "chains": 16,
                "components": 100,
            },
        },
        equal=(),
        count=lambda samples, chains, components: samples * chains * components,
        unit="numbers",
    ),
    make_case(
        "energy.replay_draw and replay_insert",
        turn,
        {},
        replay,
        sizes={
            "128 of 1,000": {"capacity": 1000, "batch": 128},
            "128 of 10,000": {"capacity": 10_000, "batch": 128},
        },
        count=lambda capacity, batch: batch,
        unit="chains",
    ),
]
