"""Battery rows of `zoo.energy`."""

import functools

import jax
import jax.numpy as jnp

from tests.battery import Row
from zoo import energy
from zoo.energy.chains import SamplerInfo
from zoo.energy.clipped_adam import clipped_adam, scale_by_clipped_rms
from zoo.energy.composition import (
    clamped_energy,
    energies_by_label,
    mixture_energy,
    product_energy,
)
from zoo.energy.health import chain_health
from zoo.energy.langevin import LangevinState, MetropolisState
from zoo.energy.objectives import (
    classifier_energy,
    nearest_neighbor_entropy,
    recovery_energy,
    sampler_kl_loss,
)
from zoo.energy.spectral import spectral_normalize
from zoo.energy.underdamped import UnderdampedState

UNITS = 3
BATCH_MEAN = "a mean over the batch: the mean of parts is another number, and of nothing none"
MEAN = {
    "out_axes": None,
    "wide": True,
    "extreme": 1e-20,
    "skip": {"shard_map_equals_unsharded": BATCH_MEAN, "accepts_empty_batch": BATCH_MEAN},
}


def normal(generator, shape, dtype):
    return jnp.asarray(generator.normal(size=shape), dtype)


def random_key(generator):
    return jax.random.key(int(generator.integers(100)))


def quadratic(x):
    return (x**2).sum(axis=-1) / 2


def quartic(x):
    return (x**4 + x).sum(axis=-1) / 4


def two_energies(generator, batch, dtype):
    return normal(generator, batch, dtype), normal(generator, batch, dtype)


def keyed_samples(generator, batch, dtype):
    return random_key(generator), normal(generator, (*batch, UNITS), dtype)


def buffer_and_samples(generator, batch, dtype):
    buffer = energy.ReplayBuffer(
        samples=normal(generator, (8, UNITS), dtype),
        labels=jnp.asarray(generator.integers(0, 9, 8)),
        filled=jnp.int32(5),
        inserted=jnp.int32(5),
    )
    fresh = normal(generator, (*batch, UNITS), dtype)
    return random_key(generator), buffer, fresh, jnp.zeros(batch, int)


def logits_and_labels(generator, batch, dtype):
    return normal(generator, (*batch, 4), dtype), jnp.asarray(generator.integers(0, 4, batch))


def samples_and_references(generator, batch, dtype):
    return normal(generator, (*batch, UNITS), dtype), normal(generator, (5, UNITS), dtype)


def kernel_and_vector(generator, batch, dtype):
    del batch
    return normal(generator, (4, 3), dtype), normal(generator, (3,), dtype)


def sampler_row(name, sampler, axes, wide, *, rejects=False, **changes):
    """One step; ``axes`` and ``wide`` are those of the state's fields."""

    def arguments(generator, batch, dtype):
        key, position = keyed_samples(generator, batch, dtype)
        return key, sampler.init(position)

    return Row(
        name=f"zoo.energy.{name}",
        function=sampler.step,
        arguments=arguments,
        axes=(None, axes),
        out_axes=(axes, SamplerInfo(0, 0, 0 if rejects else None)),
        state=(1, 0),
        differentiable=(),
        random=True,
        wide=(wide, True),
        skip={"shard_map_equals_unsharded": "each device draws its own noise"},
        **changes,
    )


ROWS = [
    Row(
        name="zoo.energy.contrastive_loss",
        function=functools.partial(energy.contrastive_loss, l2=0.5),
        arguments=two_energies,
        axes=(0, 0),
        batch=(4,),
        differentiable=(0, 1),
        **MEAN,
    ),
    Row(
        name="zoo.energy.denoising_score_matching_loss",
        function=lambda key, x: energy.denoising_score_matching_loss(
            key, quadratic, x, noise_scale=0.5
        ),
        arguments=keyed_samples,
        axes=(None, 0),
        differentiable=(1,),
        random=True,
        **MEAN,
    ),
    sampler_row(
        "langevin",
        energy.langevin(quartic, step_size=0.05, noise_scale=0.0, bounds=(-3.0, 3.0)),
        LangevinState(0, None),
        False,
        pmap=True,
    ),
    sampler_row(
        "metropolis_langevin",
        energy.metropolis_langevin(quadratic, step_size=0.1),
        MetropolisState(0, 0, 0, None),
        MetropolisState(False, True, False, False),
        rejects=True,
    ),
    sampler_row(
        "underdamped_langevin",
        energy.underdamped_langevin(quartic, step_size=0.1, friction=1.0, temperature=0.0),
        UnderdampedState(0, 0, 0),
        False,
    ),
    sampler_row(
        "hamiltonian_monte_carlo",
        energy.hamiltonian_monte_carlo(quadratic, step_size=0.3, num_leapfrog_steps=2),
        MetropolisState(0, 0, 0, None),
        MetropolisState(False, True, False, False),
        rejects=True,
    ),
    Row(
        name="zoo.energy.replay_draw",
        function=energy.replay_draw,
        arguments=buffer_and_samples,
        axes=(None, None, 0, 0),
        differentiable=(),
        random=True,
        skip={"shard_map_equals_unsharded": "each device draws its own rows"},
    ),
    Row(
        name="zoo.energy.replay_insert",
        function=energy.replay_insert,
        arguments=buffer_and_samples,
        axes=(None, None, None, None),
        out_axes=None,
        differentiable=(),
        state=(1, None),
    ),
    # Not exported, but their numerics are their own.
    Row(
        name="zoo.energy.objectives.classifier_energy",
        function=classifier_energy,
        arguments=logits_and_labels,
        axes=(0, 0),
        wide=True,
        extreme=0.5,
        classes=lambda ids: classifier_energy(jnp.arange(900.0).reshape(3, 300), ids),
        skip={"shows_nan": "only the logit of the label counts"},
    ),
    Row(
        name="zoo.energy.objectives.nearest_neighbor_entropy",
        function=nearest_neighbor_entropy,
        arguments=samples_and_references,
        axes=(0, None),
        **MEAN,
    ),
    Row(
        name="zoo.energy.spectral.spectral_normalize",
        function=spectral_normalize,
        arguments=kernel_and_vector,
        axes=(None, None),
        # One power iteration is a constant of the gradient, and a difference would move it.
        differentiable=(),
        extreme_arguments=(0,),
        extreme=1e-2,
    ),
]

FACTORY = "returns functions; its sampler or energy has tests of its own"
CHAIN = "takes a sampler and its state; the state's step has a row"
EXEMPT = {
    "zoo.energy.adapt_step_size": CHAIN,
    "zoo.energy.chain_agreement": "compiled inside, slowly; equal to ArviZ in test_convergence.py",
    "zoo.energy.replay_init": "zeros from static sizes",
    "zoo.energy.run_chain": CHAIN,
    "zoo.energy.sample_chain": CHAIN,
    "zoo.energy.stochastic_gradient_langevin": FACTORY,
}

TRANSFORMATIONS = [
    functools.partial(scale_by_clipped_rms, decay=0.9),
    functools.partial(clipped_adam, learning_rate=0.1),
]


KEY, X = jax.random.key(0), jnp.ones((2, 1))


def reading(use):
    """``use`` of an energy that reads the box at every call."""
    return lambda box: lambda: use(lambda x, *_: box[0] * quadratic(x))


def wrapping(make):
    """An energy made of one that reads the box, once."""

    def build(box):
        energy_fn = make(lambda x, *_: box[0] * quadratic(x))
        return lambda: energy_fn(X)

    return build


def moving(make, run=energy.run_chain, **options):
    """Chains of a sampler that is made once."""

    def build(box):
        sampler = make(lambda x, *_: box[0] * quadratic(x))
        return lambda: run(KEY, sampler, sampler.init(X), **options)

    return build


def by_minibatches(prior, example):
    return energy.stochastic_gradient_langevin(
        prior, example, jnp.ones(3), minibatch_size=2, step_size=0.1
    )


def adapting(box):
    def make(step_size):
        return energy.metropolis_langevin(lambda x: box[0] * quadratic(x), step_size=step_size)

    return lambda: energy.adapt_step_size(KEY, make, X, num_steps=2).state.position


def kl_loss(energy_fn):
    make = functools.partial(energy.langevin, step_size=0.1)
    return sampler_kl_loss(KEY, lambda _, x: energy_fn(x), (), X, make_sampler=make, num_steps=2)


CHAIN_OF = {
    "langevin": functools.partial(energy.langevin, step_size=0.1),
    "metropolis_langevin": functools.partial(energy.metropolis_langevin, step_size=0.1),
    "underdamped_langevin": functools.partial(
        energy.underdamped_langevin, step_size=0.1, friction=1.0
    ),
    "hamiltonian_monte_carlo": functools.partial(
        energy.hamiltonian_monte_carlo, step_size=0.1, num_leapfrog_steps=1
    ),
    "stochastic_gradient_langevin, prior": lambda e: by_minibatches(e, lambda x, d: x - d[None]),
    "stochastic_gradient_langevin, examples": lambda e: by_minibatches(
        quadratic, lambda x, d: e(x)[:, None] + d[None]
    ),
}
CLOSURES = {f"zoo.energy.{name}": moving(make, num_steps=1) for name, make in CHAIN_OF.items()} | {
    "zoo.energy.sample_chain": moving(CHAIN_OF["langevin"], energy.sample_chain, num_samples=1),
    "zoo.energy.adapt_step_size": adapting,
    "zoo.energy.likelihood.annealed_log_normalizer": reading(
        lambda e: energy.likelihood.annealed_log_normalizer(
            KEY, e, (2, 1), num_steps=2, step_size=0.1
        )
    ),
    "zoo.energy.denoising_score_matching_loss": reading(
        lambda e: energy.denoising_score_matching_loss(KEY, e, X, noise_scale=1.0)
    ),
    "zoo.energy.objectives.sampler_kl_loss": reading(kl_loss),
    "zoo.energy.health.chain_health": reading(lambda e: chain_health(e, X, 2 * X)),
    "zoo.energy.objectives.recovery_energy": wrapping(
        functools.partial(recovery_energy, noisy=X, noise_scale=1.0)
    ),
    "zoo.energy.composition.product_energy": wrapping(lambda e: product_energy([e, quadratic])),
    "zoo.energy.composition.mixture_energy": wrapping(lambda e: mixture_energy([e, quadratic])),
    "zoo.energy.composition.clamped_energy": wrapping(
        lambda e: clamped_energy(e, X, jnp.zeros((1, 1), bool))
    ),
    "zoo.energy.composition.energies_by_label": wrapping(
        lambda e: functools.partial(energies_by_label, e, num_classes=2)
    ),
}
