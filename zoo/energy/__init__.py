"""Energy-based models: sampling by Langevin dynamics, replay, objectives, composition."""

from zoo.energy.clipped_adam import ClipBySecondMomentState, clip_by_second_moment, clipped_adam
from zoo.energy.composition import (
    clamped_energy,
    energies_by_label,
    mixture_energy,
    product_energy,
)
from zoo.energy.diagnostics import effective_sample_size, r_hat
from zoo.energy.divergence import ChainHealth, Rollback, chain_health
from zoo.energy.langevin import LangevinState, MetropolisState, langevin, metropolis_langevin
from zoo.energy.likelihood import LogNormalizer, annealed_log_normalizer
from zoo.energy.networks import (
    RESNET,
    RESNET_LARGE,
    MnistEnergy,
    MultiscaleEnergy,
    ResidualBlock,
    ResNetEnergy,
)
from zoo.energy.objectives import (
    classifier_energy,
    contrastive_loss,
    denoising_score_matching_loss,
    nearest_neighbor_entropy,
    recovery_energy,
    sampler_kl_loss,
    softplus_contrastive_loss,
    weighted_contrastive_loss,
)
from zoo.energy.replay import ReplayBuffer, ReplayDraw, replay_draw, replay_init, replay_insert
from zoo.energy.sampling import (
    Sampler,
    SamplerInfo,
    energy_and_gradient,
    run_chain,
    sample_chain,
)
from zoo.energy.spectral import SpectralKernel, SpectralState, spectral_normalize
from zoo.energy.stochastic_gradient import stochastic_gradient_langevin
from zoo.energy.underdamped import UnderdampedState, underdamped_langevin

__all__ = [
    "RESNET",
    "RESNET_LARGE",
    "ChainHealth",
    "ClipBySecondMomentState",
    "LangevinState",
    "LogNormalizer",
    "MetropolisState",
    "MnistEnergy",
    "MultiscaleEnergy",
    "ReplayBuffer",
    "ReplayDraw",
    "ResNetEnergy",
    "ResidualBlock",
    "Rollback",
    "Sampler",
    "SamplerInfo",
    "SpectralKernel",
    "SpectralState",
    "UnderdampedState",
    "annealed_log_normalizer",
    "chain_health",
    "clamped_energy",
    "classifier_energy",
    "clip_by_second_moment",
    "clipped_adam",
    "contrastive_loss",
    "denoising_score_matching_loss",
    "effective_sample_size",
    "energies_by_label",
    "energy_and_gradient",
    "langevin",
    "metropolis_langevin",
    "mixture_energy",
    "nearest_neighbor_entropy",
    "product_energy",
    "r_hat",
    "recovery_energy",
    "replay_draw",
    "replay_init",
    "replay_insert",
    "run_chain",
    "sample_chain",
    "sampler_kl_loss",
    "softplus_contrastive_loss",
    "spectral_normalize",
    "stochastic_gradient_langevin",
    "underdamped_langevin",
    "weighted_contrastive_loss",
]
