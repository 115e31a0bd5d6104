"""Battery rows of `zoo.energy`."""

import functools

import jax
import jax.numpy as jnp

from tests.battery import BadInput, Row
from zoo import energy

UNITS = 3


def normal(generator, shape, dtype):
    return jnp.asarray(generator.normal(size=shape), dtype)


def quadratic(x):
    return (x**2).sum(axis=-1) / 2


def quartic(x):
    return (x**4 + x).sum(axis=-1) / 4


SAMPLERS = {
    "langevin": energy.langevin(quartic, step_size=0.05, noise_scale=0.0, bounds=(-3.0, 3.0)),
    "metropolis_langevin": energy.metropolis_langevin(quadratic, step_size=0.1),
    "underdamped_langevin": energy.underdamped_langevin(
        quartic, step_size=0.1, friction=1.0, temperature=0.0
    ),
}


def two_energies(generator, batch, dtype):
    return normal(generator, batch, dtype), normal(generator, batch, dtype)


def samples(generator, batch, dtype):
    return (normal(generator, (*batch, UNITS), dtype),)


def sampler_state(name):
    def arguments(generator, batch, dtype):
        state = SAMPLERS[name].init(normal(generator, (*batch, UNITS), dtype))
        return jax.random.key(int(generator.integers(100))), state

    return arguments


def chains(generator, batch, dtype):
    return (normal(generator, (8, *batch, 2), dtype),)


def buffer_of(generator, dtype, capacity=8):
    return energy.ReplayBuffer(
        samples=normal(generator, (capacity, UNITS), dtype),
        labels=jnp.asarray(generator.integers(0, 9, capacity)),
        filled=jnp.int32(5),
        inserted=jnp.int32(5),
    )


def drawing(generator, batch, dtype):
    key = jax.random.key(int(generator.integers(100)))
    fresh = normal(generator, (*batch, UNITS), dtype)
    return key, buffer_of(generator, dtype), fresh, jnp.zeros(batch, int)


def logits(generator, batch, dtype):
    return normal(generator, (*batch, 4), dtype), jnp.asarray(generator.integers(0, 4, batch))


def neighbors(generator, batch, dtype):
    return normal(generator, (*batch, UNITS), dtype), normal(generator, (5, UNITS), dtype)


def data_and_samples(generator, batch, dtype):
    return normal(generator, (*batch, UNITS), dtype), normal(generator, (*batch, UNITS), dtype)


def score_matching(key, x):
    return energy.denoising_score_matching_loss(key, quadratic, x, noise_scale=0.5)


def keyed_samples(generator, batch, dtype):
    key = jax.random.key(int(generator.integers(100)))
    return key, normal(generator, (*batch, UNITS), dtype)


BATCH_MEAN = "a mean over the batch: the mean of parts is another number, and of nothing none"
ONE_LOSS = {
    "arguments": two_energies,
    "axes": (0, 0),
    "out_axes": None,
    "differentiable": (0, 1),
    "wide": True,
    "extreme": 1e-20,
    "batch": (4,),
    "skip": {"shard_map_equals_unsharded": BATCH_MEAN, "accepts_empty_batch": BATCH_MEAN},
}

ROWS = [
    *(
        Row(
            name=f"zoo.energy.{loss.__name__}",
            function=functools.partial(loss, l2=0.5),
            bad=(
                BadInput(
                    "the article's sign",
                    lambda loss=loss: loss(jnp.zeros(2), jnp.zeros(2), l2=-1),
                    ValueError,
                    argument="l2",
                    expected="at least 0",
                    got="got -1",
                ),
            ),
            # The weights are constants in reverse and forward mode, but not in a difference.
            **ONE_LOSS
            | (
                {
                    "differentiable": (0,),
                    "extreme_arguments": (0, 1),
                }
                if loss is energy.weighted_contrastive_loss
                else {}
            ),
        )
        for loss in (
            energy.contrastive_loss,
            energy.softplus_contrastive_loss,
            energy.weighted_contrastive_loss,
        )
    ),
    *(
        Row(
            name=f"zoo.energy.{name}",
            function=sampler.step,
            arguments=sampler_state(name),
            axes=(None, 0),
            out_axes=jax.tree.map(
                lambda leaf: 0 if leaf.ndim else None,
                jax.eval_shape(
                    sampler.step, jax.random.key(0), sampler.init(jnp.zeros((2, UNITS)))
                ),
            ),
            state=(1, 0),
            differentiable=(),
            random=True,
            wide=(
                jax.tree.map(lambda _: False, sampler.init(jnp.zeros((2, UNITS))))._replace(
                    **({"energy": True} if name == "metropolis_langevin" else {})
                ),
                True,
            ),
            skip={
                "shard_map_equals_unsharded": "each device draws its own noise",
                "vmap_equals_loop": "one key moves the chains of all rows differently",
                "pmap_equals_loop": "the step count of a state is shared by its chains",
                "sharded_equals_unsharded": "the step count of a state is shared by its chains",
            },
        )
        for name, sampler in SAMPLERS.items()
    ),
    Row(
        name="zoo.energy.energy_and_gradient",
        function=functools.partial(energy.energy_and_gradient, quadratic),
        arguments=samples,
        axes=(0,),
        wide=(True, False),
        extreme=1e-20,
    ),
    *(
        Row(
            name=f"zoo.energy.{function.__name__}",
            function=function,
            arguments=chains,
            axes=(None,),
            differentiable=(),
            wide=True,
            tolerance={"float32": 1e-4},
        )
        for function in (energy.effective_sample_size, energy.r_hat)
    ),
    Row(
        name="zoo.energy.replay_draw",
        function=energy.replay_draw,
        arguments=drawing,
        axes=(None, None, 0, 0),
        differentiable=(),
        random=True,
        skip={"shard_map_equals_unsharded": "each device draws its own rows"},
        bad=(
            BadInput(
                "a rate above one",
                lambda: energy.replay_draw(
                    jax.random.key(0),
                    energy.replay_init(jnp.zeros(2), capacity=2),
                    jnp.zeros((1, 2)),
                    fresh_rate=2.0,
                ),
                ValueError,
                argument="fresh_rate",
                expected=r"\[0, 1\]",
                got="got 2.0",
            ),
        ),
    ),
    Row(
        name="zoo.energy.replay_insert",
        function=energy.replay_insert,
        arguments=drawing,
        axes=(None, None, None, None),
        out_axes=None,
        differentiable=(),
        state=(1, None),
        bad=(
            BadInput(
                "an unknown policy",
                lambda: energy.replay_insert(
                    jax.random.key(0),
                    energy.replay_init(jnp.zeros(2), capacity=2),
                    jnp.zeros((1, 2)),
                    policy="stack",
                ),
                ValueError,
                argument="policy",
                expected="'reservoir'",
                got="got 'stack'",
            ),
        ),
    ),
    Row(
        name="zoo.energy.chain_health",
        function=functools.partial(energy.chain_health, quadratic, bounds=(-1.0, 1.0)),
        arguments=data_and_samples,
        axes=(0, 0),
        out_axes=None,
        differentiable=(),
        extreme_arguments=(0, 1),
        extreme=1e-20,
        wide=True,
        skip={"shard_map_equals_unsharded": BATCH_MEAN, "accepts_empty_batch": BATCH_MEAN},
        bad=(
            BadInput(
                "reversed bounds",
                lambda: energy.chain_health(
                    quadratic, jnp.ones((1, 2)), jnp.ones((1, 2)), bounds=(1.0, 0.0)
                ),
                ValueError,
                argument="bounds",
                expected="low < high",
                got=r"got \(1.0, 0.0\)",
            ),
        ),
    ),
    Row(
        name="zoo.energy.classifier_energy",
        function=energy.classifier_energy,
        arguments=logits,
        axes=(0, 0),
        wide=True,
        extreme=0.5,
    ),
    Row(
        name="zoo.energy.nearest_neighbor_entropy",
        function=energy.nearest_neighbor_entropy,
        arguments=neighbors,
        axes=(0, None),
        out_axes=None,
        wide=True,
        extreme=1e-20,
        skip={"shard_map_equals_unsharded": BATCH_MEAN, "accepts_empty_batch": BATCH_MEAN},
    ),
    Row(
        name="zoo.energy.denoising_score_matching_loss",
        function=score_matching,
        arguments=keyed_samples,
        axes=(None, 0),
        out_axes=None,
        differentiable=(1,),
        random=True,
        wide=True,
        extreme=1e-20,
        skip={"shard_map_equals_unsharded": BATCH_MEAN, "accepts_empty_batch": BATCH_MEAN},
    ),
]


def kernel_and_vector(generator, batch, dtype):
    del batch
    return normal(generator, (4, 3), dtype), normal(generator, (3,), dtype)


ROWS.append(
    Row(
        name="zoo.energy.spectral_normalize",
        function=energy.spectral_normalize,
        arguments=kernel_and_vector,
        axes=(None, None),
        # One power iteration is a constant of the gradient, and a difference would move it.
        differentiable=(),
        extreme_arguments=(0,),
        extreme=1e-2,
        bad=(
            BadInput(
                "a vector of another kernel",
                lambda: energy.spectral_normalize(jnp.ones((4, 3)), jnp.ones(2)),
                ValueError,
                argument="u",
                expected="a kernel",
                got=r"got \(2,\)",
            ),
        ),
    )
)

FACTORY = "returns functions; its sampler or energy has tests of its own"
EXEMPT = {
    "zoo.energy.annealed_log_normalizer": "takes static sizes and an energy, no array argument",
    "zoo.energy.clamped_energy": FACTORY,
    "zoo.energy.clip_by_second_moment": "an Optax transformation; its update is tested",
    "zoo.energy.clipped_adam": "an Optax transformation; its update is tested",
    "zoo.energy.energies_by_label": "takes an energy; tested on one that is known",
    "zoo.energy.mixture_energy": FACTORY,
    "zoo.energy.product_energy": FACTORY,
    "zoo.energy.recovery_energy": FACTORY,
    "zoo.energy.replay_init": "zeros from static sizes",
    "zoo.energy.run_chain": "takes a sampler and its state; the state's step has a row",
    "zoo.energy.sample_chain": "takes a sampler and its state; the state's step has a row",
    "zoo.energy.sampler_kl_loss": "takes functions; its derivative is tested in closed form",
    "zoo.energy.stochastic_gradient_langevin": FACTORY,
}
