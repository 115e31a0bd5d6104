"""Energy-based models: sampling by Langevin dynamics, replay, objectives.

Further names are in their modules: ``adaptation`` (dual averaging), ``composition`` (products,
mixtures, in-painting, labels), ``clipped_adam``, ``health``, ``networks``, ``objectives``,
``spectral``.
"""

from zoo.energy.adaptation import adapt_step_size
from zoo.energy.chains import Sampler, run_chain, sample_chain
from zoo.energy.convergence import chain_agreement
from zoo.energy.hamiltonian import hamiltonian_monte_carlo
from zoo.energy.langevin import langevin, metropolis_langevin
from zoo.energy.networks import ResNetEnergy
from zoo.energy.objectives import (
    contrastive_loss,
    denoising_score_matching_loss,
)
from zoo.energy.replay import ReplayBuffer, replay_draw, replay_init, replay_insert
from zoo.energy.stochastic_gradient import stochastic_gradient_langevin
from zoo.energy.underdamped import underdamped_langevin

__all__ = [
    "ReplayBuffer",
    "ResNetEnergy",
    "Sampler",
    "adapt_step_size",
    "chain_agreement",
    "contrastive_loss",
    "denoising_score_matching_loss",
    "hamiltonian_monte_carlo",
    "langevin",
    "metropolis_langevin",
    "replay_draw",
    "replay_init",
    "replay_insert",
    "run_chain",
    "sample_chain",
    "stochastic_gradient_langevin",
    "underdamped_langevin",
]
